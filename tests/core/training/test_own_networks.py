"""Encoders and methods of a user's own, with the MAG and without: frozen, normalised, recurrent, attending, drawing ones.

What trains has the exact meta-gradient; what cannot is refused in one sentence before the first step.
"""

import copy
import re
from typing import Any

import numpy as np
import pytest
import torch
from tiny import run_steps, same, saved, start_state
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from metaug_core import ENCODERS, METHODS, Config, MetaugError, evaluate, fit
from metaug_core.methods import Method
from metaug_core.networks.encoders import conv, output_dim
from metaug_core.networks.memory import copy_module
from metaug_core.objectives.losses import alignment, uniformity
from metaug_core.runs.files import read_tensors
from metaug_core.runs.store import request
from metaug_core.training import checkpoint as checkpoints
from metaug_core.training.cuda_graphs import Stepper
from metaug_core.training.loop import attempt, try_own_networks
from metaug_core.training.own_networks import TANGENTS
from metaug_core.training.step import draw, train_step


def quiet(progress: object) -> None:
    pass


# --- what people bring


def plain(channels: int, *more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, 6, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(294, 10), *more)


class Function(nn.Module):
    """What a function of (features, module) makes of the features of `plain`."""

    def __init__(self, channels: int, function: Any):
        super().__init__()
        self.net, self.function = plain(channels), function

    def forward(self, x):
        return self.function(self.net(x), self)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g


class SquareOnce(Square):
    backward = torch.autograd.function.once_differentiable(Square.backward)


class Attention(nn.Module):
    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.embed = nn.Linear(16 * channels, 12)
        self.layer = nn.TransformerEncoderLayer(12, 2, 16, dropout, batch_first=True)

    def forward(self, x):
        return self.layer(self.embed(x.transpose(1, 2).flatten(2))).mean(1)


class Recurrent(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.lstm = nn.LSTM(16 * channels, 10, batch_first=True)

    def forward(self, x):
        return self.lstm(x.transpose(1, 2).flatten(2))[0][:, -1]


class Counting(nn.Module):
    """Takes off a running mean of its features, which like the count of its passes is a buffer."""

    def __init__(self, channels: int, persistent: bool = True):
        super().__init__()
        self.net = plain(channels)
        self.register_buffer("mean", torch.zeros(10), persistent)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64), persistent)
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))

    def forward(self, x):
        h = self.net(x)
        if self.training:
            self.passes += 1
            self.mean = 0.5 * self.mean + 0.5 * h.detach().mean(0)
        return h - self.mean


def freeze(module: nn.Module, *names: str) -> nn.Module:
    for name, p in module.named_parameters():
        p.requires_grad_(name not in names)
    return module


def normalise(norm: Any) -> Any:
    def build(channels, config):
        net = plain(channels)
        net[3] = norm(net[3])
        return net

    return build


def without_gradient(h, _):
    with torch.no_grad():
        mean = h.mean(0)
    return h - mean


# One object in the encoders of all views, of all runs.
TRUNK = {dtype: nn.Sequential(nn.Tanh(), nn.Linear(10, 10, dtype=dtype)) for dtype in (torch.float32, torch.float64)}


OWN: dict[str, Any] = {
    "frozen": lambda channels, config: plain(channels).requires_grad_(False),
    "frozen in part": lambda channels, config: freeze(plain(channels, nn.BatchNorm1d(10)), "0.weight", "3.bias"),
    "biases alone": lambda channels, config: freeze(plain(channels), "0.weight", "3.weight"),
    "tied": lambda channels, config: plain(channels, *[nn.Linear(10, 10)] * 2),
    "shared": lambda channels, config: nn.Sequential(plain(channels), TRUNK[torch.get_default_dtype()]),
    "weight norm": normalise(parametrizations.weight_norm),
    "old weight norm": normalise(nn.utils.weight_norm),
    "package's conv": lambda channels, config: nn.Sequential(
        net := conv(channels, config), parametrizations.weight_norm(nn.Linear(output_dim(net, channels, config), 10))
    ),
    "spectral norm": normalise(parametrizations.spectral_norm),
    "attention": lambda channels, config: Attention(channels, 0.0),
    "attention with dropout": lambda channels, config: Attention(channels, 0.2),
    "lstm": lambda channels, config: Recurrent(channels),
    "function": lambda channels, config: Function(channels, lambda h, _: Square.apply(h)),
    "no_grad": lambda channels, config: Function(channels, without_gradient),
    "in place": lambda channels, config: nn.Sequential(nn.ReLU(inplace=True), plain(channels)),
    "dropout": lambda channels, config: plain(channels, nn.Dropout(0.5)),
    "buffers": lambda channels, config: Counting(channels),
    "lazy": lambda channels, config: nn.Sequential(nn.Flatten(), nn.LazyLinear(10), nn.LazyBatchNorm1d()),
    "bfloat16": lambda channels, config: nn.Sequential(Cast(torch.bfloat16), plain(channels).bfloat16()),
}
EXACT = sorted(OWN.keys() - {"frozen", "lazy", "bfloat16"})


