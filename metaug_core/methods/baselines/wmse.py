"""W-MSE: positives attract; features cannot collapse, since those of a minibatch are whitened first."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core import settings
from metaug_core.config import Config, ConfigError
from metaug_core.methods.base import TWO_CROPS, Context, Method
from metaug_core.networks.encoders import Networks
from metaug_core.objectives.losses import alignment
from metaug_core.recipes import JITTERED, Recipe


class WMSE(Method):
    """Whitening MSE (Ermolov et al. 2021, eq. 4-6).

        L = mean over pairs of views u < v of  || w_u - w_v ||^2,   w = W (z - mean z) / its norm,   W^T W = Cov(z)^-1

    Each view of each sub-batch is whitened by itself (the authors' code with w_iter 1: minibatches are in random order,
    so a sub-batch is a run of their rows), by Cholesky in float64, whose triangular W is that of the paper. Sub-batches
    of 2 d images, as in the paper (128 for d 64); here d 32, so that batch 64 is one. Defaults: the usual two crops
    (0.2-1, as theirs; their grey is 0.1, here 0.2) and SimCLR's head, whose last BatchNorm, which theirs has not, is
    undone by the whitening.
    """

    title = "W-MSE"
    paper = "Ermolov et al. 2021"
    objective = "|| w_u - w_v ||^2 of whitened positives w = W (z - mean z), W^T W = Cov(z)^-1, at unit norm"
    differs = (
        "32 dimensions, whitened over the minibatch; theirs 64 over 128 images (feature_dim, whitening_size). A ridge "
        "of a millionth on the covariance, theirs none."
    )
    unit_features = False
    augmentable = False
    uses = settings.PROJECTION | {"whitening_size"}
    defaults = {**TWO_CROPS, "head": "mlp-bn", "feature_dim": 32}
    recipe = Recipe(
        {**JITTERED, "grey": 0.1, "blur": (0.0,), "optimiser": "adam", "lr": 1e-3, "weight_decay": 1e-6, "lr_decay": 0.2,
         "encoder_norm": "apart", "head_norm": "joint"},
        warmup=0.005, lr_steps=(0.95, 0.975),
    )  # fmt: skip

    def __init__(self, config: Config):
        super().__init__(config)
        size = config.whitening_size or config.batch_size
        if config.batch_size % size or size <= config.feature_dim:
            raise ConfigError(
                f"method {config.method!r} needs whitening_size to divide batch_size and to be more than feature_dim, "
                f"got {size}, {config.batch_size} and {config.feature_dim}"
            )
        self.size = size

    def networks(self, classes: int) -> nn.Module:
        return Networks(self.config, unit=False)

    def loss(self, z: Tensor, context: Context) -> Tensor:
        parts = z.unflatten(1, (-1, self.size))  # (V, B / size, size, d)
        white = F.normalize(whiten(parts), dim=-1).flatten(1, 2)
        pairs = [alignment(white[u], white[v]) for v in range(len(z)) for u in range(v)]
        return torch.stack(pairs).mean()


def whiten(z: Tensor) -> Tensor:
    """z (..., n, d), n > d -> the same with mean 0 and covariance (with n - 1) the identity over n."""
    centred = z.double() - z.double().mean(-2, keepdim=True)
    covariance = centred.mT @ centred / (z.shape[-2] - 1)
    # A hair of ridge: features of one constant dimension (at a start, or after collapse) must not give NaN. No wait for a check.
    ridge = 1e-6 * covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    lower = torch.linalg.cholesky_ex(covariance + ridge * torch.eye(z.shape[-1], device=z.device))[0]
    return torch.linalg.solve_triangular(lower, centred.mT, upper=False).mT.to(z.dtype)
