"""BiGAN: an encoder and a generator, inverse to each other because a discriminator of pairs cannot tell them apart."""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metaug_core.config import Config
from metaug_core.methods.base import Context, Method
from metaug_core.networks.adversarial import Discriminator, generator, side, with_slope
from metaug_core.networks.encoders import Joined
from metaug_core.registry import VIEWS

STEEP = 0.5  # weight of the squared slope, gamma / 2 of Mescheder et al. with gamma = 1


class Game(nn.Module):
    """theta: E (encoders, one layer), G and D. z (5, B, 1): logits of real and generated pairs as D learns from them, then the
    same as E and G learn from them (a constant there is not moved by the other player's goal), then the squared slope."""

    def __init__(self, config: Config):
        super().__init__()
        channels = sum(VIEWS[name].channels for name in config.views)
        encode, self.side = Joined(config, config.feature_dim), side(config)
        self.encoders, self.code = encode.encoders, encode.head
        self.standard_code = nn.BatchNorm1d(config.feature_dim, affine=False)
        self.standard_image = nn.BatchNorm2d(channels, affine=False)  # views differ in contrast, Sobel twentyfold
        self.generator, self.discriminator = generator(config, channels), Discriminator(config, channels)

    def forward(self, images: list[Tensor]) -> Tensor:
        *views, noise = images
        seen = F.interpolate(torch.cat(views, dim=1), (self.side, self.side), mode="bilinear", antialias=True)
        code = self.standard_code(self.code(torch.cat(self.encoders(views), dim=1)))
        real, made = (self.standard_image(seen), code), (self.generator(noise), noise)
        judge, fixed = self.discriminator, {name: p.detach() for name, p in self.discriminator.named_parameters()}
        logits, slope = with_slope(judge, real)
        for_d = [logits, judge(*(x.detach() for x in made))]
        for_eg = [functional_call(judge, fixed, pair) for pair in (real, made)]
        return torch.stack([*for_d, *for_eg, slope])


class BiGAN(Method):
    """Adversarial feature learning (Donahue et al. 2017, eq. 3).

        min over E, G, max over D of  E log D(x, E(x)) + E log(1 - D(G(z), z))

    As in their section 3.4 (and in GANs at large) E and G descend on the swapped labels instead, whose gradient does not vanish
    when D wins. Both updates are simultaneous, from one sum of losses under one optimiser: D sees pairs as constants, and E and
    G see D as one. z is normal, E's code and the images standardised over the minibatch. D also pays for its squared slope at real
    pairs (R1: Mescheder et al. 2018 [from memory]), without which it wins and nobody learns (LOG.md); theirs does not. Adam without
    momentum, as is usual with that; theirs: 2e-4, beta1 0.5, a weight decay of 2.5e-5 [from memory].
    """

    title = "BiGAN"
    paper = "Donahue et al. 2017"
    objective = "min over E, G, max over D of log D(x, E(x)) + log(1 - D(G(z), z)); E, G on swapped labels; R1 on D"
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
        real, made, real_swapped, made_swapped, slope = z
        of_d = F.softplus(-real).mean() + F.softplus(made).mean() + STEEP * slope.mean()
        return of_d + F.softplus(real_swapped).mean() + F.softplus(-made_swapped).mean()
