"""MetAug in the plane, where every part of a step can be drawn: features on the unit circle, a toy encoder, the real rest.

theta is the angle of each feature, z = (cos theta, sin theta), so the encoder has nothing to hide. Objective, margins, MAG and
meta-gradient are the workbook's own. Angles are in radians, everything is float64 on the CPU.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metaug_core import methods
from metaug_core.config import Config
from metaug_core.meta import meta_gradient
from metaug_core.meta.forward_ad import Params, frozen_statistics
from metaug_core.methods.base import Context, Method
from metaug_core.networks.mag import MAG
from metaug_core.training.step import sum_terms

VIEWS = ("L", "ab")
Augment = Callable[[Tensor, Params], Tensor]  # z (V, B, 2), omega -> z~ (V, B, 2)


# --- the encoder
def scatter(images: int = 5, spread: float = 0.5, seed: int = 0) -> Tensor:
    """Angles (V, B) of two views: images evenly around the circle, each view off its image's place by a normal of std `spread`."""
    noise = torch.randn(len(VIEWS), images, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.arange(images, dtype=torch.float64) * (2 * torch.pi / images) + spread * noise


def place_on_circle(angles: Tensor) -> Tensor:
    """Angles (...) -> unit vectors (..., 2)."""
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def encode(theta: Params) -> Tensor:
    """The toy encoder: theta = {"angles": (V, B)} -> z (V, B, 2), unit norm."""
    return place_on_circle(theta["angles"])


# --- three MAGs, from the smallest to the workbook's
def turn(z: Tensor, omega: Params) -> Tensor:
    """The smallest MAG there is: omega = {"turn": (V,)} turns every feature of view j by omega_j. z (V, B, 2) -> z~ (V, B, 2)."""
    cos, sin = omega["turn"].cos()[:, None], omega["turn"].sin()[:, None]  # (V, 1)
    x, y = z.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)


def map_linearly(z: Tensor, omega: Params) -> Tensor:
    """One linear map per view, and unit norm: omega = {"weight": (V, 2, 2), "bias": (V, 1, 2)}. z (V, B, 2) -> z~ (V, B, 2)."""
    return F.normalize(torch.baddbmm(omega["bias"], z, omega["weight"]), dim=-1)


def make_mlp(hidden: int = 32, seed: int = 0) -> tuple[Augment, Params]:
    """The workbook's MAG for features in the plane, as a function of (z, omega), and its first omega."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MAG(len(VIEWS), dim=2, hidden=hidden).double()
    return partial(_call_network, network), {name: p.detach().clone() for name, p in network.named_parameters()}


def _call_network(network: nn.Module, z: Tensor, omega: Params) -> Tensor:
    with frozen_statistics(network):
        return functional_call(network, omega, (z,))


# --- the objective
@dataclass(frozen=True)
class Toy:
    """What stays fixed while theta and omega move: the objective (a method of the workbook) and the MAG's form."""

    method: Method
    augment: Augment = turn
    lr: float = 1.0  # l of eq. 3

    def inner(self, z: Tensor, omega: Params) -> Tensor:
        """L (eq. 11): what theta descends on. z (V, B, 2) -> scalar."""
        return sum_terms(self.method.terms(z, _number_images(z), partial(self._augment, omega)))

    def outer(self, z: Tensor, omega: Params) -> Tensor:
        """L + alpha R_sigma: what omega descends on, at theta' (eq. 6). z (V, B, 2) -> scalar."""
        return sum_terms(self.method.outer_terms(z, _number_images(z), partial(self._augment, omega)))

    def _augment(self, omega: Params, z: Tensor) -> Tensor:
        return self.augment(z, omega)


def _number_images(z: Tensor) -> Context:
    batch = z.shape[1]
    return Context(indices=torch.arange(batch), labels=torch.full((batch,), -1))


def make_toy(augment: Augment = turn, lr: float = 1.0, **settings) -> Toy:
    """A Toy with the objective of `metaug`, delta = alpha = 1 (so that one sees them), and any setting of Config changed.
    Raises ConfigError."""
    values = {"method": "metaug", "delta": 1.0, "alpha": 1.0, **settings}
    config = Config(views=VIEWS, negatives="batch", feature_dim=2, device="cpu", **values)
    return Toy(methods.build(config), augment, lr)


# --- one moment
class Moment(NamedTuple):
    """One moment of a toy run, and what the step from here consists of. direct + mixed is the MAG's gradient (eq. 6)."""

    theta: Params
    omega: Params
    pull: Params  # grad_theta L(theta, omega)
    theta_ahead: Params  # theta' = theta - l pull (eq. 3)
    direct: Params  # the part of omega's gradient at a fixed theta'
    mixed: Params  # the part through theta'(omega), a mixed second derivative
    loss: float  # L(theta, omega)
    loss_ahead: float  # (L + alpha R_sigma)(theta', omega)

    @property
    def gradient(self) -> Params:
        """omega's whole gradient (eq. 6)."""
        return {name: self.direct[name] + self.mixed[name] for name in self.direct}


