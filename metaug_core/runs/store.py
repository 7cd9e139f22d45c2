"""A run's folder: what is in it, how it is begun, and how it is found again. How its files are written is in `files`.

    config.json  environment.json  data.json  metrics.jsonl  similarities.jsonl  timing.jsonl  checkpoint.safetensors
    encoders/epoch-0006.safetensors  finished.json or failed.json  evaluation-test.json
    predictions-test.safetensors  the executed notebook  figures/

A run that is not finished also has checkpoint-before.safetensors, its last checkpoint but one. metrics.jsonl holds only what the
same request gives again; wall times stand apart in timing.jsonl.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaug_core import extensions
from metaug_core.config import ENGINE_VERSION, EVALUATION_VERSION, Config, ConfigError
from metaug_core.errors import MetaugError, suggestion
from metaug_core.runs.files import (
    StoreError,
    is_number,
    keep_rows,
    last_row,
    modified,
    read_json,
    read_numbers,
    read_objects,
    read_tensors,
    remove,
    write,
    write_json,
)
from metaug_core.runs.lock import HeldError, hold, is_held

if TYPE_CHECKING:  # torch and pandas are imported where they are needed: a list of runs needs neither
    import pandas as pd
    from torch import Tensor

    from metaug_core.runs.encoder import Encoder
    from metaug_core.runs.predictions import Predictions

STOP_REQUEST = "stop.request"
# A folder with one of these is a run.
RUN_FILES = ("config.json", "environment.json", "metrics.jsonl", "finished.json", "checkpoint.safetensors")
LABELS = ("split", "method", "dataset")  # what stands beside the numbers of an evaluation
PROGRESS = ("step", "steps", "loss", "seconds", "images_per_second", "seconds_left")  # what a row of timing.jsonl holds


class BusyError(StoreError):
    """Another process trains the run."""


class Run:
    """A run on disk: `path` is its folder, `config` what was asked. Everything else is read when asked for."""

    def __init__(self, path: Path, config: Config):
        self.path, self.config = path, config
        self.checkpoint = path / "checkpoint.safetensors"
        self.checkpoint_before = path / "checkpoint-before.safetensors"

    def __repr__(self) -> str:
        return f"Run({self.path.name}, {'finished' if self.finished else 'unfinished'})"

    @property
    def finished(self) -> bool:
        return os.path.exists(self.path / "finished.json")  # as in `open_run`

    @property
    def current(self) -> bool:
        """Whether its config, asked for now, is this run: same version of the engine, same source of the user's own code."""
        return self.path.name == self.config.name()

    @property
    def failure(self) -> str | None:
        """The sentence in which training diverged; it would again, so it is not tried again unasked. None: it has not."""
        file = self.path / "failed.json"
        if not os.path.lexists(file):
            return None
        try:
            return str(read_json(file, dict)["error"])
        except (StoreError, KeyError):
            return f"run {self.path.name} failed, but {file} is damaged and does not say why"

    def clear_failure(self) -> None:
        """Forget that training diverged, so that it is tried again."""
        remove(self.path / "failed.json")

    @property
    def metrics(self) -> "pd.DataFrame":
        """One row per logged step and per monitor reading; columns are the metrics, NaN where a row has none."""
        return read_metrics(self.path)

    @property
    def timing(self) -> "pd.DataFrame":
        """Progress over wall time: step, seconds, images_per_second."""
        return read_numbers(self.path / "timing.jsonl", ("step", "seconds", "images_per_second"))

    @property
    def progress(self) -> dict[str, Any]:
        """The last row of timing, which holds what `PROGRESS` names; {} if there is none. Reads only the end of the file."""
        return last_row(self.path / "timing.jsonl", PROGRESS)

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints that there are, the newest first."""
        return [file for file in (self.checkpoint, self.checkpoint_before) if os.path.lexists(file)]

    def set_aside(self, file: Path) -> Path:
        """Rename a damaged file of the run, so that nothing is written over it -> its new path. Raises StoreError."""
        names = (file.with_stem(f"{file.stem}-damaged-{number}") for number in count(1))
        place = next(name for name in names if not os.path.lexists(name))
        try:
            return file.rename(place)
        except OSError as error:
            raise StoreError(f"cannot rename {file}: {error.strerror or error}") from None

    def encoder_files(self) -> list[Path]:
        """Files with the weights of the last `keep_last` epochs, oldest first; the checkpoint in place of the last one, if that is
        lost. Fewer or none before the run is finished; then StoreError if one is lost."""
        folder, last = self.path / "encoders", self.config.epochs
        if not self.finished:
            return sorted(folder.glob("epoch-*.safetensors"))
        epochs = range(max(1, last - self.config.keep_last + 1), last + 1)
        files = [folder / f"epoch-{epoch:04d}.safetensors" for epoch in epochs]
        if not files[-1].exists() and self.checkpoint.exists():
            files[-1] = self.checkpoint
        for file in files:
            if not file.exists():
                raise StoreError(f"{file} is missing: remove {self.path} to train the run again")
        return files

    def encoder(self) -> "Encoder":
        """The trained encoder of the last epoch, in evaluation mode on the CPU: a torch module that maps uint8 RGB images
        (B, 3, H, W) of any size to h (B, D) float32; its `config` is the run's. Raises MetaugError if the run is not finished,
        StoreError if its weights cannot be read."""
        from metaug_core.runs.encoder import load_encoder

        return load_encoder(self)

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """The machine and versions of each session so far (`runs.environment`), oldest first; none before the first."""
        return read_objects(self.path / "environment.json", list)

    def evaluation_file(self, split: str = "test") -> Path:
        """Where `evaluate` stores what it found: {representation: {measure: accuracy in [0, 1], ..., evaluation_version: 2}}."""
        return self.path / f"evaluation-{split}.json"

    def evaluation(self, split: str = "test") -> dict[str, dict[str, Any]]:
        """What `evaluation_file` holds that was measured by this evaluation version."""
        return read_evaluation(self.evaluation_file(split))

    def predictions_file(self, split: str = "test") -> Path:
        """Where `evaluate` stores what the measures of the trained encoder take each image for."""
        return self.path / f"predictions-{split}.safetensors"

    def predictions(self, split: str = "test") -> "Predictions":
        """What the measures of the trained encoder take each image of a split for, as far as this evaluation version stored it.
        Raises StoreError."""
        from metaug_core.runs.predictions import read_predictions

        return read_predictions(self.predictions_file(split))

    def correct(self, split: str = "test") -> "dict[str, Tensor]":
        """By measure, which images of a split the trained encoder classifies rightly: (N,) float16 in [0, 1], a share where the
        measure averages. From `predictions`, or from a file of before these were stored; {} where there is neither. Raises
        StoreError."""
        from metaug_core.runs.predictions import share_correct

        before, stored = self.path / f"correct-{split}.safetensors", self.predictions(split)
        now = {name: share_correct(ranked, stored.labels).half() for name, ranked in stored.by_measure.items()}
        return (read_tensors(before)[0] if before.exists() else {}) | now

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Only one process trains or evaluates a run. The lock dies with its holder, and who holds it may take it again.

        A stop that was requested of an earlier holder is forgotten. Raises BusyError if another holds it, StoreError if the folder
        cannot be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                if stack.enter_context(hold(self.path)):
                    self.clear_stop_request()
                    for left in self.path.rglob(".writing-*"):  # of a writer that was killed
                        left.unlink(missing_ok=True)
                body = stack.pop_all()
        except HeldError:
            raise BusyError(f"run {self.path.name} is being trained by another process") from None
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror or error}") from None
        with body:
            yield

    @property
    def busy(self) -> bool:
        """Whether a process, on this machine or another, trains or evaluates the run."""
        return is_held(self.path)

    def request_stop(self) -> None:
        """As the function `request_stop`, of this run's folder."""
        request_stop(self.path)

    @property
    def stop_requested(self) -> bool:
        return os.path.exists(self.path / STOP_REQUEST)

    def clear_stop_request(self) -> None:
        remove(self.path / STOP_REQUEST)


