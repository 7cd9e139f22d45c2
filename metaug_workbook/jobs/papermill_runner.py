"""A notebook run without a screen, by papermill: its parameters checked before the start, progress, a clean interrupt.

papermill takes a misspelt parameter without a word and cannot tell how far a cell is; here names and values are refused in
one sentence before anything starts, and the bar follows the training through the run's folder.
"""

import asyncio
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import papermill
from jupyter_client.kernelspec import NoSuchKernel
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat.reader import NotJSONError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from metaug_core.config import ALL, HOME, Config, ConfigError
from metaug_core.errors import Interrupted, MetaugError, suggestion
from metaug_core.runs import store
from metaug_core.training.progress import Bar
from metaug_workbook.jobs import parameters
from metaug_workbook.jobs.estimate import format_duration
from metaug_workbook.jobs.grid import build_config, parse_setting
from metaug_workbook.jobs.runner import how_to_continue

TRAINING_SHARE = 0.8  # of the bar, if the run is still to be trained; the other cells share the rest
POLL_SECONDS, LOG_SECONDS = 0.5, 10.0  # between two drawings of the bar on a terminal, and in a file


class CellFailed(MetaugError):
    """A cell of the notebook raised an error; the executed notebook is kept."""


# --- which notebook, and with what
def find_notebook(name: str) -> Path:
    """A notebook by its path, or by its bare name in the workbook's notebooks folder. Raises ConfigError."""
    shipped = HOME / "notebooks"
    for path in (Path(name), Path(f"{name}.ipynb"), shipped / name, shipped / f"{name}.ipynb"):
        if path.is_file():
            return path.resolve()
    stems = [path.stem for path in shipped.glob("*.ipynb")]
    known = [stem for stem in stems if re.fullmatch(r"\d\d_\w+", stem)]  # not Untitled, not a copy
    raise ConfigError(f"there is no notebook {name!r}{suggestion(name, known)}")


def read_parameters(path: Path) -> dict[str, Any]:
    """What the notebook's cell tagged `parameters` holds, as papermill sees it. Raises ConfigError."""
    try:
        parameters = papermill.inspect_notebook(path)
    except (NotJSONError, ValueError, KeyError, AttributeError):
        raise ConfigError(f"{path} is not a notebook") from None
    if not parameters:
        raise ConfigError(f"{path.name} has no cell tagged 'parameters', or nothing in it")
    return parameters


def check_parameters(
    path: Path, given: Mapping[str, str], imports: Sequence[str] = (), runs_dir: Path | None = None
) -> tuple[dict[str, Any], Config | None]:
    """What to inject for the texts given, and the Config of the notebook's run, if it has one: a notebook with a parameter `seed`
    is of one run, one with `seeds` of many. Settings are checked either way. Raises ConfigError.

    A setting of Config that the notebook does not name among its parameters goes into the dict `settings`, and the user's files
    into the list `imports`, both of which `notebook.configure` reads. runs_dir: of the Config, and of a notebook's parameter of
    that name; None: the default of Config.
    """
    known = read_parameters(path)
    settings = Config.model_fields.keys() - {"runs_dir"} if "preset" in known else set()
    for name in given:
        if name not in known and name not in settings:
            raise ConfigError(f"{name!r} is not a parameter of {path.name}{suggestion(name, {*known, *settings})}")
    types = {name: parameters.find_type(entry["inferred_type_name"]) for name, entry in known.items()}
    values = {name: parameters.parse_value(text, types[name]) for name, text in given.items() if name in known}
    if runs_dir is not None and "runs_dir" in known:
        values["runs_dir"] = str(runs_dir)
    further = {n: parsed for n, t in given.items() if n not in known and (parsed := parse_setting(n, t)) is not None}
    defaults = {name: parameters.read_literal(entry["default"]) for name, entry in known.items()}
    defaults = {name: value for name, value in defaults.items() if value != known[name]["default"]}  # no expressions
    every, of_config = defaults | values, {"preset", *settings}

    def check(names: Iterable[str], beside: Mapping[str, Any]) -> dict[str, Any]:
        texts = {name for name, value in values.items() if isinstance(value, str)}
        return {n: parameters.check_value(n, every[n], types[n], beside, strict=n not in texts) for n in names}

    parameters.refuse_varied(further, known)
    named = check((name for name in every if name in of_config), {}) | further
    config = build_config(named | {"runs_dir": runs_dir}) if "preset" in known else None
    checked = named | check((name for name in every if name not in of_config), named)
    values = {name: checked[name] for name in values}
    if config is not None and further:
        dumped = config.model_dump(mode="json", include=set(further))
        values["settings"] = {n: ALL if v is None else v for n, v in dumped.items()}  # a None would be the preset's
    if imports and config is not None:
        values["imports"] = list(imports)
    return values, config if "seed" in known else None


