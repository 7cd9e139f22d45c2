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

    def __init__(self, views: int, dim: int, hidden: int, bf16: bool = False):
        super().__init__()
        self.first = Layer(views, dim, hidden, bf16)
        self.second = Layer(views, hidden, hidden, bf16)
        self.last = Layer(views, hidden, dim, bf16)
        self.first_norm = nn.BatchNorm1d(views * hidden)
        self.second_norm = nn.BatchNorm1d(views * hidden)

    def forward(self, z: Tensor) -> Tensor:
        h = F.relu(norm_views(self.first_norm, self.first(z)))
        h = F.relu(norm_views(self.second_norm, self.second(h)))
        return unit(self.last(h))


class Layer(nn.Module):
    """x W + b for each of V views, (V, B, in) -> (V, B, out), initialised as nn.Linear is.

    bf16: on a CPU its products take operands in bfloat16. CUDA rounds to TF32 instead (`arithmetic`), which needs no other copy.
    """

    def __init__(self, views: int, inputs: int, outputs: int, bf16: bool):
        super().__init__()
        self.bf16 = bf16
        self.rounded: tuple[Tensor, int, Tensor] | None = None  # a weight, its version, and it in bfloat16
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(views, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(views, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        rounded = self.round() if self.bf16 and x.device.type == "cpu" else None
        return linear(x, self.weight, self.bias, rounded)

    def round(self) -> Tensor:
        """The weight in bfloat16. Passes of a step share a copy, which is made again when an optimiser has changed the weight."""
        weight = self.weight.detach()
        if self.rounded is None or (self.rounded[0].data_ptr(), self.rounded[1]) != (
            weight.data_ptr(),
            weight._version,
        ):
            self.rounded = weight, weight._version, weight.bfloat16()
        return self.rounded[2]


def norm_views(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """BatchNorm over the minibatch, separately for each view and unit: x (V, B, H) seen as (B, V H)."""
    views, batch, hidden = x.shape
    rows = x.transpose(0, 1).reshape(batch, views * hidden)
    if not norm.training or norm.momentum is None:  # evaluation, or statistics estimated over many minibatches
        y = norm(rows)
    else:
        running = (norm.running_mean, norm.running_var) if norm.track_running_stats else (None, None)
        y = batch_norm(rows, norm.weight, norm.bias, running, norm.momentum, norm.eps)
        if norm.track_running_stats and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
    return y.view(batch, views, hidden).transpose(0, 1)
