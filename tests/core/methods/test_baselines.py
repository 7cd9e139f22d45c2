"""The compared methods: objectives against independent references, what they remember by hand, killed and resumed."""

import re
from dataclasses import replace
from typing import Any

import lightly.loss
import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss
from tiny import ROOT, TINY, run_steps, start_state, stop_at
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from metaug_core import DATASETS, METHODS, Config, ConfigError, MetaugError, fit, fit_trials
from metaug_core.methods import LATER, Composition, build
from metaug_core.methods.base import Context, Method, initial_networks
from metaug_core.methods.baselines.adco import Adversaries
from metaug_core.methods.baselines.swav import sinkhorn
from metaug_core.methods.feature_transformation import draw_beta
from metaug_core.methods.hallucinator import Hallucinator
from metaug_core.methods.untrained import add_noise, augment_features, drop_units
from metaug_core.networks.encoders import Networks
from metaug_core.networks.memory import Averaged, Queue, copy_module
from metaug_core.objectives import losses
from metaug_core.runs.files import read_tensors
from metaug_core.training import loop
from metaug_core.training.cuda_graphs import Stepper
from metaug_core.training.step import draw, update
from metaug_workbook.cli import catalogue

FILES = sorted((ROOT / "metaug_core" / "methods").rglob("*.py"))
SMALL: dict[str, Any] = {
    **{name: value for name, value in TINY.items() if name != "views"},
    "head_hidden": 16, "predictor_hidden": 12, "queue_size": 32, "prototypes": 6, "dim_units": 16,
}  # fmt: skip
# Rows that are modifiers on MoCo reach the encoders as it does.
PLAIN = [name for name in METHODS if "+" not in name and not isinstance(LATER.get(name), Composition)]
COMPOSED = [
    "cmc+hard+mag",
    "simclr+debiased",
    "looc+debiased",
    "swav+hard",
    "nnclr+mag",
    "byol+mag",
    "barlow+mag",
    "cmc+randaugment",
]
VIEWS, BATCH, DIM = 2, 6, 8


def quiet(progress):
    pass


def config(method, **changes):
    return Config(**{**SMALL, "method": method, **changes})


