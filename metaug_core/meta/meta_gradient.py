# pyright: reportPrivateImportUsage=false
"""The look-ahead and the meta-gradient (eq. 2, 3, 6): exact, and without double backward through the encoder.

theta' = theta - P grad_theta L(theta, omega) (less what an optimiser adds), and omega descends on L'(theta'(omega), omega). P is
a rate or a diagonal (`Descent`). omega enters L only through the features' loss: z(theta) does not depend on it. So with
v = grad_theta' L',

    dL'/d omega = partial L'/partial omega - d/d omega <z_dot, dL/dz (z, omega)>,   z_dot = J_z(theta) P v,

where z_dot is one forward-mode pass. The first term is called the direct part, the second the mixed part. The second derivative
then touches the loss and the MAG alone, never a convolution. It is a reverse-over-forward mixed partial cut at the feature layer
(related: Pearlmutter's R-operator, MixFlow-MG, GradCache).
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from metaug_core.meta.forward_ad import Params, Recorder, tangent
from metaug_core.optimisers import LARS, Tensors, trust_ratios
from metaug_core.runtime import distributed

Features = Callable[[Params], Tensor]  # theta -> z, any shape
Loss = Callable[[Tensor, Params], Tensor]  # (z, omega) -> scalar


# --- the step from theta to theta'


class Descent(NamedTuple):
    """theta -> theta - shift - scale * gradient, elementwise. scale: one number, or one per weight; shift: None for 0.

    scale and shift are constants of the look-ahead, so theta' depends on omega through the gradient alone, by a diagonal
    preconditioner, and the meta-gradient needs no other derivative than for a plain rate.
    """

    scale: float | Tensor | Params
    shift: Params | None = None

    def apply(self, theta: Params, gradient: Params) -> Params:
        """theta', as a function of the gradient; theta is a constant."""
        weights, gradients = [p.detach() for p in theta.values()], [gradient[name] for name in theta]
        ahead = torch._foreach_sub(weights, self.scaled(gradients, theta))
        if self.shift is not None:
            ahead = torch._foreach_sub(ahead, [self.shift[name] for name in theta])
        return dict(zip(theta, ahead, strict=True))

    def scaled(self, values: Tensors, names: Iterable[str]) -> Tensors:
        """scale times the values of these weights."""
        scale = self.scale
        return torch._foreach_mul(values, [scale[name] for name in names] if isinstance(scale, dict) else scale)


Rule = Callable[[Params], Descent]  # from the gradient's values to the step
Update = float | Tensor | Rule  # a rate, or a rule


def as_rule(update: Update) -> Rule:
    """A rate as the rule of eq. 3, theta - rate * gradient. A rule stays what it is."""
    return update if callable(update) else lambda _: Descent(update)


def step(theta: Params, gradient: Params, update: Update) -> Params:
    """theta' (eq. 3), without history. update: a rate, or a rule such as `next_step`."""
    return as_rule(update)(gradient).apply(theta, gradient)


def next_step(optimiser: torch.optim.Optimizer, theta: Params, lr: float | Tensor | None = None) -> Rule:
    """The rule of the step that optimiser (Adam, SGD or LARS, of the parameters in theta) takes next, at rate lr; None: at its own.

    Adam: both moments are as they will be after this gradient, but the second and its root count as constants, as if the gradient
    moved only the first. SGD: with its momentum. LARS: its ratios count as constants. Weight decay is the optimiser's own (L2). The
    optimiser is read, not changed.
    """
    rules = {torch.optim.Adam: _next_adam, torch.optim.SGD: _next_sgd, LARS: _next_lars}
    compute = rules[type(optimiser)]
    names = {id(p): name for name, p in theta.items()}

    @torch.no_grad()
    def rule(gradient: Params) -> Descent:
        steps = []
        for group in optimiser.param_groups:
            own = [names[id(p)] for p in group["params"]]
            parameters, gradients = [theta[name].detach() for name in own], [gradient[name].detach() for name in own]
            states = [optimiser.state.get(p, {}) for p in group["params"]]
            decay = torch._foreach_mul(parameters, group["weight_decay"]) if group["weight_decay"] else None
            rate = group["lr"] if lr is None else lr
            steps.append((own, *compute(group, states, parameters, gradients, decay, rate)))
        return _join(steps, theta)

    return rule


