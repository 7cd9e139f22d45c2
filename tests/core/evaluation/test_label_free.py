"""Measures without labels against values computed by hand and literal versions of their papers' formulas, in float64."""

import math

import numpy as np
import pytest
import torch

from metaug_core.data import datasets
from metaug_core.evaluation.label_free import alpha_req, compare_augmented, lidar, measure_label_free, rankme
from metaug_core.evaluation.representations import features
from metaug_core.runs.encoder import Encoder


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(size):
    return torch.linalg.qr(normal(size, size)).Q


def entropy_rank(values, epsilon):
    total = sum(values)
    return math.exp(-sum((v / total + epsilon) * math.log(v / total + epsilon) for v in values))


def test_rankme_of_two_singular_values_by_hand():
    h = torch.tensor([[3.0, 0], [0, 4], [0, 0]], dtype=torch.float64)
    assert rankme(h) == pytest.approx(entropy_rank([3, 4], 1e-7), rel=1e-12)
    assert rankme(rotation(3) @ h @ rotation(2)) == pytest.approx(rankme(h), rel=1e-12)
    assert rankme(torch.eye(5)) == pytest.approx(5, rel=1e-5)


def test_rankme_is_not_centred():
    assert rankme(torch.tensor([[1.0, 0], [-1, 0]])) == pytest.approx(1, rel=1e-5)
    assert rankme(torch.tensor([[1.0, 1], [-1, 1]])) == pytest.approx(2, rel=1e-5)


def test_what_augmented_features_add_along_one_direction_has_one_singular_value():
    one, other = torch.eye(3, dtype=torch.float64)[:2]
    values, rank, similarity = compare_augmented(
        one.repeat(4, 1), other.repeat(4, 1)
    )  # z~ - z is other - one in all rows
    assert values.tolist() == pytest.approx([1, 0, 0], abs=1e-12)
    assert rank == pytest.approx(1, abs=1e-4)
    assert similarity == pytest.approx(0.5)


def test_what_augmented_features_add_along_two_directions_alike_has_rank_two():
    """z~ - z is (0.6 - 1, 0.8, 0) in half of the rows and (0.6 - 1, 0, 0.8) in the others: along them (-0.8, 0.8, 0.8) and
    (0, 0.8, -0.8), of lengths^2 1.92 and 1.28."""
    z, augmented = torch.tensor([[[1, 0, 0]] * 2, [[0.6, 0.8, 0], [0.6, 0, 0.8]]], dtype=torch.float64)
    values, rank, similarity = compare_augmented(z, augmented)
    ratio = (0.64 / 0.96) ** 0.5
    assert values.tolist() == pytest.approx([1, ratio])
    assert rank == pytest.approx(entropy_rank([1, ratio], 1e-7), rel=1e-9)
    assert similarity == pytest.approx((1 + 0.6) / 2)


def spectrum(eigenvalues):
    """Features (200, D) whose covariance has these eigenvalues, up to a constant, and a mean that is not 0."""
    directions = normal(200, len(eigenvalues))
    directions = torch.linalg.qr(directions - directions.mean(0)).Q
    return directions * torch.as_tensor(eigenvalues).sqrt() @ rotation(len(eigenvalues)) + 5


@pytest.mark.parametrize("alpha", [0.5, 1.7])
def test_alpha_req_of_a_power_law_is_its_exponent(alpha):
    assert alpha_req(spectrum(torch.arange(1, 121).double() ** -alpha)) == pytest.approx(alpha, rel=1e-9)


def test_alpha_req_is_the_weighted_fit_over_ranks_12_to_100():
    eigenvalues = np.sort(np.random.RandomState(0).gamma(1, size=130))[::-1].copy()
    k = np.arange(12, 101)
    slope, _ = np.polyfit(np.log(k), np.log(eigenvalues[k - 1]), 1, w=np.sqrt(1 / k))  # polyfit squares its weights
    assert alpha_req(spectrum(eigenvalues)) == pytest.approx(-slope, rel=1e-9)


def test_alpha_req_leaves_out_what_is_zero():
    power = torch.arange(1, 31).double() ** -1.3
    assert alpha_req(spectrum(torch.cat([power, torch.zeros(20)]))) == pytest.approx(1.3, rel=1e-6)
    assert math.isnan(alpha_req(normal(40, 12)))  # one rank is no slope
    assert math.isnan(alpha_req(normal(40, 4)))


def test_lidar_by_hand():
    """Four images without spread within them, at the ends of two axes: S_b has two equal eigenvalues, so its rank is 2."""
    ends = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    assert lidar(ends[:, None].repeat(1, 3, 1) + 7) == pytest.approx(2, rel=1e-6)


def test_lidar_is_the_literal_formula():
    h = normal(12, 5, 4) * torch.tensor([3.0, 1, 0.3, 0.1]) + 2 * normal(12, 1, 4, seed=1)
    means, mean = [image.mean(0) for image in h], h.mean((0, 1))
    between = sum(torch.outer(m - mean, m - mean) for m in means) / 12
    within = sum(torch.outer(x - m, x - m) for image, m in zip(h, means, strict=True) for x in image) / 60
    values, vectors = torch.linalg.eigh(within + 1e-4 * torch.eye(4))
    root = vectors @ torch.diag(values**-0.5) @ vectors.T
    eigenvalues = torch.linalg.eigvalsh(root @ between @ root).tolist()
    assert lidar(h) == pytest.approx(entropy_rank(eigenvalues, 1e-8), rel=1e-9)


def test_measures_of_an_encoder_whose_images_are_not_augmented(tiny):
    """Then two augmentations are one image: alignment is 0. Uniformity is the double sum over pairs."""
    config = tiny(crop_scale=(1, 1), flip=0)
    images, encoder = datasets.load(config).train.take(slice(30)), Encoder(config)
    h = features(encoder, images, config)
    measured = measure_label_free(encoder, h, images)
    assert measured["alignment"] == pytest.approx(0, abs=1e-12)
    unit = [x / x.norm() for x in h.double()]
    pairs = [math.exp(-2 * float((x - y).square().sum())) for x in unit for y in unit if x is not y]
    assert measured["uniformity"] == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-5)
    assert measured["rankme"] == rankme(h)
    assert measured["lidar"] == pytest.approx(lidar(h[:, None].repeat(1, 10, 1)), rel=1e-4)


def test_augmentations_are_those_of_the_run_and_the_same_in_every_call(tiny):
    config = tiny()
    images, encoder = datasets.load(config).train.take(slice(30)), Encoder(config)
    h = features(encoder, images, config)
    first = measure_label_free(encoder, h, images)
    assert measure_label_free(encoder, h, images) == pytest.approx(first, nan_ok=True)
    assert first["alignment"] > 1e-3