def unit(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(x, dim=-1)


def context(**what):
    return Context(torch.arange(BATCH), torch.zeros(BATCH, dtype=torch.int64), **what)


def loss(method, z, what=None, **changes):
    return build(config(method, **changes)).loss(z, what or context())


# --- objectives


def test_simclr_is_lightlys_and_metric_learnings():
    z = unit(2, BATCH, DIM)
    value = loss("simclr", z, temperature=0.3)
    torch.testing.assert_close(value, lightly.loss.NTXentLoss(temperature=0.3)(z[0], z[1]))
    labels = torch.arange(BATCH).repeat(2)
    torch.testing.assert_close(value, NTXentLoss(temperature=0.3)(z.flatten(0, 1), labels))


def test_dcl_is_lightlys():
    z = unit(2, BATCH, DIM)
    torch.testing.assert_close(
        loss("simclr+dcl", z, temperature=0.3), lightly.loss.DCLLoss(temperature=0.3)(z[0], z[1])
    )


def test_eq_8_is_the_softplus_of_dcl():
    """Of one anchor, at t = 2 / beta in cosines and over beta: what else OUCL does is beside the temperature."""
    p, n = torch.rand(1, 1, dtype=torch.float64), torch.rand(1, 9, dtype=torch.float64)
    decoupled = losses.decoupled(p, n, 1 / 16)
    torch.testing.assert_close(losses.oucl_plain(p, n, 16, 0), torch.log1p(torch.exp(decoupled)) / 16)


def test_vicreg_is_lightlys():
    z = 0.5 * unit(2, BATCH, DIM)
    theirs = lightly.loss.VICRegLoss(lambda_param=25, mu_param=10, nu_param=2)(z[0], z[1])
    torch.testing.assert_close(loss("vicreg", z, vicreg_weights=(25, 10, 2)), theirs)


def test_hard_without_beta_is_debiased_and_without_tau_the_plain_sum():
    """To the bit, in float32."""
    z = unit(2, BATCH, DIM).float()
    for base in ("simclr", "cmc", "nnclr"):
        rows = torch.cat([z, unit(2, BATCH, DIM, seed=1).float()]) if base == "nnclr" else z
        what = context(given={"support": unit(2, 32, DIM, seed=2).float()})
        hard, debiased, neither, plain = (
            loss(base + modifier, rows, what, views=("L", "ab"), negatives="batch", temperature=0.2, **changes)
            for modifier, changes in (("+hard", {"hard_beta": 0.0}), ("+debiased", {}),
                                      ("+hard", {"hard_beta": 0.0, "tau_plus": 0.0}), ("", {}))
        )  # fmt: skip
        assert torch.equal(hard, debiased)
        assert torch.equal(neither, plain)
        assert not torch.equal(hard, plain)


# --- the floor of a debiased sum


def count_floors(anchors, positives, negatives, t, tau, b=0.0):
    """The share of anchors whose debiased sum is at N e^(-1/t) or below, on cosines, anchor by anchor."""
    floors = []
    for z, z_plus, others in zip(anchors, positives, negatives, strict=True):
        pos, neg, count = torch.exp(z @ z_plus / t), torch.exp(others @ z / t), len(others)
        total = (neg**b * neg).sum() / (neg**b).mean()
        floors.append(bool((total - tau * count * pos) / (1 - tau) <= count * torch.e ** (-1 / t)))
    return sum(floors) / len(floors)


def leaning(*shape, seed=0):
    """Unit features whose rows lean towards one point for each image, some more than others."""
    return F.normalize(
        unit(*shape[1:], seed=9) + torch.linspace(0, 2, shape[-2])[:, None] * unit(*shape, seed=seed), dim=-1
    )


@pytest.mark.parametrize(("modifier", "b"), [("debiased", 0.0), ("hard", 1.5)])
def test_floors_are_those_of_each_anchor_in_the_loss(modifier, b):
    """SimCLR, MoCo, NNCLR and InfoMin, some anchors at the floor and some above."""
    t, tau = 0.2, 0.3
    z, keys, queue = leaning(2, BATCH, DIM), leaning(2, BATCH, DIM, seed=1), unit(2, 32, DIM, seed=2)
    flat, image = z.flatten(0, 1), torch.arange(BATCH).repeat(2)
    near = torch.cat([queue[v][(z[v] @ queue[v].T).argmax(1)] for v in range(2)])
    past = [queue[1]] * BATCH + [queue[0]] * BATCH  # each anchor's negatives are of the other view
    swapped = keys.flip(0).flatten(0, 1)
    others = [keys[1 - v][torch.arange(BATCH) != i] for v in range(2) for i in range(BATCH)]
    against_keys = {"negatives": torch.stack([queue[[1]], queue[[0]]]), "positives": keys}
    cases = {
        "simclr": (z, {}, count_floors(flat, z.flip(0).flatten(0, 1), [flat[image != i] for i in image], t, tau, b)),
        "moco": (z, against_keys, count_floors(flat, swapped, past, t, tau, b)),
        "nnclr": (torch.cat([z, keys]), {"given": {"support": queue}}, count_floors(near, swapped, others, t, tau, b)),
        "infomin": (torch.cat([z, z.flip(-1)]), against_keys,
                    (count_floors(flat, swapped, past, t, tau, b)
                     + count_floors(z.flip(-1).flatten(0, 1), swapped, past, t, tau, b)) / 2),
    }  # fmt: skip
    shares = set()
    for name, (rows, what, expected) in cases.items():
        method = build(config(f"{name}+{modifier}", temperature=t, tau_plus=tau, hard_beta=b))
        floors = method.find_floors(rows, context(**what))
        assert floors.float().mean().item() == pytest.approx(expected), name
        shares.add(expected)
    assert len(shares) > 2
    assert max(shares) > 0


def test_floors_of_swav_are_of_each_crop_and_prototype():
    t, tau, b = 0.2, 0.3, 0.5
    method: Any = build(config("swav+hard", temperature=t, tau_plus=tau, hard_beta=b))
    features, prototypes = unit(2, BATCH, DIM), unit(6, DIM, seed=1)
    z = torch.cat([features, features @ prototypes.T], -1)
    floors = method.find_floors(z, drifting())
    anchors = [(x, k) for x in features.flatten(0, 1) for k in range(6)]
    others = [prototypes[torch.arange(6) != k] for _, k in anchors]
    expected = count_floors([x for x, _ in anchors], [prototypes[k] for _, k in anchors], others, t, tau, b)
    assert floors.float().mean().item() == pytest.approx(expected)
    assert 0 < expected < 1


def test_below_the_floor_negatives_have_no_gradient():
    positives, negatives = torch.tensor([[0.9], [0.2]]), torch.tensor([[0.1, 0.3], [0.1, 0.3]]).requires_grad_()
    floors = losses.find_info_nce_floors(positives, negatives.detach(), 0.05, 0.1)
    (gradient,) = torch.autograd.grad(losses.info_nce(positives, negatives, 0.05, 0.1), negatives)
    assert floors.tolist() == [[True], [False]]
    assert gradient.abs().sum(1).gt(0).tolist() == [False, True]


DEBIASED = {
    "cmc+debiased": True,
    "cmc+hard+mag": True,
    "looc+debiased": True,
    "swav+hard": True,
    "cmc": False,
    "looc": False,
}


@pytest.mark.parametrize(("name", "debiased"), DEBIASED.items())
def test_a_run_logs_the_share_of_floors_if_it_debiases(tmp_path, name, debiased):
    views = {"views": ("L", "ab"), "negatives": "batch"} if name.startswith("cmc") else {}
    run = fit(config(name, temperature=0.02, epochs=1, runs_dir=tmp_path, **views), quiet)
    assert ("debias_floor_share" in run.metrics) == debiased
    if debiased:
        values = run.metrics["debias_floor_share"].dropna()
        assert len(values) == 3  # steps 2, 4 and 5
        assert values.between(0, 1).all()


def test_debiased_brings_its_authors_temperature_but_where_prototypes_are_the_negatives():
    for base in ("cmc", "simclr", "moco", "nnclr", "infomin", "looc", "dacl", "cmc+mag"):
        assert Config(method=f"{base}+debiased").temperature == 0.5, base
    assert Config(method="cmc+debiased", temperature=0.07).temperature == 0.07
    assert Config(method="swav+debiased").temperature == Config(method="swav").temperature == 0.1
    assert Config(method="cmc+hard").temperature == Config(method="cmc").temperature == 0.07


def test_a_low_temperature_stays_finite():
    """Also where the floor of the debiased sum is far below what float32 can hold beside the sum."""
    p, n = torch.tensor([[1.0], [0.0]], requires_grad=True), torch.rand(2, 50, requires_grad=True)
    value = losses.info_nce(p, n, 0.005, 0.1, 2.0)
    assert torch.isfinite(value)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, (p, n)))