def read_metrics(folder: Path) -> "pd.DataFrame":
    """As `Run.metrics`, of the run in a folder."""
    return read_numbers(folder / "metrics.jsonl", ("step", "epoch"))


def read_evaluation(path: Path) -> dict[str, dict[str, Any]]:
    """Accuracies by representation, as `Run.evaluation_file` holds them, that were measured by this evaluation version; {} if there
    is no file. Raises StoreError."""
    try:
        stored = read_objects(path, dict).items()
        current = {name: row for name, row in stored if row.get("evaluation_version") == EVALUATION_VERSION}
        values = [value for row in current.values() for name, value in row.items() if name not in LABELS]
        if not all(map(is_number, values)):
            raise StoreError(f"cannot read {path}: an accuracy is not a number")
    except StoreError as error:
        raise StoreError(f"{error}; remove it, and the run is evaluated again") from None
    return current


def request(config: Config) -> Run:
    """The run of this config, on disk or not."""
    return Run(config.runs_dir / config.name(), config)


def check_current(run: Run) -> None:
    """StoreError if to train this run would make another, or mix two: see `Run.current`."""
    if run.current:
        return
    other, sessions = f"its config now belongs to a run {run.config.name()}", run.sessions
    engine = sessions[-1].get("engine", "before 1") if sessions else ENGINE_VERSION
    if engine != ENGINE_VERSION:
        raise StoreError(
            f"{run.path} was trained by engine version {engine} and this is {ENGINE_VERSION}, which cannot continue it: {other}"
        )
    own = ", or the source of the user's own code in it is another" if run.config.own_entries() else ""
    raise StoreError(f"{run.path} was renamed{own}: {other}")


def find_folders(runs_dir: Path) -> list[Path]:
    """Every folder in runs_dir that holds a file of a run, oldest first."""
    folders = {file.parent for name in RUN_FILES for file in runs_dir.glob(f"*/{name}")}
    return sorted(folders, key=lambda folder: (modified(folder / "config.json"), folder.name))


def request_stop(folder: Path) -> None:
    """Ask whoever trains the run in a folder to save it after the step under way and end. Does not wait. Raises StoreError."""
    write(folder / STOP_REQUEST, b"")


