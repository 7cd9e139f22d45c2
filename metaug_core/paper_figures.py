"""The paper's figures, as functions of (table, ax): what a setting does, with seeds as bands and the paper's values beside ours.

A table has a row for each run: its settings, `seed`, and measures in [0, 1] under their names (`results.table`). Accuracies are drawn
in percent, differences in points.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from metaug_core import paper
from metaug_core.results import summary
from metaug_core.style import BLUE, FLOORS, MARKERS, dress, method_colour, nothing

MEASURE_NAMES = {
    "probe_paper": "linear probe (paper's)",
    "probe_fast": "linear probe (fast)",
    "knn": "kNN",
    "knn_val": "kNN, validation",
}
FLOAT32_ROUNDING = 2.0**-24  # half a unit in the last place of 1: a share below it is lost where the gradients are added
PAPERS: dict[str, Any] = {"markerfacecolor": "white", "color": "0.2", "linestyle": "none", "markersize": 8, "zorder": 5}


def said(counts: Sequence[int] | pd.Series) -> str:
    """How many seeds stand behind each point: for the caption of every figure."""
    low, high = int(min(counts, default=0)), int(max(counts, default=0))
    if high <= 1:
        return f"n = {high} seed a point, so no interval"
    return f"mean and 95 % interval, n = {low if low == high else f'{low} to {high}'} seeds a point"


def written(value: Any) -> str:
    """A value of a setting on an axis: 0.4, 6, 1e-07 as a power of ten."""
    if not isinstance(value, int | float | np.number):
        return str(value)
    power = np.log10(value) if value > 0 else 0.5
    return f"$10^{{{power:.0f}}}$" if abs(power) >= 2 and np.isclose(power, round(power)) else f"{value:g}"


def places(table: pd.DataFrame, setting: str) -> dict[Any, int]:
    """Where each value of a setting stands on the axis: in rising order, at equal distances, as the paper's figures have them."""
    return {value: place for place, value in enumerate(sorted(table[setting].dropna().unique()))}


def named(ax: Axes, setting: str, at: Mapping[Any, int]) -> None:
    ax.set_xticks(list(at.values()), [written(value) for value in at])
    ax.set_xlim(-0.4, len(at) - 0.6)


def against(
    table: pd.DataFrame,
    ax: Axes,
    setting: str,
    measure: str = "probe_fast",
    floor: float | None = None,
    scale: float = 100,
    title: str = "",
    label: str | None = None,
    joined: bool = True,
) -> Axes:
    """A measure over the values of a setting: each method's mean and 95 % band over seeds, every seed as a dot.

    floor: the untrained encoder's accuracy in [0, 1], a dashed line. joined: draw lines between values that have an order.
    """
    kept = table.dropna(subset=[measure])
    if kept.empty:
        return nothing(ax, title, "no finished run yet")
    at, counts, methods = places(table, setting), [], kept["method"].unique()
    for number, method in enumerate(methods):
        rows = kept[kept["method"] == method]
        points = summary(rows, setting, measure).sort_values(setting)
        shift = 0.0 if joined or len(methods) == 1 else (number - (len(methods) - 1) / 2) * 0.16
        x, y = points[setting].map(at).to_numpy(float) + shift, scale * points["mean"].to_numpy()
        half, colour = scale * points["half_width"].fillna(0).to_numpy(), method_colour(method)
        look: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "color": colour, "label": paper.name(method)}
        if joined:
            ax.plot(x, y, **look)
            ax.fill_between(x, y - half, y + half, color=colour, alpha=0.18, linewidth=0)
        else:
            ax.errorbar(x, y, half if half.any() else None, linestyle="none", capsize=3, **look)
        if points["n"].max() > 1:
            dots = {"s": 9, "color": colour, "alpha": 0.55, "linewidths": 0}
            ax.scatter(rows[setting].map(at) + shift, scale * rows[measure], **dots)
        counts += points["n"].tolist()
    if floor is not None:
        ax.axhline(scale * floor, color=FLOORS["untrained"], linestyle="--", label="untrained")
    named(ax, setting, at)
    if len(methods) > 1 or floor is not None:
        ax.legend(fontsize=8)
    y_label = f"{MEASURE_NAMES[measure]} (%)" if measure in MEASURE_NAMES else measure
    return dress(ax, title, label or setting, y_label, said(counts))


