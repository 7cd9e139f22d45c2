"""From features to the similarities of pairs: which features are positives and which negatives of an anchor.

A set of features is (V, B, d), a row for each view; z and z~ stacked are two sets, (2V, B, d). A pair joins features of two
DIFFERENT views: a positive if they are of the same image, else a negative. This is our reading: section 3.1 lets j and j' run over
all views and does not say whether they may be equal, neither for positives nor for negatives. `Pairs.own_view`
joins features of the SAME view.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def similarity(cosines: Tensor) -> Tensor:
    """d = (1 + cos) / 2, in [0, 1]: the optimum of a positive is 1 and of a negative 0 (section 3.3).

    A reading, which the authors' code shares: section 3.3 speaks of normalised features alone, whose product lies in [-1, 1]."""
    return (1 + cosines) / 2


def other_views(x: Tensor) -> Tensor:
    """(V, ...) -> (V, V - 1, ...): row v holds the entries of the views that are not v."""
    views = x.shape[0]
    return torch.stack([x[u] for v in range(views) for u in range(views) if u != v]).unflatten(0, (views, views - 1))


def group_pairs(similarities: Tensor, scope: str, batch: int) -> Tensor:
    """The pairs of several anchors side by side, from the similarities (W B, P) of anchors whose row w B + b is of image b.

    scope "anchor": as they are; "image": those of an image in one row, (B, W P); "minibatch": all of them in one, (1, W B P).
    """
    if scope == "image":
        return similarities.unflatten(0, (-1, batch)).transpose(0, 1).flatten(1)
    return similarities.reshape(1, -1) if scope == "minibatch" else similarities


