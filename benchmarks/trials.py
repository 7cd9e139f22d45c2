"""Trials side by side against as many single runs, one after the other: the same work, in one run of this script.

    python benchmarks/trials.py [--trials 4] [--images 2000] [--epochs 1] [--rounds 3] [--device auto]

Both are given the data already loaded. The order of the two turns about from round to round; the ratio is the median.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _results import write

from metaug_core import data, fit, fit_trials, preset
from metaug_core.engine import pick_device


def seconds(train: Callable[[], object]) -> float:
    start = time.perf_counter()
    train()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    base = preset("quick", train_images=args.images, epochs=args.epochs, device=args.device)
    splits = data.load(base, pick_device(args.device))
    found: dict[str, list[float]] = {"together": [], "one by one": []}
    for number in range(args.rounds + 1):  # the first warms up
        with tempfile.TemporaryDirectory() as folder:
            configs = {
                name: [base.replace(seed=seed, runs_dir=Path(folder) / name) for seed in range(args.trials)]
                for name in found
            }
            ways = {
                "together": lambda c=configs["together"]: fit_trials(c, lambda _: None, splits),
                "one by one": lambda c=configs["one by one"]: [fit(config, lambda _: None, splits) for config in c],
            }
            for name in sorted(ways, reverse=bool(number % 2)):
                took = seconds(ways[name])
                if number:
                    found[name].append(took)
    ratios = [a / b for a, b in zip(found["together"], found["one by one"], strict=True)]
    print(
        f"{args.trials} trials together take {statistics.median(ratios):.3f} of the time of {args.trials} single runs"
    )
    print(f"(median of {args.rounds}: {', '.join(f'{r:.3f}' for r in ratios)}; "
          f"{statistics.median(found['one by one']):.1f} s one by one)")  # fmt: skip
    write(
        f"trials-{args.trials}",
        "trials.py",
        vars(args),
        pick_device(args.device),
        ratio=statistics.median(ratios),
        seconds=found,
    )


if __name__ == "__main__":
    main()
