"""Barlow Twins: the features of two crops agree unit by unit, and their units are uncorrelated."""

import torch
from torch import Tensor, nn

from metaug_core.config import Config
from metaug_core.methods.base import TWO_CROPS, Context, Method
from metaug_core.networks.encoders import Networks
from metaug_core.networks.heads import mlp
from metaug_core.recipes import APART, BYOL_CROPS, LARS, Recipe


def projector(inputs: int, config: Config) -> nn.Module:
    return mlp(inputs, config.head_hidden, config.head_hidden, config.feature_dim)


class BarlowTwins(Method):
    """Barlow Twins (Zbontar et al. 2021, eq. 1 and 2):

        L = sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2,   C = cross-correlation of z_v and z_u over the minibatch

    averaged over pairs of different views. z is not of unit norm: each unit is standardised over the minibatch. The
    loss is a sum over units and their pairs, about 10 to 1000, and is not divided, as in the authors' code, which
    trains by LARS; solo-learn's CIFAR recipe takes a tenth of it.
    Defaults: lambda 0.0051, projector 2048-2048-2048 (8192 on ImageNet).
    """

    title = "Barlow Twins"
    paper = "Zbontar et al. 2021"
    objective = "sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2, C the cross-correlation of z_1 and z_2"
    differs = "The projector has 2048 units a layer, theirs 8192 (head_hidden, feature_dim)."
    unit_features = False
    uses = {"feature_dim", "head_hidden", "barlow_lambda"}
    defaults = {**TWO_CROPS, "feature_dim": 2048, "head_hidden": 2048, "barlow_lambda": 0.0051}
    recipe = Recipe(
        {**BYOL_CROPS, **LARS, **APART, "weight_decay": 1e-6, "zero_init_residual": True}, lr_at_256=0.2, warmup=0.01
    )

    def networks(self, classes: int) -> nn.Module:
        return Networks(self.config, projector, unit=False)

    def loss(self, z: Tensor, context: Context) -> Tensor:
        centred = z - z.mean(1, keepdim=True)
        z = centred * (centred.square().mean(1, keepdim=True) + 1e-5).rsqrt()  # the epsilon of BatchNorm
        views = len(self.config.views)
        rows = [(w, u) for w in range(len(z)) for u in range(w) if w % views != u % views]  # C of (u, w) is transposed
        return torch.stack([self.redundancy(z[w].T @ z[u] / z.shape[1]) for w, u in rows]).mean()

    def redundancy(self, c: Tensor) -> Tensor:
        """Eq. 1 of a cross-correlation (d, d); 0 at the identity."""
        on, off = c.diagonal(), c - torch.diag(c.diagonal())
        return (1 - on).square().sum() + self.config.barlow_lambda * off.square().sum()
