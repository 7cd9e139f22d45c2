"""Probes and kNN against literal versions; evaluation of runs, stored and over seeds."""

import json
import math
import shutil
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metaug_core import ENCODERS, MetaugError, evaluate, fit, open_run
from metaug_core.data import datasets
from metaug_core.evaluation import representations
from metaug_core.evaluation.probes import (
    CMC,
    MEASURES,
    PLAIN_PROBES,
    Labelled,
    Probe,
    linear_probe,
    predict,
    predict_knn,
    predict_late_epochs,
    predict_linear,
    probe_linear,
    rank,
)
from metaug_core.evaluation.representations import (
    estimate_bn_stats,
    estimate_mag_bn_stats,
    evaluating,
    features,
    interval,
    load_networks,
    over_seeds,
)
from metaug_core.runs import predictions
from metaug_core.runs.files import read_tensors, write_tensors
from metaug_core.runs.predictions import accuracy, find_correct, share_correct
from metaug_core.training import diagnostics, state
from metaug_core.views.augmentation import plain, split


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(count, seed=0, kinds=3):
    return torch.randint(kinds, (count,), generator=torch.Generator().manual_seed(seed))


# --- kNN


def knn_literal(train, labels, test, kinds):
    winners = []
    for x in test:
        cosine = [float(x @ t / (x.norm() * t.norm())) for t in train]
        nearest = sorted(range(len(train)), key=lambda i: -cosine[i])[:20]
        votes = [sum(math.exp(cosine[i] / 0.07) for i in nearest if labels[i] == kind) for kind in range(kinds)]
        winners.append(votes.index(max(votes)))
    return winners


@pytest.mark.parametrize("count", [60, 7])  # more than 20 neighbours, and fewer
def test_knn_by_hand(count):
    train, test, labels = normal(count, 5), normal(40, 5, seed=1), classes(count)
    predicted = torch.tensor(knn_literal(train, labels, test, 3))
    truth = classes(40, seed=3)
    ranked = predict_knn(train, labels, test, 3)
    assert torch.equal(ranked[0, :, 0], predicted.int())
    assert accuracy(ranked, truth) == pytest.approx(int((predicted == truth).sum()) / 40)


def test_knn_weighs_near_neighbours_more():
    train = torch.tensor([[1.0, 0.0], *[[0.6, 0.8]] * 3])
    labels = torch.tensor([1, 0, 0, 0])
    assert predict_knn(train, labels, torch.tensor([[3.0, 0.0]]), 2).tolist() == [[[1, 0]]]


def test_knn_of_more_rows_than_fit_at_once():
    train, labels = normal(90, 4), classes(90)
    test = normal(1100, 4, seed=2)
    parts = [predict_knn(train, labels, test[n : n + 100], 3) for n in range(0, 1100, 100)]
    assert torch.equal(predict_knn(train, labels, test, 3), torch.cat(parts, 1))


def test_knn_over_k_and_its_top_5_by_hand():
    """In float64, one neighbour after the other; a class without a vote is none of the five, however few are left."""
    train, test, labels = normal(60, 4), normal(50, 4, seed=1), classes(60, kinds=8)
    truth, counts = classes(50, seed=3, kinds=8), (1, 3, 20, 60)
    ranked = predict_knn(train, labels, test, 8, counts)
    assert ranked.shape == (4, 50, 5)
    for k, of_k in zip(counts, ranked, strict=True):
        right = {1: 0, 5: 0}
        for x, y, predicted in zip(test.double(), truth.tolist(), of_k.tolist(), strict=True):
            cosine = [float(x @ t / (x.norm() * t.norm())) for t in train.double()]
            votes = dict.fromkeys(range(8), 0.0)
            for i in sorted(range(60), key=lambda i: -cosine[i])[:k]:
                votes[int(labels[i])] += math.exp(cosine[i] / 0.07)
            voted = sorted((kind for kind in votes if votes[kind]), key=lambda kind: -votes[kind])[:5]
            assert predicted == voted + [-1] * (5 - len(voted))
            right[1] += y in voted[:1]
            right[5] += y in voted
        assert accuracy(of_k[None], truth) == right[1] / 50
        assert accuracy(of_k[None], truth, top=5) == right[5] / 50
    assert accuracy(ranked[:1], truth) == accuracy(ranked[:1], truth, top=5)  # one neighbour has one vote
    assert torch.equal(ranked[2:3], predict_knn(train, labels, test, 8))


