"""One training step on random images: its cost, and whether its meta-gradient is right. For costs to quote see `benchmarks`."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from metaug_core.config import Config
from metaug_core.data.datasets import Images, Splits
from metaug_core.hardware import use_threads
from metaug_core.meta import meta_gradient
from metaug_core.meta.forward_ad import Params, Recorder, frozen_statistics
from metaug_core.networks import encoders
from metaug_core.networks import mag as augmenter
from metaug_core.runtime.device import arithmetic, keep_freed_memory
from metaug_core.training import loop, state
from metaug_core.training.state import TrainState
from metaug_core.training.step import sum_terms, train_step

Way = Callable[[], object]


def make_noise(count: int, size: int, device: str = "cpu") -> Images:
    """Images (count, 3, size, size) of random bytes in two classes: what is in a picture does not change what it costs."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return Images(pixels.to(device), (torch.arange(count) % 2).to(device), ("one", "two"))


class PreparedStep(NamedTuple):
    """A run's state before its first step, and a minibatch of random images."""

    s: TrainState
    pixels: Tensor  # uint8 (B, 3, H, W)
    indices: Tensor  # int64 (B,)

    def take(self) -> dict[str, Tensor]:
        """One whole training step: views, losses, gradients, optimisers, bank. Returns its metrics."""
        with arithmetic(self.s.config.precision), use_threads(self.s.threads):
            return train_step(self.s, self.pixels, self.indices, log=False)


def prepare_step(config: Config) -> PreparedStep:
    """The state of config on two minibatches of random images, on the device that config names; no data set is read."""
    batch, size, device = config.batch_size, config.stored_size or config.image_size, loop.pick_device(config.device)
    images = make_noise(2 * batch, size, device)
    s = state.create(config, Splits(images, images, None, images), device)
    return PreparedStep(s, images.pixels[:batch], torch.arange(batch, device=device))


def time_call(way: Way) -> float:
    """Seconds of one call, to the end of what it started on the device."""
    started = time.perf_counter()
    way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


@dataclass(frozen=True)
class Work:
    """The work of a step, counted as it runs eagerly."""

    flops: int  # of matmuls and convolutions, by torch's own formulas
    least: int  # bytes that these and the fused optimisers read and write, each tensor once: all else fused into them
    moved: int  # bytes that all operations read and write, each by itself
    operations: int  # ATen operations that compute: each is at least one kernel on a GPU

    def floor(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Seconds below which no program can do this work on a machine with these limits."""
        return max(self.flops / flops_per_second, self.least / bytes_per_second)


# By name: views that do not say so, questions about shapes, memory that is only reserved, marks of the profiler.
LAUNCHES_NOTHING = re.compile(
    r"aten::(detach|lift_fresh|_unsafe_view|is_same_size|_has_same_storage_numel|(new_)?empty\w*)|profiler::\w+"
)


class _Count(TorchDispatchMode):
    """torch's FlopCounterMode hooks modules, and with that torch.autograd.grad to a feature fails; so this counts by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.least = self.moved = self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.is_view or LAUNCHES_NOTHING.fullmatch(func._schema.name):
            return out
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        size = sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors)
        formula = flop_registry.get(func._overloadpacket)
        self.operations += 1
        self.moved += size
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        if formula is not None or "_fused_" in func._schema.name:
            self.least += size
        return out


def count_work(step: Way) -> Work:
    """The work of one step, which must be eager."""
    with _Count() as count:
        step()
    return Work(count.flops, count.least, count.moved, count.operations)


def compare_costs(ways: Mapping[str, Way], rounds: int = 5) -> pd.DataFrame:
    """A row for each way: step (its name), milliseconds (median), times_plain (median over rounds of its time in that of the first
    way), low, high (least and greatest), gflop, flops_plain, rounds. Ways take turns within a round, so that a drift of the
    machine's speed meets all of them.
    """
    with keep_freed_memory():  # as in training
        flops = pd.Series({name: count_work(way).flops for name, way in ways.items()})  # warms up as well
        times = pd.DataFrame([{name: time_call(way) for name, way in ways.items()} for _ in range(rounds)])
    ratios = times.div(times.iloc[:, 0], axis=0)
    table = {
        "milliseconds": 1e3 * times.median(),
        "times_plain": ratios.median(),
        "low": ratios.min(),
        "high": ratios.max(),
        "gflop": flops / 1e9,
        "flops_plain": flops / flops.iloc[0],
        "rounds": rounds,
    }
    return pd.DataFrame(table).rename_axis("step").reset_index()


# --- is the meta-gradient right
class Problem(NamedTuple):
    """eq. 2-6 on one minibatch: features(theta), loss(z, omega), and the parameters as leaves."""

    features: meta_gradient.Features
    loss: meta_gradient.Loss
    theta: Params
    omega: Params
    modules: tuple[nn.Module, ...]  # of `frozen_statistics`


