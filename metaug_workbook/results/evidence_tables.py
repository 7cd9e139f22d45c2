"""The tables of the evidence, from which every figure, sentence and verdict is drawn.

    figures/data/NAME.csv           a row for each run: arm and seed, settings, accuracies, machine, commit
    figures/data/NAME-epochs.csv    kNN on validation images as training goes on
    figures/data/NAME-images.npz    which test images the linear probe classifies rightly, packed bits by row

Arms are compared within one machine, one precision and one version of the engine (`MACHINE`), never across. A seed is done when one
machine has all arms of it. What a run is made of stands in its row, so that a table goes on without the folders of earlier runs.
"""

import io
import itertools
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from metaug_core.config import HOME, Config
from metaug_core.errors import MetaugError
from metaug_core.evaluation.representations import interval
from metaug_core.runs import environment, files
from metaug_core.runs.files import StoreError
from metaug_core.runs.store import Run
from metaug_core.runtime.device import pick_device
from metaug_workbook.results import tables
from metaug_workbook.results.evidence import EXPERIMENTS, Experiment, Table
from metaug_workbook.results.spread import estimate_sampling

FOLDER = HOME / "figures" / "data"
MEASURE, MEASURES = "probe_plain", ("probe_plain", "knn")
MACHINE = ["processor", "device", "precision", "torch", "engine"]
# Settings that every table shows, also where all arms have the same.
SETTINGS = ["method", "dataset", "encoder", "views", "width", "image_size", "train_images", "epochs", "batch_size", "lr",
            "temperature", "oucl", "beta", "gamma", "phi_dec", "delta", "alpha", "margin"]  # fmt: skip
FLOOR = [
    "dataset",
    "encoder",
    "views",
    "width",
    "image_size",
    "seed",
    *MACHINE,
]  # equal where an untrained encoder is the same
ACCURACIES = ["accuracy", "untrained", "measure", "split", "n_eval", "knn", "untrained_knn", "augmented_accuracy"]
METRICS = ["positive_similarity", "negative_similarity", "augmented_similarity", "augmented_gradient_share"]
ORIGIN = ["run", "commit", "uncommitted_changes", "seconds", "failure"]


Cell = tuple[str, str]  # an arm and a column


class WaitingError(MetaugError):
    """The arms of an experiment are not chosen yet."""


def find_experiment(name: str, folder: Path = FOLDER) -> Experiment:
    """An experiment by name, with the arms that are chosen from another's table. Raises MetaugError for an unknown name, and
    WaitingError while that table is not complete."""
    experiment = EXPERIMENTS[name]
    if experiment.chosen_from is None:
        return experiment
    assert experiment.choose is not None
    waits = WaitingError(f"{name} waits for {experiment.chosen_from}, from which its arms are chosen")
    try:
        parent = find_experiment(experiment.chosen_from, folder)
    except WaitingError:
        raise waits from None
    table = select_seeds(read(experiment.chosen_from, folder))
    arms = table.groupby("seed")["arm"].nunique()
    if int((arms == len(parent.arms)).sum()) < parent.seeds:
        raise waits
    return replace(experiment, arms=experiment.choose(parent, table))


# --- what is asked of an experiment here
@dataclass(frozen=True)
class Plan:
    """An experiment with the configs of its arms and seeds, and where its tables are."""

    name: str
    experiment: Experiment
    configs: Mapping[tuple[str, int], Config]
    folder: Path = FOLDER

    @cached_property
    def digests(self) -> dict[tuple[str, int], str]:
        return {key: digest(config) for key, config in self.configs.items()}

    @cached_property
    def machine(self) -> dict[str, Any]:
        """`MACHINE` of what is trained here and now."""
        return describe_machine(next(iter(self.configs.values())))

    def list_missing(self, table: Table) -> list[tuple[str, int]]:
        """The arms and seeds that have to be trained here: of each seed that no machine has whole, those that this one lacks."""
        table = self.drop_stale(table)
        here = table[table[MACHINE].astype(str).eq(pd.Series(self.machine).astype(str)).all(axis=1)]
        there = set(zip(here["arm"], here["seed"], strict=True))
        counts = table.groupby(["seed", *MACHINE])["arm"].nunique()
        whole = {key[0] for key, count in counts.items() if count == len(self.experiment.arms)}
        return [(arm, seed) for arm, seed in self.configs if seed not in whole and (arm, seed) not in there]

    def drop_stale(self, table: Table) -> Table:
        """The table without rows of these images whose arm has other settings by now, or is gone."""
        if table.empty:
            return table
        dataset = next(iter(self.configs.values())).dataset
        stale = [
            row.dataset == dataset
            and (
                row.arm not in self.experiment.arms
                or self.digests.get((row.arm, row.seed), row.settings) != row.settings
            )
            for row in table.itertuples()
        ]
        return table[[not one for one in stale]]

    def record(self, runs: Mapping[tuple[str, int], Run]) -> None:
        """Write runs that are done, by arm and seed, into the tables. Raises StoreError."""
        rows = {key: describe_run(key[0], run, self.experiment) for key, run in runs.items()}
        before = self.drop_stale(read(self.name, self.folder))
        table = merge(before, pd.DataFrame([*rows.values()]), ["row"])
        table = share_floors(table) if not self.experiment.own_floors else table
        arms = list(self.experiment.arms)
        order = table["seed"].astype(int) * (len(arms) + 1) + table["arm"].map(arms.index)
        table = table.assign(order=order).sort_values(["order", *MACHINE]).drop(columns="order")
        readings = [read_epochs(run, rows[key]) for key, run in runs.items()]
        epochs = merge(read_readings(self.name, self.folder), pd.concat(readings), ["row", "epoch"])
        epochs = epochs[epochs["row"].isin(table["row"])].sort_values(["seed", "arm", "row", "epoch"])
        images = read_bits(self.name, self.folder) | {
            rows[key]["row"]: np.packbits(run.correct(self.experiment.split)[MEASURE].numpy() > 0.5)
            for key, run in runs.items()
            if MEASURE in run.correct(self.experiment.split)
        }
        write_bits(self.name, self.folder, {row: images[row] for row in table["row"] if row in images})
        for path, rows_of_file in ((f"{self.name}-epochs.csv", epochs), (f"{self.name}.csv", table)):
            files.write(self.folder / path, format_csv(rows_of_file))


