"""A run in the background, watched and steered from a notebook: curves, similarities, Start, Pause and Stop.

The run is a process of its own (`background`) and everything shown comes from its folder, so any kernel can watch it and go on
with it. A thread looks into the folder; the kernel stays free.
"""

import threading
import time
from pathlib import Path
from typing import Any

import ipywidgets
import pandas as pd
from IPython.display import DisplayHandle
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from metaug_core.config import Config
from metaug_core.errors import MetaugError
from metaug_core.runs.store import Run, request, rows
from metaug_workbook.jobs import background
from metaug_workbook.plots import training
from metaug_workbook.plots.style import STYLE, dress, nothing
from metaug_workbook.widgets.base import DPI, bundle, encoded, image, live_box, show
from metaug_workbook.widgets.live_view import FIGURE_SECONDS, clock, line

LOOK_SECONDS = 0.5  # between two looks into the run's folder
WATCHERS: dict[Path, "RunMonitor"] = {}  # the one that follows a run: a cell that is run again replaces it


def similarity_shares(run: Run, ax: Axes) -> Axes:
    """Histograms of the similarities of the last minibatch that was logged."""
    title = "Similarities of a minibatch"
    found = rows(run.path / "similarities.jsonl")
    if not found:
        return nothing(ax, title, "no minibatch logged yet")
    kinds = {kind: found[-1][f"{name}_histogram"] for kind, name in (("different", "negative"), ("same", "positive"))}
    bins = [
        {"pairs": kind, "left": number / len(shares), "proportion": share}
        for kind, shares in kinds.items()
        for number, share in enumerate(shares)
    ]
    training.pair_histograms(pd.DataFrame(bins), ax, "proportion")
    return dress(ax, title, "similarity $d$ (0 to 1)", "share of its kind", f"at step {found[-1]['step']:,}")


def draw(run: Run, figure: Figure) -> None:
    """The state of a run into a figure, anew: loss, similarities over time and now, kNN."""
    figure.clear()
    (a, b), (c, d) = figure.subplots(2, 2)
    metrics = run.metrics
    if metrics.empty:
        for ax, title in (
            (a, "Loss of the features, $L_{ori}$"),
            (b, "Similarities and margins"),
            (d, "kNN on the validation split"),
        ):
            nothing(ax, title, "no step logged yet")
    else:
        training.original_loss(metrics, a)
        training.similarities(metrics, b)
        training.knn_curve({run.config.method: metrics}, d)
    similarity_shares(run, c)


def monitor_figure(run: Run) -> Figure:
    """The figure of `run_monitor` without controls: a run as its folder has it now."""
    rcParams.update(STYLE)
    figure = Figure(figsize=(8.8, 5.0), dpi=DPI, layout="constrained")
    draw(run, figure)
    return figure


SAID = {
    "new": "not started",
    "starting": "starting: the process loads its packages and images",
    "saving": "saving, then it ends",
    "paused": "paused: everything is saved, Resume goes on from there, in any kernel",
    "finished": "finished",
}