class Cast(nn.Module):
    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return x.to(self.dtype)


@pytest.fixture
def own(monkeypatch, tiny):
    """own(build, **changes) -> config of a tiny run with this encoder, with the MAG unless changes say otherwise."""

    def make(build: Any, **changes: Any) -> Config:
        monkeypatch.setitem(ENCODERS, "own", build)
        return tiny(encoder="own", epochs=1, **changes)

    return make


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, "metaug") for name in OWN if name not in EXACT),
        ("lstm", "metaug"),
        ("shared", "metaug"),
        ("frozen", "byol"),
        ("old weight norm", "moco"),
        ("tied", "cmc"),
    ],
)
def test_what_torch_allows_as_a_module_trains(own, name, method):
    views = {"views": ("RGB", "RGB"), "queue_size": 64} if method in ("byol", "moco") else {}
    run = fit(own(OWN[name], method=method, **views), quiet)
    after = {n: t for n, t in read_tensors(run.checkpoint)[0].items() if n.startswith("networks.encoders")}
    untrained = start_state(encoder="own", method=method, **views).networks
    moved = [n for n, t in untrained.named_parameters() if not torch.equal(t, after.get(f"networks.{n}", t))]
    frozen = [n for n, t in untrained.named_parameters() if not t.requires_grad]
    assert bool(moved) == (name != "frozen")
    assert not set(moved) & set(frozen)
    assert bool(frozen) == (name in ("frozen", "frozen in part", "biases alone"))
    assert evaluate(run, measures=("knn",), representations=("trained",)).notna().all(axis=None)


# --- exactness


SLOWER = {"attention": 1} | dict.fromkeys(
    ("weight norm", "old weight norm", "package's conv", "spectral norm", "function", "no_grad"), 2
)
SGD = {"delta": 0.5, "inner_lr": 0.5, "mag_optimiser": "sgd", "mag_lr": 1.0}


@pytest.mark.usefixtures("in_double")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EXACT)
def test_the_meta_gradient_of_own_networks_equals_double_backward_through_one_function(own, monkeypatch, name):
    """SGD at rate 1 moves the MAG by its gradient. The other side is eq. 2-3 in plain autograd, each pass from one random state and
    from one set of buffers."""
    own(OWN[name])
    s = start_state(encoder="own", **SGD)
    try_own_networks(s)
    assert TANGENTS.index(s.tangent) == SLOWER.get(name, 0)
    twin, mag = copy_module(s.networks), copy.deepcopy(s.mag)
    generators = {role: generator.get_state() for role, generator in s.generators.items()}
    rows = torch.arange(16)
    views, context = draw(s, s.images.pixels[rows], rows)
    for role, generator in s.generators.items():
        generator.set_state(generators[role])
    random = torch.get_rng_state()

    def total(terms, weights):
        torch.set_rng_state(random)
        buffers = {n: b.clone() for n, b in twin.named_buffers()}
        with sdpa_kernel(SDPBackend.MATH):
            z = functional_call(copy_module(twin), weights | buffers, (views,))
        return sum(terms(z, context, mag).values())

    leaves = {n: p for n, p in twin.named_parameters() if p.requires_grad}
    inner = torch.autograd.grad(total(s.method.terms, leaves), list(leaves.values()), create_graph=True)
    ahead = {n: p.detach() - 0.5 * g for (n, p), g in zip(leaves.items(), inner, strict=True)}
    expected = torch.autograd.grad(total(s.method.outer_terms, ahead), list(mag.parameters()))
    torch.set_rng_state(random)
    before = [p.detach().clone() for p in s.mag.parameters()]
    train_step(s, s.images.pixels[rows], rows, False)
    size = max(float(g.abs().max()) for g in expected)
    for old, new, gradient in zip(before, s.mag.parameters(), expected, strict=True):
        torch.testing.assert_close(old - new, gradient, rtol=0, atol=1e-9 * size)


