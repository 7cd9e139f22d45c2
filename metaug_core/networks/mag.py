"""The meta feature augmentation generator (MAG): a_omega maps features z to augmented features z~."""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core.meta.products import product, stacked


class _Map(torch.autograd.Function):
    """x W + b of stacks (V, B, in), (V, in, out), (V, 1, out), differentiable in x alone; `_Parameters` is the other half.

    Apart, because a Function is not told which gradients are wanted, and the other operand comes in a tuple, because the engine
    walks to every tensor it is given: so no gradient of x computes those of W, nor the reverse. Not torch's own baddbmm: the
    mixed derivative would bring W's gradient transposed, and to add a transposed matrix costs three times its matmul.
    """

    @staticmethod
    def forward(ctx, x: Tensor, parameters: tuple[Tensor, Tensor]) -> Tensor:
        ctx.weight, bias = parameters
        return stacked(x, ctx.weight, bias)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        return _Back.apply(*gradients, ctx.weight), None


class _Parameters(torch.autograd.Function):
    """0 in the shape of x W + b, with its gradients of W and b."""

    @staticmethod
    def forward(ctx, weight: Tensor, bias: Tensor, inputs: tuple[Tensor]) -> Tensor:
        (ctx.x,), ctx.weight = inputs, weight.detach()
        return weight.new_zeros(1, 1, 1).expand(*ctx.x.shape[:2], weight.shape[2])

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (g,) = gradients
        return product(ctx.weight, ctx.x, g), g.sum(1, keepdim=True), None


class _Back(torch.autograd.Function):
    """g W^T of stacks (V, B, out), (V, in, out)."""

    @staticmethod
    def forward(ctx, g: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(g, weight)
        return stacked(g, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (g, weight), (along,) = ctx.saved_tensors, gradients
        return stacked(along, weight), product(weight, along, g)


class Layer(nn.Module):
    """V linear maps side by side, (V, B, in) -> (V, B, out), initialised as nn.Linear is."""

    def __init__(self, views: int, inputs: int, outputs: int):
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(views, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(views, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        return cast(Tensor, _Map.apply(x, (weight, bias))) + cast(Tensor, _Parameters.apply(weight, bias, (x,)))


class MAG(nn.Module):
    """One MLP per view, d - hidden - hidden - d, with BatchNorm and ReLU, unit norm at the end (the authors' code).

    z (V, B, d) -> z~ (V, B, d), both of unit norm. The views are rows of batched parameters: one bmm, not V launches.
    """

    def __init__(self, views: int, dim: int, hidden: int):
        super().__init__()
        self.first, self.second = Layer(views, dim, hidden), Layer(views, hidden, hidden)
        self.last = Layer(views, hidden, dim)
        self.first_norm, self.second_norm = nn.BatchNorm1d(views * hidden), nn.BatchNorm1d(views * hidden)

    def forward(self, z: Tensor) -> Tensor:
        h = F.relu(_per_view(self.first_norm, self.first(z)))
        h = F.relu(_per_view(self.second_norm, self.second(h)))
        return F.normalize(self.last(h), dim=-1)


def _per_view(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """BatchNorm over the batch, each view and unit for itself: (V, B, H) seen as (B, V H)."""
    views, batch, hidden = x.shape
    return norm(x.transpose(0, 1).reshape(batch, views * hidden)).view(batch, views, hidden).transpose(0, 1)
