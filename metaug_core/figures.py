"""Figures: functions of (data, ax) that return ax, in the style of `style`.

A curve takes the metrics of a run (`Run.metrics`), or a list of them: seeds then become a mean and its 95 % band.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from metaug_core.evaluation import over_seeds
from metaug_core.pairs import similarity
from metaug_core.style import (
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
from metaug_core.style import panels as panels
from metaug_core.style import save as save

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
    kept = [t.dropna(subset=[column]).set_index(x)[column] * scale for t in tables(metrics) if column in t]
    if not kept:
        return False
    values = pd.concat(kept, axis=1)
    mean, count = values.mean(axis=1), values.shape[1]
    (line,) = ax.plot(mean.index, mean, **look)
    if count > 1:
        half = stats.t.ppf(0.975, count - 1) * values.std(axis=1) / count**0.5
        ax.fill_between(mean.index, mean - half, mean + half, color=line.get_color(), alpha=0.2, linewidth=0)
    return True


def logarithmic(ax: Axes, top: float | None = None) -> None:
    """A logarithmic y axis with air below and above the lines, so that whole decades are named."""
    heights = np.concatenate([line.get_ydata() for line in ax.lines])
    ax.set_yscale("log")
    ax.set_ylim(np.nanmin(heights) / 5, top or np.nanmax(heights) * 5)


TERMS: dict[str, dict[str, Any]] = {
    "loss_original": {"label": "$L_{ori}$", "color": BLUE, "linestyle": "-"},
    "loss_augmented": {"label": r"$\delta\, L_{aug}$", "color": RED, "linestyle": "--"},
    "loss_margin": {"label": r"$\alpha\, R_\sigma$", "color": GREEN, "linestyle": ":"},
}


def loss_terms(metrics: Metrics, ax: Axes) -> Axes:
    """The weighted terms of eq. 11 by step; on a logarithmic axis where they differ a thousandfold."""
    drawn = [curve(ax, metrics, name, **look) for name, look in TERMS.items()]
    heights = np.concatenate([line.get_ydata() for line in ax.lines]) if any(drawn) else np.ones(1)
    if heights.min() > 0 and heights.max() > 1000 * heights.min():
        logarithmic(ax)
    if any(drawn):
        ax.legend(loc="center right")
    return dress(ax, "Loss by term", "step", "loss (weighted)", seeds(metrics))


def similarities(metrics: Metrics, ax: Axes) -> Axes:
    """Mean similarities of a minibatch's positives and negatives, and the margins of eq. 4, by step."""
    looks: dict[str, dict[str, Any]] = {
        "positive_similarity": {"label": "same image", "color": BLUE},
        "negative_similarity": {"label": "different images", "color": RED, "linestyle": "--"},
        "sigma_plus": {"label": r"margin $\sigma^+$", "color": SKY, "linestyle": ":"},
        "sigma_minus": {"label": r"margin $\sigma^-$", "color": ORANGE, "linestyle": ":"},
        "augmented_similarity": {"label": r"$z$ and its $\tilde z$", "color": "0.45", "linestyle": "-."},
    }
    if not any([curve(ax, metrics, name, **look) for name, look in looks.items()]):
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
    if not any([curve(ax, metrics, name, **look) for name, look in looks.items()]):
        return nothing(ax, "Alignment and uniformity", "this method has no unit features")
    ax.legend(fontsize=8)
    return dress(ax, "Alignment and uniformity", "step", "lower is better", seeds(metrics))


def gradient_share(metrics: Metrics, ax: Axes) -> Axes:
    """Share of the encoders' gradient that comes from augmented features, on a logarithmic axis."""
    if not curve(ax, metrics, "augmented_gradient_share", color=BLUE, label="measured"):
        return nothing(ax, "Share of the gradient", "this method has no augmented features")
    logarithmic(ax, top=1)
    return dress(ax, r"Share of the gradient from $\tilde z$", "step", "share (1 = all of it)", seeds(metrics))


def mag_gradient(metrics: Metrics, ax: Axes) -> Axes:
    """Norm of the meta-gradient that the MAG is trained by, on a logarithmic axis."""
    if not curve(ax, metrics, "mag_gradient_norm", color=GREEN):
        return nothing(ax, "Gradient of the MAG", "this method has no MAG")
    logarithmic(ax)
    return dress(ax, r"Norm of the meta-gradient to $\omega$", "step", "Euclidean norm", seeds(metrics))


def knn_curve(runs: Mapping[str, Metrics], ax: Axes) -> Axes:
    """kNN accuracy on the validation split by epoch; runs are the metrics by method, epoch 0 is the untrained encoder."""
    markers = dict(zip(runs, MARKERS * len(runs), strict=False))
    for method, metrics in runs.items():
        curve(ax, metrics, "knn_val", "epoch", 100, color=method_colour(method), marker=markers[method], label=method)
    if not ax.lines:
        return nothing(ax, "kNN on the validation split", "no validation split: val_fraction is 0")
    ax.set_ylim(0, min(100.0, ax.get_ylim()[1] * 1.1))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
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


def similarity_histogram(z: Tensor, ax: Axes, title: str = "Similarities between views") -> Axes:
    """As the paper's Figure 2: blue pairs show the same image in two views, red ones different images. z (V, N, d)."""
    if len(z) < 2:
        return nothing(ax, title, "needs features of two views")
    same, different = pair_similarities(z)
    bins = np.linspace(0, 1, 51).tolist()
    look: dict[str, Any] = {"histtype": "stepfilled", "alpha": 0.55, "density": True}
    ax.hist(different, bins, color=RED, edgecolor=RED, linestyle="--", label="different images", **look)
    ax.hist(same, bins, color=BLUE, edgecolor=BLUE, label="same image", **look)
    ax.set_xlim(0, 1)
    ax.legend(loc="upper left")
    caption = f"n = {z.shape[1]:,} images, {len(same):,} and {len(different):,} pairs"
    return dress(ax, title, "similarity $d$", "density", caption)


def accuracy_bars(table: pd.DataFrame, ax: Axes, method: str = "metaug", chance: float | None = None) -> Axes:
    """Raw pixels, untrained and trained by protocol, in percent. table: of `evaluate`, or of `over_seeds` with error bars."""
    table = table if "measure" in table else over_seeds([table])
    names, colour = list(dict.fromkeys(table["representation"])), method_colour(method)
    for number, name in enumerate(names):
        rows = table[table["representation"] == name].set_index("measure").loc[list(MEASURES)]
        heights, halves = 100 * rows["mean"].to_numpy(), 100 * rows["half_width"].fillna(0).to_numpy()
        place = np.arange(len(MEASURES)) + (number - (len(names) - 1) / 2) * 0.8 / len(names)
        look: dict[str, Any] = {
            "color": FLOORS.get(name, colour),
            "hatch": "///" if "z~" in name else None,
            "edgecolor": "white",
        }
        bars = ax.bar(place, heights, 0.8 / len(names), label=name, yerr=halves if halves.any() else None, **look)
        ax.bar_label(bars, [f"{h:.1f}" for h in heights], fontsize=8, padding=2)
    if chance is not None:
        ax.axhline(100 * chance, color="0.3", linestyle=":", linewidth=1, label="chance")
    ax.set_xticks(range(len(MEASURES)), list(MEASURES.values()))
    ax.set_ylim(0, 127)
    ax.set_yticks(range(0, 101, 20))
    ax.grid(axis="x", visible=False)
    ax.legend(ncols=3, loc="upper left")
    count = int(min(table["n"]))
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
