"""From features to the similarities of pairs: which features are positives and which negatives of an anchor.

A set of features is (V, B, d), a row for each view; z and z~ stacked are two sets, (2V, B, d). A pair joins features of two
DIFFERENT views: a positive if they are of the same image, else a negative. This is our reading: section 3.1 lets j and j' run over
all views and does not say whether they may be equal, neither for positives nor for negatives. `Pairs.compare_own`
joins features of the SAME view.

V views, S sets of anchors, R sets of targets, B images, T = V - 1 other views of a view, K past features.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor


def similarity(cosines: Tensor) -> Tensor:
    """d = (1 + cos) / 2, in [0, 1]: the optimum of a positive is 1 and of a negative 0 (section 3.3).

    A reading, which the authors' code shares: section 3.3 speaks of normalised features alone, whose product lies in [-1, 1]."""
    return (1 + cosines) / 2


def other_views(x: Tensor) -> Tensor:
    """(V, ...) -> (V, V - 1, ...): row v holds the entries of the views that are not v."""
    rows = x.unbind()  # one node of the graph, where an index for each row would be one each
    views = range(len(rows))
    return torch.stack([rows[u] for v in views for u in views if u != v]).unflatten(0, (len(rows), -1))


def mean_of_other_views(x: Tensor, like: Tensor, views: int) -> Tensor:
    """For each row of like (W, B, d) the mean of the rows of x (R, B, d) that are of another view; row w is of view w % V."""
    each = x.unflatten(0, (-1, views)).mean(0)  # (V, B, d)
    others = (each.sum(0) - each) / (views - 1)
    return others.repeat(len(like) // views, 1, 1)


def group_pairs(similarities: Tensor, scope: str, batch: int) -> Tensor:
    """The pairs of several anchors side by side, from the similarities (..., B, P) of anchors.

    scope "anchor": as they are; "image": those of an image in one row, (B, any); "minibatch": all of them in one, (1, any).
    """
    if scope == "image":
        return similarities.reshape(-1, batch, similarities.shape[-1]).transpose(0, 1).flatten(1)
    return similarities.reshape(1, -1) if scope == "minibatch" else similarities


# Anchors (V, S, B, d), past features (V, T, N, d), which of them each image takes (B, K) or None, and the similarities
# (V, S, B, T, K) -> similarities (V, S, B, T, any) with negatives made of them.
Synthesise = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]


class Table(NamedTuple):
    """Similarities of a set of anchors with a set of targets."""

    anchors: Tensor  # (S V, B, d)
    targets: Tensor  # (R V, B, d)
    positives: Tensor  # (V, S, B, T, R)
    negatives: Tensor  # (V, S, B, T, R, B - 1), or (V, S, B, T, 1, K) of past features


