"""A run in the background, watched and steered from a notebook: curves, similarities, Start, Pause and Stop.

The run is a process of its own (`background`) and everything shown comes from its folder, so any kernel can watch it and go on
with it. A thread looks into the folder; the kernel stays free.
"""

import asyncio
import threading
from pathlib import Path
from typing import Any

import ipywidgets
import pandas as pd
from IPython.display import DisplayHandle
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metaug_core.config import Config
from metaug_core.errors import MetaugError
from metaug_core.runs.files import StoreError, rows
from metaug_core.runs.store import Run, request
from metaug_workbook.jobs import background
from metaug_workbook.jobs.estimate import format_duration
from metaug_workbook.plots.features import draw_pair_histograms
from metaug_workbook.plots.style import draw_empty, label, use_style
from metaug_workbook.plots.training import draw_progress
from metaug_workbook.widgets.base import LiveFigure, bundle, make_figure
from metaug_workbook.widgets.live import Pace, format_line

LOOK_SECONDS = 0.5  # between two looks into the run's folder
WATCHERS: dict[Path, "RunMonitor"] = {}  # the one that follows a run: a cell that is run again replaces it
SENTENCES = {
    "new": "not started",
    "starting": "starting: the process loads its packages and images",
    "saving": "saving, then it ends",
    "paused": "paused: everything is saved, Resume goes on from there, in any kernel",
    "finished": "finished",
}
TIPS = {
    "start": "goes on from the last checkpoint",
    "pause": "saves, and ends the process",
    "stop": "saves, ends the process, and no longer watches",
}


