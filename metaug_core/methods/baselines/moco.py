"""MoCo: a crop attracts what a slowly averaged copy of the network makes of the other crop, and repels a queue of such keys."""

from typing import Any

from torch import Tensor, nn

from metaug_core import settings
from metaug_core.methods.base import TWO_CROPS, Context, Method, check_queue_size
from metaug_core.networks.memory import Averaged, Queue
from metaug_core.objectives.similarity import other_views
from metaug_core.recipes import APART, JITTERED, SGD, Recipe


class MoCo(Method):
    """Momentum contrast v2 (He et al. 2020; Chen et al. 2020b): InfoNCE of queries against keys and a queue of past keys.

        k = f_ema(x),  f_ema <- m f_ema + (1 - m) f,   L = -log e^(q.k+/t) / (e^(q.k+/t) + sum over the queue of e^(q.k/t))

    Every view is a query in turn against the keys of the others (v2 takes the first alone), and each view has its own
    queue, so that views of different channels work. No shuffled BatchNorm: statistics are always of the whole
    minibatch. The authors' demo puts 4 points on statistics by parts of it (CIFAR-10, 800 epochs).
    Defaults: v2's augmentation and MLP head, and the t 0.1, m 0.99 and queue of 4096 of the authors' CIFAR-10 demo. On
    ImageNet v2 has t 0.2, m 0.999 and 65536 keys. The demo's head is linear, its crops are 0.08-1, its BatchNorm takes
    8 parts of the minibatch, and it trains by SGD at 0.06 with weight decay 5e-4 and batch 512.
    """

    title = "MoCo v2"
    paper = "He et al. 2020; Chen et al. 2020"
    objective = "-log e^(q.k/t) / (e^(q.k/t) + sum over the queue of e^(q.k'/t)), k of averaged networks"
    remembers = "averaged networks; queue of keys (V, K, d)"
    differs = (
        "No shuffled or split BatchNorm: queries and keys take statistics of the whole minibatch. Every view asks in "
        "turn, as in their CIFAR-10 demo; on ImageNet the first alone. The mean over views; the demo sums them "
        "(loss_scale 2)."
    )
    contrasts = True
    uses = settings.PROJECTION | {"temperature", "queue_size", "shared_queue", "ema_momentum", "ema_schedule"}
    defaults = {**TWO_CROPS, "head": "mlp", "temperature": 0.1, "ema_momentum": 0.99, "queue_size": 4096}
    recipe = Recipe(  # their CIFAR-10 demo
        {
            **JITTERED,
            **SGD,
            **APART,
            "crop_scale": (0.08, 1.0),
            "weight_decay": 5e-4,
            "shared_queue": True,
            "loss_scale": 2.0,
        },
        lr_at_256=0.03,
    )

    def __init__(self, config):
        super().__init__(config)
        check_queue_size(config, config.shared_queue)

    def memory(self, networks: nn.Module, images: int, generator) -> nn.Module:
        config = self.config
        queue = Queue(len(config.views), config.queue_size, config.feature_dim, generator, config.shared_queue)
        return nn.ModuleDict({"averaged": Averaged(networks, self.config, images), "queue": queue})

    def context(self, memory: Any, views, indices, labels, generator) -> Context:
        return Context(indices, labels, other_views(memory["queue"].of_views()), positives=memory["averaged"](views))

    def remember(self, memory: Any, networks: nn.Module, z: Tensor, context: Context) -> None:
        memory["queue"].write(context.positives)
        memory["averaged"].follow(networks)

    def loss(self, z: Tensor, context: Context) -> Tensor:
        assert context.positives is not None
        queries_and_keys = context.pairs(len(self.config.views))(z, context.positives, by_view=True)
        return self.contrast(*queries_and_keys)
