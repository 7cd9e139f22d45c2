"""The seam: every method trains through it, and a user's own method, views, encoder and data set take a few lines."""

import dataclasses
from typing import Any

import pytest
import torch
from tiny import TINY, patterns
from torch import nn

from metaug_core import DATASETS, ENCODERS, METHODS, VIEWS, Config, ConfigError, MetaugError, evaluate, fit, with_mag
from metaug_core.methods import CMC, OUCL, Composition, Context, MetAug, Method, build
from metaug_core.methods.metaug import build_augmented_sets
from metaug_core.objectives.losses import alignment, nt_xent, uniformity
from metaug_core.objectives.similarity import Pairs, other_views
from metaug_core.runs.files import read_tensors
from metaug_core.views.augmentation import View


def quiet(progress):
    pass


CHANGES = {"simclr": {"views": ("RGB", "RGB")}}


@pytest.mark.parametrize("method", ["metaug", "metaug-only-oucl", "metaug-only-mag", "cmc", "simclr", "supervised"])
def test_every_method_trains_resumes_and_is_measured(tiny, method):
    run = fit(tiny(method=method, epochs=1, **CHANGES.get(method, {})), quiet)
    assert run.finished
    names = read_tensors(run.checkpoint)[0]
    assert any(name.startswith("mag.") for name in names) == (method in ("metaug", "metaug-only-mag"))
    assert ("memory.entries" in names) == (method not in ("simclr", "supervised"))
    table = evaluate(run)
    assert table.index.tolist() == ["raw pixels", "untrained", "trained"]
    assert table[["probe_plain", "probe_fast", "knn"]].to_numpy().min() >= 0
    assert table.loc["trained", "method"] == method


class Mine(Method):
    defaults = {"views": ("L", "ab")}

    def loss(self, z, context):
        aligned = [alignment(a, b) for a, b in self.across(z, z)]
        return sum(aligned) / len(aligned) + sum(map(uniformity, z)) / len(z)


@pytest.fixture
def mine(monkeypatch):
    monkeypatch.setitem(METHODS, "mine", Mine)  # and `mine+mag` is there


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("name", ["mine", "mine+mag"])
def test_a_users_method_of_ten_lines_trains(tiny, tmp_path, name):
    """As the docstring of methods/base.py has it; its defaults stand where the user gave nothing."""
    values = {key: value for key, value in TINY.items() if key != "views"}
    config = Config(**{**values, "method": name, "epochs": 6, "runs_dir": tmp_path})
    assert config.views == ("L", "ab")
    run = fit(config, quiet)
    loss = run.metrics["loss_original"].dropna().tolist()
    assert loss[-1] < loss[0]
    assert ("loss_ahead" in run.metrics) == (name == "mine+mag")
    assert len(evaluate(run, augmented=name == "mine+mag")) == 3 + (name == "mine+mag")
    assert fit(config, quiet).path == run.path


class Averaged(Method):
    """Remembers an averaged network and a queue: what MoCo and BYOL would ask of the seam."""

    def memory(self, networks, images, generator):
        memory = nn.Module()
        memory.register_buffer("seen", torch.zeros(images))
        memory.register_buffer("mean", torch.zeros(self.config.feature_dim))
        return memory

    def remember(self, memory: Any, networks, z, context):
        memory.seen[context.indices] += 1
        memory.mean.lerp_(z.mean((0, 1)), 0.1)

    def loss(self, z, context):
        return nt_xent(z, 0.5)


def test_what_a_method_remembers_is_saved(tiny, monkeypatch):
    monkeypatch.setitem(METHODS, "averaged", Averaged)
    run = fit(tiny(method="averaged", epochs=3), quiet)
    tensors, _ = read_tensors(run.checkpoint)
    assert tensors["memory.seen"].sum() == 3 * 5 * 16
    assert tensors["memory.seen"].max() == 3
    assert tensors["memory.mean"].abs().sum() > 0


def test_a_users_views_train(tiny, monkeypatch):
    monkeypatch.setitem(VIEWS, "red", View(lambda rgb: rgb, {0: (0, 1)}))
    monkeypatch.setitem(VIEWS, "green-blue", View(lambda rgb: rgb, {1: (0, 1), 2: (0, 1)}))
    run = fit(tiny(views=("red", "green-blue", "L", "ab"), epochs=1), quiet)
    tensors = read_tensors(run.checkpoint)[0]
    assert tensors["networks.encoders.nets.green-blue.0.weight"].shape[1] == 2
    assert tensors["memory.entries"].shape[0] == 4
    assert tensors["mag.last.weight"].shape[0] == 4
    assert evaluate(run).loc["trained", "n_eval"] == 60


