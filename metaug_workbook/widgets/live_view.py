"""A run watched live in a notebook: one line and the curves so far, which change in place and stay when the run is over.

It is plain display output, so it shows in JupyterLab, under papermill without a screen, and in the saved notebook.
"""

import base64
import io
import time
from html import escape
from typing import Any

from IPython.display import DisplayHandle, display
from matplotlib import rc_context
from matplotlib.figure import Figure

from metaug_core.config import Config
from metaug_core.runs.store import Run, rows
from metaug_core.training.progress import Progress, position
from metaug_workbook.plots import training
from metaug_workbook.plots.style import STYLE

FIGURE_SECONDS = 2.0  # between two drawings of the curves; more where drawing is slow, so that it costs a tenth at most


def clock(seconds: float) -> str:
    """A duration as a reader says it: 45 s, 3 min 20 s, 2 h 05 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def line(text: str, done: float | None = None) -> str:
    """A sentence as HTML, behind a bar of how much is done, in [0, 1], if that is known."""
    bar = "" if done is None else f'<progress value="{done:.4f}" max="1" style="width: 12em"></progress> '
    return f"<div>{bar}{escape(text)}</div>"


def curves(run: Run) -> bytes:
    """The curves of a run so far, as PNG: loss, similarities, kNN."""
    metrics = run.metrics
    with rc_context(STYLE), io.BytesIO() as buffer:
        figure = Figure(figsize=(11, 2.9), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        training.original_loss(metrics, left)
        training.similarities(metrics, middle)
        training.knn_curve({run.config.method: metrics}, right)
        figure.savefig(buffer, format="png", dpi=72)
        return buffer.getvalue()


def shown(text: str, done: float | None = None) -> dict[str, str]:
    """A `line` as display data."""
    return {"text/plain": text, "text/html": line(text, done)}


class LiveRuns:
    """A `RunsReporter` in one line of a cell's output: runs done, time left, where the run under way is."""

    def __init__(self, runs: int):
        self.runs, self.started = runs, time.monotonic()
        self.handle = display({"text/plain": ""}, raw=True, display_id=True)

    def __call__(self, done: int, at: Progress | None) -> None:
        share, text = position(at)
        part, seconds = (done + share) / self.runs, time.monotonic() - self.started
        left = f", {clock(seconds * (1 - part) / part)} left" if 0 < part < 1 else ""
        if self.handle is not None:
            said = f"{done} of {self.runs} runs made{left}{text}"
            self.handle.update(shown(said, None if done == self.runs else part), raw=True)


class LiveView:
    """A `Reporter` that shows a run in the output of a notebook cell."""

    def __init__(self, config: Config):
        self.config = config
        self.handles: dict[str, DisplayHandle] = {}
        self.draw_after = 0.0

    def __call__(self, at: Progress) -> None:
        self.say(
            f"{at.run.path.name}: epoch {min(at.epoch + 1, self.config.epochs)} of {self.config.epochs}, "
            f"step {at.step:,} of {at.steps:,}, loss {at.loss:.4f}, {at.images_per_second:,.0f} images/s, "
            f"{clock(at.seconds_left)} left",
            at.step / at.steps,
        )
        if time.monotonic() >= self.draw_after:
            self.draw(at.run)

    def wait(self, run: Run) -> None:
        """Say that another process trains this run, and how far it is."""
        last = (rows(run.path / "timing.jsonl") or [{"step": 0, "steps": 1}])[-1]
        text = f"{run.path.name}: another process trains it; waiting (step {last['step']:,} of {last['steps']:,})"
        self.say(text, last["step"] / last["steps"])

    def finish(self, run: Run) -> None:
        """What stays in the notebook: the same for a run that was trained here and one that was found."""
        last = run.metrics.iloc[-1]
        self.say(f"{run.path.name}: finished, {last['epoch']:g} epochs, {last['step']:,.0f} steps")
        self.draw(run)

    def say(self, text: str, done: float | None = None) -> None:
        self.show("line", shown(text, done))

    def draw(self, run: Run) -> None:
        if run.metrics.empty:
            return
        started = time.monotonic()
        png = base64.b64encode(curves(run)).decode()
        self.show("curves", {"text/plain": "loss, similarities and kNN so far", "image/png": png})
        now = time.monotonic()
        self.draw_after = now + max(FIGURE_SECONDS, 10 * (now - started))

    def show(self, name: str, data: dict[str, Any]) -> None:
        """Put data where `name` already stands in the output, or below what is there."""
        if name in self.handles:
            self.handles[name].update(data, raw=True)
        elif (handle := display(data, raw=True, display_id=True)) is not None:
            self.handles[name] = handle


def live(config: Config) -> LiveView:
    """The view to hand to `engine.fit` as its report."""
    return LiveView(config)
