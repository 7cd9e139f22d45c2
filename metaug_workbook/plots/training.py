"""Figures: functions of (data, ax) that return ax, in the style of `style`.

A curve takes the metrics of a run (`Run.metrics`), or a list of them: seeds then become a mean and its 95 % band.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn import functional as F

from metaug_core.objectives.similarity import similarity
from metaug_workbook.plots.estimates import draw_means, ends
from metaug_workbook.plots.style import (
    BLUE,
    FLOORS,
    GREEN,
    MARKERS,
    METHOD_COLOURS,
    ORANGE,
    OTHERS,
    RED,
    SKY,
    dress,
    method_colour,
    nothing,
)
from metaug_workbook.plots.style import panels as panels
from metaug_workbook.plots.style import save as save

MEASURES = {"probe_paper": "linear probe\n(paper)", "probe_fast": "linear probe\n(fast)", "knn": "kNN"}
Metrics = pd.DataFrame | Sequence[pd.DataFrame]


# --- curves over a run
def tables(metrics: Metrics) -> list[pd.DataFrame]:
    return [metrics] if isinstance(metrics, pd.DataFrame) else list(metrics)


def seeds(metrics: Metrics) -> str:
    count = len(tables(metrics))
    return f"n = {count} run" if count == 1 else f"mean and 95 % interval, n = {count} runs"


def curve(ax: Axes, metrics: Metrics, column: str, x: str = "step", scale: float = 1, **look: Any) -> bool:
    """Draw a column over x, scaled; several runs as their mean and its 95 % band. False if no run has the column."""
    kept = [table[[x, column]].dropna() for table in tables(metrics) if column in table]
    values = pd.concat(kept) if kept else pd.DataFrame()
    if values.empty:
        return False
    draw_means(values.assign(**{column: scale * values[column]}), x, column, ax, **look)
    return True


FAR_APART = 100  # times: lines of one panel that lie further from each other need a logarithmic axis


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


def draw_curves(ax: Axes, metrics: Metrics, looks: Mapping[str, dict[str, Any]]) -> bool:
    """A `curve` for each metric in looks; whether there was any."""
    return any([curve(ax, metrics, name, **look) for name, look in looks.items()])


def original_loss(metrics: Metrics, ax: Axes) -> Axes:
    """L_ori by step, the loss of the features themselves, on a linear axis that spans its values."""
    title = "Loss of the features, $L_{ori}$"
    if not curve(ax, metrics, "loss_original", color=BLUE):
        return nothing(ax, title, "no step logged yet")
    return dress(ax, title, "step", "loss", seeds(metrics))


def further_terms(metrics: Metrics, ax: Axes) -> Axes:
    """What eq. 11 adds to L_ori, weighted as it enters the sum, by step."""
    looks: dict[str, dict[str, Any]] = {
        "loss_augmented": {"label": r"$\delta\, L_{aug}$", "color": RED, "linestyle": "--"},
        "loss_margin": {"label": r"$\alpha\, R_\sigma$", "color": GREEN, "linestyle": ":"},
    }
    if not draw_curves(ax, metrics, looks):
        return nothing(ax, "Further terms", "this method has no further terms")
    fit_scale(ax)
    ax.legend()
    return dress(ax, "Further terms, weighted", "step", "weighted loss", seeds(metrics))


def similarities(metrics: Metrics, ax: Axes) -> Axes:
    """Mean similarities of a minibatch's positives and negatives, and the margins of eq. 4, by step."""
    looks: dict[str, dict[str, Any]] = {
        "positive_similarity": {"label": "same image", "color": BLUE},
        "negative_similarity": {"label": "different images", "color": RED, "linestyle": "--"},
        "sigma_plus": {"label": r"margin $\sigma^+$", "color": SKY, "linestyle": ":"},
        "sigma_minus": {"label": r"margin $\sigma^-$", "color": ORANGE, "linestyle": ":"},
        "augmented_similarity": {"label": r"$z$ and its $\tilde z$", "color": "0.45", "linestyle": "-."},
    }
    if not draw_curves(ax, metrics, looks):
        return nothing(ax, "Similarities", "this method has no contrasted pairs")
    ax.set_ylim(0, 1.02)
    ax.legend(ncols=2, loc="lower left", fontsize=8)
    return dress(ax, "Similarities and margins", "step", "similarity $d$ in [0, 1]", seeds(metrics))


def effective_rank(metrics: Metrics, ax: Axes) -> Axes:
    """In how many directions a minibatch's features spread: near 1 is collapse."""
    if not curve(ax, metrics, "effective_rank", color=BLUE):
        return nothing(ax, "Effective rank", "this method has no unit features")
    ax.set_ylim(bottom=0)
    return dress(ax, "Effective rank of $z$", "step", "dimensions", seeds(metrics))


