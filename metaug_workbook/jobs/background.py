"""A run trained in a process of its own: the notebook that started it stays usable, and its kernel may die.

Whoever watches needs the run's folder alone, from this kernel, another one or another machine: a lock says that the run is being
trained, a request asks it to save and stop, and the log holds its last words. A request rather than a signal: there is no process
number that could by now be a stranger's.

    python -m metaug_workbook.jobs.background RUN_FOLDER
"""

import _thread
import subprocess
import sys
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

from metaug_core.config import Config
from metaug_core.errors import MetaugError
from metaug_core.runs import store
from metaug_core.runs.store import Run
from metaug_core.training import loop
from metaug_workbook.jobs.children import Child, detached

LOCK, REQUEST, LOG = ".background.lock", "stop.request", "background.log"
LOOK_SECONDS = 0.1  # between two looks for a request
LOCK_SECONDS = 5.0  # a watcher holds the lock for a moment when it asks whether the run is alive
PAUSED, FAILED = "paused", "stopped"  # first words of the log's last line

# Started by this process: alive before they have their lock, and to be reaped.
children: dict[Path, Child] = {}


def start(config: Config) -> Run:
    """Train the run of config in the background, from its last checkpoint if there is one; nothing happens if it is trained
    there already or finished. Raises StoreError if its folder cannot be written.

    The process knows only methods, encoders and data sets that the package registers, not those of a notebook.
    """
    run = store.request(config)
    if run.finished or alive(run):
        return run
    store.write_json(run.path / "config.json", config.model_dump(mode="json"))
    (run.path / REQUEST).unlink(missing_ok=True)
    with (run.path / LOG).open("wb") as log:
        words = ["metaug_workbook.jobs.background", str(run.path.resolve())]
        children[run.path] = detached(words, log, subprocess.DEVNULL, {})
    return run


def stop(run: Run) -> None:
    """Ask a run in the background to save after the step under way and end; `start` goes on from there. Does not wait."""
    if alive(run):
        store.write(run.path / REQUEST, b"")


def alive(run: Run) -> bool:
    """Whether a process trains the run in the background, started by whomever."""
    child = children.get(run.path)
    if child is not None and child.poll() is None:
        return True
    if not (run.path / LOCK).exists():
        return False
    try:
        with FileLock(run.path / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def state(run: Run) -> str:
    """finished, starting, training, saving, paused (a checkpoint to go on from), failed or new (nothing to go on from)."""
    if run.finished:
        return "finished"
    if alive(run):
        if (run.path / REQUEST).exists():
            return "saving"
        log, timing = run.path / LOG, run.path / "timing.jsonl"
        going = timing.exists() and timing.stat().st_size and timing.stat().st_mtime_ns > log.stat().st_mtime_ns
        return "training" if going else "starting"
    if last_words(run) and not last_words(run).startswith(PAUSED):
        return "failed"
    return "paused" if run.checkpoint.exists() else "new"


def last_words(run: Run) -> str:
    """The last line that the run's process said; empty while it trains."""
    try:
        lines = (run.path / LOG).read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line.strip()), "")


def obey(request: Path) -> None:
    """Interrupt the main thread, as Ctrl-C does, as soon as there is a request."""
    while not request.exists():
        time.sleep(LOOK_SECONDS)
    _thread.interrupt_main()


def train(folder: Path) -> int:
    """The body of the process; its exit code is 0 (finished or paused) or 1."""
    try:
        run = store.open_run(folder, folder.parent)
        store.check_current(run)
        with FileLock(run.path / LOCK, timeout=LOCK_SECONDS):
            threading.Thread(target=obey, args=(run.path / REQUEST,), daemon=True).start()
            loop.fit(run.config, lambda at: None)
    except KeyboardInterrupt:
        print(f"{PAUSED} and saved", flush=True)
        return 0
    except Timeout:
        print(f"{FAILED}: another process trains the run in the background", flush=True)
    except MetaugError as error:
        print(f"{FAILED}: {error}", flush=True)
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(train(Path(sys.argv[1])))
