"""The paper's figures, as functions of (table, ax): what a setting does, with seeds as bands and the paper's values beside ours.

A table has a row for each run (`results.table`): its settings, `seed`, `method`, and `accuracy` in [0, 1], beside which `untrained`
is that of the same encoder before training and `measure` says which protocol it is (`measured`). Accuracies are drawn in percent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from metaug_workbook.plots.estimates import draw_means, ends_of_three
from metaug_workbook.plots.style import BLUE, FLOORS, MARKERS, dress, method_colour, nothing
from metaug_workbook.results import paper_values
from metaug_workbook.results.statistics import summary

Table = Any  # a DataFrame: the type stubs of pandas take a column for anything but a Series
MEASURE_NAMES = {"probe_paper": "linear probe, paper's", "probe_fast": "linear probe, fast", "knn": "kNN"}
LEARNS = 5.0  # points above the same encoder untrained, with every seed
PAPERS: dict[str, Any] = {"markerfacecolor": "white", "color": "0.2", "linestyle": "none", "markersize": 8, "zorder": 5}


def measured(table: Table, measure: str) -> pd.DataFrame:
    """The table with `accuracy`, `untrained` and `measure` of one protocol (probe_paper, probe_fast or knn)."""
    nothing_yet = pd.Series(float("nan"), table.index)
    columns = {"accuracy": measure, "untrained": f"untrained_{measure}"}
    values = {name: pd.to_numeric(table.get(column, nothing_yet)) for name, column in columns.items()}
    return table.assign(**values, measure=measure)


def axis_name(table: Table) -> str:
    """What accuracy it is: the protocol and the split."""
    found = [MEASURE_NAMES.get(str(table["measure"].iloc[0]), "accuracy")] if len(table) else ["accuracy"]
    found += [str(split) for split in table.get("split", pd.Series(dtype=str)).dropna().unique()[:1]]
    return f"accuracy (%)\n{', '.join(found)}"


def said(counts: Any) -> str:
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


def places(values: Any) -> dict[Any, int]:
    """Where each value of a setting stands on the axis: in rising order, at equal distances, as the paper's figures have them."""
    return {value: place for place, value in enumerate(sorted(values.dropna().unique()))}


def named(ax: Axes, at: Mapping[Any, int], names: Mapping[Any, str] | None = None) -> None:
    """Write the values of a setting on the x axis, or their names."""
    ax.set_xticks(list(at.values()), [(names or {}).get(value, written(value)) for value in at])
    ax.set_xlim(-0.4, len(at) - 0.6)


def against(
    table: Table,
    ax: Axes,
    setting: str,
    title: str = "",
    label: str | None = None,
    joined: bool = True,
    caption: str | None = None,
) -> Axes:
    """Accuracy over the values of a setting: each method's mean and 95 % band over seeds, every seed as a dot, and the untrained
    encoder as a dashed line. joined: draw lines between values that have an order; else methods stand side by side. caption: in
    place of the number of seeds.
    """
    kept = table.dropna(subset=["accuracy"])
    if kept.empty:
        return nothing(ax, title, "no finished run yet")
    at, counts, methods = places(kept[setting]), [], list(kept["method"].unique())
    for number, method in enumerate(methods):
        rows = kept[kept["method"] == method]
        shift = 0.0 if joined else (number - (len(methods) - 1) / 2) * 0.16
        points = pd.DataFrame({"x": rows[setting].map(at) + shift, "accuracy": 100 * rows["accuracy"]})
        look: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "label": paper_values.name(method)}
        draw_means(points, "x", "accuracy", ax, joined, color=method_colour(method), **look)
        each = points.groupby("x").size().tolist()
        if max(each) > 1:
            ax.scatter(points["x"], points["accuracy"], s=9, color=method_colour(method), alpha=0.55, linewidths=0)
        counts += each
    floor(kept, ax)
    named(ax, at)
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(methods) > 3 else {}
    ax.legend(fontsize=8, **beside)
    return dress(ax, title, label or setting, axis_name(kept), caption or said(counts))


def floor(table: Table, ax: Axes) -> None:
    """A dashed line at the mean accuracy of the untrained encoders; nothing if none was measured."""
    found: Any = table["untrained"].dropna() if "untrained" in table else []
    if len(found):
        ax.axhline(100 * found.mean(), color=FLOORS["untrained"], linestyle="--", label="untrained (mean)")


