"""Memory for time: what a pass need not hold, because its backward can compute it again for little."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


class FirstNorm(nn.Module):
    """BatchNorm, max-pool and ReLU of the first layer. Their maps are the largest that a pass holds for its backward, a
    quarter of all: within `lean` they are not held, and the backward computes them again. The convolution's are: it costs more."""

    lean = False

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if not (FirstNorm.lean and torch.is_grad_enabled()):
            return self.layers(x)
        # With the weights of this call: in a functional call they are not the module's own when the backward comes.
        names, weights = zip(*self.layers.named_parameters(), strict=True)

        def again(x: Tensor, *weights: Tensor) -> Tensor:
            return functional_call(self.layers, dict(zip(names, weights, strict=True)), (x,))

        return checkpoint(again, x, *weights, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def lean(wanted: bool = True) -> Iterator[None]:
    """Within, passes hold nothing of `FirstNorm`. For a pass beside which much else is alive: the look-ahead."""
    before, FirstNorm.lean = FirstNorm.lean, wanted
    try:
        yield
    finally:
        FirstNorm.lean = before
