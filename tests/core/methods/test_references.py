"""Every row of the paper's tables beside its authors' formula: pair by pair, in float64, values and gradients.

    supervised                                   cross entropy
    bigan                                        Donahue et al. 2017, eq. 3 and section 3.4, with R1
    nat                                          Bojanowski and Joulin 2017, eq. 5: the best of all permutations
    dim, swav, swav+hard                         in other files: ELSEWHERE
    splitbrain                                   Zhang et al. 2017: cross entropy of bins at 12 x 12 places
    cpc                                          Henaff et al. 2020, eq. 2
    simclr, dacl                                 Chen et al. 2020, eq. 1
    cmc, metaug-only-oucl                        each view against the others and their past features
    moco, infomin, looc                          queries against keys and a queue
    nnclr                                        Dwibedi et al. 2021, eq. 3
    simsiam, byol                                Chen and He 2021, eq. 2; Grill et al. 2020, eq. 2
    barlow                                       Zbontar et al. 2021, eq. 1 and 2
    wmse                                         Ermolov et al. 2021, eq. 4 to 6
    +debiased, +hard, +oucl                      another function of the same pairs: CONTRASTS
    +mag, metaug-only-mag, metaug, metaug-nnclr  eq. 11: L(z) + delta L(z, z~)
    +randaugment                                 the same loss
    +dcl                                         Yeh et al. 2022, eq. 6: another function of the same pairs
    ft, hallucinator                             on MoCo: Zhu et al. 2021; Wu et al. 2023
    mochi, synco                                 on MoCo: Kalantidis et al. 2020; Giakoumoglou and Stathaki 2024
    adco, vicreg, imix                           Hu et al. 2021; Bardes et al. 2022; Lee et al. 2021
    cmc+noise, cmc+dropout                       eq. 11 with z~ by chance

A contrasting method says which features an anchor attracts and which it repels, and CONTRASTS what their cosines cost.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations, permutations, product
from typing import Any, NamedTuple

import pytest
import torch
from tiny import ROOT, TINY
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core import METHODS, Config, ConfigError
from metaug_core.methods import Context, build
from metaug_core.methods import synthetic_negatives as synthetic
from metaug_core.methods.baselines.splitbrain import quantise
from metaug_core.networks.memory import Queue

IMAGES, DIM, PAST = 5, 8, 12
SETTINGS: dict[str, Any] = {
    **{name: value for name, value in TINY.items() if name != "views"},
    **{"feature_dim": DIM, "queue_size": 48, "temperature": 0.3, "tau_plus": 0.1, "hard_beta": 1.5, "beta": 8.0},
    "delta": 0.3,
}
ELSEWHERE = {
    "dim": "test_other_baselines.py::test_dim_is_its_formula",
    "swav": "test_baselines.py::test_swav_is_lightlys",
    "swav+hard": "test_baselines.py::test_swav_hard_weighs_the_other_prototypes",
}
Contrast = Callable[
    [Tensor, Sequence[Tensor], Sequence[Tensor]], Tensor
]  # anchor (d,), what it attracts, what it repels


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(normal(*shape, seed=seed), dim=-1)


def mean(terms: Sequence[Tensor]) -> Tensor:
    return torch.stack([*terms]).mean()


# --- what the cosines of an anchor's positives (P,) and negatives (N,) cost


def info_nce(positives: Tensor, negatives: Tensor, config: Config, tau: float = 0.0, hard: float = 0.0) -> Tensor:
    """Chuang et al. 2020 and Robinson et al. 2021, as their code has it. Without tau and hard it is InfoNCE. Each
    positive is a term of its own."""
    t, count, terms = config.temperature, len(negatives), []
    negative = torch.exp(negatives / t)
    total = (negative**hard * negative).sum() / (negative**hard).mean()
    for positive in torch.exp(positives / t):
        debiased = ((total - tau * count * positive) / (1 - tau)).clamp(min=count * math.exp(-1 / t))
        terms.append(-torch.log(positive / (positive + debiased)))
    return mean(terms)


def oucl(positives: Tensor, negatives: Tensor, config: Config) -> Tensor:
    """Li et al. 2022, eq. 10: one term of all positives and all negatives."""
    d_plus, d_minus = (1 + positives[:, None]) / 2, (1 + negatives) / 2
    exponents = config.beta * ((d_plus - 1) ** 2 + d_minus**2 - 2 * config.gamma**2)
    return torch.log(1 + torch.exp(exponents).sum()) / config.beta


CONTRASTS: dict[str, Callable[[Tensor, Tensor, Config], Tensor]] = {
    "": info_nce,
    "debiased": lambda p, n, config: info_nce(p, n, config, config.tau_plus),
    "hard": lambda p, n, config: info_nce(p, n, config, config.tau_plus, config.hard_beta),
    "oucl": oucl,
    "dcl": lambda p, n, config: mean(-p / config.temperature + torch.log(torch.exp(n / config.temperature).sum())),
}

# --- the formulas: of z, a contrast and the config. With a MAG z holds z~ after the features.

BANK, STALE = unit(3, PAST, DIM, seed=1), unit(3, IMAGES, DIM, seed=2)
QUEUE, KEYS = unit(2, PAST, DIM, seed=3), unit(2, IMAGES, DIM, seed=4)
HEAD_KEYS, HEAD_QUEUE = unit(3, 3, IMAGES, DIM, seed=5), unit(3, PAST, DIM, seed=6)  # of LooC: (key, head), (head)
NOISE = unit(IMAGES, DIM, seed=7)
APART, PAST_SHARE = 1 + normal(IMAGES, DIM, seed=11).sigmoid(), normal(PAST, DIM, seed=12).sigmoid()  # of FT
PAST_PARTNERS = torch.randperm(PAST, generator=torch.Generator().manual_seed(13))
PARTNERS, SHARE = (
    torch.tensor([[3, 1, 4, 0, 2], [1, 2, 0, 4, 3]]),
    0.5 + normal(2, IMAGES, seed=14).sigmoid() / 2,
)  # of i-Mix
RANKS = torch.randint(
    24, (2, 2, 1, IMAGES, 1, 9), generator=torch.Generator().manual_seed(15)
)  # of synthetic negatives
UNIFORM, SYNTHETIC_NOISE = normal(2, 1, IMAGES, 1, 9, seed=16).sigmoid(), normal(9, DIM, seed=17)
OF_Z = normal(3, IMAGES, DIM, seed=18)
LIGHT, AB = torch.tanh(normal(2, 1, 24, 24, seed=8)), torch.tanh(normal(2, 2, 24, 24, seed=9))


def across(
    contrast: Contrast, anchors: Tensor, targets: Tensor, past: Tensor | None, views: int, apart: bool = True
) -> Tensor:
    """Rows (B, d), row w of view w % views. An anchor attracts its image in the rows of another view, and repels the
    past of that view or the other images of these rows. apart: a term for each other view, else one of all of them."""
    terms = []
    for w, row in enumerate(anchors):
        others = [u for u in range(views) if u != w % views]
        for met, i in product([[u] for u in others] if apart else [others], range(IMAGES)):
            rows = [target for r, target in enumerate(targets) if r % views in met]
            in_batch = [target[j] for target in rows for j in range(IMAGES) if j != i]
            repelled = in_batch if past is None else [x for u in met for x in past[u]]
            terms.append(contrast(row[i], [target[i] for target in rows], repelled))
    return mean(terms)


def parts(z: Tensor) -> tuple[Tensor, Tensor]:
    """Of each four rows the first two (projections; whole views) and the last two (predictions; jigsaws)."""
    return (z[[r for r in range(len(z)) if r % 4 < 2]], z[[r for r in range(len(z)) if r % 4 > 1]])


def nt_xent(z: Tensor, contrast: Contrast, config: Config) -> Tensor:
    """An image's other rows are positives, all rows of the other images negatives."""
    terms = []
    for w, i in product(range(len(z)), range(IMAGES)):
        repelled = [row[j] for row in z for j in range(IMAGES) if j != i]
        terms.append(contrast(z[w, i], [row[i] for u, row in enumerate(z) if u != w], repelled))
    return mean(terms)


