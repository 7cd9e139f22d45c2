"""InfoMin Aug.: MoCo on views that share as little as possible, and on the pieces of a jigsaw."""

import math
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
from metaug_core.views.augmentation import CROP_AND_FLIP, make_views

PIECE = 64 / 85  # of a cell's side; theirs are 64 px of 85
JIGSAW_CROP = (0.6, 1.0)  # area
LARGEST = 1024  # side of an image, as `Config` has it


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

    q_jigsaw is of one more crop, of 0.6 to 1 of the image's area, flipped or not, with no change of colour. Of each of its 3 x 3
    cells a random piece is cut, 64/85 of the cell's side, so that pieces do not join, and the pieces are shuffled. They encode
    the pieces one by one; here they are put together again to one image, so that any encoder takes it and the branch costs one
    pass and not nine. Defaults: jitter (1: 0.8, 0.8, 0.8, 0.2), grey, two operations of RandAugment at full strength, MLP head, b
    0.5, t 0.15.
    """

    title = "InfoMin Aug."
    paper = "Tian et al. 2020"
    objective = "(1 - b) InfoNCE(q, k, queue) + b InfoNCE(q of a jigsaw, k, queue), k of averaged networks"
    remembers = "averaged networks; queue of keys (V, K, d)"
    differs = (
        "The jigsaw's pieces are one image again; theirs go through encoder and MLP one by one and are joined by a linear layer. "
        "Each crop asks the other, and has a queue; theirs: the first asks the second, one queue. RandAugment comes first; theirs "
        "stands between jitter and grey. m 0.99 and K 4096 for short runs; theirs 0.999 and 65536."
    )
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
        check_queue_size(config, config.shared_queue)
        self.jigsaw_views = make_jigsaw_config(config)

    def networks(self, classes: int) -> nn.Module:
        return Branches(self.config)

    def views(self, pixels: Tensor, generator: torch.Generator) -> list[Tensor]:
        whole = make_views(pixels, self.config, generator)
        grid, side = self.config.jigsaw_grid, self.config.image_size
        more = make_views(pixels, self.jigsaw_views, generator)
        return [*whole, *(shuffle_pieces(x, side, draw_pieces(len(x), grid, generator)) for x in more)]

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


def make_jigsaw_config(config: Config) -> Config:
    """How the jigsaw's image is made: by crop and flip alone. It is so much larger than a view that a piece keeps the size of its
    pixels."""
    side = min(LARGEST, round(config.image_size / PIECE))
    return config.model_copy(update={**CROP_AND_FLIP, "crop_scale": JIGSAW_CROP, "image_size": side})


def draw_pieces(count: int, grid: int, generator: torch.Generator) -> Tensor:
    """Draws for the jigsaws of `count` images, (count, grid^2, 3) in [0, 1): a cell's place in the order, and x and y of the piece
    in its cell. Each of several processes draws for the whole minibatch and uses its own part."""
    shape = count * distributed.count(), grid**2, 3
    return distributed.own(torch.rand(shape, generator=generator, device=generator.device))


def shuffle_pieces(x: Tensor, side: int, draws: Tensor) -> Tensor:
    """x (B, C, T, T) -> (B, C, side, side): of each of grid x grid cells a piece of PIECE of its side, put together in another
    order, bilinear. draws (B, grid^2, 3) as in `draw_pieces`, which also tell the grid. Any T and side will do."""
    grid = math.isqrt(draws.shape[1])
    order = draws[..., 0].argsort(1)  # the cell that each place of the jigsaw shows
    corners = torch.stack([order % grid, order // grid], -1) + (1 - PIECE) * draws[..., 1:].gather(
        1, order[..., None].expand(-1, -1, 2)
    )  # of the pieces, x and y in cells
    axis = (torch.arange(side, device=x.device) + 0.5) * grid / side  # of a pixel, in cells
    place = axis.long()
    corners = corners[:, place[:, None] * grid + place]  # (B, side, side, 2)
    within = (axis - place).to(x.dtype)
    inside = torch.stack([within.expand(side, side), within[:, None].expand(side, side)], -1)
    points = (corners.to(x.dtype) + PIECE * inside) * (2 / grid) - 1
    return F.grid_sample(x, points, "bilinear", padding_mode="border", align_corners=False)
