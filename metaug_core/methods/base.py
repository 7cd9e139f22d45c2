"""What methods and engine agree on: a method is a loss that is pure in the features, and what that loss needs beside them.

    images -> networks -> z (V, B, d)          depends on theta
    loss(z, context) -> scalar                 pure in z; context has no gradient

A method of your own:

    class Mine(Method):
        defaults = {"views": ("L", "ab")}

        def loss(self, z, context):
            aligned = [alignment(a, b) for a, b in self.across(z, z)]     # rows of z: views, and with a MAG augmented ones
            return sum(aligned) / len(aligned) + sum(map(uniformity, z)) / len(z)

    METHODS["mine"] = Mine                     # "mine+mag" is then the same method on augmented features as well (eq. 11)

What lasts between steps (bank, queue, averaged networks) is `memory`; `context` draws from it what `loss` needs without a gradient;
after the step `remember` writes to it. A method describes itself by class attributes with the names of `Description`'s fields; its
`description` is what others read, and a composition takes it over from its base. A method that does not list the settings that it
`uses` counts as using all: changing any of them then makes another run.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Set
from copy import copy
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metaug_core.config import Config, ConfigError
from metaug_core.errors import shown
from metaug_core.extensions import name_failures
from metaug_core.networks.encoders import Networks
from metaug_core.networks.memory import Bank, copy_module
from metaug_core.objectives import losses
from metaug_core.objectives.similarity import Pairs, Synthesise, other_views
from metaug_core.recipes import Recipe
from metaug_core.runtime.device import one_thread
from metaug_core.settings import OPTIONAL
from metaug_core.views.augmentation import make_views

TWO_CROPS: dict[str, Any] = {  # two augmented crops of an image through one encoder, as most methods have it
    "views": ("RGB", "RGB"),
    "independent": True,
    "crop_scale": (0.2, 1.0),
    "jitter": 0.5,  # MoCo v2's 0.4, 0.4, 0.4, 0.1
    "grey": 0.2,
    "negatives": "batch",
}
Augment = Callable[..., Tensor]  # z (V, B, d) -> z~ (V, B, d)
Contrast = Callable[[Tensor, Tensor], Tensor]  # similarities d of positives (A, P) and negatives (A, N) -> scalar


@dataclass(frozen=True)
class Context:
    """What a loss needs that has no gradient: which images these are, and what is remembered of the past."""

    indices: Tensor  # (B,) int64, the images' numbers in the pretraining set
    labels: Tensor  # (B,) int64, -1 where there is none
    negatives: Tensor | None = None  # (V, V - 1, K, d), past features for each view; None: those of the minibatch
    drawn: Tensor | None = None  # (B, K), which of them each image takes; None: all
    positives: Tensor | None = (
        None  # (V, B, d), what features are compared with (keys, stale entries); None: each other
    )
    shared: Pairs | None = None  # similarities shared by several losses of the same features
    given: Mapping[str, Tensor] = field(default_factory=dict)  # what else the method's `context` computed, by name
    synthesise: Synthesise | None = None  # makes further negatives of past ones

    def pairs(self, views: int) -> Pairs:
        """Similarities with these negatives: the shared ones, or new ones."""
        return self.shared or Pairs(views, self.negatives, self.drawn, self.synthesise)


@dataclass(frozen=True)
class Description:
    """What tables and the engine need to know of a method."""

    title: str = ""  # in tables; by default the name of the class
    paper: str = ""  # authors and year
    objective: str = ""  # the loss in one line of plain text
    remembers: str = "nothing"  # what `memory` holds
    differs: str = ""  # from its authors' code, beside optimiser and augmentation
    defaults: Mapping[str, Any] = field(default_factory=dict)  # settings where the user gave none
    uses: Set[str] = (
        OPTIONAL  # of the settings that only some methods use (`settings`), those that can change its result
    )
    revision: int = (
        0  # goes up when the same settings give this method alone other numbers; then its runs have other names
    )
    labelled: bool = False  # trains on labels; then unlabelled images are left out
    minimum_views: int = 2
    parts: int = 1  # rows of z for each view: 2 where predictions (V, B, d) follow the features
    unit_features: bool = (
        True  # the first V rows of z are features of unit norm; else they are not described in the metrics
    )
    augmentable: bool = True  # z (parts V, B, d) holds features alone, so that a MAG can augment them
    # What makes z~: "look-ahead", a MAG that is trained by it; "loss", one that descends on the regular loss; "chance", no network.
    augmented_by: Literal["", "look-ahead", "loss", "chance"] = ""
    contrasts: bool = (
        False  # the loss calls `contrast`, so that `debiased` and `hard` can change its sum over negatives
    )
    captured: bool = True  # a step never waits for the device, so that CUDA can capture it
    divided: bool = True  # several processes can train one run together and give the numbers of one
    betas: tuple[float, float] = (0.9, 0.999)  # Adam's, for theta
    recipe: Recipe | None = (
        None  # its authors' augmentation and optimiser, for the protocol `own`; None: as without one
    )
    uniform: Mapping[str, Any] = field(default_factory=dict)  # what the protocol `uniform` leaves to this method alone
    split: bool = False  # an encoder for each view of split colours, of half the width (the paper's double dagger)


class Method(ABC):
    """A contrastive method. Subclasses are final; only `loss` must be defined."""

    description: Description = Description()

    def __init_subclass__(cls, **keywords: Any):
        """Collect the class's description; what it leaves out is as in its base class."""
        super().__init_subclass__(**keywords)
        declared = {one.name: vars(cls)[one.name] for one in fields(Description) if one.name in vars(cls)}
        # `uses` is not inherited: what this class reads beyond it would be missing in the name of its runs.
        cls.description = replace(cls.description, **{"title": cls.__name__, "uses": OPTIONAL} | declared)

    def __init__(self, config: Config):
        self.config = config
        self.tau_plus = self.hard_beta = 0.0  # the modifiers `debiased` and `hard` set them
        self.contrast: Contrast = self.info_nce  # the modifier `oucl` replaces it

    @abstractmethod
    def loss(self, z: Tensor, context: Context) -> Tensor:
        """Scalar objective of a set of features z (W, B, d), row w of view w % V. Pure: it changes nothing and draws nothing."""

    def info_nce(self, positives: Tensor, negatives: Tensor) -> Tensor:
        """Eq. 1 of similarities d in [0, 1], (A, P) and (A, N), at half the temperature: the same as of cosines."""
        return losses.info_nce(positives, negatives, self.config.temperature / 2, self.tau_plus, self.hard_beta)

    def find_floors(self, z: Tensor, context: Context) -> Tensor:
        """Which debiased sums over negatives in `loss(z, context)` stand at their floor, bool (anchors,). Needs tau_plus > 0."""
        floors: list[Tensor] = []

        def note_floors(positives: Tensor, negatives: Tensor) -> Tensor:
            of_pairs = losses.find_info_nce_floors(
                positives, negatives, self.config.temperature / 2, self.tau_plus, self.hard_beta
            )
            floors.append(of_pairs.flatten())
            return z.new_zeros(())

        other = copy(self)  # the same method with another contrast
        other.contrast = note_floors
        other.loss(z, context)
        return torch.cat(floors)

    def networks(self, classes: int) -> nn.Module:
        """Create theta: it maps the list of view images to z, and has `encoders` whose h evaluation uses."""
        del classes
        return Networks(self.config)

    def views(self, pixels: Tensor, generator: torch.Generator) -> list[Tensor]:
        """The networks' inputs, tensors (B, ...), from uint8 images (B, 3, H, W). All randomness comes from generator.

        What `Networks` gets beyond a tensor for each view (partners, mixing weights) it leaves to `context`, of any shape.
        """
        return make_views(pixels, self.config, generator)

    def part(self, z: Tensor, number: int) -> Tensor:
        """The rows of one part (0: features, 1: predictions) of z, which has k * parts * V rows (B, d): (k * V, B, d)."""
        return z.unflatten(0, (-1, self.description.parts, len(self.config.views)))[:, number].flatten(0, 1)

    def across(self, first: Tensor, second: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each row (B, d) of first with each row of second that is of another view; row w is of view w % V."""
        views = len(self.config.views)
        return [(a, b) for w, a in enumerate(first) for u, b in enumerate(second) if w % views != u % views]

    def mag(self) -> nn.Module | None:
        """Create omega, the MAG; None for a method without one."""
        return None

    def memory(self, networks: nn.Module, images: int, generator: torch.Generator) -> nn.Module | None:
        """Create what is remembered between steps (bank, queue, averaged networks), as a module: it is saved and restored."""
        del networks, images, generator
        return None

    def context(self, memory: nn.Module | None, views: list[Tensor], indices: Tensor, labels: Tensor,
                generator: torch.Generator) -> Context:  # fmt: skip
        """Draw from memory what the loss of this minibatch needs. Must not change memory."""
        del memory, views, generator
        return Context(indices, labels)

    def remember(self, memory: nn.Module | None, networks: nn.Module, z: Tensor, context: Context) -> None:
        """Write what later steps need, after the regular step; z is from before the step."""

    def terms(self, z: Tensor, context: Context, augment: Augment | None) -> dict[str, Tensor]:
        """The weighted terms of the training loss; theta descends on their sum, in the regular step and in the look-ahead."""
        del augment
        return {"loss_original": self.config.loss_scale * self.loss(z, context)}

    def outer_terms(self, z: Tensor, context: Context, augment: Augment) -> dict[str, Tensor]:
        """The weighted terms that omega descends on at theta' (eq. 6). Only called of methods with a MAG."""
        return self.terms(z, context, augment)


class OnBase(Method):
    """A method that adds features or terms to another's loss. Everything but `terms` is the base's."""

    def __init__(self, base: Method):
        super().__init__(base.config)
        self.base = base
        self.views, self.networks, self.memory = base.views, base.networks, base.memory
        self.context, self.remember, self.description = base.context, base.remember, base.description

    def loss(self, z: Tensor, context: Context) -> Tensor:
        return self.base.loss(z, context)


class Composition:
    """A method and a modifier on it. It can be used wherever a method class can: METHODS["cmc+hard"] = with_hard(CMC).

    Its description is the base's, with the modifier's title, paper, objective and `differs` appended. defaults:
    settings on top of the base's own; changes: other fields of the description. Unless these list what it `uses`, that
    is every setting.
    """

    def __init__(self, base: "type[Method] | Composition", modify: Callable[[Method], Method], title: str, paper: str,
                 objective: str, defaults: Mapping[str, Any] | None = None, differs: str = "", **changes: Any):  # fmt: skip
        self.base = base
        self.modify = modify
        self.defaults = dict(defaults or {})
        of_base = base.description
        self.description = replace(
            of_base,
            title=f"{of_base.title} + {title}",
            paper="; ".join(filter(None, (of_base.paper, paper))),
            objective=f"{of_base.objective}; {objective}".removeprefix("; "),
            differs=f"{of_base.differs} {differs}".strip(),
            defaults={**of_base.defaults, **self.defaults},
            **{"uses": OPTIONAL} | changes,
        )

    def __call__(self, config: Config) -> Method:
        method = self.modify(self.base(config))
        method.description = self.description
        return method

    def rename(self, title: str, paper: str) -> "Composition":
        """The same composition under the name that its authors gave it."""
        self.description = replace(self.description, title=title, paper=paper)
        return self


def unified_contrast(positives: Tensor, negatives: Tensor, config: Config,
            of_negatives: Callable[[Tensor, float], Tensor] = losses.log_sum_exp_square) -> Tensor:  # fmt: skip
    """OUCL in the form that config.oucl names, of similarities (A, P) and (A, N) in [0, 1]; of_negatives as in `losses.oucl`."""
    if config.oucl == "eq7":
        return losses.oucl_sum_hinge(positives, negatives, config.oucl_lambda)
    if config.oucl == "eq8":
        return losses.oucl_plain(positives, negatives, config.beta, config.oucl_lambda)
    if config.oucl == "eq10":
        return losses.oucl(positives, negatives, config.beta, config.gamma, of_negatives)
    gamma = config.gamma
    return losses.oucl_weighted(positives, negatives, config.beta, (1 + gamma, -gamma), (1 - gamma, gamma),
                                config.phi_dec, config.gamma_detached, config.attenuate)  # fmt: skip


def check_queue_size(config: Config, shared: bool = False) -> None:
    """Raise ConfigError if the features of a minibatch do not fit into the queue. shared: those of all views are written to it."""
    written = config.batch_size * (len(config.views) if shared else 1)
    if config.queue_size < written:
        what = "the features of all views, " if shared else "batch_size "
        raise ConfigError(f"method {config.method!r} needs queue_size >= {what}{written}, got {config.queue_size}")


def create_bank(config: Config, images: int, generator: torch.Generator) -> Bank | None:
    """Create the memory bank if negatives come from it, else None."""
    if config.negatives != "bank":
        return None
    return Bank(len(config.views), images, config.feature_dim, generator)


def draw_from_bank(bank: Bank | None, config: Config, indices: Tensor, labels: Tensor,
                 generator: torch.Generator) -> Context:  # fmt: skip
    """Context with negatives (and stale positives) from the bank: one draw for the minibatch, or one for each anchor."""
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
    """Create theta and omega, on the CPU: the same for a seed on every machine. The global random state is left alone."""
    with one_thread(), torch.random.fork_rng(devices=[]), name_failures(method.config, "creating the networks"):
        torch.manual_seed(seed)
        networks, mag = method.networks(classes), method.mag()
        for made in (networks, mag):
            if made is not None and not isinstance(made, nn.Module):
                raise ConfigError(
                    f"method {method.config.method!r}: its networks and its MAG must be torch modules, got {shown(made)}"
                )
        if method.config.own_code():  # a user's function may give the same module again, to another run or seed
            networks, mag = copy_module(networks), copy_module(mag) if mag is not None else None
    # Max-pool and BatchNorm are several times faster with channels last, convolutions somewhat.
    return networks.to(memory_format=torch.channels_last), mag