def test_top_5_by_hand():
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.8, 0.2, 0.7, 0.0], [2.0, 2.0, 1.0, 0.0, -1.0, -2.0, -3.0]])
    assert rank(scores).tolist() == [[1, 3, 5, 2, 4], [0, 1, 2, 3, 4]]  # of equal ones the first, as argmax has it
    labels = torch.tensor([4, 5])
    assert find_correct(rank(scores), labels, 5).tolist() == [True, False]
    twice = torch.stack([rank(scores), rank(-scores)])  # two classifiers, of which the second puts the last first
    assert share_correct(twice, labels, 5).tolist() == [1, 0.5]
    assert accuracy(twice, torch.tensor([6, 0])) == 0.5
    assert rank(scores[:, :3]).shape == (2, 3)


# --- linear probe


@pytest.mark.parametrize("milestones", [(), (2, 4)])
def test_linear_probe_is_sgd_with_momentum(milestones):
    """Step by step torch.autograd and torch.optim.SGD, batches and rates included."""
    x, y = normal(600, 6).double(), classes(600)
    probe = Probe((0.3,), 5, milestones, standardise=False)
    weight, bias = linear_probe(x, y, 3, probe, seed=7)
    layer = nn.Linear(6, 3).double()
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.3, momentum=0.9)
    generator = torch.Generator().manual_seed(7)
    for epoch in range(5):
        order = torch.randperm(600, generator=generator)
        batches = [order[:256], order[256:512], order[512:]]
        for number, rows in enumerate(batches):
            done = epoch + number / 3
            factor = 0.2 ** sum(done >= m for m in milestones) if milestones else (1 + math.cos(math.pi * done / 5)) / 2
            optimiser.param_groups[0]["lr"] = 0.3 * factor
            optimiser.zero_grad()
            F.cross_entropy(layer(x[rows]), y[rows]).backward()
            optimiser.step()
    torch.testing.assert_close(weight[0], layer.weight.T.detach(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(bias[0, 0], layer.bias.detach(), rtol=1e-5, atol=1e-7)
    assert torch.equal(predict_linear(x, weight, bias)[0], layer(x).argsort(1, descending=True).int())


def test_learning_rates_side_by_side_are_each_alone():
    x, y, rates = normal(300, 6).double(), classes(300), (0.001, 0.1, 1.0)
    weight, bias = linear_probe(x, y, 3, Probe(rates, 4, (), standardise=False))
    for number, rate in enumerate(rates):
        alone = linear_probe(x, y, 3, Probe((rate,), 4, (), standardise=False))
        torch.testing.assert_close(weight[number], alone[0][0])
        torch.testing.assert_close(bias[number], alone[1][0])
    assert not torch.allclose(weight[0], weight[1])


def test_the_probe_of_the_cmc_line_on_new_features_in_every_epoch():
    """Its accuracy is the mean over epochs 41 to 60 of a torch.nn.Linear trained by torch.optim.SGD on the same batches."""
    draws = [normal(300, 6, seed=seed).double() for seed in range(4)]
    y = classes(300)
    test = Labelled(normal(2000, 6, seed=9).double(), classes(2000, seed=8))
    layer = nn.Linear(6, 3).double()
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [30, 40, 50], 0.2)
    generator, accuracies = torch.Generator().manual_seed(0), []
    for epoch in range(60):
        order = torch.randperm(300, generator=generator)
        for rows in (order[:256], order[256:]):
            optimiser.zero_grad()
            F.cross_entropy(layer(draws[epoch % 4][rows]), y[rows]).backward()
            optimiser.step()
        schedule.step()
        accuracies.append(float((layer(test.x).argmax(1) == test.y).double().mean()))
    late = sum(accuracies[40:]) / 20
    ranked = predict_late_epochs(CMC, lambda epoch: draws[epoch % 4], y, test.x, 3)
    assert ranked.shape == (20, 2000, 3)
    assert accuracy(ranked, test.y) == pytest.approx(late, abs=1e-7)
    assert len({late, accuracies[-1], sum(accuracies) / 60}) == 3  # the last epoch, or the mean over all, would be seen
    measured = predict(Labelled(draws[0], y), test.x, None, 3, ("probe_paper",), lambda epoch: draws[epoch % 4])
    assert measured.keys() == {"probe_paper"}
    assert torch.equal(measured["probe_paper"], ranked)


def test_the_rates_of_the_cmc_line():
    probe = PLAIN_PROBES["probe_plain"]
    assert probe is CMC
    assert [probe.rate(epoch / 60) for epoch in (0, 29.99, 30, 39.9, 40, 49.9, 50, 59)] == pytest.approx(
        [1, 1, 0.2, 0.2, 0.04, 0.04, 0.008, 0.008]
    )
    assert [PLAIN_PROBES["probe_fast"].rate(p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0], abs=1e-6)


def separable(count, seed, shift=0.0, scale=1.0):
    y = classes(count, seed)
    x = normal(count, 4, seed=seed) * 0.3
    x[torch.arange(count), y] += 2
    return Labelled(x * scale + shift, y)


def test_standardisation_uses_training_statistics_only(monkeypatch):
    inputs = []
    monkeypatch.setattr(
        "metaug_core.evaluation.probes.linear_probe", lambda x, *rest: inputs.append(x) or linear_probe(x, *rest)
    )
    train, test, val = separable(300, 0, 5, 3), separable(100, 1, 900, 3), separable(100, 2, 5, 3)
    probe = Probe((0.01, 0.1), 3, (), standardise=True)
    probe_linear(probe, train, test.x, val, 3)
    torch.testing.assert_close(inputs[0], (train.x - train.x.mean(0)) / train.x.std(0))
    one = accuracy(probe_linear(probe, train, separable(100, 1, 5, 3).x, val, 3), test.y)
    assert one > 0.95
    assert (
        accuracy(probe_linear(probe, train, test.x, val, 3), test.y) < one
    )  # the test split's own mean is not taken away
    constant = Labelled(torch.cat([train.x, torch.ones(300, 1)], 1), train.y)
    wider = Labelled(torch.cat([val.x, torch.ones(100, 1)], 1), val.y)
    assert (
        accuracy(probe_linear(probe, constant, wider.x, wider, 3), val.y) > 0.95
    )  # a constant feature is no division by 0


def test_the_learning_rate_is_chosen_on_val_not_on_test():
    """The labels of val decide which classifier is reported, though test says the other is better."""
    train, test, val = separable(400, 0), separable(200, 1), separable(200, 2)
    test = Labelled(test.x, torch.where(torch.arange(200) < 20, (test.y + 1) % 3, test.y))
    probe = Probe((3.0, 0.1), 5, (), standardise=False)
    weight, bias = linear_probe(train.x, train.y, 3, probe)
    weight[1].neg_()  # the second is always wrong
    bias[1].neg_()
    of_test = [accuracy(ranked[None], test.y) for ranked in predict_linear(test.x, weight, bias)]
    assert of_test[0] > of_test[1] + 0.3
    for number in range(2):
        labels = (val.x @ weight[number] + bias[number]).argmax(1)  # what this classifier says is right
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("metaug_core.evaluation.probes.linear_probe", lambda *_: (weight, bias))
            choice = probe_linear(probe, train, test.x, Labelled(val.x, labels), 3)
        assert accuracy(choice, test.y) == pytest.approx(of_test[number])


def test_without_val_every_tenth_training_image_is_held_out(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        "metaug_core.evaluation.probes.linear_probe", lambda x, *rest: sizes.append(len(x)) or linear_probe(x, *rest)
    )
    test = separable(100, 1)
    predicted = predict(separable(300, 0), test.x, None, 3)
    assert sizes == [300, 270]  # probe_plain has nothing to choose
    assert predicted.keys() == {"probe_plain", "probe_fast", "knn"}
    assert min(accuracy(ranked, test.y) for ranked in predicted.values()) > 0.95


# --- over seeds


def test_interval_by_hand():
    mean, half = interval([0.7, 0.8, 0.75])
    assert mean == pytest.approx(0.75)
    assert half == pytest.approx(4.302653 * 0.05 / math.sqrt(3), rel=1e-6)  # t quantile 0.975 at 2 degrees of freedom
    mean, half = interval([0.2, 0.4, 0.4, 0.6, 0.9])
    assert mean == pytest.approx(0.5)
    assert half == pytest.approx(2.776445 * math.sqrt(0.28 / 4 / 5), rel=1e-6)
    mean, half = interval([0.6])
    assert mean == pytest.approx(0.6)
    assert math.isnan(half)


def test_over_seeds():
    tables = [
        pd.DataFrame(
            {
                "representation": ["untrained", "trained"],
                "probe_plain": [0.1, p],
                "probe_fast": [0.2, p],
                "knn": [0.3, p],
            }
        ).set_index("representation")
        for p in (0.5, 0.6, 0.7)
    ]
    long = over_seeds(tables)
    assert len(long) == 6
    assert set(long["n"]) == {3}
    row = long[(long["representation"] == "trained") & (long["measure"] == "knn")].iloc[0]
    assert row["mean"] == pytest.approx(0.6)
    assert row["half_width"] == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)


