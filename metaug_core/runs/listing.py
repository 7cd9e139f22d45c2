"""What is in a folder of runs, read without torch and without knowing the runs' methods: each folder is listed as what it is."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaug_core.runs import files, store

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Listed:
    """A run's folder at a glance. None: not there, or damaged (then `state` says so)."""

    path: Path
    method: str | None
    dataset: str | None
    epochs: int | None
    epochs_done: int | None
    state: str  # finished, failed, unfinished or damaged
    probe_plain: float | None  # test accuracies of the trained encoder in [0, 1], as far as they are measured
    knn: float | None
    evaluated: float  # when it was evaluated, in seconds since the epoch; 0: it is not
    touched: float  # seconds since the epoch
    needs: str  # what of the user's own code must be there to open it, in brackets; empty: nothing

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def metrics(self) -> "pd.DataFrame":
        """As `Run.metrics`."""
        return store.read_metrics(self.path)


def list_folders(runs_dir: Path) -> list[Listed]:
    """Every folder in runs_dir that holds a file of a run, whatever is in it, oldest first."""
    return [read_folder(path) for path in store.find_folders(runs_dir)]


def read_folder(path: Path) -> Listed:
    faults: list[files.StoreError] = []

    def read(function: Any, *arguments: Any) -> Any:
        """What the function returns, or {} for a file that is damaged."""
        try:
            return function(*arguments)
        except files.StoreError as error:
            faults.append(error)
            return {}

    config = read(files.read_json, path / "config.json", dict)
    read(files.read_objects, path / "environment.json", list)
    evaluation = path / "evaluation-test.json"
    stored = read(store.read_evaluation, evaluation)
    ends = [name for name in ("finished", "failed") if os.path.lexists(path / f"{name}.json")]
    for name in ends:
        read(files.read_json, path / f"{name}.json", dict)
    method, dataset = (text if isinstance(text := config.get(name), str) else None for name in ("method", "dataset"))
    epochs = config["epochs"] if isinstance(config.get("epochs"), int) else None
    done = read(count_epochs, path / "metrics.jsonl")
    trained = stored.get("trained", {})
    return Listed(
        path,
        method,
        dataset,
        epochs,
        epochs_done=done if isinstance(done, int) else None,
        state="damaged" if faults or not method else [*ends, "unfinished"][0],
        probe_plain=trained.get("probe_plain"),
        knn=trained.get("knn"),
        evaluated=files.modified(evaluation) if stored else 0.0,
        touched=max(map(files.modified, path.glob("*.json*")), default=0.0),
        needs=describe_imports(store.read_imports(path)),
    )


def describe_imports(files: list[str] | None) -> str:
    if files is None:
        return ""
    return f" (needs {' '.join(f'--import {file}' for file in files) or 'the code that registers its names'})"


def count_epochs(path: Path) -> int | None:
    """The whole epochs by the last row of metrics; 0 before the first row, None if there is no file. StoreError if the row is
    damaged."""
    if not os.path.lexists(path):
        return None
    row = files.last_row(path, ("epoch",))
    with suppress(ValueError, OverflowError):  # NaN and infinity are numbers
        return int(row["epoch"]) if row else len(files.rows(path, ("epoch",)))
    raise files.StoreError(f"{path} does not hold rows of metrics")
