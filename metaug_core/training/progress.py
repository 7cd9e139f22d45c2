"""How far training is, and bars on a terminal that show it. A live view in a notebook is another `Reporter`."""

import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from metaug_core.runs.store import Run


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    run: Run
    epoch: int  # finished epochs
    step: int  # finished steps
    steps: int  # steps of the whole run
    loss: float
    images_per_second: float
    seconds_left: float


Reporter = Callable[[Progress], None]
RunsReporter = Callable[[int, Progress | None], None]  # how many runs are done, and how far the current one is


UNSEEN = suppress(OSError, ValueError)  # of what shows the progress: a closed terminal, a full disk; the work goes on


def warn(text: str) -> None:
    """A RuntimeWarning at the caller's caller, as far as there is a place to show it."""
    with UNSEEN:
        warnings.warn(text, RuntimeWarning, stacklevel=3)


class Bar:
    """A tqdm bar on stderr; nothing where stderr is closed or cannot be written."""

    def __init__(self, **options: Any):
        self.bar: tqdm | None = None
        with UNSEEN:
            self.bar = tqdm(**options) if sys.stderr is not None else None

    def show(self, done: float, text: str) -> None:
        """Move the bar to `done`, with a text behind it."""
        if self.bar is not None:
            with UNSEEN:
                self.bar.update(done - self.bar.n)
                self.bar.set_postfix_str(text)

    def close(self) -> None:
        if self.bar is not None:
            with UNSEEN:
                self.bar.close()


class TerminalBar:
    """A bar on stderr: steps, time left, loss, images/s."""

    def __init__(self) -> None:
        self.bar: Bar | None = None

    def __call__(self, progress: Progress) -> None:
        step, steps, images_per_second = progress.step, progress.steps, progress.images_per_second
        if self.bar is None:
            self.bar = Bar(total=steps, initial=step, unit="step", desc=progress.run.path.name)
        self.bar.show(step, f"epoch {progress.epoch}, loss {progress.loss:.4f}, {images_per_second:,.0f} images/s")
        if step == steps:
            self.bar.close()


def position(progress: Progress | None) -> tuple[float, str]:
    """How much of the current run is done, in [0, 1] and in words; (0, "") without a current run."""
    if progress is None:
        return 0.0, ""
    name, step, steps = progress.run.path.name, progress.step, progress.steps
    return step / steps, f"; {name}: step {step:,} of {steps:,}, loss {progress.loss:.4f}"


class RunsBar:
    """A bar on stderr over several runs, including the done part of the current one: runs done, time left, that run's step."""

    def __init__(self, runs: int) -> None:
        form = "{desc} {percentage:3.0f}%|{bar:24}| {elapsed}, {remaining} left{postfix}"
        self.runs = runs
        self.bar = Bar(total=runs, desc="runs", bar_format=form, smoothing=0)

    def __call__(self, done: int, progress: Progress | None) -> None:
        share, text = position(progress)
        self.bar.show(done + share, f"{done} of {self.runs} runs done{text}")
        if done == self.runs:
            self.bar.close()


def silent(runs: int) -> RunsReporter:
    """A `RunsReporter` that shows nothing."""
    return lambda done, progress: None
