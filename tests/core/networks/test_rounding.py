"""bfloat16 inside a pass: which weights are rounded, when, and what is not lost.

- Rounded weights are the nearest bfloat16; gradients and tangents pass through as casts, in the weights' own type.
- All convolutions and linear layers of encoders and heads are rounded, BatchNorm is not; those of a user's encoder are left alone.
- The MAG's rounded weights are shared by the passes of a step, and made anew after an update or for other weights.
- A linear map with a rounded operand is the plain formula of rounded operands, in both derivatives.
- The tangent of BatchNorm of bfloat16 is as exact as its operands, on channels far from 0 as well.
- The meta-gradient of a bf16 step points where that of float32 does.
"""

import copy

import pytest
import torch
from torch.autograd import forward_ad as fwAD

from metaug_core import Config
from metaug_core.meta.forward_ad import frozen_statistics, tangent
from metaug_core.networks.encoders import Networks
from metaug_core.networks.mag import MAG
from metaug_core.networks.rounding import round_weights
from metaug_core.networks.second_order import linear
from metaug_core.training.step import descend
from metaug_workbook.results.step_costs import prepare_step

BF16 = torch.bfloat16


def test_rounded_weights_are_casts_in_value_gradient_and_tangent():
    torch.manual_seed(0)
    weights = {"w": torch.randn(3, 4, 2, 2).to(memory_format=torch.channels_last).requires_grad_(), "b": torch.randn(5)}
    rounded = round_weights(weights, ["w"])
    assert rounded["b"] is weights["b"]
    assert torch.equal(rounded["w"], weights["w"].to(BF16))
    assert rounded["w"].stride() == weights["w"].stride()
    along = torch.randn(3, 4, 2, 2).to(BF16)
    (gradient,) = torch.autograd.grad((rounded["w"] * along).sum(), weights["w"])
    assert torch.equal(gradient, along.float())
    with torch.no_grad(), fwAD.dual_level():
        dual = round_weights({"w": fwAD.make_dual(weights["w"], 3 * weights["w"])}, ["w"])["w"]
        assert torch.equal(fwAD.unpack_dual(dual).tangent, (3 * weights["w"]).to(BF16))


def test_products_of_encoders_and_heads_are_rounded_and_nothing_else():
    config = Config(width=0.1, views=("L", "ab"), precision="bf16", head="mlp-bn")
    networks = Networks(config)
    names, parameters = set(networks.product_weights()), dict(networks.named_parameters())
    assert names == {name for name, p in parameters.items() if p.dim() > 1}  # no layer here but BatchNorm has a bias
    assert Networks(config.replace(precision="float32")).product_weights() == []


def test_the_mags_rounded_weights_are_made_once_for_each_version():
    mag = MAG(2, 4, 8, bf16=True)
    first, weights = mag.first.round(), dict(mag.named_parameters())
    assert torch.equal(first, mag.first.weight.to(BF16))
    assert mag.first.round() is first
    leaf = mag.first.weight.detach().requires_grad_()  # as the look-ahead takes it
    assert torch.func.functional_call(mag.first, {"weight": leaf}, (torch.ones(2, 3, 4),)) is not None
    assert mag.first.round() is first
    descend(
        torch.optim.Adam(mag.parameters(), lr=0.1, fused=True),
        weights,
        {n: torch.ones_like(p) for n, p in weights.items()},
    )
    assert torch.equal(mag.first.round(), mag.first.weight.to(BF16))
    assert not torch.equal(mag.first.round(), first)
    other = {"weight": mag.first.weight.detach().clone().mul_(2)}
    got = torch.func.functional_call(mag.first, other | {"bias": torch.zeros(2, 1, 8)}, (torch.ones(2, 3, 4),))
    torch.testing.assert_close(got, torch.ones(2, 3, 4) @ other["weight"], rtol=0.02, atol=0.1)


def test_a_rounded_linear_map_is_the_formula_of_rounded_operands():
    torch.manual_seed(0)
    x, w, b = (torch.randn(s).to(BF16).float().requires_grad_() for s in ((2, 5, 3), (2, 3, 4), (2, 1, 4)))
    value = linear(x, w, b, w.detach().to(BF16))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, torch.baddbmm(b, x, w), rtol=2**-8, atol=2**-6)
    g = torch.randn_like(value).to(BF16).float().requires_grad_()
    first = torch.autograd.grad(value, (x, w, b), g, create_graph=True)
    wanted = g @ w.transpose(1, 2), x.transpose(1, 2) @ g, g.sum(1, keepdim=True)
    for got, want in zip(first, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=2**-8, atol=2**-5)
    along = torch.randn_like(x).to(BF16).float()
    mixed = torch.autograd.grad(first[0], (w, g), along)
    for got, want in zip(mixed, (along.transpose(1, 2) @ g, along @ w), strict=True):
        torch.testing.assert_close(got, want, rtol=2**-8, atol=2**-6)


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_the_tangent_of_batch_norm_of_bf16_does_not_cancel(mean):
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(3)
    # x_dot is far from 0 too: what is left after its mean is subtracted is a thirtieth.
    x, x_dot = ((mean + torch.randn(64, 3, 6, 6)).to(BF16) for _ in range(2))
    exact = copy.deepcopy(norm).double()

    def features(network, theta):
        return network(theta["x"])

    results = []
    for network, dtype in ((norm, BF16), (exact, torch.float64)):
        with frozen_statistics(network):
            results.append(
                tangent(lambda theta, n=network: features(n, theta), {"x": x.to(dtype)}, {"x": x_dot.to(dtype)})
            )
    (y, y_dot), (y_exact, y_dot_exact) = results
    assert y_dot.dtype == BF16
    for got, want in ((y, y_exact), (y_dot, y_dot_exact)):
        assert (got.double() - want).abs().max() < 2**-8 * want.abs().max()


def test_the_meta_gradient_of_bf16_points_where_that_of_float32_does():
    """By SGD weights move along their gradients, theta as well."""
    moves = {}
    for precision in ("float32", "bf16"):
        config = Config(image_size=32, batch_size=64, width=0.25, mag_hidden=64, views=("L", "ab"), device="cpu", negatives="batch",
                        mag_objective="scaled", delta=0.1, alpha=0.1, optimiser="sgd", mag_optimiser="sgd", lr=0.01, mag_lr=0.01,
                        momentum=0.0, precision=precision)  # fmt: skip
        step = prepare_step(config)
        weights = {"theta": step.s.theta, "omega": step.s.omega}
        before = {kind: {name: p.detach().clone() for name, p in of.items()} for kind, of in weights.items()}
        step.take()
        for kind, of in weights.items():
            assert all(p.dtype == torch.float32 for p in of.values())
            moves[kind, precision] = torch.cat([(p.detach() - before[kind][name]).flatten() for name, p in of.items()])
    for kind in ("theta", "omega"):
        exact, rounded = moves[kind, "float32"], moves[kind, "bf16"]
        assert not torch.equal(exact, rounded)
        assert torch.nn.functional.cosine_similarity(exact, rounded, 0) > 0.97
