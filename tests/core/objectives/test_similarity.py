"""What pairs and their similarities are claimed to be, each claim proved by a test of its name.

- Positives and negatives of every anchor are those of a literal loop over features, for each source of negatives.
- Mixed pairs join one original and one augmented feature.
- Pairs of the own view are those of a literal loop, for each source of negatives.
- Pairs grouped by image or minibatch, by hand.
- Sets that were stacked by `Pairs.stack` give the same similarities, from one table.
- A function of past negatives is computed once for a stack; of others, for the negatives of each request.
- d = (1 + cos) / 2 lies in [0, 1].
"""

import pytest
import torch

from metaug_core.objectives.similarity import Pairs, group_pairs, other_views, similarity


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def literal(anchors, targets, views, past, by_view):
    """Sorted positives and negatives of each anchor, from loops. past(v, u, b): the negatives image b of view v meets in u."""
    pairs = {}
    for w in range(len(anchors)):
        for b in range(anchors.shape[1]):
            for u in range(views):
                if u == w % views:
                    continue
                key = (w, b, u) if by_view else (w, b)
                entry = pairs.setdefault(key, ([], []))
                entry[0].extend(0.5 + float(anchors[w, b] @ t[b]) / 2 for t in targets[u::views])
                entry[1].extend(0.5 + float(anchors[w, b] @ n) / 2 for n in past(u, b))
    return pairs


def as_multiset(positives, negatives):
    return sorted(
        [(tuple(sorted(round(x, 9) for x in p)), tuple(sorted(round(x, 9) for x in n)))
         for p, n in zip(positives.tolist(), negatives.tolist(), strict=True)]
    )  # fmt: skip


@pytest.mark.parametrize("by_view", [False, True])
@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.parametrize("source", ["shared", "per-anchor", "batch"])
def test_pairs_equal_the_literal_loop(source, sets, views, by_view):
    batch, dim, bank = 4, 5, unit(views, 9, 5, seed=1)
    z = unit(sets * views, batch, dim)
    drawn = torch.tensor([[0, 3], [4, 4], [8, 1], [2, 7]])
    arguments = {
        "shared": (other_views(bank[:, [1, 5, 5]]), None),
        "per-anchor": (other_views(bank), drawn),
        "batch": (None, None),
    }[source]
    past = {
        "shared": lambda u, b: bank[u][[1, 5, 5]],
        "per-anchor": lambda u, b: bank[u][drawn[b]],
        "batch": lambda u, b: [t[c] for t in z[u::views] for c in range(batch) if c != b],
    }[source]
    got = as_multiset(*Pairs(views, *arguments)(z, z, by_view))
    wanted = literal(z, z, views, past, by_view).values()
    assert got == sorted(
        (tuple(sorted(round(x, 9) for x in p)), tuple(sorted(round(x, 9) for x in n))) for p, n in wanted
    )


def test_mixed_pairs_join_one_original_and_one_augmented_feature():
    z, augmented, bank = unit(2, 3, 4), unit(2, 3, 4, seed=2), unit(2, 5, 4, seed=3)
    positives, negatives = Pairs(2, other_views(bank))(augmented, z)
    assert positives.shape == (6, 1)
    assert negatives.shape == (6, 5)
    # View 0 of image 0 with view 1 of image 0; view 1 of image 1 meets the past of view 0.
    torch.testing.assert_close(positives[0, 0], similarity(augmented[0, 0] @ z[1, 0]))
    torch.testing.assert_close(negatives[4], similarity(bank[0] @ augmented[1, 1]))


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.parametrize("source", ["shared", "per-anchor", "batch"])
def test_pairs_of_the_own_view_equal_the_literal_loop(source, sets, views):
    batch, bank, drawn = 4, unit(views, 9, 5, seed=1), torch.tensor([[0, 3], [4, 4], [8, 1], [2, 7]])
    anchors, targets = unit(sets * views, batch, 5), unit(sets * views, batch, 5, seed=2)
    past = {"shared": (other_views(bank[:, [1, 5, 5]]), None), "per-anchor": (other_views(bank), drawn)}
    positives, negatives = Pairs(views, *past.get(source, (None, None))).compare_own(anchors, targets)
    assert positives.shape[:3] == negatives.shape[:3] == (views, sets, batch)
    wanted_positives, wanted_negatives = [], []
    for w in (s * views + v for v in range(views) for s in range(sets)):
        for b in range(batch):
            own = targets[w % views :: views]  # (sets, B, d), the rows of this view
            columns = {"shared": [1, 5, 5], "per-anchor": drawn[b].tolist()}.get(source)
            others = bank[w % views][columns] if columns else [t[c] for t in own for c in range(batch) if c != b]
            wanted_positives.append([float(1 + anchors[w, b] @ t[b]) / 2 for t in own])
            wanted_negatives.append([float(1 + anchors[w, b] @ n) / 2 for n in others])
    torch.testing.assert_close(positives.flatten(0, 2), torch.tensor(wanted_positives, dtype=torch.float64))
    torch.testing.assert_close(negatives.flatten(0, 2), torch.tensor(wanted_negatives, dtype=torch.float64))


