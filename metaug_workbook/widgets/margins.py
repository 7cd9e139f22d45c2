"""The margins of eq. 4 and the pairs that R_sigma (eq. 5) pushes, on the similarities of a run or of a small built-in sample."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from torch import Tensor
from torch.nn import functional as F

from metaug_core.data import datasets
from metaug_core.data.images import spread_rows
from metaug_core.errors import MetaugError
from metaug_core.evaluation import representations
from metaug_core.objectives.losses import margin_regularisation
from metaug_core.objectives.margins import KINDS, margins
from metaug_core.objectives.similarity import Pairs
from metaug_core.runs.store import Run
from metaug_workbook.plots.style import BLUE, ORANGE, RED, SKY, label, verbatim
from metaug_workbook.widgets.base import Explorer, Plot, menu, slider, without_controls

IMAGES = 64  # of a run, or of the sample: a minibatch of the paper
BINS = np.linspace(0, 1, 51)


def make_sample(views: int = 2, images: int = IMAGES, dim: int = 16) -> tuple[Tensor, Tensor]:
    """z and z~ (V, N, d) of unit norm, made up: views of an image share a direction, and z~ strays further from it."""
    g = torch.Generator().manual_seed(0)
    shared = torch.randn(1, images, dim, generator=g)
    near, far = (torch.randn(views, images, dim, generator=g) for _ in range(2))
    return F.normalize(shared + 0.6 * near, dim=-1), F.normalize(shared + 0.6 * near + 0.9 * far, dim=-1)


def embed_run(run: Run, splits: datasets.Splits | None = None) -> tuple[Tensor, Tensor]:
    """z and z~ (V, N, d) of up to IMAGES training images by a run's last kept encoder and MAG, on the CPU.

    splits: its images, if they are loaded. MetaugError if it has kept no encoder yet or its method has no MAG.
    """
    if not (files := run.encoder_files()):
        raise MetaugError(f"run {run.path.name} has kept no encoder yet: it does so at the end of training")
    images = (splits or datasets.load(run.config)).train
    networks, mag = representations.prepare_networks(run.config, images, files[-1])
    if mag is None:
        raise MetaugError(
            f"method {run.config.method!r} of run {run.path.name} has no MAG, so there is nothing to push"
        )
    some = images.take(spread_rows(len(images), IMAGES))
    z, augmented = representations.embeddings(networks, some, run.config, mag).cpu().chunk(2)
    return z, augmented


class Histogram:
    """Positives (same image) and negatives (different images) as outlines, and filled the part of each that is pushed. lines: the
    names of the two vertical ones."""

    def __init__(self, ax: Axes, lines: tuple[str, str]):
        empty = np.zeros(len(BINS) - 1)
        kinds = (("same image", BLUE, "-"), ("different images", RED, "--"))
        self.outlines = [
            ax.stairs(empty, BINS, color=c, linestyle=s, linewidth=1.6, label=name) for name, c, s in kinds
        ]
        self.pushed = [ax.stairs(empty, BINS, fill=True, color=c, alpha=0.45) for _, c, _ in kinds]
        looks = zip(lines, ((SKY, "-"), (ORANGE, "--")), strict=True)
        self.lines = [ax.axvline(0, color=c, linestyle=s, linewidth=2.2, label=name) for name, (c, s) in looks]
        self.moving = [*self.pushed, *self.outlines, *self.lines]

    def update(self, pairs: tuple[Tensor, Tensor], pushed: tuple[Tensor, Tensor], lines: tuple[Tensor, Tensor]) -> None:
        """pairs and pushed: similarities of positives and negatives, any shape; lines: where the two vertical ones stand."""
        for artists, parts in ((self.outlines, pairs), (self.pushed, pushed)):
            for artist, part, whole in zip(artists, parts, pairs, strict=True):
                artist.set_data(np.histogram(part.numpy(), BINS)[0] / whole.numel())
        for line, at in zip(self.lines, lines, strict=True):
            line.set_xdata([float(at)] * 2)
            line.set_visible(bool(torch.isfinite(at)))


class MarginPlot(Plot):
    """Above, the pairs of original features, which give the margins; below, the pairs of a z and a z~, which R_sigma pushes.

    z, augmented: (V, N, d) of unit norm; source: where they are from, for the caption."""

    def __init__(self, z: Tensor, augmented: Tensor, source: str):
        self.z, self.augmented, self.source, self.compare = z, augmented, source, Pairs(len(z))
        super().__init__()

    def draw(self) -> Sequence[Artist]:
        above, below = self.figure.subplots(2, 1, sharex=True, sharey=True)
        original = Histogram(above, ("min⁺", "max⁻"))
        self.mixed = Histogram(below, ("σ⁺: same image is pushed below ←", "σ⁻: different images above →"))
        positives, negatives = self.compare(self.z, self.z)
        hardest = positives.min(), negatives.max()  # min+ and max- of eq. 4
        original.update((positives, negatives), (torch.empty(0), torch.empty(0)), hardest)
        above.set(xlim=(0, 1), ylim=(0, 1.25 * max(stairs.get_data()[0].max() for stairs in original.outlines)))
        for ax in (above, below):
            ax.legend(loc="upper left", ncols=2, fontsize=8.5)
        label(above, "Two original features: these give the margins (eq. 4)", "", "share of its kind")
        caption = f"n = {self.z.shape[1]} images, {len(self.z)} views: {verbatim(self.source)}"
        title = "One original and one augmented feature: filled is what $R_\\sigma$ pushes (eq. 5)"
        label(below, title, "similarity $d$ (0 to 1)", "share of its kind", caption)
        return self.mixed.moving

    def update(self, margin: str, strength: float) -> str:
        augmented = F.normalize(torch.lerp(self.z, self.augmented, strength), dim=-1)
        sigma = margins(*self.compare(self.z, self.z), margin)
        positives, negatives = self.compare(augmented, self.z)
        pushed = positives[positives > sigma[0]], negatives[negatives < sigma[1]]
        self.mixed.update((positives, negatives), pushed, sigma)
        value = float(margin_regularisation(positives, negatives, *sigma))
        if margin == "none":
            return "No margins: R_σ = 0 and no pair is pushed, so nothing keeps z̃ from copying z."
        share = [100 * len(some) / kind.numel() for some, kind in zip(pushed, (positives, negatives), strict=True)]
        return (
            f"{margin.capitalize()}: σ⁺ = {float(sigma[0]):.2f}, σ⁻ = {float(sigma[1]):.2f}. {share[0]:.0f} % of the pairs of the "
            f"same image are above σ⁺ and are pushed apart, {share[1]:.0f} % of those of different images are below σ⁻ "
            f"and are pushed together. R_σ = {value:.4f}."
        )


def margin_explorer(
    run: Run | None = None, splits: datasets.Splits | None = None, margin: str = "large", strength: float = 1.0
) -> Explorer:
    """Where the margins stand and which pairs are pushed, on a run's features or, with None, on a built-in sample.

    margin: large, medium, small or none (eq. 4, Appendix A.2). strength: how far z~ stands from z, 0 (z~ = z, the collapse that
    R_sigma is against) to 1 (what the MAG gives), along the arc between. Raises MetaugError for a run that has no MAG or has kept
    no encoder.
    """
    features = make_sample() if run is None else embed_run(run, splits)
    source = "features made up for this figure" if run is None else f"training images of {run.path.name}"
    kinds = [(kind.capitalize(), kind) for kind in KINDS]
    tip = "at 0 the augmented feature is a copy of z"
    controls = {
        "margin": menu("margins", margin, kinds, "eq. 4 and Appendix A.2"),
        "strength": slider("z̃: from z (0) to MAG (1)", strength, 0.0, 1.0, 0.05, tip),
    }
    title = "Margin explorer: what keeps augmented features from copying the original ones"
    return Explorer(MarginPlot(*features, source), controls, title)


margin_figure = without_controls(margin_explorer)
