"""Figures of what happens inside a step: similarities of pairs (Figure 2), the share of augmented features, what a step costs."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from metaug_core.paper_figures import Table, said
from metaug_core.precision import computed_in, unit_roundoff
from metaug_core.style import BLUE, RED, dress, nothing
from metaug_core.tables import summary


def binned(same: np.ndarray, different: np.ndarray, bins: int = 50) -> pd.DataFrame:
    """Similarities in [0, 1] of pairs of the same image and of different images -> histogram by density: pairs, left, density,
    with the number (count) and mean of the pairs in every row."""
    edges = np.linspace(0, 1, bins + 1)
    found = []
    for kind, values in (("same", same), ("different", different)):
        density, _ = np.histogram(values, edges, density=True)
        more = {"pairs": kind, "count": len(values), "mean": float(np.mean(values))}
        found += [more | {"left": left, "density": height} for left, height in zip(edges[:-1], density, strict=True)]
    return pd.DataFrame(found)


def gaps(table: Table) -> pd.DataFrame:
    """Mean similarity of same-image and of different-image pairs and their gap, by features and margin, from rows of `binned`."""
    rows = table.drop_duplicates(["margin", "features", "pairs"])
    found = rows.pivot(index=["features", "margin"], columns="pairs", values="mean")
    return found.assign(gap=found["same"] - found["different"]).round(3)


def similarity_panel(table: Table, ax: Axes, title: str) -> Axes:
    """A panel of Figure 2 from `binned`: blue, solid: two views of one image; red, dashed: of different images; means."""
    looks = {"different": (RED, "--", "different images"), "same": (BLUE, "-", "same image")}
    for kind, (colour, line, label) in looks.items():
        rows = table[table["pairs"] == kind].sort_values("left")
        edges = [*rows["left"], 1.0]
        ax.stairs(rows["density"], edges, fill=True, color=colour, alpha=0.4)
        ax.stairs(
            rows["density"], edges, color=colour, linestyle=line, label=f"{label}, mean {rows['mean'].iloc[0]:.2f}"
        )
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.3 * table["density"].max())
    ax.legend(loc="upper left", fontsize=8)
    counts = table.groupby("pairs")["count"].first()
    return dress(
        ax, title, "similarity $d$", "density", f"n = {counts['same']:,} and {counts['different']:,} pairs, 1 seed"
    )


def gradient_shares(table: Table, ax: Axes) -> Axes:
    """Share of the encoders' gradient that augmented features supply, over delta, both logarithmic; a dotted line where the runs'
    format begins to lose it (`precision.unit_roundoff`).

    table: delta, augmented_gradient_share, and precision and device where they are not float32 on a CPU."""
    title, measure = r"Share of the gradient from $\tilde z$", "augmented_gradient_share"
    kept = table.dropna(subset=[measure]) if measure in table else table.head(0)
    if kept.empty:
        return nothing(ax, title, "no run with augmented features yet")
    points: Table = summary(kept, "delta", measure).sort_values("delta")
    low, high = kept.groupby("delta")[measure].min(), kept.groupby("delta")[measure].max()
    ax.plot(points["delta"], points["mean"], color=BLUE, marker="o", label="measured")
    ax.fill_between(low.index, low, high, color=BLUE, alpha=0.18, linewidth=0)
    for precision, device in sorted(formats(kept)):
        rounding = unit_roundoff(precision, device)
        ax.axhline(rounding, color="0.3", linestyle=":", label=f"rounding of {computed_in(precision, device)}")
    ax.set(xscale="log", yscale="log")
    ax.legend(fontsize=8)
    caption = f"mean of {said(points['n']).split('n = ')[-1].split(' a point')[0]}, band: least and greatest"
    return dress(ax, title, r"$\delta$", "share (1 = all of it)", caption)


def formats(table: Table) -> set[tuple[str, str]]:
    """Precision and device of the runs in the table, once for each format."""
    defaults = {"precision": "float32", "device": "cpu"}
    given = [table[name].fillna(value) if name in table else [value] * len(table) for name, value in defaults.items()]
    return set({computed_in(*pair): pair for pair in zip(*given, strict=True)}.values())


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
