"""What a run's name is made of: settings that can change the result, the versions of engine and protocol, the user's own code.

`PYTHONPATH=tests python tests/core/test_identity.py` records the defaults of this version of the engine in defaults.json.
"""

import importlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from pydantic_core import to_jsonable_python
from tiny import TINY

from metaug_core import (
    DATASETS,
    ENCODERS,
    METHODS,
    VIEWS,
    Config,
    config,
    evaluate,
    extensions,
    fit,
    list_runs,
    open_run,
    preset,
    sources,
    with_mag,
)
from metaug_core.config import ENGINE_VERSION, EVALUATION_VERSION, NOT_IDENTITY, find_folder
from metaug_core.methods import CMC, Method
from metaug_core.methods.base import Composition
from metaug_core.registry import MODIFIERS
from metaug_core.runs import files, listing, store
from metaug_core.runs.files import StoreError, read_tensors, write_tensors
from metaug_core.settings import BANK, MAG, ONLY_WITH, OPTIONAL, OUCL
from metaug_core.training.step import set_rates, train_step
from metaug_core.views.augmentation import View
from metaug_core.views.color import rgb_to_lab
from metaug_workbook import notebook
from metaug_workbook.cli import main
from metaug_workbook.jobs import background
from metaug_workbook.results import step_costs, tables

PACKAGES_OWN = dict(METHODS)


def quiet(progress):
    pass


# --- settings
def test_a_name_is_of_what_differs_from_the_methods_defaults():
    least = {"engine": ENGINE_VERSION, "dataset": "shapes", "encoder": "conv", "seed": 0}
    assert Config().identity() == least | {"method": "metaug"}
    assert Config(method="simclr").identity() == least | {"method": "simclr"}
    assert Config(method="simclr", temperature=0.5, jitter=0.5).name() == Config(method="simclr").name()
    assert Config(method="simclr", temperature=0.07).identity() == least | {"method": "simclr", "temperature": 0.07}
    assert Config(lr=0.1, views=["L", "ab"]).identity() == least | {"method": "metaug", "lr": 0.1, "views": ["L", "ab"]}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("metaug", {"log_every": 3}),
        ("metaug", {"monitor_every": 3}),
        ("metaug", {"cpc_grid": 7}),
        ("metaug", {"temperature": 0.5}),
        ("metaug", {"momentum": 0.5}),
        ("metaug", {"bank_negatives": 7, "negatives": "batch"}),
        ("metaug", {"gamma": 0.1, "oucl": "eq8"}),
        ("metaug", {"lr_decay": 0.5}),
        ("cmc", {"delta": 0.5, "mag_hidden": 7, "look_ahead": "fresh", "mag_lr": 0.5}),
        ("cmc", {"mag_optimiser": "sgd", "momentum": 0.5}),
        ("metaug", {"margin": "none", "margin_scope": "image", "margin_pairs": "both", "margin_positive_weight": 0.5}),
        ("simclr", {"negatives": "bank", "bank_negatives": 7}),
        ("supervised", {"feature_dim": 7, "head": "mlp"}),
        ("barlow", {"head": "mlp", "temperature": 0.5}),
        ("cmc+oucl", {"temperature": 0.5}),
    ],
)
def test_what_cannot_matter_is_not_in_the_name(method, settings):
    usual = {name: settings[name] for name in ("negatives", "oucl", "mag_optimiser", "margin") if name in settings}
    assert Config(method=method, **settings).name() == Config(method=method, **usual).name()


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("cpc", {"cpc_grid": 7}),
        ("cmc", {"temperature": 0.5}),
        ("cmc", {"bank_negatives": 7}),
        ("cmc+hard", {"hard_beta": 0.5}),
        ("cmc+mag", {"delta": 0.5}),
        ("cmc+oucl", {"gamma": 0.1}),
        ("metaug", {"momentum": 0.5, "mag_optimiser": "sgd"}),
        ("metaug", {"margin_pairs": "both", "margin": "small"}),
        ("metaug", {"gamma": 0.1, "oucl": "eq9"}),
    ],
)
def test_the_same_settings_are_in_it_where_they_matter(method, settings):
    first = dict(list(settings.items())[1:])
    assert Config(method=method, **settings).name() != Config(method=method, **first).name()


def test_a_revision_of_a_method_renames_its_runs_and_no_others():
    of_others = [Config(method=name).identity() for name in ("cmc", "cmc+noise", "metaug")]
    assert not any("revision" in identity for identity in of_others)
    for name in ("cmc+hallucinator", "hallucinator", "cmc+hallucinator+dcl"):
        assert Config(method=name).identity()["revision"] == 1


