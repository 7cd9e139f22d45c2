"""BiGAN, NAT, DIM, CPC, SplitBrain, InfoMin Aug., LooC, W-MSE: each objective against its formula written out, and its state."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY
from torch import nn
from torch.nn import functional as F

from metaug_core import METHODS, Config, ConfigError, MetaugError, evaluate, fit, fit_trials
from metaug_core.data import datasets
from metaug_core.methods import Context, build
from metaug_core.methods.base import initial_networks
from metaug_core.methods.baselines.bigan import Game
from metaug_core.methods.baselines.cpc import LEAST_SIDE, SCALE, cut_patches
from metaug_core.methods.baselines.dim import Embedding, capture_outputs, find_last_map, jensen_shannon
from metaug_core.methods.baselines.infomin import draw_pieces, shuffle_pieces
from metaug_core.methods.baselines.looc import HELD
from metaug_core.methods.baselines.nat import Dropout
from metaug_core.methods.baselines.splitbrain import quantise
from metaug_core.methods.baselines.wmse import whiten
from metaug_core.methods.metaug import MetAug
from metaug_core.networks.encoders import Encoders
from metaug_core.runs.files import read_tensors
from metaug_core.training import checkpoint, state
from metaug_core.training.state import own_random_numbers
from metaug_core.training.step import train_step

NAMES = ["bigan", "nat", "dim", "cpc", "splitbrain", "infomin", "looc", "wmse"]
BARE = {key: value for key, value in TINY.items() if key != "views"} | {
    "queue_size": 48, "cpc_grid": 3, "cpc_skip": 0, "head_hidden": 16, "dim_units": 12,
}  # fmt: skip


def quiet(progress):
    pass


def settings(method: str, **changes: Any) -> Config:
    """A tiny config of a method with the views that are its default."""
    return Config(**{**BARE, "method": method, **changes})


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def normal(*shape: int, seed: int = 0, unit: bool = False) -> torch.Tensor:
    x = torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)
    return F.normalize(x, dim=-1) if unit else x


def of(batch: int, given: dict[str, torch.Tensor] | None = None, **more: Any) -> Context:
    return Context(torch.arange(batch), torch.zeros(batch, dtype=torch.int64), given=given or {}, **more)


def pixels(count: int = 6, side: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=seeded(), dtype=torch.uint8)


# --- all of them: state, seeds, precision, trials


def started(config: Config) -> Any:
    return state.create(config, datasets.load(config), "cpu")


def steps(s: Any, numbers: range) -> None:
    for number in numbers:
        rows = torch.arange(16) + 16 * (number % 5)
        with own_random_numbers(s):  # NAT's dropout
            train_step(s, s.images.pixels[rows], rows, False)
        s.step += 1


def everything(s: Any) -> dict[str, torch.Tensor]:
    tensors = {f"networks.{name}": t.clone() for name, t in s.networks.state_dict().items()}
    return tensors | ({f"memory.{name}": t.clone() for name, t in s.memory.state_dict().items()} if s.memory else {})


@pytest.mark.parametrize(("method", "precision"), [*zip(NAMES, ["float32", "bf16"] * 4, strict=True)])
def test_all_state_is_saved_and_resumed_to_the_bit(tmp_path, method, precision):
    config = settings(method, precision=precision)
    straight = started(config)
    before = everything(straight)
    steps(straight, range(4))
    first, resumed = started(config), started(config)
    steps(first, range(2))
    checkpoint.save(first, tmp_path / "state")
    checkpoint.restore(resumed, tmp_path / "state")
    steps(resumed, range(2, 4))
    after, other = everything(straight), everything(resumed)
    assert all(torch.equal(after[name], other[name]) for name in after)
    assert all(torch.isfinite(t).all() for t in after.values())
    still = {name for name in after if torch.equal(after[name], before[name])}
    assert {name for name in still if "running" not in name and "batches" not in name} <= {"memory.noise"}


@pytest.mark.parametrize("method", ["bigan", "nat", "infomin", "looc"])
def test_trials_side_by_side_are_the_runs_alone(tmp_path, method):
    configs = [settings(method, seed=seed, epochs=1, train_images=40, runs_dir=tmp_path / "both") for seed in (0, 1)]
    for run, config in zip(fit_trials(configs, quiet), configs, strict=True):
        alone = read_tensors(fit(config.replace(runs_dir=tmp_path / "alone"), quiet).checkpoint)[0]
        together = read_tensors(run.checkpoint)[0]
        assert all(torch.equal(together[name], alone[name]) for name in alone)


@pytest.mark.parametrize("method", NAMES)
def test_h_is_measured_with_an_fc_encoder_and_two_views(tmp_path, method):
    config = settings(
        method, encoder="fc", views=("L", "ab"), independent=False, epochs=1, train_images=40, runs_dir=tmp_path
    )
    assert evaluate(fit(config, quiet)).loc["trained", "n_eval"] == 60


@pytest.mark.parametrize("method", NAMES)
def test_sizes_of_image_and_encoder(method):
    for encoder, side in (("conv", 20), ("resnet18", 33)):
        config = settings(method, encoder=encoder, width=0.05 if encoder == "conv" else 1, image_size=side)
        built = build(config)
        networks, _ = initial_networks(built, 4, 0)
        with torch.no_grad():
            z = networks(built.views(pixels(4, 32), seeded()))
        assert z.shape[1] == 4
        assert torch.isfinite(z).all()


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        ("splitbrain", {"views": ("RGB", "L")}, "needs two different views of one or two channels each, of one crop"),
        ("splitbrain", {"views": ("L", "L")}, "needs two different views"),
        ("splitbrain", {"independent": True}, "needs two different views"),
        ("wmse", {"feature_dim": 16}, "needs whitening_size to divide batch_size and to be more than feature_dim"),
        ("wmse", {"whitening_size": 12}, "got 12, 16 and 8"),
        ("cpc", {"cpc_skip": 2}, "needs cpc_skip < cpc_grid - 1, got 2 and 3"),
        ("looc", {"rotation": 0}, "holds rotation, which rotation switch off"),
        ("looc", {"queue_size": 8}, "needs queue_size >= batch_size 16, got 8"),
        ("infomin", {"queue_size": 8}, "needs queue_size >= batch_size 16, got 8"),
    ],
)
def test_senseless_settings_are_refused_in_one_sentence(method, changes, said):
    with pytest.raises(ConfigError, match=said) as caught:
        build(settings(method, **{"feature_dim": 8, **changes}))
    assert "\n" not in str(caught.value)


# --- NAT


def test_nat_swaps_within_the_minibatch_in_every_third_pass():
    config = settings("nat")
    method: Any = build(config)
    memory: Any = method.memory(nn.Module(), 90, seeded())
    torch.testing.assert_close(memory.noise.norm(dim=1), torch.ones(90))
    due = []
    for step in range(5 * 7):  # 90 images are 5 steps a pass
        rows = torch.randperm(90, generator=seeded(step))[:16]
        context = method.context(memory, [], rows, rows, seeded())
        before = memory.assignment.clone()
        assert torch.equal(context.given["targets"], memory.noise[before[rows]])
        z = normal(1, 16, 8, seed=step, unit=True).float()
        method.remember(memory, nn.Module(), z, context)
        due.append(bool(context.given["due"]))
        assert torch.equal(memory.assignment.sort().values, torch.arange(90))
        others = torch.ones(90, dtype=torch.bool).index_fill(0, rows, False)
        assert torch.equal(memory.assignment[others], before[others])
        if due[-1]:  # what was assigned is what the loss was of
            stays = Context(rows, rows, given={**context.given, "targets": memory.noise[memory.assignment[rows]]})
            torch.testing.assert_close(method.loss(z, stays), method.loss(z, context))
        assert torch.equal(memory.assignment, before) != due[-1]
    assert due == ([True] * 5 + [False] * 10) * 2 + [True] * 5


def test_nat_has_its_authors_crop_and_head():
    method: Any = build(Config(method="nat", feature_dim=5, width=0.05))
    assert method.config.crop_scale[0] == method.config.crop_scale[1] == pytest.approx((224 / 256) ** 2, abs=1e-3)
    networks: Any = initial_networks(method, 4, 0)[0].double()
    first, second, last = (layer for layer in networks.head if isinstance(layer, nn.Linear))
    assert (first.out_features, second.in_features, second.out_features, last.out_features) == (4096, 4096, 4096, 5)
    images = [torch.randn(3, 2, 32, 32, dtype=torch.float64)]
    h = networks.eval().encoders(images)[0]
    norms = [layer for layer in networks.head if isinstance(layer, nn.BatchNorm1d)]
    for layer, norm in zip((first, second), norms, strict=True):
        h = F.relu(h @ layer.weight.T / math.sqrt(1 + norm.eps))  # at its start BatchNorm has mean 0 and variance 1
    out = h @ last.weight.T + last.bias
    torch.testing.assert_close(networks(images)[0], out / out.norm(dim=1, keepdim=True))


def test_nats_dropout_leaves_half_of_the_units_and_the_mean():
    torch.manual_seed(0)
    dropped = Dropout()(torch.ones(200, 300))
    assert sorted(dropped.unique().tolist()) == [0, 2]
    assert abs(dropped.mean() - 1) < 0.02
    assert abs(dropped[:, 0].mean() - 1) < 0.3
    x = torch.rand(4, 3)
    assert torch.equal(Dropout().eval()(x), x)


# --- W-MSE


def test_whitening_gives_mean_0_and_the_identity_as_covariance():
    z = normal(2, 20, 4) @ normal(4, 4, seed=1) + 3
    w = whiten(z)
    for part in w:
        torch.testing.assert_close(part.mean(0), torch.zeros(4, dtype=z.dtype), atol=1e-9, rtol=0)
        torch.testing.assert_close(part.T.cov(), torch.eye(4, dtype=z.dtype), atol=1e-4, rtol=0)


def test_wmse_ignores_scale_and_shift_and_is_0_for_equal_views():
    method, z = build(settings("wmse", whitening_size=8, feature_dim=3)), normal(2, 16, 3)
    torch.testing.assert_close(method.loss(5 * z - 2, of(16)), method.loss(z, of(16)))
    assert float(method.loss(z[:1].repeat(2, 1, 1), of(16))) == 0


def test_wmse_of_a_dimension_that_is_constant_stays_finite():
    z = normal(2, 16, 8).float()
    z[..., 3] = 1.0
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(build(settings("wmse")).loss(z, of(16)), z)
    assert torch.isfinite(gradient).all()


# --- DIM


def test_dim_is_its_formula():
    method, z = build(settings("dim")), normal(4, 3, 5)
    local, whole = z[:3], z[3]

    def sp(x: float) -> float:
        return math.log1p(math.exp(x))

    u = {(m, i, j): float(local[m, i] @ whole[j]) for m in range(3) for i in range(3) for j in range(3)}
    negative = [sp(-u[m, i, j]) + u[m, i, j] - math.log(2) for m, i, j in u if i != j]
    positive = [math.log(2) - sp(-u[m, i, j]) for m, i, j in u if i == j]
    assert float(method.loss(z, of(3))) == pytest.approx(np.mean(negative) - np.mean(positive))


def test_dim_of_several_views_joins_places_of_one_to_the_whole_of_another():
    z = normal(2 * 4, 3, 5)  # of two views 3 places and the whole
    one, across = build(settings("dim")), build(settings("dim", views=("L", "ab")))
    expected = (one.loss(torch.cat([z[:3], z[7:]]), of(3)) + one.loss(torch.cat([z[4:7], z[3:4]]), of(3))) / 2
    torch.testing.assert_close(across.loss(z, of(3)), expected)


def test_dim_by_infonce_is_its_formula():
    """Each place of an image among all places of all other images, for the one whole; no scale."""
    method, z = build(settings("dim", dim_bound="infonce")), normal(4, 3, 5)
    u = {(m, i, j): float(z[m, i] @ z[3, j]) for m in range(3) for i in range(3) for j in range(3)}
    terms = []
    for m, j in itertools.product(range(3), range(3)):
        others = [u[place, i, j] for place in range(3) for i in range(3) if i != j]
        assert len(others) == 6
        terms.append(math.log(math.exp(u[m, j, j]) + sum(map(math.exp, others))) - u[m, j, j])
    assert float(method.loss(z, of(3))) == pytest.approx(np.mean(terms))


def test_dim_of_two_views_by_infonce_is_the_mean_of_both_pairs():
    z = normal(2 * 4, 3, 5)
    one, across = (build(settings("dim", dim_bound="infonce", **how)) for how in ({}, {"views": ("L", "ab")}))
    expected = (one.loss(torch.cat([z[:3], z[7:]]), of(3)) + one.loss(torch.cat([z[4:7], z[3:4]]), of(3))) / 2
    torch.testing.assert_close(across.loss(z, of(3)), expected)


def test_an_embedding_of_dim_is_its_authors():
    """From 3 numbers to 5 units, by hand: BatchNorm over the rows, ReLU, shortcut, LayerNorm over the units."""
    embedding: Any = Embedding(3, 5).double()
    shortcut = embedding.straight.weight.detach()
    assert shortcut[range(3), range(3)].tolist() == [1, 1, 1]
    assert shortcut.abs().masked_fill(torch.eye(5, 3, dtype=torch.bool), 0).max() <= 0.01
    assert not (Embedding(6, 5).straight.weight.diagonal() == 1).any()  # more inputs than units
    x = normal(7, 3)
    first, _, _, last = (layer for layer in embedding.bent)
    before = [[float(row @ unit) for unit in first.weight.detach()] for row in x]
    hidden = np.array(before)
    hidden = np.maximum((hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5), 0)
    out = hidden @ last.weight.detach().numpy().T + last.bias.detach().numpy() + x.numpy() @ shortcut.numpy().T
    out = (out - out.mean(1, keepdims=True)) / np.sqrt(out.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(embedding(x).detach().numpy(), out, rtol=1e-9, atol=1e-12)


def test_places_of_dim_share_the_statistics_of_all_places_and_images():
    config = settings("dim", image_size=32)
    networks: Any = initial_networks(build(config), 4, 0)[0].double()
    images = [torch.randn(3, 3, 32, 32, dtype=torch.float64)]
    with capture_outputs({"RGB": networks.encoders.nets["RGB"].get_submodule(networks.places["RGB"])}) as captured:
        local = networks(images)[:-1]
    rows = captured["RGB"][0].permute(0, 2, 3, 1).flatten(0, 2)  # image after image; the order of rows does not matter
    torch.testing.assert_close(networks.phi["RGB"](rows).unflatten(0, (3, -1)).transpose(0, 1), local)


def test_two_crops_of_dim_are_told_apart():
    config = settings("dim", views=("RGB", "RGB"), independent=True, image_size=32)
    networks: Any = initial_networks(build(config), 4, 0)[0].eval()
    first, second = build(config).views(pixels(3, 32), seeded())
    torch.testing.assert_close(
        networks([first, second]), torch.cat([networks([second, first]).chunk(2)[i] for i in (1, 0)])
    )


def test_dim_is_0_for_no_opinion_and_least_for_the_right_one():
    assert float(jensen_shannon(torch.zeros(2, 3, 3))) == pytest.approx(0, abs=1e-7)
    right = 100 * (2 * torch.eye(3) - 1).repeat(2, 1, 1)
    assert float(jensen_shannon(right)) == pytest.approx(-2 * math.log(2), rel=1e-6)


def test_dim_takes_the_last_map_of_enough_places():
    config = settings("dim", image_size=32)
    networks: Any = initial_networks(build(config), 4, 0)[0].eval()
    images = build(config).views(pixels(3, 32), seeded())
    net = networks.encoders.nets["RGB"]
    before_pool = nn.Sequential(*list(net)[:-3])(images[0])  # without pool, ReLU, flattening
    assert before_pool.shape[2:] == (7, 7)
    z = networks(images)
    assert z.shape == (50, 3, 12)
    torch.testing.assert_close(z[5], networks.phi["RGB"](before_pool[:, :, 0, 5]))
    torch.testing.assert_close(z[49], networks.psi["RGB"](net(images[0])))
    assert "feature_dim" not in METHODS["dim"].description.uses


def test_last_map_of_encoders_and_of_one_that_has_none():
    for encoder, side, places in (("fc", 32, 49), ("resnet18", 32, 16), ("resnet18", 24, 36)):
        config = settings("dim", encoder=encoder, image_size=side, width=0.05 if encoder == "fc" else 1)
        assert find_last_map(Encoders(config).nets["RGB"], 3, config, 4)[2] == places
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    with pytest.raises(MetaugError, match="^encoder 'conv' has no feature map of 4 x 4 places at 16 px images$"):
        find_last_map(flat, 3, settings("dim"), 4)
    with capture_outputs({"a": flat[1]}) as captured:
        given = flat(torch.ones(2, 3, 16, 16))
    assert torch.equal(captured["a"][0], given)
    assert not flat[1]._forward_hooks


# --- CPC


def test_cpc_predicts_from_above_alone():
    config = settings("cpc", cpc_grid=4, cpc_skip=1, image_size=20)
    networks: Any = initial_networks(build(config), 4, 0)[0]
    assert list(networks.distances) == [2, 3]
    latents = torch.randn(1, 6, 4, 4, requires_grad=True)
    networks = build(config.replace(width=0.05)).networks(4)
    dims = sum(networks.encoders.inner.dims.values())
    latents = torch.randn(1, dims, 4, 4, generator=seeded()).requires_grad_()
    for row in range(4):
        (gradient,) = torch.autograd.grad(networks.context(latents)[:, :, row].sum(), latents)
        reached = gradient.abs().sum((0, 1, 3)) > 0
        assert reached.tolist() == [r <= row for r in range(4)]


def test_cpc_cuts_patches_that_overlap_by_half():
    config = settings("cpc", image_size=17)  # 4 px steps, one px is left over
    networks: Any = initial_networks(build(config), 4, 0)[0].eval()
    image = torch.rand(2, 3, 17, 17, generator=seeded())
    cut = cut_patches(image, 3)
    assert torch.equal(cut.unflatten(0, (2, 3, 3))[:, 1, 2], image[:, :, 4:12, 8:16])
    grid = networks.encoders.encode_patches([cut])[0]
    patch = F.interpolate(image[:, :, 4:12, 8:16], (LEAST_SIDE, LEAST_SIDE), mode="bilinear")
    torch.testing.assert_close(grid[:, 1, 2], networks.encoders.inner([patch])[0])
    torch.testing.assert_close(networks.encoders([image])[0], grid.mean((1, 2)))
    z = networks([cut])
    assert z.shape[0] == 9 + 6 + 3
    latents = grid.permute(0, 3, 1, 2)
    torch.testing.assert_close(z[5], networks.target(latents)[:, :, 1, 2])
    second = SCALE * networks.predict[1](networks.context(latents))
    torch.testing.assert_close(z[15 + 1], second[:, :, 0, 1])


def test_each_patch_of_cpc_changes_its_colours_by_itself():
    """Of an image of one colour, patches differ; without jitter and grey they are cut from the views of the image."""
    method = build(settings("cpc", jitter=0.5, crop_scale=(1, 1), flip=0))
    one = torch.full((1, 3, 16, 16), 120, dtype=torch.uint8)
    one[:, 0] = 200
    (cut,) = method.views(one, seeded())
    assert cut.shape == (9, 3, 8, 8)
    assert len(cut.mean((2, 3)).round(decimals=3).unique(dim=0)) == 9
    plain = build(settings("cpc", jitter=0, grey=0, crop_scale=(1, 1), flip=0))
    (cut,) = plain.views(pixels(), seeded())
    torch.testing.assert_close(cut, cut_patches(pixels() / 127.5 - 1, 3))


# --- SplitBrain


def test_colours_fall_into_bins():
    grey = torch.tensor([-1.0, -0.981, -0.979, 0.0, 0.999, 1.0])[:, None, None, None].expand(6, 1, 24, 24)
    assert quantise(grey)[0].tolist() == [0, 0, 1, 50, 99, 99]
    a, b = torch.tensor([-1.0, -1.0, 0.99, 0.0]), torch.tensor([-1.0, -0.8, 0.99, -1.0])
    both = torch.stack([a, b], 1)[:, :, None, None].expand(4, 2, 12, 12)
    assert quantise(both)[7].tolist() == [0, 1, 255, 128]
    ramp = torch.linspace(-1, 1, 24)[None, None, :, None].expand(1, 1, 24, 24)  # places go row by row
    assert quantise(ramp)[:, 0].view(12, 12)[:, 3].tolist() == sorted(set(quantise(ramp)[:, 0].tolist()))


def test_splitbrain_without_an_opinion_is_the_log_of_its_bins():
    method: Any = build(settings("splitbrain"))
    context = method.context(None, method.views(pixels(3), seeded()), torch.arange(3), torch.zeros(3), seeded())
    value = method.loss(torch.zeros(144, 3, 356), context)
    assert float(value) == pytest.approx(math.log(256) + math.log(100), rel=1e-6)


def test_splitbrain_decodes_each_view_from_the_other():
    networks: Any = initial_networks(build(settings("splitbrain")), 4, 0)[0]
    ab, light = torch.randn(2, 2, 16, 16), torch.randn(2, 1, 16, 16, requires_grad=True)
    z = networks([light, ab])
    assert z.shape == (144, 2, 356)
    assert torch.autograd.grad(z[..., :256].square().sum(), light, retain_graph=True)[0].abs().sum() > 0
    (gradient,) = torch.autograd.grad(z[..., 256:].square().sum(), light, allow_unused=True)
    assert gradient is None or gradient.abs().sum() == 0


# --- BiGAN


def one_by_one(judge: Any, image: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """|| dD / d(image, code) ||^2 of each pair, from the pair alone."""
    slopes = []
    for x, c in zip(image.detach().split(1), code.detach().split(1), strict=True):
        x, c = x.requires_grad_(), c.requires_grad_()
        by_image, by_code = torch.autograd.grad(judge(x, c).squeeze(), (x, c), create_graph=True)
        slopes.append((by_image**2).sum() + (by_code**2).sum())
    return torch.stack(slopes)


def test_each_player_of_bigan_descends_on_its_own_goal():
    config = settings("bigan", views=("RGB", "Sobel"), independent=False)
    method: Any = build(config)
    networks: Any = initial_networks(method, 4, 0)[0].double()
    views = [x.double() for x in method.views(pixels(5), seeded())]
    assert views[-1].shape == (5, 8)
    method.loss(networks(views), of(5)).backward()
    game = Game(config).double()
    game.load_state_dict(networks.state_dict())
    seen = F.interpolate(torch.cat(views[:2], 1), (16, 16), mode="bilinear", antialias=True)
    variance, mean = torch.var_mean(seen, (0, 2, 3), correction=0, keepdim=True)
    image = (seen - mean) / (variance + 1e-5).sqrt()
    code = game.standard_code(game.code(torch.cat(game.encoders(views[:2]), 1)))
    real, made = game.discriminator(image, code), game.discriminator(game.generator(views[2]), views[2])
    goals = {
        "discriminator": -(torch.sigmoid(real).log() + (1 - torch.sigmoid(made)).log()).mean()
        + one_by_one(game.discriminator, image, code).mean() / 2,
        "others": -((1 - torch.sigmoid(real)).log() + torch.sigmoid(made).log()).mean(),
    }
    for player, goal in goals.items():
        own = {n: p for n, p in game.named_parameters() if n.startswith("discriminator") == (player == "discriminator")}
        gradients = torch.autograd.grad(goal, list(own.values()), retain_graph=True)
        for name, gradient in zip(own, gradients, strict=True):
            torch.testing.assert_close(networks.get_parameter(name).grad, gradient, msg=name)


@pytest.mark.parametrize(("image", "game"), [(16, 16), (32, 16), (63, 16), (64, 32), (112, 32), (128, 64), (300, 64)])
def test_bigan_plays_at_half_the_size(image, game):
    config = settings("bigan", image_size=image, width=0.05)
    networks: Any = initial_networks(build(config), 4, 0)[0]
    drawn = networks.generator(torch.zeros(2, config.feature_dim))
    assert drawn.shape == (2, 3, game, game)
    assert networks.discriminator(drawn, torch.zeros(2, config.feature_dim)).shape == (2, 1)


def test_adam_has_the_betas_of_the_method(tmp_path):
    """`bigan` trains without momentum, others with Adam's own; with a MAG a method keeps its own."""
    for method, betas in (("bigan", (0.0, 0.99)), ("nat", (0.9, 0.999))):
        config = settings(method, runs_dir=tmp_path)
        assert state.create(config, datasets.load(config, "cpu"), "cpu").optimiser.param_groups[0]["betas"] == betas
    base = build(settings("simclr"))
    base.description = replace(base.description, betas=(0.5, 0.9))
    assert MetAug(base).description.betas == (0.5, 0.9)


