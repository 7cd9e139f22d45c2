"""Does a MAG that trains help? MetAug's variants beside only OUCL and the untrained encoder, on an image folder or on `shapes`.

    python benchmarks/mag.py [FOLDER] [--experiments table choice copying heads preset] [--seeds 5] [--images 10000] [--epochs 4]
                                      [--device auto] [--processes 1] [--out FILE.csv]

FOLDER holds train/CLASS/* and test/CLASS/*; without one the images are those of `shapes`.

table      untrained, only OUCL, MetAug literal, scaled (both look-aheads, three deltas) and with a frozen MAG; on the test split
choice     quick's delta, look-ahead and alpha; on the validation split, with seeds of its own
copying    at which alpha / delta does R_sigma keep z~ from copying z? on the validation split
heads      the projection head under conv; on the validation split
preset     quick as it is, beside only OUCL; on the validation split

The seeds of a variant train side by side. A row of the CSV is a run: its accuracies in % and the last readings of its metrics.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pandas as pd
from _results import table

from metaug_core import evaluate, fit_trials, preset
from metaug_core.data import datasets
from metaug_core.evaluation.representations import interval, mag_moved
from metaug_core.training.loop import pick_device

METAUG = {"method": "metaug", "mag_objective": "scaled", "look_ahead_update": "optimiser", "alpha": 0.0}
ONLY = {"method": "metaug-only-oucl"}
TABLE: dict[str, dict[str, Any]] = {
    "only OUCL": ONLY,
    "literal, delta 1e-5": {
        "method": "metaug",
        "mag_objective": "literal",
        "look_ahead_update": "sgd",
        "delta": 1e-5,
        "alpha": 1e-13,
    },
    **{
        f"scaled, {update}, delta {delta:g}": METAUG | {"look_ahead_update": update, "delta": delta}
        for update in ("sgd", "optimiser")
        for delta in (0.01, 0.1, 1.0)
    },
    "frozen MAG, delta 0.1": METAUG | {"mag_lr": 0.0, "delta": 0.1},
    "frozen MAG, delta 1": METAUG | {"mag_lr": 0.0, "delta": 1.0},
}
CHOICE: dict[str, dict[str, Any]] = {
    "only OUCL": ONLY,
    **{
        f"delta {delta:g}, alpha/delta {ratio:g}": METAUG | {"delta": delta, "alpha": ratio * delta}
        for delta in (0.01, 0.03, 0.1, 0.3)
        for ratio in (0.0, 1.0)
    },
    "delta 0.1, ascending": METAUG | {"delta": 0.1, "mag_direction": "ascend"},
    "delta 0.1, loss of the originals": METAUG | {"delta": 0.1, "look_ahead_loss": "original"},
    "delta 0.1, minibatch before": METAUG | {"delta": 0.1, "look_ahead_batch": "previous"},
}
COPYING: dict[str, dict[str, Any]] = {
    f"{part}, alpha/delta {ratio:g}": METAUG | {"delta": 0.1, "alpha": 0.1 * ratio, "mag_gradient": part}
    for part in ("direct", "whole")
    for ratio in (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)
}
HEADS: dict[str, dict[str, Any]] = {
    f"{method}, head {head}": {"method": method, "head": head}
    for method in ("metaug-only-oucl", "cmc")
    for head in ("linear", "mlp", "mlp-bn", "alexnet")
}
PRESET: dict[str, dict[str, Any]] = {"only OUCL": ONLY, "quick": {"method": "metaug"}}
EXPERIMENTS = {  # variants, split, first seed
    "table": (TABLE, "test", 0),
    "choice": (CHOICE, "val", 20),
    "copying": (COPYING, "val", 20),
    "heads": (HEADS, "val", 20),
    "preset": (PRESET, "val", 20),
}
LAST = ("augmented_gradient_share", "mixed_gradient_share", "mag_update", "augmented_similarity", "loss_before", "loss_ahead",
        "mag_gradient_norm", "knn_val")  # fmt: skip
SHARES = ("augmented_gradient_share", "mixed_gradient_share")  # also as means over the whole run
RUN = (*(f"{key}_run" for key in SHARES), "mag_moved", "falls_early", "falls_late")
MEASURES = ["probe_plain", "knn"]
_splits: dict[str, Any] = {}


def rows(experiment: str, name: str, shared: dict[str, Any], seeds: list[int]) -> list[dict[str, Any]]:
    """Train and evaluate a variant with each seed: a row per run."""
    variants, split, first = EXPERIMENTS[experiment]
    configs = [preset("quick", **shared, **variants[name], seed=first + seed) for seed in seeds]
    device = pick_device(configs[0].device)
    if "loaded" not in _splits:  # the images are the same for every variant
        _splits["loaded"] = datasets.load(configs[0], device)
    splits = _splits["loaded"]
    runs = fit_trials(configs, lambda _: None, splits)
    found = []
    for config, run in zip(configs, runs, strict=True):
        wanted = ["untrained", "trained"] if variants[name] == ONLY else ["trained"]
        accuracies = evaluate(run, split, measures=MEASURES, representations=wanted, splits=splits, device=device)
        metrics = run.metrics
        last = {key: metrics[key].dropna().tail(5).mean() for key in LAST if key in metrics}
        for key in SHARES:
            if key in metrics:
                last[f"{key}_run"] = metrics[key].mean()
        if "mag_update" in metrics:
            last["mag_moved"] = mag_moved(run)
        if "loss_before" in metrics:
            falls = (metrics["loss_before"] - metrics["loss_ahead"]).dropna()
            last["falls_early"], last["falls_late"] = falls.head(5).mean(), falls.tail(5).mean()
        for representation in wanted:
            measured = {key: 100 * accuracies.loc[representation, key] for key in MEASURES}
            label = name if representation == "trained" else "untrained"
            found.append({"experiment": experiment, "variant": label, "seed": config.seed, **measured,
                          **(last if representation == "trained" else {}), "split": split, "device": device})  # fmt: skip
    return found


def train(experiments: list[str], shared: dict[str, Any], seeds: int, processes: int) -> Iterator[list[dict[str, Any]]]:
    """The rows of every variant, as they come."""
    jobs = [(one, name, shared, [*range(seeds)]) for one in experiments for name in EXPERIMENTS[one][0]]
    if processes == 1:
        yield from (rows(*job) for job in jobs)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(rows, *job) for job in jobs]):
            yield done.result()


def summary(found: pd.DataFrame) -> str:
    """Means and 95 % t-intervals over seeds, and the difference to only OUCL, paired by seed."""
    lines = []
    # In the order of their first rows.
    for experiment, variant in found[["experiment", "variant"]].drop_duplicates().itertuples(index=False):
        group = found[(found.experiment == experiment) & (found.variant == variant)]
        line: dict[str, Any] = {"experiment": experiment, "variant": variant, "n": len(group)}
        base = found[(found.experiment == experiment) & (found.variant == "only OUCL")].set_index("seed")
        for key in MEASURES:
            line[key] = "{:.2f} ± {:.2f}".format(*interval(group[key].tolist()))
            if len(base):
                paired = (group.set_index("seed")[key] - base[key]).dropna()
                line[f"{key} - OUCL"] = "{:+.2f} ± {:.2f}".format(*interval(paired.tolist()))
        others = [key for key in (*LAST, *RUN) if key in group]
        lines.append(line | {key: f"{group[key].mean():.3g}" for key in others})
    columns = {key: f"{{{key}}}" for line in lines for key in line}
    return table(lines, **columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="an image folder; without it: shapes")
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=["table"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("mag.csv"))
    args = parser.parse_args()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as runs:
        shared = {"train_images": args.images, "epochs": args.epochs, "device": args.device, "runs_dir": Path(runs)}
        if args.folder is not None:
            shared |= {"dataset": "folder", "data_dir": args.folder}
        for more in train(args.experiments, shared, args.seeds, args.processes):
            found += more
            pd.DataFrame(found).to_csv(args.out, index=False)
            print(
                more[-1]["experiment"], more[-1]["variant"], [round(row["probe_plain"], 1) for row in more], flush=True
            )
    print(summary(pd.DataFrame(found)))


if __name__ == "__main__":
    main()
