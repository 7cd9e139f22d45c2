"""BiGAN: an encoder and an image generator, inverse to each other because a discriminator of pairs cannot tell them apart."""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metaug_core.config import Config
from metaug_core.methods.base import Context, Method
from metaug_core.networks.encoders import Joined
from metaug_core.registry import VIEWS

Pair = tuple[Tensor, Tensor]  # images (B, C, side, side) and codes (B, d)
UNITS = 256  # of each layer of D after its convolutions
SLOPE_WEIGHT = 0.5  # of the squared slope: gamma / 2 of Mescheder et al. with gamma = 1


class BiGAN(Method):
    """Adversarial feature learning (Donahue et al. 2017, eq. 3).

        min over E, G, max over D of  E log D(x, E(x)) + E log(1 - D(G(z), z))

    As in their section 3.4, E and G descend on the swapped labels, whose gradient does not vanish when D wins. Both
    updates are simultaneous: one sum of losses under one optimiser, where D takes pairs as constants, and E and G take
    D as one. z is normal, of feature_dim dimensions; theirs is uniform on [-1, 1], of 200. E's code and the images are
    standardised over the minibatch, which fixes mean and variance of the codes; theirs are not. D also pays for its
    squared slope at real pairs (R1: Mescheder et al. 2018), which theirs does not: without it D wins and nobody learns
    (LOG.md). Adam has no momentum, as is usual with R1; theirs: rate 2e-4, which falls exponentially to its hundredth
    over the second half of the epochs, beta1 0.5, weight decay 2.5e-5. Each half of the loss counts 1, theirs 1/2.
    """

    title = "BiGAN"
    paper = "Donahue et al. 2017"
    objective = "min over E, G, max over D of log D(x, E(x)) + log(1 - D(G(z), z)); E, G on swapped labels; R1 on D"
    differs = (
        "D pays for its squared slope at real pairs (R1). z is normal, theirs uniform on [-1, 1]; codes and images are "
        "standardised over the minibatch. Each half of the loss counts 1, theirs 1/2."
    )
    minimum_views = 1
    unit_features = False
    augmentable = False
    divided = False  # each process would draw its own noise and standardise its own codes
    betas = (0.0, 0.99)
    uses = {"feature_dim"}
    defaults = {"views": ("RGB",), "negatives": "batch", "lr": 2e-3, "weight_decay": 1e-4}

    def networks(self, classes: int) -> nn.Module:
        return Game(self.config)

    def views(self, pixels: Tensor, generator: torch.Generator) -> list[Tensor]:
        noise = torch.randn(len(pixels), self.config.feature_dim, generator=generator, device=pixels.device)
        return [*super().views(pixels, generator), noise]

    def loss(self, z: Tensor, context: Context) -> Tensor:
        real, generated, real_swapped, generated_swapped, slope = z
        of_d = F.softplus(-real).mean() + F.softplus(generated).mean() + SLOPE_WEIGHT * slope.mean()
        return of_d + F.softplus(real_swapped).mean() + F.softplus(-generated_swapped).mean()


class Game(nn.Module):
    """theta: E (encoders and one layer), G and D.

    Its z (5, B, 1) are the logits of real and of generated pairs as D learns from them, the same two as E and G learn from them
    (a player is a constant in the other's goal), and the squared slope.
    """

    def __init__(self, config: Config):
        super().__init__()
        channels = sum(VIEWS[name].channels for name in config.views)
        joined = Joined(config, config.feature_dim)
        self.side = game_side(config)
        self.encoders, self.code = joined.encoders, joined.head
        self.standard_code = nn.BatchNorm1d(config.feature_dim, affine=False)
        self.standard_image = nn.BatchNorm2d(channels, affine=False)  # views differ in contrast, Sobel twentyfold
        self.generator = image_generator(config, channels)
        self.discriminator = Discriminator(config, channels)

    def forward(self, images: list[Tensor]) -> Tensor:
        *views, noise = images
        resized = F.interpolate(torch.cat(views, dim=1), (self.side, self.side), mode="bilinear", antialias=True)
        code = self.standard_code(self.code(torch.cat(self.encoders(views), dim=1)))
        real = self.standard_image(resized), code
        generated = self.generator(noise), noise
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        logits, slope = judge_with_slope(self.discriminator, real)
        for_d = [logits, self.discriminator(*(x.detach() for x in generated))]
        for_eg = [functional_call(self.discriminator, fixed, pair) for pair in (real, generated)]
        return torch.stack([*for_d, *for_eg, slope])


def count_doublings(config: Config) -> int:
    """How often G doubles its first map of 4 x 4 places, and D halves its image: 2 to 4 times."""
    return min(4, max(2, int(math.log2(config.image_size / 8))))


def game_side(config: Config) -> int:
    """Side in pixels of the images that G draws and D judges: 16 to 64, about half of what the encoder sees (paper: 64 of 112)."""
    return 4 * 2 ** count_doublings(config)


def image_generator(config: Config, channels: int) -> nn.Sequential:
    """G: noise (B, d) -> image (B, C, side, side) in standard units; DCGAN by upsampling."""
    least = max(32, round(64 * config.width))
    wide = 4 * least
    layers: list[nn.Module] = [nn.Linear(config.feature_dim, 16 * wide), nn.Unflatten(1, (wide, 4, 4))]
    for _ in range(count_doublings(config)):
        narrow = max(least, wide // 2)
        conv = nn.Conv2d(wide, narrow, 3, padding=1)
        layers += [nn.BatchNorm2d(wide), nn.ReLU(), nn.Upsample(scale_factor=2), conv]
        wide = narrow
    return nn.Sequential(*layers, nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, channels, 3, padding=1))


class Discriminator(nn.Module):
    """D: image and code -> logit (B, 1) of 'an image and its code'. No BatchNorm: each pair is judged alone."""

    def __init__(self, config: Config, channels: int):
        super().__init__()
        width = max(32, round(64 * config.width))
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU(0.2)]
        narrow = width
        for _ in range(count_doublings(config)):
            wide = min(4 * width, 2 * narrow)
            layers += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
            narrow = wide
        self.of_image = nn.Sequential(*layers, nn.Flatten(), *dense(16 * narrow, UNITS))
        self.of_code = nn.Sequential(*dense(config.feature_dim, UNITS), *dense(UNITS, UNITS))
        self.of_both = nn.Sequential(*dense(2 * UNITS, UNITS), *dense(UNITS, UNITS), nn.Linear(UNITS, 1))

    def forward(self, image: Tensor, code: Tensor) -> Tensor:
        return self.of_both(torch.cat([self.of_image(image), self.of_code(code)], dim=1))


def dense(inputs: int, units: int) -> tuple[nn.Module, nn.Module]:
    """A linear layer and its LeakyReLU."""
    return nn.Linear(inputs, units), nn.LeakyReLU(0.2)


@torch.enable_grad()
def judge_with_slope(discriminator: nn.Module, pair: Pair) -> Pair:
    """D's logits (B, 1) of pairs, which are constants here, and || dD / d(image, code) ||^2 of each, (B, 1)."""
    pair = (pair[0].detach().requires_grad_(), pair[1].detach().requires_grad_())
    logits = discriminator(*pair)
    slopes = torch.autograd.grad(logits.sum(), pair, create_graph=True)
    return logits, torch.cat([slope.flatten(1) for slope in slopes], dim=1).square().sum(1, keepdim=True)
