"""The margins of eq. 4 and the pairs that R_sigma (eq. 5) pushes, on the similarities of a run or of a small built-in sample."""

from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from metaug_core.data import datasets
from metaug_core.errors import MetaugError
from metaug_core.evaluation import representations
from metaug_core.objectives.losses import margin_regularisation
from metaug_core.objectives.margins import KINDS, margins
from metaug_core.objectives.similarity import Pairs
from metaug_core.runs.store import Run
from metaug_workbook.plots.style import BLUE, ORANGE, RED, SKY, STYLE, dress
from metaug_workbook.widgets.base import DPI, Explorer, menu, slider

IMAGES = 64  # of a run, or of the sample: a minibatch of the paper
BINS = np.linspace(0, 1, 51)
SAMPLE = "features made up for this figure"


def sample(views: int = 2, images: int = IMAGES, dim: int = 16) -> tuple[Tensor, Tensor]:
    """z and z~ (V, N, d) of unit norm, made up: views of an image share a direction, and z~ strays further from it."""
    g = torch.Generator().manual_seed(0)
    shared = torch.randn(1, images, dim, generator=g)
    near, far = (torch.randn(views, images, dim, generator=g) for _ in range(2))
    return F.normalize(shared + 0.6 * near, dim=-1), F.normalize(shared + 0.6 * near + 0.9 * far, dim=-1)


def of_run(run: Run, splits: datasets.Splits | None = None) -> tuple[Tensor, Tensor]:
    """z and z~ (V, N, d) of up to IMAGES training images by a run's last kept encoder and MAG, on the device of the images.

    splits: its images, if they are loaded. MetaugError if it has kept no encoder yet or its method has no MAG.
    """
    if not (files := run.encoder_files()):
        raise MetaugError(f"run {run.path.name} has kept no encoder yet: it does so at the end of training")
    images = (splits or datasets.load(run.config)).train
    networks, mag = representations.load_networks(run.config, len(images.classes), files[-1])
    if mag is None:
        raise MetaugError(
            f"method {run.config.method!r} of run {run.path.name} has no MAG, so there is nothing to push"
        )
    networks, mag = networks.to(images.labels.device), mag.to(images.labels.device)
    representations.estimate_mag_bn_stats(networks, mag, images, run.config)
    some = images.take(torch.linspace(0, len(images) - 1, min(IMAGES, len(images))).long())
    z, augmented = representations.embeddings(networks, some, run.config, mag).cpu().chunk(2)
    return z, augmented


class Histogram:
    """Positives (same image) and negatives (different images) as outlines, and filled the part of each that is pushed."""

    def __init__(self, ax: Axes):
        nothing = np.zeros(len(BINS) - 1)
        looks = {"same image": (BLUE, "-"), "different images": (RED, "--")}
        self.all = [
            ax.stairs(nothing, BINS, color=colour, linestyle=style, linewidth=1.6, label=label)
            for label, (colour, style) in looks.items()
        ]
        self.pushed = [ax.stairs(nothing, BINS, fill=True, color=colour, alpha=0.45) for colour in (BLUE, RED)]
        self.lines = [
            ax.axvline(0, color=colour, linestyle=style, linewidth=2.2)
            for colour, style in ((SKY, "-"), (ORANGE, "--"))
        ]
        self.moving = [*self.pushed, *self.all, *self.lines]

    def update(self, pairs: tuple[Tensor, Tensor], pushed: tuple[Tensor, Tensor], lines: tuple[Tensor, Tensor]) -> None:
        """pairs and pushed: similarities of positives and negatives, any shape; lines: where the two vertical ones stand."""
        for kind, some, whole, filled in zip(pairs, pushed, self.all, self.pushed, strict=True):
            for part, artist in ((kind, whole), (some, filled)):
                artist.set_data(np.histogram(part.numpy(), BINS)[0] / kind.numel())
        for line, at in zip(self.lines, lines, strict=True):
            line.set_xdata([float(at)] * 2)
            line.set_visible(bool(torch.isfinite(at)))


