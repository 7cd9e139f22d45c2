"""The seam: a contrastive method is a loss that is pure in the features, and what that loss needs beside them.

    images -> networks -> z (V, B, d)          depends on theta
    loss(z, context) -> scalar                 pure in z; context has no gradient

A method of your own:

    class Mine(Method):
        defaults = {"views": ("L", "ab")}

        def loss(self, z, context):
            aligned = [alignment(a, b) for a, b in self.across(z, z)]     # rows of z: views, and with a MAG augmented ones
            return sum(aligned) / len(aligned) + sum(map(uniformity, z)) / len(z)

    METHODS["mine"] = Mine                     # "mine+mag" is then the same method on augmented features as well (eq. 11)

What stands between steps (bank, queue, averaged networks) is `memory`; what a step needs of it without a gradient is drawn by
`context` and handed to `loss`; after the step `remember` writes. What a method says about itself it writes as class attributes with
the names of `Description`'s fields; everybody reads its `description`, which a composition takes over from its base. A method that
does not say which settings it `uses` counts as using all: any that is changed then makes another run.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from metaug_core.config import Config, ConfigError
from metaug_core.networks.encoders import Networks
from metaug_core.networks.memory import Bank
from metaug_core.objectives import losses
from metaug_core.objectives.similarity import Pairs, other_views
from metaug_core.settings import OPTIONAL
from metaug_core.views.augmentation import make_views

TWO_CROPS: dict[str, Any] = {  # two augmented crops of an image through one encoder, as most methods see it
    "views": ("RGB", "RGB"),
    "independent": True,
    "crop_scale": (0.2, 1.0),
    "jitter": 0.5,  # MoCo v2's 0.4, 0.4, 0.4, 0.1
    "grey": 0.2,
    "negatives": "batch",
}
Augment = Callable[[Tensor], Tensor]  # z (V, B, d) -> z~ (V, B, d)
Contrast = Callable[[Tensor, Tensor], Tensor]  # similarities d of positives (A, P) and negatives (A, N) -> scalar


@dataclass(frozen=True)
class Context:
    """What a loss needs and has no gradient: who the images are, and what is remembered of the past."""

    indices: Tensor  # (B,) int64, the images' numbers in the pretraining set
    labels: Tensor  # (B,) int64, -1 where there is none
    negatives: Tensor | None = (
        None  # (V, V - 1, K, d), past features that each view meets; None: those of the minibatch
    )
    drawn: Tensor | None = None  # (B, K), which of them each image takes; None: all
    positives: Tensor | None = None  # (V, B, d), stale positives; None: the features themselves
    shared: Pairs | None = None  # similarities that several losses of the same features share
    given: Mapping[str, Tensor] = field(default_factory=dict)  # what else the method's `context` found, by name

    def pairs(self, views: int) -> Pairs:
        """Similarities with these negatives: those that are shared, or new ones."""
        return self.shared or Pairs(views, self.negatives, self.drawn)


@dataclass(frozen=True)
class Description:
    """What a method says about itself, to tables and to the engine."""

    title: str = ""  # as a table names it; a class that gives none has its own name
    paper: str = ""  # authors and year
    objective: str = ""  # the loss in one line of plain text
    remembers: str = "nothing"  # what `memory` holds
    defaults: Mapping[str, Any] = field(default_factory=dict)  # settings that stand where the user gave none
    uses: Set[str] = (
        OPTIONAL  # of the settings that only some methods use (`settings`), those that can change what it learns
    )
    labelled: bool = False  # trains on labels (then unlabelled images are left out)
    minimum_views: int = 2
    parts: int = 1  # z has so many rows for each view: 2 where predictions (V, B, d) follow the features
    unit_features: bool = True  # the first V rows of z are features of unit norm; else nothing is said of them
    augmentable: bool = True  # z (parts V, B, d) is of features alone, so that a MAG can augment them
    contrasts: bool = False  # the loss calls `contrast`, so that `debiased` and `hard` can weigh its negatives
    captured: bool = True  # a step never waits for the device, so that CUDA can capture it
    divided: bool = True  # several processes can train one run together and give the numbers of one
    betas: tuple[float, float] = (0.9, 0.999)  # Adam's, for theta


class Method(ABC):
    """A contrastive method. Subclasses are final; only `loss` must be given."""

    description: Description = Description()

    def __init_subclass__(cls, **keywords: Any):
        """Freeze what the class says about itself; what it leaves out is as its base class has it."""
        super().__init_subclass__(**keywords)
        said = {one.name: vars(cls)[one.name] for one in fields(Description) if one.name in vars(cls)}
        # Not the base class's `uses`: what this class reads beyond them would be missing in the name of its runs.
        cls.description = replace(cls.description, **{"title": cls.__name__, "uses": OPTIONAL} | said)

    def __init__(self, config: Config):
        self.config = config
        self.tau_plus = self.hard_beta = 0.0  # the modifiers `debiased` and `hard` set them
        self.contrast: Contrast = self.info_nce  # the modifier `oucl` puts its objective here

    @abstractmethod
    def loss(self, z: Tensor, context: Context) -> Tensor:
        """Scalar objective of a set of features z (W, B, d), row w of view w % V; pure: no state, no buffer, no draw."""

    def info_nce(self, positives: Tensor, negatives: Tensor) -> Tensor:
        """Eq. 1 of similarities d in [0, 1], (A, P) and (A, N): at half the temperature the same as of cosines."""
        return losses.info_nce(positives, negatives, self.config.temperature / 2, self.tau_plus, self.hard_beta)

    def networks(self, classes: int) -> nn.Module:
        """theta: maps the list of view images to z, and has `encoders` whose h evaluation uses."""
        del classes
        return Networks(self.config)

    def views(self, pixels: Tensor, generator: torch.Generator) -> list[Tensor]:
        """What the networks are given of uint8 images (B, 3, H, W): tensors (B, ...). All chance comes from generator."""
        return make_views(pixels, self.config, generator)

    def part(self, z: Tensor, number: int) -> Tensor:
        """Of z (k parts V, B, d), k sets of features and what follows them, one part of every set: (k V, B, d)."""
        return z.unflatten(0, (-1, self.description.parts, len(self.config.views)))[:, number].flatten(0, 1)

    def across(self, first: Tensor, second: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each row (B, d) of first with each of second that is of another view; row w is of view w % V."""
        views = len(self.config.views)
        return [(a, b) for w, a in enumerate(first) for u, b in enumerate(second) if w % views != u % views]

    def mag(self) -> nn.Module | None:
        """Create omega, the MAG; None for a method without one."""
        return None

    def memory(self, networks: nn.Module, images: int, generator: torch.Generator) -> nn.Module | None:
        """Whatever is remembered between steps (bank, queue, averaged networks), as a module: it is saved and resumed."""
        del networks, images, generator
        return None

    def context(self, memory: nn.Module | None, views: list[Tensor], indices: Tensor, labels: Tensor,
                generator: torch.Generator) -> Context:  # fmt: skip
        """Draw from memory what this minibatch's loss needs. Must not change memory."""
        del memory, views, generator
        return Context(indices, labels)

    def remember(self, memory: nn.Module | None, networks: nn.Module, z: Tensor, context: Context) -> None:
        """After the regular step: write what later steps need (z is of before the step)."""

    def terms(self, z: Tensor, context: Context, augment: Augment | None) -> dict[str, Tensor]:
        """The training loss by weighted term; their sum is what theta descends on, now and in the look-ahead."""
        del augment
        return {"loss_original": self.config.loss_scale * self.loss(z, context)}

    def outer_terms(self, z: Tensor, context: Context, augment: Augment) -> dict[str, Tensor]:
        """What omega descends on at theta' (eq. 6), by weighted term. Only methods with a generator are asked."""
        return self.terms(z, context, augment)