def level(table: Table, ax: Axes, text: str, colour: str = "0.2") -> None:
    """A dotted line at the mean over seeds with its 95 % band, for a reference without the setting on the axis."""
    points: Table = summary(table.assign(all=0), "all", "accuracy")
    if points.empty or not points["n"].iloc[0]:
        return
    mean, half = 100 * points["mean"].iloc[0], 100 * points["half_width"].fillna(0).iloc[0]
    ax.axhline(mean, color=colour, linestyle=":", label=text)
    ax.axhspan(mean - half, mean + half, color=colour, alpha=0.12, linewidth=0)
    ax.legend(fontsize=8)


def differences(
    found: Table,
    ax: Axes,
    setting: str,
    papers: Mapping[Any, float] | None = None,
    title: str = "",
    label: str | None = None,
    names: Mapping[Any, str] | None = None,
    papers_label: str = "paper",
) -> Axes:
    """Paired differences of accuracy (`results.paired`) with their 95 % intervals; papers: the paper's own, in points.

    An interval that crosses zero leaves the sign open. Values of the setting that only one side has are drawn as well. A column
    `method` in found draws each method in its colour, side by side.
    """
    papers = papers or {}
    if found.empty and not papers:
        return nothing(ax, title, "no finished pair of runs yet")
    at = places(pd.Series([*found[setting], *papers]))
    groups = found.groupby("method", sort=False) if "method" in found else [("", found)]
    for number, (method, rows) in enumerate(groups):
        shift = (number - (len(groups) - 1) / 2) * 0.16
        colour, name = (method_colour(str(method)), paper_values.name(str(method))) if method else (BLUE, "ours")
        look: dict[str, Any] = {"marker": MARKERS[number], "linestyle": "none", "capsize": 4}
        half = 100 * rows["half_width"].fillna(0)
        ax.errorbar(rows[setting].map(at) + shift, 100 * rows["mean"], half, color=colour, label=name, **look)
    if papers:
        behind: dict[str, Any] = PAPERS | {"zorder": 1}  # our points lie over them
        ax.plot([at[value] for value in papers], list(papers.values()), marker="D", label=papers_label, **behind)
    ax.axhline(0, color="0.3", linewidth=1)
    named(ax, at, names)
    ax.legend(fontsize=8)
    return dress(ax, title, label or setting, "difference (points)", said(found["n"]))


def heat_map(found: Table, ax: Axes, x: str, y: str, title: str = "", labels: tuple[str, str] | None = None) -> Axes:
    """Mean accuracy of a `summary` by two settings, written in each cell with its 95 % half-width; a cell without a run stays
    white and says so. Text settings keep their order, numbers rise."""
    if found["mean"].isna().all():
        return nothing(ax, title, "no finished run yet")
    columns, rows = (list(dict.fromkeys(found[name])) for name in (x, y))
    columns, rows = (sorted(v) if all(isinstance(i, int | float) for i in v) else v for v in (columns, rows))
    mean, half = (
        100 * found.pivot(index=y, columns=x, values=value).reindex(index=rows, columns=columns)
        for value in ("mean", "half_width")
    )
    texts = mean.map("{:.1f}".format) + half.map(lambda width: "" if np.isnan(width) else f"\n±{width:.1f}")
    sns.heatmap(mean, cmap="viridis", annot=texts, fmt="", annot_kws={"fontsize": 8}, ax=ax,
                xticklabels=[written(v) for v in columns], yticklabels=[written(v) for v in rows],
                cbar_kws={"label": "accuracy (%)", "shrink": 0.85})  # fmt: skip
    for row, column in np.argwhere(mean.isna()):
        ax.text(column + 0.5, row + 0.5, "no run", ha="center", va="center", fontsize=8, color="0.4")
    ax.invert_yaxis()
    ax.tick_params(left=False, bottom=False, labelrotation=0)
    return dress(ax, title, *(labels or (x, y)), said(found["n"]))


