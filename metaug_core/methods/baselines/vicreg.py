"""VICReg: the features of two crops agree, no unit of them is constant, and no two units say the same."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core.config import Config
from metaug_core.methods.base import TWO_CROPS, Context, Method
from metaug_core.networks.encoders import Networks
from metaug_core.networks.heads import mlp
from metaug_core.recipes import APART, BYOL_CROPS, LARS, Recipe


def expander(inputs: int, config: Config) -> nn.Module:
    return mlp(inputs, config.head_hidden, config.head_hidden, config.feature_dim)


class VICReg(Method):
    """VICReg (Bardes et al. 2022, eq. 1 to 6), averaged over pairs of different views:

        L = a mean (z_v - z_u)^2 + b/2 (var(z_v) + var(z_u)) + c (cov(z_v) + cov(z_u))
        var(z) = mean over units of [1 - sqrt(variance + 1e-4)]_+,   cov(z) = sum of squared covariances i != j / d

    with vicreg_weights = (a, b, c), 25, 25 and 1. z is not of unit norm: each unit wants a standard deviation of 1, which the
    features of a MAG, being of unit norm, cannot have. Defaults: expander 2048-2048-2048 (8192 on ImageNet).
    """

    title = "VICReg"
    paper = "Bardes et al. 2022"
    objective = "a |z_1 - z_2|^2 / d + b/2 sum_v mean [1 - std z_v]_+ + c sum_v sum_{i != j} Cov(z_v)_ij^2 / d"
    differs = "The expander has 2048 units a layer, theirs 8192 (head_hidden, feature_dim)."
    unit_features = augmentable = False
    uses = {"feature_dim", "head_hidden", "vicreg_weights"}
    defaults = {**TWO_CROPS, "feature_dim": 2048, "head_hidden": 2048}
    recipe = Recipe(
        {**BYOL_CROPS, **LARS, **APART, "weight_decay": 1e-6, "zero_init_residual": True}, lr_at_256=0.2, warmup=0.01
    )

    def networks(self, classes: int) -> nn.Module:
        return Networks(self.config, expander, unit=False)

    def loss(self, z: Tensor, context: Context) -> Tensor:
        of_invariance, of_variance, of_covariance = self.config.vicreg_weights
        centred = z - z.mean(1, keepdim=True)
        covariance = centred.mT @ centred / (z.shape[1] - 1)  # (V, d, d)
        variance = covariance.diagonal(dim1=1, dim2=2)
        collapse = (1 - (variance + 1e-4).sqrt()).clamp(min=0).mean(-1)  # (V,)
        redundancy = (covariance.square().sum((1, 2)) - variance.square().sum(-1)) / z.shape[2]
        invariance = torch.stack([F.mse_loss(a, b) for a, b in self.across(z, z)]).mean()
        return of_invariance * invariance + of_variance * collapse.mean() + 2 * of_covariance * redundancy.mean()
