"""The look-ahead and the meta-gradient (eq. 2, 3, 6): exact, and without double backward through the encoder.

theta' = theta - P grad_theta L(theta, omega) (less what an optimiser adds), and omega descends on L'(theta'(omega), omega). P is
a rate or a diagonal (`descent`). omega enters L only through the features' loss: z(theta) does not depend on it. So with
v = grad_theta' L',

    dL'/d omega = partial L'/partial omega - d/d omega <z_dot, dL/dz (z, omega)>,   z_dot = J_z(theta) P v,

where z_dot is one forward-mode pass. The second derivative then touches the loss and the MAG alone, never a convolution. It is a
reverse-over-forward mixed partial cut at the feature layer (related: Pearlmutter's R-operator, MixFlow-MG, GradCache).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from metaug_core.meta.descent import Rule, as_rule
from metaug_core.meta.forward_ad import Params, Recorded, tangent
from metaug_core.meta.products import Products, put_off
from metaug_core.runtime import distributed

Features = Callable[[Params], Tensor]  # theta -> z, any shape
Loss = Callable[[Tensor, Params], Tensor]  # (z, omega) -> scalar


class LookAhead(NamedTuple):
    """What one MAG step computed: its gradient, and what came by the way (detached)."""

    gradient: Params  # omega's, of outer_loss(features(theta'), omega)
    features: Tensor  # z at theta
    features_ahead: Tensor  # z at theta'
    loss_ahead: Tensor  # outer_loss at theta'
    mixed_share: Tensor | None = (
        None  # |mixed| / (|direct| + |mixed|), the two parts of the gradient; None: not measured
    )


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
    return distributed.gather(z.detach(), 1).requires_grad_()


def pulled_back(z: Tensor, theta: Params, pull: Tensor, **options) -> Params:
    """grad_theta of the loss whose dL/dz, over the whole minibatch, is pull: from the cut back through the encoders."""
    return distributed.sum_gradients(gradients(z, theta, grad_outputs=distributed.own(pull.detach(), 1), **options))


def _leaves(params: Params) -> Params:
    return {name: p.detach().requires_grad_() for name, p in params.items()}


def _sum(like: Tensor, *parts: Tensor | None) -> Tensor:
    """The sum of the parts that there are, in the memory of the first: omega may be larger than theta."""
    first, *others = [part for part in parts if part is not None] or [torch.zeros_like(like)]
    for part in others:
        first.add_(part)
    return first


def _formed(omega: Params, parts: Sequence[Tensor | None], products: Products) -> list[Tensor]:
    """Each part with the products of its weight that were put off; these stay, and so do the parts."""
    parts = [None if part is None else part.clone() for part in parts]
    return [_sum(p, part, products.gradient(p, keep=True)) for p, part in zip(omega.values(), parts, strict=True)]


def _mixed_share(direct: list[Tensor], whole: list[Tensor]) -> Tensor:
    """|mixed| / (|direct| + |mixed|) of the direct part and the sum of both."""
    part, rest = get_total_norm(direct), get_total_norm([w - d for w, d in zip(whole, direct, strict=True)])
    return rest / (part + rest)


def step(theta: Params, gradient: Params, update: float | Tensor | Rule) -> Params:
    """theta' (eq. 3), without history. update: a rate, or the rule of a step (`descent`)."""
    return as_rule(update)(gradient).apply(theta, gradient)