def digest(config: Config) -> str:
    """A hash of the settings that decide a result, without the engine's version and the place of the images."""
    settings = {name: value for name, value in config.identity().items() if name not in ("engine", "data_dir")}
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def describe_machine(config: Config) -> dict[str, Any]:
    here = environment.environment(pick_device(config.device))
    known = {"precision": config.precision, "torch": here["versions"]["torch"]}
    return {name: known.get(name, here.get(name)) for name in MACHINE}


# --- rows
def list_columns(experiment: Experiment) -> list[str]:
    """The columns of an experiment's table."""
    varied = [name for changes in experiment.arms.values() for name in changes]
    settings = [name for name in dict.fromkeys([*SETTINGS, *experiment.settings, *varied]) if name not in MACHINE]
    return ["row", "arm", "seed", *settings, *ACCURACIES, *METRICS, *MACHINE, *ORIGIN, "settings"]


def describe_run(arm: str, run: Run, experiment: Experiment) -> dict[str, Any]:
    """The row of a run that is finished and evaluated, or has failed. `row` names it among those of all machines."""
    row = tables.read_row(run, experiment.split)
    row |= {"arm": arm, "measure": MEASURE, "split": experiment.split, "settings": digest(run.config)}
    for name, measure in (("accuracy", ""), ("untrained", "untrained_"), ("augmented_accuracy", "augmented_")):
        row[name] = row.get(f"{measure}{MEASURE}")
    row |= {} if run.finished else describe_machine(run.config)
    if run.failure:
        row["failure"] = run.failure.partition(";")[0]  # what follows depends on when the run was stopped before
    text = json.dumps([str(row[name]) for name in ("arm", "seed", "settings", *MACHINE)])
    row["row"] = sha256(text.encode()).hexdigest()[:10]
    return {name: row.get(name) for name in list_columns(experiment)}


def read_epochs(run: Run, row: Mapping[str, Any]) -> pd.DataFrame:
    """The kNN readings of a run on validation images: row, arm, seed, epoch, knn_val."""
    metrics = run.metrics
    readings = metrics.dropna(subset=["knn_val"])[["epoch", "knn_val"]] if "knn_val" in metrics else pd.DataFrame()
    return readings.assign(**{name: row[name] for name in ("row", "arm", "seed")})


def share_floors(table: Table) -> Table:
    """The untrained accuracy that one run of each seed has measured in the rows of all that start from the same encoder."""
    groups = table.groupby(FLOOR, dropna=False)
    return table.assign(**{name: groups[name].transform("first") for name in ("untrained", "untrained_knn")})


def merge(old: Table, new: Table, key: list[str]) -> Table:
    """Both tables, with the new row where both have one of the same key."""
    if old.empty or new.empty:
        return new if old.empty else old
    # As objects: else a bool beside a missing value becomes a number, or stays one, by the order in which rows came.
    return pd.concat([old.astype(object), new.astype(object)]).drop_duplicates(key, keep="last")


# --- files
def read(name: str, folder: Path = FOLDER) -> pd.DataFrame:
    """The table of an experiment; without rows if there is none yet. Raises StoreError."""
    if (folder / f"{name}.csv").exists():
        table = read_csv(folder / f"{name}.csv")
        if is_evidence(table):
            return table
    return pd.DataFrame(columns=pd.Index(list_columns(EXPERIMENTS[name])))


def format_csv(table: Table) -> bytes:
    """The text of a table: a value is written the same whatever else its column has held before."""
    return table.astype(object).convert_dtypes().to_csv(index=False).encode()


def read_readings(name: str, folder: Path = FOLDER) -> pd.DataFrame:
    """The kNN readings of an experiment: row, arm, seed, epoch, knn_val. Raises StoreError."""
    file = folder / f"{name}-epochs.csv"
    return (
        read_csv(file) if file.exists() else pd.DataFrame(columns=pd.Index(["epoch", "knn_val", "row", "arm", "seed"]))
    )


