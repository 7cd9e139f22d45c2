"""What the default run learns: raw pixels, the untrained and the trained encoder on the test split of `shapes`, over seeds.

    python benchmarks/shapes_learning.py [--seeds 3] [--method metaug]

The seed decides weights, order and augmentation; the images are the same. Runs go to a folder that is thrown away.
"""

import argparse
import tempfile
import time
from pathlib import Path

from _results import write

from metaug_core import evaluate, fit, preset
from metaug_core.evaluation import over_seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--method", default="metaug")
    args = parser.parse_args()
    tables, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            start = time.monotonic()
            run = fit(preset("quick", method=args.method, seed=seed, runs_dir=Path(folder)))
            seconds.append(time.monotonic() - start)
            tables.append(evaluate(run))
    summary = over_seeds(tables)
    print(
        f"{args.method}, n = {args.seeds} seeds, 95 % t-intervals; training took {', '.join(f'{s:.0f}' for s in seconds)} s"
    )
    print("| representation | measure | accuracy, % |\n|---|---|---|")
    for row in summary.to_dict("records"):
        print(
            "| {representation} | {measure} | ".format(**row)
            + f"{100 * row['mean']:.1f} ± {100 * row['half_width']:.1f} |"
        )
    gains = [100 * (t.loc["trained", "probe_paper"] - t.loc["untrained", "probe_paper"]) for t in tables]
    print("trained over untrained, probe_paper, points by seed:", ", ".join(f"{g:.1f}" for g in gains))
    write(
        f"shapes_learning-{args.method}", "shapes_learning.py", vars(args), "cpu",
        train_seconds=seconds, gain_points_by_seed=gains, summary=summary.to_dict("records"),
        by_seed=[table.reset_index().to_dict("records") for table in tables],
    )  # fmt: skip


if __name__ == "__main__":
    main()
