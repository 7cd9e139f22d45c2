"""sigma+ and sigma- of the margin-injected regularisation (eq. 4 and Appendix A.2)."""

import torch
from torch import Tensor

from metaug_core.errors import MetaugError

KINDS = ("large", "medium", "small", "none")


def margins(positives: Tensor, negatives: Tensor, kind: str, per_row: bool = False) -> tuple[Tensor, Tensor]:
    """(sigma_plus, sigma_minus) from the similarities of ORIGINAL features, as constants (no gradient).

    With min+ the smallest positive and max- the largest negative similarity of the minibatch (or of each row):

    - large: sigma+ = min(min+, max-), sigma- = max(min+, max-)
    - medium: both are the mean of min+ and max-
    - small: sigma+ = max(min+, max-), sigma- = min(min+, max-)
    - none: +inf and -inf, so that R_sigma is 0

    positives (A, P) and negatives (A, N) in [0, 1], a row for each anchor or each image. Returns scalars, or (A, 1) with per_row.
    Raises MetaugError for an unknown kind.
    """
    if kind not in KINDS:
        raise MetaugError(f"margin must be one of {', '.join(KINDS)}, got {kind!r}")
    positives, negatives = positives.detach(), negatives.detach()
    hardest_pos = positives.amin(-1, keepdim=True) if per_row else positives.amin()
    hardest_neg = negatives.amax(-1, keepdim=True) if per_row else negatives.amax()
    low, high = torch.minimum(hardest_pos, hardest_neg), torch.maximum(hardest_pos, hardest_neg)
    if kind == "large":
        return low, high
    if kind == "small":
        return high, low
    if kind == "medium":
        return (low + high) / 2, (low + high) / 2
    return torch.full_like(low, torch.inf), torch.full_like(high, -torch.inf)