def _join(steps: list[tuple[list[str], Any, Tensors | None]], theta: Params) -> Descent:
    """One step of the names, scale and shift of each group."""
    if len(steps) == 1 and isinstance(steps[0][1], float | Tensor):
        scale = steps[0][1]
    else:
        scale = {name: value for names, values, _ in steps for name, value in _by_name(names, values)}
    if all(shift is None for _, _, shift in steps):
        return Descent(scale)
    shifts = {
        name: value for names, _, values in steps if values is not None for name, value in _by_name(names, values)
    }
    return Descent(scale, {name: shifts[name] if name in shifts else torch.zeros_like(p) for name, p in theta.items()})


def _by_name(names: list[str], values: float | Tensor | Tensors) -> Iterator[tuple[str, Any]]:
    """Each name with its value, or with the one of all."""
    each: Iterable = repeat(values, len(names)) if isinstance(values, int | float | Tensor) else values
    return zip(names, each, strict=True)


def _next_sgd(group: dict, states: list[dict], parameters: list[Tensor], gradients: list[Tensor], decay: Tensors | None,
              lr: float | Tensor):  # fmt: skip
    """lr * (momentum * buffer + decay + gradient)."""
    del parameters, gradients
    shift = decay
    if group["momentum"] and states[0].get("momentum_buffer") is not None:
        moments = torch._foreach_mul([s["momentum_buffer"] for s in states], group["momentum"])
        shift = moments if decay is None else torch._foreach_add(moments, decay)
    return lr, None if shift is None else torch._foreach_mul(shift, lr)


def _next_lars(group: dict, states: list[dict], parameters: list[Tensor], gradients: list[Tensor], decay: Tensors | None,
               lr: float | Tensor):  # fmt: skip
    """lr * (momentum * buffer + r * (decay + gradient))."""
    whole = gradients if decay is None else list(torch._foreach_add(gradients, decay))
    scale = [lr * r for r in trust_ratios(group, parameters, whole)]
    shift = None if decay is None else [d * r for d, r in zip(decay, scale, strict=True)]
    if states[0].get("momentum_buffer") is not None:
        moments = torch._foreach_mul(torch._foreach_mul([s["momentum_buffer"] for s in states], group["momentum"]), lr)
        shift = moments if shift is None else torch._foreach_add(moments, shift)
    return scale, shift


def _next_adam(group: dict, states: list[dict], parameters: list[Tensor], gradients: list[Tensor], decay: Tensors | None,
               lr: float | Tensor):  # fmt: skip
    """lr / (1 - b1^t) * first / (sqrt(second / (1 - b2^t)) + eps), where first = b1 * previous + (1 - b1) * (decay + gradient)."""
    del parameters
    b1, b2 = group["betas"]
    whole = gradients if decay is None else torch._foreach_add(gradients, decay)
    step = states[0]["step"].double() + 1 if states[0] else torch.ones((), dtype=torch.float64)
    second = torch._foreach_mul(torch._foreach_mul(whole, whole), 1 - b2)
    if states[0]:
        torch._foreach_add_(second, torch._foreach_mul([s["exp_avg_sq"] for s in states], b2))
    dtype, device = gradients[0].dtype, gradients[0].device

    def number(value: float | Tensor) -> Tensor:
        return torch.as_tensor(value).to(device, dtype, non_blocking=True)

    torch._foreach_div_(second, number(1 - b2**step))
    torch._foreach_sqrt_(second)
    torch._foreach_add_(second, group["eps"])
    torch._foreach_reciprocal_(second)
    torch._foreach_mul_(second, number(lr / (1 - b1**step)))  # the rate of each weight for the corrected first moment
    scale = torch._foreach_mul(second, 1 - b1)
    shift = torch._foreach_mul(scale, decay) if decay is not None else None
    if states[0]:
        moments = torch._foreach_mul(torch._foreach_mul([s["exp_avg"] for s in states], b1), second)
        shift = moments if shift is None else torch._foreach_add(shift, moments)
    return scale, shift


# --- gradients, cut at the features


class LookAhead(NamedTuple):
    """The result of one look-ahead: omega's gradient, and by-products (detached)."""

    gradient: Params  # omega's, of outer_loss(features(theta'), omega)
    features: Tensor  # z at theta
    features_ahead: Tensor  # z at theta'
    loss_ahead: Tensor  # outer_loss at theta'
    mixed_share: Tensor | None = None  # |mixed| / (|direct| + |mixed|), of the two parts; None: not measured