def test_a_users_encoder_trains(tiny, monkeypatch):
    def flat(channels, config):
        return nn.Sequential(
            nn.Flatten(), nn.Linear(channels * config.image_size**2, 20), nn.BatchNorm1d(20), nn.ReLU()
        )

    monkeypatch.setitem(ENCODERS, "flat", flat)
    run = fit(tiny(encoder="flat", epochs=4), quiet)
    loss = run.metrics["loss_original"].dropna().tolist()
    assert loss[-1] < loss[0]
    assert "flat" in run.path.name
    evaluate(run)


def test_a_users_data_set_with_unlabelled_images(tiny, monkeypatch):
    images, labels = patterns(100, 0)
    labels = labels.copy()
    labels[40:] = -1
    monkeypatch.setitem(DATASETS, "half", lambda config: (images, labels, *patterns(60, 1), ("a", "b", "c", "d")))
    run = fit(tiny(dataset="half", epochs=1), quiet)
    assert read_tensors(run.checkpoint)[0]["memory.entries"].shape[1] == 96  # 4 of the 40 are held out
    assert evaluate(run).loc["trained", "n_train"] == 36
    assert max(fit(tiny(dataset="half", method="supervised", epochs=1), quiet).metrics["step"]) == 2


@pytest.mark.slow
def test_every_encoder_of_a_table_trains(tiny):
    for encoder, width in (("fc", 0.02), ("resnet18", 1)):
        run = fit(tiny(encoder=encoder, width=width, epochs=1, train_images=18, batch_size=8), quiet)
        assert max(run.metrics["step"]) == 2


def test_views_too_few_are_refused():
    for method in ("metaug", "cmc", "simclr"):
        with pytest.raises(ConfigError, match=f"^method '{method}' contrasts at least 2 views, got RGB$"):
            build(Config(method=method, views=("RGB",)))
    assert build(Config(method="supervised", views=("RGB",)))


def test_a_bank_needs_images_outside_the_minibatch():
    with pytest.raises(MetaugError, match="^the bank needs more images than batch_size 16, got 16$"):
        build(Config(**TINY)).memory(nn.Module(), 16, torch.Generator())


def test_with_mag_is_the_base_method_but_for_the_loss():
    config = Config(**TINY)
    method = build(config)
    assert isinstance(method, MetAug)
    assert isinstance(method.base, OUCL)
    other = build(config.replace(method="metaug-only-mag"))
    assert isinstance(other, MetAug)
    assert isinstance(other.base, CMC)
    assert with_mag(Mine).description.defaults == Mine.defaults
    with pytest.raises(MetaugError, match="^fully supervised has no features that a MAG could augment$"):
        with_mag(METHODS["supervised"])


class OneView(Method):
    """Of a single view; unit features, and what a composition could lose of the rest."""

    minimum_views = 1
    captured = divided = False
    betas = (0.5, 0.9)
    defaults = {"views": ("RGB",), "negatives": "batch"}

    def loss(self, z, context):
        return uniformity(z[0])


@pytest.mark.parametrize("name", ["barlow", "nnclr", "bigan", "supervised", "metaug", "nnclr+oucl+mag"])
def test_a_class_its_compositions_and_their_instances_say_the_same(name):
    method = METHODS[name]
    assert dataclasses.is_dataclass(method.description)
    assert build(Config(method=name)).description == method.description
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.description.parts = 3
    composed = dataclasses.asdict(METHODS[f"{name}+randaugment"].description)
    differing = {key for key, value in dataclasses.asdict(method.description).items() if composed[key] != value}
    assert differing == {"title", "paper", "objective", "defaults", "differs", "uniform"}


def test_what_differs_from_the_authors_is_said_once_for_each_part_of_a_composition():
    composed = Composition(CMC, lambda method: method, "More", "-", "more", differs="More of it.")
    assert composed.description.differs == f"{CMC.description.differs} More of it."
    for name in ("cmc+mag", "cmc+hard+mag", "cmc+debiased", "cmc+randaugment"):
        assert METHODS[name].description.differs.count(CMC.description.differs) == 1


def test_a_class_says_what_its_base_class_says_but_for_its_own_name():
    class Louder(OneView):
        betas = (0.1, 0.9)

    assert OneView.description.title == "OneView"
    assert Louder.description == dataclasses.replace(OneView.description, title="Louder", betas=(0.1, 0.9))


def test_of_features_that_are_not_unit_no_similarity_is_logged_with_a_mag_either(tiny):
    small = {"feature_dim": 8, "head_hidden": 16, "epochs": 1}
    metrics = fit(tiny(method="barlow+mag", **small), quiet).metrics
    assert "loss_ahead" in metrics
    assert "positive_similarity" not in metrics
    assert fit(tiny(method="simclr+mag", epochs=1), quiet).metrics["positive_similarity"].max() <= 1