def test_barlow_is_0_at_the_identity():
    hadamard = torch.tensor([[1.0]], dtype=torch.float64)
    for _ in range(3):
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    white = hadamard[:, 1:]  # (8, 7): columns of mean 0 and variance 1, orthogonal
    assert float(loss("barlow", torch.stack([white, 2 * white]))) == pytest.approx(0, abs=1e-8)
    assert float(loss("barlow", torch.stack([white, -white]))) == pytest.approx(
        4 * 7, rel=1e-4
    )  # C = -1 on the diagonal


def drifting(**given):
    """What SwAV's loss is given when its prototypes move."""
    return context(
        given={"frozen": torch.tensor(False), "prototypes": torch.zeros(6, DIM, dtype=torch.float64), **given}
    )


@pytest.mark.parametrize("queue", [False, True])
def test_swav_is_lightlys(queue):
    z = torch.cat([unit(2, BATCH, DIM), 2 * torch.rand(2, BATCH, 6, dtype=torch.float64) - 1], -1)
    past = 2 * torch.rand(2, 9, 6, dtype=torch.float64) - 1
    lightlys = lightly.loss.SwaVLoss(temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.05)
    expected = lightlys([*z[..., DIM:]], [], [*past] if queue else None)
    value = loss("swav", z, drifting(**({"past": past, "full": torch.tensor(True)} if queue else {})))
    torch.testing.assert_close(value, expected[0])


def test_a_queue_of_swav_that_is_not_full_changes_nothing():
    z = torch.cat([unit(2, BATCH, DIM), 2 * torch.rand(2, BATCH, 6, dtype=torch.float64) - 1], -1)
    past = torch.rand(2, 9, 6, dtype=torch.float64)
    without = loss("swav", z, drifting())
    torch.testing.assert_close(loss("swav", z, drifting(past=past, full=torch.tensor(False))), without)
    assert abs(loss("swav", z, drifting(past=past, full=torch.tensor(True))) - without) > 1e-3


def literal_swav(z, prototypes, past=None, t=0.1, epsilon=0.05):
    """Caron et al. 2020 from unit features (2, B, d), prototypes (K, d) and past features (2, N, d), in plain loops."""
    terms = []
    for predicting, assigned in ((0, 1), (1, 0)):
        rows = [*z[assigned].detach(), *(past[assigned] if past is not None else [])]
        q = [[float(torch.exp(row @ c / epsilon)) for c in prototypes.detach()] for row in rows]
        for _ in range(3):
            columns = [sum(row[k] for row in q) for k in range(len(prototypes))]
            q = [[x / column for x, column in zip(row, columns, strict=True)] for row in q]
            q = [[x / sum(row) for x in row] for row in q]
        for feature, shares in zip(z[predicting], q, strict=False):
            scores = torch.stack([feature @ c / t for c in prototypes])
            terms.append(-sum(share * x for share, x in zip(shares, scores - scores.exp().sum().log(), strict=True)))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("steps", [2, 3])
def test_swav_of_networks_and_memory_is_its_formula(steps):
    """The queue of 48 is two thirds full after 2 steps, and full after 3. The gradient is that of the unit rows themselves."""
    method: Any = build(config("swav", queue_size=48, prototypes_frozen_epochs=0))
    networks: Any = initial_networks(method, 4, 0)[0].double()
    memory: Any = method.memory(networks, 90, torch.Generator().manual_seed(0)).double()
    numbers = torch.arange(16)
    for step in range(steps):
        past = torch.cat([unit(2, 16, DIM, seed=step), torch.zeros(2, 16, 6)], -1)
        method.remember(memory, networks, past, method.context(memory, [], numbers, numbers, None))
    torch.testing.assert_close(networks.prototypes.norm(dim=1), torch.ones(6, dtype=torch.float64))
    views = [torch.randn(16, 3, 16, 16, dtype=torch.float64) for _ in range(2)]
    z = networks(views)
    what = method.context(memory, views, numbers, numbers, None)
    queue = memory.queue.entries if steps == 3 else None
    value, expected = method.loss(z, what), literal_swav(z[..., :DIM], networks.prototypes, queue)
    torch.testing.assert_close(value, expected)
    weights = [p for n, p in networks.named_parameters() if "heads" in n or n == "prototypes"]
    for got, right in zip(
        *(torch.autograd.grad(x, weights, retain_graph=True) for x in (value, expected)), strict=True
    ):
        torch.testing.assert_close(got, right)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_prototypes_of_swav_are_frozen_for_their_epochs_and_then_move_on_the_sphere(decay):
    """1.2 passes of 5 steps are 6. Frozen, they get no gradient and no decay."""
    s: Any = start_state(**{**SMALL, "method": "swav", "views": ("RGB", "RGB"), "prototypes_frozen_epochs": 1.2,
                            "weight_decay": decay})  # fmt: skip
    drawn = s.networks.prototypes.detach().clone()
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(6))
    step = Stepper([s])
    run_steps(step, s, 6)
    assert torch.equal(s.networks.prototypes, drawn)
    if not decay:
        assert not s.optimiser.state[s.networks.prototypes]["exp_avg"].any()
    run_steps(step, s, 1)
    moved = s.networks.prototypes.detach().clone()
    assert (moved - drawn).abs().max() > 1e-4
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(6))
    assert torch.equal(s.memory.prototypes, moved)
    assert int(s.memory.steps) == 7