class Composition:
    """A method and a modifier on it, which stands wherever a method class does: METHODS["cmc+hard"] = hard(CMC).

    It says of itself what the base says, with the modifier's title, paper and objective after the base's. defaults: settings that
    stand on top of the base's own; changes: what else it says differently. Unless they say what it `uses`, that is every setting.
    """

    def __init__(self, base: "type[Method] | Composition", modify: Callable[[Method], Method], title: str, paper: str,
                 objective: str, defaults: Mapping[str, Any] | None = None, **changes: Any):  # fmt: skip
        self.base, self.modify, self.defaults, of_base = base, modify, dict(defaults or {}), base.description
        self.description = replace(
            of_base,
            title=f"{of_base.title} + {title}",
            paper=f"{of_base.paper}; {paper}".removeprefix("; "),
            objective=f"{of_base.objective}; {objective}".removeprefix("; "),
            defaults={**of_base.defaults, **self.defaults},
            **{"uses": OPTIONAL} | changes,
        )

    def __call__(self, config: Config) -> Method:
        method = self.modify(self.base(config))
        method.description = self.description
        return method

    def rename(self, title: str, paper: str) -> "Composition":
        """The same under the name that its authors gave it."""
        self.description = replace(self.description, title=title, paper=paper)
        return self


def unified_contrast(positives: Tensor, negatives: Tensor, config: Config,
            of_negatives: Callable[[Tensor, float], Tensor] = losses.log_sum_exp_square) -> Tensor:  # fmt: skip
    """The form of OUCL that config.oucl names, of similarities (A, P) and (A, N) in [0, 1]; of_negatives as in `losses.oucl`."""
    if config.oucl == "eq7":
        return losses.oucl_sum_hinge(positives, negatives, config.oucl_lambda)
    if config.oucl == "eq8":
        return losses.oucl_plain(positives, negatives, config.beta, config.oucl_lambda)
    if config.oucl == "eq10":
        return losses.oucl(positives, negatives, config.beta, config.gamma, of_negatives)
    gamma = config.gamma
    return losses.oucl_weighted(positives, negatives, config.beta, (1 + gamma, -gamma), (1 - gamma, gamma),
                                config.phi_dec, config.gamma_detached, config.attenuate)  # fmt: skip


