"""One cell of a sweep as a Dask worker does it: the notebook by papermill, then the evaluation. Only dicts and texts come and go.

Also a preload of workers (`dask worker --preload metaug_workbook.jobs.cell`): Ctrl-C in a terminal then stops the sweep, not them.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from metaug_core import extensions
from metaug_core.config import Config
from metaug_core.errors import MetaugError
from metaug_core.runs import store
from metaug_core.training.progress import silent
from metaug_core.views import augmentation  # noqa: F401  (registries)
from metaug_workbook import papermill_runner
from metaug_workbook.jobs import children, making, together
from metaug_workbook.papermill_runner import Client, Interrupted

STOPPED: set[str] = set()  # sessions of `metaug sweep` that were interrupted
RUNNING: dict[tuple[str, int], Callable[[], Any]] = {}  # session and thread -> interrupts what was last started there
EVALUATING = threading.Lock()  # a worker of several threads: untrained encoders are drawn from torch's one generator


def dask_setup(worker: Any) -> None:
    """A worker's event loop is its main thread, where signals are set; its kernels have sessions of their own."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, lambda *_: None)


def work(cell: dict[str, Any], *_: None) -> dict[str, Any]:
    """Execute the notebook of a cell and evaluate its run, or find what is there of it. Never raises for what a user can mend.

    cell: session, run (name), given (texts of settings), notebook, imports, runs_dir, sweep (folder), and evaluate (of `Wanted`).
    Further arguments are only waited for: the nothing that `trained` returns.
    Returns run, state (finished, failed or interrupted), error (a sentence or None), notebook (path of the executed one), seconds.
    """
    started, state, error = time.monotonic(), "finished", None
    executed = Path(cell["runs_dir"]) / cell["run"] / Path(cell["notebook"]).with_suffix(".ipynb").name
    try:
        if cell["session"] in STOPPED:
            raise Interrupted("the sweep was interrupted")
        prepare(cell["sweep"], cell["imports"])
        execute(cell)
    except Interrupted:
        state = "interrupted"
    except MetaugError as found:
        state, error = "failed", str(found).removesuffix(f" (see {executed})")
    except Exception as found:  # whatever breaks one cell, the others go on
        state, error = "failed", f"{type(found).__name__}: {found}"
    if state == "failed" and cell["session"] in STOPPED:
        state = "interrupted"  # a kernel that is being stopped may fail in any way
    return {
        "run": cell["run"],
        "state": state,
        "error": error,
        "notebook": str(executed) if executed.exists() else None,
        "seconds": round(time.monotonic() - started, 1),
        "worker": os.getpid(),
    }


def trained(cells: list[dict[str, Any]]) -> None:
    """Train the runs of several cells side by side in a process of their own. Never raises: what is not trained to its end, for
    whatever reason, the cell's notebook trains, or says why it cannot be."""
    session, log = cells[0]["session"], Path(cells[0]["sweep"]) / "together.log"
    with suppress(Exception):  # whatever it is, the cells go on and meet it themselves
        if session in STOPPED:
            return
        prepare(cells[0]["sweep"], cells[0]["imports"])
        configs = [config for _, _, config in map(asked, cells) if not store.request(config).finished]
        if len(configs) > 1:
            with together.started(cells[0]["imports"], configs, log) as child:
                note(session, partial(children.stop, child))
                child.wait()


def asked(cell: dict[str, Any]) -> tuple[Path, dict[str, Any], Config]:
    """The notebook of a cell, what is injected into it, and the config of its run. MetaugError if that is not the run meant."""
    path = papermill_runner.find(cell["notebook"])
    values, config = papermill_runner.checked(path, cell["given"], cell["imports"])
    if config is None or config.name() != cell["run"]:
        raise MetaugError(
            f"the worker understands the settings of {cell['run']} otherwise: is its workbook the same version?"
        )
    return path, values, config.replace(runs_dir=Path(cell["runs_dir"]))


def execute(cell: dict[str, Any]) -> None:
    path, values, config = asked(cell)

    def started(client: Client) -> None:
        note(cell["session"], partial(interrupt, client))

    papermill_runner.execute(path, values, config, config.runs_dir, bar=False, started=started)
    if not (run := store.request(config)).finished:
        raise MetaugError(f"{path.name} ended, but it did not train its run {run.path.name}")
    with EVALUATING:
        row = making.made([config], **cell["evaluate"], view=silent).to_dict("records")[0]
    if row["state"] == "failed":
        raise MetaugError(row["failure"])


def prepare(sweep: str, imports: list[str]) -> None:
    """MetaugError if this process does not see the sweep's folder, which the main process has made, or cannot import the user's
    files."""
    if not (Path(sweep) / "sweep.json").exists():
        raise MetaugError(f"a worker does not see {sweep}: --runs-dir must be on a file system that all of them share")
    for file in imports:
        extensions.load(file)


def note(session: str, interrupt: Callable[[], Any]) -> None:
    RUNNING[session, threading.get_ident()] = interrupt
    if session in STOPPED:
        raise Interrupted("the sweep was interrupted")


def interrupt(client: Client) -> None:
    manager: Any = client.km
    if manager is not None and manager.has_kernel:
        client.interrupt()


def stop(session: str) -> None:
    """Interrupt what trains for a session, so that its runs are saved; cells of it that come later do not start."""
    STOPPED.add(session)
    for (whose, _), strike in list(RUNNING.items()):
        if whose == session:
            strike()


def ready(sweep: str, imports: list[str]) -> str | None:
    """What a worker lacks for a sweep, in a sentence; None: nothing."""
    try:
        prepare(sweep, imports)
    except MetaugError as error:
        return str(error)
    return None
