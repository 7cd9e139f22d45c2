"""Dask: workers on this machine, or those of a scheduler that runs already; and results as they come."""

import logging
import os
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import dask.config
from distributed import Client, Future, LocalCluster

from metaug_core.errors import MetaugError
from metaug_workbook.jobs.children import limited

CONNECT_SECONDS = 15
LOSSES = 3  # how often a cell is given to another worker after its own died


class ClusterError(MetaugError):
    """The scheduler or its workers cannot be used."""


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def connected(scheduler: str | None, workers: int, preload: str) -> Iterator[Client]:
    """A client of the scheduler at an address, or (None) of so many worker processes here, each with its share of the cores.

    Here everything listens on 127.0.0.1 only and there is no dashboard. preload: a module that every worker here imports first.
    Raises ClusterError if the scheduler does not answer or the workers do not start.
    """
    threads = limited(max(1, cores() // max(workers, 1)))
    options = {
        "distributed.nanny.pre-spawn-environ": threads | {"MALLOC_TRIM_THRESHOLD_": 65536},
        "distributed.scheduler.allowed-failures": LOSSES,
        "distributed.comm.timeouts.connect": f"{CONNECT_SECONDS}s",
    }
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(options))
        for name in ("distributed", "tornado.application"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            address: Any = scheduler or stack.enter_context(local(workers, preload))
            client = stack.enter_context(Client(address, timeout=CONNECT_SECONDS, set_as_default=False))
        except (OSError, TimeoutError, RuntimeError, ValueError) as error:
            where = f"no scheduler answers at {scheduler}" if scheduler else "the workers could not be started"
            raise ClusterError(
                f"{where}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            ) from None
        yield client


def local(workers: int, preload: str) -> LocalCluster:
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address=None,  # type: ignore[arg-type]
        memory_limit=None,  # the kernels hold the memory, not the workers
        silence_logs=logging.CRITICAL,
        preload=[preload],
    )


def submitted(
    client: Client,
    work: Callable[..., Any],
    tasks: Mapping[str, Any],
    groups: Sequence[Sequence[str]],
    before: Callable[[list[Any]], Any],
) -> "queue.Queue[Future]":
    """Hand tasks {key: argument} to the workers; a queue gets each future when it is done. A lost worker's task is done again.

    groups: all keys, in the order of their turn. Of a group of several, before(arguments) is done first, and each of its tasks is
    given the result as second argument.
    """
    done: queue.Queue[Future] = queue.Queue()
    for number, keys in enumerate(groups):
        how = {"pure": False, "priority": -number}
        whole = [tasks[key] for key in keys]
        first = [client.submit(before, whole, key=f"{keys[0]}-before", **how)] if len(keys) > 1 else []
        for key in keys:
            future = client.submit(work, tasks[key], *first, key=key, **how)
            future.add_done_callback(done.put)
    return done


def outcome(future: Future) -> Any:
    """What a task returned. ClusterError (one sentence) if its workers died, again and again, or the scheduler is gone."""
    if future.status == "finished":
        return future.result()
    if future.status in ("cancelled", "lost"):
        raise ClusterError("the scheduler is gone; the same command goes on")
    error = future.exception()
    if type(error).__name__ == "KilledWorker":
        raise ClusterError(f"its worker died {LOSSES + 1} times (out of memory?)")
    raise ClusterError(f"{type(error).__name__}: {error}")


def on_all_workers(client: Client, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """{worker's address: what the function returns there}. ClusterError if a worker cannot import it."""
    try:
        return cast(dict[str, Any], client.run(function, *arguments))
    except Exception as error:
        raise ClusterError(
            f"the workers cannot be used: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from None