def test_a_method_of_one_view_takes_a_mag(tiny, monkeypatch):
    monkeypatch.setitem(METHODS, "one", OneView)
    method = build(Config(method="one+mag"))
    assert isinstance(method, MetAug)
    for name in ("minimum_views", "captured", "divided", "betas", "defaults", "parts", "labelled"):
        assert getattr(method.description, name) == getattr(OneView.description, name), name
    run = fit(tiny(method="one+mag", views=("RGB",), epochs=1), quiet)
    assert run.metrics["loss_ahead"].notna().any()


def unit(*shape, seed=0):
    return nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_terms_are_weighted_as_in_eq_11():
    config = Config(**{**TINY, "delta": 0.3, "alpha": 0.7, "loss_scale": 2.0})
    method, z, other = build(config), unit(2, 6, 8), unit(2, 6, 8, seed=1)
    assert isinstance(method, MetAug)
    context = Context(torch.arange(6), torch.zeros(6, dtype=torch.int64))
    inner, outer = (terms(z, context, lambda z: other) for terms in (method.terms, method.outer_terms))
    assert inner.keys() == {"loss_original", "loss_augmented"}
    assert outer.keys() == {"loss_original", "loss_augmented", "loss_margin"}
    for terms in (inner, outer):
        torch.testing.assert_close(terms["loss_original"], 2 * method.base.loss(z, context))
        torch.testing.assert_close(terms["loss_augmented"], 2 * 0.3 * method.base.loss(torch.cat([z, other]), context))
    torch.testing.assert_close(outer["loss_margin"], 0.7 * method.margin_term(z, other, context))
    assert float(outer["loss_margin"]) > 0


def test_losses_of_the_same_negatives_share_what_eq_10_asks_of_them():
    """In values and in both derivatives the same as apart, and computed once, for z and z~ together."""
    z, other, past = (unit(2, count, 8, seed=seed).double() for seed, count in enumerate((6, 6, 20)))
    z, method = z.requires_grad_(), build(Config(**{**TINY, "delta": 0.3}))
    rows, negatives = torch.arange(6), other_views(past)
    pairs = Pairs(2, negatives)
    together = torch.stack(
        [*method.terms(z, Context(rows, rows, shared=pairs), lambda z: 2 * other - z).values()]
    ).sum()
    assert [value.shape for _, value in pairs.reduced] == [(2, 2, 6)]
    apart, both = Context(rows, rows, negatives=negatives), torch.cat([z, 2 * other - z])
    wanted = method.base.loss(z, apart) + 0.3 * method.base.loss(both, apart)
    torch.testing.assert_close(together, wanted)
    along = torch.randn_like(z)
    for order in (1, 2):
        together, wanted = (torch.autograd.grad(value, z, create_graph=True)[0] for value in (together, wanted))
        assert wanted.abs().max() > 1e-3, order
        torch.testing.assert_close(together, wanted)
        together, wanted = (along * together).sum(), (along * wanted).sum()


def test_swapped_sets_are_each_view_in_turn_then_all():
    z, other = unit(3, 4, 8), unit(3, 4, 8, seed=1)
    sets = build_augmented_sets(z, other, "swapped", Pairs(3))
    assert len(sets) == 4
    for number, mixed in enumerate(sets[:3]):
        for view in range(3):
            assert torch.equal(mixed[view], other[view] if view == number else z[view])
    assert torch.equal(sets[3], other)
    (joint,) = build_augmented_sets(z, other, "joint", Pairs(3))
    assert torch.equal(joint, torch.cat([z, other]))


def test_minibatch_scope_is_one_term_over_all_pairs():
    z, context = unit(2, 6, 8), Context(torch.arange(6), torch.zeros(6, dtype=torch.int64))
    of_anchors, of_all = (build(Config(**{**TINY, "method": "metaug-only-oucl", "scope": scope})).loss(z, context)
                          for scope in ("anchor", "minibatch"))  # fmt: skip
    cosines = torch.einsum("vbd,ucd->vbuc", z, z)
    positives = torch.stack([(1 + cosines[v, b, 1 - v, b]) / 2 for v in range(2) for b in range(6)])
    negatives = torch.stack(
        [(1 + cosines[v, b, 1 - v, c]) / 2 for v in range(2) for b in range(6) for c in range(6) if c != b]
    )
    table = (positives[:, None] - 1) ** 2 + negatives[None] ** 2 - 2 * 0.4**2
    torch.testing.assert_close(of_all, torch.log1p(torch.exp(16 * table).sum()) / 16)
    assert not torch.allclose(of_anchors, of_all)