def test_the_modifier_oucl_does_not_ask_for_a_temperature():
    assert METHODS["cmc+oucl"].description.uses == CMC.description.uses - {"temperature"} | OUCL


ELSEWHERE = {"device": "auto", "graphs": "off", "runs_dir": "/tmp/x", "data_dir": "/tmp/y", "workers": 7, "storage": "stream",
             "checkpoint_minutes": 1.0, "tensorboard": True, "log_every": 3, "monitor_every": 2,
             "protocol": "uniform", "fewer_images": True}  # fmt: skip


def test_where_and_how_fast_and_how_often_one_looks_is_not_in_the_name():
    assert ELSEWHERE.keys() == NOT_IDENTITY
    for name, value in ELSEWHERE.items():
        assert Config(**{**TINY, name: value}).name() == Config(**TINY).name(), name


OTHER = {
    "dataset": "shapes", "image_size": 20, "stored_size": 24, "train_images": 64, "val_fraction": 0.2, "views": ("L", "RGB"),
    "independent": True, "crop_scale": (0.3, 1.0), "flip": 0.1, "rotation": 5, "jitter": 0.1, "grey": 0.1, "mixup": 0.1,
    "randaugment": 1, "randaugment_probability": 0.4, "crop_ratio": 1.2, "jitter_ranges": (0.8, 0.8, 0.4, 0.2),
    "jitter_probability": 0.7, "blur": (0.5,), "solarise": (0.2,), "encoder_norm": "apart", "head_norm": "joint",
    "zero_init_residual": True, "decay_norm_and_bias": False, "predictor_lr_schedule": "constant", "ema_schedule": "cosine",
    "shared_queue": True, "encoder": "fc", "stem": "small", "width": 0.06, "feature_dim": 9, "head": "mlp", "mag_hidden": 17,
    "method": "cmc", "temperature": 0.2, "oucl": "eq8", "beta": 15, "gamma": 0.3, "oucl_lambda": 0.1, "phi_dec": 2,
    "gamma_detached": True, "attenuate": "distance", "scope": "minibatch", "loss_scale": 2, "negatives": "batch",
    "bank_negatives": 33, "bank_draw": "per-anchor", "bank_momentum": 0.4, "positives": "bank", "bank_writes": "every-pass",
    "delta": 0.2, "alpha": 0.2, "margin": "small", "margin_scope": "anchor", "margin_pairs": "same",
    "margin_features": "all", "mag_lr_schedule": "constant", "mag_weight_decay": 0.1,
    "margin_everywhere": True, "margin_positive_weight": 0.5, "augmented_sets": "swapped", "schedule": "epoch",
    "look_ahead": "fresh", "inner_lr": 0.1, "look_ahead_update": "optimiser", "look_ahead_loss": "original",
    "look_ahead_batch": "previous", "mag_objective": "scaled", "mag_direction": "ascend", "mag_gradient": "direct",
    "meta": "double-backward",
    "epochs": 3, "batch_size": 8, "optimiser": "sgd",
    "lr": 0.1, "momentum": 0.8, "weight_decay": 0.1, "mag_optimiser": "sgd", "mag_lr": 0.1, "lr_schedule": "cosine",
    "lr_steps": (1,), "lr_decay": 0.5, "warmup_epochs": 1, "precision": "bf16", "seed": 1,     "keep_last": 2, "tau_plus": 0.2,
    "hard_beta": 0.5, "head_hidden": 2049, "predictor_hidden": 513, "ema_momentum": 0.9,
    "projector_norm": True, "queue_size": 4097, "barlow_lambda": 0.01, "prototypes": 513, "sinkhorn_epsilon": 0.1,
    "prototypes_frozen_epochs": 0.5, "sinkhorn_steps": 4, "nat_every": 4, "whitening_size": 8, "dim_units": 2049,
    "dim_bound": "infonce", "cpc_grid": 6, "cpc_skip": 2, "jigsaw_grid": 4, "jigsaw_weight": 0.4, "looc_held": ("crop",),
    "vicreg_weights": (25.0, 25.0, 2.0), "ft_alphas": (2.0, 1.5), "hallucinator_reach": 0.2, "hardest_negatives": 12,
    "adversary_lr": 2.0, "adversary_temperature": 0.03, "matched_similarity": 0.9,
}  # fmt: skip
NEEDS = {"oucl_lambda": {"oucl": "eq8"}, "phi_dec": {"oucl": "eq9"}, "gamma_detached": {"oucl": "eq9"},
         "attenuate": {"oucl": "eq9"}, "lr_steps": {"lr_schedule": "step"}, "momentum": {"optimiser": "sgd"},
         "lr_decay": {"lr_schedule": "step", "lr_steps": (1,)}}  # fmt: skip


