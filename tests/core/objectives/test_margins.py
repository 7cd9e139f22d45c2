"""What the margins of eq. 4 are claimed to be, each claim proved by a test of its name.

- Every kind is eq. 4 by hand, for a hard minibatch (min+ < max-), Large and Small for an easy one too.
- Margins per row are those of each row by hand.
- Margins are constants: no gradient flows through them.
- R_sigma is largest for Large, smaller for Medium and Small, and 0 for none.
- An unknown kind is refused by name.
"""

import pytest
import torch

from metaug_core.errors import MetaugError
from metaug_core.objectives.losses import margin_regularisation
from metaug_core.objectives.margins import margins

POSITIVES = torch.tensor([[0.8, 0.6], [0.9, 0.7]])
NEGATIVES = torch.tensor([[0.1, 0.3], [0.75, 0.2]])  # min+ = 0.6 < max- = 0.75: a hard batch


@pytest.mark.parametrize(
    ("kind", "plus", "minus"),
    [("large", 0.6, 0.75), ("medium", 0.675, 0.675), ("small", 0.75, 0.6), ("none", float("inf"), float("-inf"))],
)
def test_every_kind_is_eq4_by_hand(kind, plus, minus):
    sigma_plus, sigma_minus = margins(POSITIVES, NEGATIVES, kind)
    assert (sigma_plus.item(), sigma_minus.item()) == (pytest.approx(plus), pytest.approx(minus))


def test_large_and_small_of_an_easy_minibatch_by_hand():
    easy = torch.tensor([[0.2, 0.4]])  # max- = 0.4 < min+ = 0.6
    assert [round(s.item(), 6) for s in margins(POSITIVES, easy, "large")] == [0.4, 0.6]
    assert [round(s.item(), 6) for s in margins(POSITIVES, easy, "small")] == [0.6, 0.4]


def test_margins_per_row_by_hand():
    plus, minus = margins(POSITIVES, NEGATIVES, "large", per_row=True)
    assert plus.tolist() == [[pytest.approx(0.3)], [pytest.approx(0.7)]]
    assert minus.tolist() == [[pytest.approx(0.6)], [pytest.approx(0.75)]]


def test_margins_are_constants():
    positives = POSITIVES.clone().requires_grad_()
    assert not any(s.requires_grad for s in margins(positives, NEGATIVES, "large"))


def test_r_sigma_is_largest_for_large_and_0_for_none():
    mixed = torch.rand(2, 3), torch.rand(2, 4)
    regularisation = {
        k: margin_regularisation(*mixed, *margins(POSITIVES, NEGATIVES, k))
        for k in ("large", "medium", "small", "none")
    }
    assert regularisation["large"] >= regularisation["medium"] >= regularisation["small"] >= regularisation["none"] == 0


def test_an_unknown_kind_is_refused():
    with pytest.raises(MetaugError, match="large, medium, small, none"):
        margins(POSITIVES, NEGATIVES, "huge")
