"""Memory for time: activations that a pass does not hold, because its backward can cheaply compute them again."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


class FirstBlock(nn.Module):
    """BatchNorm, max-pool and ReLU after the first convolution. Their maps are the largest that a pass holds for its backward, a
    quarter of all. Within `checkpoint_first_block` they are not held, but computed again."""

    checkpointed = False

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if not (FirstBlock.checkpointed and torch.is_grad_enabled()):
            return self.layers(x)
        # The weights of this call: in a functional call the module's own are others by the time of the backward.
        names, weights = zip(*self.layers.named_parameters(), strict=True)

        def recompute(x: Tensor, *weights: Tensor) -> Tensor:
            return functional_call(self.layers, dict(zip(names, weights, strict=True)), (x,))

        return checkpoint(recompute, x, *weights, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def checkpoint_first_block(enabled: bool = True) -> Iterator[None]:
    """Context manager: passes hold nothing of `FirstBlock`. For the look-ahead, beside which much else is in memory."""
    before = FirstBlock.checkpointed
    FirstBlock.checkpointed = enabled
    try:
        yield
    finally:
        FirstBlock.checkpointed = before
