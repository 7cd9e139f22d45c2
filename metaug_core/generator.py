"""The meta feature augmentation generator (MAG): a_omega maps features z to augmented features z~."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Layer(nn.Module):
    """V linear maps side by side, (V, B, in) -> (V, B, out), initialised as nn.Linear is."""

    def __init__(self, views: int, inputs: int, outputs: int):
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(views, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(views, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


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
