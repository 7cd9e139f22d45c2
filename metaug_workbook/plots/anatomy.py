"""Figures of what happens inside a step: similarities of pairs (Figure 2), the share of augmented features, what a step costs."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from metaug_core.runtime.device import computed_in, unit_roundoff
from metaug_workbook.plots.paper_figures import Table, said
from metaug_workbook.plots.style import BLUE, ORANGE, dress, nothing
from metaug_workbook.plots.training import pair_histograms


def gaps(table: Table) -> pd.DataFrame:
    """Mean similarity of same-image and of different-image pairs and their gap, by features and margin, from rows of
    `figures.binned`."""
    rows = table.drop_duplicates(["margin", "features", "pairs"])
    found = rows.pivot(index=["features", "margin"], columns="pairs", values="mean")
    return found.assign(gap=found["same"] - found["different"]).round(3)


def similarity_panel(table: Table, ax: Axes, title: str) -> Axes:
    """A panel of Figure 2 from rows of `figures.binned`."""
    pair_histograms(table, ax)
    counts = table.groupby("pairs")["count"].first()
    return dress(
        ax, title, "similarity $d$", "density", f"n = {counts['same']:,} and {counts['different']:,} pairs, 1 seed"
    )


def gradient_shares(table: Table, ax: Axes) -> Axes:
    """Share of the encoders' gradient that augmented features supply, over delta, both logarithmic; a dotted line where the runs'
    format begins to lose it (`unit_roundoff`).

    table: delta, augmented_gradient_share, and precision and device where they are not float32 on a CPU."""
    title, measure = r"Share of the gradient from $\tilde z$", "augmented_gradient_share"
    kept = table.dropna(subset=[measure]) if measure in table else table.head(0)
    if kept.empty:
        return nothing(ax, title, "no run with augmented features yet")
    least_to_greatest = ("pi", 100)
    sns.lineplot(
        kept, x="delta", y=measure, errorbar=least_to_greatest, color=BLUE, marker="o", label="measured", ax=ax
    )
    for precision, device in sorted(formats(kept)):
        rounding = unit_roundoff(precision, device)
        ax.axhline(rounding, color="0.3", linestyle=":", label=f"rounding of {computed_in(precision, device)}")
    ax.set(xscale="log", yscale="log")
    ax.legend(fontsize=8)
    counts = said(kept.groupby("delta")[measure].size()).split("n = ")[-1].split(" a point")[0]
    caption = f"mean of {counts}, band: least and greatest"
    return dress(ax, title, r"$\delta$", "share (1 = all of it)", caption)


def formats(table: Table) -> set[tuple[str, str]]:
    """Precision and device of the runs in the table, once for each format."""
    defaults = {"precision": "float32", "device": "cpu"}
    given = [table[name].fillna(value) if name in table else [value] * len(table) for name, value in defaults.items()]
    return set({computed_in(*pair): pair for pair in zip(*given, strict=True)}.values())


def step_profiles(table: Table, ax: Axes, title: str, moments: Mapping[int, str]) -> Axes:
    """The loss along a step, in percent of the loss where it begins: of the look-ahead (solid) and of the encoders (dashed), a
    colour for each moment. table: `profiles.Profiled.profiles`; moments: names of its steps."""
    for (step, name), colour in zip(moments.items(), (ORANGE, BLUE), strict=True):
        for kind, line in (("look-ahead", "-"), ("encoders' step", "--")):
            rows = table[(table["step"] == step) & (table["kind"] == kind)]
            change = 100 * (rows["loss"] / rows["loss"].iloc[0] - 1)
            ax.plot(rows["length"], change, color=colour, linestyle=line, label=f"{name}: {kind}")
    ax.axhline(0, color="0.3", linewidth=1)
    ax.axvline(1, color="0.3", linewidth=1, linestyle=":")
    ax.legend(fontsize=8)
    return dress(
        ax, title, "how far along the step (1: the whole)", "change of the loss (%)", "1 run, one minibatch each"
    )


def step_costs(table: Table, ax: Axes) -> Axes:
    """Cost of a training step as a multiple of a plain one: time (solid) and counted FLOPs (hatched) by kind of step.

    table: step, times_plain, flops_plain (multiples), and low, high: the least and greatest ratio of time over the rounds.
    """
    place = np.arange(len(table))
    errors = np.stack([table["times_plain"] - table["low"], table["high"] - table["times_plain"]])
    time = ax.bar(
        place - 0.2, table["times_plain"], 0.38, yerr=errors, color=BLUE, ecolor="0.3", capsize=3, label="time"
    )
    flops = ax.bar(
        place + 0.2, table["flops_plain"], 0.38, color="#D9D9D9", hatch="///", edgecolor="0.4", label="FLOPs"
    )
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
