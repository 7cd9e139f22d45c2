# pyright: reportPrivateImportUsage=false
"""Weights in bfloat16 for a pass, all of them in one operation: under autocast each would be one of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metaug_core.meta.forward_ad import Params


def round_weights(weights: Params, names: Sequence[str]) -> Params:
    """The weights, those of these names in bfloat16. Differentiable, also in forward mode; gradients are of the weights' type."""
    if not names:
        return weights
    rounded = _Round.apply(*(weights[name] for name in names))
    return weights | dict(zip(names, rounded, strict=True))


def _convert(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    results = tuple(torch.empty_like(t, dtype=dtype) for t in tensors)
    torch._foreach_copy_(results, tensors)
    return results


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype = weights[0].dtype
        return _convert(weights, torch.bfloat16)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, ...]:
        return _convert(gradients, ctx.dtype)

    @staticmethod
    def jvp(ctx, *tangents: Tensor) -> tuple[Tensor, ...]:
        return _convert(tangents, torch.bfloat16)
