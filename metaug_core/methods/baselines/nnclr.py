"""NNCLR: SimCLR whose positive is not the image itself but its nearest neighbour among past features."""

from typing import Any

import torch
from torch import Tensor, nn

from metaug_core.config import Config
from metaug_core.methods.base import TWO_CROPS, Context, Method, check_queue_size
from metaug_core.networks.encoders import Networks
from metaug_core.networks.heads import mlp, predictor
from metaug_core.networks.memory import Queue
from metaug_core.recipes import APART, JITTERED, LARS, Recipe


def projector(inputs: int, config: Config) -> nn.Module:
    return mlp(inputs, config.head_hidden, config.head_hidden, config.feature_dim, norm_last=True)


class NNCLR(Method):
    """Nearest-neighbour contrast (Dwibedi et al. 2021, eq. 3), symmetric:

        L = -log e^(n_v.p_u/t) / sum over images k of e^(n_v.p_k/t),   n_v = the entry of the support set nearest to z_v

    z holds projections z and then predictions p = q(z). A neighbour has no gradient. So the MAG (MetAug*) is taught
    through predictions; its projections choose other neighbours. The support set is a queue of past projections, one
    for each view. The paper has a single queue, into which the first view alone is written: there the neighbour of a
    second crop is of a first one.
    Defaults: t 0.1, projector 2048-2048-256 and predictor 4096-256, support set 4096 (98304 on ImageNet; solo-learn's
    CIFAR recipe has 65536 and t 0.2). There is no code by the authors.
    """

    title = "NNCLR"
    paper = "Dwibedi et al. 2021"
    objective = "-log e^(n.p/t) / sum over images of e^(n.p'/t), n the nearest past feature to z"
    remembers = "queue of features (V, K, d)"
    differs = (
        "No code by the authors. The paper also adds the term of one prediction among all neighbours, which it says "
        "changes nothing. The support set holds 4096 features, theirs 98304 (queue_size)."
    )
    parts = 2
    contrasts = True
    uses = {"feature_dim", "head_hidden", "predictor_hidden", "temperature", "queue_size", "shared_queue",
            "predictor_lr_schedule"}  # fmt: skip
    defaults = {**TWO_CROPS, "feature_dim": 256, "head_hidden": 2048, "predictor_hidden": 4096, "temperature": 0.1,
                "queue_size": 4096}  # fmt: skip
    recipe = Recipe(  # optimiser and temperature of solo-learn for CIFAR, in the place of the authors' code
        {**JITTERED, **LARS, **APART, "weight_decay": 1e-5, "shared_queue": True, "temperature": 0.2},
        lr_at_256=0.4,
        warmup=0.01,
    )

    def __init__(self, config: Config):
        super().__init__(config)
        check_queue_size(config)

    def networks(self, classes: int) -> nn.Module:
        return Networks(self.config, projector, predictor)

    def memory(self, networks: nn.Module, images: int, generator) -> nn.Module:
        return Queue(
            len(self.config.views), self.config.queue_size, self.config.feature_dim, generator, self.config.shared_queue
        )

    def context(self, memory: Any, views, indices, labels, generator) -> Context:
        # A copy: `remember` writes to the queue while this step's look-ahead may still ask for neighbours.
        return Context(indices, labels, given={"support": memory.of_views().clone()})

    def remember(self, memory: Any, networks: nn.Module, z: Tensor, context: Context) -> None:
        memory.write(
            z[: 1 if self.config.shared_queue else len(self.config.views)]
        )  # one queue: of view 1 alone, as theirs

    def loss(self, z: Tensor, context: Context) -> Tensor:
        support, features = context.given["support"], self.part(z, 0).detach()
        near = torch.cat([neighbours(x, support) for x in features.split(len(support))])
        return self.contrast(*context.pairs(len(support))(near, self.part(z, 1), by_view=True))


def neighbours(z: Tensor, support: Tensor) -> Tensor:
    """For each z (V, B, d) the entry of its view's support (V, K, d) that is nearest by cosine."""
    nearest = (z @ support.transpose(1, 2)).argmax(-1, keepdim=True)  # (V, B, 1)
    return support.gather(1, nearest.expand(-1, -1, support.shape[2]))