def test_every_setting_that_decides_a_result_is_in_the_name_for_a_method_that_uses_it():
    """Settings that are added to Config must be added here, or to NOT_IDENTITY."""
    assert OTHER.keys() | NOT_IDENTITY == Config.model_fields.keys()
    for name, value in OTHER.items():
        used = (m for m in ("metaug", *PACKAGES_OWN) if name not in OPTIONAL or name in METHODS[m].description.uses)
        settings = {**TINY, "method": next(used), **NEEDS.get(name, {})}
        if name == "lr_steps":
            settings |= {"lr_schedule": "step"}
            before = Config(**{**settings, "epochs": 3, "lr_steps": (2,)})
            assert before.name() != before.replace(lr_steps=(1,)).name()
            continue
        assert Config(**{**settings, name: value}).name() != Config(**settings).name(), name


@pytest.mark.parametrize("value", [None, "", "~/mine", "mine"])
def test_a_folder_of_the_environment(monkeypatch, value):
    """Set but empty is as not set."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("METAUG_RUNS", raising=False)
    if value is not None:
        monkeypatch.setenv("METAUG_RUNS", value)
    wanted = {"~/mine": Path("/home/me/mine"), "mine": Path("mine")}.get(value or "", Path("default"))
    assert find_folder("METAUG_RUNS", Path("default")) == wanted


def test_a_setting_that_is_new_renames_no_run():
    class Wider(Config):
        sharpness: float = 1.0

    for settings in ({}, {"method": "cmc", "lr": 0.1}, {"method": "metaug-nnclr"}):
        assert Wider(**settings).name() == Config(**settings).name()
        assert Wider(**settings, sharpness=2.0).name() != Config(**settings).name()


def test_the_command_says_what_a_setting_does_not_do(tiny):
    settings = {"dataset": "tiny", "image_size": 16, "width": 0.05, "train_images": 100, "batch_size": 16, "epochs": 1,
                "workers": 0, "device": "cpu", "method": "cmc", "cpc_grid": 4, "bank_draw": "per-anchor",
                "momentum": 0.5}  # fmt: skip
    words = [word for name, value in settings.items() for word in ("-p", name, str(value))]
    told = CliRunner().invoke(main.main, ["train", *words, "--runs-dir", str(tiny().runs_dir)])
    assert told.exit_code == 0, told.stderr
    assert [line for line in told.stderr.splitlines() if line.startswith("note: ")] == [
        "note: cpc_grid changes nothing: method 'cmc' does not use it",
        "note: bank_draw changes nothing without negatives 'bank'",
        "note: momentum changes nothing without optimiser 'lars' or optimiser 'sgd'",
    ]


def test_settings_that_go_with_others_name_settings_and_values_that_there_are():
    for name, others in ONLY_WITH.items():
        for one, values in others.items():
            allowed = {value for value in Config.model_fields[one].annotation.__args__}
            assert name in Config.model_fields
            assert values <= allowed


def defaults() -> dict[str, Any]:
    """What a setting is that nobody gave, of Config and of each method."""
    own = {name: f.default for name, f in Config.model_fields.items() if name not in NOT_IDENTITY}
    methods = {name: METHODS[name].description.defaults for name in PACKAGES_OWN}
    return to_jsonable_python({"engine": ENGINE_VERSION, "settings": own, "methods": methods})


RECORD = Path(__file__).with_name("defaults.json")


def test_a_default_that_changes_raises_the_version_of_the_engine():
    """A default is not in a run's name, so a run of the old one would be taken for one of the new. Raise ENGINE_VERSION, then
    record the defaults again (see above). A new setting or method needs nothing."""
    recorded, found = json.loads(RECORD.read_text()), defaults()
    assert recorded["engine"] == found["engine"], "record the defaults of this version"
    assert {name: found["settings"].get(name) for name in recorded["settings"]} == recorded["settings"]
    assert {name: found["methods"].get(name) for name in recorded["methods"]} == recorded["methods"]


# --- what a method says it uses
read: set[str] = set()


class Watched(Config):
    """A Config that notes which of the settings that only some methods use are read of it."""

    def __init__(self, /, **values):
        before = set(read)
        super().__init__(**values)
        read.intersection_update(before)  # to check a config is not to use it

    def __getattribute__(self, name):
        if name in OPTIONAL:
            read.add(name)
        return super().__getattribute__(name)


SMALL = {"image_size": 32, "width": 0.05, "feature_dim": 8, "mag_hidden": 16, "bank_negatives": 32, "batch_size": 16,
         "head_hidden": 16, "predictor_hidden": 16, "prototypes": 8, "dim_units": 16, "queue_size": 32, "device": "cpu",
         "workers": 0}  # fmt: skip
WAYS: list[dict[str, Any]] = [
    {},
    {"negatives": "batch"},
    {"oucl": "eq7"},
    {"oucl": "eq8"},
    {"oucl": "eq9"},
    {"schedule": "epoch"},
    {"bank_draw": "per-anchor", "bank_writes": "every-pass"},
]


@pytest.mark.parametrize("method", [*PACKAGES_OWN, "dacl+debiased", "cmc+oucl", "moco+oucl+mag", "byol+mag"])
def test_a_method_uses_what_it_says_and_nothing_else(method):
    """Every optional setting that is read while networks, MAG and memory are built and a step is made is in `uses`; over the ways
    in which settings can be combined, each in `uses` is read."""
    uses = METHODS[method].description.uses
    seen = set()
    for way in (way for way in WAYS if way.keys() <= uses):
        asked = Watched(method=method, **SMALL, **way)
        read.clear()
        s, pixels, indices = step_costs.prepare_step(asked)
        for _ in range(2):
            s.step += 1
            set_rates(s)
            train_step(s, pixels, indices, log=True)
            s.position = s.steps_per_epoch // 2  # with schedule epoch the second step is the MAG's
        assert read <= uses
        seen |= read
    assert seen == uses


def test_a_method_that_says_nothing_uses_all():
    class Theirs(CMC):
        pass

    assert Theirs.description.uses == OPTIONAL
    assert Composition(CMC, lambda method: method, "theirs", "", "").description.uses == OPTIONAL
    assert with_mag(CMC).description.uses == CMC.description.uses | MAG
    assert CMC.description.uses >= BANK


# --- the user's own code
MINE = """\
import math

