"""The embedded data set: deterministic, balanced, drawn; the nuisances of luminance and of chroma are independent."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from metaug_core.data import shapes


@pytest.fixture(scope="module")
def drawn():
    """(images uint8 (2000, 3, 32, 32), labels (2000,), Lab float (2000, 32, 32, 3))."""
    images, labels = shapes.make(2000, seed=11)
    return images, labels, rgb2lab(images.permute(0, 2, 3, 1).numpy())


def border(lab: np.ndarray) -> np.ndarray:
    """Mean Lab of the outermost pixels, (N, 3): nearly all ground, hardly any object."""
    edge = np.ones(lab.shape[1:3], bool)
    edge[1:-1, 1:-1] = False
    return lab[:, edge].mean(1)


def held_out_r2(x: np.ndarray, y: np.ndarray) -> float:
    """Share of y's variance that a ridge regression on x, fitted to the first half, explains in the second half."""
    half = len(x) // 2
    x = (x - x[:half].mean(0)) / x[:half].std(0)
    mean = y[:half].mean(0)
    w = np.linalg.solve(x[:half].T @ x[:half] + 10 * np.eye(x.shape[1]), x[:half].T @ (y[:half] - mean))
    error, spread = y[half:] - mean - x[half:] @ w, y[half:] - mean
    return 1 - (error**2).sum() / (spread**2).sum()


def test_types_and_shapes(drawn):
    images, labels, _ = drawn
    assert images.dtype == torch.uint8
    assert images.shape == (2000, 3, 32, 32)
    assert labels.dtype == torch.int64
    assert labels.shape == (2000,)
    assert len(shapes.CLASSES) == len(set(shapes.CLASSES)) == 10


def test_same_seed_same_bytes_other_seed_other_bytes():
    first, again, other = shapes.make(600, 3), shapes.make(600, 3), shapes.make(600, 4)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert (first[0] == other[0]).float().mean() < 0.1
    assert not torch.equal(first[1], other[1])


def test_global_generators_are_neither_read_nor_moved():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = shapes.make(20, 3)[0]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(shapes.make(20, 3)[0], first)


@pytest.mark.parametrize("count", [1, 10, 503, 2000])
def test_classes_are_balanced(count):
    counts = torch.bincount(shapes.make(count, 5)[1], minlength=10)
    assert counts.max() - counts.min() <= 1
    assert counts.sum() == count


def test_labels_are_shuffled(drawn):
    labels = drawn[1].double()
    assert abs(np.corrcoef(labels[:-1], labels[1:])[0, 1]) < 0.1  # 4 standard errors are 0.09


def test_other_sizes_show_the_same_kind_of_image():
    images, _ = shapes.make(30, 5, size=64)
    assert images.shape == (30, 3, 64, 64)


def test_no_image_is_constant_in_any_colour(drawn):
    assert drawn[0].flatten(2).double().std(-1).min() > 2


def test_every_class_is_drawn_as_its_figure():
    # The masks alone, upright, centred and of one size: areas equal (the figures must not differ in mass), forms not.
    axis, g = (torch.arange(64) + 0.5) / 32 - 1, torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat_interleave(40)
    masks = shapes._mask(labels, axis, shapes._atlas(), g)
    area = masks.mean((1, 2)).view(10, 40).mean(1)
    assert area.min() > 0.12
    assert area.max() < 1.45 * area.min()
    table = (shapes._atlas()[:, 0] < 0).flatten(1).double()
    overlap = (table @ table.T) / (table.sum(1) + table.sum(1)[:, None] - table @ table.T)
    assert (overlap - torch.eye(10)).max() < 0.85


def test_object_stands_out_in_luminance_and_in_chroma(drawn):
    # Inner half of the image against its border: the object's contrast is in both, whatever its sign or hue.
    lab = drawn[2]
    step = np.abs(lab[:, 10:22, 10:22].mean((1, 2)) - border(lab))
    assert np.median(step[:, 0]) > 6
    assert np.median(np.hypot(step[:, 1], step[:, 2])) > 8


def test_luminance_does_not_predict_the_ground_hue_nor_chroma_the_ground_lightness(drawn):
    lab = drawn[2]
    ground = border(lab)
    coarse = lab.reshape(2000, 8, 4, 8, 4, 3).mean((2, 4))  # (N, 8, 8, 3)
    luminance, chroma = coarse[..., 0].reshape(2000, -1), coarse[..., 1:].reshape(2000, -1)
    assert held_out_r2(luminance, ground[:, 1:]) < 0.05
    assert held_out_r2(chroma, ground[:, :1]) < 0.05
    assert held_out_r2(chroma, ground[:, 1:]) > 0.9  # the same test does find what is there
    assert held_out_r2(luminance, ground[:, :1]) > 0.9


def test_textures_and_contrasts_of_luminance_and_chroma_are_independent():
    # On masks without an object, before sRGB clips: only the nuisances are left.
    axis, g = (torch.arange(32) + 0.5) / 16 - 1, torch.Generator().manual_seed(2)
    blank = torch.zeros(2000, 32, 32)
    lightness, ab = shapes._luminance(blank, axis, g), shapes._chroma(blank, axis, g)
    flat = torch.cat([lightness[:, None], ab], 1).flatten(2)  # (N, 3, 1024)
    flat = (flat - flat.mean(-1, keepdim=True)) / flat.std(-1, keepdim=True)
    pixelwise = torch.einsum("nip,njp->nij", flat, flat) / flat.shape[-1]
    shuffled = torch.einsum("nip,njp->nij", flat, flat.roll(1, 0)) / flat.shape[-1]
    assert abs(pixelwise[:, 0, 1:].mean()) < 0.02
    assert abs(pixelwise[:, 0, 1:].abs().mean() - shuffled[:, 0, 1:].abs().mean()) < 0.01
    strength = torch.stack([lightness.std((1, 2)), ab[:, 0].std((1, 2)), ab[:, 1].std((1, 2))])
    assert torch.corrcoef(strength)[0, 1:].abs().max() < 0.09


def test_object_is_shared_by_luminance_and_chroma(drawn):
    lab = torch.from_numpy(drawn[2]).permute(0, 3, 1, 2).flatten(2)
    lab = (lab - lab.mean(-1, keepdim=True)) / lab.std(-1, keepdim=True)
    own = (lab[:, 0] * lab[:, 1]).mean(-1).abs().mean()
    other = (lab[:, 0] * lab[:, 1].roll(1, 0)).mean(-1).abs().mean()
    assert own > 1.25 * other


def test_mean_colour_does_not_tell_the_class(drawn):
    images, labels, _ = drawn
    x = images.double().flatten(2).mean(-1)
    x = torch.cat([(x - x.mean(0)) / x.std(0), torch.ones(2000, 1)], 1)
    targets = torch.nn.functional.one_hot(labels[:1000], 10).double()
    w = torch.linalg.lstsq(x[:1000], targets).solution
    accuracy = ((x[1000:] @ w).argmax(1) == labels[1000:]).double().mean()
    assert accuracy < 0.15


@pytest.mark.parametrize(("wrong", "name"), [((0, 0), "count"), ((5, -1), "seed"), ((5, 0, 4), "size")])
def test_bad_arguments_are_named(wrong, name):
    with pytest.raises(ValueError, match=f"shapes: {name} must be at least"):
        shapes.make(*wrong)
