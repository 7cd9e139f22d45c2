"""Every registered method at one small budget, beside its encoder untrained: on `shapes`, or on an image folder.

    python benchmarks/all_methods.py RUNS [--folder FOLDER] [--seeds 3] [--methods simclr,cmc] [--images 2200] [--epochs 8]

RUNS keeps the runs: the same command finds the finished ones and goes on, as many at a time as there are cores, each on one thread
(`making.made`), so a run's seconds are those beside another. With --methods a part of the table is shown, and nothing put into
benchmarks/results. On `shapes` methods see L and ab, which share only the object, but for the few of `ON_SHAPES`; on a folder each
has its own views. A row learns if its probe on the test split is MARGIN points above the same encoder untrained in every seed. Each
method has settings of its own, chosen on validation images of `shapes` (LOG.md): the table says what a method can learn at about
this budget, and its column `epochs` who was given more, on `shapes` only.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
from _results import write

from metaug_core import (
    METHODS,
    Config,
    evaluate,
    gallery,
    paper_figures,
    paper_gallery,  # noqa: F401  (it enters the paper's figures)
    preset,
    results,
    store,
)
from metaug_core.evaluation import interval
from metaug_core.making import made

MARGIN = 5.0  # points
MEASURES = ("probe_paper", "knn")
BUDGET: dict[str, Any] = {"feature_dim": 128, "head_hidden": 256, "predictor_hidden": 128, "queue_size": 512, "prototypes": 64,
                          "ema_momentum": 0.97, "dim_units": 256, "monitor_every": 2, "lr": 1e-3}  # fmt: skip
SHARED: dict[str, Any] = {
    "views": ("L", "ab"),
    "independent": False,
    "jitter": 0.0,
    "grey": 0.0,
    "crop_scale": (0.4, 1.0),
}
CENTRED: dict[str, Any] = {"head": "mlp-bn"}
FAST: dict[str, Any] = {"lr": 3e-3}
# What a method needs beside BUDGET: everywhere, and on `shapes`.
OWN: dict[str, dict[str, Any]] = {
    "cmc": FAST, "metaug": FAST, "metaug-only-oucl": FAST, "metaug-only-mag": FAST,
    "simclr": FAST | {"temperature": 0.2}, "dacl": FAST | {"temperature": 0.2},
    "moco": CENTRED, "infomin": CENTRED | {"jigsaw_weight": 0.2}, "looc": CENTRED, "byol": {"projector_norm": True},
    "nnclr": {"temperature": 0.2}, "metaug-nnclr": {"temperature": 0.2},
    "swav": {"projector_norm": True, "sinkhorn_epsilon": 0.005}, "wmse": {"feature_dim": 32},
    "cpc": {"feature_dim": 64, "cpc_grid": 3, "cpc_skip": 0}, "dim": {"dim_bound": "infonce"},
    "nat": {"feature_dim": 32, "nat_every": 1}, "bigan": {"feature_dim": 16, "lr": 2e-3},
}  # fmt: skip
RGB: dict[str, Any] = {"views": ("RGB",), "crop_scale": (0.4, 1.0)}
ON_SHAPES: dict[str, dict[str, Any]] = {
    "dacl": {"independent": True, "crop_scale": (1.0, 1.0)}, "infomin": {"randaugment": 0.0}, "nat": {"views": ("Sobel",)},
    "bigan": {"views": ("Sobel",)}, "cpc": RGB | {"crop_scale": (0.7, 1.0), "jitter": 1.0, "grey": 0.5},
    "looc": RGB | {"crop_scale": (0.2, 1.0), "rotation": 20.0, "jitter": 0.5, "grey": 0.2, "looc_held": ("flip", "crop")},
}  # fmt: skip
SLOW = ("nnclr", "metaug-nnclr", "swav", "looc", "nat", "splitbrain", "wmse")
LONGER = dict.fromkeys(SLOW, 3) | {"bigan": 24}  # times the epochs, on `shapes`


def config_of(method: str, seed: int, args: argparse.Namespace) -> Config:
    """The run of one method and seed. On `shapes` the views and augmentation are shared, unless a method has its own."""
    base = method.split("+")[0]
    views = {"dataset": "folder", "data_dir": args.folder} if args.folder else SHARED | ON_SHAPES.get(base, {})
    epochs = args.epochs * (1 if args.folder else LONGER.get(base, 1))
    return preset("quick", method=method, seed=seed, runs_dir=args.runs.resolve(), train_images=args.images,
                  **{**BUDGET, "epochs": epochs, **OWN.get(base, {}), **views})  # fmt: skip


def measured(config: Config) -> list[dict[str, Any]]:
    """Rows of a finished run: its encoder untrained and trained, and what a pass over the images took."""
    run = store.request(config)
    budget = {"epochs": config.epochs, "seconds_per_epoch": results.machine(run)["seconds"] / config.epochs}
    table = evaluate(run, measures=MEASURES, representations=results.DEFAULT).reset_index()
    return table.assign(views=", ".join(config.views), **budget).to_dict("records")


def shown(values: pd.Series) -> str:
    """Mean and 95 % t-interval in percent."""
    mean, half = interval(values.tolist())
    return f"{100 * mean:.1f}" + ("" if half != half else f" ± {100 * half:.1f}")


def table(rows: pd.DataFrame) -> str:
    """The markdown table: a line for each method, its floor beside it."""
    heads = ["method", "views", "epochs", "s/epoch", "probe untrained", "trained", "gain, points by seed", "kNN untrained",
             "kNN trained", "learns"]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for method, group in rows.groupby("method", sort=False):
        by = {name: part.set_index("seed") for name, part in group.groupby("representation")}
        gains = 100 * (by["trained"].probe_paper - by["untrained"].probe_paper)
        first, seconds = group.iloc[0], group.seconds_per_epoch.median()
        cells = [METHODS[method].description.title, first.views, first.epochs, f"{seconds:.1f}"]
        cells += [shown(by[name].probe_paper) for name in ("untrained", "trained")]
        cells += [", ".join(f"{g:.1f}" for g in gains), shown(by["untrained"].knn), shown(by["trained"].knn)]
        lines.append(f"| {' | '.join(map(str, cells))} | {'yes' if gains.min() >= MARGIN else 'no'} |")
    return "\n".join(lines)


def small(runs: pd.DataFrame) -> pd.DataFrame:
    """What the figure needs of a table of runs."""
    return runs.filter(items=["method", "seed", "epochs", "measure", "split", "accuracy", "untrained"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="?", help="folder that keeps the runs")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--images", type=int, default=2200)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--publish", action="store_true", help="put the figure into figures/")
    args = parser.parse_args()
    if args.runs is None:  # as `make benchmarks` calls it
        print("skipped: name a folder for the runs")
        return
    methods = args.methods.split(",")
    whole = set(methods) == set(METHODS)
    if args.publish and not whole:
        parser.error("--publish is of the whole table, without --methods")
    configs = [config_of(method, seed, args) for seed in range(args.seeds) for method in methods]
    runs = made(configs, MEASURES)
    failures = runs["failure"].dropna()
    if len(failures):
        parser.exit(1, f"{len(failures)} of {len(configs)} runs failed, the first: {failures.iloc[0]}\n")
    rows = [row for config in configs for row in measured(config)]
    print(
        f"n = {args.seeds} seed(s), 95 % t-intervals, test accuracy in %; learns: at least {MARGIN:g} points in each seed"
    )
    print(table(pd.DataFrame(rows)))
    kind = "folder" if args.folder else "shapes"  # where images and runs lie is nobody else's business
    asked = {name: value for name, value in vars(args).items() if name not in ("runs", "folder", "publish")}
    if whole:  # before the figure: the file says whether the commit was all there was
        write(
            f"all_methods-{kind}",
            "all_methods.py RUNS" + " --folder FOLDER" * bool(args.folder),
            asked,
            "cpu",
            rows=rows,
        )
    if args.publish:
        gallery.publish(
            f"09-all-methods-{kind}", pd.concat([small(paper_figures.measured(runs, name)) for name in MEASURES]), runs
        )


if __name__ == "__main__":
    main()
