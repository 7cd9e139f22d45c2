"""Sums over pairs in eq. 10 with their derivatives written out, for memory: K negatives are the largest tensors of a loss.

The plain formula is torch.logsumexp(beta * x**2, -1). Autograd would hold seven tensors of the size of x for it; this holds one.
"""

from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def log_sum_exp_square(x: Tensor, beta: float) -> Tensor:
    """log sum_k exp(beta x_k^2) of x (..., N), (...). beta > 0. Twice differentiable."""
    return cast(Tensor, _LogSumExpSquare.apply(x, beta))


class _LogSumExpSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, beta: float) -> Tensor:
        shift = torch.linalg.vector_norm(x, torch.inf, -1, keepdim=True).square_().mul_(-beta)  # - the largest exponent
        result = torch.addcmul(shift, x, x, value=beta).exp_().sum(-1).log_().sub_(shift.squeeze(-1))
        ctx.beta = beta
        ctx.save_for_backward(x, result)
        return result

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        x, result = ctx.saved_tensors
        return _SquareGradient.apply(x, *gradients, result, ctx.beta), None


class _SquareGradient(torch.autograd.Function):
    """g (...) -> 2 beta g p x (..., N), p = exp(beta x^2 - result) the softmax: the gradient of `_LogSumExpSquare`."""

    @staticmethod
    def forward(ctx, x: Tensor, g: Tensor, result: Tensor, beta: float) -> Tensor:
        ctx.beta = beta
        ctx.save_for_backward(x, g, result)
        return _softmax(x, result, beta).mul_(x).mul_((2 * beta * g).unsqueeze(-1))

    @staticmethod
    @once_differentiable
    def backward(ctx, along: Tensor):
        (x, g, result), beta = ctx.saved_tensors, ctx.beta
        p = _softmax(x, result, beta)
        weighted = along * p
        total = (weighted.unsqueeze(-2) @ x.unsqueeze(-1)).squeeze(-1)  # a product holds no table of its terms
        # d (p x) = p dx + 2 beta x (p x dx - p sum p x dx): it already has how result moves with x.
        p.mul_(-total).addcmul_(weighted, x)
        back = weighted.addcmul_(p, x, value=2 * beta)
        return back.mul_((2 * beta * g).unsqueeze(-1)), total.squeeze(-1).mul(2 * beta), None, None


def _softmax(x: Tensor, result: Tensor, beta: float) -> Tensor:
    return torch.addcmul(-result.unsqueeze(-1), x, x, value=beta).exp_()
