"""Protocols: each method's own recipe in numbers of its authors, and `uniform`, which is section 4.1 of the paper."""

import math

import pytest
import torch

from metaug_core import METHODS, methods
from metaug_core.config import Config
from metaug_core.methods.base import initial_networks
from metaug_core.networks.encoders import apply_by_name
from metaug_core.networks.memory import Averaged, Queue
from metaug_core.presets import PAPER, QUICK, preset
from metaug_core.recipes import AUGMENTATION, OPTIMISATION

UNIFORM_OFF = {"jitter": 0, "grey": 0, "rotation": 0, "blur": (0,), "solarise": (0,)}
SPLIT = {
    "splitbrain",
    "cmc",
    "metaug-only-oucl",
    "metaug-only-mag",
    "metaug",
}  # the double dagger of Table 1, and its ablations


@pytest.mark.parametrize("method", list(METHODS))
def test_uniform_is_cmcs_augmentation_and_the_presets_optimiser(method):
    config = preset("quick", method=method, protocol="uniform")
    assert (config.crop_scale, config.flip) == ((0.2, 1), 0.5)
    for name, value in UNIFORM_OFF.items():
        assert getattr(config, name) == value, name
    assert config.mixup == (0.1 if method == "dacl" else 0)
    assert config.randaugment == (30 if "randaugment" in method else 0)
    for name in OPTIMISATION:
        assert getattr(config, name) == QUICK.get(name, Config.model_fields[name].default), name
    assert config.width == QUICK["width"] * (1 if method.split("+")[0] in SPLIT else 2)


def test_the_paper_preset_is_uniform_and_what_is_given_stands():
    assert PAPER["protocol"] == "uniform"
    config = preset("paper", method="byol")
    assert (config.width, config.jitter, config.optimiser, config.lr) == (2, 0, "adam", PAPER["lr"])
    assert config.replace(method="cmc").width == 1
    changed = preset("paper", method="byol", width=0.5, jitter=0.3)
    assert (changed.width, changed.jitter) == (0.5, 0.3)
    assert preset("paper", method="simclr", encoder="resnet18").width == 1


OWN = {  # settings of 100 epochs at a minibatch of 128 and 32 px, in numbers of the authors' papers and code
    "simclr": {"optimiser": "lars", "lr": 0.5, "weight_decay": 1e-4, "crop_scale": (0.08, 1), "jitter": 0.5, "grey": 0.2,
               "warmup_epochs": 1, "head_norm": "joint", "encoder_norm": "joint", "decay_norm_and_bias": False,
               "blur": (0,), "lr_schedule": "cosine"},
    "moco": {"optimiser": "sgd", "lr": 0.015, "weight_decay": 5e-4, "shared_queue": True, "encoder_norm": "apart",
             "ema_momentum": 0.99},
    "simsiam": {"optimiser": "sgd", "lr": 0.015, "weight_decay": 5e-4, "predictor_lr_schedule": "constant",
                "zero_init_residual": True},
    "byol": {"optimiser": "lars", "lr": 0.225, "ema_momentum": 0.99, "ema_schedule": "cosine",
             "jitter_ranges": (0.8, 0.8, 0.4, 0.2), "solarise": (0, 0.2), "crop_scale": (0.08, 1), "jitter_probability": 0.8},
    "barlow": {"optimiser": "lars", "lr": 0.1, "solarise": (0, 0.2), "zero_init_residual": True},
    "nnclr": {"optimiser": "lars", "lr": 0.2, "shared_queue": True},
    "swav": {"optimiser": "lars", "lr": 0.3, "jitter": 1.0, "crop_scale": (0.14, 1), "head_norm": "joint",
             "decay_norm_and_bias": True},
    "wmse": {"optimiser": "adam", "lr": 1e-3, "weight_decay": 1e-6, "grey": 0.1, "encoder_norm": "apart", "head_norm": "joint",
             "lr_schedule": "step", "lr_steps": (95, 98), "lr_decay": 0.2},
    "infomin": {"optimiser": "sgd", "lr": 0.015, "jitter": 1.0, "randaugment": 30, "randaugment_probability": 0.5},
    "looc": {"optimiser": "sgd", "lr": 0.015, "rotation": 180},
    "dim": {"optimiser": "adam", "lr": 1e-4, "crop_scale": (1, 1), "flip": 0},
    "nat": {"optimiser": "sgd", "lr": 1.28, "momentum": 0, "weight_decay": 0, "lr_schedule": "constant"},
    "dacl": {"crop_scale": (1, 1), "flip": 0, "mixup": 0.1},
    "cmc": {"optimiser": "sgd", "lr": 0.03, "weight_decay": 1e-4, "lr_steps": (50, 67, 83), "positives": "bank", "head": "alexnet"},
}  # fmt: skip


@pytest.mark.parametrize("method", OWN)
def test_own_is_the_authors_recipe(method):
    config = preset("quick", method=method, protocol="own", epochs=100, batch_size=128, train_images=None)
    shown = {name: getattr(config, name) for name in OWN[method]}
    for name, value in OWN[method].items():
        assert shown[name] == (pytest.approx(value) if isinstance(value, float) else value), name


