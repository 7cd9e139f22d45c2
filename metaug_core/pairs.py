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
    cosines: bool = False,
) -> tuple[Tensor, Tensor]:
    """Similarities d in [0, 1], (A, P) of the positives and (A, N) of the negatives of every anchor; or their cosines.

    anchors (W, B, d), targets (U, B, d), unit norm. negatives (V, V - 1, K, d): past features that each view meets
    (`other_views` of (V, K, d)), shared by the minibatch; with drawn (B, K) each image takes these of them. None: the
    targets of the other images of the minibatch. by_view: an anchor once per target view (A = W B (V - 1), P = U / V), as
    InfoNCE wants its terms; else all its pairs together (A = W B, P = (V - 1) U / V).
    """
    rows, batch, dim = anchors.shape
    sets = targets.shape[0] // views
    a = anchors.view(rows // views, views, batch, dim).transpose(0, 1)  # (V, W/V, B, d)
    t = other_views(targets.view(sets, views, batch, dim).transpose(0, 1))  # (V, V-1, U/V, B, d)
    # d = (1 + cos) / 2 comes out of the matmul itself: one pass less over A x N numbers, and over those of each derivative.
    scale, shift = (1.0, 0.0) if cosines else (0.5, 0.5)
    positives = scale * torch.einsum("vwbd,vtubd->vwbtu", a, t) + shift
    past = (t if negatives is None else negatives).reshape(views, -1, dim).transpose(1, 2)
    found = torch.baddbmm(a.new_full((1, 1, 1), shift), a.reshape(views, -1, dim), past, alpha=scale)
    found = found.view(views, rows // views, batch, views - 1, -1)
    if negatives is None:
        found = _take(found, _other_images(batch, sets, a.device))
    elif drawn is not None:
        found = _take(found, drawn)
    last = views - 1 if by_view else 1
    return positives.reshape(rows * batch * last, -1), found.reshape(rows * batch * last, -1)


def _other_images(batch: int, sets: int, device: torch.device) -> Tensor:
    """(B, sets (B - 1)): of columns that count the minibatch `sets` times over, row b takes all but those of image b."""
    count = torch.arange(batch - 1, device=device)
    others = count + (count >= torch.arange(batch, device=device)[:, None])  # (B, B - 1)
    return torch.cat([others + batch * number for number in range(sets)], dim=1)


def _take(found: Tensor, columns: Tensor) -> Tensor:
    """Of found (V, W/V, B, V - 1, N) the columns (B, K) of each image: (V, W/V, B, V - 1, K)."""
    index = columns[None, None, :, None, :].expand(*found.shape[:2], -1, found.shape[3], -1)
    return found.gather(-1, index)
