"""One step and one run of the engine, against what the paper's algorithm says by hand."""

import copy
import importlib.util
import math
import os
import shutil
import signal
import sys
import threading
from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY, FullDisk, patterns, same
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from metaug_core import DATASETS, ENCODERS, Config, ConfigError, MetaugError, evaluate, fit, fit_trials, preset
from metaug_core.data import datasets
from metaug_core.evaluation.representations import mag_moved
from metaug_core.meta import meta_gradient
from metaug_core.meta.forward_ad import frozen_statistics
from metaug_core.objectives.similarity import Pairs, similarity
from metaug_core.runs import store
from metaug_core.runs.files import StoreError, read_tensors
from metaug_core.runs.store import Run, request
from metaug_core.training import cuda_graphs, loop, state, step
from metaug_core.training.loop import pick_device
from metaug_core.training.progress import Progress, RunsBar
from metaug_core.training.step import lr_factor, train_step
from metaug_core.views.augmentation import make_views


def quiet(progress: Progress) -> None:
    pass


def started(**changes: Any) -> Any:
    config = Config(**{**TINY, **changes})
    return state.create(config, datasets.load(config), "cpu")


def batch(number: int = 0, size: int = 16) -> torch.Tensor:
    return torch.arange(size) + size * number


def steps(s: Any, count: int, log: bool = False) -> list[dict[str, torch.Tensor]]:
    metrics = []
    for number in range(count):
        rows = batch(number % 5)
        metrics.append(train_step(s, s.images.pixels[rows], rows, log))
        s.step, s.position = s.step + 1, s.position + 1
    return metrics


def weights(module: nn.Module | None) -> dict[str, torch.Tensor]:
    assert module is not None
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def of(run: Run, prefix: str) -> dict[str, torch.Tensor]:
    return {name: t for name, t in read_tensors(run.checkpoint)[0].items() if name.startswith(prefix)}


# --- learning rates


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {0: 1, 3.7: 1, 9.9: 1}),
        ({"lr_schedule": "step", "lr_steps": (4, 6)}, {0: 1, 3.999: 1, 4: 0.1, 5.9: 0.1, 6: 0.01, 9: 0.01}),
        ({"lr_schedule": "step", "lr_steps": (5,), "lr_decay": 0.5}, {4.9: 1, 5: 0.5}),
        ({"lr_schedule": "cosine"}, {0: 1, 2.5: (1 + math.sqrt(0.5)) / 2, 5: 0.5, 7.5: (1 - math.sqrt(0.5)) / 2}),
        ({"warmup_epochs": 2}, {0: 0.0005, 1: 0.5005, 1.5: 0.7505, 2: 1, 9: 1}),
        ({"lr_schedule": "cosine", "warmup_epochs": 2}, {1: 0.5005, 2: 1, 6: 0.5, 4: (1 + math.sqrt(0.5)) / 2}),
        ({"lr_schedule": "step", "lr_steps": (1,), "warmup_epochs": 2}, {0.5: 0.2505, 2: 0.1}),
    ],
)
def test_learning_rates_by_hand(changes, expected):
    config = Config(epochs=10, **changes)
    for epochs_done, factor in expected.items():
        assert lr_factor(config, epochs_done) == pytest.approx(factor, rel=1e-9)


def test_both_optimisers_follow_the_schedule(tiny, monkeypatch):
    """5 steps a pass, 2 passes: the cosine is taken at steps, not at epochs."""
    rates = []

    def spy(s, pixels, rows, log):
        rates.append((s.optimiser.param_groups[0]["lr"], s.mag_optimiser.param_groups[0]["lr"]))
        return train_step(s, pixels, rows, log)

    monkeypatch.setattr(cuda_graphs, "train_step", spy)
    fit(tiny(lr_schedule="cosine", lr=0.01, mag_lr=0.004), quiet)
    expected = [0.5 * (1 + math.cos(math.pi * n / 10)) for n in range(10)]
    assert [lr for lr, _ in rates] == pytest.approx([0.01 * e for e in expected])
    assert [lr for _, lr in rates] == pytest.approx([0.004 * e for e in expected])


# --- one step


