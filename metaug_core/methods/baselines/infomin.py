"""InfoMin Aug.: MoCo on views that share as little as possible, and on the pieces of a jigsaw."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core import settings
from metaug_core.config import Config
from metaug_core.methods.base import TWO_CROPS, Context, Method, check_queue_size
from metaug_core.networks.encoders import Encoders
from metaug_core.networks.heads import head
from metaug_core.networks.memory import Averaged, Queue
from metaug_core.objectives.similarity import other_views
from metaug_core.recipes import APART, JITTERED, SGD, Recipe
from metaug_core.runtime import distributed
from metaug_core.views.augmentation import make_views


class Branches(nn.Module):
    """theta: the encoders, and projection heads of their own for whole views and for jigsaws."""

    def __init__(self, config: Config):
        super().__init__()
        self.encoders = Encoders(config)
        dims = self.encoders.dims.items()
        self.heads = nn.ModuleDict({name: head(dim, config) for name, dim in dims})
        self.jigsaw_heads = nn.ModuleDict({name: head(dim, config) for name, dim in dims})

    def forward(self, images: list[Tensor]) -> Tensor:
        """V views, then none or V jigsaws of them, (B, C_j, H, W) each -> z (V or 2V, B, d), unit norm."""
        names = self.encoders.views
        turns = [(heads, name) for heads in (self.heads, self.jigsaw_heads) for name in names][: len(images)]
        h = self.encoders(images, tuple(name for _, name in turns))
        return F.normalize(torch.stack([heads[name](x) for (heads, name), x in zip(turns, h, strict=True)]), dim=-1)


class InfoMin(Method):
    """InfoMin Aug. (Tian et al. 2020, section 4.3; their code): MoCo v2 on strong augmentation, and a jigsaw branch (PIRL).

        L = (1 - b) InfoNCE(q, k+, queue) + b InfoNCE(q_jigsaw, k+, queue),   k of averaged networks, b = jigsaw_weight

    q_jigsaw is of one more crop whose 3 x 3 pieces are shuffled. They encode the pieces one by one; here they are put together
    again to one image, so that any encoder takes it and the branch costs one pass and not nine. Defaults: jitter (1: 0.8,
    0.8, 0.8, 0.2), grey, RandAugment(2, 10), MLP head, b 0.5, t 0.15; no blur, which `views` has not.
    """

    title = "InfoMin Aug."
    paper = "Tian et al. 2020"
    objective = "(1 - b) InfoNCE(q, k, queue) + b InfoNCE(q of a jigsaw, k, queue), k of averaged networks"
    remembers = "averaged networks; queue of keys (V, K, d)"
    contrasts = True
    parts = 2
    uses = settings.PROJECTION | {
        "temperature",
        "queue_size",
        "shared_queue",
        "ema_momentum",
        "ema_schedule",
        "jigsaw_grid",
        "jigsaw_weight",
    }
    defaults = {**TWO_CROPS, "jitter": 1.0, "randaugment": 30.0, "head": "mlp", "temperature": 0.15}
    recipe = Recipe(
        {**JITTERED, **SGD, **APART, "jitter": 1.0, "weight_decay": 1e-4, "shared_queue": True}, lr_at_256=0.03
    )

    def __init__(self, config: Config):
        super().__init__(config)
        check_queue_size(config)

    def networks(self, classes: int) -> nn.Module:
        return Branches(self.config)

    def views(self, pixels: Tensor, generator: torch.Generator) -> list[Tensor]:
        whole, more = make_views(pixels, self.config, generator), make_views(pixels, self.config, generator)
        return [*whole, *(shuffle_pieces(x, self.config.jigsaw_grid, generator) for x in more)]

    def memory(self, networks: nn.Module, images: int, generator: torch.Generator) -> nn.Module:
        queue = Queue(
            len(self.config.views), self.config.queue_size, self.config.feature_dim, generator, self.config.shared_queue
        )
        return nn.ModuleDict({"averaged": Averaged(networks, self.config, images), "queue": queue})

    def context(self, memory: Any, views: list[Tensor], indices, labels, generator) -> Context:
        keys = memory["averaged"](views[: len(self.config.views)])
        return Context(indices, labels, other_views(memory["queue"].of_views()), positives=keys)

    def remember(self, memory: Any, networks: nn.Module, z: Tensor, context: Context) -> None:
        memory["queue"].write(context.positives)
        memory["averaged"].follow(networks)

    def loss(self, z: Tensor, context: Context) -> Tensor:
        count, weight, keys = len(self.config.views), self.config.jigsaw_weight, context.positives
        assert keys is not None
        whole, jigsaw = z.unflatten(0, (-1, 2, count)).transpose(0, 1).flatten(1, 2)
        of_whole, of_jigsaw = (self.contrast(*context.pairs(count)(q, keys, by_view=True)) for q in (whole, jigsaw))
        return (1 - weight) * of_whole + weight * of_jigsaw


def shuffle_pieces(x: Tensor, grid: int, generator: torch.Generator) -> Tensor:
    """x (B, C, S, S) with its grid x grid pieces in a random order, another one for each image. A side that the grid does not
    divide is resized before and after."""
    count, _, side, _ = x.shape
    piece = max(1, round(side / grid))
    even = (
        x if piece * grid == side else F.interpolate(x, (piece * grid, piece * grid), mode="bilinear", antialias=True)
    )
    pieces = even.unfold(2, piece, piece).unfold(3, piece, piece).flatten(2, 3)  # (B, C, g g, p, p)
    chance = torch.rand(count * distributed.count(), grid**2, generator=generator, device=x.device)
    order = distributed.own(chance).argsort(1)[:, None, :, None, None].expand_as(pieces)
    mixed = pieces.gather(2, order).unflatten(2, (grid, grid)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    return mixed if even is x else F.interpolate(mixed, (side, side), mode="bilinear", antialias=True)
