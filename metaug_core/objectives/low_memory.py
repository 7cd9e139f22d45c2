"""The negatives' part of eq. 10 with its derivatives written out, for memory: K negatives are the largest tensors of a loss.

The plain formula is torch.logsumexp(beta * x**2, -1). Autograd would hold seven tensors of the size of x for it; this holds one.
"""

from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def log_sum_exp_square(x: Tensor, beta: float) -> Tensor:
    """log sum_k exp(beta x_k^2) of x (A, N), (A,). Twice differentiable."""
    return cast(Tensor, _LogSumExpSquare.apply(x, beta))


class _LogSumExpSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, beta: float) -> Tensor:
        exponent = x.square().mul_(beta)
        top = exponent.amax(-1, keepdim=True)
        result = exponent.sub_(top).exp_().sum(-1).log_().add_(top.squeeze(-1))
        ctx.beta = beta
        ctx.save_for_backward(x, result)
        return result

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        x, result = ctx.saved_tensors
        return _SquareGradient.apply(x, *gradients, result, ctx.beta), None


class _SquareGradient(torch.autograd.Function):
    """g (A,) -> 2 beta g p x (A, N), p = exp(beta x^2 - result) the softmax: the gradient of `_LogSumExpSquare`."""

    @staticmethod
    def forward(ctx, x: Tensor, g: Tensor, result: Tensor, beta: float) -> Tensor:
        ctx.beta = beta
        ctx.save_for_backward(x, g, result)
        return _softmax(x, result, beta).mul_(x).mul_(2 * beta * g[:, None])

    @staticmethod
    @once_differentiable
    def backward(ctx, along: Tensor):
        (x, g, result), beta = ctx.saved_tensors, ctx.beta
        p = _softmax(x, result, beta)
        weighted = along * p
        total = (weighted * x).sum(-1, keepdim=True)
        back = weighted.addcmul_(weighted, x.square(), value=2 * beta).sub_(p.mul_(x).mul_(2 * beta * total))
        # `back` already contains how result moves with x, so result gets no gradient of its own.
        return back.mul_(2 * beta * g[:, None]), 2 * beta * total.squeeze(-1), None, None


def _softmax(x: Tensor, result: Tensor, beta: float) -> Tensor:
    return x.square().mul_(beta).sub_(result[:, None]).exp_()
