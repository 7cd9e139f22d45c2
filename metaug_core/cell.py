"""One cell of a sweep as a Dask worker does it: the notebook by papermill, then the evaluation. Only dicts and texts come and go.

Also a preload of workers (`dask worker --preload metaug_core.cell`): Ctrl-C in a terminal then stops the sweep, not them.
"""

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from metaug_core import data, encoders, extensions, headless, methods, results, store, views  # noqa: F401  (the registries)
from metaug_core.headless import Client, Interrupted
from metaug_core.registry import MetaugError

STOPPED: set[str] = set()  # sessions of `metaug sweep` that were interrupted
RUNNING: dict[tuple[str, int], Client] = {}  # session and thread -> the kernel last started there
EVALUATING = threading.Lock()  # a worker of several threads: untrained encoders are drawn from torch's one generator


def dask_setup(worker: Any) -> None:
    """A worker's event loop is its main thread, where signals are set; its kernels have sessions of their own."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, lambda *_: None)


def work(cell: dict[str, Any]) -> dict[str, Any]:
    """Execute the notebook of a cell and evaluate its run, or find what is there of it. Never raises for what a user can mend.

    cell: session, run (name), given (texts of settings), notebook, imports, runs_dir, sweep (folder), and evaluate (of `Wanted`).
    Returns run, state (finished, failed or interrupted), error (a sentence or None), notebook (path of the executed one), seconds.
    """
    started, state, error = time.monotonic(), "finished", None
    try:
        if cell["session"] in STOPPED:
            raise Interrupted("the sweep was interrupted")
        see_store(cell["sweep"])
        for file in cell["imports"]:
            extensions.load(file)
        execute(cell)
    except Interrupted:
        state = "interrupted"
    except MetaugError as found:
        state, error = "failed", str(found)
    except Exception as found:  # whatever breaks one cell, the others go on
        state, error = "failed", f"{type(found).__name__}: {found}"
    if state == "failed" and cell["session"] in STOPPED:
        state = "interrupted"  # a kernel that is being stopped may fail in any way
    executed = Path(cell["runs_dir"]) / cell["run"] / headless.find(cell["notebook"]).name
    return {
        "run": cell["run"],
        "state": state,
        "error": error,
        "notebook": str(executed) if executed.exists() else None,
        "seconds": round(time.monotonic() - started, 1),
        "worker": os.getpid(),
    }


def execute(cell: dict[str, Any]) -> None:
    runs_dir, path = Path(cell["runs_dir"]), headless.find(cell["notebook"])
    values, config = headless.checked(path, cell["given"], cell["imports"])
    if config is None or config.name() != cell["run"]:
        raise MetaugError(
            f"the worker understands the settings of {cell['run']} otherwise: is its workbook the same version?"
        )
    config = config.replace(runs_dir=runs_dir)
    headless.execute(path, values, config, runs_dir, bar=False, started=partial(note, cell["session"]))
    if not (run := store.request(config)).finished:
        raise MetaugError(f"{path.name} ended, but it did not train its run {run.path.name}")
    with EVALUATING:
        row = results.made([config], **cell["evaluate"], view=silent).to_dict("records")[0]
    if row["state"] == "failed":
        raise MetaugError(row["failure"])


def silent(runs: int) -> results.RunsReporter:
    return lambda done, at: None


def see_store(sweep: str) -> None:
    """MetaugError if this process does not see the sweep's folder, which the main process has made."""
    if not (Path(sweep) / "sweep.json").exists():
        raise MetaugError(f"a worker does not see {sweep}: --runs-dir must be on a file system that all of them share")


def note(session: str, client: Client) -> None:
    RUNNING[session, threading.get_ident()] = client
    if session in STOPPED:
        raise Interrupted("the sweep was interrupted")


def stop(session: str) -> None:
    """Interrupt the kernels that work for a session, so that their runs save; cells of it that come later do not start."""
    STOPPED.add(session)
    for (whose, _), client in list(RUNNING.items()):
        manager: Any = client.km
        if whose == session and manager is not None and manager.has_kernel:
            client.interrupt()


def ready(sweep: str, imports: list[str]) -> str | None:
    """What a worker lacks for a sweep, in a sentence; None: nothing."""
    try:
        see_store(sweep)
        for file in imports:
            extensions.load(file)
    except MetaugError as error:
        return str(error)
    return None
