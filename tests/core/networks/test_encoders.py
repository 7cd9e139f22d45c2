"""Encoders, heads and MAG: shapes and facts of the published split AlexNet, views as parameters."""

from typing import Any

import pytest
import torch

import metaug_core
from metaug_core import ENCODERS, Config, MetaugError
from metaug_core.methods import build
from metaug_core.networks.encoders import Encoders, Networks, channels_last, output_dim
from metaug_core.networks.mag import MAG


def test_conv_at_224_is_the_public_split_alexnet():
    net = ENCODERS["conv"](2, Config(image_size=224))
    convs = [m for m in net if isinstance(m, torch.nn.Conv2d)]
    assert [m.out_channels for m in convs] == [48, 128, 192, 192, 128]
    assert [(m.kernel_size[0], m.stride[0]) for m in convs] == [(11, 4), (5, 1), (3, 1), (3, 1), (3, 1)]
    assert output_dim(net, 2, Config(image_size=224)) == 128 * 6 * 6


@pytest.mark.parametrize(("size", "dim"), [(32, 128 * 9), (64, 128 * 9), (96, 128 * 25)])
def test_conv_keeps_small_images_large_enough(size, dim):
    config = Config(image_size=size)
    assert output_dim(ENCODERS["conv"](3, config), 3, config) == dim


def test_fc_adds_two_layers_of_2048():
    config = Config(encoder="fc")
    net = ENCODERS["fc"](1, config)
    assert [m.out_features for m in net if isinstance(m, torch.nn.Linear)] == [2048, 2048]
    assert output_dim(net, 1, config) == 2048


@pytest.mark.parametrize(("name", "dim"), [("resnet18", 512), ("resnet50", 2048)])
@pytest.mark.parametrize(("size", "kernel"), [(32, 3), (224, 7)])
def test_resnets_have_a_stem_for_their_images(name, dim, size, kernel):
    net = ENCODERS[name](2, Config(encoder=name, image_size=size))
    assert (net.conv1.in_channels, net.conv1.kernel_size[0]) == (2, kernel)
    assert isinstance(net.maxpool, torch.nn.Identity) == (size == 32)
    assert net.eval()(torch.zeros(1, 2, size, size)).shape == (1, dim)


def test_width_scales_channels_and_a_resnet_refuses_it():
    net = ENCODERS["conv"](3, Config(width=0.25))
    assert [m.out_channels for m in net if isinstance(m, torch.nn.Conv2d)] == [12, 32, 48, 48, 32]
    with pytest.raises(MetaugError, match=r"only width 1, got 0\.5"):
        Networks(Config(encoder="resnet18", width=0.5))


def test_features_are_unit_and_one_row_per_view():
    config = Config(width=0.1, feature_dim=7)
    z = Networks(config)([torch.rand(4, c, 32, 32) for c in (1, 2, 3)])
    assert z.shape == (3, 4, 7)
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(3, 4))


def test_two_crops_share_one_encoder_and_their_batch_statistics():
    config = Config(method="simclr", width=0.1, feature_dim=7, head="linear")
    networks = Networks(config)
    assert list(networks.encoders.nets) == ["RGB"]
    crops = [torch.rand(4, 3, 32, 32) for _ in range(2)]
    z = networks(crops)
    swapped = networks(crops[::-1])
    torch.testing.assert_close(z[0], swapped[1])
    torch.testing.assert_close(z[1], swapped[0])


def test_simclrs_head_centres_the_features_of_each_view_and_a_plain_one_does_not():
    images = [torch.rand(16, c, 32, 32) + c for c in (1, 2)]
    for head, centred in (("mlp-bn", True), ("mlp", False)):
        z = Networks(Config(width=0.1, feature_dim=7, views=("L", "ab"), head=head), unit=False)(images)
        assert (z.mean(1).abs().max() < 1e-5) == centred


def test_a_projector_is_centred_where_that_is_asked():
    config = Config(method="byol", width=0.1, head_hidden=16, feature_dim=7, predictor_hidden=8)
    for asked in (True, False):
        networks: Any = build(config.replace(projector_norm=asked)).networks(2)
        projected = networks.heads["RGB"](torch.rand(8, networks.encoders.dims["RGB"]))
        assert (projected.mean(0).abs().max() < 1e-5) == asked


def test_an_encoder_of_ones_own_in_one_line():
    ENCODERS["tiny"] = lambda channels, config: torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(channels * 256, 5)
    )
    try:
        z = Networks(Config(encoder="tiny", image_size=16, feature_dim=3))(
            [torch.rand(2, c, 16, 16) for c in (1, 2, 3)]
        )
        assert z.shape == (3, 2, 3)
        with pytest.raises(MetaugError, match="'tiny' does not take 1 x 32 px"):
            ENCODERS["tiny"] = lambda channels, config: torch.nn.Linear(7, 5)
            Encoders(Config(encoder="tiny"))
        with pytest.raises(MetaugError, match=r"shape \(2, 1, 32, 32\) from 2 images"):
            ENCODERS["tiny"] = lambda channels, config: torch.nn.Identity()
            Encoders(Config(encoder="tiny"))
    finally:
        del ENCODERS["tiny"]


def test_bf16_runs_the_encoder_low_and_gives_float32_features_close_by():
    views = [torch.rand(8, c, 32, 32) for c in (1, 2, 3)]
    networks = {p: Networks(Config(width=0.25, precision=p)) for p in ("float32", "bf16")}
    networks["bf16"].load_state_dict(networks["float32"].state_dict())
    full, low = networks["float32"](views), networks["bf16"](views)
    assert low.dtype == torch.float32
    assert 0 < (full - low).abs().max() < 0.05


def test_mag_equals_one_mlp_per_view():
    """The batched layers against torch.nn modules with the same numbers, in training mode (batch statistics)."""
    torch.manual_seed(0)
    mag, z = MAG(3, 5, 11).double(), torch.randn(3, 6, 5, dtype=torch.float64)
    got = mag(z)
    for v in range(3):
        x = z[v]
        for layer, norm in ((mag.first, mag.first_norm), (mag.second, mag.second_norm)):
            x = x @ layer.weight[v] + layer.bias[v]
            x = (x - x.mean(0)) / (x.var(0, unbiased=False) + norm.eps).sqrt()
            x = torch.relu(x)
        x = x @ mag.last.weight[v] + mag.last.bias[v]
        torch.testing.assert_close(got[v], x / x.norm(dim=-1, keepdim=True), rtol=1e-9, atol=1e-9)


def test_initial_weights_follow_the_seed_and_leave_the_global_state_alone():
    config = Config(width=0.1)
    method = metaug_core.methods.build(config)
    from metaug_core.methods.base import initial_networks

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = (initial_networks(method, 10, seed)[0].state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["encoders.nets.L.0.weight"], other["encoders.nets.L.0.weight"])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("first", [True, False])
def test_maps_are_channels_last_whatever_the_layout_of_the_weights(channels, first):
    images = torch.randn(2, channels, 5, 6)
    laid_out = channels_last(images)
    assert torch.equal(laid_out, images)
    assert laid_out.stride() == (channels * 30, 1, channels * 6, channels)
    weight = torch.randn(4, channels, 3, 3)
    if not first:
        weight = torch.empty_strided(weight.shape, (9 * channels, 1, 3 * channels, channels)).copy_(weight)
    assert torch.conv2d(laid_out, weight, padding=1).is_contiguous(memory_format=torch.channels_last)
