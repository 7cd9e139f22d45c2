# pyright: reportPrivateImportUsage=false
"""A gradient step as theta - shift - scale * gradient, elementwise: by a plain rate (eq. 3), or as an optimiser will take it.

scale and shift are constants of the look-ahead: no gradient flows through them. So theta' depends on omega through the gradient
alone, by a diagonal preconditioner, and the meta-gradient needs no other derivative than for a plain rate.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from metaug_core.meta.forward_ad import Params


class Descent(NamedTuple):
    """theta -> theta - shift - scale * gradient. scale: one number, or one per weight; shift: None for 0."""

    scale: float | Tensor | Params
    shift: Params | None = None

    def apply(self, theta: Params, gradient: Params) -> Params:
        """theta', as a function of the gradient; theta and what the optimiser remembers are constants."""
        scale, shift = self.scale, self.shift
        ahead = {
            name: p.detach() - (scale[name] if isinstance(scale, dict) else scale) * gradient[name]
            for name, p in theta.items()
        }
        return ahead if shift is None else {name: p - shift[name] for name, p in ahead.items()}


Tensors = list[Tensor] | tuple[Tensor, ...]  # as torch's list operations take and give them
Rule = Callable[[Params], Descent]  # from the gradient's values to the step


def as_rule(step: float | Tensor | Rule) -> Rule:
    """A rate as a rule: theta - rate * gradient (eq. 3). A rule stays what it is."""
    return step if callable(step) else lambda _: Descent(step)


def next_step(optimiser: torch.optim.Optimizer, theta: Params, lr: float | Tensor) -> Rule:
    """The rule of the step that optimiser (torch's Adam or SGD, made of the parameters in theta) takes next, at rate lr.

    Adam: both moments after this gradient are as they will be, but the second and its root count as constants (as if the gradient
    moved only the first). SGD: with its momentum. Weight decay is the optimiser's own (L2). The optimiser is read, not changed.
    """
    (group,) = optimiser.param_groups
    compute = _next_adam if isinstance(optimiser, torch.optim.Adam) else _next_sgd
    names, parameters = list(theta), [p.detach() for p in theta.values()]
    states = [optimiser.state.get(p, {}) for p in group["params"]]

    @torch.no_grad()
    def rule(gradient: Params) -> Descent:
        gradients = [gradient[name].detach() for name in names]
        decay = torch._foreach_mul(parameters, group["weight_decay"]) if group["weight_decay"] else None
        scale, shift = compute(group, states, gradients, decay, lr)
        scale = scale if isinstance(scale, float | Tensor) else dict(zip(names, scale, strict=True))
        return Descent(scale, dict(zip(names, shift, strict=True)) if shift is not None else None)

    return rule


def _next_sgd(group: dict, states: list[dict], gradients: list[Tensor], decay: Tensors | None, lr: float | Tensor):
    """lr * (momentum * buffer + decay + gradient)."""
    del gradients
    shift = decay
    if group["momentum"] and states[0].get("momentum_buffer") is not None:
        kept = torch._foreach_mul([s["momentum_buffer"] for s in states], group["momentum"])
        shift = kept if decay is None else torch._foreach_add(kept, decay)
    return lr, None if shift is None else torch._foreach_mul(shift, lr)


def _next_adam(group: dict, states: list[dict], gradients: list[Tensor], decay: Tensors | None, lr: float | Tensor):
    """lr / (1 - b1^t) * first / (sqrt(second / (1 - b2^t)) + eps), where first = b1 * kept + (1 - b1) * (decay + gradient)."""
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
        kept = torch._foreach_mul(torch._foreach_mul([s["exp_avg"] for s in states], b1), second)
        shift = kept if shift is None else torch._foreach_add(shift, kept)
    return scale, shift
