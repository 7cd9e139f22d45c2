"""Products of large matrices, one per view, and gradients formed once: a weight's gradient is a sum of products x^T g, and its
parts are kept as x and g.

The meta-gradient has three such parts for every matrix of the MAG. Each formed by itself would be a matrix as large as the weight
(16 MB at 2048 units, where x and g of a minibatch take half a megabyte each), held through the encoders' passes and then added.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def stacked(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """x w + bias of stacks (V, n, k), (V, k, m), (V, 1, m).

    On a CPU each thread gets whole matrices, so that three on two threads leave one idle half of the time: those over are
    multiplied by all threads together (2048 units, 64 rows, V = 3: 11.3 instead of 14.2 ms, x^T g 27 instead of 38; 2 cores, MKL).
    """
    over = len(x) % torch.get_num_threads() if x.device.type == "cpu" else 0
    if not over or torch.is_grad_enabled():  # what writes into a given tensor has no derivative
        return x @ w if bias is None else torch.baddbmm(bias, x, w)
    out, even = x.new_empty(*x.shape[:2], w.shape[2]), len(x) - over
    torch.matmul(x[:even], w[:even], out=out[:even])
    for v in range(even, len(x)):
        torch.mm(x[v], w[v], out=out[v])
    return out if bias is None else out.add_(bias)


class Products:
    """The parts of gradients that were put off, by the memory of their weight (V, in, out)."""

    def __init__(self) -> None:
        self.parts: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def add(self, weight: Tensor, x: Tensor, g: Tensor) -> None:
        """x (V, B, in) and g (V, B, out): the weight's gradient has a part x^T g."""
        self.parts.setdefault(weight.data_ptr(), []).append((x, g))

    @torch.no_grad()
    def gradient(self, weight: Tensor, keep: bool = False) -> Tensor | None:
        """The sum of all parts so far, (V, in, out), in one product; None if there is none. Forgets them unless keep."""
        parts = self.parts.get(weight.data_ptr()) if keep else self.parts.pop(weight.data_ptr(), None)
        if parts is None:
            return None
        x, g = (torch.cat(side, dim=1) for side in zip(*parts, strict=True))
        return stacked(x.transpose(1, 2), g)


_active: list[Products] = []


@contextmanager
def put_off() -> Iterator[Products]:
    """Within, backward passes (without create_graph) leave the products that they are asked for here, and return no gradient of
    those weights."""
    products = Products()
    _active.append(products)
    try:
        yield products
    finally:
        _active.remove(products)


def product(weight: Tensor, x: Tensor, g: Tensor) -> Tensor | None:
    """x^T g for weight's gradient: now, or put off and None."""
    if _active and not torch.is_grad_enabled():
        _active[-1].add(weight, x, g)
        return None
    return stacked(x.transpose(1, 2), g)