# --- InfoMin Aug.


def draws_of(order: list[int], corners: list[tuple[float, float]]) -> torch.Tensor:
    """Draws (1, cells, 3) by which place n of the jigsaw shows cell order[n], and cell n is cut at corners[n]."""
    ranks = torch.empty(len(order), dtype=torch.float64)
    ranks[order] = torch.arange(len(order), dtype=torch.float64) / len(order)
    return torch.cat([ranks[:, None], torch.tensor(corners, dtype=torch.float64)], 1)[None]


def test_a_jigsaw_is_its_pieces_by_hand():
    """Of a ramp, which bilinear sampling leaves exact: 12 px, 3 x 3 cells of 4 px, to 9 px in pieces of 3 px."""
    random = np.random.RandomState(0)
    order, corners = random.permutation(9).tolist(), random.rand(9, 2).tolist()
    row, column = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    ramp = (100 * row + column).double()[None, None]
    mixed = shuffle_pieces(ramp, 9, draws_of(order, corners))
    for r, c in itertools.product(range(9), range(9)):
        cell = order[3 * (r // 3) + c // 3]
        left, top = ((1 - 64 / 85) * 4 * x for x in corners[cell])
        x = 4 * (cell % 3) + left + 64 / 85 * 4 * (c % 3 + 0.5) / 3 - 0.5  # in px, whole at a pixel's centre
        y = 4 * (cell // 3) + top + 64 / 85 * 4 * (r % 3 + 0.5) / 3 - 0.5
        assert float(mixed[0, 0, r, c]) == pytest.approx(100 * y + x)


def test_pieces_of_a_jigsaw_stay_in_their_cells_and_do_not_join():
    x = torch.arange(9.0).view(3, 3).repeat_interleave(4, 0).repeat_interleave(4, 1)  # each cell is of one number
    for corner in (0.0, 1.0):
        draws = draw_pieces(8, 3, seeded())
        draws[..., 1:] = corner
        mixed = shuffle_pieces(x.expand(8, 2, 12, 12), 9, draws)
        small = mixed[:, :, 1::3, 1::3]
        torch.testing.assert_close(small.repeat_interleave(3, 2).repeat_interleave(3, 3), mixed)
        assert torch.equal(small[:, 0], small[:, 1])
        orders = {tuple(image.flatten().round().tolist()) for image in small[:, 0]}
        assert all(sorted(order) == list(range(9)) for order in orders)
        assert len(orders) == 8
    ramp = torch.arange(12.0).expand(1, 1, 12, 12)
    seen = shuffle_pieces(ramp, 9, draws_of(list(range(9)), [(0.5, 0.5)] * 9).float())[0, 0, 0]
    step = 64 / 85 * 4 / 3  # px from one pixel of a piece to the next
    assert seen.diff().tolist() == pytest.approx([step, step, 4 - 2 * step] * 2 + [step, step], rel=1e-5)


@pytest.mark.parametrize(("side", "target", "grid"), [(21, 16, 3), (13, 17, 5), (8, 9, 2), (43, 32, 8)])
def test_a_jigsaw_takes_any_size_and_grid(side, target, grid):
    x = torch.rand(2, 1, side, side, generator=seeded())
    mixed = shuffle_pieces(x, target, draw_pieces(2, grid, seeded()))
    assert mixed.shape == (2, 1, target, target)
    assert 0 <= mixed.min() <= mixed.max() <= 1


def test_a_jigsaw_has_crop_and_flip_and_no_change_of_colour():
    config = settings("infomin", jitter=1.0, grey=1.0, randaugment=20.0, image_size=32)
    method: Any = build(config)
    assert method.jigsaw_views.image_size == 42  # 32 px in pieces: 64 of 85
    one = torch.tensor([200, 120, 40], dtype=torch.uint8)[None, :, None, None].expand(4, 3, 32, 32)
    views = method.views(one, seeded())
    expected = (one / 127.5 - 1)[:, :, :32, :32]
    for jigsaw in views[2:]:
        torch.testing.assert_close(jigsaw, expected)
    assert all((view - expected).abs().max() > 0.1 for view in views[:2])
    assert (method.jigsaw_views.crop_scale, method.jigsaw_views.flip) == ((0.6, 1.0), 0.5)


def test_infomin_keys_are_of_whole_views():
    method: Any = build(settings("infomin"))
    networks, _ = initial_networks(method, 4, 0)
    memory = method.memory(networks, 90, seeded())
    views = method.views(pixels(), seeded())
    z = networks(views)
    assert z.shape == (4, 6, 8)
    context = method.context(memory, views, torch.arange(6), torch.arange(6), seeded())
    assert context.positives.shape == (2, 6, 8)
    assert not context.positives.requires_grad
    method.remember(memory, networks, z, context)
    assert torch.equal(memory["queue"].entries[:, :6], context.positives)


# --- LooC


@pytest.mark.parametrize("name", HELD)
def test_looc_holds_one_augmentation_equal(name):
    """With that augmentation alone switched on its own key is the query itself, and key 0 is not."""
    off = {"crop_scale": (1, 1), "flip": 0, "jitter": 0, "grey": 0, "rotation": 0}
    on = {
        "colour": {"jitter": 0.5},
        "crop": {"crop_scale": (0.2, 0.5)},
        "flip": {"flip": 0.5},
        "rotation": {"rotation": 90},
    }
    method: Any = build(settings("looc", looc_held=(name,), **{**off, **on[name]}))
    query, key_0, key_1 = method.views(pixels(16), seeded())
    assert torch.equal(query, key_1)
    assert not torch.equal(query, key_0)
    changes = {**off, **on[name], **on["flip" if name == "crop" else "crop"]}
    other: Any = build(settings("looc", looc_held=(name,), **changes))
    assert not torch.equal(*other.views(pixels(16), seeded())[::2])


def test_looc_remembers_for_each_head_its_own_key():
    method: Any = build(settings("looc"))
    networks, _ = initial_networks(method, 4, 0)
    memory = method.memory(networks, 90, seeded())
    views = method.views(pixels(), seeded())
    assert len(views) == 4
    context = method.context(memory, views, torch.arange(6), torch.arange(6), seeded())
    keys = context.given["keys"]
    assert keys.shape == (3, 3, 6, 8)
    torch.testing.assert_close(keys[1], networks([views[2]]))  # at the start the averaged networks are the networks
    method.remember(memory, networks, networks(views), context)
    for head in range(3):
        assert torch.equal(memory["queue"].entries[head, :6], keys[head, head])


def test_none_is_for_a_mag():
    for name in set(NAMES) - {"infomin"}:
        assert not METHODS[name].description.augmentable


def test_dim_takes_the_places_of_each_crop_however_batchnorm_sees_them():
    config = settings("dim", views=("RGB", "RGB"), independent=True)
    images = list(torch.randn(2, 3, 3, config.image_size, config.image_size, generator=seeded()))
    for arrangement in ("joint", "apart"):
        networks, _ = initial_networks(build(config.replace(encoder_norm=arrangement)), 2, 0)
        with torch.no_grad():
            first, second = networks.eval()(images).chunk(2)
            alone, _ = networks.eval()([images[0], images[0]]).chunk(2)
        torch.testing.assert_close(first, alone)
        assert not torch.allclose(first, second)
