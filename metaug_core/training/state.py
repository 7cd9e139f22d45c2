# pyright: reportPrivateImportUsage=false
"""Everything that changes while a run trains, in one place: made from a config, saved whole, restored whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from metaug_core import methods
from metaug_core.config import Config, ConfigError
from metaug_core.data.datasets import Images, Splits, StreamedImages
from metaug_core.meta.forward_ad import Params
from metaug_core.methods import Method
from metaug_core.methods.base import initial_networks
from metaug_core.runs.store import StoreError, load_module, read_tensors, write_tensors

ROLES = ("order", "views", "draw")  # one random generator each, so that no setting of one shifts the others


@dataclass
class TrainState:
    """A run between two steps. Lives on `device`, but for the order of images and its generator."""

    config: Config
    method: Method
    images: Images | StreamedImages
    device: str
    networks: nn.Module  # theta
    mag: nn.Module | None  # omega
    memory: nn.Module | None
    optimiser: torch.optim.Optimizer
    mag_optimiser: torch.optim.Optimizer | None
    generators: dict[str, torch.Generator]
    random: Tensor  # state of torch's global generator on the CPU, the run's own (a user's dropout draws from it)
    device_random: torch.Generator | None  # the same of the device's global generator; None on a CPU
    epoch: int = 0  # finished passes
    position: int = 0  # steps done of the pass under way
    step: int = 0  # steps done in all
    order: Tensor | None = None  # (N,) the images in the order of the pass under way
    omega_before: list[Tensor] | None = None  # the MAG's weights at the start of the pass under way
    previous: tuple[Tensor, Tensor] | None = None  # pixels and indices of the minibatch before, if a look-ahead asks

    @property
    def theta(self) -> Params:
        return dict(self.networks.named_parameters())

    @property
    def omega(self) -> Params:
        return dict(self.mag.named_parameters()) if self.mag is not None else {}

    @property
    def trains_mag(self) -> bool:
        """Whether there is a MAG that moves."""
        return self.mag is not None and self.config.mag_lr > 0

    def begin_pass(self) -> None:
        """Note what `mag_update` compares with."""
        self.omega_before = [p.detach().clone() for p in self.omega.values()] or None

    def mag_update(self) -> float | None:
        """How far the MAG's weights have moved since the pass began, relative to their norm then; None without a MAG."""
        if self.omega_before is None:
            return None
        moved = torch._foreach_sub([p.detach() for p in self.omega.values()], self.omega_before)
        return float(get_total_norm(moved) / get_total_norm(self.omega_before))

    def swap_previous(self, pixels: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The minibatch before this one (the first is its own), which takes its place; in its memory, for captured steps."""
        if self.previous is None:
            self.previous = pixels.clone(), indices.clone()
        before = self.previous[0].clone(), self.previous[1].clone()
        self.previous[0].copy_(pixels)
        self.previous[1].copy_(indices)
        return before

    @property
    def mag_pass(self) -> bool:
        """Whether the next step is of the MAG's pass (Algorithm 1: after the pass of the encoders)."""
        return self.trains_mag and self.config.schedule == "epoch" and self.position >= self.steps_per_epoch // 2

    @property
    def device_generators(self) -> list[torch.Generator]:
        """Those that a step draws from."""
        found = [generator for role, generator in self.generators.items() if role != "order"]
        return [*found, self.device_random] if self.device_random is not None else found

    @property
    def steps_per_epoch(self) -> int:
        """Minibatches of a pass (the last, incomplete one is left out), twice if a MAG pass follows each (Algorithm 1)."""
        passes = 2 if self.trains_mag and self.config.schedule == "epoch" else 1
        return passes * (len(self.images) // self.config.batch_size)


def optimiser(
    kind: str,
    parameters: list[nn.Parameter],
    lr: float,
    config: Config,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = Method.description.betas,
) -> torch.optim.Optimizer:
    """Adam, or SGD with config.momentum; fused where the device has it, and on CUDA with the rate in a tensor, for capture."""
    device = parameters[0].device.type
    fused, rate = device in ("cpu", "cuda"), torch.tensor(lr, device="cuda") if device == "cuda" else lr
    if kind == "adam":
        return torch.optim.Adam(
            parameters, lr=rate, betas=betas, weight_decay=weight_decay, fused=fused, capturable=device == "cuda"
        )
    return torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=weight_decay, fused=fused)


def set_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of the next step; a captured step reads it from its tensor."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def create(config: Config, splits: Splits, device: str) -> TrainState:
    """The state before the first step. ConfigError if the method cannot train on these images."""
    method = methods.build(config)
    images = splits.train if method.description.labelled else splits.pretrain
    if len(images) < config.batch_size:
        raise ConfigError(
            f"batch_size {config.batch_size} is more than the {len(images)} training images of {config.dataset}"
        )
    seeds = {role: config.seed * len(ROLES) + number for number, role in enumerate(ROLES)}
    generators = {
        role: torch.Generator("cpu" if role == "order" else device).manual_seed(seed) for role, seed in seeds.items()
    }
    networks, mag = (
        m.to(device) if m is not None else None
        for m in initial_networks(method, len(splits.train.classes), config.seed)
    )
    assert networks is not None
    memory = method.memory(networks, len(images), generators["draw"])
    return TrainState(
        config, method, images, device, networks, mag, memory,
        optimiser(config.optimiser, list(networks.parameters()), config.lr, config, config.weight_decay, method.description.betas),
        optimiser(config.mag_optimiser, list(mag.parameters()), config.mag_lr, config) if mag is not None else None,
        generators,
        torch.Generator().manual_seed(config.seed).get_state(),
        torch.Generator(device).manual_seed(config.seed) if device != "cpu" else None,
    )  # fmt: skip


@contextmanager
def own_random_numbers(s: TrainState) -> Iterator[None]:
    """Within, torch's global generators are the run's own, so that trials side by side do not draw from each other."""
    torch.set_rng_state(s.random)
    try:
        with own_device_numbers(s):
            yield
    finally:
        s.random = torch.get_rng_state()


@contextmanager
def own_device_numbers(s: TrainState) -> Iterator[None]:
    """`own_random_numbers` of the device alone. On CUDA the two generators change places without a wait for the device, also
    while a graph is captured with which the run's own is registered: its replays then draw from that one."""
    if s.device_random is None:
        yield
    elif s.device == "cuda":
        shared = torch.cuda.default_generators[torch.cuda.current_device()]
        before = shared.graphsafe_get_state()
        shared.graphsafe_set_state(s.device_random)
        try:
            yield
        finally:
            shared.graphsafe_set_state(before)
    else:
        torch.mps.set_rng_state(s.device_random.get_state())
        try:
            yield
        finally:
            s.device_random.set_state(torch.mps.get_rng_state())


def _modules(state: TrainState) -> dict[str, nn.Module]:
    named = {"networks.": state.networks, "mag.": state.mag, "memory.": state.memory}
    return {prefix: module for prefix, module in named.items() if module is not None}


def _optimisers(state: TrainState) -> dict[str, torch.optim.Optimizer]:
    named = {"optimiser": state.optimiser, "mag_optimiser": state.mag_optimiser}
    return {name: o for name, o in named.items() if o is not None}


def save(state: TrainState, path: Path) -> None:
    """All of it, atomically: weights, MAG, memory, optimisers, generators, order and position.

    Torch's global generators are of it: a user's encoder with dropout draws from there.
    """
    tensors = {prefix + name: t for prefix, m in _modules(state).items() for name, t in m.state_dict().items()}
    for name, o in _optimisers(state).items():
        for number, values in o.state_dict()["state"].items():
            tensors |= {f"{name}.{number}.{key}": t for key, t in values.items() if isinstance(t, Tensor)}
    tensors |= {f"generator.{role}": g.get_state() for role, g in state.generators.items()}
    if state.order is not None:
        tensors["order"] = state.order
    if state.omega_before is not None:
        tensors |= {f"omega_before.{number}": p for number, p in enumerate(state.omega_before)}
    if state.previous is not None:
        tensors |= dict(zip(("previous.pixels", "previous.indices"), state.previous, strict=True))
    tensors["generator.global"] = state.random
    if state.device_random is not None:
        tensors["generator.device"] = state.device_random.get_state()
    write_tensors(path, tensors, {"epoch": state.epoch, "position": state.position, "step": state.step} | _whose(state))


def not_finite(state: TrainState) -> str | None:
    """The name of a weight, a statistic or a remembered feature that is NaN or infinite, if there is one."""
    for prefix, module in _modules(state).items():
        for name, value in module.state_dict().items():
            if not torch.isfinite(value).all():
                return prefix + name
    return None


def _whose(state: TrainState) -> dict[str, Any]:
    """What a checkpoint must agree on with the run that takes it up."""
    return {"run": state.config.name(), "images": len(state.images)}


def save_encoders(state: TrainState, path: Path) -> None:
    """Only what evaluation needs: encoders, heads and MAG."""
    modules = {prefix: m for prefix, m in _modules(state).items() if prefix != "memory."}
    write_tensors(
        path, {p + n: t for p, m in modules.items() for n, t in m.state_dict().items()}, {"epoch": state.epoch}
    )


def restore(state: TrainState, path: Path) -> None:
    """Put a saved state into a freshly created one. StoreError if the file is torn, foreign or of another config."""
    tensors, scalars = read_tensors(path)
    for what, own in _whose(state).items():
        if scalars.get(what) != own:
            raise StoreError(f"{path} does not fit: its {what} is {scalars.get(what)!r}, here it is {own!r}")
    for prefix, module in _modules(state).items():
        load_module(module, tensors, prefix, path)
    try:
        for name, o in _optimisers(state).items():
            _load_optimiser(o, tensors, name + ".")
        for role, generator in state.generators.items():
            generator.set_state(tensors[f"generator.{role}"])
        state.random = torch.Generator().set_state(tensors["generator.global"]).get_state()  # refuses what is none
        if state.device_random is not None:
            state.device_random.set_state(tensors["generator.device"])
        state.epoch, state.position, state.step = (int(scalars[k]) for k in ("epoch", "position", "step"))
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise StoreError(f"{path} is not a whole checkpoint: {' '.join(str(error).split())}") from None
    state.order = tensors.get("order")
    if "omega_before.0" in tensors:
        state.omega_before = [tensors[f"omega_before.{number}"].to(state.device) for number in range(len(state.omega))]
    if "previous.pixels" in tensors:
        state.previous = tensors["previous.pixels"].to(state.device), tensors["previous.indices"].to(state.device)


def _load_optimiser(o: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str) -> None:
    found: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix):
            number, key = name.removeprefix(prefix).split(".", 1)
            found.setdefault(int(number), {})[key] = value
    o.load_state_dict({"state": found, "param_groups": o.state_dict()["param_groups"]})
    for parameter, values in o.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter).copy_(value)  # in its layout too: fused kernels go by memory