def infomin(z: Tensor, contrast: Contrast, config: Config) -> Tensor:
    of_whole, of_jigsaw = (across(contrast, queries, KEYS, QUEUE, 2) for queries in parts(z))
    return (1 - config.jigsaw_weight) * of_whole + config.jigsaw_weight * of_jigsaw


def nnclr(z: Tensor, contrast: Contrast, config: Config) -> Tensor:
    projections, predictions = parts(z)
    near = [[max(QUEUE[w % 2], key=lambda past, x=x: past @ x) for x in row] for w, row in enumerate(projections)]
    return across(contrast, torch.stack([torch.stack(row) for row in near]), predictions, None, 2)


def looc(z: Tensor, contrast: Contrast, config: Config) -> Tensor:
    """Xiao et al. 2021, eq. 2 and 3: head 0 against its queue alone, the others also against the image's other keys."""
    terms = []
    for i, b in product(range(3), range(IMAGES)):
        other_keys = [HEAD_KEYS[j, i, b] for j in range(3) if j != i and i > 0]
        terms.append(contrast(z[i, b], [HEAD_KEYS[i, i, b]], [*HEAD_QUEUE[i], *other_keys]))
    return mean(terms)


def simsiam(z: Tensor, contrast: Contrast, config: Config) -> Tensor:
    projections, predictions = parts(z)
    return -across(lambda p, targets, _: mean([p @ x for x in targets]), predictions, projections.detach(), None, 2)


