"""Projection and prediction heads as their papers have them: multilayer perceptrons with BatchNorm."""

from itertools import pairwise

from torch import nn


def mlp(*sizes: int, norm_last: bool = False) -> nn.Sequential:
    """Linear layers from each size to the next, (B, sizes[0]) -> (B, sizes[-1]), with BatchNorm and ReLU after each but the last,
    which has BatchNorm alone if `norm_last` says so. A layer before a BatchNorm has no bias, since the norm takes it off again."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes[:-1]):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
    layers.append(nn.Linear(*sizes[-2:], bias=not norm_last))
    if norm_last:
        layers.append(nn.BatchNorm1d(sizes[-1]))
    return nn.Sequential(*layers)