def build_problem(config: Config, dtype: torch.dtype = torch.float64) -> Problem:
    """The look-ahead of config, of a method with a MAG, on random images on the CPU. loss includes alpha R_sigma."""
    s, pixels, indices = prepare_step(config.replace(device="cpu"))
    networks, mag, memory = (m.to(dtype) if m is not None else None for m in (s.networks, s.mag, s.memory))
    assert networks is not None
    assert mag is not None
    views = [view.to(dtype) for view in s.method.views(pixels, s.generators["views"])]
    context = s.method.context(memory, views, indices, torch.zeros_like(indices), s.generators["draw"])

    def features(theta: Params) -> Tensor:
        return functional_call(networks, theta, (views,))

    def loss(z: Tensor, omega: Params) -> Tensor:
        return sum_terms(s.method.outer_terms(z, context, lambda x: functional_call(mag, omega, (x,))))

    theta, omega = ({name: p.detach().requires_grad_() for name, p in m.named_parameters()} for m in (networks, mag))
    return Problem(features, loss, theta, omega, (networks, mag))


def measure_distances(gradients: Mapping[str, Params], reference: Params) -> pd.DataFrame:
    """A row for each gradient: its largest absolute difference from the reference, and that relative to the reference's largest
    entry."""
    size = max(float(part.abs().max()) for part in reference.values())
    largest = pd.Series(
        {name: max(float((g[n] - reference[n]).abs().max()) for n in reference) for name, g in gradients.items()}
    )
    return pd.DataFrame({"largest difference": largest, "relative": largest / size})


def take_central_difference(p: Problem, lr: float, direction: Params, step: float = 1e-7) -> float:
    """d/dt of loss(features(theta'), omega + t direction) at t = 0, where theta' is computed again at every omega: no derivative
    with respect to omega is used. At a larger step the loss has kinks between the two points (ReLU and max-pool switch); at a
    smaller one the rounding of float64 takes over."""

    def ahead(t: float) -> float:
        omega = {name: (w + t * direction[name]).detach() for name, w in p.omega.items()}
        inner = meta_gradient.gradients(p.loss(p.features(p.theta), omega), p.theta)
        with torch.no_grad():
            return float(p.loss(p.features(meta_gradient.step(p.theta, inner, lr)), omega))

    return (ahead(step) - ahead(-step)) / (2 * step)


# --- what second derivatives cost
def list_derivatives(config: Config, lr: float, dtype: torch.dtype = torch.float32) -> dict[str, Way]:
    """Ways for `compare_costs`, all of one loss on one minibatch: its gradient to theta, Hessian-vector products by torch.func, and
    the meta-gradient by one tangent pass and by double backward. Each returns what it computes, a tensor for each weight, and
    each computes that gradient on its way.

    config: of a method with a MAG whose loss is torch's own operations (`oucl eq9`): torch.func takes no autograd.Function that
    lacks `setup_context`. Its products run without those of the networks (`use_plain_formulas`). lr: of the look-ahead.
    """
    p = build_problem(config, dtype)
    point, omega = ({name: w.detach() for name, w in weights.items()} for weights in (p.theta, p.omega))

    def value(theta: Params) -> Tensor:
        return p.loss(p.features(theta), omega)

    def gradient() -> Params:
        return meta_gradient.gradients(value(p.theta), p.theta)

    def forward_over_reverse() -> Params:
        with use_plain_formulas():
            return jvp(grad(value), (point,), (direction,))[1]

    def reverse_over_reverse() -> Params:
        def along(theta: Params) -> Tensor:
            inner = grad(value)(theta)
            return torch.stack([(inner[name] * v).sum() for name, v in direction.items()]).sum()

        with use_plain_formulas():
            return grad(along)(point)

    def beside_regular() -> Params:
        with Recorder() as recorded:
            z = p.features(p.theta)
        leaf = meta_gradient.detach_leaf(z)
        (pull,) = torch.autograd.grad(p.loss(leaf, p.omega), leaf, create_graph=True)
        regular = meta_gradient.Regular(meta_gradient.vjp(z, p.theta, pull), pull, recorded)
        return meta_gradient.meta_gradient(*p[:4], lr, regular=regular)

    ways = {
        "gradient": gradient,
        "Hessian-vector,\nforward over reverse": forward_over_reverse,
        "Hessian-vector,\nreverse over reverse": reverse_over_reverse,
        "meta-gradient,\nbeside a regular step": beside_regular,
        "meta-gradient,\nalone": partial(meta_gradient.meta_gradient, *p[:4], lr),
        "meta-gradient,\ndouble backward": partial(meta_gradient.meta_gradient_reference, *p[:4], lr),
    }
    with frozen_statistics(*p.modules):
        direction = gradient()
    return {name: frozen_statistics(*p.modules)(way) for name, way in ways.items()}


PLAIN = {  # what the networks call by these names, in torch's own operations
    "linear": lambda x, weight, bias, *_: torch.baddbmm(bias, x, weight),
    "batch_norm": lambda x, weight, bias, running, momentum, eps: F.batch_norm(
        x, running[0], running[1], weight, bias, True, momentum, eps
    ),
    "unit": lambda x: F.normalize(x, dim=-1),
}


@contextmanager
def use_plain_formulas() -> Iterator[None]:
    """Context manager: networks compute by torch's own operations what they have written-out derivatives for."""
    own = [(room, name, getattr(room, name)) for room in (encoders, augmenter) for name in PLAIN if hasattr(room, name)]
    for room, name, _ in own:
        setattr(room, name, PLAIN[name])
    try:
        yield
    finally:
        for room, name, function in own:
            setattr(room, name, function)
