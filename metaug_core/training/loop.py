"""Runs from their configs to their last checkpoints: one, or several trials side by side, on one process or several."""

import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from metaug_core.config import Config, ConfigError
from metaug_core.data import datasets
from metaug_core.errors import MetaugError
from metaug_core.registry import METHODS
from metaug_core.runs import store
from metaug_core.runtime import distributed
from metaug_core.runtime.devices import freed_memory_kept, pick_device
from metaug_core.runtime.precision import arithmetic
from metaug_core.training import state
from metaug_core.training.cuda_graphs import Stepper, not_captured_because
from metaug_core.training.progress import Reporter, TerminalBar
from metaug_core.training.session import Session

# Settings of which images there are, and where they lie.
SHARED = (*datasets.IMAGES, "storage", "device")
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


def fit(config: Config, report: Reporter | None = None, splits: datasets.Splits | None = None) -> store.Run:
    """Train the run that config asks for, from its last checkpoint if there is one; a finished run is returned as it is.

    report is called about twice a second (None: a bar on the terminal). splits: the data, if they are loaded already; those of
    other images are refused (`data.refuse_foreign`). Under `torchrun` all processes train the one run together (`shards`).
    Raises MetaugError (one sentence): missing data, a run that another process trains, a full disk, NaN in the loss.
    """
    return fit_trials([config], report, splits)[0]


def fit_trials(
    configs: Sequence[Config], report: Reporter | None = None, splits: datasets.Splits | None = None
) -> list[store.Run]:
    """Train several runs of one data set side by side: seeds, or values of any setting. Each is the run that `fit` would make of
    its config, with its own weights, order, draws, bank and folder; on CUDA one graph holds a step of all of them.

    report hears of the trial that has most steps to do. A trial that fails does not stop the others; its error, or the first of
    several, is raised when they are done. Raises as `fit`, and ConfigError if the configs are not of the same images and precision.
    """
    runs, failures = attempt(configs, report, splits)
    for error in failures.values():
        raise error
    return runs


def attempt(
    configs: Sequence[Config], report: Reporter | None = None, splits: datasets.Splits | None = None
) -> tuple[list[store.Run], dict[str, MetaugError]]:
    """As `fit_trials`, but with the errors of the runs that failed by the names of the runs, the earliest first. Raises what is not
    one run's own: configs that do not belong together, missing data, BusyError (then nothing was trained)."""
    runs, failures = [store.request(config) for config in configs], {}
    if all(run.finished for run in runs):
        return runs, failures
    one_data_set(configs)
    device = pick_device(configs[0].device)
    if splits is not None:
        check_splits(splits, configs[0], device)
    distributed.join(device)
    with ExitStack() as stack:
        if distributed.rank() == 0:
            for run in unfinished(runs):
                with keep_failure(run, failures):
                    stack.enter_context(run.lock())
        distributed.wait()
        todo = [run for run in unfinished(runs) if run.path.name not in failures]
        if not todo:  # who had a lock a moment ago may have finished the run
            return runs, failures
        stack.enter_context(torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []))
        stack.enter_context(freed_memory_kept())
        stack.enter_context(arithmetic(configs[0].precision))
        splits = splits or datasets.load(todo[0].config, device)
        drive(opened(todo, splits, device, report or TerminalBar(), failures), failures)
    return runs, failures


@contextmanager
def keep_failure(run: store.Run, failures: dict[str, MetaugError]) -> Iterator[None]:
    """A MetaugError within is kept as the run's, so that it does not stop the others. Raised all the same: that another process
    trains the run, which passes; and any error under several processes, which must go on or end together."""
    try:
        yield
    except MetaugError as error:
        if isinstance(error, store.BusyError) or distributed.count() > 1:
            raise
        failures.setdefault(run.path.name, error)


def check_splits(splits: datasets.Splits, config: Config, device: str) -> None:
    """ConfigError if splits are of other images than config's, or lie elsewhere."""
    datasets.refuse_foreign(splits, config)
    where = splits.train.labels.device.type
    if where != device:
        raise ConfigError(f"splits lie on {where}, but the run is to train on {device}: data.load(config, {device!r})")


def unfinished(runs: Sequence[store.Run]) -> list[store.Run]:
    """Each run that is not finished, once."""
    return list({run.path: run for run in runs if not run.finished}.values())


def one_data_set(configs: Sequence[Config]) -> None:
    """ConfigError if trials do not share images, device and precision, or cannot be divided among the processes."""
    for name in TOGETHER:
        if len({getattr(config, name) for config in configs}) > 1:
            raise ConfigError(f"trials share images, device and precision, but differ in {name}")
    for config in configs:
        if config.batch_size % distributed.started():
            raise ConfigError(
                f"batch_size {config.batch_size} cannot be divided among {distributed.started()} processes"
            )
        if distributed.started() > 1 and not METHODS[config.method].description.divided:
            raise ConfigError(f"method {config.method!r} trains in one process only, got {distributed.started()}")


def opened(
    runs: list[store.Run], splits: datasets.Splits, device: str, report: Reporter, failures: dict[str, MetaugError]
) -> list[Session]:
    """A session for each run, from its last checkpoint; the one with most to do reports. What cannot be opened is left out, its
    error kept in failures."""
    states: dict[store.Run, state.TrainState] = {}
    for run in runs:
        with keep_failure(run, failures):
            s = state.create(run.config, splits, device)
            if run.checkpoint.exists():
                state.restore(s, run.checkpoint)
            states[run] = s
    sessions = []
    for run, s in states.items():
        with keep_failure(run, failures):
            if distributed.rank() == 0:
                store.begin(run, s.step, device, not_captured_because([*states.values()]))
            sessions.append(Session(run, s, splits, lambda _: None))
    if sessions:
        max(sessions, key=lambda x: x.steps - x.s.step).report = report
    return sessions


def drive(sessions: list[Session], failures: dict[str, MetaugError]) -> None:
    """All sessions to their ends, a step of each at a time. KeyboardInterrupt when one was interrupted and all are saved."""
    if not sessions:
        return
    step, stopped = Stepper([session.s for session in sessions]), False
    eager_because = step.reason
    with deferred_interrupt() as interrupted:
        work = [session.work(interrupted) for session in sessions]
        found: dict[int, Any] = dict.fromkeys(range(len(sessions)))  # to start a generator, None is sent
        while found:
            asked = {}
            for number, metrics in found.items():
                try:
                    asked[number] = work[number].send(metrics)
                except StopIteration:
                    with keep_failure(sessions[number].run, failures):
                        sessions[number].finish()
                except KeyboardInterrupt:
                    stopped = True
                except MetaugError as error:
                    failures[sessions[number].run.path.name] = error
                    with keep_failure(sessions[number].run, failures):
                        sessions[number].fail(error)
            found = step(asked) if asked else {}
            if step.reason != eager_because:
                eager_because = step.reason
                tell_eager(sessions, eager_because)
    if stopped:
        raise KeyboardInterrupt


def tell_eager(sessions: Sequence[Session], reason: str | None) -> None:
    """With each run and once on the terminal: why its steps are launched kernel by kernel from now on."""
    for session in sessions:
        session.note_eager(reason)
    warnings.warn(f"{reason}; the steps are launched kernel by kernel, which is slower", RuntimeWarning, stacklevel=2)