def method_rows(values: Table, ax: Axes, title: str, order: Sequence[str], caption: str = "") -> Axes:
    """A row for each method, in order from above: its accuracy in percent with a half-width; a row without one says `no value`.

    values: method, mean, half_width in [0, 1].
    """
    found = values.set_index("method")
    for place, method in enumerate(order):
        if method not in found.index or np.isnan(found.loc[method, "mean"]):
            ax.text(0.02, place, "no value", transform=ax.get_yaxis_transform(), va="center", fontsize=8, color="0.5")
            continue
        mean, half = (100 * float(found.loc[method, name]) for name in ("mean", "half_width"))
        look: dict[str, Any] = {"color": method_colour(method), "marker": "o", "capsize": 3, "linestyle": "none"}
        ax.errorbar([mean], [place], xerr=None if np.isnan(half) else [half], **look)
        ax.annotate(f"{mean:.1f}", (mean, place), (0, 6), textcoords="offset points", ha="center", fontsize=7)
    ax.set_yticks(range(len(order)), [paper_values.name(method) for method in order])
    ax.set_ylim(len(order) - 0.5, -0.7)
    ax.margins(x=0.12)
    return dress(ax, title, "accuracy (%)", "", caption)


def gain_rows(table: Table, ax: Axes, title: str, order: Sequence[str]) -> Axes:
    """A row for each method, in order from above: a line from the untrained encoder (grey) to the trained one (its colour), with
    the gain in points; from two seeds on each of them as a dot, from three on the 95 % interval of their mean (of two it is wider
    than the figure). table: method, seed, accuracy, untrained."""
    percent = table.assign(accuracy=100 * table["accuracy"], untrained=100 * table["untrained"])
    means: Table = percent.groupby("method")[["untrained", "accuracy"]].mean().reindex(order)
    colours = {method: method_colour(method) for method in order}
    places, (low, high) = range(len(order)), means.to_numpy().T
    ax.hlines(places, low, high, colors=list(colours.values()), linewidth=1.2, alpha=0.6)
    ax.plot(low, places, "|", markersize=9, markeredgewidth=2, color=FLOORS["untrained"])
    rows: dict[str, Any] = {
        "x": "accuracy",
        "y": "method",
        "hue": "method",
        "order": order,
        "palette": colours,
        "ax": ax,
    }
    sns.pointplot(percent, errorbar=ends_of_three, linestyle="none", markersize=6, err_kws={"linewidth": 1.5}, capsize=0.3,
                  legend=False, **rows)  # fmt: skip
    seeds = int(percent.groupby("method").size().max())
    if seeds > 1:
        sns.stripplot(percent, jitter=False, size=3.5, alpha=0.5, legend=False, **rows)
    for place, gain in zip(places, high - low, strict=True):
        ax.annotate(f"{gain:+.1f}", (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=7.5)
    ax.set_yticks(range(len(order)), [paper_values.name(method) for method in order], fontsize=8.5)
    ax.set_ylim(len(order) - 0.5, -0.7)
    told = {1: "n = 1 seed", 2: "n = 2 seeds, dots: each"}.get(seeds, f"n = {seeds} seeds, 95 % intervals")
    caption = f"| untrained; {told}; right: gain"
    return dress(ax, title, axis_name(table).replace("\n", ": "), "", caption)


def learners(table: Table) -> dict[str, set[str]]:
    """The methods that gain at least `LEARNS` points with every seed, by measure in the order of the table. table: as `gain_rows`,
    and measure."""
    gains = table.assign(gain=100 * (table["accuracy"] - table["untrained"]))
    least = gains.groupby(["measure", "method"], sort=False)["gain"].min()
    return {measure: {method for (_, method), gain in rows.items() if gain >= LEARNS - 1e-9}
            for measure, rows in least.groupby("measure", sort=False)}  # fmt: skip


def learning(table: Table) -> str:
    """How many methods learn by the linear probe, and how many of them nearest neighbours confirm, counted from the table."""
    learn, seeds, methods = learners(table), table["seed"].nunique(), table["method"].nunique()
    by_probe = learn["probe_paper"]
    each = f"each of {seeds} seeds" if seeds > 1 else "one seed"
    return (
        f"Whether a method learns is judged by the linear probe: {len(by_probe)} of {methods} gain at least {LEARNS:g} points with "
        f"{each}; of these {len(by_probe)}, kNN confirms {len(by_probe & learn['knn'])}."
    )