def check_queue_size(config: Config) -> None:
    """ConfigError if a minibatch does not fit into the queue."""
    if config.queue_size < config.batch_size:
        raise ConfigError(
            f"method {config.method!r} needs queue_size >= batch_size {config.batch_size}, got {config.queue_size}"
        )


def create_bank(config: Config, images: int, generator: torch.Generator) -> Bank | None:
    """The memory bank where negatives come from it, else None."""
    if config.negatives != "bank":
        return None
    return Bank(len(config.views), images, config.feature_dim, generator)


def draw_from_bank(bank: Bank | None, config: Config, indices: Tensor, labels: Tensor,
                 generator: torch.Generator) -> Context:  # fmt: skip
    """Negatives (and stale positives) from the bank: one draw for the minibatch, or one for each anchor."""
    if bank is None:
        return Context(indices, labels)
    per_anchor = config.bank_draw == "per-anchor"
    drawn = bank.draw(indices, config.bank_negatives, generator, per_anchor)
    past = bank.entries if per_anchor else bank.entries[:, drawn]
    return Context(
        indices,
        labels,
        negatives=other_views(past),
        drawn=drawn if per_anchor else None,
        positives=bank.entries[:, indices] if config.positives == "bank" else None,
    )


def initial_networks(method: Method, classes: int, seed: int) -> tuple[nn.Module, nn.Module | None]:
    """theta and omega before training, on the CPU: the same for a seed on every machine; the global random state is left
    alone. Different seeds give different weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks, mag = method.networks(classes), method.mag()
    # Max-pool is ten times as fast with channels last, BatchNorm four times, convolutions about a fifth (2 CPU cores).
    return networks.to(memory_format=torch.channels_last), mag
