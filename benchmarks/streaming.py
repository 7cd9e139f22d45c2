"""Does the step wait for images that are decoded as they are needed? By number of workers, on JPEGs of ImageNet's size.

    python benchmarks/streaming.py [--workers 0 1 2 4] [--images 256] [--width 0.25] [--device auto]

The folder is made on the fly: random pictures of 500 x 375, smooth with some grain, about 110 KB each. They are decoded to 256
px and cropped to 224. Measured for each number of workers: the decoding rate alone, the step's rate with images at hand, and
while they are streamed; how much of the time the step then waited for images; and by how much a step became slower, because the
decoding takes its share of the cores. Each number of workers has its turn within a round; medians over rounds.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from _measure import Steps, default, seconds, wait
from _results import table, write
from PIL import Image
from torch import Tensor

from metaug_core import Config
from metaug_core.data import datasets
from metaug_core.data.datasets import StreamedImages
from metaug_core.runtime.device import count_cores, keep_freed_memory
from metaug_core.training.loop import pick_device
from metaug_workbook.results.step_costs import make_noise


def pictures(folder: Path, count: int) -> float:
    """train/{a,b}/*.jpg and a small test/: their mean size in bytes."""
    random, sizes = np.random.default_rng(0), []
    for number in range(count + 2):
        file = folder / ("train" if number < count else "test") / "ab"[number % 2] / f"{number:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        smooth = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        grain = random.normal(0, 12, (375, 500, 1))
        Image.fromarray((np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)).save(file, quality=90)
        sizes.append(file.stat().st_size)
    return sum(sizes) / len(sizes)


def rows_of(images: StreamedImages, batch: int, steps: int) -> Tensor:
    """int64 (steps, batch), passes in a random order one after another."""
    generator = torch.Generator().manual_seed(0)
    passes = -(-steps * batch // len(images))
    order = torch.cat([torch.randperm(len(images), generator=generator) for _ in range(passes)])
    return order[: steps * batch].view(steps, batch)


def streamed(batches: Iterator[Tensor], step: Steps, count: int, device: str) -> tuple[float, float]:
    """Seconds of `count` steps, and of these how many went by before the images were there."""
    waited, begin = 0.0, time.perf_counter()
    for _ in range(count):
        asked = time.perf_counter()
        pixels = next(batches)
        wait(device)  # the copy, too
        waited += time.perf_counter() - asked
        step(pixels)
        wait(device)
    return time.perf_counter() - begin, waited


def one_turn(images: StreamedImages, step: Steps, batch: int, steps: int, device: str) -> dict[str, float]:
    warm = 2 * images.workers + 2  # the queue is then as full as it stays
    rows = rows_of(images, batch, warm + steps + 2 * images.workers)  # to the last step there is something to decode
    batches = images.batches(rows)
    for _ in range(warm):
        next(batches)
    alone = seconds(lambda: next(batches), "cpu", steps)
    batches = images.batches(rows)
    for _ in range(warm):
        step(next(batches))
    took, waited = streamed(batches, step, steps, device)
    at_hand = seconds(step, device, steps)
    return {"decoded_per_second": batch / alone, "at_hand_per_second": batch / at_hand,
            "streamed_per_second": batch * steps / took, "waited_share": waited / took,
            "step_slower": (took - waited) / steps / at_hand}  # fmt: skip


def measure(config: Config, workers: list[int], rounds: int, steps: int, device: str) -> list[dict]:
    images, step = (
        datasets.load(config, device).pretrain,
        Steps(config, images=make_noise(4 * config.batch_size, 256, device)),
    )
    assert isinstance(images, StreamedImages)
    by_workers = {n: StreamedImages(images.source, images.index, images.labels, images.classes, n) for n in workers}
    found: dict[int, list[dict[str, float]]] = {n: [] for n in workers}
    with keep_freed_memory():
        for _ in range(3):
            step()
        for number in range(rounds):
            for n in sorted(workers, reverse=bool(number % 2)):
                found[n].append(one_turn(by_workers[n], step, config.batch_size, steps, device))
    return [{"workers": n} | {key: statistics.median(f[key] for f in found[n]) for key in found[n][0]} for n in workers]


def verdict(rows: list[dict]) -> str:
    best = max(rows, key=lambda row: row["decoded_per_second"])
    words = "can keep up" if best["decoded_per_second"] > best["at_hand_per_second"] else "CANNOT keep up"
    return (f"The CPU {words}: it decodes {best['decoded_per_second']:.0f} images/s at best ({best['workers']} workers), "
            f"the step takes {best['at_hand_per_second']:.0f}.")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument(
        "--method", default="metaug-only-oucl", help="the default is the step that waits least for itself"
    )
    parser.add_argument(
        "--width", type=float, help="of the encoders; 1 on CUDA, elsewhere 0.25: a step fast enough to wait"
    )
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int, help="timed in a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = pick_device(args.device)
    args.width, args.batch = args.width or default(device, 1.0, 0.25), args.batch or default(device, 64, 16)
    args.steps, most = args.steps or default(device, 30, 8), count_cores()
    args.workers = args.workers or sorted({0, 1, 2, min(4, most), most // 2, min(16, most)})
    with tempfile.TemporaryDirectory() as folder:
        size = pictures(Path(folder), args.images)
        config = Config(dataset="folder", data_dir=Path(folder), storage="stream", image_size=224, stored_size=256,
                        method=args.method, width=args.width, batch_size=args.batch, val_fraction=0,
                        device=args.device)  # fmt: skip
        rows = measure(config, args.workers, args.rounds, args.steps, device)
    print(f"conv x {args.width}, {args.method}, 224 px, batch {args.batch}; {args.images} JPEGs of {size / 1e3:.0f} KB; "
          f"{count_cores()} cores; medians of {args.rounds} rounds of {args.steps} steps")  # fmt: skip
    print(table(rows, **{"workers": "{workers}", "decoding alone, images/s": "{decoded_per_second:.0f}",
                         "step, at hand": "{at_hand_per_second:.0f}", "step, streamed": "{streamed_per_second:.0f}",
                         "waits": "{waited_share:.0%}", "step slower by": "{step_slower:.2f}"}))  # fmt: skip
    print(verdict(rows))
    write(f"streaming-{device}", "streaming.py", vars(args), device, rows=rows, mean_bytes=size, verdict=verdict(rows))


if __name__ == "__main__":
    main()
