"""One run's work from step to step: minibatches, logging, monitoring, saving, stopping."""

import copy
import time
from collections.abc import Generator, Iterator
from typing import Any

import torch
from torch import Tensor

from metaug_core.config import ConfigError
from metaug_core.data import datasets
from metaug_core.errors import MetaugError, Paused
from metaug_core.evaluation import probes, representations
from metaug_core.runs import store
from metaug_core.runtime import distributed
from metaug_core.training import state
from metaug_core.training.cuda_graphs import Batch
from metaug_core.training.progress import Progress, Reporter
from metaug_core.training.state import TrainState, own_random_numbers
from metaug_core.training.step import lr_factor

MONITOR_TRAIN, MONITOR_VAL = 2000, 1000  # images of the kNN monitor: enough for +-1.5 points, cheap enough every epoch
REPORT_SECONDS = 0.5


class DivergedError(MetaugError):
    """A term of the loss is NaN or infinite."""


def knn_monitor(s: TrainState, splits: datasets.Splits) -> float | None:
    """kNN accuracy on up to 1000 validation images from up to 2000 training ones; None without a validation split."""
    if splits.val is None:
        return None
    train, val = (
        images.take(torch.linspace(0, len(images) - 1, min(most, len(images))).long())
        for images, most in ((splits.train, MONITOR_TRAIN), (splits.val, MONITOR_VAL))
    )
    networks = s.networks
    if s.step == 0:  # no step has given BatchNorm statistics yet; a copy gets them, since the run's own are its state
        networks = copy.deepcopy(networks)
        representations.settle_statistics(networks, splits.train, s.config)
    found = [representations.features(networks, images, s.config) for images in (train, val)]
    return probes.knn(found[0], train.labels, found[1], val.labels, len(train.classes))


def diverged(run: store.Run, step: int, what: str) -> DivergedError:
    kept = "the last good checkpoint is kept" if run.checkpoint.exists() else "no checkpoint had been made"
    return DivergedError(
        f"run {run.path.name} stopped at step {step}: {what}; {kept} (a lower lr or inner_lr may help)"
    )


def check_finite(pending: list[tuple[int, dict[str, Tensor]]], run: store.Run) -> None:
    """DivergedError at the first step with a term that is NaN or infinite, naming both. Empties the list."""
    for number, found in pending:
        for name, value in found.items():
            if name.startswith("loss") and not torch.isfinite(value):
                raise diverged(run, number, f"{name} is {value.item()}")
    pending.clear()


