"""Our data path and our step against those of others, on the same images, with the same networks, in one run.

    python benchmarks/rivals.py [--rounds 3] [--steps 10] [--workers 2] [--device auto]

published: the recipe of the paper's code, written anew: PIL random resized crop to 224 px and flip, scikit-image rgb2lab, in
DataLoader workers, into our step (MetAug on L, ab, Lab). lightly: its SimCLR transform in DataLoader workers, its projection
head and NT-Xent around our encoder, in a plain loop, against our method `simclr`. Images are 32 px noise: what is in a picture
does not change what it costs. Each has its turn within a round and starts its workers anew, untimed, with as many steps as fill
their queues; the figure is images per second, the median over rounds. (The third rival, double backward, is in meta_step.py.)
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import torch
from _measure import Steps, default, seconds
from _results import table, write
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image
from skimage.color import rgb2lab
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from metaug_core import ENCODERS, VIEWS, Config
from metaug_core.data.datasets import Images
from metaug_core.networks.encoders import output_dim
from metaug_core.runtime.device import count_cores, keep_freed_memory
from metaug_core.training.loop import pick_device
from metaug_workbook.results.step_costs import make_noise

PUBLISHED, LIGHTLY = "published data path, MetAug", "lightly's SimCLR loop"
IMAGES, QUEUED = 512, 2  # batches that a DataLoader worker prepares ahead


class InWorkers(Dataset):
    """Images as PIL pictures through `change`, in whatever process asks."""

    def __init__(self, images: Images, change: Callable[[Image.Image], Any]):
        self.pixels, self.change = images.pixels.cpu().permute(0, 2, 3, 1).contiguous().numpy(), change

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, number: int) -> Any:
        return self.change(Image.fromarray(self.pixels[number]))


def to_lab(image: Image.Image) -> Tensor:
    """PIL -> Lab, float32 (3, H, W), each channel to about [-1, 1], by scikit-image."""
    lab = rgb2lab(np.asarray(image))
    low, high = np.array([*VIEWS["Lab"].ranges.values()], dtype=np.float32).T
    return torch.from_numpy((2 * (lab - low) / (high - low) - 1).astype(np.float32).transpose(2, 0, 1).copy())


def loaded(images: Images, change: Callable, batch: int, workers: int, device: str) -> Iterator[Any]:
    """Batches without end from a DataLoader with workers, on the device. Closing it ends the workers."""
    loader = DataLoader(
        InWorkers(images, change), batch, shuffle=True, num_workers=workers, drop_last=True, pin_memory=device == "cuda",
        persistent_workers=True, prefetch_factor=QUEUED,
    )  # fmt: skip
    while True:
        for found in loader:
            yield (
                [x.to(device, non_blocking=True) for x in found]
                if isinstance(found, list)
                else found.to(device, non_blocking=True)
            )


def ours(images: Images, batch: int) -> Iterator[Tensor]:
    """uint8 batches without end: rows of the images on the device, in a random order."""
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(len(images), generator=generator)
        yield from images.batches(order[: len(order) // batch * batch].view(-1, batch))


def published(config: Config, images: Images, workers: int, device: str) -> dict[str, tuple]:
    change = transforms.Compose(
        [transforms.RandomResizedCrop(config.image_size, config.crop_scale), transforms.RandomHorizontalFlip(), to_lab]
    )
    theirs, mine = Steps(config, images=images), Steps(config, images=images)
    (s,) = mine.stepper.states
    theirs.stepper.states[0].method.views = lambda pixels, generator: [
        pixels[:, :1],
        pixels[:, 1:],
        pixels,
    ]  # the rest of the step is ours

    def load() -> Iterator[Tensor]:
        return loaded(images, change, config.batch_size, workers, device)

    def at_hand() -> Iterator[Tensor]:
        return ours(images, config.batch_size)

    return {
        "data path alone": ((load, lambda lab: lab), (at_hand, lambda pixels: s.method.views(pixels, s.generators["views"]))),
        "whole step": ((load, theirs), (at_hand, mine)),
    }  # fmt: skip


class LightlyLoop:
    """A SimCLR step as lightly's tutorials write it, around our encoder; the head has the sizes of ours."""

    def __init__(self, config: Config, device: str):
        encoder = ENCODERS[config.encoder](3, config)
        dim = output_dim(encoder, 3, config)
        head = SimCLRProjectionHead(dim, min(dim, 2048), config.feature_dim, batch_norm=False)
        self.networks = nn.Sequential(encoder, head).to(device).train()
        self.loss = NTXentLoss(temperature=config.temperature)
        self.optimiser = torch.optim.Adam(self.networks.parameters(), lr=config.lr)

    def __call__(self, views: list[Tensor]) -> None:
        loss = self.loss(*(self.networks(view) for view in views))
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()


