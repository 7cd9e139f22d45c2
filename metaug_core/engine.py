"""A run from its config to its last checkpoint: epochs, logging, saving, stopping and going on."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from metaug_core import data, evaluation, probe, state, store
from metaug_core.config import Config, ConfigError
from metaug_core.machine import freed_memory_kept
from metaug_core.progress import Progress, Reporter, TerminalBar
from metaug_core.registry import MetaugError
from metaug_core.state import TrainState
from metaug_core.step import lr_factor, train_step

MONITOR_TRAIN, MONITOR_VAL = 2000, 1000  # images of the kNN monitor: enough for +-1.5 points, cheap enough every epoch
REPORT_SECONDS = 0.5


class DivergedError(MetaugError):
    """A term of the loss is NaN or infinite."""


def pick_device(wanted: str) -> str:
    """auto: cuda, else mps, else cpu. ConfigError if a named device is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[wanted]:
        raise ConfigError(f"device {wanted!r} is not available on this machine; device 'auto' takes what there is")
    return wanted


def knn_monitor(s: TrainState, splits: data.Splits) -> float | None:
    """kNN accuracy on up to 1000 validation images from up to 2000 training ones; None without a validation split."""
    if splits.val is None:
        return None
    train, val = (
        images.take(torch.linspace(0, len(images) - 1, min(most, len(images))).long())
        for images, most in ((splits.train, MONITOR_TRAIN), (splits.val, MONITOR_VAL))
    )
    found = [evaluation.features(s.networks, images, s.config) for images in (train, val)]
    return probe.knn(found[0], train.labels, found[1], val.labels, len(train.classes))


def diverged(run: store.Run, step: int, what: str) -> DivergedError:
    hint = "the last good checkpoint is kept (a lower lr or inner_lr may help)"
    return DivergedError(f"run {run.path.name} stopped at step {step}: {what}; {hint}")


def check_finite(pending: list[tuple[int, dict[str, Tensor]]], run: store.Run) -> None:
    """DivergedError at the first step with a term that is NaN or infinite, naming both. Empties the list."""
    for number, found in pending:
        for name, value in found.items():
            if name.startswith("loss") and not torch.isfinite(value):
                raise diverged(run, number, f"{name} is {value.item()}")
    pending.clear()


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


