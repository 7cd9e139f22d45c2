"""The curves of one run, or of several seeds as a mean and its 95 % band: functions of (data, ax) that return ax.

`PANELS` says what each panel shows: a metric is added to a panel, or a panel to the notebooks, by a line there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from metaug_core.registry import Registry
from metaug_workbook.plots.style import (
    BLUE,
    GREEN,
    MARKERS,
    ORANGE,
    RED,
    SKY,
    draw_empty,
    draw_means,
    label,
    pick_color,
    use_style,
    verbatim,
)

Metrics = pd.DataFrame | Sequence[pd.DataFrame]  # `Run.metrics` of one run, or of each of several seeds
NOTHING_LOGGED = "no step logged yet"
FAR_APART = 100  # times: lines of one panel that lie further from each other need a logarithmic axis


@dataclass(frozen=True)
class Panel:
    """A panel of curves. lines: metric -> its look as matplotlib's lines have it, with a label where there is a legend.
    missing: what the panel says of a method without these metrics. y_limits: None: as `fit_scale` finds them; an end that is None:
    as matplotlib finds it. x: step or epoch; scale: a factor on the values; legend: where and how large, None for none."""

    title: str
    y: str
    missing: str
    lines: Mapping[str, dict[str, Any]]
    y_limits: tuple[float | None, float | None] | None = None
    x: str = "step"
    scale: float = 1
    legend: Mapping[str, Any] | None = None


PANELS: dict[str, Panel] = Registry("panel of curves")
PANELS["loss"] = Panel(
    "Loss of the features, $L_{ori}$", "loss", NOTHING_LOGGED, {"loss_original": {"color": BLUE}}, y_limits=(None, None)
)
# What eq. 11 adds to L_ori, weighted as it enters the sum.
PANELS["further terms"] = Panel(
    "Further terms, weighted", "weighted loss", "this method has no further terms", legend={}, lines={
        "loss_augmented": {"label": r"$\delta\, L_{aug}$", "color": RED, "linestyle": "--"},
        "loss_margin": {"label": r"$\alpha\, R_\sigma$", "color": GREEN, "linestyle": ":"},
    })  # fmt: skip
# Means over a minibatch's positives and negatives, and the margins of eq. 4.
PANELS["similarities"] = Panel(
    "Similarities and margins", "similarity $d$ in [0, 1]", "this method has no contrasted pairs",
    y_limits=(0, 1.02), legend={"ncols": 2, "loc": "lower left", "fontsize": 8}, lines={
        "positive_similarity": {"label": "same image", "color": BLUE},
        "negative_similarity": {"label": "different images", "color": RED, "linestyle": "--"},
        "sigma_plus": {"label": r"margin $\sigma^+$", "color": SKY, "linestyle": ":"},
        "sigma_minus": {"label": r"margin $\sigma^-$", "color": ORANGE, "linestyle": ":"},
        "augmented_similarity": {"label": r"$z$ and its $\tilde z$", "color": "0.45", "linestyle": "-."},
    })  # fmt: skip
# In how many directions a minibatch's features spread: near 1 is collapse.
PANELS["effective rank"] = Panel(
    "Effective rank of $z$", "dimensions", "this method has no unit features", {"effective_rank": {"color": BLUE}},
    y_limits=(0, None))  # fmt: skip
# Wang and Isola's two readings: both fall when a contrast is learned.
PANELS["alignment and uniformity"] = Panel(
    "Alignment and uniformity", "lower is better", "this method has no unit features", y_limits=(None, None),
    legend={"fontsize": 8}, lines={
        "alignment": {"label": "alignment (of views 1, 2)", "color": BLUE},
        "uniformity": {"label": "uniformity (of view 1)", "color": RED, "linestyle": "--"},
    })  # fmt: skip
# Of an anchor at the floor the negatives have no gradient: near 1 the method only attracts.
PANELS["debiased sums at their floor"] = Panel(
    "Debiased sums at their floor", "share of anchors", "this method has no debiased sums",
    {"debias_floor_share": {"color": BLUE}}, y_limits=(0, 1.02))  # fmt: skip
# Of the encoders' gradient, the share of pairs with an augmented feature; of the MAG's, that of the second derivative.
PANELS["gradient shares"] = Panel(
    "Shares of the gradients", "share (1 = all of it)", "this method has no augmented features", legend={}, lines={
        "augmented_gradient_share": {"label": r"of $\theta$: pairs with a $\tilde z$", "color": BLUE},
        "mixed_gradient_share": {"label": r"of $\omega$: mixed part", "color": GREEN, "linestyle": "--"},
    })  # fmt: skip
# How far the MAG's weights move in each epoch, in percent of their norm.
PANELS["MAG update"] = Panel(
    r"Update of the MAG, $|\Delta\omega| / |\omega|$", "% per epoch", "this method has no MAG",
    {"mag_update": {"color": GREEN, "marker": "o"}}, x="epoch", scale=100)  # fmt: skip


@use_style()
def draw_metrics(name: str, metrics: Metrics, ax: Axes) -> Axes:
    """The panel of `PANELS` with this name. Raises MetaugError for an unknown name."""
    panel = PANELS[name]
    for metric, look in panel.lines.items():
        draw_curve(ax, metrics, metric, panel.x, panel.scale, **look)
    if not ax.lines:
        return draw_empty(ax, panel.title, panel.missing if has_rows(metrics) else NOTHING_LOGGED)
    if panel.y_limits is None:
        fit_scale(ax)
    else:
        ax.set_ylim(*panel.y_limits)
    if panel.x == "epoch":
        fit_epochs(ax)
    if panel.legend is not None:
        ax.legend(**panel.legend)
    return label(ax, panel.title, panel.x, panel.y, count_runs(metrics))


@use_style()
def draw_knn(runs: Mapping[str, Metrics], ax: Axes) -> Axes:
    """kNN accuracy on the validation split by epoch; runs are the metrics by method, epoch 0 is the untrained encoder."""
    title = "kNN on the validation split"
    for number, (method, metrics) in enumerate(runs.items()):
        look = {"color": pick_color(method), "marker": MARKERS[number % len(MARKERS)], "label": verbatim(method)}
        draw_curve(ax, metrics, "knn_val", "epoch", 100, **look)
    if not ax.lines:
        logged = any(has_rows(metrics) for metrics in runs.values())
        return draw_empty(ax, title, "no validation split: val_fraction is 0" if logged else NOTHING_LOGGED)
    ax.set_ylim(0, min(100.0, ax.get_ylim()[1] * 1.1))
    fit_epochs(ax)
    ax.legend(loc="lower right")
    counts = sorted({count_runs(metrics) for metrics in runs.values()})
    return label(ax, title, "epoch (0: untrained)", "accuracy (%)", "; ".join(counts))


@use_style()
def draw_progress(method: str, metrics: pd.DataFrame, loss: Axes, mag: Axes, similarities: Axes, knn: Axes) -> None:
    """A run as one watches it: its loss, what the MAG does, similarities and kNN accuracy so far, each on its axes."""
    draw_metrics("loss", metrics, loss)
    draw_metrics("gradient shares", metrics, mag)
    draw_metrics("similarities", metrics, similarities)
    draw_knn({method: metrics}, knn)


@use_style()
def draw_step_profiles(table: pd.DataFrame, ax: Axes, title: str, moments: Mapping[int, str]) -> Axes:
    """The loss along a step, in percent of the loss where it begins: of the look-ahead (solid) and of the encoders (dashed), a
    color for each moment. table: `loss_profiles.Profiled.profiles`; moments: names of its steps."""
    for (step, name), color in zip(moments.items(), (ORANGE, BLUE), strict=True):
        for kind, line in (("look-ahead", "-"), ("encoders' step", "--")):
            rows: Any = table[(table["step"] == step) & (table["kind"] == kind)]
            if rows.empty:  # the training ended before
                continue
            change = 100 * (rows["loss"] / rows["loss"].iloc[0] - 1)
            ax.plot(rows["length"], change, color=color, linestyle=line, label=f"{name}: {kind}")
    ax.axhline(0, color="0.3", linewidth=1)
    ax.axvline(1, color="0.3", linewidth=1, linestyle=":")
    ax.legend(fontsize=8)
    x = "how far along the step (1: the whole)"
    return label(ax, title, x, "change of the loss (%)", "1 run, one minibatch each")


# --- parts of a panel
def list_tables(tables: Metrics) -> list[pd.DataFrame]:
    """One table, or several of them, as a list."""
    return [tables] if isinstance(tables, pd.DataFrame) else list(tables)


def has_rows(metrics: Metrics) -> bool:
    """Whether any run has logged a step."""
    return any(len(table) for table in list_tables(metrics))


def count_runs(metrics: Metrics) -> str:
    """How many runs stand behind a curve, for its caption."""
    count = len(list_tables(metrics))
    return f"n = {count} run" if count == 1 else f"mean and 95 % interval, n = {count} runs"


@use_style()
def draw_curve(ax: Axes, metrics: Metrics, column: str, x: str = "step", scale: float = 1, **look: Any) -> None:
    """A column over x, scaled; several runs as their mean and its 95 % band. Nothing if no run has the column."""
    tables = [table[[x, column]].dropna() for table in list_tables(metrics) if column in table]
    values = pd.concat(tables) if tables else pd.DataFrame()
    if len(values):
        draw_means(values.assign(**{column: scale * values[column]}), x, column, ax, **look)


def fit_scale(ax: Axes) -> None:
    """A y axis from 0, or, where the lines lie far apart and above 0, a logarithmic one with air below and above them, so that
    whole decades are named."""
    heights = np.concatenate([line.get_ydata() for line in ax.lines])
    low, high = np.nanmin(heights), np.nanmax(heights)
    if high > FAR_APART * low > 0:
        ax.set_yscale("log")
        ax.set_ylim(low / 5, high * 5)
    elif low >= 0:
        ax.set_ylim(0, 1.1 * high or 1)


def fit_epochs(ax: Axes) -> None:
    """An x axis from 0 to the last epoch, and at least to the first, with whole numbers."""
    last = max(1.0, *(float(np.max(line.get_xdata())) for line in ax.lines))
    ax.set_xlim(-0.04 * last, 1.04 * last)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