class Waits(TorchDispatchMode):
    """Context manager: the operations for which the host would wait for the device."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"):
            self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["swav+debiased", "infomin", "dim", "nat", "ft", "adco", "hallucinator", "mochi", "synco", "imix",
                                  "cmc+noise", "cmc+dropout"])  # fmt: skip
def test_a_step_waits_for_the_device_only_where_it_says_so(name):
    """NAT is not captured: it assigns its targets on the host. Changes of colour, which a CPU does image by image, are off."""
    views = ("RGB",) if name in ("dim", "nat") else ("RGB", "RGB")
    s: Any = start_state(**{**SMALL, "method": name, "views": views, "jitter": 0, "randaugment": 0, "grey": 0})
    rows = torch.arange(16)
    update(s, s.images.pixels[rows], rows, log=True)  # makes the optimiser's state
    with Waits() as waits:
        update(s, s.images.pixels[rows], rows, log=True)
    assert (not waits.names) == s.method.description.captured


def test_frozen_prototypes_still_teach_the_features():
    method: Any = build(config("swav"))
    features, prototypes = unit(2, BATCH, DIM).requires_grad_(), unit(6, DIM, seed=1).requires_grad_()
    gradients = []
    for frozen in (True, False):
        given = {"frozen": torch.tensor(frozen), "prototypes": prototypes.detach()}
        value = method.loss(torch.cat([features, features @ prototypes.T], -1), context(given=given))
        gradients.append(torch.autograd.grad(value, (features, prototypes)))
    torch.testing.assert_close(gradients[0][0], gradients[1][0])
    assert not gradients[0][1].any()
    assert gradients[1][1].abs().max() > 1e-3


def test_sinkhorn_balances_and_takes_a_small_epsilon():
    cosines = 2 * torch.rand(12, 4, generator=torch.Generator().manual_seed(0)) - 1
    q = sinkhorn(cosines / 0.05, 200)
    torch.testing.assert_close(q.sum(1), torch.ones(12))
    torch.testing.assert_close(q.sum(0), torch.full((4,), 3.0))
    sharp = sinkhorn(cosines / 0.001, 3)  # exp(1 / 0.001) is no float32
    torch.testing.assert_close(sharp.sum(1), torch.ones(12))


def test_sinkhorn_shares_only_the_rows_that_are_present():
    cosines = 2 * torch.rand(2, 12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    present = torch.arange(12) % 3 != 1
    q = sinkhorn(cosines / 0.05, 3, present)
    torch.testing.assert_close(q[:, present], sinkhorn(cosines[:, present] / 0.05, 3))
    assert torch.isfinite(q).all()


def test_swav_hard_weighs_the_other_prototypes():
    """Every prototype's share against the sum over the others, written out."""
    t, tau, b = 0.1, 0.05, 1.5
    methods: list[Any] = [
        build(config(name, **how))
        for name, how in (("swav+hard", {"tau_plus": tau, "hard_beta": b}),
                          ("swav+hard", {"tau_plus": 0.0, "hard_beta": 0.0}), ("swav", {}))
    ]  # fmt: skip
    method, without, swav = methods
    cosines = 2 * torch.rand(BATCH, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    shares = method.log_shares((1 + cosines) / t)
    for row, scores in enumerate(torch.exp(cosines / t)):
        for k in range(6):
            others = torch.cat([scores[:k], scores[k + 1 :]])
            total = (others**b * others).sum() / (others**b).mean()
            rest = max((total - tau * 5 * scores[k]) / (1 - tau), 5 * torch.e ** (-1 / t))
            torch.testing.assert_close(shares[row, k], torch.log(scores[k] / (scores[k] + rest)))
    plain = without.log_shares((1 + cosines) / t)
    assert torch.equal(plain, swav.log_shares((1 + cosines) / t))
    rest = losses.logsumexp_others(cosines / t)
    torch.testing.assert_close(cosines / t - torch.logaddexp(cosines / t, rest), plain)


def test_dacl_mixes_each_view_with_another_image():
    pixels = torch.randint(256, (BATCH, 3, 16, 16), dtype=torch.uint8)
    method = build(config("dacl", mixup=0.3, crop_scale=(1, 1), flip=0))
    first, second = method.views(pixels, torch.Generator().manual_seed(0))
    images = 2 * (pixels.double() / 255) - 1
    for view in (first, second):
        for number, mixed in enumerate(view.double()):
            fits = []
            for other in range(BATCH):  # mixed = x + share (x' - x), solved for share
                away = (images[other] - images[number]).flatten()
                share = (mixed - images[number]).flatten() @ away / (away @ away).clamp(min=1e-9)
                fits.append(
                    torch.allclose(mixed, images[number] + share * away.view_as(mixed), atol=1e-5)
                    and -1e-6 < share < 0.3
                )
            assert any(fits)
    assert not torch.allclose(first, second)


# --- what is remembered


def test_a_queue_goes_round():
    queue = Queue(2, 5, DIM, torch.Generator().manual_seed(0))
    before, z = queue.entries.clone(), unit(2, 9, DIM).float()
    torch.testing.assert_close(before.norm(dim=-1), torch.ones(2, 5))
    queue.write(z[:, :3])
    assert torch.equal(queue.entries[:, :3], z[:, :3])
    assert torch.equal(queue.entries[:, 3:], before[:, 3:])
    queue.write(z[:, 3:6])
    assert torch.equal(queue.entries, torch.cat([z[:, 5:6], z[:, 1:3], z[:, 3:5]], 1))
    assert int(queue.place) == 1


def test_averaged_networks_follow_and_leave_every_buffer_alone():
    settings = config("moco")
    networks = Networks(settings)
    averaged = Averaged(networks, Config(ema_momentum=0.9), 64)
    start = {name: p.clone() for name, p in averaged.named_parameters()}
    with torch.no_grad():
        for p in networks.parameters():
            p.add_(torch.randn_like(p))
    averaged.follow(networks)
    for name, p in averaged.named_parameters():
        moved = dict(networks.named_parameters())[name.removeprefix("networks.")]
        torch.testing.assert_close(p, 0.9 * start[name] + 0.1 * moved)
    buffers = [b.clone() for b in [*averaged.buffers(), *networks.buffers()]]
    views = [torch.randn(4, 3, 16, 16) for _ in range(2)]
    z = averaged(views)
    assert not z.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(buffers, [*averaged.buffers(), *networks.buffers()], strict=True))
    torch.testing.assert_close(z, averaged.networks(views))  # in training mode: by the statistics of the minibatch