@pytest.mark.usefixtures("own")
def test_why_the_tangent_pass_is_slower_is_said_and_stands_with_the_run(own):
    with pytest.warns(
        RuntimeWarning, match=r"meta-gradient is computed in a slower way: NotImplementedError: .*weight_norm"
    ):
        run = fit(own(OWN["weight norm"]), quiet)
    assert "weight_norm" in run.sessions[-1]["tangent_because"]
    assert "tangent_because" not in fit(own(OWN["dropout"]), quiet).sessions[-1]


# --- random numbers and buffers


def test_after_a_step_random_numbers_and_buffers_stand_where_one_pass_leaves_them(own, tmp_path):
    def build(channels, config):
        return nn.Sequential(Counting(channels, persistent=False), nn.Dropout(0.5))

    own(build)
    states = {}
    for method in ("metaug", "metaug-only-oucl"):
        s = states[method] = start_state(encoder="own", method=method)
        run_steps(Stepper([s]), s, 3)  # the third is logged
        assert s.networks.encoders.nets["L"][0].passes == 3
        checkpoint_file = tmp_path / f"{method}.safetensors"
        checkpoints.save(s, checkpoint_file)
        again = start_state(encoder="own", method=method)
        checkpoints.restore(again, checkpoint_file)
        for (name, buffer), (_, other) in zip(s.networks.named_buffers(), again.networks.named_buffers(), strict=True):
            assert torch.equal(buffer, other), name
    assert torch.equal(states["metaug"].random, states["metaug-only-oucl"].random)


def test_a_module_that_is_given_again_is_new_in_each_run(own, tmp_path):
    """Its function gives one object to all runs: none goes on with the weights of another, nor does evaluation."""
    net = plain(3)
    config = own(lambda channels, config: net, method="simclr", views=("RGB", "RGB"))
    first = {n: p.clone() for n, p in net.state_dict().items()}
    runs = [fit(config.replace(runs_dir=tmp_path / part), quiet) for part in "ab"]
    assert same(*map(saved, runs))
    assert same(net.state_dict(), first)
    assert not torch.equal(saved(runs[0])["networks.encoders.nets.RGB.0.weight"], first["0.weight"])


def test_a_batch_norm_in_evaluation_mode_stays_in_it(own):
    def build(channels, config):
        net = plain(channels, nn.BatchNorm1d(10))
        net[4].eval().running_mean += 3
        return net

    run = fit(own(build), quiet)
    assert evaluate(run, measures=("knn",), representations=("untrained",)).loc["untrained", "knn"] > 0
    assert torch.equal(saved(run)["networks.encoders.nets.L.4.running_mean"], torch.full((10,), 3.0))


def test_a_step_that_fails_ends_its_own_run_alone(own):
    def fail(h, module):
        if module.seed and module.training and not torch.is_inference_mode_enabled():
            module.calls += 1
            if module.calls > 6:
                raise KeyError("batch")
        return h

    def build(channels, config):
        net = Function(channels, fail)
        net.seed, net.calls = config.seed, 0
        return net

    config = own(build, method="cmc")
    runs, failures = attempt([config, config.replace(seed=1)], quiet)
    assert [run.finished for run in runs] == [True, False]
    (said,) = map(str, failures.values())
    assert re.fullmatch(r"encoder 'own': step \d failed \(test_own_networks.py, line \d+\): KeyError: 'batch'", said)


# --- what is refused


def reuse(h, module):
    module.last = 0.5 * getattr(module, "last", 0.0) + h.detach().mean(0)
    return h - module.last


def drop_by_numpy(h, module):
    return h * torch.from_numpy(np.random.rand(*h.shape) < 0.5) if module.training else h