class Regular(NamedTuple):
    """What the regular step of the same minibatch, context and theta has computed; sharing any of it is exact."""

    gradient: Params  # grad_theta loss(features(theta), omega): saves three encoder passes
    feature_gradient: Tensor | None = None  # dL/dz with its graph to omega: saves loss and MAG one forward and backward
    recorded: Recorder | None = None  # the forward pass: saves the tangent pass its own
    of_omega: Params | None = None  # grad_omega of the same loss, for what is trained by it and by no look-ahead


def gradients(value: Tensor, wrt: Params, **options) -> Params:
    """d value / d wrt as a dict; zeros where wrt does not enter. options: of torch.autograd.grad."""
    values = torch.autograd.grad(value, list(wrt.values()), allow_unused=True, materialize_grads=True, **options)
    return dict(zip(wrt, values, strict=True))


def detach_leaf(z: Tensor) -> Tensor:
    """Features z (V, b, d) as a leaf, gathered over the whole minibatch: here the loss's graph is cut from the encoders'."""
    return distributed.gather(z.detach(), 1).requires_grad_()


def vjp(z: Tensor, theta: Params, feature_gradient: Tensor, **options) -> Params:
    """grad_theta of the loss whose dL/dz over the whole minibatch is feature_gradient: one backward through the encoders."""
    return distributed.sum_gradients(
        gradients(z, theta, grad_outputs=distributed.own(feature_gradient.detach(), 1), **options)
    )


def _leaves(params: Params) -> Params:
    return {name: p.detach().requires_grad_() for name, p in params.items()}


def _mixed_share(direct: Params, mixed: Params) -> Tensor:
    """|mixed| / (|direct| + |mixed|)."""
    direct_norm, mixed_norm = get_total_norm([*direct.values()]), get_total_norm([*mixed.values()])
    return mixed_norm / (direct_norm + mixed_norm)


def _compute_regular(features: Features, loss: Loss, theta: Params, omega: Params) -> Regular:
    """What a regular step would have computed; its dL/dz depends on omega."""
    leaves = _leaves(theta)
    z = features(leaves)
    leaf = detach_leaf(z)
    (feature_gradient,) = torch.autograd.grad(loss(leaf, omega), leaf, create_graph=True)
    return Regular(vjp(z, leaves, feature_gradient), feature_gradient)


def look_ahead(features: Features, loss: Loss, theta: Params, omega: Params, update: Update, outer_loss: Loss | None = None,
               regular: Regular | None = None, *, outer_features: Features | None = None, mixed: bool = True,
               measure: bool = False, jvp: Callable = tangent) -> LookAhead:  # fmt: skip
    """The meta-gradient by one tangent pass (see the module's text), with what a training step wants to log.

    update: the rate l of eq. 3, or the rule of the step (`next_step`). outer_loss: L' where it differs from loss (eq. 6 adds
    alpha R_sigma). regular: what the regular step has computed. outer_features: of the minibatch of L', where it is not the inner
    one. mixed False: the direct part alone, at theta'. measure: `mixed_share` as well. jvp: computes the tangent pass, `tangent`
    or, for a network that has no forward mode, `reverse_tangent`.
    Cost in encoder passes, forward = 1 and backward = 2: 3 (0 if shared) + 3 + 3 (2 if recorded; 0 if not mixed).
    """
    own = _leaves(omega)
    source = omega  # the weights that regular's dL/dz depends on
    if regular is None:
        regular, source = _compute_regular(features, loss, theta, own), own
    descent = as_rule(update)(regular.gradient)
    ahead = _leaves(descent.apply(theta, regular.gradient))
    z = (outer_features or features)(ahead)
    z_ahead = detach_leaf(z)
    value = (outer_loss or loss)(z_ahead, own)
    # One backward through the loss gives the direct part and, by the encoders' backward, the direction of the mixed part.
    *parts, feature_gradient = torch.autograd.grad(
        value, [*own.values(), z_ahead], allow_unused=True, materialize_grads=True
    )
    direct = dict(zip(own, parts, strict=True))
    if not mixed:
        with torch.no_grad():
            z = distributed.gather(features(theta), 1)
        return LookAhead(direct, z, z_ahead.detach(), value.detach())
    direction = vjp(z, ahead, feature_gradient)
    z, second = _mixed_part(features, loss, theta, own, source, descent, direction, regular, jvp)
    share = _mixed_share(direct, second) if measure else None
    gradient = dict(zip(omega, torch._foreach_add([*direct.values()], [*second.values()]), strict=True))
    return LookAhead(gradient, z, z_ahead.detach(), value.detach(), share)


