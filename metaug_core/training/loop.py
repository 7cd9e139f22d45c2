"""Runs from their configs to their last checkpoints: one, or several trials side by side, in one process or several.

`fit` and `fit_trials` open the runs, `train` is the loop, and a `Trial` is one run in it.
"""

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from metaug_core import sources
from metaug_core.config import Config, ConfigError
from metaug_core.data import datasets
from metaug_core.errors import MetaugError, Paused
from metaug_core.evaluation.representations import check_initial_networks, note_initial_networks
from metaug_core.extensions import name_failures
from metaug_core.hardware import use_threads
from metaug_core.registry import METHODS
from metaug_core.runs import data, files, store
from metaug_core.runtime import distributed
from metaug_core.runtime.device import (
    arithmetic,
    explain_memory,
    keep_freed_memory,
    pick_device,
    refuse_surroundings,
)
from metaug_core.training import checkpoint, events, own_networks, state
from metaug_core.training.cuda_graphs import Batch, Stepper
from metaug_core.training.diagnostics import knn_monitor
from metaug_core.training.progress import Progress, Reporter, TerminalBar, warn
from metaug_core.training.state import TrainState, own_random_numbers
from metaug_core.training.step import draw, set_rates

SHARED = (*datasets.IMAGES, "storage", "device")  # settings: which images there are, and where they are kept
TOGETHER = (*SHARED, "precision")  # what trials side by side must agree on: torch's switches hold for the whole process
LOOK_SECONDS = 0.5  # between two looks for `stop.request`
REPORT_SECONDS = 0.5  # between two reports


class DivergedError(MetaugError):
    """A term of the loss is NaN or infinite."""


def fit(config: Config, report: Reporter | None = None, splits: datasets.Splits | None = None) -> store.Run:
    """Train the run of a config, from its last checkpoint if there is one; a finished run is returned as it is.

    report is called about twice a second (None: a bar on the terminal). splits: the data, if they are loaded already.
    Under `torchrun` all processes train the one run together (`runtime.distributed`).

    Ctrl-C and SIGTERM take effect between two steps: the run is saved, then KeyboardInterrupt is raised; the same holds for what
    report raises. While another thread trains or evaluates, this one waits. Raises MetaugError (one sentence): Paused
    after a `stop.request` in the run's folder (saved too), missing data, splits of other images, a run of other data, one that
    another process trains, a full disk, NaN in the loss, a call from within what would change the run (autocast, vmap).
    """
    return fit_trials([config], report, splits)[0]


def fit_trials(
    configs: Sequence[Config], report: Reporter | None = None, splits: datasets.Splits | None = None
) -> list[store.Run]:
    """Train several runs of one data set side by side: seeds, or values of any setting.

    Each is the run that `fit` would make of its config, with its own weights, order, draws, bank and folder; on CUDA one graph
    holds a step of all of them. report hears of the trial that has most steps to do; what it raises stops all. A trial that fails
    or is paused does not stop the others; the first of such errors is raised when they are done. Raises as `fit`, and ConfigError
    if the configs differ in images, device or precision.
    """
    runs, failures = attempt(configs, report, splits)
    for error in failures.values():
        raise error
    return runs


@explain_memory()
def attempt(
    configs: Sequence[Config], report: Reporter | None = None, splits: datasets.Splits | None = None
) -> tuple[list[store.Run], dict[str, MetaugError]]:
    """As `fit_trials`, but returns the errors of the runs that failed, by the run's name, the earliest first.

    Raises what does not belong to one run: configs that do not fit together, missing data, BusyError (nothing was trained then).
    """
    configs = tuple(configs)  # they are read several times
    runs = [store.request(config) for config in configs]
    data.check_finished(runs, splits)
    failures: dict[str, MetaugError] = {}
    for run in runs:
        with keep_failure(run, failures):
            check_initial_networks(run)
    if all(run.finished for run in runs):
        return runs, failures
    check_trials(configs)
    refuse_surroundings()
    device = pick_device(configs[0].device)
    if splits is not None:
        check_splits(splits, configs[0], device)
    distributed.join(device)
    with ExitStack() as stack:
        stack.enter_context(arithmetic(configs[0].precision))
        stack.enter_context(sources.keep([config.own_entries() for config in configs]))
        if distributed.rank() == 0:
            for run in unfinished(runs):
                with keep_failure(run, failures):
                    stack.enter_context(run.lock())
        distributed.wait()
        todo = [run for run in unfinished(runs) if run.path.name not in failures]
        if not todo:  # the last holder of the lock may have finished the run
            return runs, failures
        stack.enter_context(torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []))
        stack.enter_context(keep_freed_memory())
        splits = splits or datasets.load(todo[0].config, device)
        trials = open_trials(todo, splits, device, failures)
        if trials:
            longest = max(trials, key=lambda trial: trial.s.total_steps - trial.s.step)
            longest.report = report or TerminalBar()
            train(trials, failures)
    return runs, failures


