"""What the objectives are claimed to be, each claim proved by a test of its name.

- eq. 1: by hand; each positive is a term of its own. NT-Xent is the literal loop of SimCLR, and for W > 2 a loop over pairs.
- eq. 7: by hand; it is the limit of eq. 8 for one pair only. For several pairs eq. 8 tends to the hinge on the hardest pair.
- eq. 8, 9 and 10 are the literal double sums over pairs, in values and gradients (float64).
- eq. 8 with one positive and lambda = 0 is InfoNCE at temperature 1 / beta of d, 2 / beta of cosines, divided by beta.
- eq. 9 with O+ = 1 + gamma, O- = -gamma, gamma+ = 1 - gamma, gamma- = gamma is eq. 10.
- eq. 10 has the first and second derivatives of the plain formula. R_sigma (eq. 5): by hand.
- eq. 8, 9 and 10 stay finite in float32 at beta 256 and agree with float64.
- OUCL does not depend on the order of pairs, is not negative, and falls as pairs improve.
- Alignment, uniformity and effective rank: by hand.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metaug_core.objectives import losses


def similarities(anchors=5, positives=3, negatives=7, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(anchors, positives, generator=generator, dtype=dtype).requires_grad_()
    n = torch.rand(anchors, negatives, generator=generator, dtype=dtype).requires_grad_()
    return p, n


def literal(positives, negatives, beta, exponent):
    """(1/beta) log(1 + sum over every pair of exp(beta x exponent(d+, d-))), anchor by anchor, pair by pair."""
    terms = []
    for p_row, n_row in zip(positives, negatives, strict=True):
        total = torch.zeros((), dtype=torch.float64)
        for n in n_row:
            for p in p_row:
                total = total + torch.exp(beta * exponent(p, n))
        terms.append(torch.log1p(total) / beta)
    return torch.stack(terms).mean()


def assert_same(value, expected, p, n, tolerance=1e-10):
    assert abs(value - expected).item() < tolerance
    for got, want in zip(torch.autograd.grad(value, (p, n)), torch.autograd.grad(expected, (p, n)), strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("beta", [1.0, 2.0, 16.0, 64.0])
@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.4, 0.9])
def test_eq10_equals_the_literal_double_sum(beta, gamma):
    p, n = similarities()
    expected = literal(p, n, beta, lambda a, b: (a - 1) ** 2 + b**2 - 2 * gamma**2)
    assert_same(losses.oucl(p, n, beta, gamma), expected, p, n)


@pytest.mark.parametrize("beta", [1.0, 16.0, 64.0])
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_eq8_equals_the_literal_double_sum(beta, margin):
    p, n = similarities(seed=1)
    assert_same(losses.oucl_plain(p, n, beta, margin), literal(p, n, beta, lambda a, b: b - a + margin), p, n)


@pytest.mark.parametrize("attenuate", ["weight", "distance"])
@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("phi_dec", [1.0, 6.0])
def test_eq9_equals_the_literal_double_sum(attenuate, detached, phi_dec):
    p, n = similarities(seed=2)
    o_pos, o_neg, m_pos, m_neg = 0.9, 0.2, 0.7, 0.35  # constants at which both weights are cut off for some pairs

    def exponent(a, b):
        if attenuate == "weight":
            w_pos, w_neg = (o_pos - a).clamp(min=0) / phi_dec, (b - o_neg).clamp(min=0) / phi_dec
        else:  # the optimum 1 or 0 is as far as d can be from it; what O adds is not divided
            w_pos = ((1 - a) / phi_dec - (1 - o_pos)).clamp(min=0)
            w_neg = (b / phi_dec - o_neg).clamp(min=0)
        if detached:
            w_pos, w_neg = w_pos.detach(), w_neg.detach()
        return w_neg * (b - m_neg) - w_pos * (a - m_pos)

    value = losses.oucl_weighted(p, n, 8.0, (o_pos, o_neg), (m_pos, m_neg), phi_dec, detached, attenuate)
    assert_same(value, literal(p, n, 8.0, exponent), p, n)


@pytest.mark.parametrize("gamma", [0.1, 0.4])
def test_eq9_at_these_margins_is_eq10(gamma):
    p, n = similarities(seed=3)
    value = losses.oucl_weighted(p, n, 16.0, (1 + gamma, -gamma), (1 - gamma, gamma))
    assert_same(value, losses.oucl(p, n, 16.0, gamma), p, n, 1e-12)


@pytest.mark.parametrize("beta", [1.0, 16.0])
def test_eq8_with_one_positive_is_info_nce_over_beta(beta):
    p, n = similarities(positives=1, seed=7)
    of_similarities = losses.info_nce(p, n, 1 / beta) / beta
    of_cosines = losses.info_nce(2 * p - 1, 2 * n - 1, 2 / beta) / beta
    for expected in (of_similarities, of_cosines):
        assert_same(losses.oucl_plain(p, n, beta, 0.0), expected, p, n, 1e-12)


@pytest.mark.parametrize("beta", [0.5, 16.0])
def test_eq10_has_the_first_and_second_derivatives_of_the_plain_formula(beta):
    """By autograd in float64, along a direction that mixes anchors and both inputs."""
    generator = torch.Generator().manual_seed(0)
    p, n = (torch.rand(4, k, generator=generator, dtype=torch.float64) for k in (3, 7))

    def plain(p, n):
        exponent = torch.logsumexp(beta * n**2, -1) + torch.logsumexp(beta * (p - 1) ** 2, -1) - 2 * beta * 0.16
        return torch.nn.functional.softplus(exponent).mean() / beta

    derivatives = []
    for loss in (lambda p, n: losses.oucl(p, n, beta, 0.4), plain):
        leaves = [x.clone().requires_grad_() for x in (p, n)]
        first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        along = sum((g**2 * torch.arange(1, g.numel() + 1).view_as(g)).sum() for g in first)
        derivatives.append([*first, *torch.autograd.grad(along, leaves)])
    for got, wanted in zip(*derivatives, strict=True):
        assert wanted.abs().max() > 1e-5
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("margin", [0.0, 0.2, 0.8])
def test_eq8_tends_to_the_hinge_on_the_hardest_pair(margin):
    p, n = similarities(seed=4)
    hardest = (n.amax(1) - p.amin(1) + margin).clamp(min=0).mean()
    distance = [abs(losses.oucl_plain(p, n, beta, margin) - hardest).item() for beta in (1e1, 1e2, 1e3, 1e4)]
    assert distance == sorted(distance, reverse=True)
    assert distance[-1] < math.log(1 + 3 * 7) / 1e4  # the bound: log(1 + pairs) / beta
    sums = losses.oucl_sum_hinge(p, n, margin)
    assert abs(sums - hardest) > 0.1  # the paper's claim, eq. 7, is another number as soon as there are several pairs


def test_eq7_by_hand_is_the_limit_of_eq8_for_one_pair():
    p, n = torch.tensor([[0.9, 0.4]]), torch.tensor([[0.3, 0.2, 0.5]])
    assert losses.oucl_sum_hinge(p, n, 0.5).item() == pytest.approx(0.2)  # 1.0 - 1.3 + 0.5
    assert losses.oucl_sum_hinge(p, n, 0.1).item() == 0
    p, n = torch.tensor([[0.4]], dtype=torch.float64), torch.tensor([[0.7]], dtype=torch.float64)
    assert losses.oucl_plain(p, n, 1e5, 0.1).item() == pytest.approx(losses.oucl_sum_hinge(p, n, 0.1).item(), abs=1e-4)


def test_eq1_by_hand():
    p, n = torch.tensor([[0.5]]), torch.tensor([[0.5, 0.5, 0.5]])
    assert losses.info_nce(p, n, 0.07).item() == pytest.approx(math.log(4))  # all alike: one in four
    p, n = torch.tensor([[1.0]]), torch.tensor([[0.0]])
    assert losses.info_nce(p, n, 0.5).item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_eq1_takes_each_positive_as_a_term_of_its_own():
    p, n = similarities(seed=5)
    terms = [losses.info_nce(p[:, k : k + 1], n, 0.2) for k in range(p.shape[1])]
    assert_same(losses.info_nce(p, n, 0.2), torch.stack(terms).mean(), p, n)


def test_nt_xent_equals_the_literal_loop():
    z = torch.nn.functional.normalize(torch.randn(2, 4, 6, dtype=torch.float64), dim=-1)
    flat, batch = z.flatten(0, 1), 4
    total = 0.0
    for i in range(2 * batch):
        j = (i + batch) % (2 * batch)
        denominator = sum(math.exp(flat[i] @ flat[k] / 0.5) for k in range(2 * batch) if k != i)
        total -= math.log(math.exp(flat[i] @ flat[j] / 0.5) / denominator)
    assert losses.nt_xent(z, 0.5).item() == pytest.approx(total / (2 * batch), abs=1e-12)


def test_nt_xent_of_three_features_equals_the_literal_loop():
    """With W features an image every ordered pair is a term; its denominator holds that positive and the other images."""
    z = torch.nn.functional.normalize(torch.randn(3, 4, 6, dtype=torch.float64), dim=-1)
    total, count = 0.0, 0
    for v in range(3):
        for b in range(4):
            rest = sum(math.exp(z[v, b] @ z[u, c] / 0.3) for u in range(3) for c in range(4) if c != b)
            for u in set(range(3)) - {v}:
                own = math.exp(z[v, b] @ z[u, b] / 0.3)
                total, count = total - math.log(own / (own + rest)), count + 1
    assert losses.nt_xent(z, 0.3).item() == pytest.approx(total / count, abs=1e-12)


@pytest.mark.parametrize("beta", [128.0, 256.0])
@pytest.mark.parametrize("loss", ["oucl", "plain", "weighted"])
def test_float32_does_not_overflow_and_agrees_with_float64(beta, loss):
    p, n = similarities(16, 4, 4096, seed=6)
    with torch.no_grad():
        n[0], p[0] = 1.0, 0.0  # the worst anchor: exp(2 beta) is far beyond float32
    run = {
        "oucl": lambda a, b: losses.oucl(a, b, beta, 0.4),
        "plain": lambda a, b: losses.oucl_plain(a, b, beta, 0.1),
        "weighted": lambda a, b: losses.oucl_weighted(a, b, beta, (1.4, -0.4), (0.6, 0.4)),
    }[loss]
    p32, n32 = (x.detach().float().requires_grad_() for x in (p, n))
    torch.testing.assert_close(run(p32, n32).double(), run(p, n), rtol=1e-5, atol=1e-6)
    wanted = torch.autograd.grad(run(p, n), (p, n))
    for got, want in zip(torch.autograd.grad(run(p32, n32), (p32, n32)), wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(1, 256), st.floats(0, 1))
def test_oucl_ignores_the_order_of_pairs_and_falls_as_pairs_improve(seed, beta, gamma):
    p, n = (x.detach() for x in similarities(3, 4, 6, seed))
    value = losses.oucl(p, n, beta, gamma)
    shuffled = losses.oucl(p[:, torch.randperm(4)], n[:, torch.randperm(6)], beta, gamma)
    torch.testing.assert_close(value, shuffled, rtol=1e-9, atol=1e-12)
    better = losses.oucl(p + (1 - p) * 0.1, n * 0.9, beta, gamma)
    assert better <= value + 1e-12
    assert value >= 0


def test_r_sigma_by_hand():
    positives, negatives = torch.tensor([[0.9, 0.5]]), torch.tensor([[0.1, 0.4, 0.7]])
    value = losses.margin_regularisation(positives, negatives, torch.tensor(0.6), torch.tensor(0.5))
    assert value.item() == pytest.approx(0.3 / 2 + (0.4 + 0.1) / 3)
    value = losses.margin_regularisation(positives, negatives, torch.tensor(0.6), torch.tensor(0.5), positive_weight=0)
    assert value.item() == pytest.approx(0.5 / 3)


def test_alignment_uniformity_and_rank_by_hand():
    eye = torch.eye(4)
    assert losses.alignment(eye, eye).item() == 0
    assert losses.alignment(eye, -eye).item() == pytest.approx(4)
    assert losses.uniformity(torch.ones(5, 1)).item() == pytest.approx(0)  # all on one point: the worst
    assert losses.uniformity(eye).item() == pytest.approx(-4)  # orthogonal: |zi - zj|^2 = 2, exp(-4)
    directions = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert losses.effective_rank(directions).item() == pytest.approx(2)
    line = torch.linspace(-1, 1, 8)[:, None] * torch.tensor([[1.0, 2.0, 3.0]])
    assert losses.effective_rank(line).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("tau_plus", [0.0, 0.5])
@pytest.mark.parametrize("lead", [-0.9, -0.1, 0.0, 1e-8, 0.1, 0.9])
def test_info_nce_has_finite_second_derivatives_at_a_small_temperature(lead, tau_plus):
    """At t 0.01 in d exponents differ by 90 and more, and the debiased sum's floor is e^-90 of the sum: both overflow float32."""
    positives = torch.tensor([[0.5 + lead / 2], [0.2]], requires_grad=True)
    negatives = torch.tensor([[0.5 - lead / 2, 0.05], [0.1, 0.3]], requires_grad=True)
    value = losses.info_nce(positives, negatives, 0.01, tau_plus)
    check_second_derivatives(value, positives, negatives)


@pytest.mark.parametrize("lead", [-1.0, 0.0, 1.0])
def test_oucl_has_finite_second_derivatives_at_a_large_beta(lead):
    positives = torch.tensor([[0.5 + lead / 2]], requires_grad=True)
    negatives = torch.tensor([[0.5 - lead / 2]], requires_grad=True)
    check_second_derivatives(losses.oucl_plain(positives, negatives, 1024.0, 0.0), positives, negatives)
    check_second_derivatives(losses.oucl(positives, negatives, 1024.0, 0.4), positives, negatives)


def check_second_derivatives(value, *inputs):
    first = torch.autograd.grad(value, inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    assert all(torch.isfinite(g).all() for g in (*first, *second))