# --- runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from tiny import TINY

    from metaug_core import Config

    config = Config(**{**TINY, "epochs": 3, "keep_last": 2, "runs_dir": tmp_path_factory.mktemp("runs")})
    return fit(config, lambda progress: None)


def test_evaluation_is_stored_and_found(run, monkeypatch):
    table = evaluate(run)
    file = run.path / "evaluation-test.json"
    before = (file.read_bytes(), file.stat().st_mtime_ns)
    assert table.loc["trained", "epochs"] == 2
    assert table.loc["untrained", "epochs"] == 1
    assert set(table["n_train"]) == {90}
    assert set(table["n_eval"]) == {60}
    assert table.loc["raw pixels", "probe_fast"] > 0.5
    with monkeypatch.context() as patched:
        patched.setattr(datasets, "load", lambda *_: pytest.fail("it measures again"))
        pd.testing.assert_frame_equal(evaluate(run), table)
    assert before == (file.read_bytes(), file.stat().st_mtime_ns)
    more = evaluate(run, augmented=True)
    assert more.index.tolist() == ["raw pixels", "untrained", "trained", "trained, z and z~"]
    pd.testing.assert_frame_equal(more.iloc[:3], table)
    assert len(json.loads(file.read_text())) == 4
    pd.testing.assert_frame_equal(evaluate(run), table)  # without the row that was not asked for
    assert evaluate(run, split="val").loc["trained", "n_eval"] == 10


