"""What the meta-gradient is claimed to be, each claim proved by a test of its name, on real networks with BatchNorm (float64).

- It equals double backward: for conv, fc and ResNet; for both objectives and every form of the loss; at any rate; with the
  optimiser's own step; with an outer minibatch of its own; and as a direct part alone.
- It agrees with finite differences in omega, of the whole look-ahead as a black box, and with a case computed by hand.
- Sharing with the regular step is exact.
- The mixed part matters: without it the gradient is another one, so that the tests above can fail.
- A loss without omega has gradient zero. Statistics and bank are left as they were.
- The tangent pass is torch's Jacobian-vector product, with and without a record; stale and foreign records are not used.
- The loss along a profiled step is that of the run at both ends, and profiling changes nothing.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

import metaug_core
from metaug_core.errors import MetaugError
from metaug_core.meta import forward_ad, meta_gradient
from metaug_core.meta.forward_ad import Recorder, frozen_statistics, tangent
from metaug_core.meta.meta_gradient import next_step
from metaug_core.methods import build
from metaug_core.networks.memory import Bank
from metaug_workbook.results import loss_profiles

SMALL = {"image_size": 16, "feature_dim": 6, "mag_hidden": 10, "batch_size": 6, "bank_negatives": 9, "delta": 0.7,
         "alpha": 0.3, "views": ("L", "ab")}  # fmt: skip


def problem(encoder="conv", method="metaug", **changes):
    """features, loss, outer loss, theta, omega of the real method in float64 on a small batch."""
    width = {} if encoder.startswith("resnet") else {"width": 0.1}
    config = metaug_core.Config(encoder=encoder, method=method, **{**SMALL, **width, **changes})
    torch.manual_seed(0)
    built = build(config)
    networks, mag = built.networks(10).double(), built.mag().double()
    bank = Bank(len(config.views), 40, config.feature_dim, torch.Generator().manual_seed(1)).double()
    views = [torch.randn(6, {"L": 1, "ab": 2, "RGB": 3}[v], 16, 16, dtype=torch.float64) for v in config.views]
    labels = torch.zeros(6, dtype=torch.int64)
    context = built.context(bank, views, torch.arange(6), labels, torch.Generator().manual_seed(2))

    def features(theta):
        return functional_call(networks, theta, (views,))

    def summed(terms):
        return lambda z, omega: sum(terms(z, context, lambda x: functional_call(mag, omega, (x,))).values())

    theta = {n: p.detach() for n, p in networks.named_parameters()}
    omega = {n: p.detach() for n, p in mag.named_parameters()}
    return features, summed(built.terms), summed(built.outer_terms), theta, omega, (networks, mag, bank)


def difference(a, b):
    """Largest error relative to the size of the whole gradient."""
    size = max(float(x.abs().max()) for x in b.values())
    assert size > 0
    return max(float((a[name] - b[name]).abs().max()) for name in b) / size


@pytest.mark.parametrize("method", ["metaug", "metaug-only-mag"])
@pytest.mark.parametrize("encoder", ["conv", "fc", "resnet18"])
def test_the_meta_gradient_equals_double_backward(encoder, method):
    features, loss, outer, theta, omega, modules = problem(encoder, method)
    with frozen_statistics(*modules):
        fast = meta_gradient.meta_gradient(features, loss, theta, omega, 0.3, outer)
        slow = meta_gradient.meta_gradient_reference(features, loss, theta, omega, 0.3, outer)
    assert fast.keys() == omega.keys()
    assert difference(fast, slow) < 1e-10


def trained(theta, features, loss, omega, optimiser, steps=2):
    """An optimiser of theta's own tensors that has made some steps, and theta after them."""
    leaves = {n: p.clone().requires_grad_() for n, p in theta.items()}
    optimiser = optimiser([*leaves.values()])
    for _ in range(steps):
        for name, g in meta_gradient.gradients(loss(features(leaves), omega), leaves).items():
            leaves[name].grad = g
        optimiser.step()
    return leaves, optimiser


OPTIMISERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-3),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPTIMISERS)
@pytest.mark.parametrize("encoder", ["conv", "fc", "resnet18"])
def test_the_optimisers_own_step_equals_double_backward(encoder, kind):
    features, loss, outer, theta, omega, modules = problem(encoder)
    with frozen_statistics(*modules):
        theta, optimiser = trained(theta, features, loss, omega, OPTIMISERS[kind])
        rule = next_step(optimiser, theta, 0.01)
        fast = meta_gradient.look_ahead(features, loss, theta, omega, rule, outer, measure=True)
        slow = meta_gradient.look_ahead_reference(features, loss, theta, omega, rule, outer, measure=True)
        direct = meta_gradient.meta_gradient(features, loss, theta, omega, rule, outer, mixed=False)
        literal = meta_gradient.meta_gradient_reference(features, loss, theta, omega, rule, outer, mixed=False)
    assert difference(fast.gradient, slow.gradient) < 1e-10
    assert difference(direct, literal) < 1e-10
    assert difference(direct, slow.gradient) > 1e-4
    assert float(fast.mixed_share) == pytest.approx(float(slow.mixed_share), rel=1e-8)
    assert 0.001 < float(fast.mixed_share) < 1


def test_the_optimisers_own_step_agrees_with_finite_differences_in_omega():
    """The preconditioner is held: it is a constant by definition, and so is R_sigma's margin (alpha 0)."""
    features, loss, outer, theta, omega, modules = problem(alpha=0.0)
    generator = torch.Generator().manual_seed(3)
    direction = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in omega.items()}
    with frozen_statistics(*modules):
        theta, optimiser = trained(theta, features, loss, omega, OPTIMISERS["adam"])
        held = next_step(optimiser, theta, 0.01)(meta_gradient.gradients(loss(features(theta), omega), theta))

        def ahead(size):
            moved = {n: p + size * direction[n] for n, p in omega.items()}
            leaves = {n: p.detach().requires_grad_() for n, p in theta.items()}
            inner = meta_gradient.gradients(loss(features(leaves), moved), leaves)
            with torch.no_grad():
                return float(outer(features(meta_gradient.step(theta, inner, lambda _: held)), moved))

        gradient = meta_gradient.meta_gradient(features, loss, theta, omega, next_step(optimiser, theta, 0.01), outer)
        wanted = (ahead(1e-7) - ahead(-1e-7)) / 2e-7
    got = float(sum((gradient[n] * direction[n]).sum() for n in omega))
    assert got == pytest.approx(wanted, rel=1e-6)


def test_an_outer_minibatch_of_its_own_equals_double_backward():
    features, loss, outer, theta, omega, modules = problem()
    generator = torch.Generator().manual_seed(5)
    others = [torch.randn(6, channels, 16, 16, dtype=torch.float64, generator=generator) for channels in (1, 2)]

    def elsewhere(theta):
        return functional_call(modules[0], theta, (others,))

    with frozen_statistics(*modules):
        fast = meta_gradient.meta_gradient(features, loss, theta, omega, 0.3, outer, outer_features=elsewhere)
        slow = meta_gradient.meta_gradient_reference(features, loss, theta, omega, 0.3, outer, outer_features=elsewhere)
        same = meta_gradient.meta_gradient(features, loss, theta, omega, 0.3, outer)
    assert difference(fast, slow) < 1e-10
    assert difference(same, slow) > 1e-3


@pytest.mark.parametrize("lr", [0.0, 1e-3, 5.0, torch.tensor(0.2, dtype=torch.float64)])
def test_the_meta_gradient_at_any_rate_equals_double_backward(lr):
    features, loss, _, theta, omega, modules = problem()
    with frozen_statistics(*modules):
        fast = meta_gradient.meta_gradient(features, loss, theta, omega, lr)
        slow = meta_gradient.meta_gradient_reference(features, loss, theta, omega, lr)
    assert difference(fast, slow) < 1e-10


