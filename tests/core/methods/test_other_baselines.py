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
from metaug_core.methods.baselines.dim import capture_outputs, find_last_map, jensen_shannon
from metaug_core.methods.baselines.infomin import shuffle_pieces
from metaug_core.methods.baselines.looc import HELD
from metaug_core.methods.baselines.splitbrain import quantise
from metaug_core.methods.baselines.wmse import whiten
from metaug_core.methods.metaug import MetAug
from metaug_core.networks.encoders import Encoders
from metaug_core.runs.store import read_tensors
from metaug_core.training import checkpoint, state
from metaug_core.training.step import train_step

NAMES = ["bigan", "nat", "dim", "cpc", "splitbrain", "infomin", "looc", "wmse"]
BARE = {key: value for key, value in TINY.items() if key != "views"} | {"queue_size": 48, "cpc_grid": 3, "cpc_skip": 0}


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
    method, z = build(settings("dim", dim_bound="infonce")), normal(4, 3, 5)
    u = {(m, i, j): float(z[m, i] @ z[3, j]) / math.sqrt(5) for m in range(3) for i in range(3) for j in range(3)}
    terms = []
    for m, i in itertools.product(range(3), range(3)):
        for others in ([u[m, i, j] for j in range(3)], [u[m, j, i] for j in range(3)]):
            terms.append(math.log(sum(map(math.exp, others))) - u[m, i, i])
    assert float(method.loss(z, of(3))) == pytest.approx(np.mean(terms))


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
    assert z.shape == (50, 3, 8)
    torch.testing.assert_close(z[5], networks.phi["RGB"](before_pool[:, :, 0, 5]))
    torch.testing.assert_close(z[49], networks.psi["RGB"](net(images[0])))


def test_last_map_of_encoders_and_of_one_that_has_none():
    for encoder, side, places in (("fc", 32, 49), ("resnet18", 32, 16), ("resnet18", 24, 36)):
        config = settings("dim", encoder=encoder, image_size=side, width=0.05 if encoder == "fc" else 1)
        assert find_last_map(Encoders(config).nets["RGB"], 3, config, 4)[2] == places
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    with pytest.raises(MetaugError, match="^encoder 'conv' has no feature map of 4 x 4 places at 16 px images$"):
        find_last_map(flat, 3, settings("dim"), 4)
    with capture_outputs({"a": flat[1]}) as captured:
        given = flat(torch.ones(2, 3, 16, 16))
    assert torch.equal(captured["a"], given)
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
    assert MetAug(base.config, base).description.betas == (0.5, 0.9)


# --- InfoMin Aug.


def test_jigsaw_moves_whole_pieces_of_each_image_by_itself():
    x = torch.arange(9.0).view(3, 3).repeat_interleave(2, 0).repeat_interleave(2, 1)  # each piece is of one number
    mixed = shuffle_pieces(x.expand(8, 2, 6, 6), 3, seeded())
    small = mixed[:, :, ::2, ::2]
    assert torch.equal(small.repeat_interleave(2, 2).repeat_interleave(2, 3), mixed)
    assert torch.equal(small[:, 0], small[:, 1])
    orders = {tuple(image.flatten().tolist()) for image in small[:, 0]}
    assert all(sorted(order) == list(range(9)) for order in orders)
    assert len(orders) == 8
    inside = torch.arange(36.0).view(1, 1, 6, 6)  # within a piece nothing moves
    pieces = shuffle_pieces(inside, 2, seeded()).unfold(2, 3, 3).unfold(3, 3, 3).flatten(2, 3)[0, 0]
    assert sorted(p.tolist() for p in pieces) == sorted(
        inside.unfold(2, 3, 3).unfold(3, 3, 3).flatten(2, 3)[0, 0].tolist()
    )
    assert shuffle_pieces(torch.rand(2, 1, 16, 16), 3, seeded()).shape == (2, 1, 16, 16)


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