def level(table: pd.DataFrame, ax: Axes, measure: str, text: str, colour: str = "0.2") -> Axes:
    """A horizontal line at the mean over seeds, with its 95 % band, for a reference without the setting on the axis."""
    points = summary(table.assign(all=0), "all", measure)
    if points.empty or not points["n"].iloc[0]:
        return ax
    mean, half = 100 * points["mean"].iloc[0], 100 * points["half_width"].fillna(0).iloc[0]
    ax.axhline(mean, color=colour, linestyle=":", label=text)
    ax.axhspan(mean - half, mean + half, color=colour, alpha=0.12, linewidth=0)
    ax.legend(fontsize=8)
    return ax


def differences(
    found: pd.DataFrame,
    ax: Axes,
    setting: str,
    papers: Mapping[Any, float] | None = None,
    title: str = "",
    label: str | None = None,
    colour: str = BLUE,
) -> Axes:
    """Paired differences of accuracy (`results.paired`) with their 95 % intervals; papers: the paper's own, in points.

    An interval that crosses zero leaves the sign open. Values of the setting that only one side has are drawn as well.
    """
    papers = papers or {}
    if found.empty and not papers:
        return nothing(ax, title, "no finished pair of runs yet")
    both = pd.DataFrame({setting: [*found[setting], *papers]})
    at = places(both, setting)
    x, y, half = found[setting].map(at), 100 * found["mean"], 100 * found["half_width"].fillna(0)
    ax.errorbar(x, y, half, color=colour, marker="o", linestyle="none", capsize=4, label="ours")
    if papers:
        ax.plot([at[value] for value in papers], list(papers.values()), marker="D", label="paper", **PAPERS)
    ax.axhline(0, color="0.3", linewidth=1)
    named(ax, setting, at)
    ax.legend(fontsize=8)
    return dress(ax, title, label or setting, "difference (points)", said(found["n"]))


def heat_map(
    found: pd.DataFrame, ax: Axes, x: str, y: str, title: str = "", labels: tuple[str, str] | None = None
) -> Axes:
    """Mean accuracy of a `summary` by two settings, written in each cell with its 95 % half-width; a cell without a run stays
    white and says so. Text settings keep their order, numbers rise."""
    columns, rows = (list(dict.fromkeys(found[name])) for name in (x, y))
    columns, rows = (sorted(v) if all(isinstance(i, int | float) for i in v) else v for v in (columns, rows))
    values = found.set_index([y, x])
    grid = 100 * values["mean"].unstack(x).reindex(index=rows, columns=columns).to_numpy(float)
    image = ax.imshow(np.ma.masked_invalid(grid), cmap="viridis", aspect="auto", origin="lower")
    middle = np.nanmean([np.nanmin(grid), np.nanmax(grid)]) if np.isfinite(grid).any() else 0
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            half = values["half_width"].get((row, column), float("nan"))
            text = "no run" if np.isnan(grid[i, j]) else f"{grid[i, j]:.1f}" + (
                "" if np.isnan(half) else f"\n±{100 * half:.1f}"
            )
            colour = "0.4" if np.isnan(grid[i, j]) else "white" if grid[i, j] < middle else "black"
            ax.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    ax.set_xticks(range(len(columns)), [written(v) for v in columns])
    ax.set_yticks(range(len(rows)), [written(v) for v in rows])
    ax.grid(False)
    assert ax.figure is not None
    ax.figure.colorbar(image, ax=ax, label="accuracy (%)", shrink=0.85)
    return dress(ax, title, *(labels or (x, y)), said(found["n"]))


