"""Finished runs as one tidy table, and what it says over seeds: the step from a store of runs to a figure.

configs = [preset("quick", delta=delta, seed=seed) for delta in (1e-5, 0.1) for seed in range(3)]
rows = read_table(configs)                      # a row for each run, trained or not
summarize(rows, "delta", "knn")                 # mean, half_width, n
compare_paired(rows, "delta", 1e-5, "knn")      # differences over shared seeds
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pandas as pd

from metaug_core import methods
from metaug_core.config import NOT_IDENTITY, Config
from metaug_core.errors import MetaugError, suggestion
from metaug_core.evaluation import representations
from metaug_core.evaluation.probes import DEFAULT_MEASURES, LABEL_FREE, MEASURES
from metaug_core.evaluation.representations import AUGMENTED, REPRESENTATIONS, interval
from metaug_core.runs import files, store
from metaug_core.runs.files import StoreError
from metaug_core.runs.store import Run
from metaug_workbook.results import paper_values

Requests = Sequence[Config | Run]
PREFIX = {"raw pixels": "raw_", "untrained": "untrained_", "trained": "", AUGMENTED: "augmented_"}
DEFAULT = REPRESENTATIONS[1:]  # raw pixels cost three times as much as the two others, and are the same in every run
# Columns of every table, empty where no run has them.
ACCURACIES = [f"{prefix}{measure}" for prefix in PREFIX.values() for measure in (*MEASURES, *LABEL_FREE)]
OF_MAG = ["augmented_similarity", "augmented_gradient_share"]
SESSION = ["device", "eager_because", "processor", "commit", "started"]  # columns that come from the last session
# Columns that differ between two machines that compute the same results.
MACHINE = ["seconds", "images_per_second", *SESSION, "uncommitted_changes", "sessions"]


# --- from runs to a table
def read_row(run: Run, split: str = "test") -> dict[str, Any]:
    """A run as a row. `state` is finished, missing, or with a sentence in `failure` failed or (a file of a finished run) damaged.

    Every setting that can decide a result is a column, also one that this method does not use; a list as text, `L,ab`. Accuracies
    in [0, 1] as far as they are evaluated (`MEASURES`): probe_plain, knn and so on of the trained encoder, untrained_knn, raw_knn
    (pixels), augmented_knn (z and z~); rankme alike, where it was asked for; draws: of the random crops of probe_paper. Metrics of
    training by their names (effective_rank, augmented_gradient_share, loss_original, knn_val): means over the last epoch's logged
    steps. The machine: see `read_machine`.
    """
    settings = run.config.model_dump(mode="json", exclude=NOT_IDENTITY)
    state = "finished" if run.finished else "failed" if run.failure else "missing"
    row = {"run": run.path.name, "state": state, "failure": None if run.finished else run.failure}
    row |= {name: ",".join(map(str, v)) if isinstance(v, list) else v for name, v in settings.items()}
    if not run.finished:
        return row
    try:
        return row | read_accuracies(run, split) | average_last_epoch(run) | read_machine(run)
    except StoreError as error:
        return row | {"state": "damaged", "failure": str(error)}


def read_accuracies(run: Run, split: str) -> dict[str, Any]:
    """Accuracies and rankme as far as they are evaluated, and on how many images."""
    stored = run.evaluation(split)
    row = {
        f"{prefix}{measure}": stored.get(name, {}).get(measure)
        for name, prefix in PREFIX.items()
        for measure in (*MEASURES, *LABEL_FREE)
    }
    return row | {"split": split} | {name: stored.get("trained", {}).get(name) for name in ("n_eval", "draws")}


def average_last_epoch(run: Run) -> dict[str, float]:
    """Means over the last epoch's logged rows; step, epoch and lr are left out."""
    metrics = run.metrics
    if metrics.empty:
        return {}
    last = metrics[metrics["epoch"] > run.config.epochs - 1].drop(columns=["step", "epoch", "lr"], errors="ignore")
    return last.mean().dropna().to_dict()


