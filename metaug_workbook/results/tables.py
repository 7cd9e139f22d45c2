"""Finished runs as one tidy table, and what it says over seeds: the step from a store of runs to a figure.

configs = [preset("quick", delta=delta, seed=seed) for delta in (1e-5, 0.1) for seed in range(3)]
rows = table(configs)                           # as far as they are there; `making.made` makes the rest
summary(rows, "delta", "knn")                   # mean, half_width, n
paired(rows, "delta", 1e-5, "knn")              # differences over shared seeds
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pandas as pd

from metaug_core import methods
from metaug_core.config import NOT_IDENTITY, Config
from metaug_core.evaluation import representations
from metaug_core.evaluation.probes import MEASURES
from metaug_core.evaluation.representations import AUGMENTED, REPRESENTATIONS
from metaug_core.runs import store
from metaug_core.runs.store import Run
from metaug_workbook.results.statistics import load as load
from metaug_workbook.results.statistics import paired as paired
from metaug_workbook.results.statistics import save as save
from metaug_workbook.results.statistics import summary as summary

Requests = Sequence[Config | Run]
PREFIX = {"raw pixels": "raw_", "untrained": "untrained_", "trained": "", AUGMENTED: "augmented_"}
DEFAULT = REPRESENTATIONS[1:]  # raw pixels cost three times as much as the two others, and are the same in every run
# What differs between two machines that compute the same results.
MACHINE = [
    "seconds",
    "images_per_second",
    "device",
    "eager_because",
    "processor",
    "commit",
    "uncommitted_changes",
    "started",
    "sessions",
]


# --- runs -> table
def row(run: Run, split: str = "test") -> dict[str, Any]:
    """A run as a row. `state` is finished, failed (then `failure` is the sentence), or missing.

    Settings: all that decide a result, of this method's or of another's, under their names; a list as text, `L,ab`. Accuracies in
    [0, 1] as far as they are evaluated: probe_paper, probe_fast, knn of the trained encoder, untrained_knn and so on, raw_knn
    (pixels), augmented_knn (z and z~). Metrics of training by their names (effective_rank, augmented_gradient_share, loss_original,
    knn_val): means over the last epoch's logged steps. The machine (`MACHINE`): wall seconds of training over all sessions,
    images/s, device, commit; eager_because: why steps were not captured as CUDA graphs; engine: its version, None for a run from
    before there was one.
    """
    settings = run.config.model_dump(mode="json", exclude=NOT_IDENTITY)
    state = "finished" if run.finished else "failed" if run.failure else "missing"
    found = {"run": run.path.name, "state": state, "failure": None if run.finished else run.failure}
    found |= {name: ",".join(map(str, v)) if isinstance(v, list) else v for name, v in settings.items()}
    if not run.finished:
        return found
    stored = run.evaluation(split)
    for name, prefix in PREFIX.items():
        found |= {f"{prefix}{measure}": stored.get(name, {}).get(measure) for measure in MEASURES}
    found |= {"split": split, "n_eval": stored.get("trained", {}).get("n_eval")}
    return found | last_metrics(run) | machine(run)


def last_metrics(run: Run) -> dict[str, float]:
    """Means over the last epoch's logged rows; step, epoch and lr are left out."""
    metrics = run.metrics
    last = metrics[metrics["epoch"] > run.config.epochs - 1].drop(columns=["step", "epoch", "lr"], errors="ignore")
    return last.mean().dropna().to_dict()


def machine(run: Run) -> dict[str, Any]:
    """On what the run was trained and how fast. Seconds: of all sessions together, trials side by side counted in full each."""
    timing, sessions = store.rows(run.path / "timing.jsonl"), store.read_json(run.path / "environment.json")
    ended = [
        row for row, after in pairwise(timing) if after["seconds"] < row["seconds"]
    ]  # a session's clock starts at 0
    return {
        "seconds": sum(row["seconds"] for row in [*ended, *timing[-1:]]),
        "images_per_second": timing[-1]["images_per_second"] if timing else float("nan"),
        **{name: sessions[-1].get(name) for name in ("device", "eager_because", "processor", "commit", "started")},
        "uncommitted_changes": any(session["uncommitted_changes"] for session in sessions),
        "sessions": len(sessions),
        "engine": sessions[-1].get("engine"),
    }


def run_of(request: Config | Run) -> Run:
    return store.request(request) if isinstance(request, Config) else request


def table(requests: Requests, split: str = "test", failures: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A row for each config or run, in the order asked, done or not: `state` says which, and `missing` lists them.

    failures: sentences by run name, of runs that failed without leaving a record in their folder (missing data).
    """
    found = []
    for run in map(run_of, requests):
        failure = (failures or {}).get(run.path.name)
        found.append(row(run, split) | ({"state": "failed", "failure": failure} if failure else {}))
    return pd.DataFrame(found)


def missing(
    requests: Requests,
    measures: Sequence[str] = MEASURES,
    representations: Sequence[str] = DEFAULT,
    augmented: bool = False,
    retry: bool = False,
    split: str = "test",
) -> list[Run]:
    """Each run once that `making.made` would still have to train or evaluate; one that diverged only with retry."""
    runs = {run.path: run for run in map(run_of, requests)}.values()
    wanted = Wanted(tuple(measures), tuple(representations), augmented, split)
    return [run for run in runs if (retry or not run.failure) and wanted.lacking(run)]


@dataclass(frozen=True)
class Wanted:
    """What is to be measured of every run."""

    measures: tuple[str, ...]
    representations: tuple[str, ...]
    augmented: bool
    split: str

    def __post_init__(self) -> None:
        representations.refuse_unknown(self.measures, self.representations)

    def of(self, run: Run) -> dict[str, Any]:
        """Arguments of `evaluate`; augmented features only where the method has a MAG."""
        has_mag = self.augmented and methods.build(run.config).mag() is not None
        asked = {"measures": self.measures, "representations": self.representations, "split": self.split}
        return asked | {"augmented": has_mag}

    def lacking(self, run: Run) -> bool:
        if not run.finished:
            return True
        rows = self.representations + (AUGMENTED,) * self.of(run)["augmented"]
        found = row(run, self.split)
        return any(found[f"{PREFIX[name]}{measure}"] is None for name in rows for measure in self.measures)
