"""The toy in the plane: places by hand, and every gradient against finite differences and double backward."""

import math

import pytest
import torch

from metaug_core.config import ConfigError
from metaug_core.meta import meta_gradient
from metaug_core.objectives.similarity import similarity
from metaug_workbook.teaching import toys


@pytest.fixture
def theta():
    return {"angles": toys.scatter(images=4, spread=0.4, seed=2)}


@pytest.fixture
def omega():
    return {"turn": torch.tensor([0.8, 0.6], dtype=torch.float64)}


def test_images_stand_evenly_around_the_circle():
    angles = toys.scatter(images=4, spread=0.0)
    assert angles.tolist() == [[0, math.pi / 2, math.pi, 3 * math.pi / 2]] * 2
    assert torch.allclose(
        toys.encode({"angles": angles})[0, 1], torch.tensor([0.0, 1.0], dtype=torch.float64), atol=1e-15
    )


def test_a_quarter_turn_of_view_two_leaves_view_one():
    z = toys.place_on_circle(torch.zeros(2, 1, dtype=torch.float64))
    turned = toys.turn(z, {"turn": torch.tensor([0.0, math.pi / 2], dtype=torch.float64)})
    assert torch.allclose(turned[:, 0], torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64), atol=1e-15)


def test_the_parts_sum_to_the_meta_gradient_by_double_backward(theta, omega):
    toy = toys.make_toy(lr=3.0)
    now = toys.measure_moment(toy, theta, omega)
    expected = meta_gradient.meta_gradient_reference(toys.encode, toy.inner, theta, omega, toy.lr, toy.outer)
    assert torch.allclose(now.gradient["turn"], expected["turn"], rtol=1e-10)


def test_the_gradient_is_the_slope_of_the_landscape(theta, omega):
    toy, step = toys.make_toy(lr=3.0, alpha=0.0), 1e-6  # without R_sigma, whose margins are constants

    def height(shift: list[float]) -> float:
        return toys.measure_moment(toy, theta, {"turn": omega["turn"] + step * torch.tensor(shift)}).loss_ahead

    slope = [(height(axis) - height([-x for x in axis])) / (2 * step) for axis in ([1.0, 0.0], [0.0, 1.0])]
    assert toys.measure_moment(toy, theta, omega).gradient["turn"].tolist() == pytest.approx(slope, abs=1e-6)
    turns = torch.tensor([0.6, 0.8], dtype=torch.float64)
    values = toys.measure_landscape(toy, theta, turns)
    assert values[0, 1].item() == pytest.approx(toys.measure_moment(toy, theta, omega).loss_ahead)  # row: omega_2


def test_without_a_look_ahead_nothing_is_mixed(theta, omega):
    now = toys.measure_moment(toys.make_toy(lr=0.0), theta, omega)
    assert now.mixed["turn"].abs().max() < 1e-14
    assert torch.equal(now.theta_ahead["angles"], theta["angles"])


def test_the_steps_of_a_toy_run_are_those_of_algorithm_1():
    """The MAG follows its whole gradient from the features that the encoder steps from, and the next step begins where this one
    ended."""
    first, second = toys.run_algorithm(inner_lr=0.5, alpha=1.0, seed=0)[:2]
    theta, omega = toys.start(0)
    assert torch.equal(second.now.theta["angles"], theta["angles"] - toys.LR * first.now.pull["angles"])
    for name, gradient in first.now.gradient.items():
        assert torch.equal(second.now.omega[name], omega[name] - toys.MAG_LR * gradient)
    assert torch.equal(first.z_next, second.z)
    assert torch.equal(first.augmented_next, second.augmented)


def test_the_mag_copies_without_a_margin_and_not_with_large():
    theta = {"angles": toys.scatter(images=5, spread=0.15, seed=1)}
    z, (augment, omega) = toys.encode(theta), toys.make_mlp()
    before = {name: p.clone() for name, p in omega.items()}
    copies = {}
    for margin in ("none", "large"):
        found = toys.train_mag(toys.make_toy(augment, lr=0.3, margin=margin), theta, omega, 60)
        copies[margin] = similarity((z * augment(z, found)).sum(-1)).mean().item()
    assert copies["none"] > 0.97 > 0.93 > copies["large"]
    assert all(torch.equal(omega[name], p) for name, p in before.items())  # the first omega is left alone


def test_a_wrong_setting_is_refused():
    with pytest.raises(ConfigError, match="margin"):
        toys.make_toy(margin="huge")
