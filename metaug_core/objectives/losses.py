"""Every objective, as a pure function of similarities or features.

Shapes: A anchors, which may be several dimensions, P positives and N negatives per anchor. d = (1 + cos) / 2 lies in [0, 1]; the
optimum of a positive is 1, of a negative 0. Equation numbers: Li et al., MetAug, ICML 2022. The double sums of eq. 8-10 factorise,

    sum_{k-} sum_{k+} exp(a_{k-} + b_{k+}) = (sum exp a) (sum exp b),

so they cost O(P + N), and no P x N table is formed. log(1 + exp(x)) is `softplus`, exact in float32 at any beta.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from metaug_core.objectives.low_memory import log_sum_exp_square

# --- InfoNCE (eq. 1) and its modifications


def info_nce(
    positives: Tensor, negatives: Tensor, temperature: float, tau_plus: float = 0.0, hard_beta: float = 0.0
) -> Tensor:
    """Eq. 1: mean of -log(e^{p/t} / (e^{p/t} + G)), G = sum_k e^{n_k/t}. Each positive of an anchor is a term of its own.
    The exponential and t are the usual reading: eq. 1 has a discriminating function, and no temperature.

    positives (A, P) and negatives (A, N) are similarities in [0, 1]; with tau_plus = 0 any real numbers do. Hard (Robinson et al.
    2021) and Debiased (Chuang et al. 2020) change G: `harden`, `debias`.
    """
    positives, negatives = positives / temperature, negatives / temperature
    count = negatives.shape[-1]
    log_g = debias(positives, harden(negatives, hard_beta, count), count, tau_plus)
    return softplus(log_g - positives).mean()


def decoupled(positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """DCL (Yeh et al. 2022, eq. 6): mean of -p/t + log sum_k e^{n_k/t}, each positive of an anchor a term of its own.

    positives (A, P) and negatives (A, N) are real numbers.
    """
    return (log_sum(negatives / temperature) - positives / temperature).mean()


def find_info_nce_floors(
    positives: Tensor, negatives: Tensor, temperature: float, tau_plus: float, hard_beta: float = 0.0
) -> Tensor:
    """Which sums G of `info_nce` stand at the floor of `debias`, bool (A, P). tau_plus > 0."""
    count = negatives.shape[-1]
    return is_at_floor(positives / temperature, harden(negatives / temperature, hard_beta, count), count, tau_plus)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x). It is x above 40, an error of 4e-18; torch's own 20 is one of 2e-9. The second derivative of torch.logaddexp is
    NaN beyond 88, as a temperature of 0.02 reaches."""
    return F.softplus(x, threshold=40)


def log_sum(x: Tensor) -> Tensor:
    """(..., N) -> log sum_k e^{x_k}, (..., 1)."""
    return torch.logsumexp(x, dim=-1, keepdim=True)


def logsumexp_others(x: Tensor) -> Tensor:
    """(..., N) -> log sum_{j != k} e^{x_j} for each k, (..., N). The largest entry is summed separately, for stability."""
    top = x.argmax(-1, keepdim=True) == torch.arange(x.shape[-1], device=x.device)
    share = (x - log_sum(x)).exp().masked_fill(top, 0)  # at most 1/2
    return torch.where(top, log_sum(x.masked_fill(top, -torch.inf)), log_sum(x) + torch.log1p(-share))


def harden(negatives: Tensor, hard_beta: float, count: int, total: Callable[[Tensor], Tensor] = log_sum) -> Tensor:
    """log G of Robinson et al. 2021 (eq. 4) from exponents n (..., count): G = sum_k w_k e^{n_k} with weights w_k of mean 1,
    proportional to e^{b n_k}. b = 0 is the plain sum, to the bit. total: the log of a sum, over all negatives or over others."""
    if not hard_beta:
        return total(negatives)
    return total((1 + hard_beta) * negatives) - total(hard_beta * negatives) + math.log(count)


def debias(positives: Tensor, rest: Tensor, count: int, tau_plus: float) -> Tensor:
    """log G of Chuang et al. 2020 (eq. 7, 8), (A, P), from exponents p (A, P) and the log of a sum over count negatives, (A, 1):
    G = max((e^rest - tau count e^p) / (1 - tau), count), since a share tau of the negatives is of the anchor's own class.

    The floor is count, because the smallest similarity is 0 and each term at least 1. tau = 0 is rest, to the bit.
    """
    if not tau_plus:
        return rest
    log_share, floored = _debiased_share(positives, rest, count, tau_plus)
    return torch.where(floored, math.log(count), rest + log_share)