def test_the_trained_row_is_the_mean_over_the_kept_epochs(run):
    splits: Any = datasets.load(run.config)
    accuracies = []
    for file in run.encoder_files():
        networks, _ = load_networks(run.config, 4, file)
        train, test, val = (
            Labelled(features(networks, s, run.config), s.labels) for s in (splits.train, splits.test, splits.val)
        )
        accuracies.append({one: accuracy(ranked, test.y) for one, ranked in predict(train, test.x, val, 4).items()})
    for name in ("probe_plain", "probe_fast", "knn"):
        mean = sum(by_measure[name] for by_measure in accuracies) / 2
        assert evaluate(run).loc["trained", name] == pytest.approx(mean)


def test_the_row_of_probe_paper_says_how_many_draws(run):
    """Also where other measures are added later; it is measured only where it is asked for."""
    table = evaluate(run, "val", measures=("probe_paper",), representations=("untrained", "trained"))
    assert table["draws"].tolist() == [10, 10]
    assert "draws" not in evaluate(run, "val", representations=("untrained",))
    both = evaluate(run, "val", measures=MEASURES, representations=("untrained",))
    assert both.loc["untrained", "draws"] == 10
    assert both.loc["untrained", "probe_paper"] == table.loc["untrained", "probe_paper"]
    assert both.loc["untrained", ["probe_plain", "knn"]].notna().all()


