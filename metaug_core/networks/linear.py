"""x W + b of a stack of matrices, with derivatives written out, because the MAG's weights are the largest tensors of a step.

The plain formula is torch.baddbmm(bias, x, weight); values and derivatives are the same. What differs is cost: only the gradients
that are requested are computed (one of x computes none of W, and the reverse), and the mixed derivative gives W's gradient in W's
own layout: to add a transposed matrix of that size costs three times its product.
"""

from typing import cast

import torch
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W + b of x (V, B, in), weight (V, in, out) and bias (V, 1, out): (V, B, out). Twice differentiable."""
    return cast(Tensor, _Map.apply(x, (weight, bias))) + cast(Tensor, _Parameters.apply(weight, bias, (x,)))


class _Map(torch.autograd.Function):
    """x W + b, differentiable in x alone; `_Parameters` is the other half.

    They are apart because a Function is not told which gradients are requested. The other operands come in a tuple, where
    autograd does not see them.
    """

    @staticmethod
    def forward(ctx, x: Tensor, parameters: tuple[Tensor, Tensor]) -> Tensor:
        ctx.weight, bias = parameters
        return torch.baddbmm(bias, x, ctx.weight)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        return _Back.apply(*gradients, ctx.weight), None


class _Parameters(torch.autograd.Function):
    """0 in the shape of x W + b, with its gradients of W and b."""

    @staticmethod
    def forward(ctx, weight: Tensor, bias: Tensor, inputs: tuple[Tensor]) -> Tensor:
        (ctx.x,) = inputs
        return weight.new_zeros(1, 1, 1).expand(*ctx.x.shape[:2], weight.shape[2])

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (g,) = gradients
        return ctx.x.transpose(1, 2) @ g, g.sum(1, keepdim=True), None


class _Back(torch.autograd.Function):
    """g W^T of g (V, B, out) and weight (V, in, out)."""

    @staticmethod
    def forward(ctx, g: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(g, weight)
        return g @ weight.transpose(1, 2)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        g, weight = ctx.saved_tensors
        (along,) = gradients
        return along @ weight, along.transpose(1, 2) @ g
