"""Gradients put off and formed once, and passes that hold less: the same numbers."""

import pytest
import torch
from torch.func import functional_call

from metaug_core import Config
from metaug_core.meta.forward_ad import frozen_statistics
from metaug_core.meta.products import put_off, stacked
from metaug_core.networks.activation_checkpointing import lean
from metaug_core.networks.encoders import Networks
from metaug_core.networks.mag import Layer


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_stacked_products_are_those_of_each_view(views, threads):
    """However many matrices are over when each thread has had as many; with a graph as well, where the product must have one."""
    before, generator = torch.get_num_threads(), torch.Generator().manual_seed(0)
    x, w, bias = (
        torch.randn(views, *shape, generator=generator, dtype=torch.float64) for shape in ((4, 3), (5, 3), (1, 5))
    )
    w = w.transpose(1, 2)
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            found = [stacked(x, w), stacked(x, w, bias)]
        x.requires_grad_()
        found += [stacked(x, w), stacked(x, w, bias)]
    finally:
        torch.set_num_threads(before)
    for v in range(views):
        for out, shift in zip(found, (0, bias[v], 0, bias[v]), strict=True):
            torch.testing.assert_close(out[v], torch.einsum("nk,km->nm", x[v], w[v]) + shift)
    assert [out.requires_grad for out in found] == [False, False, True, True]


def test_products_put_off_are_the_gradient():
    layer, x = Layer(2, 3, 4).double(), torch.randn(2, 5, 3, dtype=torch.float64)
    value = layer(x).square().sum()
    wanted = torch.autograd.grad(value, [layer.weight, layer.bias], retain_graph=True)
    with put_off() as products:
        weight, bias = torch.autograd.grad(value, [layer.weight, layer.bias], allow_unused=True, retain_graph=True)
    assert weight is None
    assert torch.equal(bias, wanted[1])
    assert torch.allclose(products.gradient(layer.weight), wanted[0], rtol=1e-13)
    assert products.gradient(layer.weight) is None  # formed once, then forgotten
    assert torch.equal(torch.autograd.grad(value, layer.weight)[0], wanted[0])  # outside, as ever


def test_two_parts_make_one_product():
    layer = Layer(1, 2, 2).double()
    first, second = (torch.randn(1, 3, 2, dtype=torch.float64) for _ in range(2))
    with put_off() as products:
        for x in (first, second):
            torch.autograd.grad(layer(x).sum(), layer.weight, allow_unused=True)
    by_hand = (first + second).sum(1)[0][:, None].expand(2, 2)  # d sum(x W) / dW_ij = sum of x_i
    assert torch.allclose(products.gradient(layer.weight)[0], by_hand)


def test_products_with_a_graph_are_not_put_off():
    layer, x = Layer(1, 2, 2).double(), torch.randn(1, 3, 2, dtype=torch.float64)
    with put_off() as products:
        (found,) = torch.autograd.grad(layer(x).square().sum(), layer.weight, create_graph=True)
    assert found.requires_grad
    assert products.gradient(layer.weight) is None


@pytest.mark.parametrize("encoder", ["conv", "fc"])
def test_a_lean_pass_has_the_gradients_of_its_own_weights(encoder):
    config = Config(encoder=encoder, width=0.1, feature_dim=8, views=("L", "ab"), image_size=32)
    networks = Networks(config).double()
    images = [torch.randn(6, channels, 32, 32, dtype=torch.float64) for channels in (1, 2)]
    # Weights that are not the module's own any more when the backward comes.
    theta = {n: (p.detach() + 0.1 * torch.randn_like(p)).requires_grad_() for n, p in networks.named_parameters()}
    before = {n: b.clone() for n, b in networks.named_buffers()}
    found, held = [], []
    for wanted in (False, True):
        sizes: list[int] = []
        counted = torch.autograd.graph.saved_tensors_hooks(lambda t, to=sizes: to.append(t.numel()) or t, lambda t: t)
        with frozen_statistics(networks):
            with lean(wanted), counted:
                z = functional_call(networks, theta, (images,))
            found.append(torch.autograd.grad(z.square().sum() + z.sum(), list(theta.values())))
        held.append(sum(sizes))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert held[1] < held[0]
    assert all(torch.equal(b, before[n]) for n, b in networks.named_buffers())