class MarginPlot:
    """Above, the pairs of original features, which give the margins; below, the pairs of a z and a z~, which R_sigma pushes."""

    def __init__(self, z: Tensor, augmented: Tensor, source: str):
        self.z, self.augmented, self.views = z, augmented, len(z)
        with rc_context(STYLE):
            self.figure = Figure(figsize=(8.8, 4.3), dpi=DPI, layout="constrained")
            above, below = self.figure.subplots(2, 1, sharex=True, sharey=True)
            self.original, self.mixed = Histogram(above), Histogram(below)
            for histogram, names in (
                (self.original, ("min⁺", "max⁻")),
                (self.mixed, ("σ⁺: same image is pushed below ←", "σ⁻: different images above →")),
            ):
                for line, name in zip(histogram.lines, names, strict=True):
                    line.set_label(name)
            self.original.update(Pairs(self.views)(z, z), (torch.empty(0), torch.empty(0)), hardest(z))
            above.set(xlim=(0, 1), ylim=(0, 1.25 * max(stairs.get_data()[0].max() for stairs in self.original.all)))
            for ax in (above, below):
                ax.legend(loc="upper left", ncols=2, fontsize=8.5)
            dress(above, "Two original features: these give the margins (eq. 4)", "", "share of its kind")
            caption = f"n = {z.shape[1]} images, {self.views} views: {source}"
            title = "One original and one augmented feature: filled is what $R_\\sigma$ pushes (eq. 5)"
            dress(below, title, "similarity $d$ (0 to 1)", "share of its kind", caption)
        self.moving = self.mixed.moving

    def update(self, margin: str, strength: float) -> str:
        augmented = F.normalize(torch.lerp(self.z, self.augmented, strength), dim=-1)
        sigma = margins(*Pairs(self.views)(self.z, self.z), margin)
        positives, negatives = Pairs(self.views)(augmented, self.z)
        pushed = positives[positives > sigma[0]], negatives[negatives < sigma[1]]
        self.mixed.update((positives, negatives), pushed, sigma)
        value = float(margin_regularisation(positives, negatives, *sigma))
        if margin == "none":
            return "No margins: R_σ = 0 and no pair is pushed, so nothing keeps z̃ from copying z."
        share = [100 * len(some) / kind.numel() for some, kind in zip(pushed, (positives, negatives), strict=True)]
        return (
            f"{margin.capitalize()}: σ⁺ = {float(sigma[0]):.2f}, σ⁻ = {float(sigma[1]):.2f}. {share[0]:.0f} % of the pairs of the "
            f"same image lie above σ⁺ and are pushed apart, {share[1]:.0f} % of those of different images lie below σ⁻ "
            f"and are pushed together. R_σ = {value:.4f}."
        )


def hardest(z: Tensor) -> tuple[Tensor, Tensor]:
    """min+ and max- of eq. 4: the smallest similarity of a positive and the largest of a negative."""
    positives, negatives = Pairs(len(z))(z, z)
    return positives.min(), negatives.max()


def margin_plot(run: Run | None, splits: datasets.Splits | None) -> MarginPlot:
    return (
        MarginPlot(*sample(), SAMPLE)
        if run is None
        else MarginPlot(*of_run(run, splits), f"training images of {run.path.name}")
    )


def margin_figure(
    run: Run | None = None, splits: datasets.Splits | None = None, margin: str = "large", strength: float = 1.0
) -> Figure:
    """The figure of `margin_explorer` without controls."""
    plot = margin_plot(run, splits)
    plot.update(margin, strength)
    return plot.figure


def margin_explorer(
    run: Run | None = None, splits: datasets.Splits | None = None, margin: str = "large", strength: float = 1.0
) -> Explorer:
    """Where the margins stand and which pairs are pushed, on a run's features or, with None, on a built-in sample.

    margin: large, medium, small or none (eq. 4, Appendix A.2). strength: how far z~ stands from z, 0 (z~ = z, the collapse that
    R_sigma is against) to 1 (what the MAG gives), along the arc between. Raises MetaugError for a run that has no MAG or has kept
    no encoder.
    """
    controls: dict[str, Any] = {
        "margin": menu("margins", margin, [(kind.capitalize(), kind) for kind in KINDS], "eq. 4 and Appendix A.2"),
        "strength": slider(
            "z̃: from z (0) to MAG (1)", strength, 0.0, 1.0, 0.05, "at 0 the augmented feature is a copy of z"
        ),
    }
    return Explorer(
        margin_plot(run, splits),
        controls,
        "Margin explorer: what keeps augmented features from copying the original ones",
    )
