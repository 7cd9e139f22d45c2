"""Split-brain autoencoder: each half of the colour channels predicts the other half."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core.config import Config, ConfigError
from metaug_core.methods.base import Context, Method
from metaug_core.networks.encoders import Encoders
from metaug_core.registry import VIEWS
from metaug_core.runtime import distributed

SIDE = 12  # of the target; the paper's
BINS = {1: 100, 2: 16}  # channels of the predicted view -> bins of each


class Decoder(nn.Module):
    """h (B, D) -> logits (B, bins, 12, 12) of the other view."""

    def __init__(self, inputs: int, bins: int, channels: int = 64):
        super().__init__()
        half = SIDE // 2
        self.spread = nn.Sequential(
            nn.Linear(inputs, channels * half**2), nn.ReLU(), nn.Unflatten(1, (channels, half, half))
        )
        self.paint = nn.Conv2d(channels, bins, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return self.paint(F.interpolate(self.spread(h), scale_factor=2.0, mode="bilinear"))


class Halves(nn.Module):
    """theta: an encoder for each view, and from its h a decoder of the other view."""

    def __init__(self, config: Config):
        super().__init__()
        self.encoders = Encoders(config)
        first, second = config.views
        pairs = {first: second, second: first}
        self.decoders = nn.ModuleDict({of: Decoder(self.encoders.dims[of], bins(to)) for of, to in pairs.items()})

    def forward(self, images: list[Tensor]) -> Tensor:
        """Two views (B, C_j, H, W) -> logits at each place, (144, B, bins of view 2 + bins of view 1)."""
        named = zip(self.encoders.views, self.encoders(images), strict=True)
        logits = torch.cat([self.decoders[name](h) for name, h in named], dim=1)
        return logits.flatten(2).permute(2, 0, 1)


class SplitBrain(Method):
    """Split-brain autoencoders (Zhang et al. 2017, eq. 3-4, cross entropy on quantised colours).

        L = CE(F1(x1), bins(x2)) + CE(F2(x2), bins(x1)),   x1 = L, x2 = ab, at 12 x 12 places

    h of both halves stand side by side, as the evaluation has them anyway. Bins: 100 of L, and 16 x 16 of ab over its
    range, 11.5 and 12.6 units wide, instead of the 313 in gamut of 10 units. The paper predicts place by place from its
    last convolutional map, so that features stay local; here a decoder spreads h over the places, so that any encoder
    does. Views: two different ones of at most two channels, of one crop. The authors have published the trained
    networks alone.
    """

    title = "SplitBrain"
    paper = "Zhang et al. 2017"
    objective = "CE(F1(L), bins of ab) + CE(F2(ab), bins of L) at 12 x 12 places"
    differs = (
        "Only trained networks are published. ab has 16 x 16 bins over its range, theirs 313 in gamut. A decoder "
        "spreads h over the places; theirs predicts each place from the last map."
    )
    unit_features = False
    augmentable = False
    split = True
    uses = frozenset()
    defaults = {"views": ("L", "ab"), "negatives": "batch"}

    def __init__(self, config: Config):
        super().__init__(config)
        fits = len(set(config.views)) == len(config.views) == 2 and not config.independent
        if not fits or any(VIEWS[name].channels not in BINS for name in config.views):
            raise ConfigError(f"method {config.method!r} needs two different views of one or two channels each, of one crop "
                              f"(independent False), got {', '.join(config.views)}")  # fmt: skip

    def networks(self, classes: int) -> nn.Module:
        return Halves(self.config)

    def context(self, memory, views: list[Tensor], indices: Tensor, labels: Tensor, generator) -> Context:
        first, second = (distributed.gather(quantise(x), 1) for x in views)
        return Context(indices, labels, given={"first": first, "second": second})

    def loss(self, z: Tensor, context: Context) -> Tensor:
        of_second, of_first = z.flatten(0, 1).split([bins(name) for name in reversed(self.config.views)], dim=-1)
        targets = context.given
        return F.cross_entropy(of_second, targets["second"].flatten()) + F.cross_entropy(
            of_first, targets["first"].flatten()
        )


def bins(view: str) -> int:
    """The number of values that a place of this view can have."""
    channels = VIEWS[view].channels
    return BINS[channels] ** channels


def quantise(x: Tensor) -> Tensor:
    """A view (B, C, H, W) in [-1, 1] -> the number of each place's bin, int64 (144, B), the first channel counting most."""
    count = BINS[x.shape[1]]
    level = ((F.adaptive_avg_pool2d(x, SIDE) + 1) / 2 * count).long().clamp(0, count - 1)
    number = level[:, 0] if x.shape[1] == 1 else level[:, 0] * count + level[:, 1]
    return number.flatten(1).T