@pytest.mark.parametrize(("name", "momentum"), [("moco", 0.75), ("byol", 0.75)])
def test_the_target_is_m_old_plus_the_rest_new(tmp_path, name, momentum):
    """Over a run of two steps, from the weights that the seed gives and those of every step."""
    settings = config(name, train_images=20, epochs=2, ema_momentum=momentum, keep_last=2, runs_dir=tmp_path)
    networks, _ = initial_networks(build(settings), 4, settings.seed)
    target = {n: p.detach().clone() for n, p in networks.named_parameters() if "predictors" not in n}
    run = fit(settings, quiet)
    for file in run.encoder_files():
        tensors = read_tensors(file)[0]
        target = {n: momentum * p + (1 - momentum) * tensors[f"networks.{n}"] for n, p in target.items()}
    saved = read_tensors(run.checkpoint)[0]
    prefix = "memory.averaged.networks." if name == "moco" else "memory.networks."
    kept = {n.removeprefix(prefix) for n in saved if n.startswith(prefix)}
    assert set(target) <= kept
    for n, p in target.items():
        torch.testing.assert_close(saved[prefix + n], p)
    assert not any("predictors" in n for n in kept)


def test_swavs_memory_has_the_prototypes_of_the_step_to_come(tmp_path):
    settings = config("swav", queue_size=32, epochs=1, prototypes_frozen_epochs=0.4, runs_dir=tmp_path)
    saved = read_tensors(fit(settings, quiet).checkpoint)[0]
    assert (int(saved["memory.steps"]), int(saved["memory.frozen_steps"])) == (5, 2)
    assert torch.equal(saved["memory.prototypes"], saved["networks.prototypes"])
    torch.testing.assert_close(saved["memory.queue.entries"].norm(dim=-1), torch.ones(2, 32))
    assert int(saved["memory.queue.place"]) == 5 * 16 % 32


# --- methods after the paper