@pytest.mark.parametrize(
    "changes",
    [
        {"oucl": "eq8", "oucl_lambda": 0.2},
        {"oucl": "eq9", "phi_dec": 6.0, "gamma_detached": True},
        {
            "augmented_sets": "swapped",
            "margin_everywhere": True,
            "scope": "image",
            "margin_scope": "image",
            "margin_features": "all",
        },
        {"margin_pairs": "both", "margin_scope": "anchor"},
        {"bank_draw": "per-anchor", "positives": "bank"},
        {"negatives": "batch", "scope": "minibatch"},
    ],
    ids=["eq8", "eq9", "authors", "both-views", "per-anchor", "batch"],
)
def test_the_meta_gradient_of_every_form_of_the_loss_equals_double_backward(changes):
    features, loss, outer, theta, omega, modules = problem(**changes)
    with frozen_statistics(*modules):
        fast = meta_gradient.meta_gradient(features, loss, theta, omega, 0.3, outer)
        slow = meta_gradient.meta_gradient_reference(features, loss, theta, omega, 0.3, outer)
    assert difference(fast, slow) < 1e-10


def test_the_meta_gradient_agrees_with_finite_differences_in_omega():
    """Along a random direction, of the whole look-ahead as a black box: theta' is recomputed at every omega."""
    features, loss, outer, theta, omega, modules = problem(
        alpha=0.0
    )  # R_sigma's margins are constants by definition, not by value
    generator = torch.Generator().manual_seed(3)
    direction = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in omega.items()}

    def ahead(step):
        moved = {n: p + step * direction[n] for n, p in omega.items()}
        leaves = {n: p.clone().requires_grad_() for n, p in theta.items()}
        inner = meta_gradient.gradients(loss(features(leaves), moved), leaves)
        with torch.no_grad():
            return float(outer(features(meta_gradient.step(theta, inner, 0.3)), moved))

    with frozen_statistics(*modules):
        gradient = meta_gradient.meta_gradient(features, loss, theta, omega, 0.3, outer)
        step = (
            1e-7  # the look-ahead is strongly curved; 1e-6 agrees to 2e-6, 1e-5 to 2e-3, as a central difference should
        )
        wanted = (ahead(step) - ahead(-step)) / (2 * step)
    got = float(sum((gradient[n] * direction[n]).sum() for n in omega))
    assert got == pytest.approx(wanted, rel=1e-6)


def test_without_the_mixed_part_the_gradient_is_another():
    """A control: without the second derivative the gradient would be another one, so the tests above can fail."""
    features, loss, _, theta, omega, modules = problem()
    with frozen_statistics(*modules):
        whole = meta_gradient.meta_gradient(features, loss, theta, omega, 5.0)
        leaves = {n: p.clone().requires_grad_() for n, p in theta.items()}
        ahead = meta_gradient.step(theta, meta_gradient.gradients(loss(features(leaves), omega), leaves), 5.0)
        grown = {n: p.clone().requires_grad_() for n, p in omega.items()}
        direct = meta_gradient.gradients(loss(features(ahead), grown), grown)
    assert difference(direct, whole) > 1e-3


def shared_by_the_regular_step(features, loss, theta, omega):
    """What a regular step has at hand, with everything that the look-ahead can share."""
    leaves = {n: p.clone().requires_grad_() for n, p in theta.items()}
    own_omega = {n: p.clone().requires_grad_() for n, p in omega.items()}
    with Recorder() as recorded:
        z = features(leaves)
    leaf = z.detach().requires_grad_()
    (feature_gradient,) = torch.autograd.grad(loss(leaf, own_omega), leaf, create_graph=True)
    return meta_gradient.Regular(
        meta_gradient.gradients(z, leaves, grad_outputs=feature_gradient.detach()), feature_gradient, recorded
    ), own_omega


