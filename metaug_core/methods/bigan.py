"""BiGAN: an encoder and a generator, inverse to each other because a discriminator of pairs cannot tell them apart."""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metaug_core.config import Config
from metaug_core.encoders import Joined
from metaug_core.methods.base import Context, Method
from metaug_core.registry import VIEWS

SIDE = 32  # px at which the game is played, whatever the encoder sees (the paper's is also below its encoder's)


def generator(dim: int, channels: int, width: int) -> nn.Sequential:
    """G: noise (B, d) -> image (B, C, 32, 32) in [-1, 1]; DCGAN by upsampling."""
    layers: list[nn.Module] = [nn.Linear(dim, 4 * width * 16, bias=False), nn.Unflatten(1, (4 * width, 4, 4))]
    for before, after in ((4, 2), (2, 1), (1, 1)):
        conv = nn.Conv2d(before * width, after * width, 3, padding=1, bias=False)
        layers += [nn.BatchNorm2d(before * width), nn.ReLU(), nn.Upsample(scale_factor=2), conv]
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, channels, 3, padding=1), nn.Tanh())


class Discriminator(nn.Module):
    """D: image (B, C, 32, 32) and code (B, d) -> logit (B, 1) of 'an image and its code'. No BatchNorm: images are judged alone."""

    def __init__(self, dim: int, channels: int, width: int):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((channels, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.of_image = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * 16, 256))
        self.of_both = nn.Sequential(nn.Linear(256 + dim, 256), nn.LeakyReLU(0.2), nn.Linear(256, 1))

    def forward(self, image: Tensor, code: Tensor) -> Tensor:
        return self.of_both(torch.cat([self.of_image(image), code], dim=1))


class Game(nn.Module):
    """theta: E (encoders, one layer), G and D. z (4, B, 1): logits of real and generated pairs as D learns from them, then the
    same as E and G learn from them: a constant there is not moved by the other player's goal."""

    def __init__(self, config: Config):
        super().__init__()
        channels, dim = sum(VIEWS[name].channels for name in config.views), config.feature_dim
        width = max(8, round(64 * config.width))
        encode = Joined(config, dim)
        self.encoders, self.code = encode.encoders, encode.head
        self.standardise = nn.BatchNorm1d(dim, affine=False)
        self.generator, self.discriminator = generator(dim, channels, width), Discriminator(dim, channels, width)

    def forward(self, images: list[Tensor]) -> Tensor:
        *views, noise = images
        image = F.interpolate(torch.cat(views, dim=1), (SIDE, SIDE), mode="bilinear", antialias=True)
        code = self.standardise(self.code(torch.cat(self.encoders(views), dim=1)))
        pairs = torch.cat([image, self.generator(noise)]), torch.cat([code, noise])
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        for_d = self.discriminator(*(x.detach() for x in pairs))
        for_eg = functional_call(self.discriminator, fixed, pairs)
        return torch.cat([for_d, for_eg]).unflatten(0, (4, -1))


class BiGAN(Method):
    """Adversarial feature learning (Donahue et al. 2017, eq. 3).

        min over E, G, max over D of  E log D(x, E(x)) + E log(1 - D(G(z), z))

    As in their section 3.4 (and in GANs at large) E and G descend on the swapped labels instead, whose gradient does not vanish
    when D wins. Both updates are simultaneous, from one sum of losses under one optimiser: D sees pairs as constants, and E and
    G see D as one. z is normal, and E's code standardised over the minibatch. Theirs: Adam 2e-4, beta1 0.5 [from memory]; here
    torch's beta1 of 0.9.
    """

    title = "BiGAN"
    paper = "Donahue et al. 2017"
    objective = "min over E, G, max over D of log D(x, E(x)) + log(1 - D(G(z), z)); E, G on swapped labels"
    minimum_views = 1
    unit_features = False
    augmentable = False
    divided = False  # each process would draw its own noise and standardise its own codes
    defaults = {"views": ("RGB",), "negatives": "batch", "lr": 2e-4}

    def networks(self, classes: int) -> nn.Module:
        return Game(self.config)

    def views(self, pixels: Tensor, generator: torch.Generator) -> list[Tensor]:
        noise = torch.randn(len(pixels), self.config.feature_dim, generator=generator, device=pixels.device)
        return [*super().views(pixels, generator), noise]

    def loss(self, z: Tensor, context: Context) -> Tensor:
        real, generated, real_swapped, generated_swapped = z
        of_d = F.softplus(-real).mean() + F.softplus(generated).mean()
        return of_d + F.softplus(real_swapped).mean() + F.softplus(-generated_swapped).mean()
