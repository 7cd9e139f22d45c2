"""The look-ahead and the meta-gradient (eq. 2, 3, 6): exact, and without double backward through the encoder.

theta' = theta - lr grad_theta L(theta, omega), and omega descends on L'(theta'(omega), omega). omega enters L only through the
features' loss: z(theta) does not depend on it. So with v = grad_theta' L',

    dL'/d omega = partial L'/partial omega - lr d/d omega <z_dot, dL/dz (z, omega)>,   z_dot = J_z(theta) v,

where z_dot is one forward-mode pass. The second derivative then touches the loss and the MAG alone, never a convolution. It is a
reverse-over-forward mixed partial cut at the feature layer (related: Pearlmutter's R-operator, MixFlow-MG, GradCache).
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

with (
    warnings.catch_warnings()
):  # the first jvp loads torch's own scripted decompositions, which warn that scripting is deprecated
    warnings.simplefilter("ignore", FutureWarning)
    import torch._decomp.decompositions_for_jvp

Params = dict[str, Tensor]
Features = Callable[[Params], Tensor]  # theta -> z, any shape
Loss = Callable[[Tensor, Params], Tensor]  # (z, omega) -> scalar


class LookAhead(NamedTuple):
    """What one MAG step computed: its gradient, and what came by the way (detached)."""

    gradient: Params  # omega's, of outer_loss(features(theta'), omega)
    features: Tensor  # z at theta
    features_ahead: Tensor  # z at theta'
    loss_ahead: Tensor  # outer_loss at theta'


@contextmanager
def frozen_statistics(*modules: nn.Module | None) -> Iterator[None]:
    """Within, BatchNorm in training mode normalises by batch statistics and leaves its running ones alone.

    Look-ahead and tangent passes must not write them; besides, forward-mode fails on a BatchNorm that does.
    """
    norms = [m for module in modules if module for m in module.modules() if isinstance(m, _NormBase)]
    before = [norm.track_running_stats for norm in norms]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm, tracked in zip(norms, before, strict=True):
            norm.track_running_stats = tracked


def gradients(value: Tensor, wrt: Params, **options) -> Params:
    """d value / d wrt as a dict; zeros where wrt does not enter."""
    found = torch.autograd.grad(value, list(wrt.values()), allow_unused=True, materialize_grads=True, **options)
    return dict(zip(wrt, found, strict=True))


def _leaves(params: Params) -> Params:
    return {name: p.detach().requires_grad_() for name, p in params.items()}


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
    gradient: Params | None = None,
) -> LookAhead:
    """The meta-gradient by one tangent pass (see the module's text), with what a training step wants to log.

    gradient: grad_theta loss(features(theta), omega), if it is at hand (the regular step of the same minibatch, the same
    context and the same theta); sharing it is exact and saves a third. outer_loss: L' where it differs from loss (eq. 6 adds
    alpha R_sigma). Cost in encoder passes, forward = 1, backward = 2: 3 (unless shared) + 3 + 2.
    """
    outer_loss = outer_loss or loss
    omega = _leaves(omega)
    if gradient is None:
        theta = _leaves(theta)
        gradient = gradients(loss(features(theta), omega), theta)
    ahead = _leaves(step(theta, gradient, lr))
    z_ahead = features(ahead)
    value = outer_loss(z_ahead, omega)
    # One backward gives both the direct part (omega) and the direction of the mixed part (theta').
    both = torch.autograd.grad(value, [*omega.values(), *ahead.values()], allow_unused=True, materialize_grads=True)
    direct = dict(zip(omega, both[: len(omega)], strict=True))
    direction = dict(zip(ahead, both[len(omega) :], strict=True))
    with torch.no_grad():
        z, z_dot = torch.func.jvp(features, ({n: p.detach() for n, p in theta.items()},), (direction,))
    z = z.detach().requires_grad_()
    (pull,) = torch.autograd.grad(loss(z, omega), z, create_graph=True)
    mixed = gradients((z_dot.detach() * pull).sum(), omega) if pull.requires_grad else {}
    total = {name: direct[name] - lr * mixed[name] if mixed else direct[name] for name in omega}
    return LookAhead(total, z.detach(), z_ahead.detach(), value.detach())


def meta_gradient(
    features: Features,
    loss: Loss,
    theta: Params,
    omega: Params,
    lr: float | Tensor,
    outer_loss: Loss | None = None,
    gradient: Params | None = None,
) -> Params:
    """omega's gradient of outer_loss(features(theta'), omega), theta' = theta - lr grad_theta loss(features(theta), omega).

    features(theta) -> z (any shape) must not depend on omega nor write buffers (`frozen_statistics`); loss(z, omega) -> scalar
    must be twice differentiable. theta and omega are dicts of tensors; lr is any real number or scalar tensor. Exact: equal to
    `meta_gradient_reference` up to rounding. outer_loss defaults to loss; gradient as in `look_ahead`.
    """
    return look_ahead(features, loss, theta, omega, lr, outer_loss, gradient).gradient


def look_ahead_reference(
    features: Features,
    loss: Loss,
    theta: Params,
    omega: Params,
    lr: float | Tensor,
    outer_loss: Loss | None = None,
    gradient: Params | None = None,
) -> LookAhead:
    """`look_ahead` by double backward, to the letter of eq. 2-3 (a retained graph of theta). Slow and plain: the yardstick.

    gradient is accepted for the one signature and not used: here it must carry its graph to omega.
    """
    del gradient
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
    gradient: Params | None = None,
) -> Params:
    """`meta_gradient` by double backward (see `look_ahead_reference`); the gradient is taken to omega only."""
    return look_ahead_reference(features, loss, theta, omega, lr, outer_loss, gradient).gradient
