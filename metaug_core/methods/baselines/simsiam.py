"""SimSiam: from one crop predict the features of the other, whose gradient is stopped. No negatives, no averaged network."""

import torch
from torch import Tensor, nn

from metaug_core.config import Config
from metaug_core.methods.base import TWO_CROPS, Context, Method
from metaug_core.networks.encoders import Networks
from metaug_core.networks.heads import mlp, predictor
from metaug_core.recipes import APART, JITTERED, SGD, Recipe


def projector(inputs: int, config: Config) -> nn.Module:
    # The last BatchNorm has weights, as in the paper. The authors' code has none there, which `forward_ad` does not support.
    return mlp(inputs, config.head_hidden, config.head_hidden, config.feature_dim, norm_last=True)


class SimSiam(Method):
    """Simple siamese learning (Chen and He 2021, eq. 2):

        L = - mean over views v != u of cos(p_v, stopgrad(z_u)),   p = q(z)

    z holds projections z and then predictions p. Between -1 (all alike) and 1; a collapse shows in `effective_rank`.
    Defaults: the paper's heads on ImageNet, projector 2048-2048-2048 and predictor with a bottleneck of 512; it trains
    them by SGD with lr 0.05 x batch / 256, weight decay 1e-4 and cosine. On CIFAR-10 the paper has a projector of two
    layers, lr 0.03, weight decay 5e-4, batch 512 and 800 epochs.
    """

    title = "SimSiam"
    paper = "Chen and He 2021"
    objective = "-cos(q(z_v), stopgrad(z_u))"
    differs = (
        "The projector's last BatchNorm has a scale and a shift, as in the paper; in their code it has neither. The "
        "projector has the three layers of ImageNet; the paper's CIFAR-10 runs have two."
    )
    parts = 2
    uses = {"feature_dim", "head_hidden", "predictor_hidden", "predictor_lr_schedule"}
    defaults = {**TWO_CROPS, "feature_dim": 2048, "head_hidden": 2048, "predictor_hidden": 512}
    recipe = Recipe(  # of the paper for CIFAR-10
        {
            **JITTERED,
            **SGD,
            **APART,
            "weight_decay": 5e-4,
            "predictor_lr_schedule": "constant",
            "zero_init_residual": True,
        },
        lr_at_256=0.03,
    )

    def networks(self, classes: int) -> nn.Module:
        return Networks(self.config, projector, predictor)

    def loss(self, z: Tensor, context: Context) -> Tensor:
        pairs = self.across(self.part(z, 1), self.part(z, 0).detach())
        return -torch.stack([(p * target).sum(-1).mean() for p, target in pairs]).mean()
