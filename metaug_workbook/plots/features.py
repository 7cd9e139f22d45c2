"""What features are like: histograms of similarities, and accuracies read from them."""

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.patheffects import withStroke
from torch import Tensor

from metaug_core.objectives.similarity import similarity
from metaug_workbook.plots.style import (
    BLUE,
    FLOOR_COLORS,
    RED,
    draw_empty,
    find_ends,
    label,
    pick_color,
    use_style,
)
from metaug_workbook.plots.training import list_tables

MEASURES = {"probe_paper": "linear probe\n(random crops)", "probe_plain": "linear probe\n(plain images)",
            "probe_fast": "linear probe\n(fast)", "knn": "kNN"}  # fmt: skip


# --- similarities of pairs
def compare_pairs(z: Tensor, augmented: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
    """z (V, N, d) of unit norm -> similarities in [0, 1] between different views: (P,) of same, (Q,) of different images.

    augmented (V, N, d): of pairs that join an original feature of one view and an augmented one of another, as eq. 5 has them.
    """
    others = z if augmented is None else augmented
    same, different = [], []
    for i in range(len(z)):
        for j in range(len(z)):
            if j <= i and (augmented is None or i == j):  # z_i, z_j is one pair, but z_i, z~_j and z_j, z~_i are two
                continue
            table = similarity(z[i] @ others[j].T).cpu().numpy()  # (N, N)
            same.append(table.diagonal())
            different.append(table[~np.eye(len(table), dtype=bool)])
    return np.concatenate(same), np.concatenate(different)


def bin_similarities(same: np.ndarray, different: np.ndarray, bins: int = 50) -> pd.DataFrame:
    """Similarities in [0, 1] of pairs of the same image and of different images -> histogram by density: pairs, left, density,
    with the number (count) and mean of the pairs in every row."""
    edges = np.linspace(0, 1, bins + 1)
    tables = []
    for kind, values in (("same", same), ("different", different)):
        density, _ = np.histogram(values, edges, density=True)
        columns = {"pairs": kind, "count": len(values), "mean": float(np.mean(values))}
        tables.append(pd.DataFrame({**columns, "left": edges[:-1], "density": density}))
    return pd.concat(tables, ignore_index=True)


@use_style()
def draw_pair_histograms(table: pd.DataFrame, ax: Axes, height: Literal["density", "proportion"] = "density") -> None:
    """Rows of `bin_similarities`, as the paper's Figure 2: blue, solid: two views of one image; red, dashed: of different images.
    The column `height` says how high each bin stands."""
    import seaborn as sns  # slow to import: it brings scipy.stats

    looks = {"different": ("different images", RED, "--"), "same": ("same image", BLUE, "-")}
    for kind, (name, color, line) in looks.items():
        rows: Any = table[table["pairs"] == kind]
        middles = rows["left"] + 0.5 / len(rows)
        mean = f", mean {rows['mean'].iloc[0]:.2f}" if "mean" in rows else ""
        sns.histplot(x=middles, weights=rows[height], bins=len(rows), binrange=(0, 1), stat=height, element="step",
                     color=color, linestyle=line, alpha=0.45, label=name + mean, ax=ax)  # fmt: skip
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.3 * np.max(table[height].to_numpy()))
    ax.legend(loc="upper left", fontsize=8)


@use_style()
def draw_similarity_histogram(z: Tensor, ax: Axes, title: str = "Similarities between views") -> Axes:
    """`draw_pair_histograms` of features z (V, N, d)."""
    if len(z) < 2:
        return draw_empty(ax, title, "needs features of two views")
    same, different = compare_pairs(z)
    draw_pair_histograms(bin_similarities(same, different), ax)
    caption = f"n = {z.shape[1]:,} images, {len(same):,} and {len(different):,} pairs"
    return label(ax, title, "similarity $d$", "density", caption)


# --- accuracies
@use_style()
def draw_accuracy_bars(
    tables: pd.DataFrame | Sequence[pd.DataFrame], ax: Axes, method: str = "metaug", chance: float | None = None
) -> Axes:
    """Raw pixels, untrained and trained by measure, in percent. tables: a table of `evaluate`, or one for each seed, which become
    means with 95 % intervals. chance: accuracy in [0, 1] of a guess."""
    import seaborn as sns  # slow to import: it brings scipy.stats

    runs = list_tables(tables)
    wide = pd.concat(runs).reset_index()
    long = wide.melt("representation", [name for name in MEASURES if name in wide], "measure", "accuracy")
    names = list(dict.fromkeys(long["representation"]))
    palette = {name: FLOOR_COLORS.get(name, pick_color(method)) for name in names}
    long = long.assign(accuracy=100 * long["accuracy"], measure=long["measure"].replace(MEASURES))
    sns.barplot(long, x="measure", y="accuracy", hue="representation", palette=palette, saturation=1,
                errorbar=find_ends, edgecolor="white", err_kws={"color": "black", "linewidth": 1.5}, legend=False,
                ax=ax)  # fmt: skip
    for name, bars in zip(names, cast(list[BarContainer], ax.containers), strict=True):
        bars.set_label(name)
        for bar in bars:  # at its foot, where no interval crosses it
            ax.text(bar.get_x() + bar.get_width() / 2, 3, f"{bar.get_height():.1f}", ha="center", fontsize=8,
                    path_effects=[withStroke(linewidth=2.5, foreground="white")])  # fmt: skip
            bar.set_hatch("///" if "z~" in name else "")
    if chance is not None:
        ax.axhline(100 * chance, color="0.3", linestyle=":", linewidth=1, label="chance")
    ax.set_ylim(0, 127)
    ax.set_yticks(range(0, 101, 20))
    ax.grid(axis="x", visible=False)
    ax.legend(ncols=3, loc="upper left")
    spread = "1 run, so no interval" if len(runs) == 1 else f"{len(runs)} runs, mean and 95 % interval"
    return label(ax, "How well a simple classifier reads the features", "", "test accuracy (%)", "\n\nn = " + spread)