def test_probe_paper_of_a_run_is_trained_on_its_crops_and_averaged_over_encoders(run):
    """Written out from the draws of features; z beside z~ alike."""
    splits: Any = datasets.load(run.config)
    means = {"trained": 0.0, "trained, z and z~": 0.0}
    for file in run.encoder_files():
        networks, mag = load_networks(run.config, 4, file)
        assert mag is not None
        estimate_mag_bn_stats(networks, mag, splits.train, run.config)

        def h(images, draw=None, networks=networks):
            return features(networks, images, run.config, draw)

        def both(images, draw=None, networks=networks, mag=mag):
            return torch.cat([*representations.embeddings(networks, images, run.config, mag, draw)], 1)

        for name, represent in zip(means, (h, both), strict=True):
            draws = [represent(splits.train, number) for number in range(10)]
            ranked = predict_late_epochs(
                CMC, lambda epoch, draws=draws: draws[epoch % 10], splits.train.labels, represent(splits.test), 4
            )
            means[name] += accuracy(ranked, splits.test.labels) / 2
    table = evaluate(run, augmented=True, measures=("probe_paper",), representations=("trained",))
    assert table["probe_paper"].to_dict() == pytest.approx(means)


def test_what_cannot_be_evaluated_is_said_before_anything_is_computed(run, tiny, monkeypatch):
    from metaug_core.runs.store import request

    monkeypatch.setattr(datasets, "load", lambda *_: pytest.fail("it loads the data"))
    with pytest.raises(MetaugError, match="^split must be test, or val with val_fraction > 0, got 'train'$"):
        evaluate(run, split="train")
    with pytest.raises(
        MetaugError, match=r"^run tiny-metaug-\S+ is not finished: finish it with `metaug resume tiny-\S+`$"
    ):
        evaluate(request(tiny()))
    monkeypatch.undo()
    other = fit(tiny(method="cmc", epochs=1, val_fraction=0), lambda progress: None)
    monkeypatch.setattr(datasets, "load", lambda *_: pytest.fail("it loads the data"))
    with pytest.raises(MetaugError, match="^method 'cmc' has no MAG, so there are no augmented features to evaluate$"):
        evaluate(other, augmented=True)
    with pytest.raises(MetaugError, match="val_fraction > 0, got 'val'$"):
        evaluate(other, split="val")
    assert not list(other.path.glob("evaluation-*"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_an_encoder_that_is_not_finite_gets_no_accuracies(run, tmp_path, value):
    shutil.copytree(run.path, tmp_path / run.path.name)
    copied = open_run(tmp_path / run.path.name, tmp_path)
    copied.evaluation_file().unlink(missing_ok=True)
    file = copied.encoder_files()[-1]
    tensors, scalars = read_tensors(file)
    name = next(name for name in tensors if name.startswith("networks.encoders."))
    tensors[name] = torch.full_like(tensors[name], value)
    write_tensors(file, tensors, scalars)
    words = (
        "the features of [0-9]+ of [0-9]+ images are NaN, infinite or too large"
        if value == 1e30
        else f"{name} is not finite"
    )
    with pytest.raises(MetaugError, match=words):
        evaluate(copied, measures=("knn",))
    assert not copied.evaluation_file().exists()


def test_an_unfinished_run_with_kept_encoders_is_not_evaluated(run, tmp_path):
    """Its mean would be over too few epochs, and would be found again when it is finished."""
    shutil.copytree(run.path, tmp_path / run.path.name)
    copied = open_run(tmp_path / run.path.name, tmp_path)
    (copied.path / "finished.json").unlink()
    for file in copied.path.glob("evaluation-*"):
        file.unlink()
    with pytest.raises(MetaugError, match="is not finished"):
        evaluate(copied)


def test_without_a_device_the_runs_own_is_used(run, tmp_path, monkeypatch):
    """Also where the run's is not there: then it is said, and what was not asked for is not computed."""
    import shutil

    from metaug_core.runs.store import Run

    shutil.copytree(run.path, tmp_path / run.path.name, ignore=shutil.ignore_patterns("evaluation-*"))
    of_gpu = Run(tmp_path / run.path.name, run.config.replace(device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MetaugError, match="^device 'cuda' is not available on this machine"):
        evaluate(of_gpu, measures=("knn",))
    of_images = evaluate(of_gpu, measures=("knn",), splits=datasets.load(run.config))
    pd.testing.assert_frame_equal(of_images, evaluate(of_gpu, measures=("knn",), device="cpu"))


class Recording(nn.Module):
    """Networks with one BatchNorm of each kind that count the images they see."""

    def __init__(self):
        super().__init__()
        self.norm, self.flat, self.sizes = nn.BatchNorm2d(1, momentum=0.3), nn.BatchNorm1d(4), []

    def encoders(self, views, names):
        self.sizes.append(len(views[0]))
        return [self.flat(self.norm(views[0]).flatten(1)[:, :4])]


@pytest.mark.parametrize("count", [513, 700])
def test_settled_statistics_are_those_of_the_images(tiny, count):
    """Every image weighs the same, a last image alone is no batch, and labels play no part."""
    pixels = torch.randint(256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = datasets.Images(pixels, torch.zeros(count, dtype=torch.int64), ("a",))
    networks: Any = Recording()
    config = tiny(views=("L",), method="supervised")
    networks.norm.running_mean += 100
    estimate_bn_stats(networks, images, config)
    assert sum(networks.sizes) == count
    assert max(networks.sizes) - min(networks.sizes) <= 1
    assert (networks.norm.momentum, networks.flat.momentum) == (0.3, 0.1)
    lightness = split(plain(pixels, 16), ["L"])[0]
    torch.testing.assert_close(networks.norm.running_mean, lightness.mean()[None], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(networks.norm.running_var, lightness.var()[None], rtol=1e-2, atol=1e-3)
    twin: Any = Recording()
    estimate_bn_stats(twin, datasets.Images(pixels, torch.randint(9, (count,)), ("a",)), config)
    assert torch.equal(twin.norm.running_mean, networks.norm.running_mean)


def test_features_are_of_evaluation_mode_and_leave_no_trace(run):
    splits = datasets.load(run.config)
    networks, _ = load_networks(run.config, 4, run.encoder_files()[-1])
    before = {name: t.clone() for name, t in networks.state_dict().items()}
    networks.train()
    h = features(networks, splits.test, run.config)
    assert networks.training
    assert all(torch.equal(t, before[name]) for name, t in networks.state_dict().items())
    reversed_rows = splits.test.take(torch.arange(59, -1, -1))
    torch.testing.assert_close(features(networks, reversed_rows, run.config).flip(0), h)  # no image depends on another
    with evaluating(networks, None):
        assert not networks.training


def test_embeddings_are_the_unit_features_of_z_then_of_the_mag(run):
    splits = datasets.load(run.config)
    networks, mag = load_networks(run.config, 4, run.encoder_files()[-1])
    z = representations.embeddings(networks, splits.test, run.config)
    both = representations.embeddings(networks, splits.test, run.config, mag)
    assert z.shape == (2, 60, 8)
    assert both.shape == (4, 60, 8)
    assert torch.equal(both[:2], z)
    torch.testing.assert_close(both.norm(dim=-1), torch.ones(4, 60))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["epoch", "alternate"])
def test_z_tilde_at_evaluation_is_the_function_that_was_trained(tiny, monkeypatch, schedule):
    """What `evaluate` measures: beside it the MAG with the statistics of the minibatch, on the same z of evaluation mode."""
    run = fit(tiny(schedule=schedule, epochs=8, mag_lr=0.01), lambda progress: None)
    splits, measured = datasets.load(run.config), []
    monkeypatch.setattr(
        representations,
        "predict",
        lambda train, test, *rest: measured.append(train.x) or {"knn": torch.zeros(1, len(test), 1)},
    )
    evaluate(run, augmented=True, splits=splits, measures=("knn",), representations=())
    z, augmented = measured[0].unflatten(1, (2, 2, 8)).permute(1, 2, 0, 3)  # z or z~, view, image
    _, mag = load_networks(run.config, 4, run.encoder_files()[-1])
    assert mag is not None
    with torch.no_grad():
        trained = mag.train()(z)
    assert F.cosine_similarity(augmented, trained, dim=-1).mean() > 0.999


def test_estimate_mag_bn_stats_leaves_weights_and_encoders_alone(run):
    splits = datasets.load(run.config)
    networks, mag = load_networks(run.config, 4, run.encoder_files()[-1])
    assert mag is not None
    before = {name: t.clone() for module in (networks, mag) for name, t in module.state_dict().items()}
    estimate_mag_bn_stats(networks, mag, splits.train, run.config)
    after = {name: t for module in (networks, mag) for name, t in module.state_dict().items()}
    changed = {name for name, t in after.items() if not torch.equal(t, before[name])}
    kinds = ("running_mean", "running_var", "num_batches_tracked")
    assert changed <= {f"{norm}_norm.{kind}" for norm in ("first", "second") for kind in kinds}
    assert {"first_norm.running_mean", "second_norm.running_var"} <= changed
    assert networks.training
    assert mag.training


class Noisy(nn.Sequential):
    """An encoder with BatchNorm that draws random numbers in training mode."""

    def __init__(self, channels: int):
        super().__init__(nn.Flatten(), nn.Linear(channels * 256, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3))


def test_the_first_knn_reading_is_of_settled_statistics_and_changes_nothing(tiny, monkeypatch):
    monkeypatch.setitem(ENCODERS, "noisy", lambda channels, config: Noisy(channels))
    config = tiny(encoder="noisy")
    splits: Any = datasets.load(config)
    s = state.create(config, splits, "cpu")
    before = {name: t.clone() for name, t in s.networks.state_dict().items()}
    drawn = s.random.clone()
    with state.own_random_numbers(s):
        monitored = diagnostics.knn_monitor(s, splits)
    assert s.networks.training
    assert all(torch.equal(t, before[name]) for name, t in s.networks.state_dict().items())
    assert torch.equal(s.random, drawn)
    estimate_bn_stats(s.networks, splits.train, config)
    train, val = (features(s.networks, images, config) for images in (splits.train, splits.val))
    assert monitored == accuracy(predict_knn(train, splits.train.labels, val, 4), splits.val.labels)


@pytest.mark.slow
def test_the_first_knn_reading_of_a_run_is_the_untrained_floor(tiny):
    """Over several seeds: with unset statistics some of so few validation images fall to another class."""
    readings, floors = [], []
    for seed in range(8):
        run = fit(tiny(method="cmc", epochs=1, seed=seed, val_fraction=0.4), lambda progress: None)
        readings.append(run.metrics["knn_val"].dropna().iloc[0])
        floors.append(evaluate(run, "val", measures=("knn",), representations=("untrained",)).loc["untrained", "knn"])
    assert readings == floors


def test_predictions_are_stored_beside_the_accuracies(run):
    table = evaluate(run, measures=("probe_plain",), representations=("untrained", "trained"))
    first = run.predictions().by_measure["probe_plain"]
    evaluate(run, measures=("knn",), representations=("trained",))
    stored = run.predictions()
    assert torch.equal(stored.by_measure["probe_plain"], first)
    assert first.shape == (2, 60, 4)  # two encoders are kept
    assert torch.equal(stored.labels, datasets.load(run.config).test.labels.int())
    assert stored.classes == ("0", "1", "2", "3")
    for name, shares in run.correct().items():
        assert set(shares.tolist()) <= {0.0, 0.5, 1.0} or name == "probe_paper"
        assert float(shares.double().mean()) == pytest.approx(run.evaluation()["trained"][name], abs=1e-3)
    assert table.loc["trained", "probe_plain"] != table.loc["untrained", "probe_plain"]
    assert "probe_plain_top5" not in table  # of four classes one of five is always right


@pytest.fixture(scope="module")
def of_seven(tmp_path_factory):
    """A run whose data set has seven classes, the class in the brightness."""
    from tiny import TINY

    from metaug_core import DATASETS, Config

    def draw(count, seed):
        random = np.random.RandomState(seed)
        labels = np.arange(count) % 7
        return (random.randint(0, 60, (count, 3, 16, 16)) + 25 * labels[:, None, None, None]).astype(np.uint8), labels

    DATASETS["seven"] = lambda config: (*draw(140, 0), *draw(70, 1), [f"class {number}" for number in range(7)])
    runs_dir = tmp_path_factory.mktemp("runs")
    return fit(Config(**{**TINY, "dataset": "seven", "epochs": 1, "runs_dir": runs_dir}), lambda progress: None)


def test_top_5_of_a_run_is_what_its_predictions_say(of_seven):
    table = evaluate(of_seven, representations=("untrained", "trained"))
    stored = of_seven.predictions()
    for name, ranked in stored.by_measure.items():
        right = [label in classes for label, classes in zip(stored.labels.tolist(), ranked[0].tolist(), strict=True)]
        assert table.loc["trained", f"{name}_top5"] == sum(right) / 70
        assert table.loc["trained", name] <= table.loc["trained", f"{name}_top5"]
    assert table.loc["untrained", "probe_fast_top5"] >= table.loc["untrained", "probe_fast"]


def test_an_evaluation_of_before_predictions_is_read_and_completed_where_that_is_wanted(
    of_seven, tmp_path, monkeypatch
):
    evaluate(of_seven)
    shutil.copytree(of_seven.path, tmp_path / of_seven.path.name)
    old = open_run(tmp_path / of_seven.path.name, tmp_path)
    rows = {name: {k: v for k, v in row.items() if "top5" not in k} for name, row in old.evaluation().items()}
    old.evaluation_file().write_text(json.dumps(rows))
    right = old.correct()
    write_tensors(old.path / "correct-test.safetensors", right, {})
    old.predictions_file().unlink()
    with monkeypatch.context() as patched:
        patched.setattr(datasets, "load", lambda *_: pytest.fail("it measures again"))
        table = evaluate(old)
        assert not old.predictions().by_measure
        assert {name: one.tolist() for name, one in old.correct().items()} == {n: r.tolist() for n, r in right.items()}
    assert "knn_top5" not in table
    completed = evaluate(old, predictions=True)
    pd.testing.assert_frame_equal(completed[table.columns], table)
    assert completed.loc["trained"].equals(evaluate(of_seven).loc["trained"])
    assert completed["knn_top5"].isna().tolist() == [True, True, False]  # the others have no predictions to complete
    assert old.predictions().by_measure.keys() == of_seven.predictions().by_measure.keys()


def test_predictions_of_another_version_or_damaged(of_seven, tmp_path, monkeypatch):
    evaluate(of_seven, measures=("knn",))
    shutil.copytree(of_seven.path, tmp_path / of_seven.path.name)
    copied = open_run(tmp_path / of_seven.path.name, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(predictions, "EVALUATION_VERSION", 99)
        assert not copied.predictions().by_measure
    content = copied.predictions_file().read_bytes()
    copied.predictions_file().write_bytes(content[:-4] + b"torn")
    with pytest.raises(MetaugError, match="damaged .*; remove it, and the run is evaluated again$"):
        evaluate(copied, predictions=True)
    write_tensors(copied.predictions_file(), {"labels": torch.zeros(70, dtype=torch.int32)}, {"classes": []})
    with pytest.raises(MetaugError, match="more classes than it names; remove it"):
        copied.predictions()
    copied.predictions_file().unlink()
    assert evaluate(copied, predictions=True).loc["trained", "knn"] == of_seven.evaluation()["trained"]["knn"]


def test_what_is_killed_before_it_is_written_is_measured_again(of_seven, tmp_path):
    """Predictions are there and accuracies are not: the next call gives both, the same."""
    whole = evaluate(of_seven)
    shutil.copytree(of_seven.path, tmp_path / of_seven.path.name)
    copied = open_run(tmp_path / of_seven.path.name, tmp_path)
    copied.evaluation_file().unlink()
    pd.testing.assert_frame_equal(evaluate(copied), whole)
    before, after = (one.predictions().by_measure for one in (of_seven, copied))
    assert {name: ranked.tolist() for name, ranked in after.items()} == {
        name: ranked.tolist() for name, ranked in before.items()
    }
