"""LARS against its formula, and the groups of parameters that a recipe asks for."""

import pytest
import torch
from torch import nn

from metaug_core import methods
from metaug_core.config import Config
from metaug_core.methods.base import initial_networks
from metaug_core.optimisers import LARS, group_parameters, make_optimiser, set_rate

SMALL = {"image_size": 16, "width": 0.05, "head_hidden": 8, "predictor_hidden": 8, "feature_dim": 8}


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in ((4, 3), (4,))]


def descend(optimiser, weights, steps=3):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in weights:
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimiser.step()
    return [p.detach().clone() for p in weights]


def test_lars_by_hand():
    p = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))  # length 5
    p.grad = torch.tensor([0.0, 2.0], dtype=torch.float64)
    LARS([p], lr=10.0, momentum=0.9, weight_decay=0.0).step()
    torch.testing.assert_close(p.detach(), torch.tensor([3.0, 4.0 - 10 * 0.001 * 5 / 2 * 2], dtype=torch.float64))


def test_lars_of_zero_weights_or_gradients_takes_the_plain_step():
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    p.grad = torch.ones(2, dtype=torch.float64)
    LARS([p], lr=0.5, momentum=0.9, weight_decay=0.0).step()
    assert p.tolist() == [-0.5, -0.5]


def test_lars_is_its_formula_over_steps():
    ours, expected = parameters(), [p.detach().clone() for p in parameters()]
    groups = [{"params": ours[:1]}, {"params": ours[1:], "adapted": False, "weight_decay": 0.0}]
    descend(LARS(groups, 0.3, 0.9, 0.1), ours)
    generator, velocity = torch.Generator().manual_seed(1), [0.0, 0.0]
    for _ in range(3):
        for number, decay in enumerate((0.1, 0.0)):
            p = expected[number]
            g = torch.randn(p.shape, generator=generator, dtype=p.dtype) + decay * p
            ratio = 0.001 * p.norm() / g.norm() if decay else 1.0
            velocity[number] = 0.9 * velocity[number] + ratio * g
            expected[number] = p - 0.3 * velocity[number]
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=1e-12, atol=0)


def groups_of(**settings):
    config = Config(method="simsiam", **{**SMALL, **settings})
    networks, _ = initial_networks(methods.build(config), 2, 0)
    return networks, group_parameters(networks, config)


def test_without_a_recipe_all_parameters_are_one_group_in_their_order():
    networks, groups = groups_of(weight_decay=0.1)
    assert len(groups) == 1
    assert [id(p) for p in groups[0]["params"]] == [id(p) for p in networks.parameters()]
    assert groups[0]["weight_decay"] == 0.1


def test_biases_and_batchnorm_are_left_out_of_decay():
    networks, groups = groups_of(weight_decay=0.1, decay_norm_and_bias=False, optimiser="lars")
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    adapted = {id(p): group["adapted"] for group in groups for p in group["params"]}
    norms = [m for m in networks.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    left_out = {id(p) for m in norms for p in m.parameters()}
    left_out |= {id(p) for name, p in networks.named_parameters() if name.endswith("bias")}
    assert {one for one, value in decay.items() if value == 0} == left_out
    assert {one for one, value in adapted.items() if not value} == left_out
    assert len(decay) == len(list(networks.parameters()))


def test_the_predictors_rate_can_stay():
    networks, groups = groups_of(predictor_lr_schedule="constant")
    optimiser = make_optimiser("sgd", groups, 0.1, 0.9)
    set_rate(optimiser, 0.1, 0.5)
    of_predictor = {id(p) for p in networks.predictors.parameters()}
    for group in optimiser.param_groups:
        inside = {id(p) in of_predictor for p in group["params"]}
        assert len(inside) == 1
        assert group["lr"] == pytest.approx(0.1 if inside == {True} else 0.05)


@pytest.mark.parametrize("kind", ["adam", "sgd", "lars"])
def test_every_kind_moves_the_weights(kind):
    weights = parameters()
    before = [p.detach().clone() for p in weights]
    groups = [{"params": weights, "weight_decay": 0.1} | ({"adapted": True} if kind == "lars" else {})]
    after = descend(make_optimiser(kind, groups, 0.1, 0.9), weights)
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
