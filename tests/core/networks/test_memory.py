"""The memory bank: draws that never meet the minibatch, writes by momentum, both apart."""

import pytest
import torch

from metaug_core.networks.memory import Bank
from metaug_core.objectives.similarity import Pairs, other_views


def make(images=50, seed=0):
    return Bank(2, images, 8, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("per_anchor", [False, True])
def test_draws_are_uniform_over_the_other_images(per_anchor):
    indices = torch.tensor([7, 0, 3, 19, 12])
    drawn = make(20).draw(indices, 6_000, torch.Generator().manual_seed(1), per_anchor)
    assert drawn.shape == ((5, 6_000) if per_anchor else (6_000,))
    counts = torch.bincount(drawn.flatten(), minlength=20).float()
    assert counts[indices].sum() == 0
    rest = torch.tensor([n for n in range(20) if n not in indices.tolist()])
    expected = drawn.numel() / 15
    chi_square = ((counts[rest] - expected) ** 2 / expected).sum()
    assert chi_square < 36.1  # 99.9 % quantile at 14 degrees of freedom
    assert counts[rest].min() > 0


def test_shared_and_per_anchor_draws_agree_in_expectation():
    """The mean over draws of exp(s / t) summed over negatives, per anchor: both estimate the same number."""
    bank, indices = make(30), torch.arange(4)
    z = torch.nn.functional.normalize(torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(2)), dim=-1)
    generator = torch.Generator().manual_seed(3)
    exact = (z[0] @ bank.entries[1, 4:].T / 0.5).exp().mean(1)  # over every image outside the minibatch
    for per_anchor in (False, True):
        estimates = []
        for _ in range(300):
            drawn = bank.draw(indices, 64, generator, per_anchor)
            past = other_views(bank.entries if per_anchor else bank.entries[:, drawn])
            _, similarities = Pairs(2, past, drawn if per_anchor else None)(z, z)
            estimates.append(((2 * similarities[:4] - 1) / 0.5).exp().mean(1))
        estimates = torch.stack(estimates)
        error = estimates.std(0) / 300**0.5
        assert ((estimates.mean(0) - exact).abs() < 4 * error).all()


def test_write_by_hand():
    bank = Bank(1, 3, 2, torch.Generator().manual_seed(0))
    bank.entries[0] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    bank.write(torch.tensor([0]), torch.tensor([[[0.0, 1.0]]]), momentum=0.5)
    half = 0.5**0.5
    torch.testing.assert_close(bank.entries[0], torch.tensor([[half, half], [0.0, 1.0], [0.6, 0.8]]))
    bank.write(torch.tensor([1, 2]), torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), momentum=0.0)
    torch.testing.assert_close(bank.entries[0, 1:], torch.tensor([[1.0, 0.0], [1.0, 0.0]]))


def test_drawing_changes_nothing_and_entries_are_unit():
    bank = make()
    before = bank.entries.clone()
    bank.draw(torch.arange(5), 10, torch.Generator().manual_seed(0))
    assert torch.equal(bank.entries, before)
    torch.testing.assert_close(before.norm(dim=-1), torch.ones(2, 50))


def test_a_write_takes_no_gradient():
    bank, z = make(), torch.randn(2, 3, 8, requires_grad=True)
    bank.write(torch.arange(3), z, 0.5)
    assert not bank.entries.requires_grad
