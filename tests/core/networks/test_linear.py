"""The MAG's linear maps against the plain formula.

- Values, first and second derivatives are those of x W + b by torch.
- A gradient of x alone, or of the weights alone, is the same as of both together.
"""

import pytest
import torch

from metaug_core.networks.linear import linear


def operands(views=2):
    generator = torch.Generator().manual_seed(0)
    shapes = (views, 5, 3), (views, 3, 4), (views, 1, 4)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def plain(x, weight, bias):
    return torch.baddbmm(bias, x, weight)


@pytest.mark.parametrize("views", [1, 3])
def test_linear_has_the_value_and_both_derivatives_of_the_plain_formula(views):
    results = []
    for function in (linear, plain):
        leaves = operands(views)
        value = function(*leaves)
        first = torch.autograd.grad(value.pow(3).sum(), leaves, create_graph=True)
        along = sum((g.square() * torch.arange(g.numel()).view_as(g)).sum() for g in first)
        results.append([value, *first, *torch.autograd.grad(along, leaves)])
    for got, wanted in zip(*results, strict=True):
        assert wanted.abs().max() > 0.1
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_each_gradient_of_linear_alone_is_that_of_all_together():
    leaves = operands()
    value = linear(*leaves).square().sum()
    together = torch.autograd.grad(value, leaves, retain_graph=True)
    for leaf, wanted in zip(leaves, together, strict=True):
        assert torch.equal(torch.autograd.grad(value, leaf, retain_graph=True)[0], wanted)
