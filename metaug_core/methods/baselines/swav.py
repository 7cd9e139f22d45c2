"""SwAV: from one crop predict the cluster of the other, where clusters are balanced over the minibatch."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core.config import Config
from metaug_core.methods.base import TWO_CROPS, Context, Method, check_queue_size
from metaug_core.networks.encoders import Networks
from metaug_core.networks.heads import add_projector_norm, mlp
from metaug_core.networks.memory import Queue
from metaug_core.objectives.losses import debias, harden, logsumexp_others
from metaug_core.recipes import JITTERED, JOINT, LARS, Recipe


class Clustered(nn.Module):
    """theta: encoders, projections and prototypes. z (V, B, d + K) is features and their cosines with the prototypes."""

    def __init__(self, config: Config):
        super().__init__()
        self.features = Networks(
            config, lambda inputs, c: add_projector_norm(mlp(inputs, c.head_hidden, c.feature_dim), c)
        )
        self.prototypes = nn.Parameter(torch.randn(config.prototypes, config.feature_dim))

    @property
    def encoders(self) -> nn.Module:
        return self.features.encoders

    def forward(self, images: list[Tensor]) -> Tensor:
        z = self.features(images)
        return torch.cat([z, z @ F.normalize(self.prototypes, dim=-1).T], dim=-1)


class SwAV(Method):
    """Swapping assignments between views (Caron et al. 2020, eq. 1 to 5), without the small extra crops:

        L = - mean over views v != u of q_u . log softmax(z_v C / t),   q = Sinkhorn(z C / epsilon)

    An assignment q has no gradient and is balanced over the minibatch and, with a queue, the last features of its view.
    Debiased and Hard: the negatives of a prediction are the prototypes that it is not assigned to. softmax's denominator then
    weighs those near z more (`hard_beta`), and takes off the share `tau_plus` of them that would be the image's own cluster.
    Defaults: t 0.1, epsilon 0.05, 3 rounds, 512 prototypes (3000 on ImageNet), no queue (3840 after 15 epochs there).
    Sinkhorn is in logarithms, where a small epsilon cannot overflow; lightly's is its test.
    """

    title = "SwAV"
    paper = "Caron et al. 2020"
    objective = "-q_u . log softmax(z_v C / t), q by Sinkhorn"
    remembers = "nothing, or with queue_size features (V, K, d) and the prototypes"
    unit_features = augmentable = False
    contrasts = True
    uses = {"feature_dim", "head_hidden", "projector_norm", "temperature", "prototypes", "sinkhorn_epsilon", "sinkhorn_steps",
            "queue_size"}  # fmt: skip
    defaults = {**TWO_CROPS, "temperature": 0.1, "head_hidden": 2048, "queue_size": 0}
    recipe = Recipe(  # their script for minibatches of 256; LARC adapts every weight
        {
            **JITTERED,
            **LARS,
            **JOINT,
            "jitter": 1.0,
            "crop_scale": (0.14, 1.0),
            "weight_decay": 1e-6,
            "decay_norm_and_bias": True,
        },
        lr_at_256=0.6,
    )

    def __init__(self, config: Config):
        super().__init__(config)
        if config.queue_size:
            check_queue_size(config)

    def networks(self, classes: int) -> nn.Module:
        return Clustered(self.config)

    def memory(self, networks: Any, images: int, generator) -> nn.Module | None:
        config, memory = self.config, nn.Module()
        memory.queue = Queue(len(config.views), config.queue_size, config.feature_dim, generator)
        memory.register_buffer("prototypes", networks.prototypes.detach().clone())
        return memory if config.queue_size else None

    def context(self, memory: Any, views, indices, labels, generator) -> Context:
        past = {} if memory is None else {"past": memory.queue.entries @ F.normalize(memory.prototypes, dim=-1).T}
        return Context(indices, labels, given=past)

    def remember(self, memory: Any, networks: Any, z: Tensor, context: Context) -> None:
        if memory is not None:
            memory.queue.write(z[..., : self.config.feature_dim])
            memory.prototypes.copy_(networks.prototypes.detach())

    def loss(self, z: Tensor, context: Context) -> Tensor:
        cosines = z[..., self.config.feature_dim :]
        balanced = torch.cat([cosines, context.given["past"]], 1) if "past" in context.given else cosines
        shares = sinkhorn(balanced.detach() / self.config.sinkhorn_epsilon, self.config.sinkhorn_steps)
        pairs = self.across(self.log_shares((1 + cosines) / self.config.temperature), shares[:, : z.shape[1]])
        return -torch.stack([(q * log_p).sum(-1).mean() for log_p, q in pairs]).mean()

    def log_shares(self, x: Tensor) -> Tensor:
        """Log of each prototype's share in the prediction, from exponents (..., K) of which the smallest possible is 0."""
        if not (self.tau_plus or self.hard_beta):
            return x.log_softmax(-1)
        count = x.shape[-1] - 1
        rest = debias(x, harden(x, self.hard_beta, count, logsumexp_others), count, self.tau_plus)
        return x - torch.logaddexp(x, rest)


def sinkhorn(exponents: Tensor, steps: int) -> Tensor:
    """(..., N, K) -> assignments whose rows sum to 1 and whose columns share the rows about equally (Cuturi 2013)."""
    for _ in range(steps):
        exponents = exponents - exponents.logsumexp(-2, keepdim=True)
        exponents = exponents - exponents.logsumexp(-1, keepdim=True)
    return exponents.exp()
