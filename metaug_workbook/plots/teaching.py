"""Figures of the walkthrough: functions of (data, ax) that return ax."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Circle
from torch import Tensor

from metaug_core.objectives import losses
from metaug_core.runtime.device import computed_in, unit_roundoff
from metaug_workbook.plots.style import BLUE, FLOOR_COLORS, GREEN, ORANGE, PURPLE, RED, SKY, hide_axes, label, use_style
from metaug_workbook.teaching import toys

IMAGE_COLORS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
ATTENUATIONS = (1, 2, 4, 6, 8)  # the paper's phi_dec (Fig. 3)


# --- what the default run learns
@use_style()
def draw_success(table: pd.DataFrame, ax: Axes) -> Axes:
    """kNN accuracy of raw pixels, the untrained and the trained encoder: bars are means, dots are seeds. table: that of the figure
    first-run, with representation, seed and knn in [0, 1]."""
    looks = {"raw pixels": "pixels as they are", "untrained": "untrained encoder", "trained": "trained, without labels"}
    measured = table.dropna(subset=["knn"])
    means = {}
    for place, name in enumerate(looks):
        values = 100 * measured.loc[measured["representation"] == name, "knn"].to_numpy(float)
        means[name] = values.mean()
        ax.barh(-place, means[name], height=0.72, color=FLOOR_COLORS.get(name, BLUE))
        if np.ptp(values) > 0:
            ax.plot(values, np.full(len(values), -place), "o", color="white", markeredgecolor="black", markersize=5)
        ax.text(101, -place, f"{means[name]:.0f} %", va="center", fontweight="bold")
    ax.set(xlim=(0, 100), xticks=(0, 25, 50, 75, 100))
    ax.set_yticks([0, -1, -2], list(looks.values()))
    ax.grid(False, axis="y")
    seeds = measured.loc[measured["representation"] == "trained", "seed"].nunique()
    title = f"kNN on test images: {means['untrained']:.0f} % before training, {means['trained']:.0f} % after"
    return label(ax, f"{title} (dots: {seeds} seeds; chance: 10 %)")


# --- what a pair weighs
@use_style()
def draw_weight_histogram(weights: Tensor, ax: Axes) -> Axes:
    """Gradient weight of each pair in units of an equal share, on a logarithmic axis; weights (A, N) sum to 1 over N."""
    import seaborn as sns  # slow to import: it brings scipy.stats

    relative = (weights * weights.shape[1]).flatten().clamp(min=1e-8).cpu().numpy()
    sns.histplot(x=relative, bins=63, binrange=(-8, 2.5), log_scale=True, element="step", color=RED, alpha=0.55, ax=ax)
    ax.axvline(1, color="0.3", linestyle=":")
    place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "xytext": (5, 0), "textcoords": "offset points"}
    ax.annotate("equal\nshare", (1, 0.97), **place, va="top", fontsize=8.5, color="0.3")
    anchors, negatives = weights.shape
    caption = f"n = {anchors:,} anchors x {negatives:,} negatives; all below $10^{{-8}}$ in the first bar"
    return label(ax, "What a negative pair weighs", "gradient weight (1 = an equal share)", "pairs", caption)


@use_style()
def draw_weight_concentration(weights: Tensor, ax: Axes) -> Axes:
    """Share of an anchor's gradient that its heaviest negatives carry, mean over anchors; the dotted line is equal weights.
    weights (A, N) sum to 1 over N."""
    heaviest = weights.sort(dim=1, descending=True).values.cumsum(1).mean(0).cpu().numpy()
    share = np.arange(1, len(heaviest) + 1) / len(heaviest)
    ax.plot([0, *100 * share], [0, *100 * heaviest], color=RED)
    ax.plot([0, 100], [0, 100], color="0.3", linestyle=":")
    ax.set(xlim=(0, 100), ylim=(0, 102))
    caption = f"n = {len(weights):,} anchors, mean"
    return label(ax, "Few pairs carry the gradient", "heaviest pairs (%)", "share of the gradient (%)", caption)


@use_style()
def draw_soft_hinges(betas: Sequence[float], ax: Axes) -> Axes:
    """Eq. 8 with one positive (0.6) and negatives at 0.2 and x, for each beta, beside the hinge on the hardest pair and eq. 7."""
    x = torch.linspace(0, 1, 200, dtype=torch.float64)
    negatives, positives = torch.stack([torch.full_like(x, 0.2), x], 1), torch.full((200, 1), 0.6, dtype=torch.float64)
    pairs = [(positives[k : k + 1], negatives[k : k + 1]) for k in range(len(x))]
    for beta, shade in zip(betas, np.linspace(0.35, 1, len(betas)), strict=True):
        soft = [losses.oucl_plain(p, n, beta, 0.0).item() for p, n in pairs]
        ax.plot(x, soft, color=BLUE, alpha=shade, label=rf"eq. 8, $\beta$ = {beta:g}")
    hardest = (negatives.max(1).values - positives[:, 0]).clamp(min=0)
    ax.plot(x, hardest, color="black", linestyle="--", label="hardest pair")
    ax.plot(x, [losses.oucl_sum_hinge(p, n, 0.0).item() for p, n in pairs], color=RED, linestyle=":", label="eq. 7")
    ax.set(xlim=(0, 1), ylim=(-0.02, 0.7))
    ax.legend(loc="upper left", fontsize=8)
    title, caption = r"Where eq. 8 goes as $\beta$ grows", "one positive at 0.6, another negative at 0.2"
    return label(ax, title, "similarity of the second negative $d^-$", "loss", caption)


@use_style()
def draw_attenuation(ax: Axes, beta: float = 16.0, gamma: float = 0.4, positive: float = 0.8) -> Axes:
    """Gradient weight of negatives by their similarity under eq. 9, a line per phi_dec: 101 even negatives, one positive."""
    d = torch.linspace(0, 1, 101, dtype=torch.float64)
    positives = torch.full((1, 1), positive, dtype=d.dtype)
    looks: list[Any] = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]
    for phi, color, line in zip(ATTENUATIONS, IMAGE_COLORS, looks, strict=False):
        negatives = d[None].clone().requires_grad_()
        loss = losses.oucl_weighted(positives, negatives, beta, (1 + gamma, -gamma), (1 - gamma, gamma), phi)
        (gradient,) = torch.autograd.grad(loss, negatives)
        share = 100 * gradient[0] / gradient.sum()
        ax.plot(d, share, color=color, linestyle=line, label=rf"$\varphi_{{dec}}$ = {phi}")
    ax.axhline(100 / len(d), color="0.3", linestyle=":", linewidth=1)
    ax.set_xlim(0, 1)
    ax.legend()
    caption = rf"eq. 9, 101 negatives, $\beta$ = {beta:g}, $\gamma$ = {gamma:g}; dotted: equal"
    x, y = "similarity of the negative $d^-$", "share of the gradient (%)"
    return label(ax, "Attenuation spreads the weight", x, y, caption)


# --- the plane
@use_style()
def draw_circle(z: Tensor, augmented: Tensor | None, ax: Axes, title: str = "", caption: str = "") -> Axes:
    """Features z (2, B, 2) on the unit circle, a color per image and a marker per view, and outside, open, their z~ (2, B, 2)."""
    ax.add_patch(Circle((0, 0), 1, fill=False, color="0.8"))
    for view, marker in enumerate("os"):
        for image, at in enumerate(z[view].tolist()):
            look: dict[str, Any] = {"marker": marker, "color": IMAGE_COLORS[image % len(IMAGE_COLORS)]}
            ax.plot(*at, **look)
            if augmented is not None:
                x, y = augmented[view, image].tolist()
                to = 1.18 * x, 1.18 * y
                ax.plot(*to, markerfacecolor="white", **look)
                ax.annotate("", to, at, arrowprops={"arrowstyle": "-", "color": look["color"], "lw": 0.8})
    hide_axes(ax)
    ax.set(xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), aspect="equal")
    ax.spines[:].set_visible(False)
    return label(ax, title, caption=caption)


@use_style()
def draw_moves(before: Tensor, after: Tensor, ax: Axes, title: str = "", caption: str = "") -> Axes:
    """Features (2, B, 2) on the unit circle, and inside it an arrow from each to where it goes, (2, B, 2)."""
    for view in range(len(before)):
        for image, (at, to) in enumerate(zip(before[view].tolist(), after[view].tolist(), strict=True)):
            look = {"arrowstyle": "-|>", "color": IMAGE_COLORS[image % len(IMAGE_COLORS)], "shrinkA": 0, "shrinkB": 0}
            start, end = ((0.86 * x, 0.86 * y) for x, y in (at, to))
            ax.annotate("", end, start, arrowprops=look)
    return draw_circle(before, None, ax, title, caption)


@use_style()
def draw_omega_plane(values: Tensor, turns: Tensor, now: toys.Moment, ax: Axes, length: float = 0.9) -> Axes:
    """The MAG's objective (n, n) of `toys.measure_landscape` over the plane of omega, and at `now` where each part of the gradient
    leads: its direct part, its mixed part, and both. `length` is that of the longest arrow, radians."""
    ax.contourf(turns, turns, values, levels=14, cmap="Greys", alpha=0.55)
    ax.contour(turns, turns, values, levels=14, colors="0.45", linewidths=0.5)
    parts = {
        "direct": (-now.direct["turn"], ORANGE, "--"),
        "mixed": (-now.mixed["turn"], BLUE, "-."),
        "both (eq. 6)": (-now.direct["turn"] - now.mixed["turn"], "black", "-"),
    }
    scale = length / max(torch.linalg.vector_norm(arrow).item() for arrow, _, _ in parts.values())
    start = now.omega["turn"]
    for name, (arrow, color, line) in parts.items():
        look = {"arrowstyle": "-|>", "color": color, "lw": 2, "ls": line, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", tuple((start + scale * arrow).tolist()), tuple(start.tolist()), arrowprops=look)
        ax.plot([], [], color=color, linestyle=line, lw=2, label=name)
    ax.plot(*start.tolist(), marker="o", color="black")
    ax.set_aspect("equal")
    ax.grid(False)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, handlelength=2.6, columnspacing=1)
    x, y = r"$\omega_1$, turn of view 1 (radians)", r"$\omega_2$, of view 2"
    return label(ax, r"The MAG's objective over $\omega$", x, y)


# --- what delta lets through
@use_style()
def draw_share_by_delta(share: float, delta: float, ax: Axes, precision: str = "float32", device: str = "cpu") -> Axes:
    """Share of the encoders' gradient from augmented features for other deltas, from the one measured at `delta`: the part
    grows in proportion, the rest stays. Grey: below the rounding of the run's `precision` on its kind of device."""
    ratio = share / (1 - share) / delta
    deltas = np.logspace(-8, 1, 91)
    ax.loglog(deltas, ratio * deltas / (1 + ratio * deltas), color=BLUE)
    ax.plot(delta, share, "o", color=BLUE)
    ax.annotate("measured", (delta, share), xytext=(8, -4), textcoords="offset points", color=BLUE)
    ax.axhspan(1e-10, unit_roundoff(precision, device), color="0.9")
    text = f"below the rounding of {computed_in(precision, device)}"
    ax.annotate(text, (0.98, 0.03), xycoords="axes fraction", ha="right", fontsize=8.5, color="0.35")
    ax.set(xlim=(1e-8, 10), ylim=(1e-9, 2))
    title, y = r"What $\delta$ lets through", r"share of the gradient from $\tilde z$"
    return label(ax, title, r"$\delta$", y, "one run, last logged step")