def look_ahead(
    features: Features,
    loss: Loss,
    theta: Params,
    omega: Params,
    update: float | Tensor | Rule,
    outer_loss: Loss | None = None,
    regular: Regular | None = None,
    *,
    outer_features: Features | None = None,
    mixed: bool = True,
    measure: bool = False,
) -> LookAhead:
    """The meta-gradient by one tangent pass (see the module's text), with what a training step wants to log.

    update: the rate l of eq. 3, or the rule of the step (`descent.next_step`). outer_loss: L' where it differs from loss (eq. 6
    adds alpha R_sigma). regular: what the regular step has at hand. outer_features: of the minibatch that L' is of, where that is
    not the inner one. mixed False: the direct part alone, at theta'. measure: `mixed_share` as well.
    Cost in encoder passes, forward = 1 and backward = 2: 3 (0 if shared) + 3 + 3 (2 if recorded; 0 if not mixed).
    """
    own = _leaves(omega)
    through = omega
    if regular is None:
        leaves, through = _leaves(theta), own
        z = features(leaves)
        leaf = cut(z)
        (pull,) = torch.autograd.grad(loss(leaf, own), leaf, create_graph=True)
        regular = Regular(pulled_back(z, leaves, pull), pull)
    descent = as_rule(update)(regular.gradient)
    ahead = _leaves(descent.apply(theta, regular.gradient))
    z = (outer_features or features)(ahead)
    z_ahead = cut(z)
    value = (outer_loss or loss)(z_ahead, own)
    with put_off() as products:
        # One backward through the loss gives the direct part (omega) and, through the encoders, the direction of the mixed part.
        *direct, pull = torch.autograd.grad(value, [*own.values(), z_ahead], allow_unused=True)
        if not mixed:
            gradient = dict(zip(omega, _formed(omega, direct, products), strict=True))
            with torch.no_grad():
                z = distributed.gather(features(theta), 1)
            return LookAhead(gradient, z, z_ahead.detach(), value.detach())
        # Of copies, so that measuring does not change how the gradient itself is summed.
        measured = _formed(omega, direct, products) if measure else None
        direction = pulled_back(z, ahead, torch.zeros_like(z_ahead) if pull is None else pull)
        factor = -1.0
        if isinstance(descent.scale, dict):
            direction = {name: descent.scale[name] * v for name, v in direction.items()}
        else:  # a rate goes in at the features, the smallest place
            factor = -descent.scale
        z, z_dot = (distributed.gather(t, 1) for t in tangent(features, theta, direction, regular.recorded))
        pull = regular.pull
        if pull is None:
            z, through = z.detach().requires_grad_(), own
            (pull,) = torch.autograd.grad(loss(z, own), z, create_graph=True)
        parts = [None] * len(omega)
        if pull.requires_grad:
            parts = torch.autograd.grad((factor * z_dot * pull).sum(), [*through.values()], allow_unused=True)
    gradient = {
        name: _sum(p, *both, products.gradient(p))
        for (name, p), *both in zip(omega.items(), direct, parts, strict=True)
    }
    share = _mixed_share(measured, [*gradient.values()]) if measured is not None else None
    return LookAhead(gradient, z.detach(), z_ahead.detach(), value.detach(), share)


def meta_gradient(
    features: Features,
    loss: Loss,
    theta: Params,
    omega: Params,
    update: float | Tensor | Rule,
    outer_loss: Loss | None = None,
    regular: Regular | None = None,
    **options: Any,
) -> Params:
    """omega's gradient of outer_loss(features(theta'), omega), theta' = theta - P grad_theta loss(features(theta), omega).

    features(theta) -> z (any shape) must not depend on omega nor write buffers (`frozen_statistics`); loss(z, omega) -> scalar
    must be twice differentiable. theta and omega are dicts of tensors. Exact: equal to `meta_gradient_reference` up to rounding.
    update, outer_loss (default loss), regular and options as in `look_ahead`.
    """
    return look_ahead(features, loss, theta, omega, update, outer_loss, regular, **options).gradient


def look_ahead_reference(
    features: Features,
    loss: Loss,
    theta: Params,
    omega: Params,
    update: float | Tensor | Rule,
    outer_loss: Loss | None = None,
    regular: Regular | None = None,
    *,
    outer_features: Features | None = None,
    mixed: bool = True,
    measure: bool = False,
) -> LookAhead:
    """`look_ahead` by double backward, to the letter of eq. 2-3 (a retained graph of theta). Slow and plain: the yardstick.

    regular is accepted for the one signature and not used: here the gradient must carry its graph to omega.
    """
    del regular
    theta, omega = _leaves(theta), _leaves(omega)
    z = features(theta)
    inner = gradients(loss(z, omega), theta, create_graph=True)
    ahead = as_rule(update)({name: g.detach() for name, g in inner.items()}).apply(theta, inner)
    apart = _leaves(ahead)  # theta' as a constant: what L' says of omega there is the direct part
    outer = outer_features or features
    z_ahead = outer(ahead if mixed else apart)
    value = (outer_loss or loss)(z_ahead, omega)
    share, gradient = None, gradients(value, omega, retain_graph=measure)
    if measure:
        direct = gradients((outer_loss or loss)(outer(apart), omega), omega)
        share = _mixed_share([*direct.values()], [*gradient.values()])
    return LookAhead(gradient, z.detach(), z_ahead.detach(), value.detach(), share)


def meta_gradient_reference(
    features: Features,
    loss: Loss,
    theta: Params,
    omega: Params,
    update: float | Tensor | Rule,
    outer_loss: Loss | None = None,
    regular: Regular | None = None,
    **options: Any,
) -> Params:
    """`meta_gradient` by double backward (see `look_ahead_reference`); the gradient is taken to omega only."""
    return look_ahead_reference(features, loss, theta, omega, update, outer_loss, regular, **options).gradient
