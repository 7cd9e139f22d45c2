"""Trials side by side against as many single runs, one after the other: the same work, in one run of this script.

    python benchmarks/trials.py [--trials 4] [--images 600] [--epochs 1] [--rounds 3] [--device auto]

Whole runs of the small default, with monitors, logs and checkpoints; both are given the data already loaded. (engine.py has the
step alone.) The order of the two turns about from round to round; the ratio is the median.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from _measure import default, ratio, seconds
from _results import write

from metaug_core import fit, fit_trials, preset
from metaug_core.data import datasets
from metaug_core.training.loop import pick_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--images", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = pick_device(args.device)
    args.trials, args.images = args.trials or default(device, 16, 4), args.images or default(device, 9_000, 600)
    args.epochs = args.epochs or default(device, 3, 1)
    base = preset("quick", train_images=args.images, epochs=args.epochs, device=args.device)
    splits = datasets.load(base, device)
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
                took = seconds(ways[name], device)
                if number:
                    found[name].append(took)
    share = ratio(found["together"], found["one by one"])
    print(f"{args.trials} trials together take {share:.3f} of the time of {args.trials} single runs")
    print(f"(median of {args.rounds}; {statistics.median(found['one by one']):.1f} s one by one)")
    write(
        f"trials-{args.trials}",
        "trials.py",
        vars(args),
        device,
        ratio=share,
        seconds=found,
    )


if __name__ == "__main__":
    main()
