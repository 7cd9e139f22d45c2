"""Draws of random crops and flips: what they are, and that nothing but their number decides them."""

import math

import pytest
import torch
from tiny import patterns

from metaug_core import METHODS, Config, evaluate, fit
from metaug_core.data.images import Images, Rows, StreamedImages
from metaug_core.evaluation import crops, representations
from metaug_core.evaluation.crops import count_draws, draw_numbers, read_images, take_in_turn
from metaug_core.evaluation.representations import features, load_networks
from metaug_core.views.augmentation import augment, plain


@pytest.fixture
def images() -> Images:
    pixels, labels = patterns(140, 0)  # more than are encoded at a time
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels), ("a", "b", "c", "d"))


def read(images, config, draw=None):
    return torch.cat([*read_images(images, config, draw)])


def test_without_a_draw_images_are_plain(images, tiny):
    config = tiny(crop_scale=(0.2, 0.3), jitter=0.5)
    assert torch.equal(read(images, config), plain(images.pixels, 16))


def test_a_draw_crops_and_flips_and_does_nothing_else(tiny):
    """An image whose red is x and whose green is y tells where each pixel comes from; what the run itself does to images is left
    out."""
    side, count = 64, 400
    ramp = (torch.arange(side) * 4).to(torch.uint8)
    pixel = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side), torch.full((side, side), 77)])
    images = Images(pixel.to(torch.uint8).expand(count, -1, -1, -1), torch.zeros(count).long(), ("a",))
    config = tiny(
        image_size=32, crop_scale=(1.0, 1.0), flip=0.0, rotation=90, jitter=1.0, grey=1.0, mixup=0.5, randaugment=9
    )
    crop = read(images, config, 3)
    red, green, blue = (255 / 4 * crop).unbind(1)
    assert torch.allclose(blue, torch.tensor(77 / 4), atol=1e-3)
    assert red.std(1).max() < 1e-3  # x alone: no rotation, no shear
    assert green.std(2).max() < 1e-3
    width, height = (red[:, 0, -1] - red[:, 0, 0]) * 32 / 31, (green[:, -1, 0] - green[:, 0, 0]) * 32 / 31
    assert 0.4 < (width < 0).double().mean() < 0.6  # flipped
    assert (height > 0).all()
    area, ratio = (width.abs() * height / side**2), width.abs() / height
    assert 0.19 < area.min() < 0.23
    assert 0.9 < area.max() < 1.01
    assert 0.55 < area.mean() < 0.65
    assert 0.74 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 1.34


def test_draws_are_those_of_augment(images, tiny, monkeypatch):
    """`augment` with crops and flips alone gives the same where it draws the same numbers."""
    numbers = dict(zip(crops.NUMBERS, draw_numbers(140, 5), strict=True))
    monkeypatch.setattr("metaug_core.views.augmentation.draw", lambda count, generator: numbers)
    config = tiny(crop_scale=(0.2, 1.0), flip=0.5)
    assert torch.equal(read(images, tiny(jitter=0.3), 5), augment(images.pixels, config, torch.Generator()))


def test_two_draws_differ_and_one_twice_is_the_same(images, tiny):
    first, again, other = (read(images, tiny(), draw) for draw in (0, 0, 1))
    assert torch.equal(first, again)
    assert ((first - other).abs().amax((1, 2, 3)) > 0.01).all()
    assert torch.equal(first, read(images, tiny(seed=5, method="cmc"), 0))
    x, y = draw_numbers(1000, 0).flatten(1), draw_numbers(1000, 1).flatten(1)
    assert torch.corrcoef(torch.cat([x, y])).fill_diagonal_(0).abs().max() < 5 / math.sqrt(1000)


def test_a_draw_leaves_the_runs_random_numbers_alone(images, tiny):
    before = torch.get_rng_state()
    read(images, tiny(), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_draw_does_not_depend_on_how_many_are_encoded_at_a_time(images, tiny, monkeypatch):
    whole = read(images, tiny(), 4)
    monkeypatch.setattr(crops, "split_rows", lambda images: torch.arange(len(images)).split(33))
    assert torch.equal(read(images, tiny(), 4), whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_images_have_the_same_draws(images, tiny, workers):
    pixels, index = images.pixels.numpy(), torch.arange(140).flip(0).numpy()
    streamed = StreamedImages(Rows([pixels[:60], pixels[60:]]), index, images.labels.flip(0), images.classes, workers)
    expected = Images(images.pixels.flip(0), images.labels.flip(0), images.classes)
    assert torch.equal(read(streamed, tiny(), 1), read(expected, tiny(), 1))
    networks, _ = load_networks(tiny(method="cmc"), 4)
    h = [features(networks, one, tiny(), 1) for one in (streamed, expected)]
    assert torch.equal(*h)


def test_features_of_a_draw_are_the_encoders_of_its_crops(images, tiny):
    config = tiny(views=("L", "ab", "L"), method="cmc")
    networks, _ = load_networks(config, 4)
    networks.eval()
    rgb = read(images, config, 2)
    with torch.no_grad():
        h = torch.cat(representations.encode(networks, rgb, config), 1)
        z = representations.embed(networks, rgb, config)
    torch.testing.assert_close(features(networks, images, config, 2), h)
    torch.testing.assert_close(representations.embeddings(networks, images, config, draw=2), z)
    assert torch.equal(z[0], z[2])  # a name that stands twice shares one encoder
    torch.testing.assert_close(representations.raw_pixels(images, config, 2), rgb.flatten(1))


@pytest.mark.parametrize(("limit", "passes"), [(0, 60), (3 * 40, 3 + 57 - 3 * 5), (10 * 40, 10)])
def test_draws_are_taken_in_turn_and_kept_as_far_as_they_fit(limit, passes):
    """However many are kept, the features are the same. Those of a draw have 40 bytes here."""
    encoded = []

    def encode(draw: int) -> torch.Tensor:
        encoded.append(draw)
        return torch.full((5, 2), float(draw))

    take = take_in_turn(encode, 10, limit)
    assert [take(epoch)[0, 0].item() for epoch in range(60)] == [*range(10)] * 6
    assert len(encoded) == passes


def test_on_cuda_every_epoch_has_a_draw_of_its_own():
    assert (count_draws("cuda"), count_draws("cuda:1"), count_draws("cpu"), count_draws("mps")) == (60, 60, 10, 10)


def test_the_result_does_not_depend_on_whether_draws_are_kept(tiny, monkeypatch):
    run = fit(tiny(epochs=1, method="cmc"), lambda progress: None)
    asked = {"measures": ("probe_paper",), "representations": ("raw pixels", "trained")}
    kept = evaluate(run, **asked)
    run.evaluation_file().unlink()
    monkeypatch.setattr(representations, "take_in_turn", lambda encode, draws: take_in_turn(encode, draws, limit=0))
    assert evaluate(run, **asked).equals(kept)


def test_no_method_changes_the_draws(images):
    """Whatever augmentations a method brings, the probe sees crops and flips."""
    methods = {name: Config(method=name, image_size=16) for name in METHODS}
    assert sum(config.jitter > 0 for config in methods.values()) > 3
    expected = read(images, methods["cmc"], 0)
    assert [name for name, config in methods.items() if not torch.equal(read(images, config, 0), expected)] == []
