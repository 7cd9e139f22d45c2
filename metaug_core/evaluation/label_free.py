"""What features show without labels: ranks, spectrum, uniformity and alignment, each as its paper defines it.

They compare encoders of one architecture on the same images. None of them replaces an accuracy.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from metaug_core.data.images import AnyImages, spread_rows
from metaug_core.errors import MetaugError
from metaug_core.evaluation.crops import split_rows
from metaug_core.objectives.losses import alignment, uniformity
from metaug_core.runs.encoder import Encoder
from metaug_core.views.augmentation import augment, split

IMAGES = 2048  # for RankMe, alpha-ReQ and uniformity; a rank cannot be larger
RANKME_EPSILON = 1e-7
LIDAR_IMAGES, LIDAR_VIEWS = 1000, 10  # n and q
FIRST_RANK, LAST_RANK = 12, 100  # of the eigenvalues that alpha-ReQ fits, as its authors' code has it
BETTER = {"rankme": "higher", "lidar": "higher", "alpha_req": "near 1", "uniformity": "lower", "alignment": "lower"}


def to_double(h: Tensor) -> Tensor:
    """The features as float64 on the CPU: the same numbers everywhere, and not every device has this type."""
    return h.detach().cpu().double()


def entropy_rank(values: Tensor, epsilon: float) -> float:
    """exp of the entropy of p_k = values_k / sum + epsilon, of values >= 0 (K,): between 1 and K."""
    p = values / values.sum() + epsilon
    return float(torch.exp(-(p * p.log()).sum()))


def rankme(h: Tensor) -> float:
    """RankMe (Garrido et al. 2023) of features (N, D), not centred: `entropy_rank` of the singular values."""
    return entropy_rank(torch.linalg.svdvals(to_double(h)), RANKME_EPSILON)


def compare_augmented(z: Tensor, augmented: Tensor) -> tuple[Tensor, float, float]:
    """What augmented features add to features, both (N, d) of unit norm: the singular values of z~ - z, not centred, the largest 1;
    their RankMe, how many directions z~ - z fills; and the mean d(z, z~) in [0, 1]. Where z~ is z the first two are nan."""
    z, augmented = to_double(z), to_double(augmented)
    values = torch.linalg.svdvals(augmented - z)
    rank = entropy_rank(values, RANKME_EPSILON)
    return values / values[0], rank, float((1 + (z * augmented).sum(1).mean()) / 2)


def alpha_req(h: Tensor) -> float:
    """alpha-ReQ (Agrawal et al. 2022): alpha of eigenvalue_k ~ k^-alpha, of the covariance of features (N, D).

    Least squares of log eigenvalue on log k over the ranks k 12 to 100, each weighted by 1 / k (Stringer et al. 2019). Eigenvalues
    that are zero but for rounding are left out; nan if fewer than two are left."""
    h = to_double(h)
    eigenvalues = torch.linalg.svdvals(h - h.mean(0)).square()
    count = int((eigenvalues > eigenvalues[0] * max(h.shape) * torch.finfo(h.dtype).eps).sum())
    k = torch.tensor(range(FIRST_RANK, min(LAST_RANK, count) + 1), dtype=h.dtype)
    if len(k) < 2:
        return float("nan")
    x, y, weight = k.log(), eigenvalues[FIRST_RANK - 1 : FIRST_RANK - 1 + len(k)].log(), 1 / k / (1 / k).sum()
    x, y = x - weight @ x, y - weight @ y
    return float(-(weight * x) @ y / ((weight * x) @ x))


def lidar(h: Tensor) -> float:
    """LiDAR (Thilak et al. 2024) of features h (n, q, D) of q augmentations of each of n images, which is its class.

    `entropy_rank`, epsilon 1e-8, of the eigenvalues of S_w^-1/2 S_b S_w^-1/2: S_b the covariance of the n means, S_w that of
    features within an image plus 1e-4 I. At most min(n - 1, D)."""
    h = to_double(h)
    means = h.mean(1)
    between, within = (means - means.mean(0)) / len(h) ** 0.5, (h - means[:, None]).flatten(0, 1)
    within_covariance = within.T @ within / len(within) + 1e-4 * torch.eye(h.shape[2], dtype=h.dtype)
    # S_b = between^T between, so that the singular values of L^-1 between^T, S_w = L L^T, are the roots of these eigenvalues.
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(within_covariance), between.T, upper=False)
    return entropy_rank(torch.linalg.svdvals(whitened).square(), 1e-8)


@torch.no_grad()
def augmented_features(encoder: Encoder, images: AnyImages, count: int, seed: int = 0) -> Tensor:
    """h (n, q, D) of q = count random augmentations of each image, as the run was trained with. The draws depend on seed alone."""
    config, device = encoder.config, images.labels.device
    generator = torch.Generator(device).manual_seed(seed)
    parts = []
    for pixels in images.batches(split_rows(images)):
        views = [split(augment(pixels, config, generator), encoder.names) for _ in range(count)]
        parts.append(torch.stack([torch.cat(encoder.encoders(view, encoder.names), 1) for view in views], 1))
    return torch.cat(parts)


@torch.no_grad()
def measure_label_free(encoder: Encoder, h: Tensor, images: AnyImages) -> dict[str, float]:
    """The measures `BETTER` of an encoder, by name. h (N, D): its features of the images, of which up to 2,048, evenly spaced, are
    taken; of up to 1,000 of these 10 augmentations for LiDAR, and two of them for alignment."""
    if len(images) < 2:
        raise MetaugError("measures without labels need at least two images")
    rows = spread_rows(len(images), IMAGES).to(h.device)
    h, some = h[rows], images.take(rows[spread_rows(len(rows), LIDAR_IMAGES).to(rows.device)])
    augmented = augmented_features(encoder, some, LIDAR_VIEWS)
    first, second, *_ = F.normalize(augmented, dim=2).unbind(1)
    return {
        "rankme": rankme(h),
        "lidar": lidar(augmented),
        "alpha_req": alpha_req(h),
        "uniformity": float(uniformity(F.normalize(h, dim=1))),
        "alignment": float(alignment(first, second)),
    }
