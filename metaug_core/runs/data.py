"""What the images of a run were, kept in its folder (`data.json`) and compared with those that are there now.

A run is found again by its settings, and they do not say what is in a folder. A run from before this record fits all images.
"""

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from metaug_core.data import datasets
from metaug_core.data.images import DataError
from metaug_core.runs.files import StoreError, read_json, write_json
from metaug_core.runs.store import Run

NAMES = ("pretrain", "train", "val", "test", "classes", "source", "images")  # of the record, `Splits.data`
FILE = "data.json"


def record(run: Run, data: Mapping[str, Any]) -> None:
    """Keep `Splits.data` in the run's folder."""
    write_json(run.path / FILE, data)


def check(run: Run, data: Mapping[str, Any]) -> None:
    """DataError if the images are others than the run's, as far as both sides are known."""
    file = run.path / FILE
    kept = read_json(file) if file.exists() else {}
    if not isinstance(kept, dict):
        raise StoreError(f"{file} does not hold a record of images")
    if any(kept[name] != data[name] for name in kept.keys() & data.keys() if data[name] is not None):
        raise DataError(
            f"run {run.path.name} is of other data: it was trained on {describe(kept)}, and the images of "
            f"{run.config.dataset} now are {describe(data)}; give these a runs_dir of their own, or the run its former data_dir"
        )
    asked, used = run.config.train_images or 0, kept.get("pretrain", math.inf) + kept.get("val", 0)
    if used < asked and not run.config.fewer_images:  # it was trained with a preset's number
        raise DataError(
            f"train_images {asked} is more than the {used} images of run {run.path.name}; train_images all takes all of them"
        )


def describe(data: Mapping[str, Any]) -> str:
    """A record in a few words."""
    return "(" + ", ".join(f"{name} {data[name]}" for name in NAMES if name in data) + ")"


def check_finished(runs: Iterable[Run], splits: datasets.Splits | None = None) -> None:
    """DataError for a finished run of other data than splits, or than its data set is now, as far as the files of that tell without
    being read (`digest_source`). Data that are not there any more are not other data."""
    sources: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run in runs:
        if not run.finished or not (run.path / FILE).exists():
            continue
        key = tuple(getattr(run.config, name) for name in datasets.IMAGES)
        if splits is None and key not in sources:
            sources[key] = {}
            with suppress(DataError):
                sources[key] = {"source": datasets.digest_source(run.config)}
        check(run, splits.data if splits is not None else sources[key])
