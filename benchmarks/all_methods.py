"""Every row of the paper's tables at one small budget, beside its encoder untrained: on `shapes`, or on an image folder.

    python benchmarks/all_methods.py RUNS [--folder FOLDER] [--seeds 3] [--methods simclr,cmc] [--images 2200] [--epochs 8]
    python benchmarks/all_methods.py RUNS --protocol own|uniform --folder FOLDER [--seeds 3] ...
    python benchmarks/all_methods.py RUNS --choose wmse [--times 1,2,3]

RUNS keeps the runs: the same command finds the finished ones and goes on, as many at a time as there are cores, each on one thread,
so a run's seconds are those beside another. The table goes into benchmarks/results, and with --publish into the
figure. With --methods a part of it is shown; with --publish its rows then take the place of the stored ones of these methods.

On `shapes` methods see L and ab, which share only the object, but for the few of `ON_SHAPES`; on a folder each has its own views. A
row learns if its linear probe on plain images, of the test split, is LEARNS points above the same encoder untrained in every seed.
Each method has settings of its own, chosen on validation images of `shapes` (LOG.md): the table says what a method can learn at
about this budget, and its column `epochs` who was given more, on `shapes` only.

--protocol: nothing is chosen; each method has its authors' augmentation and optimiser (own), or all have the same (uniform:
section 4.1 of the paper), see `metaug_core.recipes`.

--choose says how many times the epochs a method needs on `shapes`, for `LONGER`: it trains with seeds of its own (`CHOICE_SEEDS`,
none of which is reported) on as many images as a run of the table, measures on as many validation images, and takes the fewest
epochs at which each seed learns. No test image is seen.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
from _results import FOLDER, write

from metaug_core import METHODS, Config, evaluate, preset
from metaug_core.evaluation.representations import interval
from metaug_core.methods import LATER
from metaug_core.runs import files, store
from metaug_workbook.jobs.runner import make_table
from metaug_workbook.plots import gallery, paper_figures
from metaug_workbook.plots.paper_figures import LEARNS
from metaug_workbook.results import tables

MEASURES = ("probe_plain", "knn")
ROWS = [name for name in METHODS if name not in LATER]  # those that came later: --methods
BUDGET: dict[str, Any] = {"feature_dim": 128, "head_hidden": 256, "predictor_hidden": 128, "queue_size": 512, "prototypes": 64,
                          "ema_momentum": 0.97, "dim_units": 256, "monitor_every": 2, "lr": 1e-3}  # fmt: skip
SHARED: dict[str, Any] = {
    "views": ("L", "ab"),
    "independent": False,
    "jitter": 0.0,
    "grey": 0.0,
    "crop_scale": (0.4, 1.0),
}
WHOLE_SKETCH: dict[str, Any] = {"batch_size": 64, "val_fraction": 0.1, "monitor_every": 10_000}  # of a protocol's runs
CENTRED: dict[str, Any] = {"head": "mlp-bn"}
FAST: dict[str, Any] = {"lr": 3e-3}
# What a method needs beside BUDGET: everywhere, and on `shapes`.
OWN: dict[str, dict[str, Any]] = {
    "cmc": FAST, "metaug": FAST, "metaug-only-oucl": FAST, "metaug-only-mag": FAST,
    "simclr": FAST | {"temperature": 0.2}, "dacl": FAST | {"temperature": 0.2, "crop_scale": (1.0, 1.0), "flip": 0.0},
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
SLOW = ("nnclr", "metaug-nnclr", "swav", "looc", "nat", "splitbrain")
LONGER = dict.fromkeys(SLOW, 3) | {"wmse": 2, "bigan": 24}  # times the epochs, on `shapes`
CHOICE_SEEDS = range(20, 25)  # for choosing only


def config_of(method: str, seed: int, args: argparse.Namespace, **changes: Any) -> Config:
    """The run of one method and seed, with changes. On `shapes` views and augmentation are shared, unless a method has its own."""
    base = method.split("+")[0]
    if args.protocol:
        values = {"dataset": "folder", "data_dir": args.folder, "train_images": args.images, "epochs": args.epochs}
        return preset("sketch", method=method, seed=seed, runs_dir=args.runs.resolve(), protocol=args.protocol,
                      **{**values, **WHOLE_SKETCH, **changes})  # fmt: skip
    views = {"dataset": "folder", "data_dir": args.folder} if args.folder else SHARED | ON_SHAPES.get(base, {})
    epochs = args.epochs * (1 if args.folder else LONGER.get(base, 1))
    return preset("quick", method=method, seed=seed, runs_dir=args.runs.resolve(),
                  **{"train_images": args.images, **BUDGET, "epochs": epochs, **OWN.get(base, {}), **views, **changes})  # fmt: skip


def choice_configs(method: str, args: argparse.Namespace) -> list[Config]:
    """The runs to choose a method's epochs by: as many training images as in the table, and as many validation images. Each on
    its own account of epochs, since the cosine schedule ends with the run."""
    usual = config_of(method, 0, args)
    images = 2 * round(args.images * (1 - usual.val_fraction))
    changes = {"train_images": images, "val_fraction": 0.5, "monitor_every": 10_000}
    return [config_of(method, seed, args, epochs=times * args.epochs, **changes)
            for times in args.times for seed in CHOICE_SEEDS]  # fmt: skip


def fewest_epochs(gains: pd.DataFrame) -> int:
    """The fewest epochs at which every seed gains LEARNS points; if there are none, those with the largest mean gain.

    gains: epochs, seed, gain in points on the validation split.
    """
    by_epochs = {int(str(epochs)): group["gain"] for epochs, group in gains.groupby("epochs")}
    enough = [epochs for epochs, gain in sorted(by_epochs.items()) if gain.min() >= LEARNS]
    return enough[0] if enough else max(by_epochs, key=lambda epochs: by_epochs[epochs].mean())


def choose(method: str, args: argparse.Namespace) -> None:
    """Choose how many times the epochs a method needs, print it and keep the readings."""
    configs = choice_configs(method, args)
    runs = paper_figures.select_measure(make_table(configs, MEASURES, split="val"), MEASURES[0])
    runs = runs.assign(gain=100 * (runs["accuracy"] - runs["untrained"]))
    for epochs, group in runs.groupby("epochs"):
        print(f"{epochs} epochs: gains {', '.join(f'{gain:.1f}' for gain in group['gain'])}")
    chosen = fewest_epochs(runs)
    print(f"{method}: {chosen} epochs, {chosen / args.epochs:g} times")
    columns = [
        "epochs",
        "seed",
        "split",
        "n_eval",
        "probe_plain",
        "untrained_probe_plain",
        "knn",
        "untrained_knn",
        "gain",
    ]
    rows = pd.DataFrame(runs, columns=columns)
    asked = {"choose": method, "times": ",".join(map(str, args.times)), "images": args.images, "epochs": args.epochs}
    write(
        f"all_methods-choice-{method}",
        "all_methods.py RUNS",
        asked,
        "cpu",
        chosen_epochs=chosen,
        rows=rows.to_dict("records"),
    )


def measured(config: Config) -> list[dict[str, Any]]:
    """Rows of a finished run: its encoder untrained and trained, and what a pass over the images took."""
    run = store.request(config)
    budget = {"epochs": config.epochs, "seconds_per_epoch": tables.read_machine(run)["seconds"] / config.epochs}
    table = evaluate(run, measures=MEASURES, representations=tables.DEFAULT).reset_index()
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
        gains = 100 * (by["trained"].probe_plain - by["untrained"].probe_plain)
        first, seconds = group.iloc[0], group.seconds_per_epoch.median()
        cells = [METHODS[method].description.title, first.views, first.epochs, f"{seconds:.1f}"]
        cells += [shown(by[name].probe_plain) for name in ("untrained", "trained")]
        cells += [", ".join(f"{g:.1f}" for g in gains), shown(by["untrained"].knn), shown(by["trained"].knn)]
        lines.append(f"| {' | '.join(map(str, cells))} | {'yes' if gains.min() >= LEARNS else 'no'} |")
    return "\n".join(lines)


def figure_table(runs: pd.DataFrame) -> pd.DataFrame:
    """What the figure needs of a table of runs."""
    return runs.filter(items=["method", "seed", "epochs", "measure", "split", "accuracy", "untrained"])


def kind_of(args: argparse.Namespace) -> str:
    """The name of a table: of its images, and of the protocol if there is one."""
    return "-".join(filter(None, ("folder" if args.folder else "shapes", args.protocol)))


def keep(rows: list[dict[str, Any]], methods: list[str], args: argparse.Namespace) -> None:
    """Write the rows, and the stored ones of other methods with the commands and machines that made them."""
    kind = kind_of(args)
    file, others = FOLDER / f"all_methods-{kind}.json", []
    if set(methods) != set(ROWS):
        stored = json.loads(file.read_text())
        rows = [row for row in stored["rows"] if row["method"] not in methods] + rows
        others = [{name: stored[name] for name in ("command", "machine")}, *stored.get("others", [])]
    asked = {name: vars(args)[name] for name in ("seeds", "methods", "images", "epochs")}
    script = "all_methods.py RUNS" + " --folder FOLDER" * bool(args.folder)  # where they lie is nobody else's business
    asked |= {"protocol": args.protocol} if args.protocol else {}
    write(file.stem, script, asked, "cpu", rows=rows, **({"others": others} if others else {}))


def publish(rows: pd.DataFrame, runs: pd.DataFrame, methods: list[str], kind: str) -> None:
    """Put the figure of these rows, and of the stored ones of other methods, into figures/. runs: where the rows are from."""
    name, kept = f"09-all-methods-{kind}", None
    if set(methods) != set(ROWS):
        stored = tables.load(gallery.FOLDER / "data" / name)
        rows = pd.concat([stored.query("method not in @methods"), rows])
        kept = files.read_json(gallery.FOLDER / f"{name}.json")["numbers"]
        mine = tuple(f"{kind}-{method}-conv-s" for method in methods)
        kept |= {"runs": [run for run in kept["runs"] if not run.startswith(mine)]}
    gallery.publish(name, rows, runs, earlier=kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="?", help="folder that keeps the runs")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default=",".join(ROWS))
    parser.add_argument("--images", type=int, default=2200)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument(
        "--protocol", choices=["own", "uniform"], help="what surrounds each method's loss; needs --folder"
    )
    parser.add_argument("--choose", metavar="METHOD", help="choose its epochs on validation images of `shapes`")
    parser.add_argument("--times", type=lambda text: [int(word) for word in text.split(",")], default=[1, 2, 3],
                        help="the epochs to choose from, as multiples of --epochs")  # fmt: skip
    parser.add_argument("--publish", action="store_true", help="put the figure into figures/")
    args = parser.parse_args()
    if args.runs is None:  # as `make benchmarks` calls it
        print("skipped: name a folder for the runs")
        return
    if args.protocol and not args.folder:
        parser.error("--protocol needs --folder")
    if args.choose:
        choose(args.choose, args)
        return
    methods = args.methods.split(",")
    if args.publish:
        gallery.refuse_changes()  # before hours of training, not after
    configs = [config_of(method, seed, args) for seed in range(args.seeds) for method in methods]
    runs = make_table(configs, MEASURES)
    failures = runs["failure"].dropna()
    if len(failures):
        parser.exit(1, f"{len(failures)} of {len(configs)} runs failed, the first: {failures.iloc[0]}\n")
    rows = [row for config in configs for row in measured(config)]
    print(
        f"n = {args.seeds} seed(s), 95 % t-intervals, test accuracy in %; learns: at least {LEARNS:g} points in each seed"
    )
    print(table(pd.DataFrame(rows)))
    small = pd.concat([figure_table(paper_figures.select_measure(runs, name)) for name in MEASURES])
    print(paper_figures.count_learners(small))
    if args.publish or set(methods) == set(ROWS):
        keep(rows, methods, args)
    if args.publish:
        publish(small, runs, methods, kind_of(args))


if __name__ == "__main__":
    main()