@pytest.mark.parametrize(("method", "base"), [("metaug", "metaug-only-oucl"), ("metaug-only-mag", "cmc")])
@pytest.mark.parametrize("look_ahead", ["shared", "fresh"])
def test_without_delta_theta_is_the_base_methods(tiny, method, base, look_ahead):
    """The MAG trains beside, and touches neither weights, running statistics, bank nor anybody's random draws."""
    one, other = fit(tiny(method=method, delta=0, look_ahead=look_ahead), quiet), fit(tiny(method=base), quiet)
    assert same(of(one, "networks."), of(other, "networks."))
    assert same(of(one, "memory."), of(other, "memory."))
    assert same(of(one, "generator."), of(other, "generator."))
    before = state.create(one.config, datasets.load(one.config), "cpu")
    assert not torch.equal(of(one, "mag.")["mag.last.weight"], weights(before.mag)["last.weight"])
    different = fit(tiny(method=method, delta=0.5, look_ahead=look_ahead), quiet)
    assert not same(of(one, "networks."), of(different, "networks."))


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("changes", [{}, {"look_ahead": "fresh"}, {"schedule": "epoch"}, {"inner_lr": 2.0}])
def test_the_fast_meta_gradient_gives_the_run_of_double_backward(changes):
    changes = {"delta": 0.5, "inner_lr": 0.1, "optimiser": "sgd", "mag_optimiser": "sgd", "mag_lr": 0.1, **changes}
    fast, slow = started(**changes), started(**changes, meta="double-backward")
    before = weights(fast.mag)
    metrics, expected = steps(fast, 8, log=True)[-1], steps(slow, 8, log=True)[-1]
    moved = max(float((value - before[name]).abs().max()) for name, value in weights(fast.mag).items())
    assert moved > 1e-4
    for one, other in ((fast.networks, slow.networks), (fast.mag, slow.mag)):
        for name, value in weights(one).items():
            torch.testing.assert_close(value, weights(other)[name], rtol=0, atol=1e-6 * moved)
    torch.testing.assert_close(metrics["mag_gradient_norm"], expected["mag_gradient_norm"], rtol=1e-5, atol=0)


def test_the_margin_moves_the_mag_alone():
    def moved(**changes):
        s = started(**changes)
        steps(s, 1)
        return weights(s.networks), weights(s.mag)

    theta, omega = moved(alpha=0.0)
    theta_with, omega_with = moved(alpha=10.0)
    assert same(theta, theta_with)
    assert not same(omega, omega_with)
    everywhere, _ = moved(alpha=10.0, margin_everywhere=True)
    assert not same(theta, everywhere)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"look_ahead": "fresh"},
        {"meta": "double-backward"},
        {"method": "cmc"},
        {"method": "simclr", "views": ("RGB", "RGB")},
    ],
)
@pytest.mark.parametrize("log", [False, True])
def test_statistics_are_written_once_a_step(changes, log):
    """Two crops are one minibatch to their encoder, and each its own to SimCLR's head, which has BatchNorm."""
    s = started(**changes)
    steps(s, 3, log)
    crops = 2 if changes.get("method") == "simclr" else 1
    for module, times in ((s.networks.encoders, 3), (s.networks.heads, 3 * crops), (s.mag, 3)):
        counts = [int(b) for n, b in module.named_buffers() if n.endswith("num_batches_tracked")] if module else []
        assert counts == [times] * len(counts)
        assert bool(counts) == (module is not None and (module is not s.networks.heads or crops == 2))


def test_statistics_are_those_of_the_regular_pass():
    s = started(momentum=0.0)
    rows, twin = batch(), copy.deepcopy(s.networks)
    draws = s.generators["views"].get_state()
    train_step(s, s.images.pixels[rows], rows, True)
    twin([*make_views(s.images.pixels[rows], s.config, torch.Generator().set_state(draws))])
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(dict(s.networks.named_buffers())[name], buffer)


@pytest.mark.parametrize("look_ahead", ["shared", "fresh"])
@pytest.mark.parametrize(("writes", "count"), [("step", 1), ("every-pass", 3)])
def test_the_bank_is_written_once_or_from_every_pass(look_ahead, writes, count):
    s = started(look_ahead=look_ahead, bank_writes=writes, bank_momentum=0.7, inner_lr=0.5)
    remembered, remember = [], s.method.remember

    def spy(memory, networks, z, context):
        remembered.append(z)
        remember(memory, networks, z, context)

    s.method.remember = spy
    rows, before = batch(2), s.memory.entries.clone()
    train_step(s, s.images.pixels[rows], rows, False)
    assert len(remembered) == count
    expected = before.clone()
    for z in remembered:
        expected[:, rows] = F.normalize(0.7 * expected[:, rows] + 0.3 * z, dim=-1)
    torch.testing.assert_close(s.memory.entries, expected)
    others = torch.tensor([n for n in range(before.shape[1]) if n not in rows])
    assert torch.equal(s.memory.entries[:, others], before[:, others])
    if count == 3 and look_ahead == "shared":  # z at theta (twice the same), and at theta'
        same_as_first = [torch.allclose(z, remembered[-1], atol=1e-5) for z in remembered]
        assert same_as_first == [True, False, True]