def byol(z: Tensor, contrast: Contrast, config: Config) -> Tensor:
    return across(lambda p, targets, _: 2 - 2 * p @ targets[0], parts(z)[1], KEYS, None, 2)


def barlow(z: Tensor, contrast: Contrast, config: Config) -> Tensor:
    away, same = z - z.mean(1, keepdim=True), torch.eye(DIM, dtype=torch.bool)
    standard = away / torch.sqrt((away**2).mean(1, keepdim=True) + 1e-5)
    terms = []
    for v, u in combinations(range(len(z)), 2):
        if v % 2 != u % 2:
            c = torch.einsum("bi,bj->ij", standard[v], standard[u]) / IMAGES
            terms.append(((1 - c[same]) ** 2).sum() + config.barlow_lambda * (c[~same] ** 2).sum())
    return mean(terms)


def wmse(z: Tensor, contrast: Contrast, config: Config) -> Tensor:
    terms = []
    for rows in (slice(0, 8), slice(8, 16)):
        away = [x - x.mean(0) for x in z[:, rows]]
        white = [x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / 7)).T for x in away]
        first, second = (w / torch.sqrt((w**2).sum(1, keepdim=True)) for w in white)
        terms += [*((first - second) ** 2).sum(1)]
    return mean(terms)


def supervised(z: Tensor, contrast: Contrast, config: Config) -> Tensor:
    return mean([-torch.log(torch.exp(x[i % 4]) / torch.exp(x).sum()) for i, x in enumerate(z[0])])


def nat(z: Tensor, contrast: Contrast, config: Config) -> Tensor:
    return min(((z[0] - NOISE[[*order]]) ** 2).sum() / IMAGES for order in permutations(range(IMAGES)))


def bigan(z: Tensor, contrast: Contrast, config: Config) -> Tensor:
    """D's logits of real and generated pairs as D learns from them, the same for E and G, and D's squared slope."""
    real, generated, swapped, generated_swapped = torch.sigmoid(z[:4])
    return -torch.log(real * (1 - generated) * (1 - swapped) * generated_swapped).mean() + z[4].mean() / 2


