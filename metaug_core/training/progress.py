"""Where a training run is, and the bar that says so on a terminal. A live view in a notebook is another reporter."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from metaug_core.runs.store import Run


@dataclass(frozen=True)
class Progress:
    """What a progress bar or a live view shows of a run under way."""

    run: Run
    epoch: int  # finished epochs
    step: int  # finished steps
    steps: int  # of the whole run
    loss: float
    images_per_second: float
    seconds_left: float


Reporter = Callable[[Progress], None]
RunsReporter = Callable[[int, Progress | None], None]  # how many runs are done, and where the one under way is


class TerminalBar:
    """A tqdm bar on stderr: steps, time left, loss, images/s."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def __call__(self, at: Progress) -> None:
        if self.bar is None:
            self.bar = tqdm(total=at.steps, initial=at.step, unit="step", desc=at.run.path.name)
        self.bar.update(at.step - self.bar.n)
        self.bar.set_postfix_str(f"epoch {at.epoch}, loss {at.loss:.4f}, {at.images_per_second:,.0f} images/s")
        if at.step == at.steps:
            self.bar.close()


def last_row(path: Path) -> dict[str, Any]:
    """The last whole line of a JSON-lines file, whose beginning is not read; {} if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().split(b"\n")[:-1]
        return json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError):
        return {}


def position(at: Progress | None) -> tuple[float, str]:
    """How much of the run under way is done, in [0, 1], and in words; (0, "") if none is."""
    if at is None:
        return 0.0, ""
    return at.step / at.steps, f"; {at.run.path.name}: step {at.step:,} of {at.steps:,}, loss {at.loss:.4f}"


class RunsBar:
    """A tqdm bar on stderr over several runs, the share of the one under way included: runs done, time left, that run's step."""

    def __init__(self, runs: int) -> None:
        form = "{desc} {percentage:3.0f}%|{bar:24}| {elapsed}, {remaining} left{postfix}"
        self.runs, self.bar = runs, tqdm(total=runs, desc="runs", bar_format=form)

    def __call__(self, done: int, at: Progress | None) -> None:
        share, text = position(at)
        self.bar.n = done + share
        self.bar.set_postfix_str(f"{done} of {self.runs} runs done{text}")
        if done == self.runs:
            self.bar.close()


def silent(runs: int) -> RunsReporter:
    """In the place of `RunsBar`: says nothing."""
    return lambda done, at: None
