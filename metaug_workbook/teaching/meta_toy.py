"""Eight steps of Algorithm 1 on the circle of `toys`, for the stepper: a linear MAG, and what one draws of each step."""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from metaug_core.meta import meta_gradient
from metaug_core.meta.forward_ad import Params
from metaug_workbook.teaching import toys

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
    return {"angles": angle.double()}, {"weight": weight.double(), "bias": torch.zeros(2, 1, 2).double()}


def norm(part: Params) -> float:
    return math.sqrt(sum(float(p.square().sum()) for p in part.values()))


@lru_cache(maxsize=32)
def trajectory(inner_lr: float, alpha: float, seed: int) -> tuple[Frame, ...]:
    """STEPS steps of Algorithm 1, encoder and MAG updated on the same features (`schedule` alternate)."""
    (theta, omega), toy = start(seed), toys.toy(augment, inner_lr, MAG_LR, alpha=alpha)
    frames = []
    for _ in range(STEPS):
        now = toys.moment(toy, theta, omega)
        z, theta = toys.encode(theta), meta_gradient.step(theta, now.pull, LR)
        by_direct, by_mixed = (_moved(z, omega, part) for part in (now.direct, now.mixed))
        before, omega = augment(z, omega), meta_gradient.step(omega, now.gradient, MAG_LR)
        after = toys.encode(theta)
        frames.append(Frame(z, before, toys.encode(now.theta_ahead), now.direct, now.mixed, by_direct, by_mixed, after,
                            augment(after, omega), now.loss_ahead))  # fmt: skip
    return tuple(frames)


def _moved(z: Tensor, omega: Params, part: Params) -> Tensor:
    """How z~ (V, B, 2) moves when omega follows a part of its gradient alone, to first order."""
    back = {name: -MAG_LR * p for name, p in part.items()}
    return torch.func.jvp(lambda o: augment(z, o), (omega,), (back,))[1]