def test_own_is_scaled_to_minibatch_length_and_size_of_images():
    small, large = (preset("quick", method="byol", protocol="own", batch_size=b, train_images=None) for b in (64, 256))
    assert large.lr == pytest.approx(4 * small.lr)
    assert [preset("quick", method="byol", protocol="own", epochs=n).ema_momentum for n in (40, 41, 300, 301, 3000)] == [
        0.97, 0.99, 0.99, 0.996, 0.996]  # fmt: skip
    assert preset("quick", method="byol", protocol="own", image_size=64).blur == (1.0, 0.1)
    assert preset("quick", method="cmc", protocol="own", epochs=2).lr_steps == (1,)
    assert preset("quick", method="cmc", protocol="own", epochs=1).lr_schedule == "cosine"


@pytest.mark.parametrize("protocol", ["own", "uniform"])
@pytest.mark.parametrize("method", list(METHODS))
def test_a_run_of_a_protocol_is_itself_again_from_what_is_saved(method, protocol):
    config = preset("quick", method=method, protocol=protocol)
    again = Config(**config.chosen())
    assert again == config
    assert again.name() == config.name()
    assert config.replace(seed=1).replace(seed=0) == config
    assert methods.build(config).description.recipe is METHODS[method].description.recipe


def test_a_run_keeps_its_settings_when_the_recipe_changes(monkeypatch):
    config = preset("quick", method="simclr", protocol="own")
    saved, name = config.chosen(), config.name()
    description = METHODS["simclr"].description
    monkeypatch.setitem(description.recipe.settings, "weight_decay", 0.5)
    assert Config(**saved).name() == name
    assert preset("quick", method="simclr", protocol="own").name() != name


def test_a_protocol_is_not_in_the_name_but_its_settings_are():
    plain = preset("quick", method="simclr")
    assert preset("quick", method="simclr", protocol="uniform").name() != plain.name()
    by_hand = plain.replace(crop_scale=(0.2, 1), jitter=0, grey=0, width=0.5)
    assert preset("quick", method="simclr", protocol="uniform").name() == by_hand.name()


@pytest.mark.parametrize("method", list(METHODS))
def test_recipes_name_settings_that_exist_and_that_the_method_uses(method):
    description = METHODS[method].description
    if description.recipe is not None:
        config = preset("quick", method=method, protocol="own", encoder="resnet18", width=1, epochs=100)
        assert set(description.recipe.settings) <= set(Config.model_fields)
        for name in description.recipe.settings.keys() - ({"temperature"} if method == "metaug-nnclr" else set()):
            assert config.idle(name) is None, config.idle(name)


def test_what_a_recipe_may_say_is_known():
    assert set(Config.model_fields) >= AUGMENTATION | OPTIMISATION


# --- what the settings do


@pytest.mark.parametrize("joint", [True, False])
def test_two_crops_share_batchnorm_statistics_or_not(joint):
    norm = torch.nn.BatchNorm1d(3, affine=False, dtype=torch.float64)
    first, second = torch.randn(2, 8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    other = first + 5
    a, b, c = apply_by_name({"x": norm, "y": norm}, [first, other, second], ("x", "y", "x"), joint)
    alone = torch.nn.BatchNorm1d(3, affine=False, dtype=torch.float64)
    expected = alone(torch.cat([first, second])).chunk(2) if joint else (alone(first), alone(second))
    for ours, right in zip((a, c), expected, strict=True):
        torch.testing.assert_close(ours, right)
    torch.testing.assert_close(b, alone(other))


@pytest.mark.parametrize("where", ["encoder_norm", "head_norm"])
def test_the_arrangement_of_batchnorm_reaches_the_features(where):
    config = Config(method="simclr", image_size=16, width=0.1, feature_dim=8)
    images = list(
        torch.randn(2, 6, 3, 16, 16, generator=torch.Generator().manual_seed(0)).mul(
            torch.tensor([1.0, 3.0])[:, None, None, None, None]
        )
    )
    other = "apart" if getattr(config, where) == "joint" else "joint"
    z = [initial_networks(methods.build(c), 2, 0)[0](images) for c in (config, config.replace(**{where: other}))]
    assert not torch.allclose(*z)


def test_a_residual_block_can_start_as_the_identity():
    for zero in (True, False):
        config = Config(method="simsiam", encoder="resnet18", zero_init_residual=zero)
        networks, _ = initial_networks(methods.build(config), 2, 0)
        weight = networks.encoders.nets["RGB"].layer1[0].bn2.weight
        assert (weight == 0).all() == zero


def test_momentum_rises_to_one_by_half_a_cosine():
    config = Config(
        method="byol", image_size=16, width=0.1, epochs=2, batch_size=4, ema_momentum=0.9, ema_schedule="cosine"
    )
    networks = torch.nn.Linear(1, 1, bias=False)
    averaged = Averaged(networks, config, images=9)  # 2 steps an epoch, 4 in all
    torch.nn.init.constant_(networks.weight, 1.0)
    torch.nn.init.constant_(averaged.networks.weight, 0.0)
    expected = 0.0
    for step in range(4):
        averaged.follow(networks)
        share = 0.1 * (1 + math.cos(math.pi * step / 4)) / 2
        expected += share * (1 - expected)
        assert averaged.networks.weight.item() == pytest.approx(expected, rel=1e-6)


def test_one_queue_holds_the_features_of_all_views_one_after_the_other():
    queue = Queue(2, 6, 1, torch.Generator().manual_seed(0), shared=True)
    z = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    queue.write(z)
    assert queue.entries[0, :4, 0].tolist() == [1, 2, 3, 4]
    assert queue.of_views().shape == (2, 6, 1)
    queue.write(z[:1] + 10)
    queue.write(z[:1] + 20)
    assert queue.entries[0, :, 0].tolist() == [21, 22, 3, 4, 11, 12]