def is_at_floor(positives: Tensor, rest: Tensor, count: int, tau_plus: float) -> Tensor:
    """Which sums of `debias` stand at their floor, bool (A, P): its negatives have no gradient there. tau_plus > 0."""
    return _debiased_share(positives, rest, count, tau_plus)[1]


def _debiased_share(positives: Tensor, rest: Tensor, count: int, tau_plus: float) -> tuple[Tensor, Tensor]:
    """Log of the debiased sum as a share of e^rest, (A, P), and where the floor stands instead. In logarithms, and without a value
    near 0 where the floor stands, because second derivatives of 1 / share overflow."""
    log_false = positives - rest + math.log(tau_plus * count)  # 0 or more: nothing is left
    nothing_left = log_false > -4 * torch.finfo(rest.dtype).eps
    log_share = torch.log1p(-torch.where(nothing_left, -1.0, log_false).exp()) - math.log1p(-tau_plus)
    return log_share, nothing_left | (log_share <= math.log(count) - rest)


def compare_in_batch(z: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Similarities d of unit features z (W, B, d) with all others of the minibatch: (WB, W - 1) with those of the same image and
    (WB, W (B - 1)) with those of other images. targets (V, B, d): with these instead, row w of z with all but row w % V of its own
    image, (WB, V - 1) and (WB, V (B - 1))."""
    targets = z if targets is None else targets
    rows, count, batch = len(z), len(targets), z.shape[1]
    table = ((1 + z.flatten(0, 1) @ targets.flatten(0, 1).T) / 2).view(rows, batch, count, batch).transpose(1, 2)
    same = table.diagonal(dim1=2, dim2=3)  # (W, V, B)
    each = [torch.stack([same[w, u] for u in range(count) if u != w % count], -1) for w in range(rows)]
    # Without its first entry, a square in rows of B + 1 has its diagonal in the last column.
    others = table.flatten(2)[..., 1:].reshape(rows, count, batch - 1, batch + 1)[..., :-1]
    negatives = others.reshape(rows, count, batch, batch - 1).transpose(1, 2)
    return torch.stack(each).flatten(0, 1), negatives.reshape(rows * batch, -1)


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """NT-Xent (Chen et al. 2020) over W unit features of each image, z (W, B, d): every ordered pair is a positive,
    every feature of another image of the minibatch a negative. W = 2 is SimCLR."""
    return info_nce(*compare_in_batch(z), temperature / 2)  # d = (1 + cos) / 2, and InfoNCE ignores a constant


# --- OUCL (eq. 7-10): positives (A, P) and negatives (A, N) are similarities in [0, 1]


def oucl_sum_hinge(positives: Tensor, negatives: Tensor, margin: float) -> Tensor:
    """Eq. 7: mean over anchors of [sum_k d-_k - sum_k d+_k + lambda]_+."""
    return (negatives.sum(-1) - positives.sum(-1) + margin).clamp(min=0).mean()


def oucl_plain(positives: Tensor, negatives: Tensor, beta: float, margin: float) -> Tensor:
    """Eq. 8: (1/beta) log(1 + sum sum exp(beta (d- - d+ + lambda))), mean over anchors.

    As beta grows it tends to the hinge on the hardest pair, [max d- - min d+ + lambda]_+. The paper says it tends to
    eq. 7; that holds for one pair only. With one positive and lambda = 0 it is `info_nce` at temperature 1 / beta, over beta.
    """
    of_negatives, of_positives = beta * negatives, -beta * positives
    return _soft_hinge(torch.logsumexp(of_negatives, -1) + torch.logsumexp(of_positives, -1), beta, margin)


def oucl_weighted(positives: Tensor, negatives: Tensor, beta: float, optimum: tuple[float, float], margin: tuple[float, float],
                  phi_dec: float = 1.0, detached: bool = False, attenuate: str = "weight") -> Tensor:  # fmt: skip
    """Eq. 9: pairs weighted by how far they are from their optimum, G+ = [O+ - d+]_+ and G- = [d- - O-]_+:
    (1/beta) log(1 + sum sum exp(beta (G- (d- - gamma-) - G+ (d+ - gamma+)))), mean over anchors.

    optimum = (O+, O-), margin = (gamma+, gamma-). phi_dec attenuates Gamma (section 4.4). attenuate="weight": G / phi_dec.
    attenuate="distance": phi_dec divides the distance to the best similarity, 1 or 0, inside the weight and not what O adds to it,
    G+ = [(1 - d+) / phi_dec + O+ - 1]_+ and G- = [d- / phi_dec - O-]_+. So the authors' code writes it, but its next two lines set
    both weights to 1: Gamma does nothing there. detached: G is a constant.
    """
    outer, inner = (phi_dec, 1.0) if attenuate == "weight" else (1.0, phi_dec)
    weight_pos = ((1 - positives) / inner + optimum[0] - 1).clamp(min=0)
    weight_neg = (negatives / inner - optimum[1]).clamp(min=0)
    if detached:
        weight_pos, weight_neg = weight_pos.detach(), weight_neg.detach()
    of_negatives = beta / outer * weight_neg * (negatives - margin[1])
    of_positives = -beta / outer * weight_pos * (positives - margin[0])
    return _soft_hinge(torch.logsumexp(of_negatives, -1) + torch.logsumexp(of_positives, -1), beta, 0.0)


def oucl(positives: Tensor, negatives: Tensor, beta: float, gamma: float,
         of_negatives: Callable[[Tensor, float], Tensor] = log_sum_exp_square) -> Tensor:  # fmt: skip
    """Eq. 10, optimization-driven unified contrast, mean over anchors:
    (1/beta) log(1 + sum sum exp(beta ((d+ - 1)^2 + (d-)^2 - 2 gamma^2))).

    beta > 0; gamma in [0, 1]. It is eq. 9 with O+ = 1 + gamma, O- = -gamma, gamma+ = 1 - gamma, gamma- = gamma. of_negatives: how
    log sum exp(beta (d-)^2) is computed; losses of the same negatives share it.
    """
    exponent = of_negatives(negatives, beta) + log_sum_exp_square(positives - 1, beta)
    return _soft_hinge(exponent, beta, -2 * gamma**2)


def _soft_hinge(exponent: Tensor, beta: float, constant: float) -> Tensor:
    """Mean over anchors of (1/beta) log(1 + exp(exponent + beta constant)), exponent (A,)."""
    exponent = exponent + beta * constant
    return softplus(exponent).mean() / beta


def margin_regularisation(
    positives: Tensor, negatives: Tensor, sigma_plus: Tensor, sigma_minus: Tensor, positive_weight: float = 1.0
) -> Tensor:
    """R_sigma (eq. 5): mean [d+ - sigma+]_+ + mean [sigma- - d-]_+ over pairs of ONE original and ONE augmented feature.

    positives (A, P) and negatives (A, N) in [0, 1]; the margins broadcast against them: scalars, or (A, 1) for each row.
    """
    too_near = (positives - sigma_plus).clamp(min=0).mean()
    too_far = (sigma_minus - negatives).clamp(min=0).mean()
    return positive_weight * too_near + too_far


# --- what a feature space looks like


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """Wang and Isola 2020: mean squared distance of the unit features (B, d) of the same images; 0 is best."""
    return (first - second).square().sum(-1).mean()


def uniformity(z: Tensor, scale: float = 2.0) -> Tensor:
    """Wang and Isola 2020: log mean exp(-scale |z_i - z_j|^2) over pairs i != j of unit features (B, d); lower is better."""
    square = (2 - 2 * z @ z.T).clamp(min=0)
    count = len(z)
    off_diagonal = ~torch.eye(count, dtype=torch.bool, device=z.device)
    total = torch.exp(-scale * square).masked_fill(~off_diagonal, 0).sum()
    return torch.log(total / (count * (count - 1)))


def effective_rank(z: Tensor) -> Tensor:
    """Roy and Vetterli 2007: exp of the entropy of the normalised singular values of centred features (B, d);
    between 1 (collapsed on a line) and min(B - 1, d)."""
    values = torch.linalg.svdvals((z - z.mean(0)).float())
    share = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return torch.exp(torch.special.entr(share).sum())