def test_epoch_schedule_moves_theta_then_omega():
    s = started(schedule="epoch")
    assert s.steps_per_epoch == 10
    for number in range(10):
        theta, omega, rows = weights(s.networks), weights(s.mag), batch(number % 5)
        buffers = {n: b.clone() for m in (s.networks, s.mag, s.memory) for n, b in m.named_buffers()}
        metrics = train_step(s, s.images.pixels[rows], rows, True)
        s.position += 1
        assert same(weights(s.networks), theta) == (number >= 5)
        assert same(weights(s.mag), omega) == (number < 5)
        assert ("loss_original" in metrics) == (number < 5)
        assert ("loss_ahead" in metrics) == (number >= 5)
        if number >= 5:  # running statistics and the bank are of the regular pass
            assert same({n: b for m in (s.networks, s.mag, s.memory) for n, b in m.named_buffers()}, buffers)


def test_epoch_schedule_sees_every_image_twice_in_one_order(tiny, monkeypatch):
    rows_of_steps = []

    def spy(s, pixels, rows, log):
        rows_of_steps.append(rows.tolist())
        return train_step(s, pixels, rows, log)

    monkeypatch.setattr(cuda_graphs, "train_step", spy)
    run: Any = fit(tiny(schedule="epoch", epochs=1), quiet)
    assert len(rows_of_steps) == 10
    assert rows_of_steps[:5] == rows_of_steps[5:]
    assert len({n for rows in rows_of_steps for n in rows}) == 80
    assert run.metrics["step"].max() == 10


def test_sharing_the_regular_step_is_exact(monkeypatch):
    """At the same theta, with the same minibatch and context, what the look-ahead takes over is what it would compute."""
    results: list[Any] = []
    look_ahead: Any = meta_gradient.look_ahead

    def spy(*arguments: Any, **options: Any):
        *others, shared = arguments
        assert shared is not None
        result = look_ahead(*others, shared, **options)
        results.append((result, look_ahead(*others, None, **options)))
        return result

    monkeypatch.setattr(step, "look_ahead", spy)
    steps(started(delta=0.5, inner_lr=0.3), 3)
    assert len(results) == 3
    for one, other in results:
        size = max(float(g.abs().max()) for g in other.gradient.values())
        assert size > 1e-5
        for name, value in one.gradient.items():
            torch.testing.assert_close(value, other.gradient[name], rtol=0, atol=1e-4 * size)
        torch.testing.assert_close(one.loss_ahead, other.loss_ahead)
        torch.testing.assert_close(one.features, other.features)
        torch.testing.assert_close(one.features_ahead, other.features_ahead)


class HoldsOriginals(Pairs):
    """Pairs of z and z~ stacked, computed one by one, in which similarities of two original features are constants."""

    def compare(self, anchors, targets, by_view=False):
        assert not by_view
        rows = []
        for w, anchor in enumerate(anchors):
            original, others = w < self.views, [u for u in range(len(targets)) if u % self.views != w % self.views]
            positives = [similarity((anchor * targets[u]).sum(-1)) for u in others]
            positives = [
                p.detach() if original and u < self.views else p for p, u in zip(positives, others, strict=True)
            ]
            negatives = similarity(anchor @ self.past[w % self.views].flatten(0, 1).T)
            rows.append((torch.stack(positives, -1), negatives.detach() if original else negatives))
        return tuple(torch.stack(side) for side in zip(*rows, strict=True))

    def reduce_negatives(self, compute, negatives, anchors, targets, *arguments):
        return compute(negatives, *arguments)


