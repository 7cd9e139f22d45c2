"""Worker processes on this machine, behind the interface of `concurrent.futures`.

A worker reads calls as lines of JSON from stdin and answers each with a line. Its owner keeps stdin open: when that is closed,
on purpose or because the owner died, the worker's main thread is interrupted as by Ctrl-C, saves and ends. What it prints goes to
a log.
"""

import _thread
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from metaug_core.errors import MetaugError

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# How OpenMP's threads wait in the processes that are started here: a moment, then asleep. By default they keep their cores busy,
# and two threads take several times as long as soon as anything else runs. GNU's OpenMP, which torch's wheels have, counts spins.
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
LOSSES = 3  # how often a call is repeated after its worker died
SAVE_SECONDS = 60.0  # that workers have to save when they are stopped

Call = tuple["Future[Any]", dict[str, Any]]


class WorkerDiedError(MetaugError):
    """The worker of a call died, and so did those that repeated it."""


def start_process(words: Sequence[str], log: IO[bytes], environment: Mapping[str, str], stdin: int, stdout: Any) -> Any:
    """A process that runs a module, the first word, in a session of its own, as kernels have: Ctrl-C in a terminal, or the end of
    a kernel's whole process group, does not reach it. Its idle threads sleep, unless the environment says otherwise (`WAITING`).
    Raises OSError."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", *words],
        stdin=stdin, stdout=stdout, stderr=log, env={**WAITING, **os.environ, **environment},
        start_new_session=True, creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )  # fmt: skip


# --- of the owner
class LocalProcesses(Executor):
    """So many worker processes, each with so many threads. Functions are given by module and name, arguments and results as JSON.

    A worker starts with its first call. One that dies is replaced and its call repeated; after LOSSES more deaths the future
    raises WorkerDiedError. What a call raises as MetaugError, its future raises as one of the same sentence.
    """

    def __init__(self, workers: int, log: Path, threads: int = 1):
        self.log = log
        self.environment: dict[str, str] = dict.fromkeys(THREADS, str(threads))
        self.calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self.stopping = threading.Event()
        self.workers: dict[int, Any] = {}
        self.servants = [threading.Thread(target=self.serve, args=(n,), daemon=True) for n in range(workers)]
        for servant in self.servants:
            servant.start()

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **_: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        self.calls.put((future, {"module": fn.__module__, "name": fn.__qualname__, "arguments": arguments}))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers after the calls that are left, or with cancel_futures now: those under way save and are cancelled."""
        if cancel_futures:
            self.stopping.set()
            for worker in list(self.workers.values()):
                with suppress(OSError):
                    worker.stdin.close()
        for _ in self.servants:
            self.calls.put(None)
        until = time.monotonic() + SAVE_SECONDS
        for servant in self.servants if wait else ():
            servant.join(max(0.0, until - time.monotonic()) if cancel_futures else None)
        if cancel_futures:
            for worker in self.workers.values():
                worker.kill()

    def serve(self, number: int) -> None:
        """One worker's thread: hand over calls and take in answers."""
        while (call := self.calls.get()) is not None:
            future, values = call
            if self.stopping.is_set() or not future.set_running_or_notify_cancel():
                future.cancel()
                continue
            try:
                answer = self.ask(number, values)
            except BaseException as error:
                future.set_exception(error)
            else:
                if "error" in answer:
                    future.set_exception(MetaugError(answer["error"]))
                else:
                    future.set_result(answer["result"])
        if worker := self.workers.get(number):
            close(worker)

    def ask(self, number: int, values: dict[str, Any]) -> dict[str, Any]:
        """The answer of a worker to a call. Raises WorkerDiedError, CancelledError, OSError if none can be started."""
        for _ in range(LOSSES + 1):
            worker = self.workers.get(number)
            if worker is None or worker.poll() is not None:
                worker = self.workers[number] = self.start()
            with suppress(OSError, ValueError):  # it died, or was stopped a moment ago
                worker.stdin.write(json.dumps(values).encode() + b"\n")
                worker.stdin.flush()
                if line := worker.stdout.readline():
                    return json.loads(line)
            close(worker)
            if self.stopping.is_set():
                raise CancelledError
        raise WorkerDiedError(f"its process died {LOSSES + 1} times (out of memory?)")

    def start(self) -> Any:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            return start_process([__name__], log, self.environment, subprocess.PIPE, subprocess.PIPE)


def close(worker: Any) -> None:
    """Have a worker end, and wait for it."""
    with suppress(OSError):
        worker.stdin.close()
    worker.wait()
    worker.stdout.close()


# --- of the worker
def answer_calls() -> None:
    """Answer calls until stdin ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=read_lines, args=(lines,), daemon=True).start()
    with suppress(KeyboardInterrupt, BrokenPipeError):
        while (line := lines.get()) is not None:
            call = json.loads(line)
            try:
                function = getattr(import_module(call["module"]), call["name"])
                answer: dict[str, Any] = {"result": function(*call["arguments"])}
            except MetaugError as error:
                answer = {"error": str(error)}
            except Exception as error:  # whatever breaks one call, the next ones are answered
                answer = {"error": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()


def read_lines(lines: "queue.SimpleQueue[bytes | None]") -> None:
    """Lines of stdin into the queue. At its end the main thread is interrupted."""
    rest = b""
    while part := os.read(0, 1 << 16):  # not sys.stdin, whose lock a thread must not hold when Python ends
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            lines.put(line)
    lines.put(None)
    _thread.interrupt_main()


if __name__ == "__main__":
    answer_calls()
