"""BYOL: from one crop predict what a slowly averaged copy of the network makes of the other. There are no negatives."""

from typing import Any

import torch
from torch import Tensor, nn

from metaug_core.config import Config
from metaug_core.methods.base import TWO_CROPS, Context, Method
from metaug_core.networks.encoders import Networks
from metaug_core.networks.heads import add_projector_norm, mlp, predictor
from metaug_core.networks.memory import Averaged
from metaug_core.recipes import APART, BYOL_CROPS, LARS, Recipe


def projector(inputs: int, config: Config) -> nn.Module:
    return add_projector_norm(mlp(inputs, config.head_hidden, config.feature_dim), config)


class BYOL(Method):
    """Bootstrap your own latent (Grill et al. 2020, eq. 2), symmetric:

        L = mean over views v != u of 2 - 2 cos(q(z_v), z'_u),   z' = f_ema(x),  f_ema <- m f_ema + (1 - m) f

    z holds projections and then predictions; the loss reads the predictions, the projections are what is monitored.
    Defaults: projector and predictor with 4096 hidden units and 256 outputs, m 0.99 throughout. Theirs rises to 1 by a
    cosine, from 0.97 in runs of 40 epochs, from 0.99 in 100 and 300 and from 0.996 in 1000. The averaged network
    normalises by batch statistics, as in the authors' code.
    """

    title = "BYOL"
    paper = "Grill et al. 2020"
    objective = "2 - 2 cos(q(z_v), z'_u), z' of averaged networks"
    remembers = "averaged networks"
    differs = (
        "The target starts as a copy of the networks, theirs from other random weights. The mean of both directions; "
        "theirs sums them (loss_scale 2)."
    )
    parts = 2
    uses = {"feature_dim", "head_hidden", "projector_norm", "predictor_hidden", "ema_momentum", "ema_schedule",
            "predictor_lr_schedule"}  # fmt: skip
    defaults = {**TWO_CROPS, "feature_dim": 256, "head_hidden": 4096, "predictor_hidden": 4096, "ema_momentum": 0.99}
    recipe = Recipe(
        {**BYOL_CROPS, **LARS, **APART, "weight_decay": 1e-6, "ema_schedule": "cosine", "loss_scale": 2.0},
        lr_at_256={100: 0.45, 300: 0.3, 1000: 0.2},
        warmup=0.01,
        ema_momentum={40: 0.97, 300: 0.99, 1000: 0.996},
    )

    def networks(self, classes: int) -> nn.Module:
        return Networks(self.config, projector, predictor)

    def memory(self, networks: nn.Module, images: int, generator) -> nn.Module:
        averaged = Averaged(networks, self.config, images)
        averaged.networks.register_module("predictors", None)  # a target does not predict
        return averaged

    def context(self, memory: Any, views, indices, labels, generator) -> Context:
        return Context(indices, labels, given={"targets": memory(views)})

    def remember(self, memory: Any, networks: nn.Module, z: Tensor, context: Context) -> None:
        memory.follow(networks)

    def loss(self, z: Tensor, context: Context) -> Tensor:
        pairs = self.across(self.part(z, 1), context.given["targets"])
        return torch.stack([2 - 2 * (q * target).sum(-1).mean() for q, target in pairs]).mean()
