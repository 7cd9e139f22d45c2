"""Sums over the K negatives with their derivatives written out, for memory: the negatives are the largest tensors of a loss.

Autograd would hold seven tensors of their size for eq. 10 and two for R_sigma; these functions hold one. The plain formulas stand
in the docstrings, and the tests compare values and derivatives with them.
"""

from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def log_sum_exp_square(x: Tensor, beta: float) -> Tensor:
    """torch.logsumexp(beta * x**2, -1) of x (A, N), (A,): the negatives' part of eq. 10. Twice differentiable."""
    return cast(Tensor, _LogSumExpSquare.apply(x, beta))


def mean_excess(d: Tensor, bound: Tensor, sign: int) -> Tensor:
    """(sign * (d - bound)).clamp(min=0).mean(): one side of R_sigma (eq. 5). bound is a constant. Once differentiable."""
    return cast(Tensor, _MeanExcess.apply(d, bound, sign))


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


class _MeanExcess(torch.autograd.Function):
    @staticmethod
    def forward(ctx, d: Tensor, bound: Tensor, sign: int) -> Tensor:
        ctx.save_for_backward(d, bound)
        ctx.sign = sign
        return (d - bound).mul_(sign).clamp_(min=0).mean()

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        d, bound = ctx.saved_tensors
        beyond = (d > bound) if ctx.sign > 0 else (d < bound)
        return torch.where(beyond, gradients[0] * (ctx.sign / d.numel()), 0), None, None
