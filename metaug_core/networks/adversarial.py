"""The networks of a game: a generator that draws images from codes, a discriminator that judges pairs of both, and its slope."""

import math

import torch
from torch import Tensor, nn

from metaug_core.config import Config

Pair = tuple[Tensor, Tensor]  # images (B, C, side, side) and codes (B, d)
UNITS = 256  # of each layer of D after its convolutions


def side(config: Config) -> int:
    """Side in pixels at which the game is played: 2^k, about half of what the encoder sees, as the paper's 64 of 112; 16 to 64."""
    return 4 * 2 ** doublings(config)


def doublings(config: Config) -> int:
    """How often G doubles its first map of 4 x 4 places, and D halves its image: 2 to 4 times."""
    return min(4, max(2, int(math.log2(config.image_size / 8))))


def generator(config: Config, channels: int) -> nn.Sequential:
    """G: noise (B, d) -> image (B, C, side, side) in standard units; DCGAN by upsampling."""
    least = max(32, round(64 * config.width))
    wide = 4 * least
    layers: list[nn.Module] = [nn.Linear(config.feature_dim, 16 * wide), nn.Unflatten(1, (wide, 4, 4))]
    for _ in range(doublings(config)):
        narrow = max(least, wide // 2)
        conv = nn.Conv2d(wide, narrow, 3, padding=1)
        layers += [nn.BatchNorm2d(wide), nn.ReLU(), nn.Upsample(scale_factor=2), conv]
        wide = narrow
    return nn.Sequential(*layers, nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, channels, 3, padding=1))


class Discriminator(nn.Module):
    """D: image and code -> logit (B, 1) of 'an image and its code'. No BatchNorm: pairs are judged alone."""

    def __init__(self, config: Config, channels: int):
        super().__init__()
        width = max(32, round(64 * config.width))
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU(0.2)]
        narrow = width
        for _ in range(doublings(config)):
            wide = min(4 * width, 2 * narrow)
            layers += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
            narrow = wide
        self.of_image = nn.Sequential(*layers, nn.Flatten(), *dense(16 * narrow, UNITS))
        self.of_code = nn.Sequential(*dense(config.feature_dim, UNITS), *dense(UNITS, UNITS))
        self.of_both = nn.Sequential(*dense(2 * UNITS, UNITS), *dense(UNITS, UNITS), nn.Linear(UNITS, 1))

    def forward(self, image: Tensor, code: Tensor) -> Tensor:
        return self.of_both(torch.cat([self.of_image(image), self.of_code(code)], dim=1))


def dense(inputs: int, units: int) -> tuple[nn.Module, nn.Module]:
    return nn.Linear(inputs, units), nn.LeakyReLU(0.2)


@torch.enable_grad()
def with_slope(judge: nn.Module, pair: Pair) -> Pair:
    """D's logits (B, 1) of pairs, which are constants here, and || dD / d(image, code) ||^2 of each, (B, 1)."""
    pair = (pair[0].detach().requires_grad_(), pair[1].detach().requires_grad_())
    logits = judge(*pair)
    slopes = torch.autograd.grad(logits.sum(), pair, create_graph=True)
    return logits, torch.cat([slope.flatten(1) for slope in slopes], dim=1).square().sum(1, keepdim=True)