class RunMonitor:
    """What `run_monitor` returns: `start`, `pause` and `stop` do what the buttons do, `state` and `text` say what is shown."""

    def __init__(self, config: Config):
        self.config, self.run = config, request(config)
        self.figure = monitor_figure(self.run)
        self.canvas = FigureCanvasAgg(self.figure)
        self.state = self.text = ""
        self.handle: DisplayHandle | None = None
        self.drawn, self.draw_after = (), 0.0
        self.over, self.looking, self.stopping = threading.Event(), threading.Lock(), False
        self.image = image()
        self.says = ipywidgets.HTML()
        tips = {
            "start": "goes on from the last checkpoint",
            "pause": "saves, and ends the process",
            "stop": "saves, ends the process, and no longer watches",
        }
        self.buttons = {
            name: ipywidgets.Button(description=name.capitalize(), tooltip=tip) for name, tip in tips.items()
        }
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: self.press(name))
        title = f"Run monitor: {self.run.path.name}"
        self.box = live_box(title, [ipywidgets.HBox(list(self.buttons.values()))], [self.says, self.image])
        self.look()

    def press(self, name: str) -> None:
        """A button: what it does, or why it could not."""
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

    def look(self) -> None:
        """One look into the run's folder. A button's and the thread's wait for each other: they draw into one figure."""
        with self.looking:
            self._look()

    def _look(self) -> None:
        state = background.state(self.run)
        timing = rows(self.run.path / "timing.jsonl")
        self.tell(state, self.sentence(state, timing[-1] if timing else None), timing[-1] if timing else None)
        self.redraw(changed=state != self.state)
        self.state = state
        if state in ("paused", "new", "finished", "failed") and self.stopping:
            self.over.set()

    def sentence(self, state: str, last: dict[str, Any] | None) -> str:
        where = f" (step {last['step']:,} of {last['steps']:,})" if last else ""
        if state == "training" and last:
            return (
                f"training: step {last['step']:,} of {last['steps']:,}, loss {last['loss']:.4f}, "
                f"{last['images_per_second']:,.0f} images/s, {clock(last['seconds_left'])} left"
            )
        if state == "failed":
            return background.last_words(self.run) + where
        if state == "paused" and self.stopping:
            return f"stopped and saved{where}: this cell, or `metaug resume {self.run.path.name}`, goes on from there"
        return SAID[state] + where

    def tell(self, state: str, text: str, last: dict[str, Any] | None = None) -> None:
        """The line above the picture, and which buttons can be pressed; only what has changed goes to the browser."""
        self.text, going = text, state in ("starting", "training")
        self.says.value = line(text, last["step"] / last["steps"] if last else None)
        self.buttons["start"].description = (
            "Resume" if state in ("paused", "failed") and self.run.checkpoint.exists() else "Start"
        )
        self.buttons["start"].disabled = state not in ("new", "paused", "failed")
        self.buttons["pause"].disabled = self.buttons["stop"].disabled = not going

    def redraw(self, changed: bool) -> None:
        """The picture, where a file has changed: a new state at once, else so seldom that drawing takes a tenth of the time."""
        files = [self.run.path / f"{name}.jsonl" for name in ("metrics", "similarities")]
        now = tuple(file.stat().st_mtime_ns for file in files if file.exists())
        if self.image.value and (now == self.drawn or (time.monotonic() < self.draw_after and not changed)):
            return
        started = time.monotonic()
        draw(self.run, self.figure)
        self.canvas.draw()
        self.image.value = self.png = encoded(self.canvas)
        if self.handle is not None:
            self.handle.update(bundle(self.png, self.text), raw=True)  # what stays in the saved notebook
        self.drawn, self.draw_after = now, time.monotonic() + max(FIGURE_SECONDS, 10 * (time.monotonic() - started))

    def follow(self) -> None:
        """Look again and again in a thread, until the run is finished, stopped, or another monitor follows it."""
        before = WATCHERS.get(self.run.path)
        if before is self and not self.over.is_set():
            return
        if before is not None:
            before.over.set()
        WATCHERS[self.run.path], self.over = self, threading.Event()
        threading.Thread(target=self._looks, args=(self.over,), daemon=True).start()

    def _looks(self, over: threading.Event) -> None:
        while not over.wait(LOOK_SECONDS) and self.state != "finished":
            try:
                self.look()
            except (MetaugError, OSError) as error:  # a folder that somebody removed, a disk that went away
                self.tell("failed", str(error))
            except (
                Exception
            ) as error:  # matplotlib is not made for threads: what collides with a cell's own drawing is done again
                self.drawn, self.text = (), f"drawing again: {error}"

    def _ipython_display_(self) -> None:
        self.handle = show(self.png, self.text, self.box)
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
