"""The meta feature augmentation generator (MAG): a_omega maps features z to augmented features z~ (section 3.2)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core.networks.second_order import batch_norm, linear, unit


class MAG(nn.Module):
    """One MLP per view, d - hidden - hidden - d, with BatchNorm and ReLU, unit norm at the end (the authors' code).

    z (V, B, d) -> z~ (V, B, d), both of unit norm. The weights of the views are stacked: one product for all, not V.
    """

    def __init__(self, views: int, dim: int, hidden: int):
        super().__init__()
        self.first = Layer(views, dim, hidden)
        self.second = Layer(views, hidden, hidden)
        self.last = Layer(views, hidden, dim)
        self.first_norm = nn.BatchNorm1d(views * hidden)
        self.second_norm = nn.BatchNorm1d(views * hidden)

    def forward(self, z: Tensor) -> Tensor:
        h = F.relu(norm_views(self.first_norm, self.first(z)))
        h = F.relu(norm_views(self.second_norm, self.second(h)))
        return unit(self.last(h))


class Layer(nn.Module):
    """x W + b for each of V views, (V, B, in) -> (V, B, out), initialised as nn.Linear is."""

    def __init__(self, views: int, inputs: int, outputs: int):
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(views, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(views, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def norm_views(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """BatchNorm over the minibatch, separately for each view and unit: x (V, B, H) seen as (B, V H)."""
    views, batch, hidden = x.shape
    rows = x.transpose(0, 1).reshape(batch, views * hidden)
    if not norm.training or norm.momentum is None:  # evaluation, or statistics estimated over many minibatches
        y = norm(rows)
    else:
        running, momentum = (None, None), 0.0
        if norm.track_running_stats:
            running, momentum = (norm.running_mean, norm.running_var), norm.momentum
            norm.num_batches_tracked.add_(1)
        y = batch_norm(rows, norm.weight, norm.bias, running, momentum, norm.eps)
    return y.view(batch, views, hidden).transpose(0, 1)
