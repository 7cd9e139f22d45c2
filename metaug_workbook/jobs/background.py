"""A run trained in a process of its own: the notebook that started it stays usable, and its kernel may die.

Whoever watches needs the run's folder alone, from this kernel, another one or another machine: the run's lock says that it is being
trained, `stop.request` asks it to save and stop, and the log holds its last words. A request rather than a signal: there is no
process number that could by now be a stranger's.

    python -m metaug_workbook.jobs.background RUN_FOLDER
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from metaug_core.config import Config
from metaug_core.errors import MetaugError, Paused
from metaug_core.runs import files, store
from metaug_core.runs.store import Run
from metaug_core.training import loop
from metaug_workbook.jobs.processes import start_process

LOG = "background.log"
PAUSED, FAILED = "paused", "stopped"  # first words of the log's last line

# Started by this process: alive before they have their lock, and to be reaped.
children: dict[Path, Any] = {}


def start(config: Config) -> Run:
    """Train the run of config in the background, from its last checkpoint if there is one; nothing happens if it is trained
    already or finished. Raises StoreError if its folder cannot be written.

    The process knows only methods, encoders and data sets that the package registers, not those of a notebook.
    """
    run = store.request(config)
    if run.finished or is_alive(run):
        return run
    files.write_json(run.path / "config.json", config.model_dump(mode="json"))
    run.clear_stop_request()
    with (run.path / LOG).open("wb") as log:
        words = [__name__, str(run.path.resolve())]
        children[run.path] = start_process(words, log, {}, subprocess.DEVNULL, log)
    return run


def stop(run: Run) -> None:
    """Ask a run to save after the step under way and end; `start` goes on from there. Does not wait."""
    if is_alive(run):
        run.request_stop()


def is_alive(run: Run) -> bool:
    """Whether a process trains the run, started by whomever."""
    child = children.get(run.path)
    return (child is not None and child.poll() is None) or run.busy


def state(run: Run) -> str:
    """finished, starting, training, saving, paused (a checkpoint to go on from), failed or new (nothing to go on from)."""
    if run.finished:
        return "finished"
    if is_alive(run):
        if run.stop_requested:
            return "saving"
        log, timing = run.path / LOG, run.path / "timing.jsonl"
        begun = timing.exists() and timing.stat().st_size
        return "training" if begun and not files.is_newer(log, timing) else "starting"
    if last_words(run) and not last_words(run).startswith(PAUSED):
        return "failed"
    return "paused" if run.checkpoints else "new"


def last_words(run: Run) -> str:
    """The last line that the run's process said; empty while it trains."""
    try:
        lines = (run.path / LOG).read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line.strip()), "")


def train(folder: Path) -> int:
    """The body of the process; its exit code is 0 (finished or paused) or 1."""
    run = None
    try:
        run = store.open_run(folder, folder.parent)
        store.check_current(run)
        if not run.stop_requested:
            loop.fit(run.config, lambda at: None)
            return 0
        print(f"{PAUSED} before it began", flush=True)
    except (KeyboardInterrupt, Paused):
        print(f"{PAUSED} and saved", flush=True)
    except MetaugError as error:
        print(f"{FAILED}: {error}", flush=True)
        if run is not None and not run.sessions and not run.busy:  # nothing was trained, so it is no run to be listed
            (folder / "config.json").unlink()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(train(Path(sys.argv[1])))