from metaug_core import METHODS
from metaug_core.objectives import losses
from metaug_core.methods import Method

WEIGHT = 1.0


def helper(z):
    return losses.uniformity(z[0])


class Base(Method):
    defaults = {"temperature": 0.5}

    def scale(self):
        return 2.0


class Mine(Base):
    def loss(self, z, context):
        # the first two views
        return self.scale() * losses.alignment(z[0], z[1]) + WEIGHT * helper(z)


class Other(Method):
    def loss(self, z, context):
        return z.sum()


METHODS["mine"] = Mine
"""


@pytest.fixture
def named(tmp_path, monkeypatch):
    """named(source) -> the name of the run of the method `mine` that this file registers."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(METHODS, "mine", Method)  # so that it goes again
    count = 0

    def name(text: str) -> str:
        nonlocal count
        count += 1
        file = tmp_path / f"mine_{tmp_path.name}_{count}.py"
        file.write_text(text)
        monkeypatch.setattr(extensions, "loaded", [])
        extensions.load(file)
        monkeypatch.delitem(sys.modules, file.stem)
        return Config(method="mine").name()

    return name


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("z[0], z[1]", "z[1], z[0]"),
        ("2.0", "2.5"),
        ("WEIGHT = 1.0", "WEIGHT = 1.5"),
        ("uniformity(z[0])", "uniformity(z[1])"),
        ('"temperature": 0.5', '"temperature": 0.6'),
        ("class Mine(Base):", "class Mine(Base):\n    labelled = True\n"),
    ],
)
def test_an_edited_method_of_the_users_own_is_another_run(named, old, new):
    assert old in MINE
    assert named(MINE.replace(old, new)) != named(MINE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("        # the first two views\n", ""),
        ("import math\n", "import math\n\n# a line\nimport json\n"),
        ("return z.sum()", "return z.mean()"),
        ("return 2.0", "return (\n            2.0\n        )"),
    ],
)
def test_comments_layout_and_what_is_not_used_do_not_matter(named, old, new):
    assert old in MINE
    assert named(MINE.replace(old, new)) == named(MINE)


def test_a_run_of_the_package_has_its_name_before_anything_else_is_imported():
    """The registries are filled when they are first read: what fills them must not look like a user's entry."""
    words = "from metaug_core import Config; print(Config(method='simclr', views=('RGB', 'RGB')).name())"
    printed = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True).stdout.strip()
    assert printed == Config(method="simclr", views=("RGB", "RGB")).name()


@pytest.mark.slow
def test_names_are_the_same_in_every_process(named, tmp_path):
    file = tmp_path / "theirs.py"
    file.write_text(MINE.replace("{z[0]}", "z[0]"))
    words = f"from metaug_core import Config, extensions; extensions.load({str(file)!r}); print(Config(method='mine').name())"
    found = [
        subprocess.run([sys.executable, "-c", words], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True,
                       text=True, check=True).stdout.strip()
        for seed in ("1", "2")
    ]  # fmt: skip
    assert {*found} == {named(MINE)}


