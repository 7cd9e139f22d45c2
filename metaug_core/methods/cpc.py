"""CPC v2: what stands below in an image is predicted from what stands above, among the patches of all images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core.config import Config, ConfigError
from metaug_core.encoders import Encoders
from metaug_core.methods.base import Context, Method

LEAST = 16  # px: smaller patches are enlarged to this side, which is as little as `conv` takes
SCALE = 0.1  # of the predictions, in the paper's pseudocode


class PatchEncoders(nn.Module):
    """Encoders of a grid of patches that overlap by half; h of an image is the mean over its patches."""

    def __init__(self, config: Config):
        super().__init__()
        self.views, self.grid = config.views, config.cpc_grid
        self.step = config.image_size // (self.grid + 1)
        self.side = max(LEAST, 2 * self.step)
        if self.step == 0 or (config.stem == "paper" and self.side < 64):
            raise ConfigError(f"method {config.method!r} cuts {config.image_size} px images into patches of {2 * self.step} px, "
                              f"too small for stem {config.stem!r}")  # fmt: skip
        self.inner = Encoders(config.replace(image_size=self.side))

    def patches(self, images: list[Tensor], names: tuple[str, ...] | None = None) -> list[Tensor]:
        """One (B, C_j, H, W) per view -> (B, g, g, D_j) each."""
        size = 2 * self.step
        cut = [x.unfold(2, size, self.step).unfold(3, size, self.step) for x in images]  # (B, C, g, g, size, size)
        flat = [x.permute(0, 2, 3, 1, 4, 5)[:, : self.grid, : self.grid].flatten(0, 2) for x in cut]
        if size < self.side:
            flat = [F.interpolate(x, (self.side, self.side), mode="bilinear") for x in flat]
        return [h.unflatten(0, (-1, self.grid, self.grid)) for h in self.inner(flat, names)]

    def forward(self, images: list[Tensor], names: tuple[str, ...] | None = None) -> list[Tensor]:
        return [h.mean((1, 2)) for h in self.patches(images, names)]


class Above(nn.Module):
    """A block of the context network: (B, D, g, g) plus what its row and the row above show, neighbours included."""

    def __init__(self, dim: int, hidden: int = 256):
        super().__init__()
        self.narrow = nn.Sequential(
            nn.Conv2d(dim, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, hidden, (1, 3), padding=(0, 1))
        )
        self.rows = nn.Sequential(nn.ZeroPad2d((0, 0, 1, 0)), nn.Conv2d(hidden, hidden, (2, 1)), nn.ReLU())
        self.wide = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.wide(self.rows(self.narrow(x)))


class Predictor(nn.Module):
    """theta: patch encoders, the context network, a target of each patch and a prediction for each row distance."""

    def __init__(self, config: Config):
        super().__init__()
        self.encoders, dim = PatchEncoders(config), config.feature_dim
        inputs = sum(self.encoders.inner.dims[name] for name in config.views)
        self.context = nn.Sequential(*[Above(inputs) for _ in range(config.cpc_grid - 1)], nn.ReLU())
        self.target = nn.Conv2d(inputs, dim, 1)
        self.predict = nn.ModuleList(nn.Conv2d(inputs, dim, 1) for _ in distances(config))
        self.distances = distances(config)

    def forward(self, images: list[Tensor]) -> Tensor:
        """One (B, C_j, H, W) per view -> (n, B, d): g g targets, then for each distance k the (g - k) g predictions."""
        latents = torch.cat(self.encoders.patches(images), dim=-1).permute(0, 3, 1, 2)  # (B, D, g, g)
        context = self.context(latents)
        found = [self.target(latents)]
        found += [SCALE * w(context[:, :, :-k]) for w, k in zip(self.predict, self.distances, strict=True)]
        return torch.cat([x.flatten(2) for x in found], dim=2).permute(2, 0, 1)


class CPC(Method):
    """Contrastive predictive coding v2 (Henaff et al. 2020, eq. 1-2 and the pseudocode of their appendix; van den Oord et al. 2018).

    z^_{i+k,j} = W_k c_{i,j},   L = -sum log e^(z^ . z_{i+k,j}) / sum over all patches of the minibatch of e^(z^ . z_l)

    """

    title = "CPC v2"
    paper = "Henaff et al. 2020"
    objective = "InfoNCE of the prediction W_k c of the patch k rows below, against all patches of the minibatch"
    minimum_views = 1
    unit_features = False
    augmentable = False
    defaults = {"views": ("RGB",), "negatives": "batch", "feature_dim": 64}

    def __init__(self, config: Config):
        super().__init__(config)
        if not distances(config):
            raise ConfigError(
                f"method {config.method!r} needs cpc_skip < cpc_grid - 1, got {config.cpc_skip}, {config.cpc_grid}"
            )

    def networks(self, classes: int) -> nn.Module:
        return Predictor(self.config)

    def loss(self, z: Tensor, context: Context) -> Tensor:
        return predictive(z, self.config.cpc_grid, distances(self.config))


def distances(config: Config) -> range:
    """The numbers k of rows below that are predicted."""
    return range(config.cpc_skip + 1, config.cpc_grid)


def predictive(z: Tensor, grid: int, distances: range) -> Tensor:
    """Mean over distances of InfoNCE, of targets and predictions (n, B, d) as `Predictor` gives them."""
    targets, *predictions = z.split([grid**2, *((grid - k) * grid for k in distances)])
    places = torch.arange(targets[..., 0].numel(), device=z.device).view(targets.shape[:2])  # (g g, B)
    terms = [
        F.cross_entropy((found @ targets.flatten(0, 1).T).flatten(0, 1), places[k * grid :].flatten())
        for found, k in zip(predictions, distances, strict=True)
    ]
    return torch.stack(terms).mean()