def lightly(config: Config, images: Images, workers: int, device: str) -> dict[str, tuple]:
    change = SimCLRTransform(input_size=config.image_size, cj_strength=config.jitter, gaussian_blur=0)  # as for CIFAR
    theirs, mine = LightlyLoop(config, device), Steps(config, images=images)
    (s,) = mine.stepper.states
    views = s.method.views(images.pixels[: config.batch_size], s.generators["views"])

    def load() -> Iterator[list[Tensor]]:
        return loaded(images, change, config.batch_size, workers, device)

    def at_hand() -> Iterator[Tensor]:
        return ours(images, config.batch_size)

    def same() -> Iterator[list[Tensor]]:
        while True:
            yield views

    return {
        "data path alone": ((load, lambda seen: seen), (at_hand, lambda pixels: s.method.views(pixels, s.generators["views"]))),
        "step alone (ours with its views)": ((same, theirs), (at_hand, mine)),
        "whole step": ((load, theirs), (at_hand, mine)),
    }  # fmt: skip


def speed(way: tuple[Callable[[], Any], Callable], batch: int, steps: int, warm: int, device: str) -> float:
    """Images per second of `steps` steps; `warm` untimed ones before them bring the queues to where they stay."""
    open_, step = way
    with closing(open_()) as batches:
        for _ in range(warm):
            step(next(batches))
        return batch / seconds(lambda: step(next(batches)), device, steps)


def compared(rival: str, parts: dict[str, tuple], batch: int, args: argparse.Namespace, device: str) -> list[dict]:
    """For each part images per second of theirs and ours: by round, and the medians."""
    warm, rows = QUEUED * args.workers + 1, []
    for part, ways in parts.items():
        found: tuple[list[float], list[float]] = ([], [])
        for number in range(args.rounds):
            for who in (0, 1) if number % 2 else (1, 0):
                found[who].append(speed(ways[who], batch, args.steps, warm, device))
        theirs, mine = map(statistics.median, found)
        rows.append({"rival": rival, "part": part, "theirs": theirs, "ours": mine, "times": mine / theirs, "batch": batch,
                     "theirs_by_round": found[0], "ours_by_round": found[1]})  # fmt: skip
        print(f"{rival}, {part}: {theirs:.1f} and {mine:.1f} images/s", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="timed in a turn")
    parser.add_argument(
        "--batch", type=int, help="of the published recipe at 224 px; lightly's is four times that at 32 px"
    )
    parser.add_argument("--workers", type=int, default=min(16, count_cores()))
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = pick_device(args.device)
    args.steps = args.steps or default(device, 50, 3)
    args.batch = args.batch or default(device, 64, 8)
    images = make_noise(IMAGES, 32, device)
    recipe = Config(method="metaug", views=("L", "ab", "Lab"), image_size=224, batch_size=args.batch, device=device)
    simclr = Config(method="simclr", image_size=32, batch_size=4 * args.batch, device=device)
    with keep_freed_memory():
        rows = compared(PUBLISHED, published(recipe, images, args.workers, device), args.batch, args, device)
        rows += compared(LIGHTLY, lightly(simclr, images, args.workers, device), 4 * args.batch, args, device)
    print(f"images per second, {args.workers} workers; medians of {args.rounds} rounds of {args.steps} steps")
    print(table(rows, **{"rival": "{rival}", "part": "{part}", "batch": "{batch}", "theirs": "{theirs:.0f}", "ours": "{ours:.0f}",
                         "times": "{times:.2f}"}))  # fmt: skip
    write(f"rivals-{device}", "rivals.py", vars(args), device, rows=rows)


if __name__ == "__main__":
    main()