def unfinished(runs: Sequence[store.Run]) -> list[store.Run]:
    """Each run that is not finished, once."""
    return list({run.path: run for run in runs if not run.finished}.values())


def check_trials(configs: Sequence[Config]) -> None:
    """ConfigError if trials differ in images, device or precision, or cannot be divided among the processes."""
    for name in TOGETHER:
        if len({getattr(config, name) for config in configs}) > 1:
            raise ConfigError(f"trials share images, device and precision, but differ in {name}")
    processes = distributed.started()
    for config in configs:
        if config.batch_size % processes:
            raise ConfigError(f"batch_size {config.batch_size} cannot be divided among {processes} processes")
        if processes > 1 and not METHODS[config.method].description.divided:
            raise ConfigError(f"method {config.method!r} trains in one process only, got {processes}")


def check_splits(splits: datasets.Splits, config: Config, device: str) -> None:
    """ConfigError if splits hold other images than config's, or are on another device."""
    datasets.refuse_foreign(splits, config)
    where = splits.train.labels.device.type
    if where != device:
        raise ConfigError(
            f"splits are on {where}, but the run is to train on {device}: datasets.load(config, {device!r})"
        )


@contextmanager
def keep_failure(run: store.Run, failures: dict[str, MetaugError]) -> Iterator[None]:
    """Context manager: put a MetaugError into failures under the run's name, so that it does not stop the other runs.

    Raised all the same: BusyError, because it passes; and in one of several processes any error that the others may not meet,
    because they must go on or end together.
    """
    try:
        yield
    except MetaugError as error:
        alone = distributed.count() > 1 and not isinstance(error, DivergedError | Paused)
        if alone or isinstance(error, store.BusyError):
            raise
        failures.setdefault(run.path.name, error)


def open_trials(
    runs: Sequence[store.Run], splits: datasets.Splits, device: str, failures: dict[str, MetaugError]
) -> list["Trial"]:
    """A trial for each run, from its last checkpoint; without those that fail, whose errors go into failures."""
    trials = []
    for run in runs:
        with keep_failure(run, failures), name_failures(run.config, "before the first step, a trial pass"):
            if run.checkpoints:
                data.check(run, splits.data)
            trials.append(Trial(run, *open_state(run, splits, device), splits))
    return trials


def open_state(run: store.Run, splits: datasets.Splits, device: str) -> tuple[TrainState, list[Path]]:
    """The state of a run's newest checkpoint that can be read, or the one before the first step if there is none -> it, and the
    newer checkpoints, which are damaged. StoreError, of the newest, if none can be read."""
    damaged: dict[Path, files.StoreError] = {}
    for file in run.checkpoints:
        s = create_state(run.config, splits, device)
        try:
            checkpoint.restore(s, file)
        except files.StoreError as error:
            damaged[file] = error
            continue
        for error in damaged.values():
            warn(f"{error}; run {run.path.name} goes on from {file.name}, step {s.step}, and the damaged one is kept")
        return s, list(damaged)
    if damaged:
        raise files.StoreError(f"{next(iter(damaged.values()))}; remove it, and the run starts over")
    return create_state(run.config, splits, device), []


def create_state(config: Config, splits: datasets.Splits, device: str) -> TrainState:
    """The state before the first step. Networks of the user's own have been tried."""
    s = state.create(config, splits, device)
    if s.own:
        try_own_networks(s)
    return s


def try_own_networks(s: TrainState) -> None:
    """`own_networks.check` on the first images of the data set. It leaves the run's random numbers alone."""
    generators = {role: generator.get_state() for role, generator in s.generators.items()}
    random, device_random = s.random, s.device_random and s.device_random.get_state()
    rows = torch.arange(s.config.batch_size)[None]
    pixels = next(iter(s.images.batches(distributed.own(rows, 1))))
    with own_random_numbers(s):
        own_networks.check(s, *draw(s, pixels, rows[0].to(s.device)))
    s.infinite = frozenset(checkpoint.list_nonfinite(s))
    s.random = random
    if s.device_random is not None and device_random is not None:
        s.device_random.set_state(device_random)
    for role, generator in s.generators.items():
        generator.set_state(generators[role])


