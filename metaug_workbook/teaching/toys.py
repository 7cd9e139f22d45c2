"""MetAug in the plane, where every part of a step can be drawn: features on the unit circle, a toy encoder, the real rest.

theta is the angle of each feature, z = (cos theta, sin theta), so the encoder has nothing to hide. Objective, margins, MAG and
meta-gradient are the workbook's own. Angles are in radians, everything is float64 on the CPU.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaug_core import methods
from metaug_core.config import Config
from metaug_core.meta import meta_gradient
from metaug_core.meta.forward_ad import Params, frozen_statistics
from metaug_core.methods.base import Context, Method
from metaug_core.networks.mag import MAG
from metaug_core.training.step import total

VIEWS = ("L", "ab")
Augment = Callable[[Tensor, Params], Tensor]  # z (V, B, 2), omega -> z~ (V, B, 2)


def scattered(images: int = 5, spread: float = 0.5, seed: int = 0) -> Tensor:
    """Angles (V, B) of two views: images evenly around the circle, each view off its image's place by a normal of std `spread`."""
    noise = torch.randn(len(VIEWS), images, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.arange(images, dtype=torch.float64) * (2 * torch.pi / images) + spread * noise


def on_circle(angles: Tensor) -> Tensor:
    """Angles (...) -> unit vectors (..., 2)."""
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def encode(theta: Params) -> Tensor:
    """The toy encoder: theta = {"angles": (V, B)} -> z (V, B, 2), unit norm."""
    return on_circle(theta["angles"])


def turn(z: Tensor, omega: Params) -> Tensor:
    """The smallest MAG there is: omega = {"turn": (V,)} turns every feature of view j by omega_j. z (V, B, 2) -> z~ (V, B, 2)."""
    cos, sin = omega["turn"].cos()[:, None], omega["turn"].sin()[:, None]  # (V, 1)
    x, y = z.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)


def mlp(hidden: int = 32, seed: int = 0) -> tuple[Augment, Params]:
    """The workbook's MAG for features in the plane, as a function of (z, omega), and its first omega."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MAG(len(VIEWS), dim=2, hidden=hidden).double()
    return partial(_through, network), {name: p.detach().clone() for name, p in network.named_parameters()}


def _through(network: nn.Module, z: Tensor, omega: Params) -> Tensor:
    with frozen_statistics(network):
        return functional_call(network, omega, (z,))


@dataclass(frozen=True)
class Toy:
    """What stays fixed while theta and omega move: the objective (a method of the workbook) and the MAG's form."""

    method: Method
    augment: Augment = turn
    lr: float = 1.0  # l of eq. 3 and of the encoder's own step
    mag_lr: float = 1.0  # l' of eq. 6

    def inner(self, z: Tensor, omega: Params) -> Tensor:
        """L (eq. 11): what theta descends on. z (V, B, 2) -> scalar."""
        return total(self.method.terms(z, _context(z), partial(self._augmented, omega)))

    def outer(self, z: Tensor, omega: Params) -> Tensor:
        """L + alpha R_sigma: what omega descends on, at theta' (eq. 6). z (V, B, 2) -> scalar."""
        return total(self.method.outer_terms(z, _context(z), partial(self._augmented, omega)))

    def _augmented(self, omega: Params, z: Tensor) -> Tensor:
        return self.augment(z, omega)


def _context(z: Tensor) -> Context:
    batch = z.shape[1]
    return Context(indices=torch.arange(batch), labels=torch.full((batch,), -1))


def toy(augment: Augment = turn, lr: float = 1.0, mag_lr: float = 1.0, **settings) -> Toy:
    """A Toy with the objective of `metaug`, delta = alpha = 1 (so that one sees them), and any setting of Config changed.
    Raises ConfigError."""
    values = {"method": "metaug", "delta": 1.0, "alpha": 1.0, **settings}
    config = Config(views=VIEWS, negatives="batch", feature_dim=2, device="cpu", **values)
    return Toy(methods.build(config), augment, lr, mag_lr)


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


def moment(toy: Toy, theta: Params, omega: Params) -> Moment:
    """Loss, look-ahead and both parts of the MAG's gradient at (theta, omega)."""
    own, leaves = _leaves(omega), _leaves(theta)
    z = encode(leaves)
    leaf = meta_gradient.detach_leaf(z)
    loss = toy.inner(leaf, own)
    (pull,) = torch.autograd.grad(loss, leaf, create_graph=True)
    gradient = meta_gradient.vjp(z, leaves, pull)
    found = meta_gradient.look_ahead(
        encode, toy.inner, theta, own, toy.lr, toy.outer, meta_gradient.Regular(gradient, pull)
    )
    direct = meta_gradient.gradients(toy.outer(found.features_ahead, own), own)
    mixed = {name: found.gradient[name] - direct[name] for name in omega}
    ahead = meta_gradient.step(theta, gradient, toy.lr)
    return Moment(theta, omega, gradient, ahead, direct, mixed, loss.item(), found.loss_ahead.item())


def _leaves(params: Params) -> Params:
    return {name: p.detach().requires_grad_() for name, p in params.items()}


def step(toy: Toy, now: Moment, move_theta: bool = True) -> Moment:
    """The next moment: omega takes its step from the same theta as the encoder (Algorithm 1, alternating by minibatch).

    move_theta=False holds the features still.
    """
    theta = now.theta_ahead if move_theta else now.theta
    return moment(toy, theta, meta_gradient.step(now.omega, now.gradient, toy.mag_lr))


def history(toy: Toy, theta: Params, omega: Params, steps: int, **options) -> list[Moment]:
    """The moments 0..steps of a toy run; options as in `step`. Going back is an index."""
    moments = [moment(toy, theta, omega)]
    for _ in range(steps):
        moments.append(step(toy, moments[-1], **options))
    return moments


def trained_mag(toy: Toy, theta: Params, omega: Params, steps: int, lr: float = 0.02) -> Params:
    """omega after so many Adam steps on its meta-gradient (eq. 6), with the features held still."""
    omega = {name: p.clone().requires_grad_() for name, p in omega.items()}  # Adam moves them in place
    optimiser = torch.optim.Adam(omega.values(), lr)
    for _ in range(steps):
        found = meta_gradient.look_ahead(encode, toy.inner, theta, omega, toy.lr, toy.outer).gradient
        for name, p in omega.items():
            p.grad = found[name]
        optimiser.step()
    return {name: p.detach() for name, p in omega.items()}


def landscape(toy: Toy, theta: Params, turns: Tensor) -> Tensor:
    """(L + alpha R_sigma)(theta'(omega), omega) of `turn`, omega_1 and omega_2 in turns (n,): (n, n), rows are omega_2."""
    leaves = _leaves(theta)
    found = torch.empty(len(turns), len(turns), dtype=torch.float64)
    for row, column in itertools.product(range(len(turns)), repeat=2):
        omega = {"turn": torch.stack([turns[column], turns[row]])}
        pull = meta_gradient.gradients(toy.inner(encode(leaves), omega), leaves)
        with torch.no_grad():
            found[row, column] = toy.outer(encode(meta_gradient.step(leaves, pull, toy.lr)), omega)
    return found
