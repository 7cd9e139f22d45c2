"""Random crops and flips of the training images, numbered draw by draw: what the probe of the CMC line of work trains on.

A draw depends on its number alone: not on the run, its random numbers, the device or how many images are encoded at a time.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from metaug_core.config import Config
from metaug_core.data.images import AnyImages
from metaug_core.evaluation.probes import CMC
from metaug_core.views.augmentation import CROP_AND_FLIP, Draws, plain, transform

NUMBERS = ("area", "ratio", "x", "y", "flip")  # of each image: all random numbers that a crop and a flip need
SEED = 10_000  # of draw 0; the order of a probe's minibatches is of seed 0
KEPT_BYTES = 2 * 2**30  # features of draws that are kept in memory


def count_draws(device: str) -> int:
    """How many draws a probe takes in turn: a new one in each of its 60 epochs on CUDA, elsewhere 10, which cost a sixth."""
    return CMC.epochs if torch.device(device).type == "cuda" else 10


def draw_numbers(count: int, draw: int) -> Tensor:
    """The random numbers in [0, 1) of one draw for `count` images, by name (`NUMBERS`): (5, N, 1, 1, 1), on the CPU."""
    return torch.rand(len(NUMBERS), count, 1, 1, 1, generator=torch.Generator().manual_seed(SEED + draw))


def split_rows(images: AnyImages) -> tuple[Tensor, ...]:
    """The numbers of all images in parts of a size that suits the device: the activations of 128 images fit into a CPU's caches."""
    return torch.arange(len(images)).split(128 if images.labels.device.type == "cpu" else 512)


def read_images(images: AnyImages, config: Config, draw: int | None = None) -> Iterator[Tensor]:
    """All images in order, part by part: float32 (B, 3, S, S) in [0, 1]. None: plain; else random crops and flips of that draw."""
    parts = split_rows(images)
    if draw is None:
        yield from (plain(pixels, config.image_size) for pixels in images.batches(parts))
        return
    settings = config.model_copy(update=CROP_AND_FLIP)  # as CMC's and the authors' scripts have it
    numbers = draw_numbers(len(images), draw).to(images.labels.device).split([len(rows) for rows in parts], 1)
    for part, pixels in zip(numbers, images.batches(parts), strict=True):
        draws: Draws = dict(zip(NUMBERS, part, strict=True))
        yield transform(pixels, settings, draws)


def take_in_turn(encode: Callable[[int], Tensor], draws: int, limit: int = KEPT_BYTES) -> Callable[[int], Tensor]:
    """Epoch -> encode(epoch mod draws), the features (N, D) of one draw. As many as fit in `limit` bytes are kept; the others are
    encoded again whenever they are due, which gives the same."""
    kept: dict[int, Tensor] = {}

    def take(epoch: int) -> Tensor:
        number = epoch % draws
        if number in kept:
            return kept[number]
        features = encode(number)
        if (len(kept) + 1) * features.nbytes <= limit:
            kept[number] = features
        return features

    return take
