"""The runs of a folder: filtered by what they are, in a table of what tells them apart, their curves laid over each other, their
executed notebooks a click away; those that are ticked can be deleted."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import ipywidgets
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metaug_core.config import Config
from metaug_core.errors import MetaugError
from metaug_core.runs import removal
from metaug_core.runs.listing import Listed, list_folders, read_folder, tabulate
from metaug_core.runs.store import Run
from metaug_workbook.plots.style import draw_empty, label, pick_color, use_style, verbatim
from metaug_workbook.plots.training import Metrics, draw_curve
from metaug_workbook.widgets.base import WHOLE_ROW, LiveFigure, make_figure, menu, write_html

MOST = 8  # curves that can still be told apart
SETTINGS = 6  # columns of settings in the table
MEASURES = {"probe_paper": "probe (crops)", "probe_plain": "probe", "probe_fast": "probe (fast)", "knn": "kNN"}
LINES = ("-", "--", ":", "-.")
ALL, UNKNOWN = "all", "-"
COLUMNS = {
    "kNN on validation images (share)": "knn_val",
    "loss, original features": "loss_original",
    "loss, augmented features (weighted)": "loss_augmented",
    "similarity of positives": "positive_similarity",
    "similarity of negatives": "negative_similarity",
    "similarity of z and its z̃": "augmented_similarity",
    "effective rank (dimensions)": "effective_rank",
    "debiased sums at their floor (share of anchors)": "debias_floor_share",
    "gradient from augmented features (share)": "augmented_gradient_share",
    "norm of the meta-gradient": "mag_gradient_norm",
}


def draw_overlay(runs: Sequence[Listed], metrics: Sequence[Metrics], column: str, figure: Figure) -> None:
    """The column of each run by epoch, into figure; color by method, and a line style for each run of the same method."""
    figure.clear()
    ax = figure.subplots()
    figure.subplots_adjust(0.08, 0.36, 0.99, 0.93)  # by hand: a layout engine would draw everything twice
    title = next((text for text, name in COLUMNS.items() if name == column), column)
    methods = [run.method or UNKNOWN for run in runs]
    for number, (run, table) in enumerate(zip(runs, metrics, strict=True)):
        method = methods[number]
        line = LINES[methods[:number].count(method) % len(LINES)]
        draw_curve(ax, table, column, "epoch", color=pick_color(method), linestyle=line, label=verbatim(run.path.name))
    if not ax.lines:
        draw_empty(ax, title, "no selected run has this metric" if runs else "no run selected")
        return
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.2), fontsize=8.5, ncols=1 if len(runs) < 4 else 2)
    label(ax, title, "epoch")


def runs_figure(runs: Sequence[Run], column: str = "knn_val") -> Figure:
    """The figure of `run_browser` without controls: one curve for each run, a column of `Run.metrics`."""
    with use_style():
        figure = make_figure(8.8, 3.9, layout=None)
        draw_overlay([read_folder(run.path) for run in runs], [run.metrics for run in runs], column, figure)
    return figure


def link_notebooks(run: Listed) -> str:
    """Links to a run's executed notebooks, relative to where the kernel runs, which is where the open notebook lies."""
    links = []
    for path in sorted(run.path.glob("*.ipynb")):
        where = quote(os.path.relpath(path.resolve(), Path.cwd()).replace(os.sep, "/"), errors="surrogateescape")
        links.append(f'<a href="{where}">{write_html(path.stem)}</a>')
    return ", ".join(links) or "none"


def write_table(runs: Sequence[Listed], drawn: Sequence[Listed]) -> str:
    """Runs as rows of a table in HTML: settings that differ, final numbers, links; those that are drawn in bold."""
    head, rows, more = tabulate(runs, MEASURES, SETTINGS)
    names = {run.name for run in drawn}
    lines = []
    for run, row in zip(runs, rows, strict=True):
        cells = "".join(f"<td>{write_html(cell)}</td>" for cell in row) + f"<td>{link_notebooks(run)}</td>"
        lines.append(f'<tr style="font-weight: {"bold" if run.name in names else "normal"}">{cells}</tr>')
    title = "".join(f"<th>{write_html(name)}</th>" for name in [*head, "notebooks"])
    note = f"<p>They also differ in {write_html(', '.join(more))}.</p>" if more else ""
    return f'<div style="max-height: 320px; overflow: auto"><table><tr>{title}</tr>{"".join(lines)}</table></div>{note}'


def describe(run: Listed) -> dict[str, str]:
    """What a run can be filtered by."""
    return {"dataset": run.dataset or UNKNOWN, "method": run.method or UNKNOWN, "state": run.state}