def test_negatives_of_adco_begin_as_keys_and_then_ascend():
    """Three minibatches of 3 fill 8 places, the first of them twice. Then W <- W - lr v, v <- 0.9 v + 1e-4 W - dL/dW."""
    negatives = Adversaries(config("adco", queue_size=8, adversary_lr=2.0), torch.Generator().manual_seed(0)).double()
    queries, keys = unit(4, 2, 3, DIM), unit(4, 2, 3, DIM, seed=1)
    for step in range(3):
        negatives.move(queries[step], keys[step])
    written = torch.cat([*keys[:3]], 1)
    torch.testing.assert_close(negatives.weights, torch.cat([written[:, 8:], written[:, 1:8]], 1))
    assert not negatives.velocity.any()
    weights, velocity = negatives.weights.clone(), torch.zeros(2, 8, DIM, dtype=torch.float64)
    for _ in range(2):
        leaf, terms = weights.clone().requires_grad_(), []
        for v, i in ((v, i) for v in range(2) for i in range(3)):  # a query of the other view against the keys of this
            scores = torch.exp(torch.cat([keys[3, v], F.normalize(leaf[v], dim=-1)]) @ queries[3, 1 - v, i] / 0.02)
            terms.append(-torch.log(scores[i] / scores.sum()))
        (gradient,) = torch.autograd.grad(torch.stack(terms).sum() / 3, leaf)
        velocity = 0.9 * velocity + 1e-4 * weights - gradient
        weights = weights - 2 * velocity
        negatives.move(queries[3], keys[3])
        torch.testing.assert_close(negatives.weights, weights)
        torch.testing.assert_close(negatives.velocity, velocity)


def test_a_hallucinator_is_an_mlp_of_a_feature_and_its_extrapolation():
    torch.manual_seed(0)
    network = Hallucinator(3, DIM, reach=0.1).double()
    z, keys = unit(6, BATCH, DIM), unit(3, BATCH, DIM, seed=1)
    first, _, second, _, last = network.layers
    for found, r, of in ((network(z, keys, torch.tensor(0.07)), 0.07, keys), (network(z), 0.05, z)):
        for w, row in enumerate(z):
            others = torch.stack([x for u, x in enumerate(of) if u % 3 != w % 3]).mean(0)
            x = torch.cat([row, (1 + r) * row - r * others], 1)
            for layer in (first, second):
                x = (x @ layer.weight.T + layer.bias).clamp(min=0)
            torch.testing.assert_close(found[w], F.normalize(x @ last.weight.T + last.bias, dim=1))
    leaf = z.clone().requires_grad_()
    gradients = [torch.autograd.grad(network(leaf, keys)[:3].sum(), leaf)[0] for keys in (None, z.clone())]
    torch.testing.assert_close(*gradients)  # what is extrapolated away from is a constant, also without keys


def test_a_hallucinator_descends_on_the_regular_loss_and_stays_at_rate_0():
    """One step of Adam from the same state, against the gradient of the loss of z and z~ as one function of all weights."""
    settings = {**SMALL, "method": "moco+hallucinator", "views": ("L", "ab"), "temperature": 0.2, "ema_momentum": 0.5}
    s, still = start_state(**settings), start_state(**settings, mag_lr=0)
    before, rows = {n: p.detach().clone() for n, p in s.omega.items()}, torch.arange(16)
    networks = copy_module(s.networks)
    generators = {role: g.get_state() for role, g in s.generators.items()}
    update(s, s.images.pixels[rows], rows, log=False)
    update(still, still.images.pixels[rows], rows, log=False)
    for role, g in still.generators.items():  # draw again what the step drew
        g.set_state(generators[role])
    views, what = draw(still, still.images.pixels[rows], rows)
    keys = Averaged(networks, still.config, 90)(views)
    hallucinator: Any = still.mag
    z = networks(views)
    other = start_state(**settings).memory
    value = still.method.loss(torch.cat([z, hallucinator(z, keys, what.given["reach"])]),
                              replace(what, positives=keys, negatives=other["queue"].of_views().flip(0)[:, None]))  # fmt: skip
    gradient = dict(zip(before, torch.autograd.grad(value, [*hallucinator.parameters()]), strict=True))
    for name, p in s.omega.items():
        step = -s.config.mag_lr * gradient[name] / (gradient[name].abs() + 1e-8)  # the first of Adam
        torch.testing.assert_close(p.detach() - before[name], step, rtol=1e-2, atol=1e-5)
        assert torch.equal(still.omega[name], before[name])