def read_machine(run: Run) -> dict[str, Any]:
    """On what the run was trained and how fast.

    seconds: wall time of training over all sessions, where trials side by side count in full each; images_per_second; device;
    commit; eager_because: why steps were not captured as CUDA graphs; engine: its version, None for a run from before
    there was one.
    """
    timing, sessions = run.timing.to_dict("records"), run.sessions
    last = sessions[-1] if sessions else {}
    seconds = [row["seconds"] for row in timing]
    ends = [now for now, after in pairwise([*seconds, -1]) if after < now]  # a session's clock starts at 0
    return {
        "seconds": sum(ends),
        "images_per_second": timing[-1]["images_per_second"] if timing else float("nan"),
        **{name: last.get(name) for name in SESSION},
        "uncommitted_changes": any(session.get("uncommitted_changes") for session in sessions),
        "sessions": len(sessions),
        "engine": last.get("engine"),
        "torch": last.get("versions", {}).get("torch"),
    }


def find_run(request: Config | Run) -> Run:
    """The run of a config, on disk or not; a run as it is."""
    return store.request(request) if isinstance(request, Config) else request


def find_seeds(run: Run) -> list[Run]:
    """The finished runs in the folder of this one that differ from it in the seed alone, one of each seed, itself among them (also
    unfinished), in the order of seeds. Runs of another version of the engine, or of other code of the user's own, differ."""

    def identify(one: Run) -> tuple[Any, ...]:
        sessions = one.sessions
        engine = sessions[-1].get("engine") if sessions else None
        return one.config.identity() | {"seed": None}, engine, one.current or not one.config.own_entries()

    wanted, seeds = identify(run), {run.config.seed: run}
    for other in store.list_runs(run.path.resolve().parent):
        with suppress(MetaugError):  # a damaged record: it says so where it is asked for
            if other.finished and identify(other) == wanted:
                seeds.setdefault(other.config.seed, other)
    return [seeds[seed] for seed in sorted(seeds)]