def test_pairs_are_grouped_by_image_or_minibatch_by_hand():
    of_anchors = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 12]])  # two images in three views
    assert group_pairs(of_anchors, "image", 2).tolist() == [[1, 2, 5, 6, 9, 10], [3, 4, 7, 8, 11, 12]]
    assert group_pairs(of_anchors, "minibatch", 2).tolist() == [[*range(1, 13)]]
    assert group_pairs(of_anchors, "anchor", 2) is of_anchors


@pytest.mark.parametrize("by_view", [False, True])
@pytest.mark.parametrize("source", ["bank", "batch"])
def test_a_known_stack_gives_the_same_from_one_table(source, by_view):
    z, augmented, bank = unit(3, 4, 5), unit(3, 4, 5, seed=2), unit(3, 6, 5, seed=3)
    past = other_views(bank) if source == "bank" else None
    shared = Pairs(3, past)
    joint = shared.stack(z, augmented)
    for anchors, targets in ((joint, joint), (z, z), (augmented, z), (z, augmented)):
        fresh = Pairs(3, past)(anchors.clone(), targets.clone(), by_view)
        torch.testing.assert_close(shared(anchors, targets, by_view), fresh, rtol=0, atol=1e-15)
    assert len(shared.tables) == 1


@pytest.mark.parametrize("source", ["bank", "batch"])
def test_a_function_of_past_negatives_is_computed_once_for_a_stack(source):
    z, augmented, bank = unit(2, 4, 5), unit(2, 4, 5, seed=2), unit(2, 6, 5, seed=3)
    pairs, shapes = Pairs(2, other_views(bank) if source == "bank" else None), []

    def add(negatives, factor):
        shapes.append(tuple(negatives.shape))
        return factor * negatives.sum(-1)

    joint = pairs.stack(z, augmented)
    for anchors, targets in ((joint, joint), (z, z), (augmented, z), (joint, z)):
        negatives = pairs.compare(anchors, targets)[1]
        value = pairs.reduce_negatives(add, negatives, anchors, targets, 2.0)
        torch.testing.assert_close(value, 2 * negatives.sum(-1))
    assert shapes == ([(2, 2, 4, 6)] if source == "bank" else [(2, 2, 4, 6), (2, 1, 4, 3), (2, 1, 4, 3), (2, 2, 4, 3)])
    pairs.reduce_negatives(add, pairs.compare(z, z)[1], z, z, 3.0)  # another argument is another value
    assert len(shapes) == (2 if source == "bank" else 5)


@pytest.mark.parametrize("source", ["bank", "batch"])
def test_the_gradient_of_original_pairs_is_that_of_a_literal_loop(source):
    """Of a loss of all pairs of z and z~ stacked, with a weight of its own for each. z~ depends on z."""
    z, bank = unit(3, 4, 5).requires_grad_(), unit(3, 6, 5, seed=3)
    past = other_views(bank) if source == "bank" else None
    augmented, pairs = torch.nn.functional.normalize(z.flip(1) + 0.3 * unit(3, 4, 5, seed=2), dim=-1), Pairs(3, past)
    pairs.mark(augmented, [False] * 3)
    joint = pairs.stack(z, augmented)
    value = sum((similarities**3).sum() for similarities in pairs(joint, joint))
    wanted = z.new_zeros(())
    for v in range(3):
        for u in (u for u in range(3) if u != v):
            wanted = wanted + similarity((z[v] * z[u]).sum(-1)).pow(3).sum()
            table = similarity(z[v] @ (bank[u] if source == "bank" else z[u]).T).pow(3)
            wanted = wanted + (table.sum() if source == "bank" else table.sum() - table.diagonal().sum())
    got = pairs.original_gradient(value, z)
    torch.testing.assert_close(got, torch.autograd.grad(wanted, z)[0])
    assert not torch.allclose(got, torch.autograd.grad(value, z)[0])


def test_similarity_maps_cosines_to_the_unit_interval():
    assert similarity(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [0.0, 0.5, 1.0]
