"""What the default run learns: raw pixels, the untrained and the trained encoder on the test split of `shapes`, over seeds.

    python benchmarks/shapes_learning.py [--seeds 3] [--method metaug] [--publish]

The seed decides weights, order and augmentation; the images are the same. Runs go to a folder that is thrown away. --publish puts
the figure first-run, with nearest neighbours of the first seed's features, into figures/.
"""

import argparse
import tempfile
import time
from pathlib import Path

import pandas as pd
from _results import write

from metaug_core import evaluate, fit, preset
from metaug_core.evaluation.probes import DEFAULT_MEASURES
from metaug_core.evaluation.representations import over_seeds
from metaug_workbook import notebook
from metaug_workbook.plots import gallery


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--method", default="metaug")
    parser.add_argument("--publish", action="store_true", help="put the figure into figures/")
    args = parser.parse_args()
    if args.publish and args.method != "metaug":
        parser.error("--publish is of the default run, without --method")
    if args.publish:
        gallery.refuse_changes()
    runs, tables, seconds = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            start = time.monotonic()
            run = fit(preset("quick", method=args.method, seed=seed, runs_dir=Path(folder)))
            seconds.append(time.monotonic() - start)
            tables.append(evaluate(run))
            runs.append(run)
        summary = over_seeds(tables)
        if args.publish:
            bars = (
                pd.concat(tables).reset_index()[["representation", "seed", *DEFAULT_MEASURES]].assign(panel="accuracy")
            )
            neighbours = notebook.find_neighbours(runs[0], notebook.load_images(runs[0].config))
            gallery.publish("first-run", pd.concat([bars, neighbours]), runs)
    print(
        f"{args.method}, n = {args.seeds} seeds, 95 % t-intervals; training took {', '.join(f'{s:.0f}' for s in seconds)} s"
    )
    print("| representation | measure | accuracy, % |\n|---|---|---|")
    for row in summary.to_dict("records"):
        print(
            "| {representation} | {measure} | ".format(**row)
            + f"{100 * row['mean']:.1f} ± {100 * row['half_width']:.1f} |"
        )
    gains = [100 * (t.loc["trained", "probe_plain"] - t.loc["untrained", "probe_plain"]) for t in tables]
    print("trained over untrained, probe_plain, points by seed:", ", ".join(f"{g:.1f}" for g in gains))
    write(
        f"shapes_learning-{args.method}", "shapes_learning.py", {"seeds": args.seeds, "method": args.method}, "cpu",
        train_seconds=seconds, gain_points_by_seed=gains, summary=summary.to_dict("records"),
        by_seed=[table.reset_index().to_dict("records") for table in tables],
    )  # fmt: skip


if __name__ == "__main__":
    main()
