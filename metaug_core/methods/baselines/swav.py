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
from metaug_core.objectives.losses import debias, harden, is_at_floor, logsumexp_others
from metaug_core.recipes import JITTERED, JOINT, LARS, Recipe


class Clustered(nn.Module):
    """theta: encoders, projections and prototypes, rows of length 1. z (V, B, d + K) is features and their cosines with the
    prototypes. The gradient is that of the rows as they are; `SwAV.remember` sets them back to length 1 after each step."""

    def __init__(self, config: Config):
        super().__init__()
        self.features = Networks(
            config, lambda inputs, c: add_projector_norm(mlp(inputs, c.head_hidden, c.feature_dim), c)
        )
        self.prototypes = nn.Parameter(F.normalize(torch.randn(config.prototypes, config.feature_dim), dim=-1))

    @property
    def encoders(self) -> nn.Module:
        return self.features.encoders

    def forward(self, images: list[Tensor]) -> Tensor:
        z = self.features(images)
        return torch.cat([z, z @ self.prototypes.T], dim=-1)


class SwAV(Method):
    """Swapping assignments between views (Caron et al. 2020, eq. 1 to 5), without the small extra crops:

        L = - mean over views v != u of q_u . log softmax(z_v C / t),   q = Sinkhorn(z C / epsilon)

    An assignment q has no gradient and is balanced over the minibatch and, with a queue, the last features of its view, once
    the queue is full. The prototypes C stay as they were drawn in the first `prototypes_frozen_epochs`: no gradient, no decay.
    Theirs are frozen for 313 steps of batch 4096 or 5005 of batch 256, one pass over ImageNet; solo-learn takes 2 passes on CIFAR.
    Debiased and Hard: the negatives of a prediction are the prototypes that it is not assigned to. softmax's denominator then
    weighs those near z more (`hard_beta`), and takes off the share `tau_plus` of them that would be the image's own cluster.
    Defaults: t 0.1, epsilon 0.05, 3 rounds, no queue (3840 at batch 256 there), 512 prototypes, which is lightly's number
    (theirs 3000 on ImageNet; solo-learn 3000 on CIFAR). Sinkhorn is in logarithms, where a small epsilon cannot overflow;
    lightly's is its test.
    """

    title = "SwAV"
    paper = "Caron et al. 2020"
    objective = "-q_u . log softmax(z_v C / t), q by Sinkhorn"
    remembers = "steps done; the prototypes; with queue_size features (V, K, d)"
    differs = (
        "No small extra crops. A queue fills from the first step; theirs after epoch 15. Adam's count of steps runs on while the "
        "prototypes are frozen."
    )
    unit_features = augmentable = False
    contrasts = True
    uses = {"feature_dim", "head_hidden", "projector_norm", "temperature", "prototypes", "prototypes_frozen_epochs",
            "sinkhorn_epsilon", "sinkhorn_steps", "queue_size"}  # fmt: skip
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

    def memory(self, networks: Any, images: int, generator) -> nn.Module:
        config, memory, device = self.config, nn.Module(), generator.device
        frozen = round(config.prototypes_frozen_epochs * (images // config.batch_size))
        memory.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))
        memory.register_buffer("frozen_steps", torch.tensor(frozen, device=device))
        memory.register_buffer("prototypes", networks.prototypes.detach().clone())
        if config.queue_size:
            memory.queue = Queue(len(config.views), config.queue_size, config.feature_dim, generator)
        return memory

    def context(self, memory: Any, views, indices, labels, generator) -> Context:
        given = {"frozen": memory.steps < memory.frozen_steps, "prototypes": memory.prototypes.clone()}
        if self.config.queue_size:
            given["past"] = memory.queue.entries @ memory.prototypes.T
            given["full"] = memory.steps * self.config.batch_size >= self.config.queue_size
        return Context(indices, labels, given=given)

    @torch.no_grad()
    def remember(self, memory: Any, networks: Any, z: Tensor, context: Context) -> None:
        unit = F.normalize(networks.prototypes, dim=-1)
        networks.prototypes.copy_(torch.where(context.given["frozen"], memory.prototypes, unit))
        memory.prototypes.copy_(networks.prototypes)
        memory.steps += 1
        if self.config.queue_size:
            memory.queue.write(z[..., : self.config.feature_dim])

    def loss(self, z: Tensor, context: Context) -> Tensor:
        cosines, given = self.compute_cosines(z, context), context.given
        balanced, present = cosines.detach(), None
        if "past" in given:
            balanced = torch.cat([balanced, given["past"]], 1)
            now = torch.ones(z.shape[1], dtype=torch.bool, device=z.device)
            present = torch.cat([now, given["full"].expand(given["past"].shape[1])])
        shares = sinkhorn(balanced / self.config.sinkhorn_epsilon, self.config.sinkhorn_steps, present)
        pairs = self.across(self.log_shares((1 + cosines) / self.config.temperature), shares[:, : z.shape[1]])
        return -torch.stack([(q * log_p).sum(-1).mean() for log_p, q in pairs]).mean()

    def compute_cosines(self, z: Tensor, context: Context) -> Tensor:
        """Cosines (V, B, K) of the features with the prototypes, without a gradient of the prototypes while they are frozen."""
        dim, given = self.config.feature_dim, context.given
        return torch.where(given["frozen"], z[..., :dim] @ given["prototypes"].T, z[..., dim:])

    def log_shares(self, x: Tensor) -> Tensor:
        """Log of each prototype's share in the prediction, from exponents (..., K) of which the smallest possible is 0."""
        if not (self.tau_plus or self.hard_beta):
            return x.log_softmax(-1)
        rest = self.sum_others(x)
        return x - torch.logaddexp(x, debias(x, rest, x.shape[-1] - 1, self.tau_plus))

    def sum_others(self, x: Tensor) -> Tensor:
        """Log of the sum over the other prototypes of each, hard ones weighted more, (..., K)."""
        return harden(x, self.hard_beta, x.shape[-1] - 1, logsumexp_others)

    def find_floors(self, z: Tensor, context: Context) -> Tensor:
        """Of each crop and prototype, bool (V, B, K)."""
        x = (1 + self.compute_cosines(z, context)) / self.config.temperature
        return is_at_floor(x, self.sum_others(x), x.shape[-1] - 1, self.tau_plus)


def sinkhorn(exponents: Tensor, steps: int, present: Tensor | None = None) -> Tensor:
    """(..., N, K) -> assignments whose rows sum to 1 and whose columns share the rows about equally (Cuturi 2013).

    present (N,) bool: only these rows are shared among the columns, in every round; at least one is. None: all.
    """
    for _ in range(steps):
        shared = exponents if present is None else exponents.masked_fill(~present[:, None], -torch.inf)
        exponents = exponents - shared.logsumexp(-2, keepdim=True)
        exponents = exponents - exponents.logsumexp(-1, keepdim=True)
    return exponents.exp()
