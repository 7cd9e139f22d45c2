"""The rule `next_step` is the step that the optimiser takes: Adam and SGD, before and after steps, with weight decay."""

import pytest
import torch

from metaug_core.meta.meta_gradient import next_step, step
from metaug_core.optimisers import LARS

MAKE = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.03, betas=(0.8, 0.95)),
    "adam with weight decay": lambda p: torch.optim.Adam(p, lr=0.03, weight_decay=0.2),
    "fused adam": lambda p: torch.optim.Adam(p, lr=0.03, weight_decay=0.2, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.03),
    "lars": lambda p: LARS(p, 0.03, 0.9, 0.2),
    "groups": lambda p: torch.optim.Adam([{"params": p[:1], "weight_decay": 0.2}, {"params": p[1:]}], lr=0.03),
    "groups of sgd": lambda p: torch.optim.SGD([{"params": p[:1], "weight_decay": 0.2}, {"params": p[1:]}], lr=0.03),
    "groups of lars": lambda p: LARS(
        [{"params": p[:1]}, {"params": p[1:], "adapted": False, "weight_decay": 0.0}], 0.03, 0.9, 0.2
    ),
    "sgd with momentum and weight decay": lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, weight_decay=0.2),
}


def problem():
    generator = torch.Generator().manual_seed(0)
    theta = {name: torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
             for name, shape in {"weight": (4, 3), "bias": (4,)}.items()}  # fmt: skip
    return theta, generator


def gradients(theta, generator):
    return {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in theta.items()}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("steps_before", [0, 1, 4])
def test_next_step_is_the_optimisers(name, steps_before):
    theta, generator = problem()
    optimiser = MAKE[name]([*theta.values()])
    for number in range(steps_before + 1):
        gradient = gradients(theta, generator)
        ahead = step(theta, gradient, next_step(optimiser, theta, 0.03))
        for key, p in theta.items():
            p.grad = gradient[key].clone()
        if number == steps_before:
            before = {key: p.detach().clone() for key, p in theta.items()}
        optimiser.step()
    for key, p in theta.items():
        torch.testing.assert_close(ahead[key], p.detach(), rtol=1e-11, atol=1e-12)
        assert not torch.equal(before[key], p.detach())


@pytest.mark.parametrize("name", MAKE)
def test_next_step_changes_nothing(name):
    theta, generator = problem()
    optimiser = MAKE[name]([*theta.values()])
    next_step(optimiser, theta, 0.03)(gradients(theta, generator))
    assert not optimiser.state


def test_next_step_at_another_rate_is_longer_in_proportion():
    theta, generator = problem()
    optimiser, gradient = MAKE["adam"]([*theta.values()]), gradients(theta, generator)
    one, three = (step(theta, gradient, next_step(optimiser, theta, lr)) for lr in (0.01, 0.03))
    for name, p in theta.items():
        torch.testing.assert_close(three[name] - p, 3 * (one[name] - p))