def test_gradient_and_share_of_the_augmented_by_hand():
    """Of eq. 11: SGD with rate 1 moves theta by the gradient; the share is |g~| / (|g - g~| + |g~|), g~ through pairs with a z~."""
    s = started(delta=0.3, loss_scale=2.0, optimiser="sgd", lr=1.0)
    rows, before = batch(), {role: g.get_state() for role, g in s.generators.items()}
    with torch.no_grad():
        views = make_views(s.images.pixels[rows], s.config, s.generators["views"])
        context = s.method.context(s.memory, views, rows, s.images.labels[rows], s.generators["draw"])
    for role, generator in s.generators.items():
        generator.set_state(before[role])
    theta, mag, networks = weights(s.networks), copy.deepcopy(s.mag), copy.deepcopy(s.networks)
    leaves = {name: p.clone().requires_grad_() for name, p in theta.items()}
    features = functional_call(networks, leaves, (views,))
    loss = s.method.base.loss
    original = 2.0 * loss(features, context)
    including = 2.0 * 0.3 * loss(torch.cat([features, mag(features)]), context)
    of_both = torch.autograd.grad(original + including, list(leaves.values()), retain_graph=True)
    stand_in = replace(context, shared=HoldsOriginals(len(features), context.negatives))
    held = 2.0 * 0.3 * loss(torch.cat([features, mag(features)]), stand_in)
    torch.testing.assert_close(held, including)
    of_augmented = torch.autograd.grad(held, list(leaves.values()))
    part = torch.cat([g.flatten() for g in of_augmented]).norm()
    rest = torch.cat([(g - a).flatten() for g, a in zip(of_both, of_augmented, strict=True)]).norm()
    metrics = train_step(s, s.images.pixels[rows], rows, True)
    for (name, value), expected in zip(weights(s.networks).items(), of_both, strict=True):
        torch.testing.assert_close(theta[name] - value, expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(metrics["augmented_gradient_share"], part / (part + rest), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(metrics["loss_original"], original.detach())
    torch.testing.assert_close(metrics["loss_augmented"], including.detach())


def test_logging_changes_nothing():
    quietly, logging = started(), started()
    steps(quietly, 3)
    steps(logging, 3, log=True)
    assert same(weights(quietly.networks), weights(logging.networks))
    assert same(weights(quietly.mag), weights(logging.mag))
    assert torch.equal(quietly.memory.entries, logging.memory.entries)


def test_inner_learning_rate_is_the_encoders_unless_given():
    norms = []
    for changes in ({}, {"inner_lr": 0.05}, {"inner_lr": 5.0}):
        s = started(lr=0.05, delta=0.5, **changes)
        norms.append(float(steps(s, 1)[0]["loss_ahead"]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert norms[0] != pytest.approx(norms[2], rel=1e-3)


def test_the_optimisers_look_ahead_is_where_the_next_step_leads():
    """theta' of the MAG step is theta after the step: the features there are the same."""
    for optimiser in ("adam", "sgd"):
        s = started(
            look_ahead_update="optimiser", optimiser=optimiser, lr=0.01, weight_decay=0.05, bank_writes="every-pass"
        )
        steps(s, 3)
        remembered: list[torch.Tensor] = []
        s.method.remember = lambda memory, networks, z, context, remembered=remembered: remembered.append(z)
        rows = batch(3)
        state_of_views = s.generators["views"].get_state()
        train_step(s, s.images.pixels[rows], rows, False)
        s.generators["views"].set_state(state_of_views)
        views = make_views(s.images.pixels[rows], s.config, s.generators["views"])
        with frozen_statistics(s.networks), torch.no_grad():
            after = s.networks(views)
        torch.testing.assert_close(remembered[1], after, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(remembered[0], after, atol=1e-3)


def test_scaled_is_the_literal_gradient_divided_by_delta():
    results = {}
    for objective in ("literal", "scaled"):
        s = started(delta=0.01, mag_objective=objective, mag_optimiser="sgd", mag_lr=0.1, momentum=0.0)
        before = weights(s.mag)
        (metrics,) = steps(s, 1, log=True)
        results[objective] = metrics, {n: p - before[n] for n, p in weights(s.mag).items()}
    for name, moved in results["literal"][1].items():
        torch.testing.assert_close(results["scaled"][1][name], 100 * moved, rtol=0.01, atol=1e-4)
    scaled, literal = (results[name][0]["mag_gradient_norm"] for name in ("scaled", "literal"))
    torch.testing.assert_close(scaled, 100 * literal)


@pytest.mark.parametrize("delta", [1e-7, 1e-5, 0.1])
def test_a_scaled_mag_trains_at_any_delta(delta):
    """Adam's step does not depend on the size of the gradient, so the MAG moves as far at every delta."""
    s = started(delta=delta, alpha=0.0, mag_objective="scaled", mag_lr=1e-2, look_ahead_update="optimiser")
    s.begin_pass()
    steps(s, 5)
    assert s.mag_update() > 0.1


def test_a_frozen_mag_stays_and_is_no_part_of_the_schedule():
    s = started(mag_lr=0.0, schedule="epoch", delta=1.0)
    before = weights(s.mag)
    logged = steps(s, 6, log=True)
    assert same(weights(s.mag), before)
    assert s.steps_per_epoch == 5
    assert all("loss_ahead" not in metrics and "loss_augmented" in metrics for metrics in logged)


def test_an_adversary_ascends_and_the_direct_part_leaves_out_the_mixed():
    gradients = {}
    for name, changes in {"descend": {}, "ascend": {"mag_direction": "ascend"}, "direct": {"mag_gradient": "direct"},
                          "none": {"inner_lr": 0.0}}.items():  # fmt: skip
        s = started(delta=0.5, alpha=0.0, mag_optimiser="sgd", momentum=0.0, mag_lr=1.0, **{"inner_lr": 0.5, **changes})
        before = weights(s.mag)
        steps(s, 1)
        gradients[name] = {n: before[n] - p for n, p in weights(s.mag).items()}
    size = max(float(g.abs().max()) for g in gradients["descend"].values())
    for name, g in gradients["descend"].items():
        torch.testing.assert_close(gradients["ascend"][name], -g, rtol=1e-3, atol=1e-4 * size)
    assert not all(torch.allclose(g, gradients["direct"][n], atol=0.01 * size) for n, g in gradients["descend"].items())


def test_the_loss_on_originals_alone_has_no_direct_part():
    """At l = 0 nothing of omega is left in L_ori(theta'), and only R_sigma moves the MAG."""
    s = started(look_ahead_loss="original", inner_lr=0.0, alpha=0.0, delta=0.5, mag_optimiser="sgd", mag_lr=1.0)
    before = weights(s.mag)
    steps(s, 2)
    assert same(weights(s.mag), before)


def test_the_loss_at_theta_ahead_can_be_of_the_minibatch_before():
    """The first minibatch is its own; then L' is of the one before, with its images' bank entries and its own views."""
    s = started(look_ahead_batch="previous", delta=0.5)
    outer_indices, outer_terms = [], s.method.outer_terms
    s.method.outer_terms = lambda z, context, augment: (
        outer_indices.append(context.indices) or outer_terms(z, context, augment)
    )
    steps(s, 3)
    assert [int(indices[0]) for indices in outer_indices] == [0, 0, 16]


# --- a run


RANGES = {
    "knn_val": (0, 1), "positive_similarity": (0, 1), "negative_similarity": (0, 1), "sigma_plus": (0, 1),
    "sigma_minus": (0, 1), "augmented_similarity": (0, 1), "augmented_gradient_share": (0, 1), "effective_rank": (1, 8.001),
    "alignment": (0, 4), "uniformity": (-8, 0), "mag_gradient_norm": (0, 1e3), "loss_original": (0, 1e3),
    "loss_augmented": (0, 1e3), "loss_ahead": (0, 1e3), "loss_before": (0, 1e3), "mixed_gradient_share": (0, 1),
    "mag_update": (1e-6, 1e3), "lr": (1e-9, 3e-3), "step": (0, 10), "epoch": (0, 2),
}  # fmt: skip


def test_metrics_are_what_a_reader_wants(tiny):
    reports: list[Progress] = []
    run = fit(tiny(), reports.append)
    metrics: Any = run.metrics
    assert set(metrics.columns) == set(RANGES)
    for name, (low, high) in RANGES.items():
        values = metrics[name].dropna()
        assert len(values) >= 2
        assert values.between(low, high).all(), (name, values.tolist())
    assert (metrics["sigma_plus"].dropna() <= metrics["sigma_minus"].dropna()).all()  # large
    logged = metrics[metrics["loss_original"].notna()]
    assert logged["step"].tolist() == [2, 4, 6, 8, 10]
    assert logged["epoch"].tolist() == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    monitored = metrics[metrics["knn_val"].notna()]
    assert monitored["step"].tolist() == [0, 5, 10]
    last = reports[-1]
    assert (last.step, last.steps, last.epoch, last.run.path) == (10, 10, 1, run.path)
    assert last.loss == pytest.approx(sum(logged.iloc[-1][["loss_original", "loss_augmented"]]), rel=1e-5)
    assert last.seconds_left == 0
    assert 16 < last.images_per_second < 1e6
    assert run.timing["step"].tolist() == [report.step for report in reports]
    assert run.finished
    assert repr(run).endswith("finished)")
    assert not metrics.columns.str.contains("second").any()  # wall times would differ from run to run


def test_a_mag_pass_reports_its_own_loss(tiny, monkeypatch):
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    reports: list[Progress] = []
    fit(tiny(schedule="epoch", epochs=1), reports.append)
    assert len(reports) == 10
    assert all(report.loss > 0.01 for report in reports)


def test_without_validation_images_nothing_is_monitored(tiny):
    assert "knn_val" not in fit(tiny(val_fraction=0, epochs=1), quiet).metrics


def test_monitor_every_other_epoch_and_the_last(tiny):
    metrics = fit(tiny(epochs=5, monitor_every=2, method="simclr", views=("RGB", "RGB")), quiet).metrics
    assert metrics[metrics["knn_val"].notna()]["epoch"].tolist() == [0, 2, 4, 5]


def test_seeds_differ_and_repeat(tiny):
    losses = [fit(tiny(seed=seed, epochs=1, log_every=1), quiet).metrics["loss_original"].dropna() for seed in (0, 1)]
    assert losses[0].tolist() != losses[1].tolist()
    one, other = started(seed=0), started(seed=1)
    assert not same(weights(one.networks), weights(other.networks))
    assert same(weights(one.networks), weights(started(seed=0).networks))


def test_bf16_is_close_to_float32(tiny):
    one: Any = fit(tiny(log_every=1), quiet).metrics
    other: Any = fit(tiny(log_every=1, precision="bf16"), quiet).metrics
    difference = (one["loss_original"] - other["loss_original"]).abs().dropna()
    assert len(difference) == 10
    assert 0 < difference.max() < 0.05
    assert all(t.dtype == torch.float32 for t in weights(started(precision="bf16").networks).values())


def test_supervised_learns(tiny):
    run = fit(tiny(method="supervised", epochs=15, width=0.2, lr=1e-2, crop_scale=(1, 1), flip=0), quiet)
    table = evaluate(run)
    assert table.loc["trained", "probe_fast"] > 0.8  # 4 classes
    assert run.metrics["loss_original"].iloc[-2] < 0.5
    assert {"loss_original", "knn_val", "lr", "step", "epoch"} == set(run.metrics.columns)


def test_a_contrastive_run_learns(tiny):
    run = fit(tiny(epochs=6, width=0.1, negatives="batch", delta=1e-3), quiet)
    loss = run.metrics["loss_original"].dropna().tolist()
    assert loss[-1] < loss[0]


def read_events(run: Run) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each TensorBoard scalar of a run, by its name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def read_logged(run: Run) -> dict[str, list[tuple[int, float]]]:
    """The same of metrics.jsonl; an event holds float32."""
    table: Any = run.metrics
    columns = {name: table[["step", name]].dropna() for name in table.columns.difference(["step", "epoch"])}
    return {n: [(int(s), float(np.float32(v))) for s, v in c.itertuples(index=False)] for n, c in columns.items()}


def stop_at(step: int) -> Any:
    """A report that raises at this step."""

    def report(progress: Progress) -> None:
        if progress.step >= step:
            raise Enough(f"step {progress.step}")

    return report


class Enough(Exception):
    pass


def test_tensorboard_events_are_those_of_the_metrics_also_after_a_kill(tiny, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    config = tiny(tensorboard=True, log_every=1)
    run = store.request(config)
    with pytest.raises(Enough):
        fit(config, stop_at(3))
    checkpoint = run.checkpoint.read_bytes()
    with pytest.raises(Enough):
        fit(config, stop_at(7))
    assert read_events(run) == read_logged(run)
    run.checkpoint.write_bytes(checkpoint)  # as if it had been killed at step 7, long after its last checkpoint
    fit(config, quiet)
    assert {"loss_original", "knn_val", "mag_gradient_norm"} <= set(read_events(run))
    assert read_events(run) == read_logged(run)
    assert [step for step, _ in read_events(run)["loss_original"]] == [*range(1, 11)]
    assert run.path == fit(tiny(tensorboard=False), quiet).path


def test_events_that_cannot_be_written_are_one_sentence(tiny):
    pytest.importorskip("tensorboard")
    config = tiny(tensorboard=True)
    run = store.request(config)
    run.path.mkdir(parents=True)
    (run.path / "tensorboard").write_text("a file")
    with pytest.raises(StoreError, match=f"^cannot write {run.path}/tensorboard"):
        fit(config, quiet)


# --- what watches a run, and what a run leaves behind


def closed_file() -> StringIO:
    file = StringIO()
    file.close()
    return file


@pytest.mark.parametrize("screen", [FullDisk, closed_file, lambda: None])
def test_a_bar_that_cannot_be_shown_ends_no_run(tiny, monkeypatch, screen):
    monkeypatch.setattr(sys, "stderr", screen())
    assert fit(tiny(method="cmc", epochs=1)).finished
    bar = RunsBar(2)
    bar(1, None)
    bar(2, None)


def test_what_a_report_raises_comes_through_when_all_runs_are_saved(tiny, monkeypatch):
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    configs = [tiny(method="cmc"), tiny(method="cmc", seed=1)]
    with pytest.raises(Enough, match="step 3"):
        fit_trials(configs, stop_at(3))
    runs = [store.request(config) for config in configs]
    assert [read_tensors(run.checkpoint)[1]["step"] for run in runs] == [3, 3]
    monkeypatch.undo()
    assert all(run.finished for run in fit_trials(configs, quiet))
    whole = fit(configs[0].replace(runs_dir=configs[0].runs_dir / "whole"), quiet)
    assert same(of(whole, ""), of(runs[0], ""))


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts descriptors as Linux lists them")
def test_a_run_leaves_no_thread_and_no_open_file(tiny, monkeypatch):
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    settings = {"method": "cmc", "epochs": 1, "storage": "stream", "workers": 2}
    settings |= {"tensorboard": importlib.util.find_spec("tensorboard") is not None}

    def work(seed: int) -> None:
        assert fit(tiny(**settings, seed=seed), quiet).finished
        for failing, report, error in (
            ({}, stop_at(2), Enough),
            ({"lr": 1e30, "optimiser": "sgd"}, quiet, MetaugError),
        ):
            with pytest.raises(error):
                fit(tiny(**settings, **failing, seed=10 + seed), report)

    def left() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    work(0)
    before = left()
    for seed in (1, 2):
        work(seed)
    assert left() == before


def test_simclr_has_two_random_crops_of_one_encoder():
    config = preset("quick", method="simclr")
    assert config.views == ("RGB", "RGB")
    assert config.independent
    assert config == Config(**{**config.model_dump()})
    assert Config(method="simclr").views == ("RGB", "RGB")
    assert Config(method="simclr", temperature=0.1).temperature == 0.1
    s: Any = state.create(config.replace(dataset="tiny", train_images=None, image_size=16, batch_size=16), *loaded())
    assert list(s.networks.encoders.nets) == ["RGB"]
    first, second = make_views(s.images.pixels[:4], s.config, s.generators["views"])
    assert first.shape == second.shape == (4, 3, 16, 16)
    assert not torch.equal(first, second)


def loaded():
    return datasets.load(Config(**TINY)), "cpu"


def test_devices():
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(MetaugError, match="^device 'cuda' is not available on this machine"):
            pick_device("cuda")


class WithDropout(nn.Sequential):
    def __init__(self, channels: int):
        super().__init__(nn.Flatten(), nn.Linear(channels * 256, 12), nn.ReLU(), nn.Dropout(0.3))


def test_what_an_encoder_draws_is_of_the_seed_too(tiny, monkeypatch, tmp_path):
    """Dropout draws from torch's global generator: repeated, resumed, and the caller's is left alone."""
    monkeypatch.setitem(ENCODERS, "dropout", lambda channels, config: WithDropout(channels))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run = fit(tiny(encoder="dropout"), quiet)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)

    def interrupt(progress):
        os.kill(os.getpid(), signal.SIGINT)

    config = tiny(encoder="dropout", runs_dir=tmp_path / "again")
    monkeypatch.setattr("metaug_core.training.loop.REPORT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        fit(config, interrupt)
    torch.rand(3)
    assert same(of(run, "networks."), of(fit(config, quiet), "networks."))


def test_a_handler_of_the_caller_is_given_back(tiny):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    fit(tiny(method="simclr", views=("RGB", "RGB"), epochs=1), quiet)
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_streamed_images_give_the_same_run(tiny, tmp_path):
    one, other = fit(tiny(), quiet), fit(tiny(storage="stream", workers=2, runs_dir=tmp_path / "streamed"), quiet)
    assert one.path.name == other.path.name
    assert one.path != other.path
    assert same(of(one, "networks."), of(other, "networks."))
    assert (one.path / "metrics.jsonl").read_bytes() == (other.path / "metrics.jsonl").read_bytes()


def test_the_last_epochs_are_kept(tiny):
    run = fit(tiny(epochs=4, keep_last=3, method="cmc"), quiet)
    assert [file.name for file in run.encoder_files()] == [f"epoch-{n:04d}.safetensors" for n in (2, 3, 4)]
    last, scalars = read_tensors(run.encoder_files()[-1])
    assert scalars == {"epoch": 4}
    assert same(last, of(run, "networks."))


def test_the_tiny_data_set_is_registered():
    assert "tiny" in DATASETS


# --- whose images


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"image_size": 24}, "image_size 16, but the run has 24"), ({"val_fraction": 0.2}, "val_fraction 0.1, but the run has 0.2"),
     ({"train_images": 50}, "train_images None, but the run has 50")],
)  # fmt: skip
def test_splits_of_another_config_are_refused(tiny, change, sentence):
    splits, config = datasets.load(tiny()), tiny(**change)
    with pytest.raises(ConfigError, match=f"splits were loaded with {sentence}: datasets.load"):
        fit(config, quiet, splits)
    run = fit(config, quiet, datasets.load(config))
    with pytest.raises(ConfigError, match=f"splits were loaded with {sentence}: datasets.load"):
        evaluate(run, splits=splits, measures=("knn",))


def test_splits_that_say_nothing_of_themselves_are_taken(tiny, tmp_path):
    loaded, config = datasets.load(tiny()), tiny(val_fraction=0.2)
    by_hand = datasets.Splits(loaded.pretrain, loaded.train, loaded.val, loaded.test)
    run = fit(config, quiet, by_hand)
    assert run.finished
    with pytest.raises(MetaugError, match=r"is of other data: it was trained on \(pretrain 90, .* are \(pretrain 80, "):
        evaluate(run, "val", measures=("knn",))  # 20 images, of which it was trained on some
    settings = tiny(storage="device", batch_size=8, runs_dir=tmp_path / "other")  # the same images
    assert fit(settings, quiet, loaded).finished


def test_splits_on_another_device_are_refused(tiny):
    splits = datasets.load(tiny(), "meta")
    with pytest.raises(ConfigError, match="splits are on meta, but the run is to train on cpu"):
        fit(tiny(), quiet, splits)


# --- of which data


@pytest.fixture
def stored(tiny, tmp_path, monkeypatch):
    """stored(folder) -> Config of a tiny run on image files, train/CLASS and val/CLASS, in folder/imagenet; three each."""

    def config(folder: str, classes: str = "", **changes: Any) -> Config:
        for name in classes:
            for number, part in enumerate(("train", "val") * 3):
                file = tmp_path / folder / "imagenet" / part / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                noise = torch.randint(
                    256, (16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number)
                )
                Image.fromarray(noise.numpy()).save(file)
        settings = {"method": "cmc", "negatives": "batch", "batch_size": 4, "epochs": 1, "val_fraction": 0, **changes}
        return tiny(dataset="imagenet", data_dir=tmp_path / folder, **settings)

    return config


def test_a_finished_run_is_of_its_data(stored, tmp_path):
    run = fit(stored("a", "cd"), quiet)
    measured = {"measures": ("knn",), "representations": ("trained",)}
    table = evaluate(run, **measured)
    other = stored("b", "cde")
    assert other.name() == run.path.name
    before = r"\(pretrain 6, train 6, val 0, test 6, classes 2, source 12 files, digest [0-9a-f]{12}\)"
    words = f"{run.path.name} is of other data: it was trained on {before}, and .* imagenet now are .*source 18 files, digest "
    for refused in (
        lambda: fit(other, quiet),
        lambda: fit(run.config, quiet, datasets.load(other)),
        lambda: evaluate(request(other), **measured),  # stored
        lambda: evaluate(request(other), measures=("probe_fast",)),
        lambda: evaluate(run, splits=replace(datasets.load(other), of=None), **measured),
    ):
        with pytest.raises(MetaugError, match=words):
            refused()
    shutil.move(tmp_path / "a", tmp_path / "c")
    for data_dir in ("a", "c"):  # gone, and moved
        assert fit(stored(data_dir), quiet).finished
        assert evaluate(request(stored(data_dir)), **measured).equals(table)
    (run.path / "data.json").unlink()  # a run from before the record fits all
    assert fit(other, quiet).finished


def test_a_run_goes_on_with_its_data_alone(stored, tmp_path):
    run = fit(stored("a", "cd"), quiet)
    (run.path / "finished.json").unlink()
    with pytest.raises(MetaugError, match="is of other data"):
        fit(stored("b", "cde"), quiet)
    assert not run.finished
    assert fit(stored("a"), quiet).finished


def test_arrays_of_a_file_that_is_written_anew_are_other_data(tiny, tmp_path, monkeypatch):
    np.savez(tmp_path / "mine.npz", *patterns(100, 0), *patterns(60, 1))
    monkeypatch.setitem(DATASETS, "mine", lambda config: tuple(np.load(tmp_path / "mine.npz").values()))
    run = fit(tiny(dataset="mine", epochs=1), quiet)
    assert evaluate(run, measures=("knn",)).shape[0] == 3
    np.savez(tmp_path / "mine.npz", *patterns(100, 2), *patterns(60, 1))
    with pytest.raises(MetaugError, match="is of other data: .* images digest "):
        evaluate(run, measures=("probe_fast",))


def test_a_run_of_a_presets_number_of_images_is_none_of_that_number(tiny):
    few = tiny(train_images=500, fewer_images=True, epochs=1)
    run = fit(few, quiet)
    assert fit(few, quiet).finished
    with pytest.raises(MetaugError, match=f"train_images 500 is more than the 100 images of run {run.path.name}"):
        fit(few.replace(train_images=500), quiet)


@pytest.mark.slow
def test_a_default_run_moves_the_mag(tmp_path):
    """The whole default moves it by 13 % of its weights' norm (LOG); a third of it, with a smaller MAG, by more than 5 %."""
    small = {"train_images": 1500, "mag_hidden": 64, "width": 0.125, "device": "cpu", "runs_dir": tmp_path}
    literal = {"mag_objective": "literal", "look_ahead_update": "sgd", "delta": 1e-5, "alpha": 1e-13}
    moved, papers = (mag_moved(fit(preset("quick", **small, **changes), quiet)) for changes in ({}, literal))
    assert moved > 0.05
    assert papers < moved / 2
    assert mag_moved(fit(preset("quick", method="cmc", **{**small, "train_images": 200}), quiet)) is None