def typed(text: str) -> dict[str, Any]:
    """What a text defines that has no source, as in a REPL."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, "<stdin>", "exec"), names)
    return names


def test_code_without_a_source_goes_by_its_bytes_and_constants(monkeypatch):
    found = []
    monkeypatch.setitem(METHODS, "mine", Method)  # so that it goes again: the text itself registers one
    for text in (MINE, MINE, MINE.replace("z[0], z[1]", "z[1], z[0]"), MINE.replace("2.0", "2.5")):
        monkeypatch.setitem(METHODS, "mine", typed(text)["Mine"])
        found.append(Config(method="mine").name())
    assert found[0] == found[1]
    assert len({*found}) == 3
    assert found[0] != Config(method="cmc").name()


def test_runs_of_own_code_have_other_names_where_the_same_code_trains_otherwise(monkeypatch):
    monkeypatch.setitem(ENCODERS, "theirs", lambda channels, config: None)
    configs = [Config(encoder=name) for name in ("theirs", "conv")]
    before = [config.name() for config in configs]
    monkeypatch.setattr(sources, "SEMANTICS", sources.SEMANTICS + 1)
    assert [config.name() == old for config, old in zip(configs, before, strict=True)] == [False, True]


def test_what_is_the_packages_own_has_no_source():
    for method in (*PACKAGES_OWN, "cmc+hard+mag", "moco+oucl"):
        assert "source" not in Config(method=method).identity()


def test_a_users_encoder_view_data_set_and_modifier_enter(monkeypatch):
    def renamed(registry, name, one, other, **settings) -> bool:
        names = []
        for entry in (one, one, other):
            monkeypatch.setitem(registry, name, entry)
            names.append(Config(**settings).name())
        assert names[0] == names[1]
        return names[1] != names[2]

    def network(size):
        return lambda channels, config: torch.nn.Linear(channels, size)

    assert renamed(ENCODERS, "mine", network(3), network(4), encoder="mine")
    assert renamed(ENCODERS, "conv", network(3), network(4))  # in the package's place
    light, dark = (View(rgb_to_lab, {0: (0, high)}) for high in (100, 50))
    assert renamed(VIEWS, "mine", light, dark, views=("mine", "ab"))
    assert renamed(DATASETS, "mine", lambda config: [0], lambda config: [1], dataset="mine")
    assert renamed(
        DATASETS,
        "mine",
        lambda config: [0],
        lambda config: [1],
        dataset="mine",
    )
    makers = [
        partial(Composition, modify=lambda m: m, title="", paper="", objective="", defaults={"lr": lr})
        for lr in (0.1, 0.2)
    ]
    assert renamed(MODIFIERS, "mine", *makers, method="cmc+mine")
    monkeypatch.setitem(METHODS, "theirs", CMC)
    assert "source" in Config(method="theirs").identity()


calls = 0


def counting(z):
    global calls
    calls += 1
    return z


class Counting:
    calls, step = 0, 1

    def count(self):
        type(self).calls += self.step


def test_what_code_changes_while_it_runs_does_not_enter():
    before = sources.digest([counting, Counting])
    counting(1)
    Counting().count()
    assert sources.digest([counting, Counting]) == before
    assert sources.digest([type("Counting", (Counting,), {"step": 2})]) != sources.digest(
        [type("Counting", (Counting,), {})]
    )


def test_parts_of_another_module_of_the_users_enter(monkeypatch):
    theirs = ModuleType("theirs")
    monkeypatch.setitem(sys.modules, "theirs", theirs)

    def digest(weight: float, unused: float) -> str:
        theirs.weight, theirs.unused = weight, unused
        return sources.digest([typed("import theirs\ndef f(z):\n    return theirs.weight * z\n")["f"]])

    assert digest(1.0, 1.0) == digest(1.0, 2.0) != digest(2.0, 2.0)


READ = [  # source of f, and what is another in it
    ("W = [1.0, 2.0]\ndef f(z): return W[0] * z", "1.0, 2.0", "2.0, 1.0"),
    ("W = {'a': [1.0]}\ndef f(z): return W['a'][0] * z", "1.0", "2.0"),
    ("import numpy\nW = numpy.arange(5.0)\ndef f(z): return W[0] * z", "5.0", "6.0"),
    ("import torch\nW = torch.tensor(2.0, dtype=torch.bfloat16)\ndef f(z): return W * z", "2.0", "3.0"),
    ("import torch\ntorch.manual_seed(0)\nW = torch.nn.Linear(3, 3)\ndef f(z): return W(z)", "seed(0)", "seed(1)"),
    ("import torch\nW = torch.nn.LeakyReLU(0.1)\ndef f(z): return W(z)", "0.1", "0.2"),
    ("import torch\nW = torch.float64\ndef f(z): return z.to(W)", "float64", "float16"),
    ("from pathlib import Path\nW = Path('a.pt')\ndef f(z): return torch.load(W)", "a.pt", "b.pt"),
    ("class f:\n  w = [[1], [2, 3]]", "[[1], [2, 3]]", "[[1, 2], [3]]"),
    ("class f:\n  k = 2\n  def __init__(self): self.k = 2 * self.k", "k = 2", "k = 3"),
    ("class A:\n  def __init__(self, k): self.k = k\na = A(2)\ndef f(z): return a.k * z", "A(2)", "A(3)"),
    ("class A:\n  __slots__ = ('k',)\n  def __init__(self, k): self.k = k\nf = A(2)", "A(2)", "A(3)"),
    ("class A:\n  def __init__(self, k): self.k = k\n  def m(self): return self.k\nf = A(2).m", "A(2)", "A(3)"),
    ("import functools\n@functools.cache\ndef f(z): return 2 * z", "2", "3"),
    ("import functools\ndef h(w, z): return w[0] * z\nf = functools.partial(h, [2])", "[2]", "[3]"),
    ("import torch\ndef make(w): return lambda z: z * w\nf = make(torch.tensor(2.0))", "2.0", "3.0"),
    ("def f(z, w=[1], *, k=1): return k * z * w[0]", "[1]", "[2]"),
    ("def f(z, w=[1], *, k=1): return k * z * w[0]", "k=1", "k=2"),
    ("f, g = (lambda z: 2 * z), (lambda z: 5 * z)", "2 * z", "3 * z"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "old", "new"), READ)
def test_whatever_code_reads_enters(text, old, new):
    digests = [sources.digest([typed(one)["f"]]) for one in (text, text, text.replace(old, new, 1))]
    assert digests[0] == digests[1] != digests[2]


def test_what_code_reads_may_be_changed_in_place():
    names = typed("W = [1.0]\ndef f(z): return W[0] * z")
    before = sources.digest([names["f"]])
    names["W"][0] = 2.0
    assert sources.digest([names["f"]]) != before
    names["W"][0] = 1.0
    assert sources.digest([names["f"]]) == before


def test_what_code_changes_while_a_run_is_computed_stays_as_it_was():
    names = typed("past = []\nW = [1.0]\ndef f(z):\n  past.append(z)\n  return W[0] * z")
    entries = [names["f"]]
    before = sources.digest(entries)
    with sources.keep([entries]):
        names["f"](1)
        assert sources.digest(entries) == before
    assert sources.digest(entries) == before
    names["W"][0] = 2.0
    assert sources.digest(entries) != before


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """imported(name, source) -> the module of that name, written and imported anew."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name: str, text: str) -> ModuleType:
        file = tmp_path / f"{name.replace('.', '/')}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        importlib.invalidate_caches()
        return importlib.reload(sys.modules[name]) if name in sys.modules else importlib.import_module(name)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("theirs_one", "def f(z):\n  from theirs_one import scale\n  return scale(z)"),
        ("theirs_two", "def f(z):\n  import theirs_two as other\n  return other.scale(z)"),
        ("theirs_package.part", "import theirs_package.part\ndef f(z): return theirs_package.part.scale(z)"),
    ],
)
def test_a_helper_that_is_imported_anew_enters(imported, module, text):
    imported(module, "def scale(z): return 2 * z\n")
    f = typed(text)["f"]
    before = sources.digest([f])
    imported(module, "def scale(z):\n  return 3 * z\n")
    assert sources.digest([f]) != before


