"""docs/minimal.py: the method in 150 lines computes the engine's step, in float64."""

import importlib.util

import pytest
import torch
from tiny import ROOT

from metaug_core import Config
from metaug_core.data import datasets
from metaug_core.data.datasets import Images
from metaug_core.methods.base import Context
from metaug_core.training import state
from metaug_core.training.step import descend, mag_step, regular_step

FILE = ROOT / "docs" / "minimal.py"
WIDTHS = (3, 4, 5, 5, 4)
BATCH, STEPS = 12, 4


@pytest.fixture
def minimal():
    spec = importlib.util.spec_from_file_location("minimal", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def engine(monkeypatch):
    """The engine's state on the same small networks, in float64."""
    monkeypatch.setattr("metaug_core.networks.encoders.ALEXNET", WIDTHS)
    config = Config(views=("L", "ab"), negatives="batch", feature_dim=6, mag_hidden=10, batch_size=BATCH, device="cpu", lr=3e-3,
                    mag_lr=3e-3, delta=0.1, alpha=0.1, mag_objective="scaled", look_ahead_update="optimiser")  # fmt: skip
    images = Images(
        torch.zeros(2 * BATCH, 3, 32, 32, dtype=torch.uint8), torch.zeros(2 * BATCH, dtype=torch.int64), ("a",)
    )
    s = state.create(config, datasets.Splits(images, images, None, images), "cpu")
    s.networks.double()
    s.mag.double()
    return s


def copied(minimal, s):
    """The networks of minimal.py with the engine's weights, and the pairs of weights that must stay equal."""
    minimal.WIDTHS, minimal.D, minimal.HIDDEN, minimal.LR = WIDTHS, 6, 10, 3e-3
    networks = minimal.PerView([minimal.encoder(c) for c in minimal.CHANNELS.values()]).double()
    mag = minimal.PerView([minimal.augmenter() for _ in minimal.CHANNELS]).double()
    pairs = []
    for view, network in zip(minimal.CHANNELS, networks.networks, strict=True):
        theirs = [*s.networks.encoders.nets[view].parameters(), *s.networks.heads[view].parameters()]
        pairs += zip(network.parameters(), theirs, strict=True)
    for v, network in enumerate(mag.networks):
        layers, norms = (s.mag.first, s.mag.second, s.mag.last), (s.mag.first_norm, s.mag.second_norm)
        for i, layer in enumerate(layers):
            pairs += [(network[3 * i].weight, layer.weight[v].T), (network[3 * i].bias, layer.bias[v, 0])]
        for i, norm in enumerate(norms):
            pairs += [
                (network[3 * i + 1].weight, norm.weight.view(2, -1)[v]),
                (network[3 * i + 1].bias, norm.bias.view(2, -1)[v]),
            ]
    with torch.no_grad():
        for mine, theirs in pairs:
            mine.copy_(theirs)
    return networks, mag, pairs


def test_minimal_is_the_engines_step(minimal, engine):
    s = engine
    networks, mag, pairs = copied(minimal, s)
    before = [mine.clone() for mine, _ in pairs]
    memories: list[dict] = [{}, {}]
    indices = torch.arange(BATCH)
    for step in range(STEPS):
        views = [view.double() for view in minimal.split(minimal.gratings(BATCH, seed=step)[0])]
        context = Context(indices, torch.zeros_like(indices))
        regular, terms, _ = regular_step(s, views, context, log=False, share=True)
        mag_step(s, views, context, log=False, regular=regular)
        descend(s.optimiser, s.theta, regular.gradient)
        loss = minimal.train_step(networks, mag, views, memories)
        assert loss == pytest.approx(float(sum(terms.values())), rel=1e-9)
    for (mine, theirs), old in zip(pairs, before, strict=True):
        # Where a gradient is 0 but for rounding (a bias before BatchNorm), Adam divides the rounding by its eps of 1e-8.
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-8)
        assert not torch.equal(mine, old)


def test_minimal_is_short_and_needs_torch_alone():
    text = FILE.read_text()
    assert len(text.splitlines()) <= 150
    imports = [line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert set(imports) == {"torch"}


@pytest.mark.slow
def test_minimal_learns(minimal):
    torch.manual_seed(0)
    networks = minimal.PerView([minimal.encoder(c) for c in minimal.CHANNELS.values()])
    mag = minimal.PerView([minimal.augmenter() for _ in minimal.CHANNELS])
    train, test = minimal.gratings(1000, seed=0), minimal.gratings(500, seed=1)
    untrained, memories, random = minimal.probe(networks, train, test), [{}, {}], torch.Generator().manual_seed(0)
    for _ in range(30):
        chosen = torch.randint(len(train[0]), (32,), generator=random)
        minimal.train_step(networks, mag, minimal.split(train[0][chosen], random), memories)
    assert minimal.probe(networks, train, test) > untrained + 0.1
