"""The seam: a contrastive method is a loss that is pure in the features, and what that loss needs beside them.

    images -> networks -> z (V, B, d)          depends on theta
    loss(z, context) -> scalar                 pure in z; context has no gradient

A method of your own:

    class Mine(Method):
        defaults = {"views": ("RGB", "RGB"), "independent": True}

        def loss(self, z, context):
            return alignment(z[0], z[1]) + uniformity(z[0])

    METHODS["mine"] = Mine
    METHODS["mine+mag"] = with_mag(Mine)       # the same method on augmented features as well (eq. 11)
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metaug_core.bank import Bank
from metaug_core.config import Config
from metaug_core.encoders import Networks
from metaug_core.pairs import Pairs, other_views
from metaug_core.views import make_views

Augment = Callable[[Tensor], Tensor]  # z (V, B, d) -> z~ (V, B, d)


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

    def pairs(self, views: int) -> Pairs:
        """Similarities with these negatives: those that are shared, or new ones."""
        return self.shared or Pairs(views, self.negatives, self.drawn)


class Method(ABC):
    """A contrastive method. Subclasses are final; only `loss` must be given."""

    defaults: ClassVar[dict[str, Any]] = {}  # settings that stand where the user gave none
    labelled: ClassVar[bool] = False  # trains on labels (then unlabelled images are left out)
    minimum_views: ClassVar[int] = 2
    unit_features: ClassVar[bool] = True  # z is (V, B, d) of unit norm; else nothing is said of its similarities
    captured: ClassVar[bool] = True  # a step never waits for the device, so that CUDA can capture it

    def __init__(self, config: Config):
        self.config = config

    @abstractmethod
    def loss(self, z: Tensor, context: Context) -> Tensor:
        """Scalar objective of a set of features z (W, B, d), row w of view w % V; pure: no state, no buffer, no draw."""

    def networks(self, classes: int) -> nn.Module:
        """theta: maps the list of view images to z, and has `encoders` whose h evaluation uses."""
        del classes
        return Networks(self.config)

    def views(self, pixels: Tensor, generator: torch.Generator) -> list[Tensor]:
        """What the networks are given of uint8 images (B, 3, H, W): tensors (B, ...). All chance comes from generator."""
        return make_views(pixels, self.config, generator)

    def generator(self) -> nn.Module | None:
        """omega: the MAG, or None."""
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


def bank_memory(config: Config, images: int, generator: torch.Generator) -> Bank | None:
    """The memory bank where negatives come from it, else None."""
    if config.negatives != "bank":
        return None
    return Bank(len(config.views), images, config.feature_dim, generator)


def bank_context(bank: Bank | None, config: Config, indices: Tensor, labels: Tensor,
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
        networks, mag = method.networks(classes), method.generator()
    # Max-pool is ten times as fast with channels last, BatchNorm four times, convolutions about a fifth (2 CPU cores).
    return networks.to(memory_format=torch.channels_last), mag