def tensorboard(run: store.Run, step: int) -> Any:
    """A writer of the run's events; those after step are purged. ConfigError if the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError("tensorboard True needs the tensorboard package: pip install tensorboard") from None
    return SummaryWriter(run.path / "tensorboard", purge_step=step)


class Session:
    """One process's work on a run: trains from where the state stands, logs, reports and saves."""

    def __init__(self, run: store.Run, s: TrainState, splits: data.Splits, report: Reporter):
        self.run, self.s, self.splits, self.report = run, s, splits, report
        self.config = s.config
        self.steps = s.config.epochs * s.steps_per_epoch
        self.started, self.first_step = time.monotonic(), s.step
        self.saved_at = self.reported_at = self.started
        self.pending: list[tuple[int, dict[str, Tensor]]] = []
        self.board = tensorboard(run, s.step) if s.config.tensorboard else None

    def train(self) -> None:
        """To the last epoch. An interrupt (Ctrl-C, SIGTERM) is taken between two steps, and saves first.

        No checkpoint is made between the last step of a pass and its monitor reading: both rows have the same step, and a
        resume could not tell whether the second is still to be written.
        """
        s = self.s
        with deferred_interrupt() as interrupted:
            if s.step == 0:
                self.log_monitor()
            while s.epoch < self.config.epochs:
                for rows, pixels in self.remaining():
                    self.one_step(rows, pixels)
                    if s.position < s.steps_per_epoch:
                        if interrupted or time.monotonic() - self.saved_at > 60 * self.config.checkpoint_minutes:
                            self.save()
                        if interrupted:
                            raise KeyboardInterrupt
                self.end_epoch()
                if interrupted:
                    raise KeyboardInterrupt

    def remaining(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The minibatches of this pass that are still to do: indices (B,) and pixels (B, 3, H, W)."""
        s, batch = self.s, self.config.batch_size
        if s.order is None:
            s.order = torch.randperm(len(s.images), generator=s.generators["order"])
        whole = len(s.images) // batch
        rows = s.order[: whole * batch].view(whole, batch).repeat(s.steps_per_epoch // whole, 1)[s.position :]
        return zip(rows.to(s.device), s.images.batches(rows), strict=True)

    def one_step(self, rows: Tensor, pixels: Tensor) -> None:
        s, config = self.s, self.config
        factor = lr_factor(config, s.epoch + s.position / s.steps_per_epoch)
        for optimiser, lr in ((s.optimiser, config.lr), (s.mag_optimiser, config.mag_lr)):
            if optimiser is not None:
                optimiser.param_groups[0]["lr"] = lr * factor
        log = (s.step + 1) % config.log_every == 0 or s.step + 1 == self.steps
        found = train_step(s, pixels, rows, log)
        s.step, s.position = s.step + 1, s.position + 1
        self.pending.append((s.step, found))
        if log or s.device == "cpu":  # elsewhere reading a loss would wait for the device at every step
            check_finite(self.pending, self.run)
            if log:
                values = {name: float(value) for name, value in found.items()}
                self.log({"lr": s.optimiser.param_groups[0]["lr"]} | values)
            parts = [found[name] for name in ("loss_original", "loss_augmented", "loss_margin") if name in found]
            self.tell(
                float(sum(parts) if parts else found["loss_ahead"])
            )  # a MAG pass (Algorithm 1) has only the latter

    def end_epoch(self) -> None:
        s, config = self.s, self.config
        check_finite(self.pending, self.run)
        s.epoch, s.position, s.order = s.epoch + 1, 0, None
        if s.epoch % config.monitor_every == 0 or s.epoch == config.epochs:
            self.log_monitor()
        if s.epoch > config.epochs - config.keep_last:
            state.save_encoders(s, self.run.path / "encoders" / f"epoch-{s.epoch:04d}.safetensors")
        self.save()

    def log_monitor(self) -> None:
        if (accuracy := knn_monitor(self.s, self.splits)) is not None:
            self.log({"knn_val": accuracy})

    def log(self, values: dict[str, float]) -> None:
        s = self.s
        epochs_done = s.epoch + s.position / s.steps_per_epoch
        store.append(self.run.path / "metrics.jsonl", [{"step": s.step, "epoch": round(epochs_done, 6)} | values])
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, s.step)
            self.board.flush()

    def tell(self, loss: float) -> None:
        now = time.monotonic()
        if now - self.reported_at < REPORT_SECONDS and self.s.step < self.steps:
            return
        self.reported_at = now
        done, seconds = self.s.step - self.first_step, now - self.started
        speed, left = done * self.config.batch_size / seconds, (self.steps - self.s.step) * seconds / done
        row = {"step": self.s.step, "steps": self.steps, "loss": loss, "seconds": seconds}
        store.append(self.run.path / "timing.jsonl", [row | {"images_per_second": speed, "seconds_left": left}])
        self.report(Progress(self.run, self.s.epoch, self.s.step, self.steps, loss, speed, left))

    def save(self) -> None:
        """Metrics first, then the checkpoint: a kill between the two leaves rows that the resume drops.

        DivergedError instead of a checkpoint from which no step would be finite.
        """
        check_finite(self.pending, self.run)
        if bad := state.not_finite(self.s):
            raise diverged(self.run, self.s.step, f"{bad} is not finite")
        store.sync(self.run.path / "metrics.jsonl")
        state.save(self.s, self.run.checkpoint)
        self.saved_at = time.monotonic()


def fit(config: Config, report: Reporter | None = None, splits: data.Splits | None = None) -> store.Run:
    """Train the run that config asks for, from its last checkpoint if there is one; a finished run is returned as it is.

    report is called about twice a second (None: a bar on the terminal). splits: the data, if they are loaded already.
    Raises MetaugError (one sentence): missing data, a run that another process trains, a full disk, NaN in the loss.
    """
    run = store.request(config)
    if run.finished:
        return run
    device = pick_device(config.device)
    with run.lock(), torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        if run.finished:  # by the process that had the lock a moment ago
            return run
        s = state.create(config, splits := splits or data.load(config, device), device)
        torch.manual_seed(config.seed)  # for what a user's encoder or method draws, dropout for one
        if run.checkpoint.exists():
            state.restore(s, run.checkpoint)
        store.begin(run, s.step, device)
        with freed_memory_kept():
            Session(run, s, splits, report or TerminalBar()).train()
        store.write_json(run.path / "finished.json", {"epochs": s.epoch, "steps": s.step})
    return run