class Pairs:
    """Similarities of a minibatch's features, in blocks of one set against another. A block, and what losses compute of it by
    `once`, is computed once, however many losses need it.

    negatives (V, V - 1, K, d): past features that each view is compared with (`other_views` of (V, K, d)), shared by the
    minibatch; with drawn (B, K) each image takes these of them. None: the targets of the other images of the minibatch.
    """

    def __init__(self, views: int, negatives: Tensor | None = None, drawn: Tensor | None = None):
        self.views, self.past, self.drawn = views, negatives, drawn
        self.stacks: list[tuple[Tensor, tuple[Tensor, ...]]] = []
        self.computed: dict[tuple, tuple[Tensor, tuple]] = {}  # function and operands -> result, operands
        self.original: list[tuple[Tensor, Sequence[bool]]] = []

    def stack(self, *sets: Tensor) -> Tensor:
        """Sets (V, B, d) as one tensor, whose parts this object remembers."""
        self.stacks.append((torch.cat(sets), sets))
        return self.stacks[-1][0]

    def mark(self, features: Tensor, original: Sequence[bool]) -> None:
        """Note which rows of a set (V, B, d) hold original features; in a set without a mark all do."""
        self.original.append((features, original))

    def original_gradient(self, value: Tensor, z: Tensor) -> Tensor:
        """The part of d value / dz that comes through pairs of two original features (past ones count as original).

        z (V, B, d): the original features; value: a loss of similarities from this object. Keeps the graph.
        """
        blocks, originals = [], []
        for (name, *_), (block, operands) in self.computed.items():
            if name in BLOCKS and block.requires_grad:
                blocks.append(block)
                originals.append([self._originals(features) for features in operands])
        if not blocks:
            return torch.zeros_like(z)
        options: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        gradients = torch.autograd.grad(value, blocks, **options)
        for gradient, (anchors, *targets) in zip(gradients, originals, strict=True):
            for v in range(self.views):
                for place, u in enumerate(u for u in range(self.views) if u != v):
                    if not (anchors[v] and all(rows[u] for rows in targets)):
                        gradient[v, :, place].zero_()
        return torch.autograd.grad(blocks, z, gradients, **options)[0]

    def _originals(self, features: Tensor) -> Sequence[bool]:
        marks = [rows for marked, rows in self.original if marked is features]
        return marks[0] if marks else [True] * len(features)

    def __call__(self, anchors: Tensor, targets: Tensor, by_view: bool = False) -> tuple[Tensor, Tensor]:
        """Similarities d in [0, 1], (A, P) of the positives and (A, N) of the negatives of every anchor.

        anchors (W, B, d) and targets (U, B, d), unit norm, W and U multiples of V: row w belongs to view w % V. by_view: an
        anchor once per target view (A = W B (V - 1), P = U / V), as the terms of InfoNCE; else all pairs of an anchor together
        (A = W B, P = (V - 1) U / V).
        """
        rows = self.rows(anchors, targets, by_view)
        if len(rows) == 1:  # torch.cat would copy it
            return rows[0]
        positives, negatives = zip(*rows, strict=True)
        return torch.cat(positives), torch.cat(negatives)

    def rows(self, anchors: Tensor, targets: Tensor, by_view: bool = False) -> list[tuple[Tensor, Tensor]]:
        """The same for each set of anchors separately, which copies nothing."""
        last = self.views - 1 if by_view else 1
        return [self._row(i, self._sets(targets), last) for i in self._sets(anchors)]

    def _row(self, anchors: Tensor, targets: tuple[Tensor, ...], last: int) -> tuple[Tensor, Tensor]:
        count = self.views * anchors.shape[1] * last
        positives = torch.stack([self.once(_positives, anchors, j) for j in targets], -1)
        if self.past is not None:  # the same for every target set, so they count once
            blocks = [self.once(self._past, anchors)]
        else:
            blocks = [self.once(_others, anchors, j) for j in targets]
        negatives = blocks[0] if len(blocks) == 1 else torch.cat(blocks, -1)
        return positives.reshape(count, -1), self.once(torch.reshape, negatives, (count, -1))

    def own_view(self, anchors: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Similarities d in [0, 1] of every anchor with targets of its OWN view: (A, U / V) of the positives, the same image, and
        (A, N) of the negatives: past features of this view, or the targets of the other images of the minibatch.

        anchors (W, B, d) and targets (U, B, d), unit norm, W and U multiples of V >= 2; A = W B.
        """
        sets, rows = self._sets(targets), []
        for i in self._sets(anchors):
            positives = torch.stack([_same_image(i, j[:, None]) for j in sets], -1)
            if self.past is None:
                blocks = [_other_images(i, j[:, None]) for j in sets]
            else:  # row v of `past` holds the other views: view 0 is the first of row 1, the rest are row 0
                own = torch.stack([self.past[1, 0], *self.past[0]])
                blocks = [self._past_images(i, own[:, None])]
            rows.append((positives.flatten(0, 1).flatten(1), torch.cat(blocks, -1).flatten(0, 2)))
        positives, negatives = zip(*rows, strict=True)
        return torch.cat(positives), torch.cat(negatives)

    def _sets(self, features: Tensor) -> tuple[Tensor, ...]:
        for whole, sets in self.stacks:
            if whole is features:
                return sets
        return (features,) if len(features) == self.views else features.split(self.views)

    def once(self, compute: Callable[..., Tensor], *operands: Any) -> Tensor:
        """compute(*operands), computed at the first call with these very tensors and returned again at later ones."""
        key = (compute.__name__, *(id(x) if isinstance(x, Tensor) else x for x in operands))
        if key not in self.computed:  # keeps the operands too: an id names a tensor only as long as it lives
            self.computed[key] = compute(*operands), operands
        return self.computed[key][0]

    def _past(self, anchors: Tensor) -> Tensor:
        """(V, B, V - 1, K) against past features."""
        assert self.past is not None
        return self._past_images(anchors, self.past)

    def _past_images(self, anchors: Tensor, past: Tensor) -> Tensor:
        """(V, B, T, K) against past features (V, T, N, d), those that are drawn for each image."""
        table = _compare(anchors, past)
        return table if self.drawn is None else _take(table, self.drawn)


# The functions that give similarities (V, B, V - 1, ...) of one set with another.
BLOCKS = ("_positives", "_others", "_past")


def _positives(anchors: Tensor, targets: Tensor) -> Tensor:
    """(V, B, V - 1) of each image with itself in the other views."""
    return _same_image(anchors, other_views(targets))


def _others(anchors: Tensor, targets: Tensor) -> Tensor:
    """(V, B, V - 1, B - 1) of each image with the other images in the other views."""
    return _other_images(anchors, other_views(targets))


def _same_image(anchors: Tensor, targets: Tensor) -> Tensor:
    """Similarities (V, B, T) of each image of (V, B, d) with itself in (V, T, B, d)."""
    return similarity((anchors[:, :, None] * targets.transpose(1, 2)).sum(-1))


def _other_images(anchors: Tensor, targets: Tensor) -> Tensor:
    """Similarities (V, B, T, B - 1) of each image of (V, B, d) with the other images in (V, T, B, d)."""
    batch = anchors.shape[1]
    count = torch.arange(batch - 1, device=anchors.device)
    others = count + (count >= torch.arange(batch, device=anchors.device)[:, None])  # (B, B - 1)
    return _take(_compare(anchors, targets), others)


def _compare(anchors: Tensor, targets: Tensor) -> Tensor:
    """Similarities of (V, B, d) with (V, T, N, d): (V, B, T, N)."""
    cosines = anchors @ targets.flatten(1, 2).transpose(1, 2)
    return similarity(cosines).unflatten(-1, (targets.shape[1], -1))


def _take(table: Tensor, columns: Tensor) -> Tensor:
    """The columns (B, K) of each image from a table (V, B, T, N): (V, B, T, K)."""
    return table.gather(-1, columns[None, :, None, :].expand(len(table), -1, table.shape[2], -1))