def alignment_uniformity(metrics: Metrics, ax: Axes) -> Axes:
    """Wang and Isola's two readings: both fall when a contrast is learned."""
    looks: dict[str, dict[str, Any]] = {
        "alignment": {"label": "alignment (of views 1, 2)", "color": BLUE},
        "uniformity": {"label": "uniformity (of view 1)", "color": RED, "linestyle": "--"},
    }
    if not draw_curves(ax, metrics, looks):
        return nothing(ax, "Alignment and uniformity", "this method has no unit features")
    ax.legend(fontsize=8)
    return dress(ax, "Alignment and uniformity", "step", "lower is better", seeds(metrics))


def gradient_shares(metrics: Metrics, ax: Axes) -> Axes:
    """Of the encoders' gradient, the share of pairs that contain an augmented feature; of the MAG's, that of its mixed part (the
    second derivative)."""
    looks: dict[str, dict[str, Any]] = {
        "augmented_gradient_share": {"label": r"of $\theta$: pairs with a $\tilde z$", "color": BLUE},
        "mixed_gradient_share": {"label": r"of $\omega$: mixed part", "color": GREEN, "linestyle": "--"},
    }
    if not draw_curves(ax, metrics, looks):
        return nothing(ax, "Shares of the gradients", "this method has no augmented features")
    fit_scale(ax)
    ax.legend()
    return dress(ax, "Shares of the gradients", "step", "share (1 = all of it)", seeds(metrics))


def mag_update(metrics: Metrics, ax: Axes) -> Axes:
    """How far the MAG's weights move in each epoch, in percent of their norm."""
    title = r"Update of the MAG, $|\Delta\omega| / |\omega|$"
    if not curve(ax, metrics, "mag_update", "epoch", 100, color=GREEN, marker="o"):
        return nothing(ax, title, "this method has no MAG")
    fit_scale(ax)
    whole_epochs(ax)
    return dress(ax, title, "epoch", "percent an epoch", seeds(metrics))


def whole_epochs(ax: Axes) -> None:
    """An x axis from 0 to the last epoch, and at least to the first, with whole numbers."""
    last = max(1.0, *(float(np.max(line.get_xdata())) for line in ax.lines))
    ax.set_xlim(-0.04 * last, 1.04 * last)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def knn_curve(runs: Mapping[str, Metrics], ax: Axes) -> Axes:
    """kNN accuracy on the validation split by epoch; runs are the metrics by method, epoch 0 is the untrained encoder."""
    markers = dict(zip(runs, MARKERS * len(runs), strict=False))
    for method, metrics in runs.items():
        curve(ax, metrics, "knn_val", "epoch", 100, color=method_colour(method), marker=markers[method], label=method)
    if not ax.lines:
        return nothing(ax, "kNN on the validation split", "no validation split: val_fraction is 0")
    ax.set_ylim(0, min(100.0, ax.get_ylim()[1] * 1.1))
    whole_epochs(ax)
    ax.legend(loc="lower right")
    counts = sorted({seeds(metrics) for metrics in runs.values()})
    return dress(ax, "kNN on the validation split", "epoch (0: untrained)", "accuracy (%)", "; ".join(counts))


# --- features
def pair_similarities(z: Tensor, augmented: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
    """z (V, N, d) of unit norm -> similarities in [0, 1] between different views: (P,) of same, (Q,) of different images.

    augmented (V, N, d): of pairs that join an original feature of one view and an augmented one of another, as eq. 5 has them.
    """
    same, different = [], []
    for i in range(len(z)):
        for j in range(len(z)):
            if j <= i and (augmented is None or i == j):  # z_i, z_j is one pair, but z_i, z~_j and z_j, z~_i are two
                continue
            table = similarity(z[i] @ (z if augmented is None else augmented)[j].T).cpu().numpy()  # (N, N)
            same.append(table.diagonal())
            different.append(table[~np.eye(len(table), dtype=bool)])
    return np.concatenate(same), np.concatenate(different)


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


def pair_histograms(table: pd.DataFrame, ax: Axes, height: Literal["density", "proportion"] = "density") -> None:
    """Rows of `binned`, as the paper's Figure 2: blue, solid: two views of one image; red, dashed: of different images. The column
    `height` says how high each bin stands."""
    looks = {"different": ("different images", RED, "--"), "same": ("same image", BLUE, "-")}
    for kind, (label, colour, line) in looks.items():
        rows: Any = table[table["pairs"] == kind]
        middles = rows["left"] + 0.5 / len(rows)
        mean = f", mean {rows['mean'].iloc[0]:.2f}" if "mean" in rows else ""
        sns.histplot(x=middles, weights=rows[height], bins=len(rows), binrange=(0, 1), stat=height, element="step",
                     color=colour, linestyle=line, alpha=0.45, label=label + mean, ax=ax)  # fmt: skip
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.3 * np.max(table[height].to_numpy()))
    ax.legend(loc="upper left", fontsize=8)


