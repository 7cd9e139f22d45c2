"""The look-ahead and the meta-gradient (eq. 2, 3, 6): exact, and without double backward through the encoder.

theta' = theta - lr grad_theta L(theta, omega), and omega descends on L'(theta'(omega), omega). omega enters L only through the
features' loss: z(theta) does not depend on it. So with v = grad_theta' L',

    dL'/d omega = partial L'/partial omega - lr d/d omega <z_dot, dL/dz (z, omega)>,   z_dot = J_z(theta) v,

where z_dot is one forward-mode pass. The second derivative then touches the loss and the MAG alone, never a convolution. It is a
reverse-over-forward mixed partial cut at the feature layer (related: Pearlmutter's R-operator, MixFlow-MG, GradCache).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from metaug_core import shards
from metaug_core.products import put_off
from metaug_core.tangents import Params, Recorded, tangent

Features = Callable[[Params], Tensor]  # theta -> z, any shape
Loss = Callable[[Tensor, Params], Tensor]  # (z, omega) -> scalar


class LookAhead(NamedTuple):
    """What one MAG step computed: its gradient, and what came by the way (detached)."""

    gradient: Params  # omega's, of outer_loss(features(theta'), omega)
    features: Tensor  # z at theta
    features_ahead: Tensor  # z at theta'
    loss_ahead: Tensor  # outer_loss at theta'


class Regular(NamedTuple):
    """What the regular step of the same minibatch, context and theta has at hand; sharing any of it is exact."""

    gradient: Params  # grad_theta loss(features(theta), omega): saves three encoder passes
    pull: Tensor | None = None  # dL/dz with its graph to omega: saves loss and MAG one forward and backward
    recorded: Recorded | None = None  # the forward pass: saves the tangent pass its own


def gradients(value: Tensor, wrt: Params, **options) -> Params:
    """d value / d wrt as a dict; zeros where wrt does not enter."""
    found = torch.autograd.grad(value, list(wrt.values()), allow_unused=True, materialize_grads=True, **options)
    return dict(zip(wrt, found, strict=True))


def cut(z: Tensor) -> Tensor:
    """Features z (V, b, d) as a leaf, those of the whole minibatch: where the graph of the loss is cut from the encoders'."""
    return shards.gather(z.detach(), 1).requires_grad_()


def pulled_back(z: Tensor, theta: Params, pull: Tensor, **options) -> Params:
    """grad_theta of the loss whose dL/dz, over the whole minibatch, is pull: from the cut back through the encoders."""
    return shards.total(gradients(z, theta, grad_outputs=shards.own(pull.detach(), 1), **options))


def _leaves(params: Params) -> Params:
    return {name: p.detach().requires_grad_() for name, p in params.items()}


def _sum(like: Tensor, *parts: Tensor | None) -> Tensor:
    """The sum of the parts that there are, in the memory of the first: omega may be larger than theta."""
    first, *others = [part for part in parts if part is not None] or [torch.zeros_like(like)]
    for part in others:
        first.add_(part)
    return first


def step(theta: Params, gradient: Params, lr: float | Tensor) -> Params:
    """theta - lr gradient (eq. 3), without history."""
    return {name: p.detach() - lr * gradient[name] for name, p in theta.items()}


def look_ahead(
    features: Features,
    loss: Loss,
    theta: Params,
    omega: Params,
    lr: float | Tensor,
    outer_loss: Loss | None = None,
    regular: Regular | None = None,
) -> LookAhead:
    """The meta-gradient by one tangent pass (see the module's text), with what a training step wants to log.

    outer_loss: L' where it differs from loss (eq. 6 adds alpha R_sigma). regular: what the regular step has at hand.
    Cost in encoder passes, forward = 1 and backward = 2: 3 (0 if shared) + 3 + 3 (2 if recorded).
    """
    own = _leaves(omega)
    through = omega
    if regular is None:
        leaves, through = _leaves(theta), own
        z = features(leaves)
        leaf = cut(z)
        (pull,) = torch.autograd.grad(loss(leaf, own), leaf, create_graph=True)
        regular = Regular(pulled_back(z, leaves, pull), pull)
    ahead = _leaves(step(theta, regular.gradient, lr))
    z = features(ahead)
    z_ahead = cut(z)
    value = (outer_loss or loss)(z_ahead, own)
    with put_off() as products:
        # One backward through the loss gives the direct part (omega) and, through the encoders, the direction of the mixed part.
        *direct, pull = torch.autograd.grad(value, [*own.values(), z_ahead], allow_unused=True)
        direction = pulled_back(z, ahead, torch.zeros_like(z_ahead) if pull is None else pull)
        z, z_dot = (shards.gather(t, 1) for t in tangent(features, theta, direction, regular.recorded))
        pull = regular.pull
        if pull is None:
            z, through = z.detach().requires_grad_(), own
            (pull,) = torch.autograd.grad(loss(z, own), z, create_graph=True)
        mixed = [None] * len(omega)
        if pull.requires_grad:  # -lr goes in at the features, the smallest place
            mixed = torch.autograd.grad((-lr * z_dot * pull).sum(), [*through.values()], allow_unused=True)
    found = {
        name: _sum(p, *parts, products.gradient(p))
        for (name, p), *parts in zip(omega.items(), direct, mixed, strict=True)
    }
    return LookAhead(found, z.detach(), z_ahead.detach(), value.detach())


def meta_gradient(
    features: Features,
    loss: Loss,
    theta: Params,
    omega: Params,
    lr: float | Tensor,
    outer_loss: Loss | None = None,
    regular: Regular | None = None,
) -> Params:
    """omega's gradient of outer_loss(features(theta'), omega), theta' = theta - lr grad_theta loss(features(theta), omega).

    features(theta) -> z (any shape) must not depend on omega nor write buffers (`frozen_statistics`); loss(z, omega) -> scalar
    must be twice differentiable. theta and omega are dicts of tensors; lr is any real number or scalar tensor. Exact: equal to
    `meta_gradient_reference` up to rounding. outer_loss defaults to loss; regular as in `look_ahead`.
    """
    return look_ahead(features, loss, theta, omega, lr, outer_loss, regular).gradient


def look_ahead_reference(
    features: Features,
    loss: Loss,
    theta: Params,
    omega: Params,
    lr: float | Tensor,
    outer_loss: Loss | None = None,
    regular: Regular | None = None,
) -> LookAhead:
    """`look_ahead` by double backward, to the letter of eq. 2-3 (a retained graph of theta). Slow and plain: the yardstick.

    regular is accepted for the one signature and not used: here the gradient must carry its graph to omega.
    """
    del regular
    theta, omega = _leaves(theta), _leaves(omega)
    z = features(theta)
    inner = gradients(loss(z, omega), theta, create_graph=True)
    z_ahead = features({name: p - lr * inner[name] for name, p in theta.items()})
    value = (outer_loss or loss)(z_ahead, omega)
    return LookAhead(gradients(value, omega), z.detach(), z_ahead.detach(), value.detach())


def meta_gradient_reference(
    features: Features,
    loss: Loss,
    theta: Params,
    omega: Params,
    lr: float | Tensor,
    outer_loss: Loss | None = None,
    regular: Regular | None = None,
) -> Params:
    """`meta_gradient` by double backward (see `look_ahead_reference`); the gradient is taken to omega only."""
    return look_ahead_reference(features, loss, theta, omega, lr, outer_loss, regular).gradient