def read_table(requests: Requests, split: str = "test", failures: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A row for each config or run, in the order of requests, done or not: `state` says which, and `list_missing` lists them. What
    the rows lack of `ACCURACIES` and `OF_MAG` is NaN.

    failures: sentences by run name, of runs that failed without leaving a record in their folder (missing data).
    """
    rows = []
    for run in map(find_run, requests):
        failure = (failures or {}).get(run.path.name)
        rows.append(read_row(run, split) | ({"state": "failed", "failure": failure} if failure else {}))
    table = pd.DataFrame(rows)
    return table.assign(**{name: float("nan") for name in [*ACCURACIES, *OF_MAG] if name not in table})


# --- what is still to be done
@dataclass(frozen=True)
class Wanted:
    """What is to be measured of every run. Raises MetaugError for an unknown measure or representation."""

    measures: tuple[str, ...]
    representations: tuple[str, ...]
    augmented: bool
    split: str

    def __post_init__(self) -> None:
        representations.refuse_unknown(self.measures, self.representations)

    def list_arguments(self, run: Run) -> dict[str, Any]:
        """Arguments of `evaluate`; augmented features only where the method has a MAG."""
        has_mag = self.augmented and methods.build(run.config).mag() is not None
        arguments = {"measures": self.measures, "representations": self.representations, "split": self.split}
        return arguments | {"augmented": has_mag}

    def is_lacking(self, run: Run) -> bool:
        """Whether the run has to be trained or evaluated for this; so does one with a damaged evaluation, which says so."""
        if not run.finished:
            return True
        names = self.representations + (AUGMENTED,) * self.list_arguments(run)["augmented"]
        try:
            row = read_accuracies(run, self.split)
        except StoreError:
            return True
        return any(row[f"{PREFIX[name]}{measure}"] is None for name in names for measure in self.measures)


def list_missing(
    requests: Requests,
    measures: Sequence[str] = DEFAULT_MEASURES,
    representations: Sequence[str] = DEFAULT,
    augmented: bool = False,
    retry: bool = False,
    split: str = "test",
) -> list[Run]:
    """Each run once that is still to be trained or evaluated; one that diverged only with retry."""
    runs = {run.path: run for run in map(find_run, requests)}.values()
    wanted = Wanted(tuple(measures), tuple(representations), augmented, split)
    return [run for run in runs if (retry or not run.failure) and wanted.is_lacking(run)]


# --- what a table says over seeds
def summarize(table: pd.DataFrame, by: str | Sequence[str], measure: str) -> pd.DataFrame:
    """Mean of a measure and the half-width of its 95 % t-interval over the rows that share `by`: by, mean, half_width, n.

    Rows without the measure (missing, failed) do not count. half_width is NaN for n = 1. MetaugError for an unknown column.
    """
    by = [by] if isinstance(by, str) else list(by)
    check_columns(table, [*by, measure])
    estimates = []
    for key, rows in table.groupby(by, sort=False, dropna=False):
        values = rows[measure].dropna().tolist()
        estimates.append((*cast(tuple, key), *interval(values), len(values)))
    return pd.DataFrame(estimates, columns=pd.Index([*by, "mean", "half_width", "n"]))


def format_estimate(
    mean: float, half_width: float, n: float, scale: float = 100, places: int = 1, sign: str = ""
) -> str:
    """A row of `summarize` as one writes it: `38.5 ± 1.2 (n = 3)`, without the interval for n = 1, `–` for none. scale: 100 for
    shares in percent; sign: `+` for differences."""
    if not n:
        return "–"
    half = "" if math.isnan(half_width) else f" ± {scale * half_width:.{places}f}"
    return f"{round(scale * mean, places) + 0.0:{sign}.{places}f}{half} (n = {n:.0f})"  # + 0.0: no -0.0


def format_over_seeds(summary: pd.DataFrame) -> pd.DataFrame:
    """`representations.over_seeds` for a reader: a row for each representation, a column for each measure, in percent
    (`format_estimate`)."""
    cells = [format_estimate(row["mean"], row["half_width"], row["n"]) for row in summary.to_dict("records")]
    wide = summary.assign(cell=cells).pivot(index="representation", columns="measure", values="cell")
    order = [list(dict.fromkeys(summary[name])) for name in ("representation", "measure")]
    return wide.reindex(index=order[0], columns=order[1]).rename(columns=LABELS).rename_axis(columns=None)


def format_number(value: Any, digits: int = 4) -> str:
    """A cell of a table as one writes it: `0.573`, `1e-13`, `1,998`, parts of a tuple with commas, `–` for what is missing."""
    if isinstance(value, tuple):
        return ", ".join(format_number(part, digits) for part in value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return re.sub(r"e([+-])0*(\d)", lambda match: f"e{match[1].strip('+')}{match[2]}", f"{value:,.{digits}g}")
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def format_column(column: pd.Series, digits: int = 4) -> list[str]:
    """The cells of a column (`format_number`), with as many places after the point in each as the numbers need, if that is four at
    most."""
    numbers = [value for value in column.tolist() if isinstance(value, float) and math.isfinite(value)]
    places = next((n for n in range(5) if all(round(value, n) == value for value in numbers)), None)

    def write(value: Any) -> str:
        if places is None or not isinstance(value, float) or not math.isfinite(value):
            return format_number(value, digits)
        return f"{value:,.{places}f}"

    return [write(value) for value in column.tolist()]


LABELS = {  # of columns that are not settings, for a reader
    "accuracy": "accuracy (%)", "untrained": "untrained (%)", "augmented_similarity": "d(z, z~)", "half_width": "±",
    "probe_paper": "linear probe (random crops)", "probe_plain": "linear probe (plain images)",
    "probe_fast": "linear probe (fast)", "knn": "kNN", "milliseconds": "ms", "times_plain": "times plain",
    "gflop": "GFLOP", "flops_plain": "FLOP, times plain", "batch_size": "batch size",
}  # fmt: skip


def format_table(table: pd.DataFrame, digits: int = 4) -> pd.DataFrame:
    """A table for a reader: text in every cell (`format_number`), columns by `LABELS`, methods as the paper prints them."""

    def name(label: Any, level: Any) -> str:
        text = format_number(label, digits).replace("\n", " ")
        return paper_values.print_name(text) if level == "method" else LABELS.get(text, text)

    def name_all(index: Any) -> Any:
        levels = [LABELS.get(level, level) for level in index.names]
        labels = [tuple(map(name, key if index.nlevels > 1 else (key,), index.names)) for key in index]
        return pd.MultiIndex.from_tuples(labels, names=levels) if index.nlevels > 1 else pd.Index(
            [label for (label,) in labels], name=levels[0])  # fmt: skip

    cells = {number: format_column(table.iloc[:, number], digits) for number in range(table.shape[1])}
    shown = pd.DataFrame(cells, table.index, dtype=object)
    return shown.set_axis(name_all(table.index)).set_axis(name_all(table.columns), axis=1)


def compare_paired(
    table: pd.DataFrame, by: str, reference: Any, measure: str, shared: Sequence[str] = ("seed",)
) -> pd.DataFrame:
    """Differences of a measure from the rows where `by` is reference, over the seeds that both have: by, mean, half_width, n.

    The mean of the differences with its 95 % t-interval, which chance that the seeds share does not widen. shared: the columns that
    must agree in a pair. MetaugError for an unknown column or reference, and for two rows where there should be one.
    """
    check_columns(table, [by, measure, *shared])
    values: dict[Any, dict[Any, float]] = {}  # value of by -> what pairs share -> measure
    for row in table.dropna(subset=[measure]).to_dict("records"):
        pair = tuple(row[name] for name in shared)
        if pair in values.setdefault(row[by], {}):
            raise MetaugError(f"paired: two rows with {by} = {row[by]} and {', '.join(shared)} = {pair}; select first")
        values[row[by]][pair] = row[measure]
    if reference not in values:
        raise MetaugError(f"paired: no row has {by} = {reference!r} and a {measure}")
    base = values.pop(reference)
    estimates = []
    for value, own in values.items():
        differences = [own[pair] - base[pair] for pair in base if pair in own]
        estimates.append((value, *interval(differences), len(differences)))
    return pd.DataFrame(estimates, columns=pd.Index([by, "mean", "half_width", "n"]))


def check_columns(table: pd.DataFrame, columns: Iterable[str]) -> None:
    """Raises MetaugError for the first column that the table does not have."""
    for name in columns:
        if name not in table:
            raise MetaugError(f"the table has no column {name!r}{suggestion(name, table.columns)}")


# --- to the disk and back
def save(table: pd.DataFrame, path: Path) -> None:
    """Write path.parquet and path.csv, each whole or not at all. Raises StoreError (full disk, no permission)."""
    files.write(path.with_name(f"{path.name}.parquet"), table.to_parquet(index=False))
    files.write(path.with_name(f"{path.name}.csv"), table.to_csv(index=False).encode())


def load(path: Path) -> pd.DataFrame:
    """What `save` wrote: path.parquet, or path.csv if only that is there. Raises StoreError."""
    for kind, read in (("parquet", pd.read_parquet), ("csv", pd.read_csv)):
        file = path.with_name(f"{path.name}.{kind}")
        if file.exists():
            try:
                return read(file)
            except (OSError, ValueError) as error:
                raise StoreError(f"cannot read {file}: {error}") from None
    raise StoreError(f"there is no table {path}.parquet or {path}.csv")
