"""CMC and OUCL: contrast between views against the memory bank. They differ in the objective alone."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from metaug_core import losses
from metaug_core.bank import Bank
from metaug_core.methods.base import Context, Method, bank_context, bank_memory
from metaug_core.registry import MetaugError


class MultiView(Method):
    """Positives are the other views of an image, negatives past features of other images' other views."""

    def memory(self, networks: nn.Module, images: int, generator: torch.Generator) -> Bank | None:
        if self.config.negatives == "bank" and images <= self.config.batch_size:
            raise MetaugError(f"the bank needs more images than batch_size {self.config.batch_size}, got {images}")
        return bank_memory(self.config, images, generator)

    def context(self, memory: Any, views, indices, labels, generator) -> Context:
        return bank_context(memory, self.config, indices, labels, generator)

    def remember(self, memory: Any, networks, z: Tensor, context: Context) -> None:
        if memory is not None:
            memory.write(context.indices, z, self.config.bank_momentum)

    def rows(self, z: Tensor, context: Context, by_view: bool = False) -> list[tuple[Tensor, Tensor]]:
        """Similarities of positives (A, P) and negatives (A, N) of each set of anchors, as `Pairs` gives them."""
        targets = z if context.positives is None else context.positives
        return context.pairs(len(self.config.views)).rows(z, targets, by_view)

    @abstractmethod
    def loss(self, z: Tensor, context: Context) -> Tensor: ...


class CMC(MultiView):
    """Contrastive multiview coding (Tian et al. 2019): InfoNCE (eq. 1) over every ordered pair of views."""

    def loss(self, z: Tensor, context: Context) -> Tensor:
        # On d = (1 + cos) / 2 half the temperature gives the same: InfoNCE does not see a shift.
        rows = self.rows(z, context, by_view=True)
        return torch.stack([losses.info_nce(*row, self.config.temperature / 2) for row in rows]).mean()


class OUCL(MultiView):
    """Optimization-driven unified contrast (eq. 7-10): all positives and negatives of an anchor in one term."""

    def loss(self, z: Tensor, context: Context) -> Tensor:
        rows = self.rows(z, context)
        if self.config.scope == "minibatch":
            positives, negatives = (torch.cat([x.reshape(1, -1) for x in side], -1) for side in zip(*rows, strict=True))
            rows = [(positives, negatives)]
        return torch.stack([unified(*row, self.config) for row in rows]).mean()


def unified(positives: Tensor, negatives: Tensor, config) -> Tensor:
    """The form of OUCL that config.oucl names, of similarities (A, P) and (A, N) in [0, 1]."""
    if config.oucl == "eq7":
        return losses.oucl_sum_hinge(positives, negatives, config.oucl_lambda)
    if config.oucl == "eq8":
        return losses.oucl_plain(positives, negatives, config.beta, config.oucl_lambda)
    if config.oucl == "eq10":
        return losses.oucl(positives, negatives, config.beta, config.gamma)
    gamma = config.gamma
    return losses.oucl_weighted(positives, negatives, config.beta, (1 + gamma, -gamma), (1 - gamma, gamma),
                                config.phi_dec, config.gamma_detached, config.attenuate)  # fmt: skip
