"""What is in a folder of runs, read without torch and without knowing the runs' methods: each folder is listed as what it is."""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

from metaug_core.config import ALL, NOT_IDENTITY, Config
from metaug_core.errors import MetaugError, suggestion
from metaug_core.runs import files, store
from metaug_core.runs.lock import is_held

if TYPE_CHECKING:
    import pandas as pd

STATE, ENGINE = "state", "engine"  # what else than settings runs are chosen by
FIRST, LAST = ("method", "dataset", "encoder", "protocol"), ("engine", "seed")  # of the settings in which runs differ


@dataclass(frozen=True)
class Listed:
    """A run's folder at a glance. None: not there, or damaged (then `state` says so)."""

    path: Path
    # config.json, with its default for a setting that is newer, and `engine`; {} if it is damaged
    settings: dict[str, Any] = field(hash=False)  # a dict has no hash
    method: str | None
    dataset: str | None
    epochs: int | None
    epochs_done: int | None
    state: str  # finished, failed, training, unfinished or damaged
    evaluation: dict[str, dict[str, Any]] = field(hash=False)  # accuracies in [0, 1], as `Run.evaluation`
    evaluated: float  # when it was evaluated, in seconds since the epoch; 0: it is not
    touched: float  # seconds since the epoch
    needs: str  # what of the user's own code must be there to open it, in brackets; empty: nothing

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def probe_plain(self) -> float | None:
        """Test accuracy of the trained encoder in [0, 1], if it is measured."""
        return self.evaluation.get("trained", {}).get("probe_plain")

    @property
    def knn(self) -> float | None:
        """As `probe_plain`."""
        return self.evaluation.get("trained", {}).get("knn")

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
    sessions = read(files.read_objects, path / "environment.json", list)
    evaluation = path / "evaluation-test.json"
    stored = read(store.read_evaluation, evaluation)
    ends = [name for name in ("finished", "failed") if os.path.lexists(path / f"{name}.json")]
    for name in ends:
        read(files.read_json, path / f"{name}.json", dict)
    method, dataset = (text if isinstance(text := config.get(name), str) else None for name in ("method", "dataset"))
    epochs = config["epochs"] if isinstance(config.get("epochs"), int) else None
    done = read(count_epochs, path / "metrics.jsonl")
    state = "damaged" if faults or not method else [*ends, "unfinished"][0]
    engine = sessions[-1].get(ENGINE) if sessions else None
    return Listed(
        path,
        default_settings() | config | {ENGINE: engine} if method else {},
        method,
        dataset,
        epochs,
        epochs_done=done if isinstance(done, int) else None,
        state="training" if state == "unfinished" and is_held(path) else state,
        evaluation=stored,
        evaluated=files.modified(evaluation) if stored else 0.0,
        touched=max(map(files.modified, path.glob("*.json*")), default=0.0),
        needs=describe_imports(store.read_imports(path)),
    )


@cache
def default_settings() -> dict[str, Any]:
    """The defaults of all settings, as config.json would hold them."""
    return to_jsonable_python({name: field.default for name, field in Config.model_fields.items()})


def list_differing(runs: Sequence[Listed]) -> tuple[list[str], list[str]]:
    """The settings (and `engine`) that can change a result and in which the runs differ, damaged ones aside: those that tell runs
    of one method apart and those that name a run, `seed` last; and those that differ only between runs of different methods."""
    runs = [run for run in runs if run.settings]
    groups = [[run for run in runs if run.method == method] for method in dict.fromkeys(run.method for run in runs)]

    def differ(name: str, among: Iterable[Listed]) -> bool:
        return len({format_setting(name, run.settings.get(name)) for run in among}) > 1

    known = [*FIRST, *(name for name in Config.model_fields if name not in FIRST + LAST)]
    known += sorted({name for run in runs for name in run.settings} - {*known, *LAST})  # of another version
    names = [name for name in (*known, *LAST) if name not in NOT_IDENTITY - {"protocol"} and differ(name, runs)]
    own = [name for name in names if name in FIRST or any(differ(name, group) for group in groups)]
    return own, [name for name in names if name not in own]


def tabulate(
    runs: Sequence[Listed], measures: Mapping[str, str], most: int
) -> tuple[list[str], list[list[str]], list[str]]:
    """Runs side by side: names of the columns; a row of texts for each run with the settings in which the runs differ, its epochs,
    state and test accuracies in percent; the settings that had no place. measures: titles by name; most: columns of settings."""
    own, with_method = ([name for name in names if name != "epochs"] for names in list_differing(runs))
    names = own + with_method if len(own + with_method) <= most else own[:most]
    measured = [name for name in measures if any(name in run.evaluation.get("trained", {}) for run in runs)]
    rows = []
    for run in runs:
        settings = [format_setting(name, run.settings[name]) if name in run.settings else "-" for name in names]
        epochs = "/".join("-" if count is None else str(count) for count in (run.epochs_done, run.epochs))
        values = [run.evaluation.get("trained", {}).get(name) for name in measured]
        accuracies = ["-" if value is None else f"{100 * value:.1f}" for value in values]
        rows.append([run.name, *settings, epochs, run.state + run.needs, *accuracies])
    head = ["run", *names, "epochs", "state", *(f"{measures[name]} %" for name in measured)]
    return head, rows, (own + with_method)[len(names) :]


def select(runs: Sequence[Listed], wanted: Mapping[str, str]) -> list[Listed]:
    """The runs whose settings, `state` and `engine` are as these texts say: {"method": "cmc", "lr": "1e-3", "views": "L,ab"}.
    MetaugError for a name that no run and no version of the engine has."""
    known = {STATE, ENGINE, *Config.model_fields, *(name for run in runs for name in run.settings)}
    for name in wanted:
        if name not in known:
            raise MetaugError(f"unknown setting {name!r}{suggestion(name, known)}")
    return [run for run in runs if all(has_value(run, name, text) for name, text in wanted.items())]


def has_value(run: Listed, name: str, text: str) -> bool:
    """Whether a run's setting, or its state, is what a text says; numbers are compared as numbers."""
    if name != STATE and not run.settings:
        return False
    value = run.state if name == STATE else run.settings.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(ValueError):
            return float(text) == value
    return format_setting(name, value).casefold() == text.casefold()


def format_setting(name: str, value: Any) -> str:
    """A setting of config.json as one would type it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return ALL if name == "train_images" and value is None else str(value)


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