REFUSED: list[tuple[str, Any, dict[str, str], str]] = [
    ("nothing", lambda channels, config: None, {}, "its function must return a torch.nn.Module, got None"),
    ("arguments", lambda channels: plain(channels), {}, "creating it failed: TypeError: "),
    ("tuple", lambda c, _: Function(c, lambda h, m: (h, h)), {}, "gives a tuple, needs one tensor (2, D)"),
    ("tuple in training", lambda c, _: Function(c, lambda h, m: (h,) if m.training else h), {}, "one tensor (16, 10)"),
    ("tokens", lambda c, _: Function(c, lambda h, m: h[:, None]), {}, "gives shape (2, 1, 10) from 2 images, needs (2, D)"),
    ("squeezed", lambda c, _: Function(c, lambda h, m: h.squeeze()), {}, "gives shape (10,) from 1 image, needs (1, D)"),
    ("joined", lambda c, _: Function(c, lambda h, m: h.view(-1, 5)), {}, "gives shape (4, 5) from 2 images"),
    ("whole numbers", lambda c, _: Function(c, lambda h, m: h.long()), {}, "gives torch.int64, needs"),
    ("float16", lambda c, _: plain(c).half(), {}, "does not take 1 x 16 px images (float32, on the CPU): RuntimeError"),
    ("detached", lambda c, _: Function(c, lambda h, m: h.detach()), {}, "its output has no gradient"),
    ("complex", lambda c, _: Function(c, lambda h, m: (h * m.w).abs()), {}, "take real weights, and encoders.nets.L.w"),
    ("plain tensor", lambda c, _: Function(c, reuse), {}, "keep what a pass changes in buffers"),
    ("numpy", lambda c, _: Function(c, drop_by_numpy), {}, "draw random numbers from torch's global generator alone"),
    ("no derivative", lambda c, _: Function(c, lambda h, m: SquareOnce.apply(h)), {"method": "metaug"}, "second derivative"),
    ("checkpoint", lambda c, _: Function(c, lambda h, m: checkpoint(torch.tanh, h, use_reentrant=False)), {"method": "metaug"},
     "torch.utils.checkpoint"),
    ("checkpoint, double backward", lambda c, _: Function(c, lambda h, m: checkpoint(torch.tanh, h, use_reentrant=False)),
     {"method": "metaug", "meta": "double-backward"}, "torch.utils.checkpoint"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "changes", "said"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_an_encoder_that_cannot_train_is_one_sentence_before_the_first_step(own, build, changes, said):
    def with_weight(channels, config):
        net = build(channels, config)
        if "real weights" in said:
            net.w = nn.Parameter(torch.ones(10, dtype=torch.complex64))
        return net

    config = own(build if "TypeError" in said else with_weight, **{"method": "cmc", **changes})
    with pytest.raises(MetaugError) as error:
        fit(config, quiet)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (request(config).path / "environment.json").exists()


def mean_alignment(z):
    return alignment(z[0], z[1]) + sum(map(uniformity, z)) / len(z)


@pytest.mark.parametrize("suffix", ["", "+mag"])
@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (
            lambda z: (z[0] - z[1]).square().sum(-1),
            "the loss is a tensor (16,) of torch.float32, needs a tensor with one",
        ),
        (lambda z: 0.5, "the loss is a float, needs a tensor with one real number"),
        (lambda z: mean_alignment(z.detach()), "the loss has no gradient"),
        (lambda z: z.nothing, "a trial pass failed (test_own_networks.py, line "),
    ],
)
def test_a_loss_that_cannot_train_is_one_sentence(tiny, monkeypatch, loss, said, suffix):
    class Mine(Method):
        def loss(self, z, context):
            return loss(z)

    monkeypatch.setitem(METHODS, "mine", Mine)
    with pytest.raises(MetaugError) as error:
        fit(tiny(method="mine" + suffix), quiet)
    assert str(error.value).startswith(f"method 'mine{suffix}': ")
    assert said in str(error.value)


def test_what_is_no_method_is_refused_where_it_is_registered():
    with pytest.raises(MetaugError, match=r"METHODS\['mine'\] must be a subclass of .*Method, got <function"):
        METHODS["mine"] = mean_alignment


class OwnMag(Method):
    """A method with a MAG of its own, made by `make`."""

    defaults = {"views": ("L", "ab")}
    make: Any = None

    def loss(self, z, context):
        return mean_alignment(z)

    def mag(self):
        return type(self).make(self.config.feature_dim)

    def terms(self, z, context, augment):
        return {"loss_original": self.loss(z, context), "loss_augmented": 0.1 * self.loss(augment(z), context)}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda d: nn.Sequential(nn.Linear(d, d), nn.Dropout(0.5)), None),
        (lambda d: nn.TransformerEncoderLayer(d, 2, 8, 0.0), None),
        (lambda d: nn.Linear(d, d).requires_grad_(False), "the MAG of method 'mine' has no weight to train"),
        (lambda d: F.relu, "its networks and its MAG must be torch modules, got <function relu"),
    ],
)
def test_a_mag_of_ones_own_trains_or_is_one_sentence_and_logging_changes_nothing(tiny, monkeypatch, make, said):
    monkeypatch.setattr(OwnMag, "make", staticmethod(make))
    monkeypatch.setitem(METHODS, "mine", OwnMag)
    configs = [tiny(method="mine", epochs=1, log_every=every) for every in (1, 5)]
    if said is None:
        logging, quietly = fit(configs[0], quiet), fit(configs[1].replace(runs_dir=configs[1].runs_dir / "b"), quiet)
        assert same(saved(logging), saved(quietly))
        return
    with pytest.raises(MetaugError) as error:
        fit(configs[0], quiet)
    assert said in str(error.value)