def splitbrain(z: Tensor, contrast: Contrast, config: Config) -> Tensor:
    """A place is 2 x 2 pixels of 24 x 24. L has 100 bins from -1 to 1, a and b 16 each."""
    of_ab, of_light = [], []
    for row, column, b in product(range(12), range(12), range(2)):
        place = (b, slice(None), slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
        (light,), (first, second) = (((1 + x[place].mean((1, 2))) / 2).tolist() for x in (LIGHT, AB))
        ab_logits, light_logits = z[12 * row + column, b].split([256, 100])
        of_ab.append(torch.exp(ab_logits).sum().log() - ab_logits[16 * int(16 * first) + int(16 * second)])
        of_light.append(torch.exp(light_logits).sum().log() - light_logits[int(100 * light)])
    return mean(of_ab) + mean(of_light)


def cpc(z: Tensor, contrast: Contrast, config: Config) -> Tensor:
    """9 targets of a 3 x 3 grid, then predictions of the rows 1 below (6 places) and 2 below (3), among all patches."""
    targets, first, of_distances = z[:9].unflatten(0, (3, 3)), 9, []
    for k in (1, 2):
        terms = []
        for place, (i, j) in enumerate(product(range(3 - k), range(3))):
            for b in range(2):
                scores = torch.exp(torch.einsum("ijbd,d->ijb", targets, z[first + place, b]))
                terms.append(-torch.log(scores[i + k, j, b] / scores.sum()))
        of_distances.append(mean(terms))
        first += 3 * (3 - k)
    return mean(of_distances)


def vicreg(z: Tensor, contrast: Contrast, config: Config) -> Tensor:
    a, b, c = config.vicreg_weights
    first, second = z
    total = a * ((first - second) ** 2).sum() / IMAGES / DIM
    for view in z:
        away = view - view.mean(0)
        covariance = torch.stack([torch.stack([(x * y).sum() / (IMAGES - 1) for y in away.T]) for x in away.T])
        for i in range(DIM):
            total = total + b / 2 * (1 - torch.sqrt(covariance[i, i] + 1e-4)).clamp(min=0) / DIM
            total = total + c * sum(covariance[i, j] ** 2 for j in range(DIM) if j != i) / DIM
    return total


def adco(z: Tensor, contrast: Contrast, config: Config) -> Tensor:
    """Negatives are those of the other view and the keys of the other images."""
    terms = []
    for w, i in product(range(len(z)), range(IMAGES)):
        u = 1 - w % 2
        others = [KEYS[u, j] for j in range(IMAGES) if j != i]
        terms.append(contrast(z[w, i], [KEYS[u, i]], [*others, *QUEUE[u]]))
    return mean(terms)


def imix(z: Tensor, contrast: Contrast, config: Config) -> Tensor:
    terms = []
    for w, i in product(range(len(z)), range(IMAGES)):
        v, u = w % 2, 1 - w % 2
        scores = torch.exp(torch.stack([*KEYS[u], *QUEUE[u]]) @ z[w, i] / config.temperature)
        own, partner = (-torch.log(scores[j] / scores.sum()) for j in (i, PARTNERS[v][i]))
        terms.append(SHARE[v, i] * own + (1 - SHARE[v, i]) * partner)
    return mean(terms)


def drawn_apart(row: Tensor, others: Sequence[Tensor]) -> Tensor:
    """m q + (1 - m) k with the mean of several k in the place of one."""
    return APART * row + (1 - APART) * sum(others) / len(others)


def ft(z: Tensor, contrast: Contrast, config: Config) -> Tensor:
    """On MoCo: with a MAG a key has two features of its other view."""
    past = torch.stack([PAST_SHARE * queue + (1 - PAST_SHARE) * queue[PAST_PARTNERS] for queue in QUEUE])
    queries = [drawn_apart(row, [KEYS[1 - w % 2]]) for w, row in enumerate(z)]
    keys = [drawn_apart(key, [row for w, row in enumerate(z) if w % 2 != u]) for u, key in enumerate(KEYS)]
    return across(contrast, torch.stack(queries), torch.stack(keys), past, 2)


def ft_in_batch(z: Tensor, contrast: Contrast, config: Config) -> Tensor:
    """On three views: away from the mean of the other two."""
    rows = [drawn_apart(row, [x for u, x in enumerate(z) if u % 3 != w % 3]) for w, row in enumerate(z)]
    return across(contrast, torch.stack(rows), torch.stack(rows), None, 3)


def mix_mochi(q: Tensor, c: int, n: Tensor, other: Tensor, u: Tensor) -> Tensor:
    """Six negatives are nearest: six of the first kind, one of the second."""
    return u * n + (1 - u) * other if c < 6 else u / 2 * q + (1 - u / 2) * n


def mix_synco(q: Tensor, c: int, n: Tensor, other: Tensor, u: Tensor) -> Tensor:
    """Eight are nearest: two of each of the first three kinds, one of each of the others."""
    if c < 2:
        return u / 2 * q + (1 - u / 2) * n
    if c < 4:
        return q + (1 + u / 2) * (n - q)
    if c < 6:
        return u * n + (1 - u) * other
    return n + 0.01 * {6: SYNTHETIC_NOISE[c], 7: q, 8: torch.where(q < 0, -1.0, 1.0)}[c]


def synthetic_negatives(nearest: int, count: int, mix: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def formula(z: Tensor, contrast: Contrast, config: Config) -> Tensor:
        terms = []
        for w, i in product(range(len(z)), range(IMAGES)):
            v, u, q = w % 2, 1 - w % 2, z[w, i].detach()
            near = sorted(QUEUE[u], key=lambda past: -float(past @ q))[:nearest]
            made = []
            for c in range(count):
                first, second = (near[int(RANKS[which, v, 0, i, 0, c]) % nearest] for which in range(2))
                made.append(mix(q, c, first, second, UNIFORM[v, 0, i, 0, c]))
            terms.append(contrast(z[w, i], [KEYS[u, i]], [*QUEUE[u], *(n / n.norm() for n in made)]))
        return mean(terms)

    return formula


def with_synthetic(kinds: tuple[synthetic.Kind, ...], counts: list[int], nearest: int) -> dict[str, Any]:
    """The context of MoCo with the draws of these synthetic negatives."""
    count = sum(counts)
    drawn = (RANKS[..., :count] % nearest, UNIFORM[..., :count], SYNTHETIC_NOISE[:count])
    return AGAINST_KEYS | {"synthesise": partial(synthetic.synthesise, kinds, counts, nearest, *drawn)}


def by_chance(perturb: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[..., Tensor]:
    """Eq. 11 on CMC with a bank; perturb changes one feature by its noise, to a cosine of 0.9."""

    def formula(z: Tensor, contrast: Contrast, config: Config) -> Tensor:
        changed = [
            [perturb(x, e, 0.9) for x, e in zip(row, noise, strict=True)] for row, noise in zip(z, OF_Z, strict=True)
        ]
        both = torch.cat([z, torch.stack([torch.stack(row) for row in changed])])
        return across(contrast, z, z, BANK, 3) + config.delta * across(contrast, both, both, BANK, 3)

    return formula


def turn(x: Tensor, noise: Tensor, cosine: float) -> Tensor:
    aside = noise - (noise @ x) * x
    return cosine * x + math.sin(math.acos(cosine)) * aside / aside.norm()


def drop(x: Tensor, noise: Tensor, cosine: float) -> Tensor:
    kept = x * ((1 + torch.erf(noise / math.sqrt(2))) / 2 < cosine**2)
    return kept / kept.norm()


class Row(NamedTuple):
    """A method without modifiers: its formula, what it is given, the settings, and how near it comes."""

    formula: Callable[[Tensor, Contrast, Config], Tensor]
    z: Tensor
    context: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    tolerance: float = 1e-9


TWO, THREE, FOUR = (unit(rows, IMAGES, DIM) for rows in (2, 3, 4))
AGAINST_BANK = {"negatives": torch.stack([BANK[[1, 2]], BANK[[0, 2]], BANK[[0, 1]]])}
AGAINST_KEYS = {"negatives": torch.stack([QUEUE[[1]], QUEUE[[0]]]), "positives": KEYS}
ROWS = {
    "supervised": Row(supervised, normal(1, IMAGES, 4)),
    "bigan": Row(bigan, normal(5, IMAGES, 1)),
    "nat": Row(nat, THREE[:1], {"given": {"due": torch.tensor(True), "targets": NOISE}}),
    "splitbrain": Row(splitbrain, normal(144, 2, 356), {"given": {"first": quantise(LIGHT), "second": quantise(AB)}}),
    "cpc": Row(cpc, normal(18, 2, 4), settings={"cpc_grid": 3, "cpc_skip": 0}),
    "simclr": Row(nt_xent, TWO),
    "dacl": Row(nt_xent, TWO),
    "cmc": Row(lambda z, contrast, _: across(contrast, z, z, BANK, 3), THREE, AGAINST_BANK),
    "moco": Row(lambda z, contrast, _: across(contrast, z, KEYS, QUEUE, 2), TWO, AGAINST_KEYS),
    "infomin": Row(infomin, FOUR, AGAINST_KEYS, {"jigsaw_weight": 0.3}),
    "nnclr": Row(nnclr, FOUR, {"given": {"support": QUEUE}}),
    "looc": Row(looc, THREE, {"given": {"keys": HEAD_KEYS, "queue": HEAD_QUEUE}}),
    "simsiam": Row(simsiam, FOUR),
    "byol": Row(byol, FOUR, {"given": {"targets": KEYS}}),
    "barlow": Row(barlow, 3 * normal(2, IMAGES, DIM) + 1, settings={"barlow_lambda": 0.02}),
    "wmse": Row(wmse, normal(2, 16, 3), {}, {"whitening_size": 8, "feature_dim": 3}, 1e-4),  # ours has a ridge of 1e-6
    "metaug-only-oucl": Row(lambda z, contrast, _: across(contrast, z, z, BANK, 3, False), THREE, AGAINST_BANK),
    "vicreg": Row(vicreg, 0.5 * normal(2, IMAGES, DIM), settings={"vicreg_weights": (25.0, 20.0, 3.0)}),
    "adco": Row(adco, TWO, AGAINST_KEYS),
    "imix": Row(imix, TWO, {"positives": KEYS, "given": {"partners": PARTNERS, "share": SHARE, "queue": QUEUE}}),
    "ft": Row(ft, TWO, AGAINST_KEYS | {"given": {"ft_weights": APART, "ft_past_weights": PAST_SHARE,
                                                  "ft_partners": PAST_PARTNERS}}),
    "hallucinator": Row(lambda z, contrast, _: across(contrast, torch.cat([z, augment(z)]), KEYS, QUEUE, 2), TWO,
                        AGAINST_KEYS | {"given": {"reach": torch.tensor(0.07)}}),
    "mochi": Row(synthetic_negatives(6, 7, mix_mochi), TWO,
                 with_synthetic((synthetic.MIXED, synthetic.TOWARDS_QUERY), [6, 1], 6)),
    "synco": Row(synthetic_negatives(8, 9, mix_synco), TWO, with_synthetic(synthetic.SIX, [2, 2, 2, 1, 1, 1], 8)),
    "cmc+noise": Row(by_chance(turn), THREE, AGAINST_BANK | {"given": {"noise": OF_Z}}, {"matched_similarity": 0.95}),
    "cmc+dropout": Row(by_chance(drop), THREE, AGAINST_BANK | {"given": {"noise": OF_Z}}, {"matched_similarity": 0.95}),
}  # fmt: skip
COMPOSED_OF = {  # rows that have a name of their own
    "metaug-only-oucl": "metaug-only-oucl+oucl",
    "metaug-only-mag": "cmc+mag",
    "metaug": "metaug-only-oucl+oucl+mag",
    "metaug-nnclr": "nnclr+oucl+mag",
    "metaug+randaugment": "metaug-only-oucl+oucl+mag+randaugment",
}
BESIDE_THE_TABLES = [f"{name}+{modifier}" for name in ROWS for modifier in ("debiased", "hard", "oucl", "dcl", "mag")]


def augment(features: Tensor, *more: Tensor) -> Tensor:
    """What stands in the place of a MAG; a hallucinator's gets keys and reach as well."""
    return F.normalize(features @ normal(DIM, DIM, seed=10), dim=-1)


def check(name: str, row: Row | None = None, **changes: Any) -> None:
    """Value and gradient of the method's training loss are the formula's."""
    words = COMPOSED_OF.get(name, name).split("+")
    prefixes = ["+".join(words[:count]) for count in range(len(words), 0, -1)]
    modifiers = words[1:]
    formula, what, context, settings, tolerance = row or next(ROWS[prefix] for prefix in prefixes if prefix in ROWS)
    config = Config(**{**SETTINGS, **settings, **changes, "method": name})
    method, z, images = build(config), what.clone().requires_grad_(), torch.arange(what.shape[1])
    cost = CONTRASTS["".join(modifier for modifier in modifiers if modifier in CONTRASTS)]

    def contrast(anchor: Tensor, attracted: Sequence[Tensor], repelled: Sequence[Tensor]) -> Tensor:
        return cost(torch.stack([*attracted]) @ anchor, torch.stack([*repelled]) @ anchor, config)

    terms = method.terms(z, Context(images, images % 4, **context), augment)
    value, expected = torch.stack([*terms.values()]).sum(), formula(z, contrast, config)
    if "mag" in modifiers:
        expected = expected + config.delta * formula(torch.cat([z, augment(z)]), contrast, config)
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
    (gradient,), (wanted,) = (torch.autograd.grad(x, z) for x in (value, expected))
    assert wanted.abs().max() > 1e-4
    torch.testing.assert_close(gradient, wanted, rtol=tolerance, atol=tolerance)


def test_every_row_of_the_tables_has_a_reference():
    assert {name for name in METHODS if COMPOSED_OF.get(name, name).split("+")[0] not in ROWS} == set(ELSEWHERE)
    for place in ELSEWHERE.values():
        file, test = place.split("::")
        assert f"def {test}(" in (ROOT / "tests" / "core" / "methods" / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ELSEWHERE])
def test_a_row_of_the_tables_is_its_authors_formula(name):
    check(name)


@pytest.mark.parametrize("name", [name for name in BESIDE_THE_TABLES if name in METHODS and "metaug" not in name])
def test_modifiers_compose_with_every_method_that_takes_them(name):
    check(name)


def test_the_floor_of_a_debiased_sum_is_its_authors():
    """With tau 0.9 it holds for some anchors."""
    check("simclr+hard", temperature=0.5, tau_plus=0.9, hard_beta=0.5)


@pytest.mark.parametrize("name", ["cmc", "cmc+hard", "metaug-only-oucl"])
def test_stale_positives_have_no_gradient(name):
    """As in the code of CMC's authors: only the query has one."""
    apart, context = name != "metaug-only-oucl", AGAINST_BANK | {"positives": STALE}
    row = Row(lambda z, contrast, _: across(contrast, z, STALE, BANK, 3, apart), THREE, context)
    check(name, row, positives="bank")


@pytest.mark.parametrize("name", ["cmc", "cmc+debiased", "metaug-only-mag", "metaug"])
def test_negatives_of_the_minibatch_are_the_other_images_other_views(name):
    row = Row(lambda z, contrast, _: across(contrast, z, z, None, 3, apart=name != "metaug"), THREE)
    check(name, row, negatives="batch")


@pytest.mark.parametrize("name", ["moco", "infomin"])
def test_queries_meet_the_queue_of_the_other_view(name):
    memory: Any = nn.ModuleDict({"averaged": nn.Identity(), "queue": Queue(2, PAST, DIM, torch.Generator())})
    memory["queue"].entries = QUEUE
    method, images = build(Config(**{**SETTINGS, "method": name})), torch.arange(IMAGES)
    context = method.context(memory, KEYS, images, images, torch.Generator())
    assert torch.equal(context.negatives, AGAINST_KEYS["negatives"])
    assert torch.equal(context.positives, KEYS)


def test_nat_keeps_its_targets_between_assignments():
    given = {"due": torch.tensor(False), "targets": NOISE}
    check("nat", Row(lambda z, *_: ((z[0] - NOISE) ** 2).sum() / IMAGES, THREE[:1], {"given": given}))


@pytest.mark.parametrize("negatives", ["batch", "bank"])
def test_a_hallucinated_feature_asks_and_never_answers(negatives):
    """It is made of the other views, so as a positive of theirs it would hand them their own features back."""
    past = BANK if negatives == "bank" else None
    context = (AGAINST_BANK if past is not None else {}) | {"given": {"reach": torch.tensor(0.07)}}
    row = Row(lambda z, contrast, _: across(contrast, torch.cat([z, augment(z)]), z, past, 3), THREE, context)
    check("cmc+hallucinator", row, negatives=negatives)


def test_on_simclr_hallucinated_features_meet_the_other_crop_among_all_crops_of_other_images():
    def formula(z: Tensor, contrast: Contrast, config: Config) -> Tensor:
        asks = torch.cat([z, augment(z)])
        terms = [
            contrast(asks[w, i], [z[1 - w % 2, i]], [z[u, j] for u in range(2) for j in range(IMAGES) if j != i])
            for w in range(4) for i in range(IMAGES)
        ]  # fmt: skip
        return torch.stack(terms).mean()

    check("simclr+hallucinator", Row(formula, TWO, {"given": {"reach": torch.tensor(0.07)}}))


def test_ft_of_views_without_keys_draws_each_from_the_mean_of_the_others():
    check("cmc+ft", Row(ft_in_batch, THREE, {"given": {"ft_weights": APART}}), negatives="batch")


def test_synthetic_negatives_of_a_bank_that_is_drawn_for_each_image():
    """Each image takes its own columns of the bank: what is nearest among them, by the same draws as if they were all."""
    columns = torch.stack([torch.randperm(PAST, generator=torch.Generator().manual_seed(i))[:8] for i in range(IMAGES)])
    kinds = (synthetic.MIXED, synthetic.TOWARDS_QUERY)
    draws = (kinds, [4, 1], 4, RANKS[..., :5] % 4, UNIFORM[..., :5], SYNTHETIC_NOISE[:5])
    anchors, past = TWO[:, None], torch.stack([QUEUE[[1]], QUEUE[[0]]])
    table = torch.einsum("vsbd,vtkd->vsbtk", anchors, past)
    made = synthetic.make_negatives(
        *draws, anchors, past, columns, table.gather(-1, columns.expand(2, 1, 1, -1, -1).movedim(3, 2))
    )
    for i in range(IMAGES):
        alone = past[:, :, columns[i]]
        of_image = (x if x.dim() < 5 else x[..., [i], :, :] for x in draws[3:5])
        expected = synthetic.make_negatives(*draws[:3], *of_image, draws[5], anchors[:, :, [i]], alone, None,
                                            torch.einsum("vsbd,vtkd->vsbtk", anchors[:, :, [i]], alone))  # fmt: skip
        torch.testing.assert_close(made[:, :, [i]], expected)


def test_synthetic_negatives_need_past_ones():
    method = build(Config(**{**SETTINGS, "method": "cmc+mochi", "negatives": "batch"}))
    images = torch.arange(IMAGES)
    with pytest.raises(ConfigError, match="method 'cmc\\+mochi' makes negatives of past ones, and has none"):
        method.context(None, [], images, images, torch.Generator())