# --- how far it is
@dataclass
class Watch:
    """What the bar shows: cells of the notebook, and steps of its run while that trains."""

    title: str
    run: store.Run | None
    cells: list[Any]

    def __post_init__(self) -> None:
        self.training = self.run is not None and not self.run.finished
        self.before = self.last_row()

    def last_row(self) -> dict[str, Any]:
        return self.run.progress if self.run is not None else {}

    def state(self) -> tuple[float, str]:
        """How much is done, in [0, 1], and the same in words."""
        done = sum(cell.metadata.get("papermill", {}).get("status") == "completed" for cell in self.cells)
        share, text = done / len(self.cells), f"cell {min(done + 1, len(self.cells))} of {len(self.cells)}"
        if not self.training or self.run is None:
            return share, text
        row = self.last_row()
        trained = 1.0 if self.run.finished else row["step"] / row["steps"] if row and row != self.before else 0.0
        if 0 < trained < 1:
            text = f"step {row['step']:,} of {row['steps']:,}, loss {row['loss']:.4f}, "
            text += f"{row['images_per_second']:,.0f} images/s, {format_duration(row['seconds_left'])} left"
        return TRAINING_SHARE * trained + (1 - TRAINING_SHARE) * share, text

    @contextmanager
    def bar(self) -> Iterator[None]:
        """A thread redraws one line on stderr while the body runs."""
        over = threading.Event()
        period = POLL_SECONDS if sys.stderr is not None and sys.stderr.isatty() else LOG_SECONDS
        bar = Bar(total=100, bar_format="{desc} {percentage:3.0f}%|{bar:24}| {elapsed}{postfix}", desc=self.title)

        def draw() -> None:
            share, text = self.state()
            bar.show(100 * share, text)

        def follow() -> None:
            while not over.wait(period):
                draw()

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            draw()
            bar.close()


# --- running it
class Client(PapermillNotebookClient):
    """papermill's client, with an interrupt that reaches the kernel, so that the cell under way can save and stop."""

    interrupted = False

    def interrupt(self, *_: Any) -> None:
        if self.interrupted:
            return  # a second one could strike while the kernel answers, and no answer would come
        self.interrupted = True
        manager: Any = self.km
        if manager is None or not manager.has_kernel:
            raise KeyboardInterrupt
        threading.Thread(target=lambda: asyncio.run(manager.interrupt_kernel())).start()

    def papermill_execute_cells(self) -> None:
        if threading.current_thread() is not threading.main_thread():  # where Python takes no signals
            return super().papermill_execute_cells()
        before = {number: signal.signal(number, self.interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            super().papermill_execute_cells()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.interrupted and any(map(ended_silently, self.nb.cells)):
            raise KeyboardInterrupt


def ended_silently(cell: Any) -> bool:
    """Whether a cell failed without an error among its outputs, as one does that is interrupted while it shows its error."""
    failed = cell.metadata.get("papermill", {}).get("exception")
    return bool(failed) and all(output.output_type != "error" for output in cell.outputs)


class Engine(NBClientEngine):
    """papermill's engine with this `Client` and the bar of a `Watch`."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, start_timeout=60, **options):  # type: ignore[override]
        quiet = ["--log-level=ERROR"]  # else the kernel warns on the terminal that it speaks TCP on this machine
        settings = {"timeout": None, "startup_timeout": start_timeout, "extra_arguments": quiet}
        client = Client(nb_man, kernel_name=kernel_name, **settings)
        options["started"](client)
        watch = Watch(options["title"], options["run"], nb_man.nb.cells)
        with watch.bar() if options["bar"] else nullcontext():
            return client.execute(env=options["environment"])


papermill_engines.register("metaug", Engine)


def execute(
    path: Path,
    values: Mapping[str, Any],
    config: Config | None,
    runs_dir: Path,
    environment: Mapping[str, str] | None = None,
    bar: bool = True,
    started: Callable[[Client], None] = lambda client: None,
) -> Path:
    """Run a notebook with these parameters; returns the executed one, in the folder of its run or in runs_dir/notebooks.

    environment: variables of its kernel, on top of those here. started is given the client, which can interrupt the kernel.
    Raises CellFailed, Interrupted or MetaugError (one sentence each), PublishError before anything starts; what was executed is
    kept.
    """
    if values.get("publish"):
        from metaug_workbook.plots import gallery  # slow to import: it brings matplotlib

        gallery.refuse_changes()  # before the kernel starts
    run = store.request(config) if config is not None else None
    output = (run.path if run is not None else runs_dir / "notebooks") / path.name
    output.parent.mkdir(parents=True, exist_ok=True)
    of_kernel = {"METAUG_RUNS": str(runs_dir), "PYDEVD_DISABLE_FILE_VALIDATION": "1"} | dict(environment or {})
    options = {"title": path.stem, "run": run, "bar": bar, "started": started, "environment": os.environ | of_kernel}
    logger = logging.getLogger("papermill")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        run_notebook = partial(
            papermill.execute_notebook, path, output, dict(values), engine_name="metaug", progress_bar=False
        )
        try:
            run_notebook(**options)
        except RuntimeError as error:  # of two kernels that start at once one may find its port taken, and dies
            if "died before replying" not in str(error):
                raise
            run_notebook(**options)
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise Interrupted(f"{path.stem} was interrupted{how_to_continue(run)}") from None
        last = (error.evalue.strip() or "no message").splitlines()[-1]
        raise CellFailed(
            f"{path.stem} stopped in cell {error.exec_count}: {error.ename}: {last} (see {output})"
        ) from None
    except KeyboardInterrupt:
        raise Interrupted(f"{path.stem} was interrupted{how_to_continue(run)}") from None
    except (DeadKernelError, CellTimeoutError, NoSuchKernel) as error:
        raise CellFailed(f"{path.stem}: {error}{how_to_continue(run)} (see {output})") from None
    finally:
        logger.setLevel(level)
    return output