@pytest.mark.parametrize("encoder", ["conv", "fc", "resnet18"])
def test_sharing_with_the_regular_step_is_exact(encoder):
    features, loss, outer, theta, omega, modules = problem(encoder)
    with frozen_statistics(*modules):
        regular, own_omega = shared_by_the_regular_step(features, loss, theta, omega)
        without = meta_gradient.meta_gradient(features, loss, theta, omega, 0.3, outer)
        assert (
            difference(meta_gradient.meta_gradient(features, loss, theta, own_omega, 0.3, outer, regular), without)
            < 1e-11
        )
        only_gradient = meta_gradient.Regular(regular.gradient)
        assert (
            difference(meta_gradient.meta_gradient(features, loss, theta, omega, 0.3, outer, only_gradient), without)
            < 1e-11
        )


def dual_problem(layout=torch.channels_last):
    """A small network of every operation that the tangent pass treats itself, and its arguments."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2), torch.nn.Flatten(),
        torch.nn.Linear(12, 5), torch.nn.BatchNorm1d(5), torch.nn.ReLU(),
    ).double()  # fmt: skip
    x = torch.randn(4, 2, 7, 7, dtype=torch.float64).to(memory_format=layout)
    theta = {n: p.detach() for n, p in network.to(memory_format=layout).named_parameters()}
    direction = {n: torch.randn_like(p) for n, p in theta.items()}
    return network, lambda theta: functional_call(network, theta, (x,)), theta, direction


@pytest.fixture
def keep_all(monkeypatch):
    monkeypatch.setattr(forward_ad, "MIN_MULTIPLICATIONS", 0)


def recorded_pass(network, features, theta):
    with Recorder() as recorded, frozen_statistics(network):
        features({n: p.clone().requires_grad_() for n, p in theta.items()})
    return recorded


@pytest.mark.usefixtures("keep_all")
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_tangent_pass_is_the_jacobian_product_with_and_without_a_record(layout):
    network, features, theta, direction = dual_problem(layout)
    recorded = recorded_pass(network, features, theta)
    functions = [record and record.func for record in recorded.records]
    assert functions == [torch.conv2d, F.batch_norm, F.max_pool2d, F.linear, F.batch_norm]
    with frozen_statistics(network):
        wanted = torch.func.jvp(features, (theta,), (direction,))
        assert wanted[1].abs().max() > 0.1
        for record in (None, recorded):
            for got, want in zip(tangent(features, theta, direction, record), wanted, strict=True):
                torch.testing.assert_close(got, want)


@pytest.mark.usefixtures("keep_all")
@pytest.mark.parametrize("number", range(5))
def test_the_record_is_used_and_a_stale_or_foreign_one_is_not(number):
    network, features, theta, direction = dual_problem()
    recorded = recorded_pass(network, features, theta)

    def compute():
        with frozen_statistics(network):
            return torch.cat(tangent(features, theta, direction, recorded))

    whole, record = compute(), recorded.records[number]
    recorded.records[number] = record._replace(
        tensors=tuple(-t if t.is_floating_point() else 0 * t for t in record.tensors),
        versions=(0,) * len(record.tensors),
    )
    assert not torch.allclose(compute(), whole)
    for foreign in (None, record._replace(func=torch.relu), record._replace(tensors=(torch.zeros(7),), versions=(0,))):
        recorded.records[number] = foreign
        torch.testing.assert_close(compute(), whole)
    recorded.records[number] = record
    record.tensors[0].add_(5)  # as an in-place operation after it would
    torch.testing.assert_close(compute(), whole)


def test_features_whose_tangent_is_dropped_are_an_error_and_not_constants():
    network, features, theta, direction = dual_problem()
    with frozen_statistics(network), pytest.raises(MetaugError, match="the features have no tangent"):
        tangent(lambda theta: features(theta).detach(), theta, direction)


@pytest.mark.parametrize("moved", [("weight",), ("bias",), ("weight", "bias")])
@pytest.mark.parametrize("shape", [(6, 3), (5, 3, 4, 4)])
def test_the_tangent_of_batch_norm_on_channels_far_from_0(shape, moved):
    """With any of x, weight and bias moving; float64 at a mean of 1e4, where a mean square would lose the variance."""
    torch.manual_seed(0)
    make = torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d
    network, x = make(3).double(), 1e4 + torch.randn(shape, dtype=torch.float64)
    theta = {"weight": torch.tensor([1.0, -2.0, 0.5]).double(), "bias": torch.tensor([0.0, 1.0, 2.0]).double(), "x": x}
    for still in (("x",), ()):
        direction = {n: torch.randn_like(p) * (n in moved or (n == "x" and not still)) for n, p in theta.items()}

        def features(theta, still=still):
            return functional_call(network, {n: theta[n] for n in ("weight", "bias")}, (x if still else theta["x"],))

        with frozen_statistics(network):
            wanted = torch.func.jvp(features, (theta,), (direction,))
            for got, want in zip(tangent(features, theta, direction), wanted, strict=True):
                torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)
            assert wanted[1].abs().max() > 0.1


def test_a_product_of_few_multiplications_is_not_recorded():
    network, features, theta, _ = dual_problem()
    assert recorded_pass(network, features, theta).records[0] is None


def test_statistics_and_bank_are_untouched():
    features, loss, outer, theta, omega, modules = problem()
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m in modules]
    with frozen_statistics(*modules):
        meta_gradient.meta_gradient(features, loss, theta, omega, 0.3, outer)
    for module, saved in zip(modules, before, strict=True):
        for name, value in module.state_dict().items():
            assert torch.equal(value, saved[name]), name
    features(theta)  # a control: outside the guard a pass does write them
    name = "encoders.nets.L.1.layers.0.running_mean"
    assert not torch.equal(modules[0].state_dict()[name], before[0][name])


def test_frozen_statistics_puts_back_what_it_found():
    norm, other = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3, track_running_stats=False)
    with pytest.raises(KeyError), frozen_statistics(norm, None, other):
        assert not norm.track_running_stats
        raise KeyError
    assert norm.track_running_stats
    assert not other.track_running_stats


def test_a_loss_without_omega_has_zero_gradient():
    theta, omega = {"w": torch.randn(3)}, {"a": torch.randn(2)}
    gradient = meta_gradient.meta_gradient(lambda t: t["w"] ** 2, lambda z, o: z.sum(), theta, omega, 0.1)
    assert torch.equal(gradient["a"], torch.zeros(2))


def test_the_meta_gradient_of_a_case_computed_by_hand():
    """z = theta, L = omega z^2 / 2: theta' = theta (1 - l omega), L' = omega theta'^2 / 2, and by the product rule
    dL'/domega = theta'^2 / 2 - l omega theta theta'."""
    theta, omega, lr = {"t": torch.tensor([3.0])}, {"o": torch.tensor([0.5])}, 0.4
    ahead = 3.0 * (1 - lr * 0.5)
    wanted = ahead**2 / 2 - lr * 0.5 * 3.0 * ahead
    for compute in (meta_gradient.meta_gradient, meta_gradient.meta_gradient_reference):
        gradient = compute(lambda t: t["t"], lambda z, o: (o["o"] * z**2 / 2).sum(), theta, omega, lr)
        assert gradient["o"].item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("kind", ["sgd", "optimiser"])
def test_the_loss_along_a_step_is_that_of_the_run_at_both_ends_and_profiling_changes_nothing(tiny, kind):
    config = tiny(look_ahead_update=kind, alpha=0.0)
    run, alone = loss_profiles.profile_training(config, (1, 7)), loss_profiles.profile_training(config, ())
    pd.testing.assert_frame_equal(run.logged, alone.logged)
    assert len(run.logged) == 10
    for step in (1, 7):
        rows = run.profiles[run.profiles["step"] == step].pivot(index="length", columns="kind", values="loss")
        metrics = run.logged.iloc[step]
        assert (rows.index[0], rows.index[-1]) == (0, 1.5)
        start = metrics["loss_original"] + metrics["loss_augmented"]
        assert rows.loc[0].tolist() == pytest.approx([start, start], rel=1e-5)
        assert rows.loc[1, "look-ahead"] == pytest.approx(metrics["loss_ahead"], rel=1e-5)
        together = np.allclose(rows["look-ahead"], rows["encoders' step"], rtol=1e-6)
        assert together == (kind == "optimiser")  # theta' is where the encoders are about to be