class RunStopped(MetaugError):
    """The reader stopped a run, which is saved. Ends the cell, and those after it, with a sentence in place of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"{self}: saved; run the cell again to go on"]


def draw_last_similarities(run: Run, ax: Axes) -> Axes:
    """Histograms of the similarities of the last minibatch that was logged."""
    title = "Similarities of a minibatch"
    logged = rows(run.path / "similarities.jsonl")
    if not logged:
        return draw_empty(ax, title, "no minibatch logged yet")
    tables = []
    for kind, name in (("different", "negative"), ("same", "positive")):
        shares = logged[-1].get(f"{name}_histogram")
        if not isinstance(shares, list):
            raise StoreError(f"{run.path / 'similarities.jsonl'} does not hold histograms")
        left = [number / len(shares) for number in range(len(shares))]
        tables.append(pd.DataFrame({"pairs": kind, "left": left, "proportion": shares}))
    draw_pair_histograms(pd.concat(tables), ax, "proportion")
    return label(ax, title, "similarity $d$ (0 to 1)", "share of its kind", f"at step {logged[-1]['step']:,}")


@use_style()
def draw_state(run: Run, figure: Figure) -> None:
    """The state of a run into a figure, anew: loss, what the MAG does, kNN, similarities over time and now."""
    figure.clear()
    axes = figure.subplot_mosaic([["loss", "mag", "knn"], ["similarities", "similarities", "last"]])
    draw_progress(run.config.method, run.metrics, *(axes[name] for name in ("loss", "mag", "similarities", "knn")))
    draw_last_similarities(run, axes["last"])


def monitor_figure(run: Run) -> Figure:
    """The figure of `run_monitor` without controls: a run as its folder has it now."""
    figure = make_figure(10.5, 6.0)
    draw_state(run, figure)
    return figure


class RunMonitor(LiveFigure):
    """What `run_monitor` returns: `start`, `pause` and `stop` do what the buttons do, `state` and `text` say what is shown."""

    def __init__(self, config: Config):
        self.config, self.run = config, request(config)
        super().__init__(monitor_figure(self.run))
        self.state = ""
        self.handle: DisplayHandle | None = None
        self.drawn: tuple[int, ...] = ()  # when the files that the picture shows were written
        self.pace = Pace()
        self.over, self.looking, self.stopping = threading.Event(), threading.Lock(), False
        self.buttons = {
            name: ipywidgets.Button(description=name.capitalize(), tooltip=tip) for name, tip in TIPS.items()
        }
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: self.press(name))
        title = f"Run monitor: {self.run.path.name}"
        self.arrange(title, [ipywidgets.HBox(list(self.buttons.values()))], [self.sentence, self.image])
        self.look()

    # --- the buttons
    def press(self, name: str) -> None:
        """Do what a button does, or say why that could not be done."""
        try:
            getattr(self, name)()
        except MetaugError as error:
            self.tell("failed", str(error))

    def start(self) -> None:
        """Start the run in the background, or go on with it."""
        self.stopping = False
        background.start(self.config)
        self.look()
        self.follow()

    def pause(self) -> None:
        """Ask the run to save and end, and keep watching."""
        background.stop(self.run)
        self.look()

    def stop(self) -> None:
        """Ask the run to save and end, and no longer watch when it has."""
        self.stopping = True
        self.pause()

    async def wait(self) -> None:
        """Watch until the run is finished; a paused one is waited for, since Resume goes on with it. The buttons work meanwhile,
        which they would not be if the cell slept. Raises RunStopped after Stop or an interrupt, when the run is saved, and
        MetaugError if it failed."""
        try:
            while not self.run.finished and not self.over.is_set() and self.state != "failed":
                await asyncio.sleep(LOOK_SECONDS)
        except (asyncio.CancelledError, KeyboardInterrupt):  # the first is what the kernel makes of an interrupt
            self.stop()
            while background.is_alive(self.run):
                await asyncio.sleep(LOOK_SECONDS)
        self.look()
        if not self.run.finished:
            raise MetaugError(self.text) if self.state == "failed" else RunStopped(self.run.path.name)

    # --- what is shown
    def look(self) -> None:
        """Look into the run's folder once. A button's and the thread's wait for each other: they draw into one figure."""
        with self.looking:
            state = background.state(self.run)
            last = self.run.progress or None
            self.tell(state, self.describe(state, last), last)
            self.redraw(changed=state != self.state)
            self.state = state
            if state in ("paused", "new", "finished", "failed") and self.stopping:
                self.over.set()

    def describe(self, state: str, last: dict[str, Any] | None) -> str:
        """The state of the run as a sentence; last: the last row of its timing."""
        if state == "training" and last:
            return (
                f"training: step {last['step']:,} of {last['steps']:,}, loss {last['loss']:.4f}, "
                f"{last['images_per_second']:,.0f} images/s, {format_duration(last['seconds_left'])} left"
            )
        where = f" (step {last['step']:,} of {last['steps']:,})" if last else ""
        if state == "failed":
            return background.last_words(self.run) + where
        if state == "paused" and self.stopping:
            return f"stopped and saved{where}: this cell, or `metaug resume {self.run.path.name}`, goes on from there"
        return SENTENCES[state] + where

    def tell(self, state: str, text: str, last: dict[str, Any] | None = None) -> None:
        """Write the line above the picture, and enable the buttons that can be pressed."""
        self.text = text
        self.sentence.value = format_line(text, last["step"] / last["steps"] if last else None)
        resumable = state in ("paused", "failed") and bool(self.run.checkpoints)
        self.buttons["start"].description = "Resume" if resumable else "Start"
        self.buttons["start"].disabled = state not in ("new", "paused", "failed")
        self.buttons["pause"].disabled = self.buttons["stop"].disabled = state not in ("starting", "training")

    def redraw(self, changed: bool) -> None:
        """Draw the picture again where a file has changed: a new state at once, else as `Pace` allows."""
        files = [self.run.path / f"{name}.jsonl" for name in ("metrics", "similarities")]
        written = tuple(file.stat().st_mtime_ns for file in files if file.exists())
        if self.image.value and (written == self.drawn or not (changed or self.pace.due)):
            return
        with self.pace:
            draw_state(self.run, self.figure)
            self.canvas.draw()
            self.refresh()
        if self.handle is not None:
            self.handle.update(
                bundle(self.png, self.text), raw=True, metadata=self.metadata
            )  # what stays in the saved notebook
        self.drawn = written

    # --- the thread
    def follow(self) -> None:
        """Look again and again in a thread, until the run is finished, stopped, or another monitor follows it."""
        before = WATCHERS.get(self.run.path)
        if before is self and not self.over.is_set():
            return
        if before is not None:
            before.over.set()
        WATCHERS[self.run.path], self.over = self, threading.Event()
        threading.Thread(target=self._keep_looking, args=(self.over,), daemon=True).start()

    def _keep_looking(self, over: threading.Event) -> None:
        while not over.wait(LOOK_SECONDS) and self.state != "finished":
            try:
                self.look()
            except (MetaugError, OSError) as error:  # a folder that somebody removed, a disk that went away
                self.tell("failed", str(error))
            except Exception as error:  # matplotlib is not made for threads: what collides is drawn again
                self.drawn, self.text = (), f"drawing again: {error}"

    def _ipython_display_(self) -> None:
        self.handle = self.show()
        self.follow()


def run_monitor(config: Config, start: bool = False) -> RunMonitor:
    """Watch the run of config and steer it: it trains in a process of its own, so the notebook stays usable and may be closed.

    start: start it (or go on with it) right away. Pause and Stop save after the step under way; Resume, `metaug resume` or the
    same cell in another kernel go on from there, bit for bit as if nothing had been between.
    """
    monitor = RunMonitor(config)
    if start:
        monitor.press("start")
    return monitor