class Pairs:
    """Similarities of a minibatch's features. Those of a stack of sets are computed once, as one table, however many losses need
    it or a part of it.

    negatives (V, V - 1, K, d): past features that each view is compared with (`other_views` of (V, K, d)), shared by the
    minibatch; with drawn (B, K) each image takes these of them. None: the targets of the other images of the minibatch.
    synthesise: makes further negatives of past ones (`Synthesise`).
    """

    def __init__(self, views: int, negatives: Tensor | None = None, drawn: Tensor | None = None,
                 synthesise: Synthesise | None = None):  # fmt: skip
        self.views, self.past, self.drawn, self.synthesise = views, negatives, drawn, synthesise
        self.stacks: list[tuple[Tensor, tuple[Tensor, ...]]] = []
        self.tables: list[Table] = []
        self.reduced: list[tuple[tuple, Tensor]] = []
        self.original: list[tuple[Tensor, Sequence[bool]]] = []

    def stack(self, *sets: Tensor) -> Tensor:
        """Sets (V, B, d) as one tensor, whose parts this object remembers."""
        self.stacks.append((torch.cat(sets), sets))
        return self.stacks[-1][0]

    def mark(self, features: Tensor, original: Sequence[bool]) -> None:
        """Note which rows of a set (V, B, d) hold original features; in a set without a mark all do."""
        self.original.append((features, original))

    def __call__(self, anchors: Tensor, targets: Tensor, by_view: bool = False) -> tuple[Tensor, Tensor]:
        """Similarities d in [0, 1], (A, P) of the positives and (A, N) of the negatives of every anchor: by view, set, image.

        anchors (S V, B, d) and targets (R V, B, d), unit norm: row w belongs to view w % V. by_view: an anchor once per target view
        (A = V S B T, P = R), as the terms of InfoNCE; else all pairs of an anchor together (A = V S B, P = T R).
        """
        positives, negatives = self.compare(anchors, targets, by_view)
        return positives.flatten(0, -2), negatives.flatten(0, -2)

    def compare(self, anchors: Tensor, targets: Tensor, by_view: bool = False) -> tuple[Tensor, Tensor]:
        """The same without a copy, in the place of A the dimensions (V, S, B) or, by_view, (V, S, B, T)."""
        table, of_anchors, of_targets = self._find(anchors, targets)
        positives, negatives = of_targets(of_anchors(table.positives)), of_anchors(table.negatives)
        if self.past is None:
            negatives = of_targets(negatives)
        return positives.flatten(4 if by_view else 3), negatives.flatten(4 if by_view else 3)

    def reduce_negatives(
        self, compute: Callable[..., Tensor], negatives: Tensor, anchors: Tensor, targets: Tensor, *arguments: Any
    ) -> Tensor:
        """compute(negatives, *arguments) (V, S, B) of the negatives (V, S, B, N) that `compare` gives of these anchors and targets.
        Past ones are the same for all targets and in every part of a stack, so it is computed once for the whole."""
        if self.past is None:
            return compute(negatives, *arguments)
        table, of_anchors, _ = self._find(anchors, targets)
        for key, value in self.reduced:
            if key == (compute, id(table.negatives), *arguments):  # lives as long as the table, so its id is no other's
                return of_anchors(value)
        value = compute(table.negatives.flatten(3), *arguments)
        self.reduced.append(((compute, id(table.negatives), *arguments), value))
        return of_anchors(value)

    def compare_own(self, anchors: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As `compare`, with targets of an anchor's OWN view: (V, S, B, R) of the positives, the same image, and (V, S, B, N) of
        the negatives: past features of this view, or the targets of the other images of the minibatch. V >= 2."""
        anchors, targets = self._by_view(anchors), self._by_view(targets)
        positives = _same_image(anchors, targets)
        if self.past is None:
            negatives = _take(_compare(anchors, targets), other_images(anchors.shape[2], anchors.device))
        else:  # its row v holds the other views: view 0 leads row 1, the rest are row 0
            own = torch.stack([self.past[1, 0], *self.past[0]])
            negatives = self._compare_past(anchors, own[:, None])
        return positives, negatives.flatten(3)

    def original_gradient(self, value: Tensor, z: Tensor) -> Tensor:
        """The part of d value / dz that comes through pairs of two original features (past ones count as original).

        z (V, B, d): the original features; value: a loss of similarities from this object. Keeps the graph.
        """
        blocks = [(t, block) for t in self.tables for block in (t.positives, t.negatives) if block.requires_grad]
        if not blocks:
            return torch.zeros_like(z)
        options: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        found = torch.autograd.grad(value, [block for _, block in blocks], **options)
        gradients = [gradient.clone(memory_format=torch.contiguous_format) for gradient in found]
        for (table, block), gradient in zip(blocks, gradients, strict=True):
            self._drop_augmented(gradient, table, past=block is table.negatives and self.past is not None)
        return torch.autograd.grad([block for _, block in blocks], z, gradients, **options)[0]

    def _drop_augmented(self, values: Tensor, table: Table, past: bool) -> None:
        """Set to 0, of values (V, S, B, T, R, ...) of pairs, those with an augmented feature. past: targets are past features."""
        anchors, targets = self._originals(table.anchors), self._originals(table.targets)
        for w, original in enumerate(anchors):
            view, own = w % self.views, values[w % self.views, w // self.views]  # (B, T, R, ...)
            if past and not original:
                own.zero_()
            for u, also in enumerate(targets) if not past else ():
                other = u % self.views
                if other != view and not (original and also):
                    own[:, other - (other > view), u // self.views].zero_()

    def _originals(self, features: Tensor) -> Sequence[bool]:
        parts = next((sets for whole, sets in self.stacks if whole is features), (features,))
        marks = [next((rows for marked, rows in self.original if marked is part), None) for part in parts]
        return [flag for part, rows in zip(parts, marks, strict=True) for flag in rows or [True] * len(part)]

    def _find(self, anchors: Tensor, targets: Tensor) -> tuple[Table, Callable, Callable]:
        """The table of these features, or of the stacks that they are parts of, and the functions that take their part of it."""
        (anchors, of_anchors), (targets, of_targets) = self._find_stack(anchors, 1), self._find_stack(targets, 4)
        for table in self.tables:
            if table.anchors is anchors and table.targets is targets:
                return table, of_anchors, of_targets
        self.tables.append(self._compute(anchors, targets))
        return self.tables[-1], of_anchors, of_targets

    def _find_stack(self, features: Tensor, dim: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The stack that features are a part of, and the function that takes this part along dim; else themselves."""
        for whole, sets in self.stacks:
            for number, part in enumerate(sets):
                if part is features:
                    return whole, partial(torch.narrow, dim=dim, start=number, length=1)
        return features, lambda x: x

    def _compute(self, anchors: Tensor, targets: Tensor) -> Table:
        rows, others = self._by_view(anchors), other_views(self._by_view(targets))  # (V, S, B, d), (V, T, R, B, d)
        if self.past is None:  # one product has both
            table = _compare(rows, others)  # (V, S, B, T, R, B)
            positives = table.diagonal(dim1=2, dim2=5).movedim(-1, 2)
            return Table(anchors, targets, positives, _take(table, other_images(rows.shape[2], rows.device)))
        past = next((t.negatives for t in self.tables if t.anchors is anchors), None)  # of other targets
        if past is None:
            table = self._compare_past(rows, self.past)
            if self.synthesise is not None:
                table = torch.cat([table, self.synthesise(rows, self.past, self.drawn, table)], -1)
            past = table[..., None, :]
        return Table(anchors, targets, _same_image(rows, others), past)

    def _compare_past(self, anchors: Tensor, past: Tensor) -> Tensor:
        """(V, S, B, T, K) with past features (V, T, N, d), those that are drawn for each image."""
        table = _compare(anchors, past)
        return table if self.drawn is None else _take(table, self.drawn)

    def _by_view(self, features: Tensor) -> Tensor:
        """(S V, B, d) -> (V, S, B, d)."""
        return features.unflatten(0, (-1, self.views)).transpose(0, 1)


@lru_cache(maxsize=16)  # the same in every step
def other_images(batch: int, device: torch.device) -> Tensor:
    """The numbers of the other images of a minibatch for each image, int64 (B, B - 1)."""
    with torch.inference_mode(False):  # a tensor of inference mode could not serve a later training step
        count = torch.arange(batch - 1, device=device)
        return count + (count >= torch.arange(batch, device=device)[:, None])


def _same_image(anchors: Tensor, targets: Tensor) -> Tensor:
    """Similarities (V, S, B, ...) of each image of (V, S, B, d) with itself in (V, ..., B, d)."""
    rows = targets.flatten(1, -3).permute(0, 2, 3, 1)  # (V, B, d, any)
    cosines = (anchors.transpose(1, 2) / 2) @ rows  # (V, B, S, any)
    return cosines.transpose(1, 2).add(0.5).unflatten(-1, targets.shape[1:-2])


def _compare(anchors: Tensor, targets: Tensor) -> Tensor:
    """Similarities (V, S, B, ..., N) of (V, S, B, d) with all of (V, ..., N, d)."""
    # Half of the few anchors, not of the many similarities: the same to the bit.
    half = anchors.flatten(1, 2) / 2
    table = (half @ targets.flatten(1, -2).transpose(1, 2)).add_(0.5)
    return table.unflatten(1, anchors.shape[1:3]).unflatten(-1, targets.shape[1:-1])


def _take(table: Tensor, columns: Tensor) -> Tensor:
    """The columns (B, K) of each image from a table (V, S, B, ..., N): (V, S, B, ..., K)."""
    rows = columns.view(1, 1, len(columns), *[1] * (table.dim() - 4), -1)
    return table.gather(-1, rows.expand(*table.shape[:-1], -1))