# --- the loop


def train(trials: Sequence["Trial"], failures: dict[str, MetaugError]) -> None:
    """Train all trials to their last epochs, one step of each at a time.

    A trial that fails or is paused leaves the loop, and its error goes into failures. Raises KeyboardInterrupt after a signal, and
    what a report raised, when all trials are saved. A checkpoint at the end of a pass follows the pass's monitor reading: both rows
    of metrics have the same step, so a resumed run could not tell that the second is missing.
    """
    step = Stepper([trial.s for trial in trials])
    reason = step.reason
    with defer_signals() as interrupts, ExitStack() as stack:
        for trial in trials:
            stack.callback(trial.leave)
            with leave_on_error(trial, failures):
                trial.begin(reason)
        while batches := next_batches(trials, failures):
            metrics = step(batches)
            for number, batch in batches.items():
                trial = trials[number]
                with leave_on_error(trial, failures):
                    trial.record_step(batch, metrics[number], interrupts)
                    pass_ended = trial.s.position == trial.s.steps_per_epoch
                    if pass_ended:
                        trial.end_pass()
                    stop = trial.look_for_stop(interrupts, agree=batch.log or pass_ended)
                    if stop or trial.checkpoint_is_due():
                        trial.save()
                    if stop:
                        raise stop
            if step.reason != reason:
                reason = step.reason
                warn_eager([trial for trial in trials if trial.active], reason)
    if interrupts or any(trial.interrupted for trial in trials):
        raise interrupts[0] if interrupts else KeyboardInterrupt


def next_batches(trials: Sequence["Trial"], failures: dict[str, MetaugError]) -> dict[int, Batch]:
    """The next minibatch of each active trial, by its number. A trial without one is finished and leaves the loop."""
    batches = {}
    for number, trial in enumerate(trials):
        if trial.active:
            with leave_on_error(trial, failures):
                batch = trial.next_batch()
                if batch is None:
                    trial.finish()
                else:
                    batches[number] = batch
    return batches


@contextmanager
def leave_on_error(trial: "Trial", failures: dict[str, MetaugError]) -> Iterator[None]:
    """Context manager: a trial that raises MetaugError (kept as by `keep_failure`) or KeyboardInterrupt leaves the loop."""
    try:
        with keep_failure(trial.run, failures):
            yield
    except KeyboardInterrupt:
        trial.interrupted = True
    if trial.interrupted or trial.run.path.name in failures:
        trial.leave()


