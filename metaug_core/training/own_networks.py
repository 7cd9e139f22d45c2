"""Encoders and methods of the user's own: what is found out about them once, before the first step, and how every pass of a step
over one minibatch sees one function, as the exact meta-gradient needs it.

The package's own networks draw nothing, write no buffer but BatchNorm's and have a forward mode, so none of this is done for them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.backends import cudnn, mkldnn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaug_core.errors import MetaugError
from metaug_core.extensions import name_error
from metaug_core.meta.forward_ad import Params, Recorder, frozen_statistics, reverse_tangent, tangent
from metaug_core.meta.meta_gradient import detach_leaf, vjp
from metaug_core.methods.modifiers import find_base
from metaug_core.runs.files import weights
from metaug_core.runtime import distributed
from metaug_core.runtime.device import unit_roundoff

if TYPE_CHECKING:
    from metaug_core.methods.base import Context
    from metaug_core.training.state import TrainState

HOOKS = "with a MAG, torch.utils.checkpoint and other hooks on saved tensors would use the weights of another pass: leave them out"


# --- one function in all passes of a step


class Repeats:
    """Random numbers and buffers of one step. Each pass draws the numbers that the first of its kind drew, and finds the buffers
    as they were before it; what a repeated pass draws or writes is forgotten. So after the step the generators stand where one
    pass over the networks and one over the loss leave them."""

    def __init__(self, s: "TrainState"):
        self.generators = [torch, getattr(torch, s.device)] if s.device != "cpu" else [torch]
        self.first: dict[str, list[Tensor]] = {}
        self.buffers = {m: clone(dict(m.named_buffers())) for m in (s.networks, s.mag) if m is not None}

    def random_state(self) -> list[Tensor]:
        return [generator.get_rng_state() for generator in self.generators]

    def set_random_state(self, states: list[Tensor]) -> None:
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_rng_state(state)

    @contextmanager
    def repeat(self, kind: str) -> Iterator[None]:
        """Context manager: a pass of this kind, "networks" or "loss". Attention in the latter has a second derivative."""
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            yield  # a captured step draws nothing (`explain_eager_steps`)
            return
        now = self.random_state()
        repeated = kind in self.first
        self.set_random_state(self.first.setdefault(kind, now))
        try:
            with sdpa_kernel(SDPBackend.MATH) if kind == "loss" else nullcontext():
                yield
        finally:
            if repeated:
                self.set_random_state(now)

    def call(self, module: nn.Module, weights: Params, inputs: Any) -> Tensor:
        """module(inputs) with these weights, and with copies of the buffers: what it writes is written to them."""
        tensors = weights | clone(self.buffers[module])
        ties = {place: tensors[name] for place, name in find_ties(module).items() if name in tensors}
        return functional_call(module, tensors | ties, (inputs,), tie_weights=False)


def clone(buffers: Params) -> Params:
    return {name: b.clone() for name, b in buffers.items()}


def find_ties(module: nn.Module) -> dict[str, str]:
    """The further places of each weight and buffer that stands in several, each with its name among `named_parameters`.

    `functional_call` would find them too, but it leaves the weights of a call in a part that is itself in several places.
    """
    names = {id(t): name for name, t in (*module.named_parameters(), *module.named_buffers())}
    ties = {}
    for prefix, part in module.named_modules():  # each part once
        own = (*part.named_parameters(recurse=False, remove_duplicate=False), *part.named_buffers(recurse=False))
        ties |= {f"{prefix}.{name}".removeprefix("."): names[id(t)] for name, t in own}
    return {place: name for place, name in ties.items() if place != name}


# --- the tangent pass


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Context manager: recurrent layers and attention by plain operations, which have derivatives of every order and both modes."""
    before = cudnn.enabled, mkldnn.enabled
    try:
        cudnn.enabled = mkldnn.enabled = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        cudnn.enabled, mkldnn.enabled = before


def by_plain_kernels(way: Callable) -> Callable:
    def compute(*arguments) -> tuple[Tensor, Tensor]:
        with plain_kernels():
            return way(*arguments)

    return compute


TANGENTS = (tangent, by_plain_kernels(tangent), reverse_tangent, by_plain_kernels(reverse_tangent))


# --- before the first step


