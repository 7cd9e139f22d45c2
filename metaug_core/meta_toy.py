"""Algorithm 1 in two dimensions, small enough to be drawn: features on a circle, the MAG a linear map.

It is the method itself: losses, look-ahead and meta-gradient are those of the package, in float64.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from metaug_core import methods
from metaug_core.config import Config
from metaug_core.meta import LookAhead, gradients, look_ahead, step
from metaug_core.methods.base import Context
from metaug_core.step import total
from metaug_core.tangents import Params

IMAGES, STEPS = 3, 8
LR, MAG_LR = 0.3, 0.5  # of the encoder's and the MAG's update: large, so that eight steps go somewhere


class Frame(NamedTuple):
    """One step of Algorithm 1; features are (V, B, 2), gradients are omega's."""

    z: Tensor
    augmented: Tensor
    z_ahead: Tensor  # z at theta'
    direct: Params  # of the loss at theta', theta' held fixed
    mixed: Params  # through theta', the second derivative
    along_direct: Tensor  # how z~ moves when omega follows the direct part alone, d z~ / d omega (-l' direct)
    along_mixed: Tensor
    z_next: Tensor
    augmented_next: Tensor
    loss_ahead: float


def features(theta: Params) -> Tensor:
    """The toy encoder: an angle for each view and image, (V, B) -> z (V, B, 2) on the unit circle."""
    return torch.stack([theta["angle"].cos(), theta["angle"].sin()], -1)


def augment(z: Tensor, omega: Params) -> Tensor:
    """The toy MAG: one linear map per view, and unit norm; (V, B, 2) -> (V, B, 2)."""
    return F.normalize(torch.baddbmm(omega["bias"], z, omega["weight"]), dim=-1)


def start(seed: int) -> tuple[Params, Params]:
    """theta and omega before the first step: views of an image half a radian apart or so, the MAG a small turn."""
    g = torch.Generator().manual_seed(seed)
    places = torch.arange(IMAGES) * (2 * math.pi / IMAGES)
    angle = places + 0.9 * (torch.rand(2, IMAGES, generator=g) - 0.5) + torch.tensor([[0.35], [-0.35]])
    turn = 0.5 + 0.2 * torch.randn(2, generator=g)
    weight = torch.stack([torch.stack([turn.cos(), turn.sin()], -1), torch.stack([-turn.sin(), turn.cos()], -1)], 1)
    return {"angle": angle.double()}, {"weight": weight.double(), "bias": torch.zeros(2, 1, 2).double()}


def toy(alpha: float) -> tuple[Any, Any]:
    """The inner and the outer loss of eq. 3 and 6, each (z, omega) -> scalar, as MetAug has them at delta = 1."""
    settings = {
        "views": ("L", "ab"),
        "feature_dim": 2,
        "negatives": "batch",
        "batch_size": IMAGES,
        "delta": 1.0,
        "alpha": alpha,
    }
    method, context = (
        methods.build(Config(method="metaug", **settings)),
        Context(torch.arange(IMAGES), torch.zeros(IMAGES).long()),
    )

    def loss(terms: Any, z: Tensor, omega: Params) -> Tensor:
        return total(terms(z, context, lambda x: augment(x, omega)))

    return (lambda z, omega: loss(method.terms, z, omega)), (lambda z, omega: loss(method.outer_terms, z, omega))


def parts(found: LookAhead, outer: Any, omega: Params) -> tuple[Params, Params]:
    """The meta-gradient as the sum of its direct part (theta' held fixed) and its mixed part (through theta')."""
    leaves = {name: p.detach().requires_grad_() for name, p in omega.items()}
    direct = gradients(outer(found.features_ahead, leaves), leaves)
    return direct, {name: found.gradient[name] - direct[name] for name in omega}


def norm(part: Params) -> float:
    return math.sqrt(sum(float(p.square().sum()) for p in part.values()))


@lru_cache(maxsize=32)
def trajectory(inner_lr: float, alpha: float, seed: int) -> tuple[Frame, ...]:
    """STEPS steps of Algorithm 1, encoder and MAG updated on the same features (`schedule` alternate)."""
    (theta, omega), (inner, outer) = start(seed), toy(alpha)
    frames = []
    for _ in range(STEPS):
        found = look_ahead(features, inner, theta, omega, inner_lr, outer)
        direct, mixed = parts(found, outer, omega)
        z = found.features
        leaves = {name: p.detach().requires_grad_() for name, p in theta.items()}
        theta = step(theta, gradients(inner(features(leaves), omega), leaves), LR)
        following = [
            torch.func.jvp(
                lambda o, z=z: augment(z, o),
                (omega,),
                (step({n: torch.zeros_like(p) for n, p in part.items()}, part, MAG_LR),),
            )
            for part in (direct, mixed)
        ]
        before, omega = augment(z, omega), step(omega, found.gradient, MAG_LR)
        after = features(theta)
        frames.append(Frame(z, before, found.features_ahead, direct, mixed, following[0][1], following[1][1], after,
                            augment(after, omega), float(found.loss_ahead)))  # fmt: skip
    return tuple(frames)
