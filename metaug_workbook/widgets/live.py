"""A run watched live in a notebook: one line and the curves so far, which change in place and stay when the run is over.

It is plain display output, so it shows in JupyterLab, under papermill without a screen, and in the saved notebook.
"""

import io
import time
from typing import Any

from IPython.display import DisplayHandle, display

from metaug_core.config import Config
from metaug_core.runs.store import Run
from metaug_core.training.progress import UNSEEN, Progress, position
from metaug_workbook.jobs.estimate import format_duration
from metaug_workbook.plots.style import StyledFigure, replace_surrogates, use_style
from metaug_workbook.plots.training import draw_progress
from metaug_workbook.widgets.base import bundle, write_html


def format_line(text: str, done: float | None = None) -> str:
    """A sentence as HTML, behind a bar of how much is done, in [0, 1], if that is known."""
    bar = "" if done is None else f'<progress value="{done:.4f}" max="1" style="width: 12em"></progress> '
    return f"<div>{bar}{write_html(text)}</div>"


def draw_curves(run: Run) -> bytes:
    """The curves of a run so far, as PNG: loss, what the MAG does, similarities, kNN."""
    with use_style(), io.BytesIO() as buffer:
        figure = StyledFigure(figsize=(8.8, 5.6), layout="constrained")
        draw_progress(run.config.method, run.metrics, *figure.subplots(2, 2).flat)
        figure.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


class Pace:
    """When to draw again: two seconds after the last drawing, or later where drawing is slow, so that it costs a tenth of the time
    at most."""

    def __init__(self) -> None:
        self.after = 0.0

    @property
    def due(self) -> bool:
        return time.monotonic() >= self.after

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        now = time.monotonic()
        self.after = now + max(2.0, 10 * (now - self.started))


class Output:
    """Parts of a cell's output that change in place."""

    def __init__(self) -> None:
        self.handles: dict[str, DisplayHandle] = {}

    def show(self, part: str, data: dict[str, Any]) -> None:
        """Put display data where the part already stands in the output, or below what is there."""
        with UNSEEN:
            if part in self.handles:
                self.handles[part].update(data, raw=True)
            elif (handle := display(data, raw=True, display_id=True)) is not None:
                self.handles[part] = handle

    def say(self, text: str, done: float | None = None) -> None:
        """Show a `format_line` as the part "line"."""
        self.show("line", {"text/plain": replace_surrogates(text), "text/html": format_line(text, done)})


class LiveRuns(Output):
    """A `RunsReporter` in one line of a cell's output: runs done, time left, where the run under way is."""

    def __init__(self, runs: int):
        super().__init__()
        self.runs, self.started = runs, time.monotonic()

    def __call__(self, done: int, at: Progress | None) -> None:
        share, text = position(at)
        part, seconds = (done + share) / self.runs, time.monotonic() - self.started
        left = f", {format_duration(seconds * (1 - part) / part)} left" if 0 < part < 1 else ""
        self.say(f"{done} of {self.runs} runs made{left}{text}", None if done == self.runs else part)


class LiveView(Output):
    """A `Reporter` that shows a run in the output of a notebook cell."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.pace = Pace()

    def __call__(self, at: Progress) -> None:
        self.say(
            f"{at.run.path.name}: epoch {min(at.epoch + 1, self.config.epochs)} of {self.config.epochs}, "
            f"step {at.step:,} of {at.steps:,}, loss {at.loss:.4f}, {at.images_per_second:,.0f} images/s, "
            f"{format_duration(at.seconds_left)} left",
            at.step / at.steps,
        )
        if self.pace.due:
            self.draw(at.run)

    def wait(self, run: Run) -> None:
        """Say that another process trains this run, and how far it is."""
        last = run.progress or {"step": 0, "steps": 1}
        text = f"{run.path.name}: another process trains it; waiting (step {last['step']:,} of {last['steps']:,})"
        self.say(text, last["step"] / last["steps"])

    def finish(self, run: Run) -> None:
        """Show what stays in the notebook: the same for a run that was trained here and one that was there before."""
        metrics = run.metrics
        steps = f", {metrics['step'].iloc[-1]:,.0f} steps" if len(metrics) else "; its metrics are lost"
        self.say(f"{run.path.name}: finished, {run.config.epochs} epochs{steps}")
        self.draw(run)

    def draw(self, run: Run) -> None:
        """Show the curves of the run so far; nothing before its first row of metrics."""
        if not run.metrics.empty:
            with UNSEEN, self.pace:
                self.show("curves", bundle(draw_curves(run), "loss, gradients of the MAG, similarities and kNN so far"))
