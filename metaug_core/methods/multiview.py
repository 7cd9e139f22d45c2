"""CMC and OUCL: contrast between the views of an image, against a memory bank. They differ in the objective alone, and with one
positive and lambda 0 eq. 8 is InfoNCE at t = 2 / beta, divided by beta: there they differ in nothing but temperature."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from metaug_core import settings
from metaug_core.errors import MetaugError
from metaug_core.methods.base import Context, Method, create_bank, draw_from_bank, unified_contrast
from metaug_core.networks.memory import Bank
from metaug_core.objectives.losses import log_sum_exp_square
from metaug_core.objectives.similarity import Pairs, group_pairs
from metaug_core.recipes import SGD, Recipe


class MultiView(Method):
    """Positives are the other views of an image; negatives are past features of other images' other views."""

    def memory(self, networks: nn.Module, images: int, generator: torch.Generator) -> Bank | None:
        if self.config.negatives == "bank" and images <= self.config.batch_size:
            raise MetaugError(f"the bank needs more images than batch_size {self.config.batch_size}, got {images}")
        return create_bank(self.config, images, generator)

    def context(self, memory: Any, views, indices, labels, generator) -> Context:
        return draw_from_bank(memory, self.config, indices, labels, generator)

    def remember(self, memory: Any, networks, z: Tensor, context: Context) -> None:
        if memory is not None:
            memory.write(context.indices, z, self.config.bank_momentum)

    def pairs(self, z: Tensor, context: Context) -> tuple[Pairs, Tensor]:
        """The pairs of the minibatch, and what z is compared with: features (V, B, d) or more sets of them."""
        return context.pairs(len(self.config.views)), z if context.positives is None else context.positives

    @abstractmethod
    def loss(self, z: Tensor, context: Context) -> Tensor: ...


class CMC(MultiView):
    """Contrastive multiview coding (Tian et al. 2019): InfoNCE (eq. 1) over every ordered pair of views.

    The authors' code has this loss as its option softmax. Its default is NCE: a logistic loss whose constant Z is set
    on the first minibatch. MetAug's eq. 1 is InfoNCE, so that is what is compared. Their positive is the bank's entry
    of the other view, so that only the query has a gradient: `positives="bank"`. By default a positive is the feature
    itself. Their negatives are drawn for each anchor (`bank_draw="per-anchor"`) from all images, the minibatch's own
    among them, which here are left out.
    """

    title = "CMC"
    paper = "Tian et al. 2019"
    objective = "mean over view pairs of -log softmax(z_v . z_u / t) against past features of view u"
    remembers = "bank of features (V, N, d), or nothing with negatives 'batch'"
    differs = (
        "InfoNCE, their option softmax; their default is NCE with a constant Z. Positives are features with a "
        "gradient, theirs the bank's entries (positives bank). No image of the minibatch is among the negatives. The "
        "mean over ordered pairs of views; theirs sums them (loss_scale 2 with two views)."
    )
    contrasts = True
    uses = settings.PROJECTION | settings.BANK | {"temperature"}
    split = True
    recipe = Recipe(  # their script
        {**SGD, "lr": 0.03, "weight_decay": 1e-4, "lr_decay": 0.1, "head": "alexnet", "loss_scale": 2.0,
         "negatives": "bank", "positives": "bank", "bank_draw": "per-anchor"},
        lr_steps=(1 / 2, 2 / 3, 5 / 6),
    )  # fmt: skip

    def loss(self, z: Tensor, context: Context) -> Tensor:
        pairs, targets = self.pairs(z, context)
        return self.contrast(*pairs.compare(z, targets, by_view=True))


class OUCL(MultiView):
    """Optimization-driven unified contrast (eq. 7-10): one term holds all positives and all negatives of an anchor,
    or with `scope` of an image or of the minibatch."""

    title = "MetAug (only OUCL)"
    paper = "Li et al. 2022"
    objective = "(1/beta) log(1 + sum sum exp(beta ((d+ - 1)^2 + (d-)^2 - 2 gamma^2)))"
    differs = (
        "The preset `paper` follows the paper, `authors` the authors' code; docs/paper.md compares them item by item."
    )
    remembers = "bank of features (V, N, d), or nothing with negatives 'batch'"
    split = True
    uses = settings.PROJECTION | settings.BANK | settings.OUCL | {"scope"}

    def loss(self, z: Tensor, context: Context) -> Tensor:
        pairs, targets = self.pairs(z, context)
        positives, negatives = pairs.compare(z, targets)
        scope, batch = self.config.scope, z.shape[1]
        if scope != "anchor":  # all sets of an image, z and z~, are in its one term
            return unified_contrast(
                group_pairs(positives, scope, batch), group_pairs(negatives, scope, batch), self.config
            )

        def of_negatives(negatives: Tensor, beta: float) -> Tensor:  # L_ori and L_aug meet the same past features
            return pairs.reduce_negatives(log_sum_exp_square, negatives, z, targets, beta)

        return unified_contrast(positives, negatives, self.config, of_negatives)
