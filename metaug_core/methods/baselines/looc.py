"""LooC: one head is blind to every augmentation, and each of the others sees one of them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core import settings
from metaug_core.config import Config, ConfigError
from metaug_core.methods.base import TWO_CROPS, Context, Method, check_queue_size
from metaug_core.networks.encoders import Encoders
from metaug_core.networks.heads import head
from metaug_core.networks.memory import Averaged, Queue
from metaug_core.objectives.similarity import similarity
from metaug_core.recipes import APART, JITTERED, SGD, Recipe
from metaug_core.views.augmentation import draw, split, transform

HELD = {  # augmentation -> its draws, and the settings that switch it on
    "colour": ("jitter order1 order2 order3 order4 brightness contrast saturation hue grey", ("jitter", "grey")),
    "crop": ("area ratio x y", ("crop_scale",)),
    "flip": ("flip", ("flip",)),
    "rotation": ("rotation", ("rotation",)),
}


class Heads(nn.Module):
    """theta: the encoders, their h side by side, and n + 1 projection heads."""

    def __init__(self, config: Config):
        super().__init__()
        self.encoders = Encoders(config)
        inputs = sum(self.encoders.dims[name] for name in config.views)
        self.heads = nn.ModuleList(head(inputs, config) for _ in range(len(config.looc_held) + 1))

    def forward(self, images: list[Tensor]) -> Tensor:
        """The views of the query, and any more, which are keys and not looked at -> (n + 1, B, d), unit norm."""
        h = torch.cat(self.encoders(images[: len(self.encoders.views)]), dim=1)
        return F.normalize(torch.stack([head(h) for head in self.heads]), dim=-1)


class LooC(Method):
    """Leave-one-out contrast (Xiao et al. 2021, eq. 2-3) on MoCo v2.

        L = 1/(n+1) sum_i -log e^(q_i.k_ii/t) / (sum_j e^(q_i.k_ji/t) + sum over the queue of head i),   i, j = 0..n

    k_j is a key whose augmentation j was drawn with the query's own values and all others anew; k_0 shares none. In the
    space of head i > 0 the image's own other keys are negatives, as in eq. 3; the public re-implementation (SeCo) takes
    the other keys of the whole minibatch. Head 0 has k_0 alone, and is plain InfoNCE. h of the backbone is evaluated:
    LooC, not LooC++. Defaults: colour and rotation held, as in the paper (its rotations are quarter turns, here any
    angle), MoCo v2's augmentation and head, t 0.2. There is no code by the authors.
    """

    title = "LooC"
    paper = "Xiao et al. 2021"
    objective = "mean over heads i of InfoNCE(q_i, k_ii); the image's other keys k_ji are negatives, but for head 0"
    remembers = "averaged networks; queue of keys (heads, K, d)"
    differs = (
        "No code by the authors. Negatives of a head are the image's own other keys (eq. 3); the public "
        "re-implementation takes those of the whole minibatch. Rotations are of any angle, theirs quarter turns."
    )
    contrasts = True
    minimum_views = 1
    unit_features = False  # rows of z are heads, not views
    augmentable = False
    uses = settings.PROJECTION | {"temperature", "queue_size", "ema_momentum", "ema_schedule", "looc_held"}
    defaults = {**TWO_CROPS, "views": ("RGB",), "rotation": 180.0, "head": "mlp", "temperature": 0.2}
    recipe = Recipe({**JITTERED, **SGD, **APART, "weight_decay": 1e-4}, lr_at_256=0.03)  # MoCo v2's
    uniform = {"looc_held": ("crop", "flip")}  # all that CMC's augmentation has; Table 4's set 5 is Table 1's number

    def __init__(self, config: Config):
        super().__init__(config)
        check_queue_size(config)
        for name in config.looc_held:
            if all(getattr(config, setting) in (0, (1, 1)) for setting in HELD[name][1]):
                raise ConfigError(
                    f"method {config.method!r} holds {name}, which {' and '.join(HELD[name][1])} switch off"
                )

    def networks(self, classes: int) -> nn.Module:
        return Heads(self.config)

    def views(self, pixels: Tensor, generator: torch.Generator) -> list[Tensor]:
        """The query's views, then those of key 0, 1, ..., n."""
        query, *keys = (draw(len(pixels), generator) for _ in range(len(self.config.looc_held) + 2))
        held = ["", *(HELD[name][0] for name in self.config.looc_held)]
        drawn = [key | {name: query[name] for name in same.split()} for key, same in zip(keys, held, strict=True)]
        return [x for d in (query, *drawn) for x in split(transform(pixels, self.config, d), self.config.views)]

    def memory(self, networks: nn.Module, images: int, generator: torch.Generator) -> nn.Module:
        queue = Queue(len(self.config.looc_held) + 1, self.config.queue_size, self.config.feature_dim, generator)
        return nn.ModuleDict({"averaged": Averaged(networks, self.config, images), "queue": queue})

    def context(self, memory: Any, views: list[Tensor], indices, labels, generator) -> Context:
        each = len(self.config.views)
        keys = [memory["averaged"](views[start : start + each]) for start in range(each, len(views), each)]
        past = memory[
            "queue"
        ].entries.clone()  # `remember` writes to the queue before this step's features are described
        return Context(indices, labels, given={"keys": torch.stack(keys), "queue": past})

    def remember(self, memory: Any, networks: nn.Module, z: Tensor, context: Context) -> None:
        memory["queue"].write(context.given["keys"].diagonal().movedim(-1, 0))
        memory["averaged"].follow(networks)

    def loss(self, z: Tensor, context: Context) -> Tensor:
        own = similarity((z * context.given["keys"]).sum(-1))  # (key, head, B)
        past = similarity(z @ context.given["queue"].mT)  # (head, B, K)
        terms = [self.contrast(own[0, 0, :, None], past[0])]
        for i in range(1, len(z)):
            others = torch.cat([own[:i, i], own[i + 1 :, i]]).T  # (B, n)
            terms.append(self.contrast(own[i, i, :, None], torch.cat([others, past[i]], dim=1)))
        return torch.stack(terms).mean()