def read_csv(file: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(file, dtype={"row": str, "settings": str, "precision": str, "torch": str})
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {file}: {error}") from None


def read_bits(name: str, folder: Path = FOLDER) -> dict[str, np.ndarray]:
    """Packed bits by row. Raises StoreError."""
    file = folder / f"{name}-images.npz"
    try:
        with np.load(file) as stored:
            return dict(stored)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise StoreError(f"cannot read {file}: {error}") from None


def write_bits(name: str, folder: Path, bits: Mapping[str, np.ndarray]) -> None:
    buffer, arrays = io.BytesIO(), dict(bits)
    np.savez_compressed(buffer, **cast(Any, arrays))
    files.write(folder / f"{name}-images.npz", buffer.getvalue())


# --- what a table says
def is_evidence(table: Table) -> bool:
    """Whether a table of figures/data is that of an experiment; those of before the evidence, and of notebooks, are not."""
    return {"row", "arm", "settings"} <= {*table.columns}


def select_seeds(table: Table) -> Table:
    """The rows of one machine for each seed: of the one that has most arms, the first of several. Failed runs are left out."""
    rows = table[table["accuracy"].notna()]
    if rows.empty:
        return rows
    machines = rows[MACHINE].astype(str).agg(" ".join, axis=1)
    counts = rows.assign(machine=machines).groupby(["seed", "machine"], sort=False)["arm"].nunique()
    best = counts[counts == counts.groupby("seed").transform("max")].reset_index().drop_duplicates("seed")
    return rows[(rows["seed"].astype(str) + machines).isin(best["seed"].astype(str) + best["machine"])]


@dataclass(frozen=True)
class Difference:
    """A difference over n seeds, in points.

    half: of its 95 % t-interval over the seeds, on these test images. half_images: of its 95 % interval over test images, with
    these seeds, where each image counts by its mean over them. NaN for what cannot be known: n < 2, or no stored images.
    """

    mean: float
    half: float
    n: int
    half_images: float = float("nan")

    @property
    def ends(self) -> tuple[float, float]:
        """Of the interval over the seeds."""
        return self.mean - self.half, self.mean + self.half

    def count_seeds(self, half: float) -> int | None:
        """How many seeds would give ± half at this spread, at least the present ones; None for n < 2."""
        from scipy.special import stdtrit  # slow to import, and only this needs it

        if self.n < 2:
            return None
        deviation = self.half * self.n**0.5 / stdtrit(self.n - 1, 0.975)
        return next(
            n for n in itertools.count(self.n) if stdtrit(n - 1, 0.975) * deviation / n**0.5 <= half or n > 9999
        )


def compare(table: Table, plus: Sequence[Cell], minus: Sequence[Cell], bits: Mapping[str, np.ndarray]) -> Difference:
    """The sum of `plus` less that of `minus`, over the seeds of which one machine has all of them. A cell is an arm and a column of
    accuracies in [0, 1]. bits: as `read_bits`, for the interval over images, which only `accuracy` has."""
    rows = select_seeds(table)
    cells = [*plus, *minus]
    rows = rows[rows["arm"].isin([arm for arm, _ in cells])]
    by_seed = rows.set_index(["seed", "arm"])
    signed = [(1, cell) for cell in plus] + [(-1, cell) for cell in minus]
    terms = [sign * by_seed[column].unstack("arm").reindex(columns=[arm])[arm] for sign, (arm, column) in signed]
    differences = 100 * pd.concat(terms, axis=1).sum(axis=1, skipna=False).dropna()
    if differences.empty:
        return Difference(float("nan"), float("nan"), 0)
    mean, half = interval(differences.tolist())
    shares = share_correct(rows[rows["seed"].isin(differences.index)], bits)
    if any(column != "accuracy" or arm not in shares for arm, column in cells):
        return Difference(mean, half, len(differences))
    each: Any = sum(sign * shares[arm] for sign, (arm, _) in signed)
    return Difference(mean, half, len(differences), 100 * 1.96 * float(each.std(ddof=1) / len(each) ** 0.5))


def share_correct(rows: Table, bits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In which share of the seeds of each arm each test image is classified rightly, (N,); of arms whose rows all have bits."""
    return {
        str(arm): np.mean([unpack(bits[row], n) for row, n in zip(group["row"], group["n_eval"], strict=True)], 0)
        for arm, group in rows.groupby("arm")
        if all(row in bits for row in group["row"])
    }


def unpack(bits: np.ndarray, count: float) -> np.ndarray:
    return np.unpackbits(bits, count=int(count))


def split_spread(table: Table, arm: str, bits: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Standard deviation of an arm's accuracy between seeds, and what it would be if each image were right by chance alone, with
    its own probability: the part that the test set's size explains (Jordan 2023). In points; NaN where it cannot be known."""
    rows = select_seeds(table).query("arm == @arm")
    shares, n = share_correct(rows, bits), len(rows)
    if arm not in shares or n < 2:
        return float("nan"), float("nan")
    return 100 * float(rows["accuracy"].std()), 100 * estimate_sampling(shares[arm], n)
