"""Gradients of large matrices formed once: a weight's gradient is a sum of products x^T g, and its parts are kept as x and g.

The meta-gradient has three such parts for every matrix of the MAG. Each formed by itself would be a matrix as large as the weight
(16 MB at 2048 units, where x and g of a minibatch take half a megabyte each), held through the encoders' passes and then added.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Products:
    """The parts of gradients that were put off, by the memory of their weight (V, in, out)."""

    def __init__(self) -> None:
        self.parts: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def add(self, weight: Tensor, x: Tensor, g: Tensor) -> None:
        """x (V, B, in) and g (V, B, out): the weight's gradient has a part x^T g."""
        self.parts.setdefault(weight.data_ptr(), []).append((x, g))

    def gradient(self, weight: Tensor) -> Tensor | None:
        """The sum of all parts, (V, in, out), in one product; None if there is none. Forgets them."""
        parts = self.parts.pop(weight.data_ptr(), None)
        if parts is None:
            return None
        x, g = (torch.cat(side, dim=1) for side in zip(*parts, strict=True))
        return x.transpose(1, 2) @ g


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
    return x.transpose(1, 2) @ g
