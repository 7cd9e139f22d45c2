"""A process of our own that works for another: how it is started, gets its work, and ends.

It reads its work as one line of stdin, which whoever started it keeps open: it saves and ends when that is closed, be it on purpose
or because its owner died. What it has to say goes to a log.
"""

import _thread
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from metaug_core.errors import MetaugError

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
Child = subprocess.Popen[bytes]


def limited(threads: int) -> dict[str, str]:
    """The environment variables that hold numerical libraries to so many threads."""
    return dict.fromkeys(THREADS, str(threads))


# --- of the owner
def started(module: str, work: dict[str, Any], log: Path, threads: int | None = None) -> Child:
    """A process that runs a module on this work, a JSON object. threads: at most so many (None: as many as here). Raises OSError
    if it cannot be started."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        child = detached([module], file, subprocess.PIPE, limited(threads) if threads else {})
    # From a thread: the work of many runs is more than a pipe holds, and a child reads only when torch is imported.
    threading.Thread(target=hand_over, args=(child, work), daemon=True).start()
    return child


def detached(words: Sequence[str], log: IO[bytes], stdin: int, environment: Mapping[str, str]) -> Child:
    """A process that runs a module, the first word, in a session of its own, as kernels have: Ctrl-C in a terminal, or the end of
    a kernel's whole process group, does not reach it."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", *words],
        stdin=stdin, stdout=log, stderr=log, env=os.environ | environment,
        start_new_session=True, creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )  # fmt: skip


def hand_over(child: Child, work: dict[str, Any]) -> None:
    assert child.stdin is not None
    with suppress(OSError, ValueError):  # it died, or is stopped already
        child.stdin.write(json.dumps(work).encode() + b"\n")
        child.stdin.flush()


def stop(child: Child) -> None:
    """Have it save after the step under way and end. Does not wait."""
    if child.stdin is not None:
        child.stdin.close()


# --- of the child
def serve(body: Callable[[dict[str, Any]], None], farewell: str) -> int:
    """Do the owner's work; 0, or 1 if it was stopped (farewell goes to the log) or ended in a MetaugError (its sentence does)."""
    try:
        body(work())
    except KeyboardInterrupt:
        say(farewell)
    except MetaugError as error:
        say(str(error))
    else:
        return 0
    return 1


def work() -> dict[str, Any]:
    """What the owner wants done. From here on the main thread is interrupted, as by Ctrl-C, as soon as stdin ends."""
    found = json.loads(sys.stdin.readline())
    threading.Thread(target=obey, daemon=True).start()
    return found


def obey() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock a thread must not hold when Python ends
        pass
    _thread.interrupt_main()


def say(text: str) -> None:
    print(f"process {os.getpid()}: {text}", flush=True)