def test_a_file_edited_after_its_import_is_not_the_code_that_runs(imported, tmp_path):
    runs = imported("theirs_edited", "def f(z): return 2 * z\n").f
    (tmp_path / "theirs_edited.py").write_text("def f(z): return 33 * z\n")
    before = sources.digest([runs])
    again = importlib.reload(sys.modules["theirs_edited"])
    assert sources.digest([again.f]) != before


WEIGHT = [1.0]
LOSSES: list[float] = []


class Weighted(CMC):
    """A loss that reads one global list and appends to another."""

    def loss(self, z, context):
        LOSSES.append(float(z.detach().sum()))
        return WEIGHT[0] * super().loss(z, context)


def test_a_run_is_another_if_a_list_is_that_its_loss_reads_and_the_same_if_it_is_one_that_it_writes(tiny, monkeypatch):
    monkeypatch.setitem(METHODS, "weighted", Weighted)
    config = tiny(method="weighted", epochs=1)
    run = fit(config, quiet)
    evaluate(run, measures=("knn",), representations=("trained",))
    count = len(LOSSES)
    assert fit(config, quiet).path == run.path
    assert len(LOSSES) == count > 0  # found, not trained again
    monkeypatch.setitem(globals(), "WEIGHT", [2.0])
    assert fit(config, quiet).path != run.path