def similarity_histogram(z: Tensor, ax: Axes, title: str = "Similarities between views") -> Axes:
    """`pair_histograms` of features z (V, N, d)."""
    if len(z) < 2:
        return nothing(ax, title, "needs features of two views")
    same, different = pair_similarities(z)
    pair_histograms(binned(same, different), ax)
    caption = f"n = {z.shape[1]:,} images, {len(same):,} and {len(different):,} pairs"
    return dress(ax, title, "similarity $d$", "density", caption)


def accuracy_bars(
    found: pd.DataFrame | Sequence[pd.DataFrame], ax: Axes, method: str = "metaug", chance: float | None = None
) -> Axes:
    """Raw pixels, untrained and trained by protocol, in percent. found: a table of `evaluate`, or one for each seed, which become
    means with 95 % intervals."""
    runs = tables(found)
    long = pd.concat(runs).reset_index().melt("representation", list(MEASURES), "measure", "accuracy")
    names = list(dict.fromkeys(long["representation"]))
    palette = {name: FLOORS.get(name, method_colour(method)) for name in names}
    long = long.assign(accuracy=100 * long["accuracy"], measure=long["measure"].replace(MEASURES))
    sns.barplot(long, x="measure", y="accuracy", hue="representation", palette=palette, saturation=1, errorbar=ends,
                edgecolor="white", err_kws={"color": "black", "linewidth": 1.5}, legend=False, ax=ax)  # fmt: skip
    for name, bars in zip(names, cast(list[BarContainer], ax.containers), strict=True):
        bars.set_label(name)
        for bar in bars:  # at its foot, where no interval crosses it
            ax.text(bar.get_x() + bar.get_width() / 2, 3, f"{bar.get_height():.1f}", ha="center", fontsize=8,
                    path_effects=[withStroke(linewidth=2.5, foreground="white")])  # fmt: skip
        for bar in bars if "z~" in name else ():
            bar.set_hatch("///")
    if chance is not None:
        ax.axhline(100 * chance, color="0.3", linestyle=":", linewidth=1, label="chance")
    ax.set_ylim(0, 127)
    ax.set_yticks(range(0, 101, 20))
    ax.grid(axis="x", visible=False)
    ax.legend(ncols=3, loc="upper left")
    count = len(runs)
    spread = "1 run, so no interval" if count == 1 else f"{count} runs, mean and 95 % interval"
    return dress(ax, "How well a simple classifier reads the features", "", "test accuracy (%)", "\n\nn = " + spread)


def project(features: Tensor, seed: int = 0) -> np.ndarray:
    """t-SNE of features (N, D) to the plane, (N, 2); the same for a seed. About three seconds for 1,000."""
    from sklearn.manifold import TSNE  # slow to import, and only this needs it

    x = F.normalize(features - features.mean(0), dim=1).cpu().numpy()  # as kNN compares them: by angle
    return TSNE(init="pca", perplexity=min(30.0, (len(x) - 1) / 3), random_state=seed).fit_transform(x)


def feature_map(
    points: np.ndarray, labels: Tensor, classes: Sequence[str], ax: Axes, title: str = "", legend: bool = True
) -> Axes:
    """Points (N, 2) of `project`, coloured by class, at most the first ten; a class that stands apart is named in place."""
    y, colours, named = labels.cpu().numpy(), [*METHOD_COLOURS.values(), *OTHERS], []
    for label, name in enumerate(classes[:10]):
        mine, colour = points[y == label], colours[label]
        ax.scatter(mine[:, 0], mine[:, 1], s=7, color=colour, linewidths=0, alpha=0.8, label=name)
        centre = np.median(mine, axis=0) if len(mine) else np.full(2, np.nan)
        if all(np.abs((centre - other) / np.ptp(points, axis=0)).max() > 0.08 for other in named) and len(mine):
            named.append(centre)
            outline = [withStroke(linewidth=3, foreground="white")]
            ax.text(centre[0], centre[1], name, color=colour, ha="center", weight="bold", path_effects=outline)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    if legend:
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2, fontsize=8)
    return dress(ax, title, "", "", f"t-SNE (axes without unit), n = {int((y < 10).sum()):,} test images")
