"""The runs of a folder: found by what they are, their curves laid over each other, their executed notebooks a click away."""

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import ipywidgets
import pandas as pd
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metaug_core.config import Config
from metaug_core.runs.store import Run, list_runs
from metaug_workbook.plots import training
from metaug_workbook.plots.style import STYLE, dress, method_colour, nothing
from metaug_workbook.widgets.base import DPI, encoded, image, live_box, menu, said, show

MOST = 8  # curves that can still be told apart
LINES = ("-", "--", ":", "-.")
ALL = "all"
WHOLE_ROW = "auto / 1 / auto / -1"  # not grid_column, which ipywidgets takes away again when it finds no grid_area
COLUMNS = {
    "kNN on validation images (share)": "knn_val",
    "loss, original features": "loss_original",
    "loss, augmented features (weighted)": "loss_augmented",
    "similarity of positives": "positive_similarity",
    "similarity of negatives": "negative_similarity",
    "similarity of z and its z̃": "augmented_similarity",
    "effective rank (dimensions)": "effective_rank",
    "gradient from augmented features (share)": "augmented_gradient_share",
    "norm of the meta-gradient": "mag_gradient_norm",
}


def overlay(tables: dict[str, tuple[Run, pd.DataFrame]], column: str, figure: Figure) -> None:
    """The column of each run by epoch, into figure; colour by method, and a line style for each run of the same method."""
    figure.clear()
    ax = figure.subplots()
    figure.subplots_adjust(0.08, 0.36, 0.99, 0.93)  # by hand: a layout engine would draw everything twice
    title = next((label for label, name in COLUMNS.items() if name == column), column)
    counts: dict[str, int] = {}
    for name, (run, metrics) in tables.items():
        method = run.config.method
        counts[method] = counts.get(method, -1) + 1
        look: dict[str, Any] = {
            "color": method_colour(method),
            "linestyle": LINES[counts[method] % len(LINES)],
            "label": name,
        }
        training.curve(ax, metrics, column, "epoch", **look)
    if not ax.lines:
        nothing(ax, title, "no run selected" if not tables else "no selected run has this metric")
        return
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.2), fontsize=8.5, ncols=1 if len(tables) < 4 else 2)
    dress(ax, title, "epoch")


def runs_figure(runs: Sequence[Run], column: str = "knn_val") -> Figure:
    """The figure of `run_browser` without controls: one curve for each run, a column of `Run.metrics`."""
    with rc_context(STYLE):
        figure = Figure(figsize=(8.8, 3.9), dpi=DPI)
        overlay({run.path.name: (run, run.metrics) for run in runs}, column, figure)
    return figure


def notebooks_of(run: Run) -> str:
    """Links to a run's executed notebooks, relative to where the kernel runs, which is where the open notebook lies."""
    links = []
    for path in sorted(run.path.glob("*.ipynb")):
        where = quote(os.path.relpath(path.resolve(), Path.cwd()).replace(os.sep, "/"))
        links.append(f'<a href="{where}">{escape(path.stem)}</a>')
    return ", ".join(links) or "no executed notebook"