def test_a_run_from_weights_that_are_replaced_is_neither_handed_back_nor_evaluated(tiny, monkeypatch, tmp_path):
    file = tmp_path / "weights.pt"

    def build(channels, config):
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * 256, 4))
        network[1].load_state_dict(
            {"weight": read_tensors(file)[0]["weight"][:, : channels * 256], "bias": torch.zeros(4)}
        )
        return network

    monkeypatch.setitem(ENCODERS, "loaded", build)
    weight = torch.linspace(-1, 1, 4 * 512).view(4, 512)
    write_tensors(file, {"weight": weight}, {})
    config = tiny(encoder="loaded", epochs=1)
    run = fit(config, quiet)
    evaluate(run, measures=("knn",), representations=("untrained",))
    assert fit(config, quiet).finished
    write_tensors(file, {"weight": weight.flip(1)}, {})
    said = f"^run {run.path.name} was trained from other networks than its encoder and method make now \\(networks.encoders"
    with pytest.raises(StoreError, match=said):
        fit(config, quiet)
    with pytest.raises(StoreError, match=said):
        evaluate(run, measures=("knn",))
    write_tensors(file, {"weight": weight}, {})
    assert fit(config, quiet).path == run.path


def test_decorated_functions_closures_and_sets_enter():
    def made(k):
        return lambda z: z * k

    def decorated(k):
        @torch.no_grad()
        def inner(z):
            return z * k

        return inner

    assert sources.digest([made(2)]) != sources.digest([made(3)])
    assert sources.digest([decorated(2)]) != sources.digest([decorated(3)])
    assert sources.digest([partial(made, 2)]) != sources.digest([partial(made, 3)])
    assert sources.digest([made(frozenset("abc"))]) == sources.digest([made(frozenset("cba"))])


# --- versions
def test_another_version_of_the_engine_has_other_runs_and_does_not_go_on_with_old_ones(tiny, monkeypatch):
    asked = tiny(epochs=1)
    old = fit(asked, quiet)
    (old.path / "finished.json").unlink()
    monkeypatch.setattr(config, "ENGINE_VERSION", ENGINE_VERSION + 1)
    monkeypatch.setattr(store, "ENGINE_VERSION", ENGINE_VERSION + 1)
    assert asked.name() != old.path.name
    found = open_run(old.path, old.path.parent)
    said = f"was trained by engine version {ENGINE_VERSION} and this is {ENGINE_VERSION + 1}, which cannot continue it"
    with pytest.raises(StoreError, match=said):
        store.check_current(found)


def as_of_old(run: store.Run) -> Path:
    """The folder of a run as this workbook made it before engine and protocol had versions, under the name that it had then."""
    path = run.path.rename(run.path.with_name("tiny-metaug-conv-s0-0123456789"))
    values = files.read_json(path / "config.json")
    del values["mag_objective"], values["look_ahead_loss"]  # settings that came later
    files.write_json(path / "config.json", values)
    sessions = files.read_json(path / "environment.json")
    files.write_json(path / "environment.json", [{k: v for k, v in one.items() if k != "engine"} for one in sessions])
    stored = files.read_json(path / "evaluation-test.json")
    old = {
        name: {k: v for k, v in row.items() if k != "evaluation_version"} | {"knn": 0.123}
        for name, row in stored.items()
    }
    files.write_json(path / "evaluation-test.json", old)
    return path


def test_an_old_run_is_found_and_read_and_left_alone(tiny, tmp_path):
    asked = tiny(epochs=1)
    run = fit(asked, quiet)
    evaluate(run, measures=("knn",))
    path = as_of_old(run)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    (old,) = list_runs(path.parent)
    assert (old.path, old.finished, old.config) == (path, True, asked)
    assert not old.current
    row = tables.read_row(old)
    assert (row["run"], row["state"], row["engine"], row["knn"]) == (path.name, "finished", None, None)
    assert len(old.metrics) == len(tables.files.rows(path / "metrics.jsonl")) > 0
    new = fit(asked, quiet)  # not the old one
    assert new.path != path
    assert [one.path for one in notebook.find_seeds(new)] == [new.path]
    (path / "finished.json").unlink()
    del before[path / "finished.json"]
    with pytest.raises(
        StoreError, match=r"was trained by engine version before 1 and this is \d+, which cannot continue it"
    ):
        store.check_current(old)
    assert background.train(path) == 1
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != ".lock"} == {
        file: content for file, content in before.items() if file.name != ".lock"
    }


