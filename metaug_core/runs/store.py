"""A run's folder: what is in it, how it is written so that no kill or full disk can tear it, and how it is found again.

    config.json  environment.json  data.json  metrics.jsonl  similarities.jsonl  timing.jsonl  checkpoint.safetensors
    encoders/epoch-0006.safetensors  finished.json or failed.json  evaluation-test.json  the executed notebook  figures/

metrics.jsonl holds only what the same request gives again; wall times stand apart in timing.jsonl. Tensors are safetensors with
their scalars in the header, all else is JSON: nothing is ever unpickled.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaug_core.config import ENGINE_VERSION, EVALUATION_VERSION, Config, ConfigError
from metaug_core.errors import MetaugError, suggestion
from metaug_core.runs.lock import HeldError, hold, is_held

if TYPE_CHECKING:  # torch and pandas are imported where they are needed: a list of runs needs neither
    import pandas as pd
    from torch import Tensor, nn

FORMAT = "metaug-run-1"
STOP_REQUEST = "stop.request"


class StoreError(MetaugError):
    """A run's folder cannot be written or does not hold what it should."""


class BusyError(StoreError):
    """Another process trains the run."""


def write(path: Path, content: bytes) -> None:
    """Write all of a file or nothing: a temporary file beside it, fsynced, then renamed over it.

    Raises StoreError (full disk, no permission); what stood at path before stays.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}; what was saved before is kept") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {error}") from None


def write_tensors(path: Path, tensors: "dict[str, Tensor]", scalars: dict[str, Any]) -> None:
    """One safetensors file; the scalars ride in its header as JSON, so that the two cannot come apart."""
    import safetensors.torch

    stored, places = {}, set()
    for name, tensor in tensors.items():
        t = tensor.detach().cpu().contiguous()
        shared = t.untyped_storage().data_ptr() in places  # by tied weights, which safetensors does not write
        stored[name] = t.clone() if shared else t
        places.add(stored[name].untyped_storage().data_ptr())
    write(path, safetensors.torch.save(stored, {"format": FORMAT, "scalars": json.dumps(scalars)}))


def read_tensors(path: Path) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """What `write_tensors` wrote. StoreError if the file is missing, torn or somebody else's."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"cannot read {path}: {error}") from None
    if metadata.get("format") != FORMAT:
        raise StoreError(f"{path} was not written by this workbook (format {metadata.get('format')!r}, not {FORMAT!r})")
    try:
        return tensors, dict(json.loads(metadata["scalars"]))
    except (KeyError, ValueError, TypeError):
        raise StoreError(f"cannot read {path}: its scalars are damaged") from None


def weights(module: "nn.Module") -> "dict[str, Tensor]":
    """Parameters and buffers of a module by name, also the buffers that are not in its `state_dict` (persistent=False)."""
    return dict(module.named_buffers(remove_duplicate=False)) | module.state_dict()


def load_module(module: "nn.Module", tensors: "dict[str, Tensor]", prefix: str, source: Path) -> None:
    """Load the tensors under prefix into module. StoreError if a name or a shape is not the module's, or a number not finite."""
    values = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    own = weights(module)
    if values.keys() != own.keys():
        name = sorted(values.keys() ^ own.keys())[0]
        raise StoreError(f"{source} does not fit this run's config: {prefix}{name} is in only one of the two")
    for name, value in values.items():
        if value.shape != own[name].shape:
            shapes = f"{tuple(value.shape)} instead of {tuple(own[name].shape)}"
            raise StoreError(f"{source} does not fit this run's config: {prefix}{name} has shape {shapes}")
        if not (value.isfinite() | (value == own[name])).all():  # a mask may hold -inf from the beginning
            raise StoreError(
                f"{source} is damaged: {prefix}{name} is not finite; train the run anew in another runs_dir"
            )
    in_state_dict = module.state_dict().keys()
    module.load_state_dict({name: value for name, value in values.items() if name in in_state_dict})
    for name in values.keys() - in_state_dict:
        own[name].copy_(values[name])


class Run:
    """A run on disk: `path` is its folder, `config` what was asked. Everything else is read when asked for."""

    def __init__(self, path: Path, config: Config):
        self.path, self.config = path, config
        self.checkpoint = path / "checkpoint.safetensors"

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
        return read_json(file)["error"] if file.exists() else None

    def clear_failure(self) -> None:
        """Forget that training diverged, so that it is tried again."""
        (self.path / "failed.json").unlink(missing_ok=True)

    @property
    def metrics(self) -> "pd.DataFrame":
        """One row per logged step and per monitor reading; columns are the metrics, NaN where a row has none."""
        import pandas as pd

        return pd.DataFrame(rows(self.path / "metrics.jsonl"))

    @property
    def timing(self) -> "pd.DataFrame":
        """Progress over wall time: step, seconds, images_per_second."""
        import pandas as pd

        return pd.DataFrame(rows(self.path / "timing.jsonl"))

    def encoder_files(self) -> list[Path]:
        """Weights kept from the last epochs, oldest first."""
        return sorted((self.path / "encoders").glob("epoch-*.safetensors"))

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """The machine and versions of each session so far (`runs.environment`), oldest first; none before the first."""
        file = self.path / "environment.json"
        return read_json(file) if file.exists() else []

    def evaluation_file(self, split: str = "test") -> Path:
        """Where `evaluate` stores what it found: {representation: {measure: accuracy in [0, 1], ..., evaluation_version: 2}}."""
        return self.path / f"evaluation-{split}.json"

    def evaluation(self, split: str = "test") -> dict[str, dict[str, Any]]:
        """What `evaluation_file` holds that was measured by this evaluation version."""
        file = self.evaluation_file(split)
        stored = read_json(file) if file.exists() else {}
        return {name: row for name, row in stored.items() if row.get("evaluation_version") == EVALUATION_VERSION}

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
        """Ask whoever trains the run to save it after the step under way and end. Does not wait."""
        write(self.path / STOP_REQUEST, b"")

    @property
    def stop_requested(self) -> bool:
        return os.path.exists(self.path / STOP_REQUEST)

    def clear_stop_request(self) -> None:
        (self.path / STOP_REQUEST).unlink(missing_ok=True)


def rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file; a torn last line (a kill while writing) is not one. [] if there is no file."""
    if not path.exists():
        return []
    try:
        table = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {error}") from None
    if not all(isinstance(row, dict) and "step" in row for row in table):
        raise StoreError(f"{path} does not hold rows of metrics")
    return table


def last_row(path: Path) -> dict[str, Any]:
    """The last whole line of a JSON-lines file; {} if there is none. Reads only the end of the file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().split(b"\n")[:-1]
        return json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError):
        return {}


def append(path: Path, new: Iterable[dict[str, Any]]) -> None:
    """Add rows to a JSON-lines file. StoreError if the disk is full."""
    append_bytes(path, "".join(json.dumps(row) + "\n" for row in new).encode())


def append_bytes(path: Path, content: bytes) -> None:
    """Add to a file. StoreError if the disk is full."""
    try:
        with path.open("ab") as file:
            file.write(content)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}; what was saved before is kept") from None


def keep_rows(path: Path, last_step: int) -> None:
    """Drop the rows after last_step: a resumed run writes them again."""
    kept = [row for row in rows(path) if row["step"] <= last_step]
    write(path, "".join(json.dumps(row) + "\n" for row in kept).encode())


def is_newer(file: Path, other: Path) -> bool:
    """Whether a file is there and was not written before the other, which is there."""
    return file.exists() and file.stat().st_mtime_ns >= other.stat().st_mtime_ns


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
            f"{run.path} was trained by engine version {engine} and this is {ENGINE_VERSION}, which does not go on with it: {other}"
        )
    own = ", or the source of the user's own code in it is another" if "source" in run.config.identity() else ""
    raise StoreError(f"{run.path} was renamed{own}: {other}")


def open_run(where: str | Path, runs_dir: Path) -> Run:
    """The run in a folder, or of a name (or its unambiguous beginning) under runs_dir. StoreError if there is none."""
    path = Path(where)
    if not os.path.exists(path / "config.json"):  # Path.exists raises for a name too long for the file system
        names = [p.parent.name for p in runs_dir.glob("*/config.json")]
        near = [name for name in names if name == str(where)] or [n for n in names if n.startswith(str(where))]
        if len(near) > 1:
            raise StoreError(f"{str(where)!r} is the beginning of {len(near)} runs: {', '.join(sorted(near)[:4])}")
        if not near:
            raise StoreError(f"no run {str(where)!r} in {runs_dir}{suggestion(where, names)}")
        path = runs_dir / near[0]
    values = read_json(path / "config.json")
    if not isinstance(values, dict):
        raise StoreError(f"{path / 'config.json'} does not hold a config")
    try:
        config = Config(**{**values, "runs_dir": path.resolve().parent})
        return Run(path, Config(**config.chosen()))  # what the method brings was not given, see `Config.replace`
    except ConfigError as error:
        raise StoreError(f"{path / 'config.json'}: {error}") from None


def list_runs(runs_dir: Path) -> list[Run]:
    """Every readable run under runs_dir, oldest first."""
    files = sorted(runs_dir.glob("*/config.json"), key=lambda p: p.stat().st_mtime)
    runs = []
    for file in files:
        try:
            runs.append(open_run(file.parent, runs_dir))
        except MetaugError:  # a run of a method or view that only its author's notebook registers
            continue
    return runs


def sync(path: Path) -> None:
    """Push a file's rows to the disk itself."""
    try:
        with path.open("a") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}; what was saved before is kept") from None


def begin(
    run: Run, step: int, device: str, eager_because: str | None = None, tangent_because: str | None = None
) -> None:
    """Start or take up a run that stands at step: config, environment (one entry a session), and no rows beyond step.

    eager_because: why its steps are not captured as CUDA graphs, if they are not. tangent_because: why its meta-gradient is
    computed in a slower way, if it is.
    """
    from metaug_core.runs.environment import environment

    run.clear_failure()  # of an earlier attempt
    write_json(run.path / "config.json", run.config.model_dump(mode="json"))
    sessions = run.sessions if step > 0 else []
    session = environment(device) | {"from_step": step, "eager_because": eager_because}
    if tangent_because:
        session["tangent_because"] = tangent_because
    write_json(run.path / "environment.json", [*sessions, session])
    for name in ("metrics.jsonl", "similarities.jsonl", "timing.jsonl"):
        keep_rows(run.path / name, step if step > 0 else -1)


def note_eager(run: Run, reason: str) -> None:
    """Write into environment.json why the steps of the session under way are not captured any more."""
    *before, session = run.sessions
    write_json(run.path / "environment.json", [*before, session | {"eager_because": reason}])
