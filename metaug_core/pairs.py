"""From features to the similarities of pairs: which features are positives and which negatives of an anchor.

A set of features is (W, B, d) with W a multiple of V: row w belongs to view w % V, so z and z~ stacked are a set of W = 2V rows.
A pair joins features of two DIFFERENT views (section 3.1): of the same image it is a positive, of different images a negative.
"""

import torch
from torch import Tensor


def similarity(cosines: Tensor) -> Tensor:
    """d = (1 + cos) / 2, in [0, 1]: the optimum of a positive is 1 and of a negative 0 (section 3.3)."""
    return (1 + cosines) / 2


def other_views(x: Tensor) -> Tensor:
    """(V, ...) -> (V, V - 1, ...): row v holds the entries of the views that are not v."""
    views = x.shape[0]
    index = [[u for u in range(views) if u != v] for v in range(views)]
    return x[torch.tensor(index, device=x.device)]


def pairs(
    anchors: Tensor,
    targets: Tensor,
    views: int,
    negatives: Tensor | None = None,
    drawn: Tensor | None = None,
    by_view: bool = False,
) -> tuple[Tensor, Tensor]:
    """Cosines (A, P) of the positives and (A, N) of the negatives of every anchor.

    anchors (W, B, d), targets (U, B, d), unit norm. negatives (V, V - 1, K, d): past features that each view meets
    (`other_views` of (V, K, d)), shared by the minibatch; with drawn (B, K) each image takes these of them. None: the
    targets of the other images of the minibatch. by_view: an anchor once per target view (A = W B (V - 1), P = U / V), as
    InfoNCE wants its terms; else all its pairs together (A = W B, P = (V - 1) U / V).
    """
    rows, batch, dim = anchors.shape
    sets = targets.shape[0] // views
    a = anchors.view(rows // views, views, batch, dim).transpose(0, 1)  # (V, W/V, B, d)
    t = other_views(targets.view(sets, views, batch, dim).transpose(0, 1))  # (V, V-1, U/V, B, d)
    positives = torch.einsum("vwbd,vtubd->vwbtu", a, t)
    flat = a.reshape(views, -1, dim)  # (V, W/V B, d)
    past = t if negatives is None else negatives
    cosines = flat @ past.reshape(views, -1, dim).transpose(1, 2)
    cosines = cosines.view(views, rows // views, batch, views - 1, -1)
    if negatives is None:
        keep = _others(batch, anchors.device).repeat(1, sets) + batch * torch.arange(
            sets, device=anchors.device
        ).repeat_interleave(batch - 1)
        cosines = _take(cosines, keep)
    elif drawn is not None:
        cosines = _take(cosines, drawn)
    last = views - 1 if by_view else 1
    return positives.reshape(rows * batch * last, -1), cosines.reshape(rows * batch * last, -1)


def _others(batch: int, device: torch.device) -> Tensor:
    """(B, B - 1): row b counts the images that are not b."""
    count = torch.arange(batch - 1, device=device)
    return count + (count >= torch.arange(batch, device=device)[:, None])


def _take(cosines: Tensor, columns: Tensor) -> Tensor:
    """Of cosines (V, W/V, B, V - 1, N) the columns (B, K) of each image: (V, W/V, B, V - 1, K)."""
    index = columns[None, None, :, None, :].expand(*cosines.shape[:2], -1, cosines.shape[3], -1)
    return cosines.gather(-1, index)