@contextmanager
def defer_signals() -> Iterator[list[BaseException]]:
    """Context manager: for Ctrl-C and SIGTERM a KeyboardInterrupt is put into the list instead of striking in the middle of a step.

    Does nothing outside the main thread, where Python takes no signals.
    """
    interrupts: list[BaseException] = []
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    handlers = {
        number: signal.signal(number, lambda *_: interrupts.append(KeyboardInterrupt()))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield interrupts
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def warn_eager(trials: Sequence["Trial"], reason: str | None) -> None:
    """Write into each run's folder, and once on the terminal, why steps are launched kernel by kernel from now on."""
    for trial in trials:
        if trial.writes and reason is not None:
            store.note_eager(trial.run, reason)
    warn(f"{reason}; the steps are launched kernel by kernel, which is slower")


def minibatches(s: TrainState) -> Iterator[Batch]:
    """The minibatches from where the state stands to the last epoch, each with the learning rates of its step set.

    Before the next one is taken, the step must be counted (`s.count_step`) and a complete pass ended (`s.end_pass`).
    """
    config = s.config
    while s.epoch < config.epochs:
        if s.order is None:
            s.begin_pass()
        assert s.order is not None
        count = len(s.images) // config.batch_size
        rows = s.order[: count * config.batch_size].view(count, config.batch_size)
        rows = rows.repeat(s.steps_per_epoch // count, 1)[s.position :]
        images = s.images.batches(distributed.own(rows, 1))
        for indices, pixels in zip(rows.to(s.device), images, strict=True):
            set_rates(s)
            yield Batch(pixels, indices, (s.step + 1) % config.log_every == 0 or s.step + 1 == s.total_steps)


# --- one run in the loop


class Trial:
    """One run in the loop: its state, its minibatches, and what is written into its folder.

    Each of several processes has one, but only the first writes and reports.
    """

    def __init__(self, run: store.Run, s: TrainState, damaged: list[Path], splits: datasets.Splits):
        self.run = run
        self.s = s
        self.damaged = damaged  # checkpoints; set aside at the first save, till when other processes may read them
        self.splits = splits
        self.report: Reporter | None = None
        self.writes = distributed.rank() == 0
        self.active = True
        self.interrupted = False
        self.batches = minibatches(s)
        self.unread: list[tuple[int, dict[str, Tensor]]] = []  # steps and their metrics that were not checked yet
        self.events: Path | None = None  # TensorBoard's, if the config wants them
        self.first_step = s.step
        self.started = self.saved_at = self.reported_at = self.looked_at = 0.0  # by time.monotonic()
        self.waited = 0.0  # seconds for images

    def begin(self, eager_because: str | None) -> None:
        """Prepare the run's folder, and take the monitor's reading of the untrained networks."""
        if self.writes:
            with use_threads(self.s.threads):  # environment.json records them
                store.begin(self.run, self.s.step, self.s.device, eager_because, self.s.tangent_because)
            if self.s.tangent_because:
                warn(f"the meta-gradient is computed in a slower way: {self.s.tangent_because}")
            data.record(self.run, self.splits.data)
            if self.s.config.tensorboard:
                self.events = events.begin(self.run)
            if self.s.step == 0 and self.s.own:
                note_initial_networks(self.run, len(self.splits.train.classes), self.s.networks, self.s.mag)
        self.started = self.saved_at = self.reported_at = self.looked_at = time.monotonic()
        if self.s.step == 0:
            self.log_monitor()

    def next_batch(self) -> Batch | None:
        """The next minibatch; None after the last."""
        before = time.monotonic()
        batch = next(self.batches, None)
        self.waited += time.monotonic() - before
        return batch

    def record_step(
        self, batch: Batch, metrics: dict[str, Tensor] | MetaugError, interrupts: list[BaseException]
    ) -> None:
        """Count a step, log its metrics if they are to be logged, and report; what the report raises goes into interrupts.

        Raises the error of a step that failed.
        """
        if isinstance(metrics, MetaugError):
            raise metrics
        s = self.s
        s.count_step()
        self.unread.append((s.step, metrics))
        if not batch.log and s.device != "cpu":
            return  # to read a loss would be to wait for the device at every step
        self.check_finite()
        if batch.log:
            scalars = {name: float(value) for name, value in metrics.items() if not value.dim()}
            self.log({"lr": float(s.optimiser.param_groups[0]["lr"])} | scalars)
            self.log_histograms({name: value for name, value in metrics.items() if value.dim()})
        self.report_progress(metrics, interrupts)

    def end_pass(self) -> None:
        """End the epoch: its readings, and the encoders if it is one of the last that are kept."""
        s, config = self.s, self.s.config
        self.check_finite()
        mag_update = s.mag_update()
        s.end_pass()
        if mag_update is not None:
            self.log({"mag_update": mag_update})
        if s.epoch % config.monitor_every == 0 or s.epoch == config.epochs:
            self.log_monitor()
        if s.epoch > config.epochs - config.keep_last and self.writes:
            checkpoint.save_encoders(s, self.run.path / "encoders" / f"epoch-{s.epoch:04d}.safetensors")

    def look_for_stop(self, interrupts: list[BaseException], agree: bool) -> BaseException | None:
        """What to raise if the run is to stop after this step: KeyboardInterrupt for an interrupt, Paused for a `stop.request`.

        Several processes stop together. They ask each other only at steps with agree, where they read metrics anyway.
        """
        if distributed.count() > 1 and not agree:
            return None
        if distributed.any_of(bool(interrupts), self.s.device):
            return KeyboardInterrupt()
        if distributed.any_of(self.sees_stop_request(), self.s.device):
            return Paused(f"run {self.run.path.name} was asked to stop: it is saved, the same request goes on")
        return None

    def sees_stop_request(self) -> bool:
        now = time.monotonic()
        if now - self.looked_at < LOOK_SECONDS:
            return False
        self.looked_at = now
        return self.run.stop_requested

    def checkpoint_is_due(self) -> bool:
        """`checkpoint_minutes` after the last checkpoint (or the start), and at the end of the run."""
        config = self.s.config
        return self.s.epoch == config.epochs or time.monotonic() - self.saved_at > 60 * config.checkpoint_minutes

    def save(self) -> None:
        """Metrics first, then the checkpoint: a kill between the two leaves rows that the resumed run drops.

        DivergedError instead of a checkpoint from which no step would be finite.
        """
        self.check_finite()
        if name := checkpoint.find_nonfinite(self.s):
            self.diverge(self.s.step, f"{name} is not finite")
        if self.writes:
            files.sync(self.run.path / "metrics.jsonl")
            while self.damaged:
                self.run.set_aside(self.damaged.pop())
            checkpoint.save(self.s, self.run.checkpoint, self.run.checkpoint_before)
        self.saved_at = time.monotonic()

    def finish(self) -> None:
        if self.writes:
            files.remove(self.run.checkpoint_before)
            files.write_json(self.run.path / "finished.json", {"epochs": self.s.epoch, "steps": self.s.step})
        self.leave()

    def leave(self) -> None:
        """Leave the loop."""
        self.active = False
        self.batches = iter(())  # lets the threads that read images go

    # --- what it logs

    def check_finite(self) -> None:
        """DivergedError at the first step with a term of the loss that is NaN or infinite, naming both."""
        for step, metrics in self.unread:
            for name, value in metrics.items():
                if name.startswith("loss") and not torch.isfinite(value):
                    self.diverge(step, f"{name} is {value.item()}")
        self.unread.clear()

    def diverge(self, step: int, what: str) -> NoReturn:
        """Raise DivergedError and keep its sentence in failed.json: the same request would diverge again."""
        advice = "the last good checkpoint is kept" if self.run.checkpoints else "no checkpoint had been made"
        sentence = (
            f"run {self.run.path.name} stopped at step {step}: {what}; {advice} (a lower lr or inner_lr may help)"
        )
        if self.writes:
            with suppress(files.StoreError):  # on a full disk the divergence is still what the user must know
                files.write_json(self.run.path / "failed.json", {"error": sentence, "step": self.s.step})
        raise DivergedError(sentence)

    def log_monitor(self) -> None:
        if not self.writes:
            return
        with own_random_numbers(self.s), name_failures(self.s.config, "the kNN monitor"):
            accuracy = knn_monitor(self.s, self.splits)
        if accuracy is not None:
            self.log({"knn_val": accuracy})

    def log(self, values: dict[str, float]) -> None:
        """Append a row to metrics.jsonl, and the same to TensorBoard."""
        if not self.writes:
            return
        row = {"step": self.s.step, "epoch": round(self.s.epochs_done, 6)}
        files.append(self.run.path / "metrics.jsonl", [row | values])
        if self.events is not None:
            events.append(self.events, row | values)

    def log_histograms(self, histograms: dict[str, Tensor]) -> None:
        """Append a row to similarities.jsonl; metrics.jsonl holds numbers only. A figure shows no more than four digits."""
        if histograms and self.writes:
            row = {name: [round(share, 4) for share in values.tolist()] for name, values in histograms.items()}
            files.append(self.run.path / "similarities.jsonl", [{"step": self.s.step} | row])

    def report_progress(self, metrics: dict[str, Tensor], interrupts: list[BaseException]) -> None:
        """Append a row to timing.jsonl and call report, at most every REPORT_SECONDS and after the last step."""
        s, now = self.s, time.monotonic()
        if not self.writes or (now - self.reported_at < REPORT_SECONDS and s.step < s.total_steps):
            return
        self.reported_at = now
        terms = [metrics[name] for name in ("loss_original", "loss_augmented", "loss_margin") if name in metrics]
        loss = float(sum(terms) if terms else metrics["loss_ahead"])  # a MAG pass (Algorithm 1) has only the latter
        seconds = now - self.started
        steps_done = s.step - self.first_step
        images_per_second = steps_done * s.config.batch_size / seconds
        seconds_left = (s.total_steps - s.step) * seconds / steps_done
        row = {"step": s.step, "steps": s.total_steps, "loss": loss, "seconds": seconds, "waited": self.waited,
               "images_per_second": images_per_second, "seconds_left": seconds_left}  # fmt: skip
        files.append(self.run.path / "timing.jsonl", [row])
        if self.report is not None:
            progress = Progress(self.run, s.epoch, s.step, s.total_steps, loss, images_per_second, seconds_left)
            try:
                self.report(progress)
            except BaseException as error:  # raised when the runs are saved
                interrupts.append(error)
