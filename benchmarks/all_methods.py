"""Every registered method at one small budget, beside raw pixels and the untrained encoder: on `shapes`, or on an image folder.

    python benchmarks/all_methods.py RUNS [--folder FOLDER] [--seeds 3] [--methods simclr,cmc] [--images 2200] [--epochs 4]

RUNS keeps the runs: the same command finds the finished ones and goes on. On `shapes` every method whose features a MAG could
augment sees L and ab, which share only the object; on a folder each has its own views. A row learns if its probe on the test split
is MARGIN points above the same encoder untrained in every seed. Settings are those below, for every method alike.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import pandas as pd
from _results import write

from metaug_core import METHODS, Config, data, evaluate, fit, preset
from metaug_core.evaluation import interval

MARGIN = 5.0  # points
MEASURES = ("probe_paper", "knn")
BUDGET: dict[str, Any] = {"feature_dim": 128, "head_hidden": 256, "predictor_hidden": 128, "queue_size": 512, "prototypes": 64,
                          "ema_momentum": 0.97, "dim_units": 256, "monitor_every": 2}  # fmt: skip
SHARED = {"views": ("L", "ab"), "independent": False, "jitter": 0.0, "grey": 0.0, "crop_scale": (0.4, 1.0)}
OWN: dict[str, dict[str, Any]] = {
    "dacl": {"independent": True},
    "wmse": {"feature_dim": 32},
    "cpc": {"feature_dim": 64},
}


def config_of(method: str, seed: int, args: argparse.Namespace) -> Config:
    """The run of one method and seed."""
    views = SHARED if args.folder is None and METHODS[method].augmentable else {}
    own = OWN.get(method.split("+")[0], {})
    where = {"dataset": "folder", "data_dir": args.folder} if args.folder else {}
    return preset("quick", method=method, seed=seed, runs_dir=args.runs.resolve(), train_images=args.images,
                  epochs=args.epochs, **{**BUDGET, **views, **own, **where})  # fmt: skip


def measured(config: Config, splits: data.Splits) -> list[dict[str, Any]]:
    """Rows of one run: raw pixels, untrained and trained encoder, and what a pass over the images took."""
    start = time.monotonic()
    run = fit(config, lambda _: None, splits)
    seconds = (time.monotonic() - start) / config.epochs
    table = evaluate(run, splits=splits).reset_index()
    return table.assign(seconds_per_epoch=seconds, views=", ".join(config.views)).to_dict("records")


def shown(values: pd.Series) -> str:
    """Mean and 95 % t-interval in percent."""
    mean, half = interval(values.tolist())
    return f"{100 * mean:.1f}" + ("" if half != half else f" ± {100 * half:.1f}")


def table(rows: pd.DataFrame) -> str:
    """The markdown table: a line for each method, floors beside it."""
    lines = ["| method | views | probe raw | probe untrained | probe trained | gain, points by seed | kNN trained | learns |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for method, group in rows.groupby("method", sort=False):
        by = {name: part.set_index("seed") for name, part in group.groupby("representation")}
        gains = 100 * (by["trained"].probe_paper - by["untrained"].probe_paper)
        floors = " | ".join(shown(by[name].probe_paper) for name in ("raw pixels", "untrained", "trained"))
        lines.append(
            f"| {METHODS[method].title} | {group.views.iloc[0]} | {floors} | {', '.join(f'{g:.1f}' for g in gains)} | "
            f"{shown(by['trained'].knn)} | {'yes' if gains.min() >= MARGIN else 'no'} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="?", help="folder that keeps the runs")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--images", type=int, default=2200)
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    if args.runs is None:  # as `make benchmarks` calls it
        print("skipped: name a folder for the runs")
        return
    found: list[dict[str, Any]] = []
    methods, splits = args.methods.split(","), None
    for seed in range(args.seeds):
        for method in methods:
            config = config_of(method, seed, args)
            splits = splits or data.load(config, "cpu")
            found += measured(config, splits)
            print(f"{method}, seed {seed}: done", flush=True)
    print(
        f"n = {args.seeds} seed(s), 95 % t-intervals, test accuracy in %; learns: at least {MARGIN:g} points in each seed"
    )
    print(table(pd.DataFrame(found)))
    asked = {name: value for name, value in vars(args).items() if name not in ("runs", "folder")}
    kind = "folder" if args.folder else "shapes"  # where images and runs lie is nobody else's business
    write(
        f"all_methods-{kind}", "all_methods.py RUNS" + " --folder FOLDER" * bool(args.folder), asked, "cpu", rows=found
    )


if __name__ == "__main__":
    main()