def test_imix_mixes_the_images_that_ask_and_keeps_those_that_answer(monkeypatch):
    method: Any = build(config("imix", views=("L", "ab")))
    pixels = torch.randint(256, (BATCH, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    *images, partners, share = method.views(pixels, torch.Generator().manual_seed(0))
    mixed, plain = images[:2], images[2:]
    assert share.min() >= 0.5
    assert share.max() < 1
    assert partners.sort().values.tolist() == [[*range(BATCH)]] * 2
    assert not torch.equal(partners[0], partners[1])
    for v, i in ((v, i) for v in range(2) for i in range(BATCH)):
        expected = share[v, i] * plain[v][i] + (1 - share[v, i]) * plain[v][partners[v, i]]
        torch.testing.assert_close(mixed[v][i], expected)
    plainly = build(config("moco", views=("L", "ab"))).views(pixels, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(plain, plainly, strict=True))
    networks, _ = initial_networks(method, 4, 0)
    torch.testing.assert_close(networks([*images, partners, share]), networks(mixed))


def test_weights_of_ft_are_of_a_beta_distribution():
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1))."""
    for alpha in (2.0, 1.6):
        drawn = draw_beta(alpha, (400, 300), torch.Generator().manual_seed(0))
        assert drawn.mean().item() == pytest.approx(0.5, abs=0.003)
        assert drawn.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.02)
    what = build(config("ft", ft_alphas=(2.0, 1.6))).context(
        start_state(**{**SMALL, "method": "ft"}).memory, [torch.rand(16, 1, 16, 16), torch.rand(16, 2, 16, 16)],
        torch.arange(16), torch.arange(16), torch.Generator())  # fmt: skip
    assert what.given["ft_weights"].shape == (16, 8)
    assert 1 < what.given["ft_weights"].min() < what.given["ft_weights"].max() < 2
    assert what.given["ft_past_weights"].shape == (32, 8)
    assert what.given["ft_partners"].sort().values.tolist() == [*range(32)]


def test_noise_is_at_the_similarity_and_dropout_at_it_on_the_average():
    z, noise = (
        unit(2, 500, 64),
        torch.randn(2, 500, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
    )
    for cosine in (0.9, 0.5):
        turned, dropped = (perturb(z, noise, cosine) for perturb in (add_noise, drop_units))
        torch.testing.assert_close((z * turned).sum(-1), torch.full((2, 500), cosine, dtype=torch.float64))
        assert (z * dropped).sum(-1).square().mean().sqrt().item() == pytest.approx(cosine, abs=0.01)
        for changed in (turned, dropped):
            torch.testing.assert_close(changed.norm(dim=-1), torch.ones(2, 500, dtype=torch.float64))


def test_augmented_features_of_a_finished_run_are_its_networks_or_of_its_seed():
    z = unit(2, 50, 8)
    noisy, again = (augment_features(build(config("cmc+noise", seed=seed)), z, None) for seed in (0, 0))
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, augment_features(build(config("cmc+noise", seed=1)), z, None))
    torch.testing.assert_close((z * noisy).sum(-1), torch.full((2, 50), 0.9, dtype=torch.float64))  # d 0.95
    network = torch.nn.Linear(8, 8).double()
    assert torch.equal(augment_features(build(config("metaug-only-mag")), z, network), network(z))
    with pytest.raises(MetaugError, match="CMC has no augmented features"):
        augment_features(build(config("cmc")), z, None)


@pytest.mark.parametrize("modifier", ["ft", "hallucinator", "mochi", "synco", "noise", "dropout"])
def test_a_modifier_of_features_leaves_the_draws_before_it_as_they_were(modifier):
    """So that a run with it is of the same views, order and negatives as one without."""
    pixels = torch.randint(256, (16, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    drawn = []
    for name in ("cmc", f"cmc+{modifier}"):
        s = start_state(**{**SMALL, "method": name})
        views, what = draw(s, pixels, torch.arange(16))
        drawn.append([*views, what.negatives])
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


# --- all methods alike


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Every method, and some that a name composes, trained side by side."""
    folder = tmp_path_factory.mktemp("together")
    names = list(dict.fromkeys([*METHODS, *COMPOSED]))
    return dict(zip(names, fit_trials([config(name, runs_dir=folder) for name in names], quiet), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", dict.fromkeys([*METHODS, *COMPOSED]))
def test_killed_and_resumed_alone_is_the_trial_bit_for_bit(together, tmp_path, monkeypatch, name):
    """A run that is interrupted in its second pass and goes on in a new state, against the same run among trials."""

    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    settings = config(name, runs_dir=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(settings, stop_at(7))
    run, whole = fit(settings, quiet), together[name]
    assert run.finished
    left, right = read_tensors(run.checkpoint)[0], read_tensors(whole.checkpoint)[0]
    assert left.keys() == right.keys()
    assert not [n for n in left if not torch.equal(left[n], right[n])]
    assert (run.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("encoder", ["fc", "resnet18"])
@pytest.mark.parametrize("name", PLAIN)
def test_the_gradient_reaches_every_layer_of_every_encoder(name, encoder):
    settings = config(name, encoder=encoder, width=1.0 if encoder == "resnet18" else 0.05, batch_size=4, feature_dim=3)
    method, generator = build(settings), torch.Generator().manual_seed(0)
    networks, mag = initial_networks(method, 4, 0)
    encoders: Any = networks.encoders
    memory = method.memory(networks, 20, generator)
    pixels = torch.randint(256, (4, 3, 16, 16), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        views = method.views(pixels, generator)
        what = method.context(memory, views, torch.arange(4), torch.arange(4), generator)
    z = networks(views)
    total = torch.stack([*method.terms(z, what, mag).values()]).sum()
    total.backward()
    assert torch.isfinite(total)
    for n, p in encoders.named_parameters():
        assert p.grad is not None, n
        assert p.grad.abs().max() > 0, n


@pytest.mark.parametrize("base", ["simclr", "nnclr", "moco", "byol", "barlow", "cmc+hard"])
def test_a_mag_of_delta_0_leaves_theta_to_the_base_method(tmp_path, base):
    """Bit for bit, memory included."""
    plain, with_it = (
        fit(config(name, delta=0.0, epochs=1, runs_dir=tmp_path), quiet) for name in (base, base + "+mag")
    )
    left, right = read_tensors(plain.checkpoint)[0], read_tensors(with_it.checkpoint)[0]
    kept = [n for n in left if n.startswith(("networks.", "memory."))]
    assert kept
    assert not [n for n in kept if not torch.equal(left[n], right[n])]
    assert any(n.startswith("mag.") for n in right)


def test_the_order_of_modifiers_changes_nothing():
    z, other = unit(3, BATCH, DIM), unit(3, BATCH, DIM, seed=1)
    names = ("cmc+mag+hard", "cmc+hard+mag")
    left, right = (build(config(name, negatives="batch")).outer_terms(z, context(), lambda _: other) for name in names)
    assert left == right


def test_a_name_that_makes_sense_is_in_the_registry():
    assert "cmc+hard" in METHODS
    assert "cmc+hrad" not in METHODS
    assert METHODS.get("cmc+hrad") is None


REFUSED = [
    ("cmc+hrad", "unknown modifier 'hrad'; did you mean 'hard'?"),
    ("cmcc+hard", "unknown method 'cmcc'; did you mean 'cmc'?"),
    ("cmc+hard+hard", "modifier 'hard' occurs twice in 'cmc+hard+hard'"),
    ("cmc+hard+debiased", "modifier 'debiased' changes a plain InfoNCE, and CMC + Hard has none"),
    ("byol+hard", "modifier 'hard' changes a plain InfoNCE, and BYOL has none"),
    ("metaug+hard", "modifier 'hard' changes a plain InfoNCE, and MetAug has none"),
    ("swav+oucl", "modifier 'oucl' needs pairs of features, and SwAV has none"),
    ("swav+mag", "SwAV has no features that a MAG could augment"),
    ("supervised+mag", "fully supervised has no features that a MAG could augment"),
    ("vicreg+mag", "VICReg has no features that a MAG could augment"),
    ("hallucinator+mag", "modifier 'mag' adds augmented features, and Hallucinator has some"),
    ("metaug+noise", "modifier 'noise' adds augmented features, and MetAug has some"),
    ("simclr+dcl+hard", "modifier 'hard' changes a plain InfoNCE, and SimCLR + DCL has none"),
    ("looc+dcl", "modifier 'dcl' needs pairs of features, and LooC has none"),
    ("nnclr+ft", "modifier 'ft' needs features alone, and NNCLR has other rows as well"),
    ("simclr+mochi", "modifier 'mochi' needs past negatives, and SimCLR has none"),
]


@pytest.mark.parametrize(("name", "why"), REFUSED)
def test_a_name_that_makes_no_sense_is_one_sentence(name, why):
    with pytest.raises(ConfigError) as refused:
        config(name)
    assert str(refused.value) == why
    with pytest.raises(MetaugError, match=re.escape(why)):
        METHODS[name]


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [("moco", {"queue_size": 8}, "method 'moco' needs queue_size >= batch_size 16, got 8"),
     ("nnclr+mag", {"queue_size": 0}, "method 'nnclr+mag' needs queue_size >= batch_size 16, got 0"),
     ("swav", {"queue_size": 5}, "method 'swav' needs queue_size >= batch_size 16, got 5"),
     ("dacl", {"mixup": 0.0}, "method 'dacl' contrasts two draws of mixup noise: it needs mixup > 0 and independent True, "
                              "got 0 and True"),
     ("cmc+randaugment", {"randaugment": 0.0}, "method 'cmc+randaugment' needs randaugment > 0, got 0")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_one_sentence(name, changes, why):
    with pytest.raises(ConfigError) as refused:
        build(config(name, **changes))
    assert str(refused.value) == why


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_methods_file_knows_no_data_set(file):
    text = file.read_text(encoding="utf-8").lower()
    code = re.sub(r'""".*?"""|#[^\n]*', "", text, flags=re.DOTALL)
    for name in DATASETS:
        assert not re.search(rf"[\"']{re.escape(name)}[\"']", code), name


def test_a_method_says_what_it_is():
    for entry in catalogue.entries():
        assert all(entry), entry
        assert METHODS[entry.name].description.title
        remembers_nothing = getattr(build(config(entry.name)).memory, "__func__", None) is Method.memory
        assert (entry.state == "nothing") == remembers_nothing, entry
    assert {"simclr", "cmc+hard", "metaug", "metaug-nnclr"} <= {entry.name for entry in catalogue.entries()}


def test_a_composition_says_what_differs_from_the_authors_of_both():
    for base in ("swav", "infomin", "dacl"):
        own = METHODS[base].description.differs
        assert own
        for modifier in ("debiased", "hard", "randaugment"):
            both = METHODS[f"{base}+{modifier}"].description.differs
            assert both.startswith(own + " ")
            assert both.removeprefix(own).strip().lower().startswith(modifier)
    assert METHODS["infomin+mag"].description.differs == METHODS["infomin"].description.differs


def test_the_table_of_methods_is_the_registrys():
    """`metaug methods --markdown` prints what stands between the two marks."""
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    start = page.index(catalogue.BEGIN)
    assert page[start : page.index(catalogue.END) + len(catalogue.END) + 1] == catalogue.markdown()