def _mixed_part(features: Features, loss: Loss, theta: Params, omega: Params, source: Params, descent: Descent,
                direction: Params, regular: Regular, jvp: Callable) -> tuple[Tensor, Params]:  # fmt: skip
    """z at theta, and - d/d omega <z_dot, dL/dz (z, omega)> with z_dot = J_z(theta) P direction."""
    factor = -1.0
    if isinstance(descent.scale, dict):
        direction = dict(zip(direction, descent.scaled([*direction.values()], direction), strict=True))
    else:  # a rate is multiplied at the features, the smallest place
        factor = -descent.scale
    z, z_dot = (distributed.gather(t, 1) for t in jvp(features, theta, direction, regular.recorded))
    feature_gradient = regular.feature_gradient
    if feature_gradient is None:
        z, source = z.detach().requires_grad_(), omega
        (feature_gradient,) = torch.autograd.grad(loss(z, omega), z, create_graph=True)
    if not feature_gradient.requires_grad:  # omega does not enter the loss
        return z.detach(), {name: torch.zeros_like(p) for name, p in omega.items()}
    return z.detach(), gradients((factor * z_dot * feature_gradient).sum(), source)


def meta_gradient(features: Features, loss: Loss, theta: Params, omega: Params, update: Update,
                  outer_loss: Loss | None = None, regular: Regular | None = None, **options: Any) -> Params:  # fmt: skip
    """omega's gradient of outer_loss(features(theta'), omega), theta' = theta - P grad_theta loss(features(theta), omega).

    features(theta) -> z (any shape) must not depend on omega nor write buffers (`frozen_statistics`); loss(z, omega) -> scalar
    must be twice differentiable. theta and omega are dicts of tensors. Exact: equal to `meta_gradient_reference` up to rounding.
    update, outer_loss (default: loss), regular and options as in `look_ahead`.
    """
    return look_ahead(features, loss, theta, omega, update, outer_loss, regular, **options).gradient


def look_ahead_reference(features: Features, loss: Loss, theta: Params, omega: Params, update: Update,
                         outer_loss: Loss | None = None, regular: Regular | None = None, *,
                         outer_features: Features | None = None, mixed: bool = True,
                         measure: bool = False) -> LookAhead:  # fmt: skip
    """`look_ahead` by double backward, exactly as eq. 2-3 are written, with a retained graph of theta. Slow and plain.

    regular is accepted for the same signature and not used: here the gradient must carry its graph to omega.
    """
    del regular
    theta, omega = _leaves(theta), _leaves(omega)
    z = features(theta)
    inner = gradients(loss(z, omega), theta, create_graph=True)
    ahead = as_rule(update)({name: g.detach() for name, g in inner.items()}).apply(theta, inner)
    constant = _leaves(ahead)  # theta' as a constant: omega's gradient of L' is then the direct part
    outer = outer_features or features
    z_ahead = outer(ahead if mixed else constant)
    value = (outer_loss or loss)(z_ahead, omega)
    gradient = gradients(value, omega, retain_graph=measure)
    share = None
    if measure:
        direct = gradients((outer_loss or loss)(outer(constant), omega), omega)
        share = _mixed_share(direct, {name: gradient[name] - direct[name] for name in omega})
    return LookAhead(gradient, z.detach(), z_ahead.detach(), value.detach(), share)


def meta_gradient_reference(features: Features, loss: Loss, theta: Params, omega: Params, update: Update,
                            outer_loss: Loss | None = None, regular: Regular | None = None, **options: Any) -> Params:  # fmt: skip
    """`meta_gradient` by double backward (see `look_ahead_reference`); the gradient is taken to omega only."""
    return look_ahead_reference(features, loss, theta, omega, update, outer_loss, regular, **options).gradient
