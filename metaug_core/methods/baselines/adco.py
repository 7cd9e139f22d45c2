"""AdCo: MoCo whose negatives are no past keys but parameters of their own, which raise the loss that the networks lower."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core import settings
from metaug_core.config import Config
from metaug_core.methods.base import TWO_CROPS, Context, Method, check_queue_size
from metaug_core.networks.memory import Averaged
from metaug_core.objectives.similarity import Pairs, other_views
from metaug_core.recipes import JITTERED, SGD, Recipe

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4  # of the negatives


class Adversaries(nn.Module):
    """K negatives for each view, weights (V, K, d) of any norm. They begin as keys, one after the other; then all ascend."""

    weights: Tensor
    velocity: Tensor
    written: Tensor

    def __init__(self, config: Config, generator: torch.Generator):
        super().__init__()
        self.lr, self.temperature = config.adversary_lr, config.adversary_temperature
        shape = (len(config.views), config.queue_size, config.feature_dim)
        weights = torch.randn(shape, generator=generator, device=generator.device)
        self.register_buffer("weights", F.normalize(weights, dim=-1))
        self.register_buffer("velocity", torch.zeros_like(weights))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64, device=generator.device))

    def move(self, queries: Tensor, keys: Tensor) -> None:
        """Write keys (V, B, d) in the place of the next B random ones; if there are none left, one step of ascent on the InfoNCE
        of queries (V, B, d) of the other views. Without a wait for the device."""
        count, batch = self.weights.shape[1], keys.shape[1]
        rows = (self.written + torch.arange(batch, device=keys.device)) % count
        filled = self.weights.index_copy(1, rows, keys.to(self.weights.dtype))
        begun = self.written >= count
        velocity = MOMENTUM * self.velocity + WEIGHT_DECAY * self.weights - self.gradient(queries, keys)
        self.velocity.copy_(torch.where(begun, velocity, self.velocity))
        self.weights.copy_(torch.where(begun, self.weights - self.lr * velocity, filled))
        self.written += batch

    def gradient(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Of the mean over a view's askers of -log softmax(q . k_own / t) among all keys and negatives, (V, K, d).

        The gradient of q . n for the unit vector n = w / |w| is (q - (q . n) n) / |w|.
        """
        asking = other_views(queries).flatten(1, 2)  # (V, T B, d)
        unit, norms = F.normalize(self.weights, dim=-1), self.weights.norm(dim=-1, keepdim=True)
        cosines = asking @ unit.mT  # (V, T B, K)
        shares = (torch.cat([asking @ keys.mT, cosines], -1) / self.temperature).softmax(-1)[..., keys.shape[1] :]
        along = shares.mT @ asking - (shares * cosines).sum(1).unsqueeze(-1) * unit
        return along / (norms * self.temperature * asking.shape[1])


class AdCo(Method):
    """Adversarial contrast (Hu et al. 2021, eq. 4 to 9): the networks descend on InfoNCE, its K negatives ascend.

        L = -log e^(q.k/t) / (sum over the minibatch's keys of e^(q.k'/t) + sum over negatives of e^(q.n/t)),   n = w / |w|
        w <- w + l_w dL/dw   at a temperature of its own (adversary_temperature), SGD with momentum 0.9, decay 1e-4

    A generator of hard negatives without a look-ahead: the gradient pulls each negative towards the queries that it is nearest to.
    Every view asks in turn, as in their symmetric run, and each view has its own negatives. Negatives begin as keys of the first
    steps. Defaults: t 0.12, 0.02 for the negatives, their rate 3, and K 4096 (theirs 65536, with 8192 almost as good).
    """

    title = "AdCo"
    paper = "Hu et al. 2021"
    objective = "-log e^(q.k/t) / (sum over keys e^(q.k'/t) + sum over negatives e^(q.n/t)); n are weights and ascend"
    remembers = "averaged networks; negatives (V, K, d) and their velocity; steps done"
    differs = (
        "Each view has its own negatives, theirs one set, and K is 4096 for short runs, theirs 65536 (queue_size). The networks "
        "learn from the first step, as theirs do while keys are written, but the averaged networks are not set back afterwards. "
        "No shuffled BatchNorm."
    )
    contrasts = True
    uses = settings.PROJECTION | {"temperature", "queue_size", "ema_momentum", "ema_schedule", "adversary_lr",
                                  "adversary_temperature"}  # fmt: skip
    defaults = {**TWO_CROPS, "head": "mlp", "temperature": 0.12, "ema_momentum": 0.99, "queue_size": 4096}
    recipe = Recipe({**JITTERED, **SGD, "weight_decay": 1e-4}, lr_at_256=0.03)

    def __init__(self, config: Config):
        super().__init__(config)
        check_queue_size(config)

    def memory(self, networks: nn.Module, images: int, generator: torch.Generator) -> nn.Module:
        averaged, negatives = Averaged(networks, self.config, images), Adversaries(self.config, generator)
        return nn.ModuleDict({"averaged": averaged, "negatives": negatives})

    def context(self, memory: Any, views, indices, labels, generator) -> Context:
        negatives = F.normalize(memory["negatives"].weights, dim=-1)
        return Context(indices, labels, other_views(negatives), positives=memory["averaged"](views))

    @torch.no_grad()
    def remember(self, memory: Any, networks: nn.Module, z: Tensor, context: Context) -> None:
        memory["negatives"].move(z[: len(self.config.views)], context.positives)
        memory["averaged"].follow(networks)

    def loss(self, z: Tensor, context: Context) -> Tensor:
        assert context.positives is not None
        views = len(self.config.views)
        positives, negatives = context.pairs(views).compare(z, context.positives, by_view=True)
        _, other_keys = Pairs(views).compare(z, context.positives, by_view=True)
        return self.contrast(positives, torch.cat([other_keys, negatives], -1))
