"""Reading an augmentation's parameter from features: hand-made features, and encoders that see it or do not."""

import pytest
import torch
from torch import nn

from metaug_core.config import Config
from metaug_core.data.images import Images
from metaug_core.errors import MetaugError
from metaug_core.evaluation import invariances
from metaug_core.evaluation.invariances import PARAMETERS, change_features, read_linearly, share_along
from metaug_core.evaluation.representations import load_networks

N = 400


def draw_normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_features_that_hold_the_parameter_give_one_and_others_about_zero():
    target, others = draw_normal(N, seed=1), draw_normal(N, 10)
    held = torch.cat([others, 3 * target[:, None] + 5], 1)
    assert read_linearly(held, target) == pytest.approx(1, abs=1e-6)
    assert read_linearly(held, target > 0.3) > 0.75  # a sign is not linear in it
    assert read_linearly(torch.cat([others, (target > 0)[:, None]], 1), target > 0) == 1
    assert abs(read_linearly(others, target)) < 0.1
    assert abs(read_linearly(others, target > 0)) < 0.25
    assert abs(read_linearly(torch.zeros(N, 3), target)) < 0.1
    with pytest.raises(MetaugError, match="two values in each part"):
        read_linearly(others, torch.zeros(N))


def test_half_of_the_variance_gives_r_squared_of_a_half():
    target, noise = draw_normal(4000, seed=2), draw_normal(4000, seed=3)
    assert read_linearly((target + noise)[:, None], target) == pytest.approx(0.5, abs=0.05)


def test_the_reader_is_ridge_regression_by_the_normal_equations():
    x, y = draw_normal(50, 4), draw_normal(50, seed=4)
    y = y + x[:, 0]
    mean, centre = x[:30].mean(0), y[:30].mean()
    scaled = (x - mean) / (x[:30] - mean).square().mean().sqrt()
    scores = {}
    for penalty in invariances.PENALTIES:
        inverse = torch.linalg.inv(scaled[:30].T @ scaled[:30] + 30 * penalty * torch.eye(4, dtype=x.dtype))
        away = y - centre - scaled @ (inverse @ scaled[:30].T @ (y[:30] - centre))
        scores[penalty] = [
            1 - away[part].square().sum() / (y[part] - centre).square().sum() for part in (slice(30, 40), slice(40, 50))
        ]
    expected = max(scores.values(), key=lambda pair: pair[0])[1]
    assert read_linearly(x, y) == pytest.approx(float(expected))


def test_the_share_along_a_change_is_that_of_its_directions():
    change = torch.zeros(N, 12, dtype=torch.float64)
    change[:, :2] = draw_normal(N, 2)
    added = draw_normal(N, 12, seed=5)
    centred = added - added.mean(0)
    expected = centred[:, :2].square().sum() / centred.square().sum()
    assert share_along(added, change, 2) == pytest.approx(float(expected))


class Brightness(nn.Module):
    """h is the mean of an image's pixels, z that of the left less that of the right half."""

    def encoders(self, views, names):
        return [view.mean((1, 2, 3))[:, None] for view in views]

    def forward(self, views):
        halves = [view.unflatten(3, (2, -1)).mean((1, 2, 4)) for view in views]
        return torch.stack([half[:, :1] - half[:, 1:] for half in halves])


@pytest.mark.parametrize(("augmentation", "h", "z"), [("brightness", 1.0, 0.0), ("flip", 0.0, 1.0)])
def test_what_an_encoder_sees_is_read_and_what_it_does_not_see_is_not(augmentation, h, z):
    """One picture many times, darker on the left: its mean changes with brightness alone, its halves by a flip."""
    picture = torch.full((3, 8, 8), 60, dtype=torch.uint8)
    picture[:, :, 4:] = 90
    images = Images(picture.expand(300, -1, -1, -1).contiguous(), torch.zeros(300, dtype=torch.long), ("one",))
    config = Config(views=("RGB", "RGB"), independent=True, image_size=8)
    changes, target = change_features(Brightness(), images, config, PARAMETERS[augmentation])
    assert read_linearly(changes["h"], target) == pytest.approx(h, abs=0.15)
    if augmentation == "flip":
        assert read_linearly(changes["z"], target) == z


def test_all_augmentations_are_measured_of_h_z_and_augmented_z():
    config = Config(method="metaug", width=0.0625, mag_hidden=8, feature_dim=8, image_size=16, views=("L", "ab"))
    images = Images(
        torch.randint(0, 256, (60, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        torch.zeros(60, dtype=torch.long), ("one",),
    )  # fmt: skip
    networks, mag = load_networks(config, 1)
    table = invariances.measure_invariances(networks, images, config, mag)
    assert list(table.groupby("features")["augmentation"].nunique()) == [len(PARAMETERS)] * 3
    assert table["score"].le(1).all()
    assert table.query("features == 'z'")["share"].between(0, 1).all()
    again = invariances.measure_invariances(networks, images, config, mag)
    assert again.equals(table)