def tensorboard(run: store.Run, step: int) -> Any:
    """A writer of the run's events; those after step are purged. ConfigError if the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError("tensorboard True needs the tensorboard package: pip install tensorboard") from None
    return SummaryWriter(run.path / "tensorboard", purge_step=step)


class Session:
    """One process's work on a run: asks for steps from where the state stands, logs, reports and saves.

    Of several processes all count, but only the first logs, reports and saves.
    """

    def __init__(self, run: store.Run, s: TrainState, splits: datasets.Splits, report: Reporter):
        self.run, self.s, self.splits, self.report = run, s, splits, report
        self.config = s.config
        self.steps = s.config.epochs * s.steps_per_epoch
        self.started, self.first_step = time.monotonic(), s.step
        self.saved_at = self.reported_at = self.started
        self.looked_at = self.started
        self.waited = 0.0  # seconds for images
        self.pending: list[tuple[int, dict[str, Tensor]]] = []
        self.first = distributed.rank() == 0
        self.board = tensorboard(run, s.step) if s.config.tensorboard and self.first else None

    def work(self, interrupted: list[int]) -> Generator[Batch, dict[str, Tensor], None]:
        """To the last epoch: yields what the next step is to do, and is sent its metrics. An interrupt (Ctrl-C, SIGTERM) is
        taken between two steps, and saves first.

        A checkpoint at the end of a pass is made after its monitor reading: both rows have the same step, and a resume could not
        tell whether the second is still to be written.
        """
        s = self.s
        if s.step == 0:
            self.log_monitor()
        while s.epoch < self.config.epochs:
            for batch in self.remaining():
                self.after_step(batch.log, (yield batch))
                ended = s.position == s.steps_per_epoch
                if ended:
                    self.end_epoch()
                stop = self.stops(interrupted, batch.log or ended)
                if stop or self.due():
                    self.save()
                if stop and not interrupted:
                    raise Paused(f"run {self.run.path.name} was asked to stop: it is saved, the same request goes on")
                if stop:
                    raise KeyboardInterrupt

    def due(self) -> bool:
        """Whether a checkpoint is: `checkpoint_minutes` after the last one (or the start), and at the end of the run."""
        return (
            self.s.epoch == self.config.epochs or time.monotonic() - self.saved_at > 60 * self.config.checkpoint_minutes
        )

    def stops(self, interrupted: list[int], ask: bool) -> bool:
        """Whether to stop here; several processes ask each other where metrics are read anyway, and stop together."""
        if distributed.count() == 1:
            return bool(interrupted) or self.asked_to_stop()
        return ask and distributed.agreed(bool(interrupted), self.s.device)

    def asked_to_stop(self) -> bool:
        now = time.monotonic()
        if now - self.looked_at < REPORT_SECONDS:
            return False
        self.looked_at = now
        return self.run.stop_requested

    def remaining(self) -> Iterator[Batch]:
        """The minibatches of this pass that are still to do, with the learning rates of each step set."""
        s, batch, config = self.s, self.config.batch_size, self.config
        if s.order is None:
            s.order = torch.randperm(len(s.images), generator=s.generators["order"])
            s.begin_pass()
        whole = len(s.images) // batch
        rows = s.order[: whole * batch].view(whole, batch).repeat(s.steps_per_epoch // whole, 1)[s.position :]
        images = iter(s.images.batches(distributed.own(rows, 1)))
        for indices in rows.to(s.device):
            asked = time.monotonic()
            pixels = next(images)
            self.waited += time.monotonic() - asked
            factor = lr_factor(config, s.epoch + s.position / s.steps_per_epoch)
            for optimiser, lr in ((s.optimiser, config.lr), (s.mag_optimiser, config.mag_lr)):
                if optimiser is not None:
                    state.set_rate(optimiser, lr * factor)
            yield Batch(pixels, indices, (s.step + 1) % config.log_every == 0 or s.step + 1 == self.steps)

    def after_step(self, log: bool, found: dict[str, Tensor]) -> None:
        s = self.s
        s.step, s.position = s.step + 1, s.position + 1
        self.pending.append((s.step, found))
        if log or s.device == "cpu":  # elsewhere reading a loss would wait for the device at every step
            check_finite(self.pending, self.run)
            if log:
                values = {name: float(value) for name, value in found.items() if not value.dim()}
                self.log({"lr": float(s.optimiser.param_groups[0]["lr"])} | values)
                self.log_histograms({name: value for name, value in found.items() if value.dim()})
            parts = [found[name] for name in ("loss_original", "loss_augmented", "loss_margin") if name in found]
            self.tell(
                float(sum(parts) if parts else found["loss_ahead"])
            )  # a MAG pass (Algorithm 1) has only the latter

    def end_epoch(self) -> None:
        s, config = self.s, self.config
        check_finite(self.pending, self.run)
        mag_update, s.omega_before = s.mag_update(), None
        s.epoch, s.position, s.order = s.epoch + 1, 0, None
        if mag_update is not None:
            self.log({"mag_update": mag_update})
        if s.epoch % config.monitor_every == 0 or s.epoch == config.epochs:
            self.log_monitor()
        if s.epoch > config.epochs - config.keep_last and self.first:
            state.save_encoders(s, self.run.path / "encoders" / f"epoch-{s.epoch:04d}.safetensors")

    def log_monitor(self) -> None:
        if not self.first:
            return
        with own_random_numbers(self.s):
            accuracy = knn_monitor(self.s, self.splits)
        if accuracy is not None:
            self.log({"knn_val": accuracy})

    def log(self, values: dict[str, float]) -> None:
        if not self.first:
            return
        s = self.s
        epochs_done = s.epoch + s.position / s.steps_per_epoch
        store.append(self.run.path / "metrics.jsonl", [{"step": s.step, "epoch": round(epochs_done, 6)} | values])
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, s.step)
            self.board.flush()

    def log_histograms(self, found: dict[str, Tensor]) -> None:
        """Apart from the metrics, which stay numbers; four digits are more than a histogram shows."""
        if found and self.first:
            row = {name: [round(share, 4) for share in value.tolist()] for name, value in found.items()}
            store.append(self.run.path / "similarities.jsonl", [{"step": self.s.step} | row])

    def tell(self, loss: float) -> None:
        now = time.monotonic()
        if not self.first:
            return
        if now - self.reported_at < REPORT_SECONDS and self.s.step < self.steps:
            return
        self.reported_at = now
        done, seconds = self.s.step - self.first_step, now - self.started
        speed, left = done * self.config.batch_size / seconds, (self.steps - self.s.step) * seconds / done
        row = {"step": self.s.step, "steps": self.steps, "loss": loss, "seconds": seconds, "waited": self.waited}
        store.append(self.run.path / "timing.jsonl", [row | {"images_per_second": speed, "seconds_left": left}])
        self.report(Progress(self.run, self.s.epoch, self.s.step, self.steps, loss, speed, left))

    def note_eager(self, reason: str | None) -> None:
        if self.first and reason is not None:
            store.note_eager(self.run, reason)

    def fail(self, error: MetaugError) -> None:
        """Keep the sentence of a run that diverged; whatever else went wrong may go well another time."""
        if self.first and isinstance(error, DivergedError):
            store.write_json(self.run.path / "failed.json", {"error": str(error), "step": self.s.step})

    def finish(self) -> None:
        if self.first:
            store.write_json(self.run.path / "finished.json", {"epochs": self.s.epoch, "steps": self.s.step})

    def save(self) -> None:
        """Metrics first, then the checkpoint: a kill between the two leaves rows that the resume drops.

        DivergedError instead of a checkpoint from which no step would be finite.
        """
        check_finite(self.pending, self.run)
        if bad := state.not_finite(self.s):
            raise diverged(self.run, self.s.step, f"{bad} is not finite")
        if self.first:
            store.sync(self.run.path / "metrics.jsonl")
            state.save(self.s, self.run.checkpoint)
        self.saved_at = time.monotonic()
