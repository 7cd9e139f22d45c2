"""Figures of how a measure errs: which class is taken for which, and kNN over k."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metaug_core.evaluation.confusion import order_classes, share_confusions, tabulate_classes
from metaug_core.evaluation.probes import NEIGHBOURS
from metaug_workbook.plots.style import FLOOR_COLORS, label, make_figure, pick_color, use_style, verbatim

MOST = 100  # classes in a figure
WRITTEN = 20  # classes up to which each cell has its number
SCALE = 10  # percent: a weaker confusion is never drawn in the darkest color


@use_style()
def draw_confusions(counts: pd.DataFrame, method: str = "metaug") -> Figure:
    """Which class (rows) is taken for which other (columns), in percent of the images of the row's class, and beside each row the
    accuracy of its class with its 95 % interval over images. Classes that are taken for one another stand side by side. Of more
    than 100 classes those 100 with the lowest accuracy. counts: of `confusion.count_confusions`. method: gives the color."""
    classes: Any = tabulate_classes(counts).set_index("label")
    worst = {*classes.index[:MOST]}
    order = [place for place in order_classes(counts) if place in worst]
    rows, names = classes.loc[order], [verbatim(str(counts.index[place])) for place in order]
    shares = 100 * share_confusions(counts)[np.ix_(order, order)]
    small, count = len(order) > WRITTEN, len(order)
    cell, font = (0.095, 5) if small else (0.46, 9)
    figure = make_figure(cell * count + 4.0, cell * count + 1.9)
    ax, right = figure.subplots(1, 2, sharey=True, width_ratios=(cell * count, 1.8))
    diagonal = np.eye(count, dtype=bool)
    top = max(SCALE, float(np.where(diagonal, 0, shares).max()))
    image = ax.imshow(np.where(diagonal, np.nan, shares), cmap="Oranges", vmin=0, vmax=top, aspect="auto")
    ax.imshow(np.where(diagonal, shares, np.nan), cmap="Greys", vmin=0, vmax=200, aspect="auto")
    for row, column in np.argwhere(shares > 0.5) if not small else ():
        strong = row != column and shares[row, column] > 0.6 * top
        ax.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", fontsize=8,
                color="white" if strong else "black")  # fmt: skip
    ax.set_xticks(range(count), names, rotation=90, fontsize=font)
    ax.set_yticks(range(count), names, fontsize=font)
    ax.tick_params(length=0)
    ax.grid(False)
    bar = figure.colorbar(image, ax=ax, location="bottom", shrink=0.3 if small else 0.5, aspect=25)
    bar.set_label("images of the row's class (%)")
    ends = 100 * np.abs(rows[["low", "high"]].to_numpy().T - rows["accuracy"].to_numpy())
    right.errorbar(100 * rows["accuracy"], range(count), xerr=ends, fmt="o", markersize=2.5 if small else 5, linewidth=1,
                   color=pick_color(method))  # fmt: skip
    mean = 100 * float(np.trace(counts) / counts.to_numpy().sum())
    right.axvline(mean, color="0.4", linestyle="--", linewidth=1)
    right.set_xlim(0, 100)
    right.tick_params(axis="y", length=0)
    shown = "" if count == len(counts) else f": the {count} least accurate of {len(counts)} classes"
    label(ax, f"Which class is taken for which{shown}", "taken for", "class of the image")
    label(right, f"mean {mean:.1f} %", "accuracy (%)\nand 95 % interval")
    return figure


@use_style()
def draw_neighbour_counts(table: pd.DataFrame, ax: Axes, method: str = "metaug") -> Axes:
    """kNN accuracy over k, a line for each representation; the reported k is marked. table: of
    `sensitivity.measure_neighbour_counts`."""
    for name, rows in table.groupby("representation", sort=False):
        color = FLOOR_COLORS.get(str(name), pick_color(method))
        ax.plot(rows["k"], 100 * rows["knn"], "o-", color=color, label=str(name))
    ax.axvline(NEIGHBOURS, color="0.4", linestyle=":", linewidth=1, label=f"k = {NEIGHBOURS}, reported")
    ax.set_xscale("log")
    ticks = sorted({*table["k"]})
    ax.set_xticks(ticks, map(str, ticks))
    ax.minorticks_off()
    ax.set_ylim(0, 108 * float(np.max(table["knn"])))
    ax.legend()
    return label(
        ax, "kNN over the number of neighbours", "k", "accuracy (%)", f"n = {table['n_eval'].iloc[0]:,} images, 1 run"
    )
