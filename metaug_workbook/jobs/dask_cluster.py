"""The workers of a Dask scheduler, behind the interface of `concurrent.futures`. Needs the extra `dask`.

Also a preload of workers (`dask worker --preload metaug_workbook.jobs.dask_cluster`): Ctrl-C in a terminal then stops the sweep,
not them.
"""

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from metaug_core import extensions
from metaug_core.errors import MetaugError

CONNECT_SECONDS = 15
LOSSES = 3  # how often a job is given to another worker after its own died


class ClusterError(MetaugError):
    """The scheduler or its workers cannot be used."""


@contextmanager
def connect(scheduler: str, folder: Path, imports: Sequence[str]) -> Iterator[Executor]:
    """The workers of the scheduler at an address, tcp://host:port. They must see folder and be able to import the user's files.
    Raises ClusterError (no Dask, no answer, a worker that lacks something)."""
    try:
        import dask.config
        from distributed import Client
    except ImportError:
        raise ClusterError("--scheduler needs Dask: pip install 'metaug-workbook[dask]'") from None
    for name in ("distributed", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    options = {
        "distributed.scheduler.allowed-failures": LOSSES,
        "distributed.comm.timeouts.connect": f"{CONNECT_SECONDS}s",
    }
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(options))
        try:
            client: Any = stack.enter_context(Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False))
        except (OSError, TimeoutError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ClusterError(f"no scheduler answers at {scheduler}: {reason}") from None
        try:
            lacks = client.run(describe_lack, str(folder), list(imports))
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else ""
            raise ClusterError(f"the workers cannot be used: {type(error).__name__}: {reason}") from None
        for address, lack in lacks.items():
            if lack:
                raise ClusterError(f"worker {address}: {lack}")
        yield client.get_executor()


def describe_lack(folder: str, imports: Sequence[str]) -> str | None:
    """What a worker lacks, in a sentence; None: nothing."""
    if not Path(folder).exists():
        return f"does not see {folder}: --runs-dir must be on a file system that all workers share"
    try:
        for file in imports:
            extensions.load(file)
    except MetaugError as error:
        return str(error)
    return None


def dask_setup(worker: Any) -> None:
    """A worker's event loop is its main thread, where signals are set; its kernels have sessions of their own."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, lambda *_: None)