def gradient_shares(table: pd.DataFrame, ax: Axes) -> Axes:
    """Share of the encoders' gradient that augmented features supply, over delta, both logarithmic; the dotted line is where
    float32 begins to lose it."""
    title, measure = r"Share of the gradient from $\tilde z$", "augmented_gradient_share"
    kept = table.dropna(subset=[measure]) if measure in table else table.head(0)
    if kept.empty:
        return nothing(ax, title, "no run with augmented features yet")
    points = summary(kept, "delta", measure).sort_values("delta")
    low, high = kept.groupby("delta")[measure].min(), kept.groupby("delta")[measure].max()
    ax.plot(points["delta"], points["mean"], color=BLUE, marker="o", label="measured")
    ax.fill_between(low.index, low, high, color=BLUE, alpha=0.18, linewidth=0)
    ax.axhline(FLOAT32_ROUNDING, color="0.3", linestyle=":", label="rounding of float32")
    ax.set(xscale="log", yscale="log")
    ax.legend(fontsize=8)
    caption = f"mean of {said(points['n']).split('n = ')[-1].split(' a point')[0]}, band: least and greatest"
    return dress(ax, title, r"$\delta$", "share (1 = all of it)", caption)


def method_rows(values: pd.DataFrame, ax: Axes, title: str, order: Sequence[str], caption: str = "") -> Axes:
    """A row for each method, in order from above: its accuracy in percent with a half-width; a row without one says `no run`.

    values: method, mean, half_width in [0, 1].
    """
    found = values.set_index("method")
    for place, method in enumerate(order):
        if method not in found.index or np.isnan(found.loc[method, "mean"]):
            ax.text(0.02, place, "no run", transform=ax.get_yaxis_transform(), va="center", fontsize=8, color="0.5")
            continue
        mean, half = (100 * float(found.loc[method, name]) for name in ("mean", "half_width"))
        look: dict[str, Any] = {"color": method_colour(method), "marker": "o", "capsize": 3, "linestyle": "none"}
        ax.errorbar([mean], [place], xerr=None if np.isnan(half) else [half], **look)
    ax.set_yticks(range(len(order)), [paper.name(method) for method in order])
    ax.set_ylim(len(order) - 0.5, -0.5)
    return dress(ax, title, "accuracy (%)", "", caption)


def step_costs(table: pd.DataFrame, ax: Axes) -> Axes:
    """Cost of a training step as a multiple of a plain one: time (solid) and counted FLOPs (hatched) by kind of step.

    table: step, times_plain, flops_plain (multiples), and low, high: the least and greatest ratio of time over the rounds.
    """
    place = np.arange(len(table))
    errors = np.stack([table["times_plain"] - table["low"], table["high"] - table["times_plain"]])
    time = ax.bar(place - 0.2, table["times_plain"], 0.38, yerr=errors, color=BLUE, ecolor="0.3", capsize=3, label="time")
    flops = ax.bar(place + 0.2, table["flops_plain"], 0.38, color="#D9D9D9", hatch="///", edgecolor="0.4", label="FLOPs")
    for bars, column in ((time, "times_plain"), (flops, "flops_plain")):
        ax.bar_label(bars, [f"{v:.2f}" for v in table[column]], fontsize=8, padding=8 if bars is time else 2)
    ax.axhline(8 / 3, color="0.3", linestyle=":", linewidth=1, label="8/3: the encoders' bound")
    ax.set_xticks(place, table["step"].tolist())
    ax.set_ylim(0, 1.25 * float(table[["high", "flops_plain"]].max().max()))
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper left", fontsize=8)
    rounds = int(table["rounds"].iloc[0])
    return dress(ax, "A step, as a multiple of a plain one", "", "times a plain step",
                 f"\nmedian, least and greatest of n = {rounds} rounds")  # fmt: skip
