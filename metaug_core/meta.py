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
from torch.autograd import forward_ad as fwAD
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

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


class Regular(NamedTuple):
    """What the regular step of the same minibatch, context and theta has at hand; sharing any of it is exact."""

    gradient: Params  # grad_theta loss(features(theta), omega): saves three encoder passes
    pull: Tensor | None = None  # dL/dz with its graph to omega: saves loss and MAG one forward and backward
    products: "Products | None" = None  # of the forward pass: saves the tangent pass its own


class Products(TorchFunctionMode):
    """Within, keeps the outputs of convolutions and linear maps in order; `replayed` uses them instead of computing again."""

    OPERATIONS = (torch.conv2d, F.linear)

    def __init__(self):
        super().__init__()
        self.kept: list[tuple[Tensor, int]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in self.OPERATIONS:
            self.kept.append((out.detach(), out._version))
        return out


class Tangents(TorchFunctionMode):
    """Within a dual level, a product's primal value is the one kept, and only its tangent is computed (product rule).

    A kept value that an in-place operation has changed since, or one of another shape, is computed again.
    """

    def __init__(self, products: Products | None):
        super().__init__()
        self.kept = iter(products.kept if products else ())

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.batch_norm and args[1] is None and kwargs and kwargs["weight"] is not None:
            return batch_norm_tangent(args[0], kwargs["weight"], kwargs["bias"], kwargs["eps"])
        if func not in Products.OPERATIONS or kwargs:
            return func(*args, **(kwargs or {}))
        x, weight, bias = (*args[:2], args[2] if len(args) > 2 else None)
        (x, x_dot), (weight, weight_dot) = fwAD.unpack_dual(x), fwAD.unpack_dual(weight)
        bias, bias_dot = fwAD.unpack_dual(bias) if bias is not None else (None, None)
        if weight_dot is None:
            return func(*args)
        tangent = func(x, weight_dot, bias_dot, *args[3:])
        if x_dot is not None:
            tangent += func(x_dot, weight, None, *args[3:])
        kept, version = next(self.kept, (tangent, -1))
        if kept._version != version or kept.shape != tangent.shape:
            kept = func(x, weight, bias, *args[3:])
        return fwAD.make_dual(kept, tangent)


def batch_norm_tangent(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """BatchNorm by batch statistics of a dual x (B, C, ...), in three passes over x and x_dot; torch's own takes over ten.

    y = w (x - m) r + b, so y_dot = A x_dot + B (x - m) + C by channel, with A = w r, B = w_dot r - w r^3 cov(x, x_dot) and
    C = b_dot - A mean(x_dot).
    """
    (x, x_dot), (weight, w_dot), (bias, b_dot) = (fwAD.unpack_dual(t) for t in (x, weight, bias))
    y, mean, r = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
    shape = (1, -1) + (1,) * (x.dim() - 2)
    others = [d for d in range(x.dim()) if d != 1]
    mean, r = mean.view(shape).to(x.dtype), r.view(shape).to(x.dtype)
    zero = torch.zeros_like(r)
    w, w_dot, b_dot = (zero if t is None else t.view(shape) for t in (weight, w_dot, b_dot))
    if x_dot is None:
        return fwAD.make_dual(y, (x - mean) * (w_dot * r) + b_dot)
    centred = x - mean
    covariance = (centred * x_dot).mean(others, keepdim=True)
    constant = b_dot - w * r * x_dot.mean(others, keepdim=True)
    y_dot = torch.addcmul(constant, x_dot, w * r)
    return fwAD.make_dual(y, y_dot.addcmul_(centred, w_dot * r - w * r**3 * covariance))


def tangent(
    features: Features, theta: Params, direction: Params, products: Products | None = None
) -> tuple[Tensor, Tensor]:
    """z and z_dot = J_z(theta) direction by one forward-mode pass; with products of a pass at theta only the tangents are new."""
    with torch.no_grad(), fwAD.dual_level(), Tangents(products):
        dual = features({name: fwAD.make_dual(p.detach(), direction[name]) for name, p in theta.items()})
        z, z_dot = fwAD.unpack_dual(dual)
        return z, torch.zeros_like(z) if z_dot is None else z_dot


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
    regular: Regular | None = None,
) -> LookAhead:
    """The meta-gradient by one tangent pass (see the module's text), with what a training step wants to log.

    outer_loss: L' where it differs from loss (eq. 6 adds alpha R_sigma). regular: what the regular step has at hand.
    Cost in encoder passes, forward = 1 and backward = 2: 3 (0 if shared) + 3 + 3 (2 with its products).
    """
    own = _leaves(omega)
    if regular is None:
        leaves = _leaves(theta)
        regular = Regular(gradients(loss(features(leaves), own), leaves))
    ahead = _leaves(step(theta, regular.gradient, lr))
    z_ahead = features(ahead)
    value = (outer_loss or loss)(z_ahead, own)
    # One backward gives both the direct part (omega) and the direction of the mixed part (theta').
    both = torch.autograd.grad(value, [*own.values(), *ahead.values()], allow_unused=True, materialize_grads=True)
    total = dict(zip(omega, both[: len(omega)], strict=True))
    direction = dict(zip(ahead, both[len(omega) :], strict=True))
    z, z_dot = tangent(features, theta, direction, regular.products)
    pull, through = regular.pull, omega
    if pull is None:
        z, through = z.detach().requires_grad_(), own
        (pull,) = torch.autograd.grad(loss(z, own), z, create_graph=True)
    if pull.requires_grad:
        for name, mixed in gradients((z_dot * pull).sum(), through).items():
            total[name].sub_(
                mixed.mul_(lr)
            )  # in place: omega may be larger than theta, and fresh memory costs more than the sum
    return LookAhead(total, z.detach(), z_ahead.detach(), value.detach())


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