def check(s: "TrainState", views: list[Tensor], context: "Context") -> None:
    """Try the networks and the loss on one minibatch, and choose how the tangent pass is computed (`s.tangent`).

    Nothing that a run saves is changed. Raises MetaugError for networks that give other features in a second pass, a loss that is
    no scalar or has no gradient, and with a MAG for networks without the derivatives that it needs.
    """
    names = " and ".join(s.config.own_code())
    for name, value in weights(s.networks).items():
        if not isinstance(value, Tensor):
            raise MetaugError(f"{names}: {name} cannot be saved, it is a {type(value).__name__}: keep it in a buffer")
    if not callable(getattr(s.networks, "encoders", None)):
        raise MetaugError(f"{names}: the networks need a module `encoders`, whose features evaluation uses")
    repeats, theta, recorded = Repeats(s), s.theta, Recorder()
    before = repeats.random_state()

    def features(theta: Params) -> Tensor:
        with distributed.whole_batch(), repeats.repeat("networks"):
            return repeats.call(s.networks, theta, views)

    with recorded:
        z = features(theta)
    if not isinstance(z, Tensor):
        raise MetaugError(f"{names}: the networks give a {type(z).__name__}, need one tensor z (V, B, d)")
    leaf, base, mag = detach_leaf(z), find_base(s.method), s.mag
    with repeats.repeat("loss"):
        if base is not s.method:  # a MAG's terms add it to others
            check_terms({"loss": base.loss(leaf, context)}, leaf, names)
        augment = (lambda x: repeats.call(mag, s.omega, x)) if mag is not None else None
        check_terms(s.method.terms(leaf, context, augment), leaf, names)
    s.draws = any(not torch.equal(a, b) for a, b in zip(before, repeats.random_state(), strict=True))
    if not torch.isfinite(z).all():
        return  # the first step says so
    with torch.no_grad():
        again = features(theta)
    roundoff = [torch.finfo(p.dtype).eps / 2 for p in theta.values()]
    tolerance = 1e-3 + 16 * max(unit_roundoff(s.config.precision, s.device), *roundoff)
    if distributed.any_of(not torch.allclose(z, again, tolerance, tolerance * float(z.detach().abs().max())), s.device):
        raise MetaugError(
            f"{names}: two passes over the same images give different features: draw random numbers from torch's global generator "
            "alone, and keep what a pass changes in buffers (register_buffer)"
        )
    if not s.trains_mag or s.config.mag_gradient != "whole":
        return
    with frozen_statistics(s.networks):
        try:
            with torch.autograd.graph.disable_saved_tensors_hooks(HOOKS):
                z = features(theta)
        except RuntimeError as error:
            raise MetaugError(f"{names}: {name_error(error)}") from error
        if s.config.meta == "forward":
            s.tangent, s.tangent_because = choose_tangent(features, z, theta, recorded, tolerance, names)


def check_terms(terms: dict[str, Tensor], z: Tensor, names: str) -> None:
    """MetaugError if a term of the loss is not a scalar tensor, or none depends on the features z."""
    for term in terms.values():
        if not isinstance(term, Tensor) or term.dim() or not term.is_floating_point():
            what = (
                f"a tensor {tuple(term.shape)} of {term.dtype}"
                if isinstance(term, Tensor)
                else f"a {type(term).__name__}"
            )
            raise MetaugError(f"{names}: the loss is {what}, needs a tensor with one real number (loss.mean())")
    total = torch.stack([*terms.values()]).sum()
    if not total.requires_grad or torch.autograd.grad(total, z, allow_unused=True, retain_graph=True)[0] is None:
        raise MetaugError(f"{names}: the loss has no gradient to the features z")


def choose_tangent(features: Callable, z: Tensor, theta: Params, recorded: Recorder, tolerance: float,
                   names: str) -> tuple[Callable, str | None]:  # fmt: skip
    """The first of `TANGENTS` that the networks allow and that agrees with their backward, and why it is not the first.

    z: features(theta), with its graph. They agree if <J v, u> = <v, J^T u> for random u and v. So a network that cuts its gradient
    (no_grad, a straight-through estimate), which forward mode does not see, has the derivative that its training has.
    """
    u = distributed.gather(torch.randn_like(z.detach()), 1)
    v = {name: torch.randn_like(p.detach()) for name, p in theta.items()}
    back = vjp(z, theta, u)
    # On the CPU, because an MPS device has no float64.
    wanted = sum((v[name].cpu().double() * back[name].cpu().double()).sum() for name in theta)
    because = None
    for way in TANGENTS:
        try:
            _, z_dot = way(features, theta, v, recorded)
        except Exception as error:
            because = because or name_error(error)
            continue
        z_dot = distributed.gather(z_dot, 1).cpu().double()
        error = (z_dot * u.cpu()).sum() - wanted
        if not distributed.any_of(not bool(error.abs() <= tolerance * z_dot.norm()), str(z.device.type)):
            return way, because
        because = because or "forward mode gives another derivative than the backward"
    raise MetaugError(
        f"{names}: the networks lack the second derivative that the MAG needs ({because}); mag_gradient 'direct' or a method "
        "without the MAG does without"
    )