def test_results_of_another_protocol_are_measured_again_and_not_mixed(tiny, monkeypatch):
    run = fit(tiny(epochs=1), quiet)
    right = evaluate(run, measures=("knn",), representations=("trained",))
    file = run.evaluation_file()
    stored = files.read_json(file)
    assert stored["trained"]["evaluation_version"] == EVALUATION_VERSION
    other = stored["trained"] | {"evaluation_version": EVALUATION_VERSION - 1, "knn": 0.5, "probe_fast": 0.5}
    files.write_json(file, {"trained": other, "untrained": other})
    assert tables.read_row(run)["knn"] is None
    assert tables.list_missing([run], ("knn",), ("trained",)) == [run]
    assert evaluate(run, measures=("knn",), representations=("trained",)).equals(right)
    assert files.read_json(file) == stored
    assert tables.read_row(run)["probe_fast"] is None


def test_the_plain_probe_that_version_1_stored_as_probe_paper_is_not_shown_as_the_new_one(tiny):
    run = fit(tiny(epochs=1), quiet)
    evaluate(run, measures=("probe_plain",), representations=("trained",))
    stored = files.read_json(run.evaluation_file())["trained"]
    old = {name: value for name, value in stored.items() if name != "probe_plain"}
    old |= {"probe_paper": stored["probe_plain"], "evaluation_version": 1}
    files.write_json(run.evaluation_file(), {"trained": old, "untrained": old})
    assert run.evaluation() == {}
    row = tables.read_row(run)
    assert (row["probe_paper"], row["probe_plain"], row["untrained_probe_paper"]) == (None, None, None)
    assert listing.read_folder(run.path).probe_plain is None
    assert tables.list_missing([run], ("probe_paper",), ("trained",)) == [run]
    again = evaluate(run, measures=("probe_plain",), representations=("trained",))
    assert again.loc["trained", "probe_plain"] == stored["probe_plain"]
    assert "probe_paper" not in files.read_json(run.evaluation_file())["trained"]
    assert listing.read_folder(run.path).probe_plain == stored["probe_plain"]


# --- another method
def test_replace_takes_the_defaults_of_another_method():
    simclr = Config(method="simclr", lr=0.1)
    assert simclr.replace(method="cmc") == Config(method="cmc", lr=0.1)
    assert simclr.replace(method="barlow", lr=0.2) == Config(method="barlow", lr=0.2)
    assert simclr.replace(seed=3).replace(method="moco") == Config(method="moco", lr=0.1, seed=3)
    kept = Config(method="simclr", temperature=0.5, jitter=0.3).replace(
        method="moco"
    )  # given, though it is SimCLR's default
    assert (kept.temperature, kept.jitter, kept.head) == (0.5, 0.3, "mlp")


@pytest.mark.parametrize("name", ["quick", "sketch", "paper"])
@pytest.mark.parametrize(
    ("one", "other"), [("simclr", "metaug"), ("metaug", "simclr"), ("nat", "cpc"), ("cmc", "cmc+randaugment")]
)
def test_replace_gives_what_the_preset_of_the_other_method_is(name, one, other):
    assert preset(name, method=one, seed=2).replace(method=other) == preset(name, method=other, seed=2)
    assert preset(name, method=one, flip=0.2).replace(method=other, lr=0.5).replace(epochs=50, keep_last=1) == preset(
        name, method=other, flip=0.2, lr=0.5, epochs=50, keep_last=1
    )


def test_replace_of_a_run_on_disk_takes_what_differs_from_its_methods_defaults_as_given(tiny):
    values = {key: value for key, value in TINY.items() if key != "views"}
    asked = Config(**{**values, "method": "simclr", "runs_dir": tiny().runs_dir})
    store.begin(store.request(asked), 0, "cpu")
    found = store.open_run(asked.name(), asked.runs_dir).config
    assert found == asked
    assert found.replace(method="cmc") == asked.replace(method="cmc")
    assert found.replace(method="cmc").views == ("L", "ab", "RGB")


def test_configs_are_equal_by_their_settings(tiny):
    assert preset("quick", method="cmc") == preset("quick").replace(method="cmc")
    assert hash(preset("quick", method="cmc")) == hash(preset("quick").replace(method="cmc"))
    assert tiny() != tiny(seed=1)
    assert tiny() != "tiny"


if __name__ == "__main__":
    RECORD.write_text(json.dumps(defaults(), indent=1, sort_keys=True) + "\n")
