"""The checks of the exercises: right answers pass, every typical mistake gets its own hint, anything else is refused politely."""

import pytest
import torch

from metaug_core.meta import meta_gradient
from metaug_core.objectives import losses
from metaug_core.objectives.margins import margins
from metaug_workbook.teaching import check

EXERCISES = {name: value for name, value in vars(check).items() if isinstance(value, check.Exercise)}
ALL = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES)
MISTAKES = [(exercise, hint) for exercise in EXERCISES.values() for hint in exercise.mistakes]


def take_gradient(loss, theta, omega, lr):
    ahead = meta_gradient.meta_gradient_reference(
        lambda p: p["theta"], lambda z, o: loss(z, o["omega"]), {"theta": theta.detach()}, {"omega": omega.detach()}, lr
    )
    return ahead["omega"]


ENGINE = {
    "info_nce": losses.info_nce,
    "oucl": losses.oucl,
    "r_sigma": lambda zp, zn, p, n: losses.margin_regularisation(p, n, *margins(zp, zn, "large")),
    "mag_gradient": take_gradient,
}


@pytest.mark.parametrize("name", ENGINE)
def test_the_engine_passes(name):
    result = EXERCISES[name](ENGINE[name])
    assert result.passed, result


def test_weights_are_those_of_eq_9():
    case = check.weights.draw(torch.Generator().manual_seed(3))
    p, n, gamma, phi = case.values()
    of_positives, of_negatives = check.weights.reference(p, n, gamma, phi)
    terms = (of_negatives * (n - gamma))[:, None, :] - (of_positives * (p - 1 + gamma))[:, :, None]
    expected = losses.oucl_weighted(p, n, 4.0, (1 + gamma, -gamma), (1 - gamma, gamma), phi)
    assert torch.isclose(torch.log1p(torch.exp(4 * terms).sum((1, 2))).mean() / 4, expected, rtol=1e-12)


def test_similarities_of_parallel_opposite_and_orthogonal_features():
    first, second = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 0.0], [-1.0, 0.0], [0.0, 5.0]])
    assert check.similarities.reference(first, second).tolist() == [[1.0, 0.0, 0.5]]


@pytest.mark.parametrize(("exercise", "hint"), MISTAKES, ids=[f"{e.name}-{k}" for k, (e, _) in enumerate(MISTAKES)])
def test_a_typical_mistake_is_refused_with_its_hint(exercise, hint):
    result = exercise(exercise.mistakes[hint])
    assert not result.passed
    assert result.message == f"✗ {exercise.name}: {hint}"


@ALL
def test_what_is_not_written_yet_is_named(exercise):
    for nothing in (lambda *args: None, lambda *args: ...):
        result = exercise(nothing)
        assert not result.passed
        assert result.message.startswith(f"… {exercise.name} is not written yet")


@ALL
def test_any_other_wrong_answer_shows_what_was_expected(exercise):
    for wrong in (0.0, torch.zeros(3), "text", (1, 2, 3)):
        result = exercise(lambda *args, wrong=wrong: wrong)
        assert not result.passed
        assert "should give" in result.message


@ALL
def test_an_error_in_the_function_is_told_in_one_sentence(exercise):
    def fail(*args):
        raise RuntimeError("shapes do not match")

    result = exercise(fail)
    assert not result.passed
    assert "raised RuntimeError: shapes do not match" in result.message
    assert "\n" not in result.message


def test_a_right_function_that_is_wrong_in_one_case_only_is_refused():
    calls = []

    def right_but_once(*args):
        calls.append(args)
        return check.oucl.reference(*args) + (0.01 if len(calls) == 7 else 0)

    assert not check.oucl(right_but_once).passed
    assert len(calls) == check.CASES
