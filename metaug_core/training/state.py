# pyright: reportPrivateImportUsage=false
"""Everything that changes while a run trains, in one place. `checkpoint` saves and restores it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from metaug_core import methods
from metaug_core.config import Config, ConfigError
from metaug_core.data.datasets import Images, Splits, StreamedImages
from metaug_core.hardware import use_threads
from metaug_core.meta.forward_ad import Params, tangent
from metaug_core.methods import Method
from metaug_core.methods.base import initial_networks
from metaug_core.networks.encoders import Networks
from metaug_core.optimisers import group_parameters, make_optimiser
from metaug_core.registry import ENCODERS, METHODS
from metaug_core.training.own_networks import Repeats
from metaug_core.training.threads import count_threads

ROLES = ("order", "views", "draw")  # one random generator each, so that no setting of one shifts the others


@dataclass
class TrainState:
    """A run between two steps. All of it is on `device`, except the order of the images and its generator (CPU)."""

    config: Config
    method: Method
    images: Images | StreamedImages  # what the encoders train on
    device: str
    networks: nn.Module  # theta
    mag: nn.Module | None  # omega
    memory: nn.Module | None
    optimiser: torch.optim.Optimizer
    mag_optimiser: torch.optim.Optimizer | None
    generators: dict[str, torch.Generator]  # by role
    random: Tensor  # the run's own state of torch's global CPU generator: dropout in a user's encoder draws from it
    device_random: torch.Generator | None  # the same for the device's global generator; None on a CPU
    threads: int  # of torch's, in the run's steps and readings
    epoch: int = 0  # finished passes
    position: int = 0  # steps done of the current pass
    step: int = 0  # steps done in all
    order: Tensor | None = None  # (N,) int64, the order of the images in the current pass; None between two passes
    omega_before: list[Tensor] | None = None  # the MAG's weights at the start of the current pass
    previous: tuple[Tensor, Tensor] | None = None  # pixels and indices of the last minibatch (`look_ahead_batch`)
    rounded: Sequence[str] = ()  # the weights of the networks that a pass takes in bfloat16
    own: bool = False  # an encoder or a method of the user's own; the four below are for it alone (`own_networks`)
    draws: bool = False  # its networks or its loss draw random numbers
    tangent: Callable = tangent  # how the tangent pass of the meta-gradient is computed
    tangent_because: str | None = None  # why not in the fastest way, if so
    repeats: Repeats | None = None  # of the step under way
    infinite: frozenset[str] = frozenset()  # weights and buffers with infinities from the beginning, as a mask has

    @property
    def theta(self) -> Params:
        """The weights of the networks that are not frozen."""
        return {name: p for name, p in self.networks.named_parameters() if p.requires_grad}

    @property
    def omega(self) -> Params:
        return {name: p for name, p in self.mag.named_parameters() if p.requires_grad} if self.mag is not None else {}

    @property
    def trains_mag(self) -> bool:
        """Whether there is a MAG that moves by a look-ahead."""
        return self.mag is not None and self.config.mag_lr > 0 and not self.trains_by_loss

    @property
    def trains_by_loss(self) -> bool:
        """Whether what stands in the MAG's place moves in the regular step."""
        return self.method.description.augmented_by == "loss" and self.config.mag_lr > 0

    @property
    def mag_pass(self) -> bool:
        """Whether the next step belongs to the MAG's pass (Algorithm 1: after the pass of the encoders)."""
        return self.trains_mag and self.config.schedule == "epoch" and self.position >= self.steps_per_epoch // 2

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a pass: full minibatches, twice as many if a MAG pass follows each pass (Algorithm 1)."""
        passes = 2 if self.trains_mag and self.config.schedule == "epoch" else 1
        return passes * (len(self.images) // self.config.batch_size)

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch

    @property
    def epochs_done(self) -> float:
        return self.epoch + self.position / self.steps_per_epoch

    @property
    def device_generators(self) -> list[torch.Generator]:
        """The generators that a step draws from."""
        generators = [generator for role, generator in self.generators.items() if role != "order"]
        return [*generators, self.device_random] if self.device_random is not None else generators

    def begin_pass(self) -> None:
        """Draw the order of the images, and note the weights that `mag_update` compares with."""
        self.order = torch.randperm(len(self.images), generator=self.generators["order"])
        self.omega_before = [p.detach().clone() for p in self.omega.values()] or None

    def count_step(self) -> None:
        self.step += 1
        self.position += 1

    def end_pass(self) -> None:
        self.epoch += 1
        self.position = 0
        self.order = self.omega_before = None

    def mag_update(self) -> float | None:
        """|change of the MAG's weights since the pass began| / |weights at its beginning|; None without a MAG."""
        if self.omega_before is None:
            return None
        change = torch._foreach_sub([p.detach() for p in self.omega.values()], self.omega_before)
        return float(get_total_norm(change) / get_total_norm(self.omega_before))

    def swap_previous(self, pixels: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Remember this minibatch and return the last one (itself at the first call). Captured steps need it in place."""
        if self.previous is None:
            self.previous = pixels.clone(), indices.clone()
        last = self.previous[0].clone(), self.previous[1].clone()
        self.previous[0].copy_(pixels)
        self.previous[1].copy_(indices)
        return last


def create(config: Config, splits: Splits, device: str) -> TrainState:
    """The state before the first step. ConfigError if the method cannot train on these images."""
    method = methods.build(config)
    own = bool(ENCODERS.added(config.encoder) or METHODS.added(config.method))
    images = splits.train if method.description.labelled else splits.pretrain
    if len(images) < config.batch_size:
        raise ConfigError(
            f"batch_size {config.batch_size} is more than the {len(images)} training images of {config.dataset}"
        )
    generators = {
        role: torch.Generator("cpu" if role == "order" else device).manual_seed(config.seed * len(ROLES) + number)
        for number, role in enumerate(ROLES)
    }
    networks, mag = initial_networks(method, len(splits.train.classes), config.seed)
    networks, mag = networks.to(device), mag.to(device) if mag is not None else None
    encoders, betas = group_parameters(networks, config), method.description.betas
    return TrainState(
        config,
        method,
        images,
        device,
        networks,
        mag,
        memory=method.memory(networks, len(images), generators["draw"]),
        optimiser=make_optimiser(config.optimiser, encoders, config.lr, config.momentum, betas),
        mag_optimiser=make_mag_optimiser(mag, config) if mag is not None else None,
        generators=generators,
        random=torch.Generator().manual_seed(config.seed).get_state(),
        device_random=torch.Generator(device).manual_seed(config.seed) if device != "cpu" else None,
        rounded=networks.product_weights() if isinstance(networks, Networks) and not own else (),
        threads=count_threads(config, device),
        own=own,
    )


def make_mag_optimiser(mag: nn.Module, config: Config) -> torch.optim.Optimizer:
    """The optimiser of omega, the parameters of the MAG."""
    trained = [p for p in mag.parameters() if p.requires_grad]
    if not trained:
        raise ConfigError(f"the MAG of method {config.method!r} has no weight to train: all are frozen, or it has none")
    group = {"params": trained, "weight_decay": config.mag_weight_decay}
    group |= {"constant_rate": config.mag_lr_schedule == "constant"}
    return make_optimiser(config.mag_optimiser, [group], config.mag_lr, config.momentum)


@contextmanager
def own_random_numbers(s: TrainState) -> Iterator[None]:
    """Context manager: torch's global generators are the run's own, so that trials side by side do not draw from each other, and
    so is the number of its threads."""
    torch.set_rng_state(s.random)
    try:
        with own_device_numbers(s), use_threads(s.threads):
            yield
    finally:
        s.random = torch.get_rng_state()


@contextmanager
def own_device_numbers(s: TrainState) -> Iterator[None]:
    """As `own_random_numbers`, for the device's global generator alone.

    On CUDA the two generators change places without a wait for the device, also while a graph is captured. What a graph holds
    is the state that the run's own generator keeps, so the replays draw from it.
    """
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
