"""The MAG's layers against torch's own.

- Values, first and second derivatives of linear maps are those of x W + b by torch.
- A gradient of x alone, or of the weights alone, is the same as of both together.
- BatchNorm: values, both derivatives and running statistics are those of torch's. The second derivatives of a gradient of the
  weights alone as well.
- Unit norm: values, both derivatives and the tangent are those of torch's, at a vector of zeros too.
"""

import pytest
import torch
from torch.nn import functional as F

from metaug_core.networks.second_order import batch_norm, linear, unit


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


def norm_operands():
    generator = torch.Generator().manual_seed(1)
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((7, 4), (4,), (4,))]
    return [leaf.requires_grad_() for leaf in leaves]


@pytest.mark.parametrize("of", [(0,), (1,), (2,), (0, 1, 2)])
def test_batch_norm_has_the_value_and_both_derivatives_of_torch(of):
    """of: the operands whose first gradients the second derivatives are of."""
    results = []
    for compute in (
        batch_norm,
        lambda x, w, b, running, momentum, eps: F.batch_norm(x, *running, w, b, True, momentum, eps),
    ):
        leaves, running = norm_operands(), (torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
        value = compute(*leaves, running, 0.3, 1e-2)
        first = torch.autograd.grad(value.pow(3).sum(), leaves, create_graph=True)
        along = sum((first[n].square() * (1 + torch.arange(first[n].numel())).view_as(first[n])).sum() for n in of)
        results.append([value, *first, *torch.autograd.grad(along, leaves), *running])
    for got, wanted in zip(*results, strict=True):
        assert wanted.abs().max() > 0.01
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_unit_has_the_value_the_tangent_and_both_derivatives_of_torch():
    results, generator = [], torch.Generator().manual_seed(2)
    x, along = (torch.randn(3, 5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    for compute in (unit, lambda x: F.normalize(x, dim=-1)):
        leaf = x.clone().requires_grad_()
        value = compute(leaf)
        (first,) = torch.autograd.grad((value * along).sum(), leaf, create_graph=True)
        tangent = torch.func.jvp(compute, (x,), (along,))[1] if compute is not unit else None
        if tangent is None:
            with torch.autograd.forward_ad.dual_level():
                dual = unit(torch.autograd.forward_ad.make_dual(x, along))
                tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent.clone()
        results.append([value, first, *torch.autograd.grad(first.pow(3).sum(), leaf), tangent])
    for got, wanted in zip(*results, strict=True):
        assert wanted.abs().max() > 0.1
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_unit_of_zeros_is_zeros_and_its_gradient_finite():
    x = torch.zeros(2, 3, requires_grad=True)
    assert unit(x).tolist() == [[0.0] * 3] * 2
    (gradient,) = torch.autograd.grad(unit(x).sum(), x, create_graph=True)
    assert torch.isfinite(gradient).all()
    assert torch.isfinite(torch.autograd.grad(gradient.sum(), x)[0]).all()