def measure_moment(toy: Toy, theta: Params, omega: Params) -> Moment:
    """Loss, look-ahead and both parts of the MAG's gradient at (theta, omega)."""
    own, leaves = _make_leaves(omega), _make_leaves(theta)
    z = encode(leaves)
    leaf = meta_gradient.detach_leaf(z)
    loss = toy.inner(leaf, own)
    (pull,) = torch.autograd.grad(loss, leaf, create_graph=True)
    gradient = meta_gradient.vjp(z, leaves, pull)
    regular = meta_gradient.Regular(gradient, pull)
    look_ahead = meta_gradient.look_ahead(encode, toy.inner, theta, own, toy.lr, toy.outer, regular)
    direct = meta_gradient.gradients(toy.outer(look_ahead.features_ahead, own), own)
    mixed = {name: look_ahead.gradient[name] - direct[name] for name in omega}
    theta_ahead = meta_gradient.step(theta, gradient, toy.lr)
    return Moment(theta, omega, gradient, theta_ahead, direct, mixed, loss.item(), look_ahead.loss_ahead.item())


def _make_leaves(params: Params) -> Params:
    return {name: p.detach().requires_grad_() for name, p in params.items()}


def measure_landscape(toy: Toy, theta: Params, turns: Tensor) -> Tensor:
    """(L + alpha R_sigma)(theta'(omega), omega) of `turn`, omega_1 and omega_2 in turns (n,): (n, n), rows are omega_2."""
    leaves = _make_leaves(theta)
    values = torch.empty(len(turns), len(turns), dtype=torch.float64)
    for row, column in itertools.product(range(len(turns)), repeat=2):
        omega = {"turn": torch.stack([turns[column], turns[row]])}
        pull = meta_gradient.gradients(toy.inner(encode(leaves), omega), leaves)
        with torch.no_grad():
            values[row, column] = toy.outer(encode(meta_gradient.step(leaves, pull, toy.lr)), omega)
    return values


# --- training
def train_mag(toy: Toy, theta: Params, omega: Params, steps: int, lr: float = 0.02) -> Params:
    """omega after so many Adam steps on its meta-gradient (eq. 6), with the features held still."""
    omega = {name: p.clone().requires_grad_() for name, p in omega.items()}  # Adam moves them in place
    optimiser = torch.optim.Adam(omega.values(), lr)
    for _ in range(steps):
        gradient = meta_gradient.look_ahead(encode, toy.inner, theta, omega, toy.lr, toy.outer).gradient
        for name, p in omega.items():
            p.grad = gradient[name]
        optimiser.step()
    return {name: p.detach() for name, p in omega.items()}


class Frame(NamedTuple):
    """One step of Algorithm 1 with the linear MAG, as the stepper draws it; features are (V, B, 2)."""

    now: Moment
    z: Tensor
    augmented: Tensor
    z_ahead: Tensor  # z at theta'
    along_direct: Tensor  # how z~ moves when omega follows the direct part alone, d z~ / d omega (-l' direct)
    along_mixed: Tensor
    z_next: Tensor
    augmented_next: Tensor


IMAGES, STEPS = 3, 8
LR, MAG_LR = 0.3, 0.5  # of the encoder's update and of the MAG's (l'): large, so that eight steps go somewhere


def start(seed: int) -> tuple[Params, Params]:
    """theta and omega before the first step: views of an image half a radian apart or so, the MAG a small turn."""
    g = torch.Generator().manual_seed(seed)
    places = torch.arange(IMAGES) * (2 * math.pi / IMAGES)
    angles = places + 0.9 * (torch.rand(2, IMAGES, generator=g) - 0.5) + torch.tensor([[0.35], [-0.35]])
    turns = 0.5 + 0.2 * torch.randn(2, generator=g)
    cos, sin = turns.cos(), turns.sin()
    weight = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], 1)
    return {"angles": angles.double()}, {"weight": weight.double(), "bias": torch.zeros(2, 1, 2).double()}


@lru_cache(maxsize=32)
def run_algorithm(inner_lr: float, alpha: float, seed: int) -> tuple[Frame, ...]:
    """STEPS steps of Algorithm 1, encoder and MAG updated on the same features (`schedule` alternate)."""
    theta, omega = start(seed)
    toy = make_toy(map_linearly, inner_lr, alpha=alpha)
    frames = []
    for _ in range(STEPS):
        now = measure_moment(toy, theta, omega)
        z, z_ahead = encode(theta), encode(now.theta_ahead)
        direct, mixed = (_follow(z, omega, part) for part in (now.direct, now.mixed))
        theta = meta_gradient.step(theta, now.pull, LR)
        omega = meta_gradient.step(omega, now.gradient, MAG_LR)
        z_next = encode(theta)
        augmented, augmented_next = map_linearly(z, now.omega), map_linearly(z_next, omega)
        frames.append(Frame(now, z, augmented, z_ahead, direct, mixed, z_next, augmented_next))
    return tuple(frames)


def _follow(z: Tensor, omega: Params, part: Params) -> Tensor:
    """How z~ (V, B, 2) moves when omega follows a part of its gradient alone, to first order."""
    back = {name: -MAG_LR * p for name, p in part.items()}
    return torch.func.jvp(lambda o: map_linearly(z, o), (omega,), (back,))[1]