class RunBrowser:
    """What `run_browser` returns. `filters`, `ticks` and `column` are the controls, `choose` ticks runs by name; `shown` are the
    runs drawn."""

    def __init__(self, runs_dir: Path):
        self.choosing = False
        self.tables: dict[str, tuple[Run, pd.DataFrame]] = {}
        with rc_context(STYLE):
            self.figure = Figure(figsize=(8.8, 3.9), dpi=DPI)
        self.canvas = FigureCanvasAgg(self.figure)
        self.runs = {run.path.name: run for run in reversed(list_runs(runs_dir))}  # newest first
        self.filters = {
            "dataset": menu("data set", ALL, [ALL, *self.kinds("dataset")]),
            "method": menu("method", ALL, [ALL, *self.kinds("method")]),
            "state": menu("state", ALL, [ALL, "finished", "unfinished"]),
        }
        self.column = menu("curve", "knn_val", list(COLUMNS.items()))
        self.column.layout.grid_area = WHOLE_ROW  # its names are long
        plain = {"description_width": "0px"}
        self.ticks = {
            name: ipywidgets.Checkbox(False, description=name, style=plain, layout={"width": "98%", "flex": "0 0 auto"})
            for name in self.runs
        }
        look: dict[str, Any] = {
            "max_height": "150px",
            "overflow": "auto",
            "grid_area": WHOLE_ROW,
            "flex_flow": "column",
        }
        self.list = ipywidgets.Box(list(self.ticks.values()), layout=look)
        self.image = image()
        self.sentence, self.links = ipywidgets.HTML(), ipywidgets.Output()
        self.filter()
        for control in self.filters.values():
            control.observe(self.filter, "value")
        for control in (self.column, *self.ticks.values()):
            control.observe(self.redraw, "value")
        controls = [*self.filters.values(), self.column, self.list]
        title = f"Run browser: {len(self.runs)} runs, newest first (up to {MOST} curves)"
        self.box = live_box(title, controls, [self.image, self.sentence, self.links])

    def kinds(self, setting: str) -> list[str]:
        return sorted({getattr(run.config, setting) for run in self.runs.values()})

    def keeps(self, run: Run) -> bool:
        """Whether a run passes all filters."""
        has = {
            "dataset": run.config.dataset,
            "method": run.config.method,
            "state": "finished" if run.finished else "unfinished",
        }
        return all(control.value in (ALL, has[name]) for name, control in self.filters.items())

    def filter(self, change: Any = None) -> None:
        """The list of what passes the filters; what was ticked and is still there stays so, else the newest three are."""
        del change
        for name, run in self.runs.items():
            self.ticks[name].layout.display = None if self.keeps(run) else "none"
        if self.chosen:
            self.redraw()
        else:
            self.choose(self.listed[:3])

    @property
    def listed(self) -> list[str]:
        """The names of the runs that pass the filters."""
        return [name for name, tick in self.ticks.items() if tick.layout.display != "none"]

    @property
    def chosen(self) -> list[str]:
        return [name for name in self.listed if self.ticks[name].value]

    def choose(self, names: Sequence[str]) -> None:
        """Tick these runs and no other; one drawing, not one for each."""
        self.choosing = True
        for name, tick in self.ticks.items():
            tick.value = name in names
        self.choosing = False
        self.redraw()

    def redraw(self, change: Any = None) -> None:
        del change
        if self.choosing:
            return
        names = self.chosen[:MOST]
        self.shown = [self.runs[name] for name in names]
        for name in names:
            if name not in self.tables or not self.runs[name].finished:
                self.tables[name] = (self.runs[name], self.runs[name].metrics)
        with rc_context(STYLE):
            overlay({name: self.tables[name] for name in names}, self.column.value, self.figure)
            self.canvas.draw()
        self.image.value = self.png = encoded(self.canvas)
        self.text = f"{len(self.listed)} of {len(self.runs)} runs pass the filters, {len(names)} are drawn."
        self.sentence.value = said(self.text)
        rows = "".join(f"<li>{escape(run.path.name)}: {notebooks_of(run)}</li>" for run in self.shown)
        # In an output of its own: there JupyterLab opens a relative link as a tab.
        html = f"<ul>{rows}</ul>" if rows else "<p>Tick runs above: Tab moves, the space bar ticks.</p>"
        self.links.outputs = ({"output_type": "display_data", "data": {"text/html": html}, "metadata": {}},)

    def _ipython_display_(self) -> None:
        show(self.png, self.text, self.box)


def run_browser(runs_dir: Path | str | None = None) -> RunBrowser:
    """Filter the runs of a folder (None: that of Config), lay their curves over each other, open their executed notebooks.

    A link opens in JupyterLab if the notebook lies under the folder that JupyterLab was started in.
    """
    return RunBrowser(Path(runs_dir or Config.model_fields["runs_dir"].default))