@pytest.mark.parametrize("oucl", ["eq8", "eq10"])
@pytest.mark.parametrize("sets", [1, 2])
def test_image_scope_is_one_term_over_all_pairs_of_an_image(sets, oucl):
    """Three views; with z and z~ stacked all pairs of both are in the one term of their image."""
    z, past = unit(3 * sets, 4, 8).double(), unit(3, 5, 8, seed=1).double()
    config = Config(
        **{**TINY, "views": ("L", "ab", "Lab"), "method": "metaug-only-oucl", "scope": "image", "oucl": oucl}
    )
    value = build(config).loss(z, Context(torch.arange(4), torch.zeros(4), negatives=other_views(past)))
    of_images = []
    for b in range(4):
        pairs = [(w, u) for w in range(3 * sets) for u in range(3) if u != w % 3]
        positives = torch.stack([(1 + z[w, b] @ t) / 2 for w, u in pairs for t in z[u::3, b]])
        negatives = torch.stack([(1 + z[w, b] @ n) / 2 for w, u in pairs for n in past[u]])
        assert (len(positives), len(negatives)) == (6 * sets**2, 30 * sets)
        if oucl == "eq8":
            table = negatives[:, None] - positives
        else:
            table = (positives - 1) ** 2 + negatives[:, None] ** 2 - 2 * 0.4**2
        of_images.append(torch.log1p(torch.exp(16 * table).sum()) / 16)
    torch.testing.assert_close(value, torch.stack(of_images).mean())


@pytest.mark.parametrize("negatives", ["bank", "batch"])
@pytest.mark.parametrize("beta", [4.0, 16.0])
def test_eq_8_of_two_views_is_cmc_at_2_over_beta_divided_by_beta(negatives, beta):
    z = unit(2, 6, 8).double()
    past = other_views(unit(2, 9, 8, seed=1).double()) if negatives == "bank" else None
    context = Context(torch.arange(6), torch.zeros(6), negatives=past)
    shared = {**TINY, "negatives": negatives}
    oucl = build(Config(**shared, method="metaug-only-oucl", oucl="eq8", beta=beta)).loss(z, context)
    cmc = build(Config(**shared, method="cmc", temperature=2 / beta)).loss(z, context)
    torch.testing.assert_close(oucl, cmc / beta, rtol=1e-12, atol=0)


@pytest.mark.parametrize("positives", ["features", "bank"])
@pytest.mark.parametrize(
    ("pairs", "features"), [("other", "augmented"), ("other", "all"), ("same", "augmented"), ("both", "augmented")]
)
@pytest.mark.parametrize("scope", ["anchor", "image", "minibatch"])
def test_r_sigma_equals_the_literal_loop(scope, pairs, features, positives):
    views, batch = 3, 4
    z, augmented, stale = (unit(views, batch, 8, seed=seed).double() for seed in range(3))
    past, drawn = unit(views, 7, 8, seed=3).double(), torch.tensor([[0, 3], [4, 4], [6, 1], [2, 5]])
    settings = {"views": ("L", "ab", "Lab"), "margin_scope": scope, "margin_pairs": pairs, "margin_features": features}
    context = Context(torch.arange(batch), torch.zeros(batch), other_views(past), drawn,
                      positives=stale if positives == "bank" else None)  # fmt: skip
    method = build(Config(**{**TINY, **settings, "positives": positives, "margin_positive_weight": 0.3}))
    assert isinstance(method, MetAug)
    targets = stale if positives == "bank" else z

    def compare(anchors, v, b, others):
        near = [float(1 + anchors[v, b] @ targets[u, b]) / 2 for u in others]
        return near, [float(1 + anchors[v, b] @ past[u, k]) / 2 for u in others for k in drawn[b]]

    other = {v: [u for u in range(views) if u != v] for v in range(views)}
    original = {(v, b): compare(z, v, b, other[v]) for v in range(views) for b in range(batch)}

    def sigma(v, b):
        inside = [pair for (w, c), pair in original.items()
                  if scope == "minibatch" or (c == b and (scope == "image" or w == v))]  # fmt: skip
        return sorted([min(min(near) for near, _ in inside), max(max(far) for _, far in inside)])

    wanted = {"other": other, "same": {v: [v] for v in range(views)}, "both": {v: range(views) for v in range(views)}}
    too_near, too_far = [], []
    for v, b in original:
        low, high = sigma(v, b)
        for anchors in [augmented, z] if features == "all" else [augmented]:
            near, far = compare(anchors, v, b, wanted[pairs][v])
            too_near += [max(p - low, 0) for p in near]
            too_far += [max(high - n, 0) for n in far]
    expected = 0.3 * sum(too_near) / len(too_near) + sum(too_far) / len(too_far)
    assert float(method.margin_term(z, augmented, context)) == pytest.approx(expected, rel=1e-10)
    assert sum(too_near) > 0