def locate_run(where: str | Path, runs_dir: Path) -> Path:
    """The folder of a run, by its path, or by its name (or an unambiguous beginning of it) under runs_dir. Nothing in it is read.
    StoreError if there is none."""
    path = Path(where)
    if os.path.exists(path / "config.json"):  # Path.exists raises for a name too long for the file system
        return path
    names = [folder.name for folder in find_folders(runs_dir)]
    near = [name for name in names if name == str(where)] or [n for n in names if n.startswith(str(where))]
    if len(near) > 1:
        raise StoreError(f"{str(where)!r} is the beginning of {len(near)} runs: {', '.join(sorted(near)[:4])}")
    if not near:
        raise StoreError(f"no run {str(where)!r} in {runs_dir}{suggestion(where, names)}")
    return runs_dir / near[0]


def open_run(where: str | Path, runs_dir: Path | None = None) -> Run:
    """The run in a folder, or of a name (or its unambiguous beginning) under runs_dir; None: the default of `Config`. Files of the
    user's own code that it was trained with are loaded, with a warning that says so. StoreError if there is none or it cannot be
    read."""
    path = locate_run(where, Path(runs_dir or Config.model_fields["runs_dir"].default))
    lost = load_imports(path)
    try:
        return read_run(path)
    except StoreError as error:
        if lost:
            why = "is another user's" if os.path.exists(lost[0]) else "is not there any more"
            raise StoreError(f"{error}; it was trained with --import {lost[0]}, which {why}") from None
        if read_imports(path) == []:
            raise StoreError(
                f"{error}; its code was in a notebook or a script: write it to a file for --import"
            ) from None
        raise


def read_run(path: Path) -> Run:
    """The run in a folder. StoreError if its config cannot be read, or names what is not registered here."""
    values = read_json(path / "config.json")
    if not isinstance(values, dict):
        raise StoreError(f"{path / 'config.json'} does not hold a config")
    try:
        config = Config(**{**values, "runs_dir": path.resolve().parent})
        return Run(path, Config(**config.chosen()))  # what the method brings was not given, see `Config.replace`
    except ConfigError as error:
        raise StoreError(f"{path / 'config.json'}: {error}") from None


def read_imports(path: Path) -> list[str] | None:
    """The files of the user's own code that the run in a folder was trained with, [] if that code was in no such file (a notebook,
    a script). None: it has no code of the user's own, or its record is damaged or from before there was one."""
    with suppress(StoreError, IndexError):
        files = read_objects(path / "environment.json", list)[-1].get("imports")
        return [str(file) for file in files] if isinstance(files, list) else None
    return None


def load_imports(path: Path) -> list[str]:
    """Load the files of `read_imports` -> those that are not: they are gone, or another user's, whose code runs only where it is
    asked for. A file whose name is loaded from another place is left out. MetaugError if one fails."""
    loaded = {file.stem for file in extensions.loaded}
    files = [file for file in read_imports(path) or () if Path(file).stem not in loaded]
    for file in files:
        if is_ones_own(file):
            extensions.load(file)
            warnings.warn(f"run {path.name} was trained with --import {file}: the file is loaded", stacklevel=3)
    return [file for file in files if not is_ones_own(file)]


def is_ones_own(file: str) -> bool:
    """Whether a file is there, and this user's or root's."""
    try:
        owner = os.stat(file).st_uid
    except OSError:
        return False
    return not hasattr(os, "getuid") or owner in (os.getuid(), 0)


def list_runs(runs_dir: Path) -> list[Run]:
    """Every readable run under runs_dir, oldest first, without those of a method or view that is not registered here
    (`listing.list_folders` lists these too)."""
    runs = []
    for folder in find_folders(runs_dir):
        with suppress(MetaugError):
            runs.append(read_run(folder))
    return runs


def begin(
    run: Run, step: int, device: str, eager_because: str | None = None, tangent_because: str | None = None
) -> None:
    """Start or take up a run that stands at step: config, environment (one entry a session), and no rows beyond step.

    eager_because: why its steps are not captured as CUDA graphs, if they are not. tangent_because: why its meta-gradient is
    computed in a slower way, if it is.
    """
    from metaug_core.runs.environment import environment

    session = environment(device) | {"from_step": step, "eager_because": eager_because}
    if tangent_because:
        session["tangent_because"] = tangent_because
    if run.config.own_entries():
        session["imports"] = [str(file) for file in extensions.loaded]
    run.clear_failure()  # of an earlier attempt
    write_json(run.path / "config.json", run.config.model_dump(mode="json"))
    sessions = run.sessions if step > 0 else []
    write_json(run.path / "environment.json", [*sessions, session])
    for name in ("metrics.jsonl", "similarities.jsonl", "timing.jsonl"):
        keep_rows(run.path / name, step if step > 0 else -1)


def note_eager(run: Run, reason: str) -> None:
    """Write into environment.json why the steps of the session under way are not captured any more."""
    *before, session = run.sessions or [{}]
    write_json(run.path / "environment.json", [*before, session | {"eager_because": reason}])
