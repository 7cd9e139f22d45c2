"""Layers of the MAG with derivatives written out. The MAG is differentiated twice, and torch's own second derivatives take several
times the operations.

Values and derivatives are those of the plain formula that each function names.
"""

from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metaug_core.runtime.distributed import batch_norm_backward

# --- linear maps


def linear(x: Tensor, weight: Tensor, bias: Tensor, operand: Tensor | None = None) -> Tensor:
    """torch.baddbmm(bias, x, weight): x W + b of x (V, B, in), weight (V, in, out) and bias (V, 1, out), (V, B, out).

    Only the gradients that are requested are computed (one of x computes none of W, and the reverse): the weights are the largest
    tensors of a step. The mixed derivative gives W's gradient in W's own layout: to add a transposed matrix of that size costs
    three times its product. operand: the weight in the type that all products are computed in, if it is not x's; their sums and
    results are of x's type.
    """
    operand = weight.detach() if operand is None else operand
    of_x = cast(Tensor, _Map.apply(x, (weight, bias, operand)))
    return of_x + cast(Tensor, _Parameters.apply(weight, bias, (x, operand.dtype)))


def _multiply(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a b, computed in dtype, in the type of a."""
    return (a.to(dtype) @ b.to(dtype)).to(a.dtype)


class _Map(torch.autograd.Function):
    """x W + b, differentiable in x alone; `_Parameters` is the other half.

    They are apart because a Function is not told which gradients are requested. The other operands come in a tuple, where
    autograd does not see them.
    """

    @staticmethod
    def forward(ctx, x: Tensor, parameters: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        ctx.weight, bias, ctx.operand = parameters
        if ctx.operand.dtype == x.dtype:
            return torch.baddbmm(bias, x, ctx.operand)
        return _multiply(x, ctx.operand, ctx.operand.dtype).add_(bias)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        return _Back.apply(*gradients, ctx.weight, (ctx.operand,)), None


class _Parameters(torch.autograd.Function):
    """0 in the shape of x W + b, with its gradients of W and b."""

    @staticmethod
    def forward(ctx, weight: Tensor, bias: Tensor, inputs: tuple[Tensor, torch.dtype]) -> Tensor:
        ctx.x, ctx.dtype = inputs
        return weight.new_zeros(1, 1, 1).expand(*ctx.x.shape[:2], weight.shape[2])

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (g,) = gradients
        return _multiply(ctx.x.transpose(1, 2), g, ctx.dtype), g.sum(1, keepdim=True), None


class _Back(torch.autograd.Function):
    """g W^T of g (V, B, out) and weight (V, in, out)."""

    @staticmethod
    def forward(ctx, g: Tensor, weight: Tensor, operand: tuple[Tensor]) -> Tensor:
        del weight  # its values are in the operand
        (ctx.operand,) = operand
        ctx.save_for_backward(g)
        return _multiply(g, ctx.operand.transpose(1, 2), ctx.operand.dtype)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (g,) = ctx.saved_tensors
        (along,) = gradients
        dtype = ctx.operand.dtype
        return _multiply(along, ctx.operand, dtype), _multiply(along.transpose(1, 2), g, dtype), None


# --- BatchNorm


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, running: tuple[Tensor | None, Tensor | None], momentum: float,
               eps: float) -> Tensor:  # fmt: skip
    """F.batch_norm(x, *running, weight, bias, True, momentum, eps): x (B, C) normalised by batch statistics.

    running: mean and variance over the past, which it updates; None: not kept.
    """
    return cast(Tensor, _BatchNorm.apply(x, weight, bias, running, momentum, eps))


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, running: tuple, momentum: float, eps: float) -> Tensor:
        running_mean, running_var = running
        y, mean, r = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, weight, mean, r)
        return y

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        x, weight, mean, r = ctx.saved_tensors
        return *_BatchNormGradient.apply(*gradients, x, weight, mean, r), None, None, None


class _BatchNormGradient(torch.autograd.Function):
    """The gradients of x, weight and bias, as a function of g, x and weight; mean and r move with x."""

    @staticmethod
    def forward(ctx, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, x, weight, mean, r)
        return batch_norm_backward(g, x, weight, mean, r)

    @staticmethod
    @once_differentiable
    def backward(ctx, along: Tensor | None, along_weight: Tensor | None, along_bias: Tensor | None):
        g, x, weight, mean, r = ctx.saved_tensors
        if along is None:
            along = torch.zeros_like(g)
        one, u = torch.ones_like(weight), (x - mean) * r
        of_along, along_u, _ = batch_norm_backward(along, x, one, mean, r)
        of_g, g_u, _ = batch_norm_backward(g, x, one, mean, r)
        # f = w r <along, P g>, P g = g - mean(g) - u mean(g u); P moves with u, and u and r with x.
        of_weight = (along * of_g).sum(0)
        back = (u * of_weight).addcmul_(of_along, g_u).addcmul_(of_g, along_u).mul_(weight * r / -len(x))
        of_along.mul_(weight)
        if along_weight is not None:
            of_along, back = of_along.addcmul_(u, along_weight), back.addcmul_(of_g, along_weight)
        if along_bias is not None:
            of_along = of_along.add_(along_bias)
        return of_along, back, of_weight, None, None


# --- unit norm


def unit(x: Tensor) -> Tensor:
    """F.normalize(x, dim=-1): x (..., d) divided by its length, or by 1e-12 if that is larger. Forward mode as well."""
    return cast(Tensor, _Unit.apply(x))


def _project(g: Tensor, z: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """(g - z <z, g>) / length, the derivative of z along g, which is symmetric; and <z, g>."""
    along = (z * g).sum(-1, keepdim=True)
    return torch.addcmul(g, z, along, value=-1).div_(length), along


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(1e-12)
        z = x / length
        ctx.save_for_backward(x, z, length)
        ctx.save_for_forward(z, length)
        return z

    @staticmethod
    def jvp(ctx, *tangents: Tensor) -> Tensor:
        return _project(*tangents, *ctx.saved_tensors)[0]

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        return _UnitGradient.apply(*gradients, *ctx.saved_tensors)


class _UnitGradient(torch.autograd.Function):
    """The gradient of x, as a function of g and x; z and the length move with x."""

    @staticmethod
    def forward(ctx, g: Tensor, x: Tensor, z: Tensor, length: Tensor) -> Tensor:
        gradient, g_z = _project(g, z, length)
        ctx.save_for_backward(z, length, gradient, g_z)
        return gradient

    @staticmethod
    @once_differentiable
    def backward(ctx, along: Tensor):
        z, length, gradient, g_z = ctx.saved_tensors
        back, along_z = _project(along, z, length)
        of_x = z * (along * gradient).sum(-1, keepdim=True)
        of_x.addcmul_(back, g_z).addcmul_(gradient, along_z).div_(-length)
        return back, of_x, None, None
