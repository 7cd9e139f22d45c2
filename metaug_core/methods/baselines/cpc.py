"""CPC v2: the lower patches of an image are predicted from the upper ones, among the patches of all images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core.config import Config, ConfigError
from metaug_core.errors import MetaugError
from metaug_core.methods.base import Context, Method
from metaug_core.networks.encoders import Encoders
from metaug_core.views.augmentation import change_colors, draw, resample, split

LEAST_SIDE = 16  # px: smaller patches are enlarged to this side, the least that `conv` takes
SCALE = 0.1  # of the predictions, in the paper's pseudocode


class Above(nn.Module):
    """A block of the context network: (B, D, g, g) plus a function of its row and the row above, neighbours included."""

    def __init__(self, dim: int, hidden: int = 256):
        super().__init__()
        across = nn.Conv2d(hidden, hidden, (1, 3), padding=(0, 1))
        self.narrow = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.ReLU(), across)
        self.rows = nn.Sequential(nn.ZeroPad2d((0, 0, 1, 0)), nn.Conv2d(hidden, hidden, (2, 1)), nn.ReLU())
        self.wide = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.wide(self.rows(self.narrow(x)))


class Predictor(nn.Module):
    """theta: patch encoders, the context network, a target of each patch and a prediction for each row distance."""

    def __init__(self, config: Config):
        super().__init__()
        self.encoders, dim = PatchEncoders(config, config.cpc_grid), config.feature_dim
        inputs = sum(self.encoders.inner.dims[name] for name in config.views)
        self.context = nn.Sequential(*[Above(inputs) for _ in range(config.cpc_grid - 1)], nn.ReLU())
        self.target = nn.Conv2d(inputs, dim, 1)
        self.predict = nn.ModuleList(nn.Conv2d(inputs, dim, 1) for _ in distances(config))
        self.distances = distances(config)

    def forward(self, images: list[Tensor]) -> Tensor:
        """Patches of each view -> (n, B, d): g g targets, then for each distance k the (g - k) g predictions."""
        latents = torch.cat(self.encoders.encode_patches(images), dim=-1).permute(0, 3, 1, 2)  # (B, D, g, g)
        context = self.context(latents)
        predictions = [SCALE * w(context[:, :, :-k]) for w, k in zip(self.predict, self.distances, strict=True)]
        return torch.cat([x.flatten(2) for x in (self.target(latents), *predictions)], dim=2).permute(2, 0, 1)


class CPC(Method):
    """CPC v2 (Henaff et al. 2020, eq. 1-2 and the pseudocode of their appendix; van den Oord et al. 2018).

        z^_{i+k,j} = W_k c_{i,j},   L = -log e^(z^_{i+k,j} . z_{i+k,j}) / sum over all patches of the minibatch of e^(z^ . z)

    c sees the rows down to i. As theirs: patches overlap by half, the nearest rows are skipped since they share pixels,
    targets of 64 dimensions, scale 0.1. Theirs is a 7 x 7 grid of 64 px patches at 256 px, 2 rows skipped and one
    predicted; on 32 px images a 5 x 5 grid of 10 px patches, enlarged to 16, the nearest row skipped and all others
    predicted. h is the mean over patches. Each patch changes its colours by itself, as in v2; otherwise its hue
    identifies it. The context network has grid - 1 blocks, 4 of 5 x 5 patches, as many as a last row needs to see the
    first; theirs has 5. Left out: other changes of single patches, predictions from below and the sides, LayerNorm
    (here BatchNorm). There is no code by the authors but the pseudocode.
    """

    title = "CPC v2"
    paper = "Henaff et al. 2020"
    objective = "InfoNCE of the prediction W_k c of the patch k rows below, against all patches of the minibatch"
    differs = (
        "Of the appendix's pseudocode: grid - 1 context blocks, theirs 5; a 5 x 5 grid with one row skipped, theirs 7 "
        "x 7 with two; the mean over row distances, theirs the sum. Predictions from above alone, BatchNorm for "
        "LayerNorm, and of the changes of single patches only colours."
    )
    minimum_views = 1
    unit_features = False
    augmentable = False
    uses = {"feature_dim", "cpc_grid", "cpc_skip"}
    defaults = {"views": ("RGB",), "negatives": "batch", "feature_dim": 64, "jitter": 0.5, "grey": 0.2}

    def __init__(self, config: Config):
        super().__init__(config)
        if not distances(config):
            got = f"got {config.cpc_skip} and {config.cpc_grid}"
            raise ConfigError(f"method {config.method!r} needs cpc_skip < cpc_grid - 1, {got}")

    def networks(self, classes: int) -> nn.Module:
        return Predictor(self.config)

    def views(self, pixels: Tensor, generator: torch.Generator) -> list[Tensor]:
        whole = resample(pixels, self.config, draw(len(pixels), generator))
        patches = cut_patches(whole, self.config.cpc_grid)
        return split(change_colors(patches, self.config, draw(len(patches), generator)), self.config.views)

    def loss(self, z: Tensor, context: Context) -> Tensor:
        return predictive_loss(z, self.config.cpc_grid, distances(self.config))


def distances(config: Config) -> range:
    """The numbers k of rows below that are predicted."""
    return range(config.cpc_skip + 1, config.cpc_grid)


def predictive_loss(z: Tensor, grid: int, distances: range) -> Tensor:
    """Mean over distances of InfoNCE, of targets and predictions (n, B, d) as `Predictor` gives them."""
    targets, *predictions = z.split([grid**2, *((grid - k) * grid for k in distances)])
    places = torch.arange(targets[..., 0].numel(), device=z.device).view(targets.shape[:2])  # (g g, B)
    terms = [
        F.cross_entropy((prediction @ targets.flatten(0, 1).T).flatten(0, 1), places[k * grid :].flatten())
        for prediction, k in zip(predictions, distances, strict=True)
    ]
    return torch.stack(terms).mean()


def cut_patches(x: Tensor, grid: int) -> Tensor:
    """grid x grid patches that overlap by half, (B, C, S, S) -> (B grid grid, C, side, side), image by image, row by row. Up to
    grid pixels at the lower and right edges are left out."""
    step = x.shape[-1] // (grid + 1)
    windows = x.unfold(2, 2 * step, step)[:, :, :grid].unfold(3, 2 * step, step)[:, :, :, :grid]
    return windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


class PatchEncoders(nn.Module):
    """Encoders of patches; h of an image is the mean over its patches."""

    def __init__(self, config: Config, grid: int):
        super().__init__()
        step = config.image_size // (grid + 1)
        self.grid, self.side = grid, max(LEAST_SIDE, 2 * step)
        if step == 0 or (config.stem == "paper" and self.side < 64):
            what = f"{grid} x {grid} patches of {config.image_size} px images are {2 * step} px"
            raise MetaugError(f"{what}, too few for stem {config.stem!r}")
        self.inner = Encoders(config.replace(image_size=self.side))

    def encode_patches(self, views: list[Tensor], names: tuple[str, ...] | None = None) -> list[Tensor]:
        """Patches of each view, (B g g, C_j, side, side) -> (B, g, g, D_j) each; names as in `Encoders`."""
        size, g = (self.side, self.side), self.grid
        flat = [x if x.shape[-1] == self.side else F.interpolate(x, size, mode="bilinear") for x in views]
        return [h.unflatten(0, (-1, g, g)) for h in self.inner(flat, names)]

    def forward(self, images: list[Tensor], names: tuple[str, ...] | None = None) -> list[Tensor]:
        """h of whole images, one (B, C_j, H, W) per view -> (B, D_j) each."""
        return [h.mean((1, 2)) for h in self.encode_patches([cut_patches(x, self.grid) for x in images], names)]
