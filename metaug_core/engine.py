"""Runs from their configs to their last checkpoints: one, or several trials side by side, on one process or several."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from metaug_core import data, shards, state, store
from metaug_core.config import Config, ConfigError
from metaug_core.machine import freed_memory_kept, pick_device
from metaug_core.precision import arithmetic
from metaug_core.progress import Reporter, TerminalBar
from metaug_core.registry import METHODS, MetaugError
from metaug_core.session import DivergedError, Session
from metaug_core.stepper import Stepper

# Settings of which images there are, and where they lie.
SHARED = ("dataset", "data_dir", "image_size", "stored_size", "train_images", "val_fraction", "storage", "device")
TOGETHER = (
    *SHARED,
    "precision",
)  # what trials side by side must have in common: torch's switches are the whole process's


@contextmanager
def deferred_interrupt() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM are noted in the list instead of striking in the middle of a step. Outside the main thread, where
    Python takes no signals, it does nothing."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {
        number: signal.signal(number, lambda number, _: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fit(config: Config, report: Reporter | None = None, splits: data.Splits | None = None) -> store.Run:
    """Train the run that config asks for, from its last checkpoint if there is one; a finished run is returned as it is.

    report is called about twice a second (None: a bar on the terminal). splits: the data, if they are loaded already. Under
    `torchrun` all processes train the one run together (`shards`).
    Raises MetaugError (one sentence): missing data, a run that another process trains, a full disk, NaN in the loss.
    """
    return fit_trials([config], report, splits)[0]


def fit_trials(
    configs: Sequence[Config], report: Reporter | None = None, splits: data.Splits | None = None
) -> list[store.Run]:
    """Train several runs of one data set side by side: seeds, or values of any setting. Each is the run that `fit` would make of
    its config, with its own weights, order, draws, bank and folder; on CUDA one graph holds a step of all of them.

    report hears of the trial that has most steps to do. A trial that fails does not stop the others; its error is raised when
    they are done. Raises as `fit`, and ConfigError if the configs are not of the same images.
    """
    runs = [store.request(config) for config in configs]
    if all(run.finished for run in runs):
        return runs
    one_data_set(configs)
    device = pick_device(configs[0].device)
    shards.join(device)
    with ExitStack() as stack:
        if shards.rank() == 0:
            for run in unfinished(runs):
                stack.enter_context(run.lock())
        shards.wait()
        todo = unfinished(runs)  # asked again: who had a lock a moment ago may have finished the run
        if not todo:
            return runs
        stack.enter_context(torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []))
        stack.enter_context(freed_memory_kept())
        stack.enter_context(arithmetic(configs[0].precision))
        drive(opened(todo, splits or data.load(todo[0].config, device), device, report or TerminalBar()))
    return runs


def unfinished(runs: Sequence[store.Run]) -> list[store.Run]:
    """Each run that is not finished, once."""
    return list({run.path: run for run in runs if not run.finished}.values())


def one_data_set(configs: Sequence[Config]) -> None:
    """ConfigError if trials do not share images, device and precision, or cannot be divided among the processes."""
    for name in TOGETHER:
        if len({getattr(config, name) for config in configs}) > 1:
            raise ConfigError(f"trials share images, device and precision, but differ in {name}")
    for config in configs:
        if config.batch_size % shards.started():
            raise ConfigError(f"batch_size {config.batch_size} cannot be divided among {shards.started()} processes")
        if shards.started() > 1 and not METHODS[config.method].description.divided:
            raise ConfigError(f"method {config.method!r} trains in one process only, got {shards.started()}")


def opened(runs: list[store.Run], splits: data.Splits, device: str, report: Reporter) -> list[Session]:
    """A session for each run, from its last checkpoint; the one with most to do reports."""
    sessions = []
    for run in runs:
        s = state.create(run.config, splits, device)
        if device != "cpu":
            torch.manual_seed(run.config.seed)  # for a user's dropout; on the CPU every run has numbers of its own
        if run.checkpoint.exists():
            state.restore(s, run.checkpoint)
        if shards.rank() == 0:
            store.begin(run, s.step, device)
        sessions.append(Session(run, s, splits, lambda _: None))
    max(sessions, key=lambda x: x.steps - x.s.step).report = report
    return sessions


def drive(sessions: list[Session]) -> None:
    """All sessions to their ends, a step of each at a time."""
    step, errors = Stepper([session.s for session in sessions]), []
    with deferred_interrupt() as interrupted:
        work = [session.work(interrupted) for session in sessions]
        found: dict[int, Any] = dict.fromkeys(range(len(sessions)))  # to start a generator, None is sent
        while found:
            asked = {}
            for number, metrics in found.items():
                try:
                    asked[number] = work[number].send(metrics)
                except StopIteration:
                    sessions[number].finish()
                except (MetaugError, KeyboardInterrupt) as error:
                    if isinstance(error, DivergedError):
                        sessions[number].fail(error)
                    errors.append(error)
            found = step(asked) if asked else {}
    if errors:
        raise next((e for e in errors if isinstance(e, KeyboardInterrupt)), errors[0])