class RunBrowser(LiveFigure):
    """What `run_browser` returns. `filters`, `ticks` and `column` are the controls, `choose` ticks runs by name; `shown` are the
    runs drawn."""

    def __init__(self, runs_dir: Path):
        super().__init__(make_figure(8.8, 3.9, layout=None))
        self.choosing = False
        self.metrics: dict[str, Metrics] = {}  # of finished runs, by name: they do not change any more
        self.runs = {run.name: run for run in reversed(list_folders(runs_dir))}  # newest first
        self.filters = {
            kind: menu(title, ALL, [ALL, *sorted({describe(run)[kind] for run in self.runs.values()})])
            for kind, title in (("dataset", "data set"), ("method", "method"), ("state", "state"))
        }
        self.column = menu("curve", "knn_val", list(COLUMNS.items()))
        self.column.layout.grid_area = WHOLE_ROW  # its names are long
        tick: dict[str, Any] = {"style": {"description_width": "0px"}, "layout": {"width": "98%", "flex": "0 0 auto"}}
        self.ticks = {name: ipywidgets.Checkbox(False, description=name, **tick) for name in self.runs}
        column: dict[str, Any] = {"max_height": "150px", "overflow": "auto", "flex_flow": "column"}
        self.list = ipywidgets.Box(list(self.ticks.values()), layout={"grid_area": WHOLE_ROW, **column})
        self.links = ipywidgets.Output()
        self.filter()
        for control in self.filters.values():
            control.observe(self.filter, "value")
        for control in (self.column, *self.ticks.values()):
            control.observe(self.redraw, "value")
        self.buttons = {
            name: ipywidgets.Button(description=name) for name in ("Delete ticked", "Delete for good", "Keep")
        }
        actions = (self.ask, self.delete, self.keep)
        for button, action in zip(self.buttons.values(), actions, strict=True):
            button.on_click(lambda _, action=action: action())
        self.buttons["Delete for good"].button_style = "danger"
        self.keep()
        row = ipywidgets.HBox(list(self.buttons.values()), layout={"grid_area": WHOLE_ROW})
        controls = [*self.filters.values(), self.column, self.list, row]
        title = f"Run browser: {len(self.runs)} runs, newest first (up to {MOST} curves)"
        self.arrange(title, controls, [self.image, self.sentence, self.links])

    @property
    def listed(self) -> list[str]:
        """The names of the runs that pass the filters."""
        return [name for name, tick in self.ticks.items() if tick.layout.display != "none"]

    @property
    def chosen(self) -> list[str]:
        """The names of the runs that pass the filters and are ticked."""
        return [name for name in self.listed if self.ticks[name].value]

    def filter(self, change: Any = None) -> None:
        """List what passes the filters; what was ticked and is still there stays so, else the newest three are."""
        del change
        for name, run in self.runs.items():
            passes = all(control.value in (ALL, describe(run)[kind]) for kind, control in self.filters.items())
            self.ticks[name].layout.display = None if passes else "none"
        if self.chosen:
            self.redraw()
        else:
            self.choose(self.listed[:3])

    def choose(self, names: Sequence[str]) -> None:
        """Tick these runs and no other; one drawing, not one for each."""
        self.choosing = True
        for name, tick in self.ticks.items():
            tick.value = name in names
        self.choosing = False
        self.redraw()

    # --- deleting
    def ask(self) -> None:
        """Say which runs would be deleted, and offer to do it."""
        self.doomed = [self.runs[name] for name in self.chosen]
        if not self.doomed:
            self.say("No run is ticked.")
            return
        size = sum(removal.measure_size(run.path) for run in self.doomed)
        self.say(f"Delete {', '.join(run.name for run in self.doomed)} for good ({size:.1f} MB)?")
        self.offer(True)

    def delete(self) -> None:
        """Delete the runs that `ask` named; or say why none could be."""
        self.offer(False)
        try:
            removal.remove([run.path for run in self.doomed])
        except (MetaugError, OSError) as error:
            self.say(str(error))
            return
        for run in self.doomed:
            del self.runs[run.name], self.ticks[run.name]
        self.list.children = list(self.ticks.values())
        self.doomed = []
        self.filter()

    def keep(self) -> None:
        """Delete nothing."""
        self.doomed: list[Listed] = []
        self.offer(False)
        self.redraw()

    def offer(self, yes: bool) -> None:
        """Show the buttons that answer, or the one that asks."""
        for name, button in self.buttons.items():
            button.layout.display = None if (name != "Delete ticked") == yes else "none"

    def redraw(self, change: Any = None) -> None:
        """Draw the curves of the chosen runs, and list what passes the filters. change: of a control, not read."""
        del change
        if self.choosing:
            return
        self.shown = [self.runs[name] for name in self.chosen[:MOST]]
        with use_style():
            draw_overlay(self.shown, [self.read_metrics(run) for run in self.shown], self.column.value, self.figure)
            self.canvas.draw()
        self.refresh()
        ticks = ""
        if not self.shown:
            ticks = " Tick runs above: Tab moves, the space bar ticks."
        self.say(f"{len(self.listed)} of {len(self.runs)} runs pass the filters, {len(self.shown)} are drawn.{ticks}")
        # In an output of its own: there JupyterLab opens a relative link as a tab.
        html = write_table([self.runs[name] for name in self.listed], self.shown)
        self.links.outputs = ({"output_type": "display_data", "data": {"text/html": html}, "metadata": {}},)

    def read_metrics(self, run: Listed) -> Metrics:
        """The metrics of a run, of a finished one read once; none of one whose metrics are damaged."""
        if run.name in self.metrics:
            return self.metrics[run.name]
        try:
            metrics = run.metrics
        except MetaugError:  # its state says so
            return pd.DataFrame()
        if run.state == "finished":
            self.metrics[run.name] = metrics
        return metrics


def run_browser(runs_dir: Path | str | None = None) -> RunBrowser:
    """Filter the runs of a folder (None: that of Config), compare their settings and numbers, lay their curves over each other,
    open their executed notebooks, delete those that are ticked.

    A link opens in JupyterLab if the notebook lies under the folder that JupyterLab was started in.
    """
    return RunBrowser(Path(runs_dir or Config.model_fields["runs_dir"].default))
