"""What is in a folder of runs, read without torch and without knowing the runs' methods: each folder is listed as what it is."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaug_core.config import EVALUATION_VERSION
from metaug_core.runs import store


@dataclass(frozen=True)
class Listed:
    """A run's folder at a glance. None: not there, or damaged (then `state` says so, unless the run is finished)."""

    path: Path
    method: str | None
    dataset: str | None
    epochs: int | None
    epochs_done: int
    state: str  # finished, failed, unfinished or damaged
    probe_plain: float | None  # test accuracies of the trained encoder in [0, 1], as far as they are measured
    knn: float | None
    touched: float  # seconds since the epoch

    @property
    def name(self) -> str:
        return self.path.name


def list_folders(runs_dir: Path) -> list[Listed]:
    """Every folder in runs_dir that holds a config.json, whatever is in it, oldest first."""
    files = sorted(runs_dir.glob("*/config.json"), key=lambda file: file.stat().st_mtime)
    return [read_folder(file.parent) for file in files]


def read_folder(path: Path) -> Listed:
    config = read_object(path / "config.json")
    trained = read_object(path / "evaluation-test.json").get("trained")
    if not isinstance(trained, dict) or trained.get("evaluation_version") != EVALUATION_VERSION:
        trained = {}
    epochs = config.get("epochs")
    return Listed(
        path,
        method=config.get("method"),
        dataset=config.get("dataset"),
        epochs=epochs if isinstance(epochs, int) else None,
        epochs_done=int(last_epoch(path / "metrics.jsonl")),
        state=state_of(path, config),
        probe_plain=number(trained.get("probe_plain")),
        knn=number(trained.get("knn")),
        touched=max(modification_times(path), default=0.0),
    )


def state_of(path: Path, config: dict[str, Any]) -> str:
    if not isinstance(config.get("method"), str):
        return "damaged"
    if os.path.exists(path / "finished.json"):
        return "finished"
    return "failed" if os.path.exists(path / "failed.json") else "unfinished"


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; {} if it is missing, torn or something else."""
    try:
        value = store.read_json(path)
    except store.StoreError:
        return {}
    return value if isinstance(value, dict) else {}


def last_epoch(path: Path) -> float:
    """The epoch of the last whole row of metrics; 0 if there is none."""
    try:
        return float(store.last_row(path)["epoch"])
    except (ValueError, KeyError, TypeError):
        return 0.0


def number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def modification_times(path: Path) -> Iterator[float]:
    for file in path.glob("*.json*"):
        with suppress(OSError):  # removed in this moment
            yield file.stat().st_mtime
