"""Bad input gives one sentence that names what and where, as a MetaugError, and nothing that was there is lost."""

import json
import math
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY, patterns
from torch import nn

from metaug_core import DATASETS, ENCODERS, METHODS, Config, ConfigError, MetaugError, evaluate, fit, open_run, preset
from metaug_core.errors import suggestion
from metaug_core.evaluation.representations import refuse_unknown
from metaug_core.methods import Method
from metaug_core.runs.files import read_json, read_tensors, write_tensors
from metaug_core.runs.store import request


def quiet(progress):
    pass


def one_sentence(error: pytest.ExceptionInfo) -> str:
    said = str(error.value)
    assert isinstance(error.value, MetaugError)
    assert "\n" not in said
    assert len(said) < 600
    for jargon in ("Traceback", "pydantic", "<class", "validation", "input should", "Error("):
        assert jargon not in said, said
    return said


# --- settings: field, value, what is said

SETTINGS: list[tuple[dict[str, Any], str]] = [
    # unknown
    ({"epoch": 3}, "unknown setting 'epoch'; did you mean 'epochs'?"),
    ({"gama": 0.4}, "unknown setting 'gama'; did you mean 'gamma'?"),
    ({"learning_rate": 0.1}, "unknown setting 'learning_rate'"),
    ({"xyzzy": 1}, "unknown setting 'xyzzy'; Config lists them all"),
    ({"self": 1}, "unknown setting 'self'"),
    ({"bad\nname": 1}, r"unknown setting 'bad\nname'"),
    ({"\udcff": 1, "epochs": 2}, r"unknown setting '\udcff'"),
    ({"epochs": "\udcff"}, r"epochs: is no UTF-8, got '\udcff'"),
    ({"method": "metaugg"}, "unknown method 'metaugg'; did you mean 'metaug'?"),
    ({"method": ["metaug"]}, "method: must be a text, got ['metaug']"),
    ({"method": None}, "method: must be a text, got None"),
    ({"encoder": "resnet51"}, "unknown encoder 'resnet51'; did you mean 'resnet50'?"),
    ({"encoder": "vit"}, "unknown encoder 'vit'; known: conv, fc, resnet18, resnet50"),
    ({"dataset": "cifar-10"}, "unknown dataset 'cifar-10'; did you mean 'cifar10'?"),
    ({"dataset": "x" * 9999}, "unknown dataset 'xxxxx"),
    ({"dataset": {"shapes": 1}}, "dataset: must be a text, got {'shapes': 1}"),
    ({"views": ("L", "AB")}, "unknown view 'AB'; known: DbDr, L, Lab, RGB, Sobel, Y, ab"),
    ({"views": ("Labb", "RGB")}, "unknown view 'Labb'; did you mean 'Lab'?"),
    # ill-typed
    ({"views": "L"}, "views: must be a list, got 'L'"),
    ({"views": {"L"}}, "views: needs a list or a single value: a set has no order that lasts, got {'L'}"),
    ({"views": frozenset({"L"})}, "views: needs a list or a single value: a frozenset has no order that lasts"),
    (
        {"views": (name for name in ("L", "ab"))},
        "views: needs a list or a single value: a generator has no order that lasts",
    ),
    ({"views": {"L": 1}.keys()}, "views: needs a list or a single value: a dict_keys has no order that lasts"),
    ({"jitter_ranges": {1: 0.1}.values()}, "jitter_ranges: needs a list or a single value: a dict_values has no order"),
    (
        {"lr_steps": map(int, "1"), "lr_schedule": "step"},
        "lr_steps: needs a list or a single value: a map has no order",
    ),
    ({"views": ("L", 3)}, "views[1]: must be a text, got 3"),
    ({"epochs": "many"}, "epochs: must be a whole number, got 'many'"),
    ({"epochs": 2.5}, "epochs: must be whole, not a number with a fractional part, got 2.5"),
    ({"epochs": True}, "epochs: is not a switch, got True"),
    ({"epochs": None}, "epochs: must be a whole number, got None"),
    ({"epochs": "9" * 5000}, "epochs: "),
    ({"lr": "fast"}, "lr: must be a number, got 'fast'"),
    ({"lr": [0.1]}, "lr: must be a number, got [0.1]"),
    ({"flip": "a\nb"}, r"flip: must be a number, got 'a\nb'"),
    ({"tensorboard": "maybe"}, "tensorboard: must be true or false, got 'maybe'"),
    ({"crop_scale": 0.5}, "crop_scale: must be a list, got 0.5"),
    ({"crop_scale": (0.5,)}, "crop_scale: has too few values, number 2 is missing, got (0.5,)"),
    ({"crop_scale": (0.1, 0.2, 0.3)}, "crop_scale: needs at most 2 in its list, got (0.1, 0.2, 0.3)"),
    ({"crop_scale": (0.1, "x")}, "crop_scale[1]: must be a number, got 'x'"),
    ({"lr_steps": 5, "lr_schedule": "step"}, "lr_steps: must be a list, got 5"),
    ({"runs_dir": 3}, "runs_dir: must be a path, got 3"),
    ({"runs_dir": "a\0b"}, r"runs_dir: holds a NUL character, got 'a\x00b'"),
    ({"seed": "x", "gamma": 3, "beta": -1}, "beta: must be greater than 0, got -1 (and 2 more faults)"),
    # out of range
    ({"views": ()}, "views: needs at least 1 in its list, got ()"),
    ({"epochs": 0}, "epochs: must be greater than 0, got 0"),
    ({"epochs": math.inf}, "epochs: must be finite, got inf"),
    ({"batch_size": 1}, "batch_size: must be greater than or equal to 2, got 1"),
    ({"image_size": 4}, "image_size: must be greater than or equal to 8, got 4"),
    ({"val_fraction": 1}, "val_fraction: must be less than 1, got 1"),
    ({"workers": -1}, "workers: must be greater than or equal to 0, got -1"),
    ({"gamma": 1.5}, "gamma: must be less than or equal to 1, got 1.5"),
    ({"gamma": math.nan}, "gamma: "),
    ({"beta": 1e9}, "beta: must be less than or equal to 1024"),
    ({"temperature": 0}, "temperature: must be greater than 0, got 0"),
    ({"temperature": "nan"}, "temperature: must be finite, got 'nan'"),
    ({"oucl": "eq8", "oucl_lambda": math.inf}, "oucl_lambda: must be finite, got inf"),
    ({"oucl": "eq11"}, "oucl: must be 'eq7', 'eq8', 'eq9' or 'eq10', got 'eq11'"),
    ({"margin": "huge"}, "margin: must be 'large', 'medium', 'small' or 'none', got 'huge'"),
    ({"delta": -1}, "delta: must be greater than or equal to 0, got -1"),
    ({"lr": -0.1}, "lr: must be greater than 0, got -0.1"),
    ({"lr": math.nan}, "lr: must be"),
    ({"inner_lr": math.inf}, "inner_lr: must be finite, got inf"),
    ({"momentum": 1}, "momentum: must be less than 1, got 1"),
    ({"seed": 2**40}, "seed: must be less than 2147483648"),
    ({"bank_negatives": 10**12}, "bank_negatives: must be less than 2147483648, got 1000000000000"),
    ({"queue_size": 10**12}, "queue_size: must be less than 2147483648"),
    ({"workers": 10**6}, "workers: must be less than or equal to 1024, got 1000000"),
    ({"train_images": "al"}, "train_images: must be a whole number, got 'al'"),
    ({"train_images": 0}, "train_images: must be greater than 0, got 0"),
    ({"device": "gpu"}, "device: must be 'auto', 'cpu', 'cuda' or 'mps', got 'gpu'"),
    # contradictory
    ({"crop_scale": (0.9, 0.2)}, "crop_scale: needs 0 < low <= high, got (0.9, 0.2)"),
    ({"stem": "paper", "image_size": 32}, "stem 'paper' needs image_size >= 64, got 32"),
    ({"negatives": "batch", "positives": "bank"}, "positives 'bank' needs negatives 'bank', got 'batch'"),
    (
        {"negatives": "batch", "bank_writes": "every-pass"},
        "bank_writes 'every-pass' needs negatives 'bank', got 'batch'",
    ),
    ({"train_images": 20, "batch_size": 32}, "train_images 20 less val_fraction 0.1 gives no batch of 32"),
    ({"oucl": "eq10", "phi_dec": 6}, "phi_dec, gamma_detached and attenuate change Gamma, which only oucl 'eq9' has"),
    ({"oucl": "eq10", "oucl_lambda": 0.5}, "oucl_lambda is of eq7 and eq8, got oucl 'eq10'"),
    ({"margin_features": "all", "margin_pairs": "both"}, "margin_features 'all' needs margin_pairs 'other'"),
    ({"schedule": "epoch", "look_ahead": "fresh"}, "look_ahead is of schedule 'alternate'"),
    ({"lr_steps": (1,)}, "lr_steps goes with lr_schedule 'step', got 'constant' and (1,)"),
    ({"lr_schedule": "step"}, "lr_steps goes with lr_schedule 'step', got 'step' and ()"),
    ({"lr_schedule": "step", "lr_steps": (3, 2)}, "lr_steps must rise, got (3, 2)"),
    ({"lr_schedule": "step", "lr_steps": (5,), "epochs": 5}, "lr_steps must lie before epochs 5, got (5,)"),
    ({"warmup_epochs": 5, "epochs": 5}, "warmup_epochs 5 must be less than epochs 5"),
    ({"keep_last": 6, "epochs": 5}, "keep_last 6 is more than epochs 5"),
]


@pytest.mark.parametrize(
    ("values", "said"), SETTINGS, ids=lambda value: None if isinstance(value, str) else ",".join(value)[:40]
)
def test_settings(values, said):
    with pytest.raises(ConfigError) as error:
        Config(**values)
    assert said in one_sentence(error)
    with pytest.raises(ConfigError) as error:
        Config(**TINY).replace(**values)
    one_sentence(error)


@pytest.mark.parametrize("name", ["paperr", "", "quick "])
def test_presets(name):
    with pytest.raises(ConfigError) as error:
        preset(name)
    assert f"unknown preset {name!r}" in one_sentence(error)


@pytest.mark.parametrize(
    "changes", [{"method": ["metaug"]}, {"dataset": ["shapes"]}, {"epochss": 4}, {"method": "metaugg"}]
)
def test_presets_with_changes(changes):
    with pytest.raises(ConfigError) as error:
        preset("quick", **changes)
    assert next(iter(changes)) in one_sentence(error)


# --- data sets, as they are loaded for a run


def images(count=100, seed=0):
    return patterns(count, seed)


LOADERS: list[tuple[Any, dict[str, Any], str]] = [
    (lambda config: None, {}, "bad: its loader must return"),
    (lambda config: (*images(), images()[0]), {}, "bad: its loader must return"),
    (
        lambda config: (images()[0].astype(np.float32), images()[1], *images()),
        {},
        "bad, training: images must be uint8",
    ),
    (lambda config: (images()[0][:, :2], images()[1], *images()), {}, "bad, training: images must be uint8"),
    (lambda config: (images()[0], images()[1][:50], *images()), {}, "bad, training"),
    (
        lambda config: (images()[0], images()[1] * 0, images()[0], images()[1] * 0),
        {},
        "bad, training: the images are of fewer than two classes",
    ),
    (lambda config: (*images(), images()[0], images()[1] + 9), {}, "bad, test"),
    (lambda config: (*images(0), *images()), {}, "bad, training: there are no images"),
    (lambda config: (*images(), images()[0][:, :, :8], images()[1]), {}, "bad: training images are"),
    (lambda config: (*images(10), *images()), {}, "batch_size 16 is more than the 9 training images of bad"),
    (
        lambda config: (*images(17), *images()),
        {"val_fraction": 0.05},
        "the bank needs more images than batch_size 16, got 16",
    ),
    (
        lambda config: images() * 2,
        {"train_images": 500},
        "train_images 500 is more than the 100 training images of bad",
    ),
    (lambda config: (*images(20), *images()), {"val_fraction": 0.001}, "val_fraction 0.001 of 20 images of bad"),
    (lambda config: torch.empty(2**50), {}, "there is not enough memory: tried to allocate 4503599627370496 bytes; "),
    (lambda config: torch.empty(2**40, 2**40), {}, "there is not enough memory: "),
    (lambda config: (["/nowhere/a.png"] * 50, images(50)[1], *images()), {}, "/nowhere/a.png is missing"),
]


@pytest.mark.parametrize(("loader", "changes", "said"), LOADERS, ids=[said[:45] for *_, said in LOADERS])
def test_data_sets(tiny, monkeypatch, loader, changes, said):
    monkeypatch.setitem(DATASETS, "bad", loader)
    config = tiny(dataset="bad", **changes)
    with pytest.raises(MetaugError) as error:
        fit(config, quiet)
    assert said in one_sentence(error)
    assert not (request(config).path / "config.json").exists()  # no run is left that cannot be resumed


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ("cifar10", "cifar10 is not in {}: run `metaug download cifar10`, or put cifar-10-batches-py"),
        ("stl10", "stl10 is not in {}: run `metaug download stl10`"),
        ("tiny-imagenet", "tiny-imagenet is not in {}: download it from its authors and put tiny-imagenet-200 there"),
        ("imagenet", "imagenet is not in {}: download it from its authors"),
        ("folder", "{}"),
    ],
)
def test_missing_data(tiny, tmp_path, dataset, said):
    with pytest.raises(MetaugError) as error:
        fit(tiny(dataset=dataset, data_dir=tmp_path / "nowhere"), quiet)
    assert said.format(tmp_path / "nowhere") in one_sentence(error)


# --- methods, networks, devices


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"views": ("L",)}, "method 'metaug' contrasts at least 2 views, got L"),
        ({"method": "simclr", "views": ("RGB",)}, "method 'simclr' contrasts at least 2 views, got RGB"),
        ({"encoder": "resnet18"}, "encoder 'resnet18' has only width 1, got 0.05"),
        ({"encoder": "strange"}, "encoder 'strange' gives shape (2, 1, 16, 16) from 2 images, needs (2, D)"),
        ({"encoder": "narrow"}, "encoder 'narrow' does not take 1 x 16 px images"),
    ],
)
def test_networks(tiny, monkeypatch, changes, said):
    monkeypatch.setitem(ENCODERS, "strange", lambda channels, config: nn.Conv2d(channels, 1, 1))
    monkeypatch.setitem(ENCODERS, "narrow", lambda channels, config: nn.Sequential(nn.Flatten(), nn.Linear(7, 3)))
    with pytest.raises(MetaugError) as error:
        fit(tiny(**changes), quiet)
    assert said in one_sentence(error)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(tiny):
    with pytest.raises(ConfigError) as error:
        fit(tiny(device="cuda"), quiet)
    assert one_sentence(error) == "device 'cuda' is not available on this machine; device 'auto' takes what there is"


@pytest.mark.parametrize("place", ["file", "below a file", "/proc/metaug", "name too long"])
def test_an_unwritable_runs_dir(tiny, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    places = {
        "file": tmp_path / "file",
        "below a file": tmp_path / "file" / "runs",
        "name too long": tmp_path / ("x" * 300),
    }
    runs_dir = places.get(place, Path(place))
    with pytest.raises(MetaugError) as error:
        fit(tiny(runs_dir=runs_dir), quiet)
    assert one_sentence(error).startswith(f"cannot write {runs_dir}/tiny-metaug")
    assert (tmp_path / "file").read_text() == "mine"


# --- a run's files


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run that was interrupted at the end of its first pass, and a finished one of other settings."""
    folder = tmp_path_factory.mktemp("made")

    def stop(progress):
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("metaug_core.training.loop.REPORT_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            fit(Config(**{**TINY, "runs_dir": folder}), stop)
    fit(Config(**{**TINY, "method": "simclr", "views": ("RGB", "RGB"), "epochs": 1, "runs_dir": folder}), quiet)
    return folder


@pytest.fixture
def half(made, tmp_path) -> Config:
    """The config of a run that stands at step 5 of 10, in a folder of its own."""
    shutil.copytree(made, tmp_path / "runs")
    return Config(**{**TINY, "runs_dir": tmp_path / "runs"})


def other_checkpoint(config: Config) -> Path:
    return next(path for path in config.runs_dir.glob("*simclr*/checkpoint.safetensors"))


def changed(path: Path, **changes: Any) -> None:
    tensors, scalars = read_tensors(path)
    for name, value in changes.items():
        if name in scalars:
            scalars[name] = value
        elif value is None:
            tensors.pop(name.replace("__", "."))
        else:
            tensors[name.replace("__", ".")] = value
    write_tensors(path, tensors, scalars)


def rewritten(path: Path, metadata: dict[str, str] | None) -> None:
    import safetensors.torch

    path.write_bytes(safetensors.torch.save({"a": torch.ones(2)}, metadata))


CHECKPOINTS: dict[str, tuple[Any, str]] = {
    "truncated": (lambda path, config: path.write_bytes(path.read_bytes()[:-100]), "cannot read {}: "),
    "header only": (lambda path, config: path.write_bytes(path.read_bytes()[:60]), "cannot read {}: "),
    "empty": (lambda path, config: path.write_bytes(b""), "cannot read {}: "),
    "noise": (lambda path, config: path.write_bytes(bytes(range(256)) * 40), "cannot read {}: "),
    "text": (lambda path, config: path.write_text("{}\n" * 100), "cannot read {}: "),
    "a pickle": (lambda path, config: torch.save({"a": torch.ones(2)}, path), "cannot read {}: "),
    "a folder": (lambda path, config: (path.unlink(), path.mkdir()), "cannot read {}: "),
    "foreign": (lambda path, config: rewritten(path, None), "{} was not written by this workbook (format None"),
    "of another format": (
        lambda path, config: rewritten(path, {"format": "metaug-run-9"}),
        "(format 'metaug-run-9', not",
    ),
    "no scalars": (lambda path, config: rewritten(path, {"format": "metaug-run-1"}), "its scalars are damaged"),
    "bad scalars": (
        lambda path, config: rewritten(path, {"format": "metaug-run-1", "scalars": "[3]"}),
        "cannot read {}: its scalars are damaged",
    ),
    "of another run": (
        lambda path, config: shutil.copy(other_checkpoint(config), path),
        "{} does not fit: its run is 'tiny-simclr-conv-s0-",
    ),
    "of other images": (
        lambda path, config: changed(path, images=80),
        "{} does not fit: its images is 80, here it is 90",
    ),
    "a tensor is missing": (
        lambda path, config: changed(path, networks__heads__L__bias=None),
        "networks.heads.L.bias is in only one of the two",
    ),
    "another shape": (
        lambda path, config: changed(path, memory__entries=torch.ones(2, 3, 8)),
        "memory.entries has shape (2, 3, 8) instead of (2, 90, 8)",
    ),
    "a generator is missing": (
        lambda path, config: changed(path, generator__views=None),
        "{} is not a whole checkpoint: ",
    ),
    "a generator is damaged": (
        lambda path, config: changed(path, generator__views=torch.ones(3, dtype=torch.uint8)),
        "{} is not a whole checkpoint: ",
    ),
    "the step is no number": (lambda path, config: changed(path, step="five"), "{} is not a whole checkpoint: "),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(half, name):
    damage, said = CHECKPOINTS[name]
    run = request(half)
    good, path = run.checkpoint.read_bytes(), run.checkpoint
    rows, sessions = (run.path / "metrics.jsonl").read_bytes(), (run.path / "environment.json").read_bytes()
    damage(path, half)
    with pytest.raises(MetaugError) as error:
        fit(half, quiet)
    assert said.format(path) in one_sentence(error)
    # Nothing else was touched: with the checkpoint put back, the run goes on.
    assert (run.path / "metrics.jsonl").read_bytes() == rows
    assert (run.path / "environment.json").read_bytes() == sessions
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.write_bytes(good)
    assert fit(half, quiet).finished


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "cannot read {}: "),
        ("{", "cannot read {}: "),
        ("[1, 2]", "{} does not hold a config"),
        ("null", "{} does not hold a config"),
        ('{"epochs": "x"}', "{}: epochs: must be a whole number, got 'x'"),
        ('{"colour": 3}', "{}: unknown setting 'colour'"),
        ('{"method": "theirs"}', "{}: unknown method 'theirs'"),
        ('{"self": 3}', "{}: unknown setting 'self'"),
        ("\x00\x01", "cannot read {}: "),
    ],
)
def test_configs_on_disk(half, content, said):
    path = request(half).path / "config.json"
    path.write_text(content)
    with pytest.raises(MetaugError) as error:
        open_run(request(half).path.name, half.runs_dir)
    assert said.format(path) in one_sentence(error)


@pytest.mark.parametrize(
    ("name", "content"), [("metrics.jsonl", "{]\n"), ("timing.jsonl", "3\n"), ("environment.json", "{")]
)
def test_other_files_on_disk(half, name, content):
    path = request(half).path / name
    good = request(half).checkpoint.read_bytes()
    path.write_text(content)
    with pytest.raises(MetaugError) as error:
        fit(half, quiet)
    assert str(path) in one_sentence(error)
    assert request(half).checkpoint.read_bytes() == good


def test_encoders_on_disk(half):
    run = open_run("tiny-simclr", half.runs_dir)
    file = run.encoder_files()[0]
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(MetaugError) as error:
        evaluate(run)
    assert f"cannot read {file}: " in one_sentence(error)
    assert not (run.path / "evaluation-test.json").exists()


# --- NaN and infinity


# Apart from the class: the same method, and so the same run, with a fault and without.
CALLS = {"loss": 0}  # and FAULT_AT, FAULT_HOW in the environment: what the code itself reads would be another run


class Breaking(Method):
    """Its loss, or only its gradient, is no number from a given call on."""

    def loss(self, z, context):
        CALLS["loss"] += 1
        if CALLS["loss"] < int(os.environ["FAULT_AT"]):
            return (z[0] - z[1]).square().mean()
        if os.environ["FAULT_HOW"] == "gradient":
            return ((z[0] - z[0]).square().sum()).sqrt()  # 0, and 0 / 0
        return (z[0] - z[1]).square().mean() * float(os.environ["FAULT_HOW"])


@pytest.mark.parametrize(("how", "said"), [("nan", "loss_original is nan"), ("inf", "loss_original is inf")])
def test_a_loss_that_is_no_number_stops_the_run_at_its_step(tiny, monkeypatch, how, said):
    monkeypatch.setitem(METHODS, "breaking", Breaking)
    monkeypatch.setenv("FAULT_AT", "8")
    monkeypatch.setenv("FAULT_HOW", how)
    monkeypatch.setitem(CALLS, "loss", -1)
    config = tiny(method="breaking", checkpoint_minutes=1e-9)
    run = request(config)
    with pytest.raises(MetaugError) as error:
        fit(config, quiet)
    assert one_sentence(error).startswith(
        f"run {run.path.name} stopped at step 8: {said}; the last good checkpoint is kept"
    )
    tensors, scalars = read_tensors(run.checkpoint)
    assert scalars["step"] == 7
    assert all(torch.isfinite(t).all() for t in tensors.values())
    assert max(run.metrics["step"]) == 6
    monkeypatch.setenv("FAULT_AT", str(10**9))  # mended: it goes on from there
    assert max(fit(config, quiet).metrics["step"]) == 10
    assert [session["from_step"] for session in read_json(run.path / "environment.json")] == [0, 7]


def test_the_sentence_of_a_run_that_stops_early_says_that_nothing_was_saved(tiny, monkeypatch):
    monkeypatch.setitem(METHODS, "breaking", Breaking)
    monkeypatch.setenv("FAULT_AT", "3")
    monkeypatch.setenv("FAULT_HOW", "nan")
    monkeypatch.setitem(CALLS, "loss", -1)
    with pytest.raises(MetaugError) as error:
        fit(tiny(method="breaking"), quiet)
    assert "stopped at step 3: loss_original is nan; no checkpoint had been made (" in one_sentence(error)


@pytest.mark.parametrize("at", [1, 7, 10])
def test_weights_that_are_no_numbers_are_not_saved(tiny, monkeypatch, at):
    """The loss of step `at` is finite and its gradient is not; a checkpoint is due before the next loss."""
    monkeypatch.setitem(METHODS, "breaking", Breaking)
    monkeypatch.setenv("FAULT_AT", str(at))
    monkeypatch.setenv("FAULT_HOW", "gradient")
    monkeypatch.setitem(CALLS, "loss", -1)
    config = tiny(method="breaking", log_every=1, checkpoint_minutes=1e-9)
    with pytest.raises(MetaugError) as error:
        fit(config, quiet)
    kept = "no checkpoint had been made" if at == 1 else "the last good checkpoint is kept"
    assert re.search(rf"stopped at step {at}: networks\S+ is not finite; {kept} \(a lower", one_sentence(error))
    run = request(config)
    assert not run.finished
    if at == 1:
        assert not run.checkpoint.exists()
    else:
        assert all(torch.isfinite(t).all() for t in read_tensors(run.checkpoint)[0].values())
    monkeypatch.setenv("FAULT_AT", str(10**9))
    assert fit(config, quiet).finished


@pytest.mark.parametrize(
    "changes", [{"inner_lr": 1e38}, {"optimiser": "sgd", "lr": 1e38}, {"mag_optimiser": "sgd", "mag_lr": 1e38}]
)
@pytest.mark.parametrize("method", ["metaug", "metaug-only-mag"])
def test_rates_far_too_high_are_one_sentence(tiny, changes, method):
    """Whatever diverges: a sentence, or a run that stays finite; never an error of linear algebra."""
    config, said = tiny(method=method, log_every=1, **changes), None
    try:
        fit(config, quiet)
    except MetaugError as error:
        said = str(error)
    assert said is None or re.fullmatch(r"run \S+ stopped at step \d+: \S+ is (nan|inf|-inf|not finite); [^\n]+", said)
    numbers = request(config).metrics.fillna(0.0)
    assert np.isfinite(numbers.to_numpy()).all()


# --- the command line: the same sentences, an exit code, no traceback

COMMANDS: list[tuple[list[str], str]] = [
    (["resume", "no-such-run"], "no run 'no-such-run' in"),
    (["resume", "tiny"], "is the beginning of 2 runs"),
    (["resume", "RUNS/corrupt"], "cannot read"),
    (["resume", "RUNS/strange"], "unknown method 'theirs'"),
    (["run", "no-such-notebook"], "no-such-notebook"),
    (["run", "01_pretrain", "-p", "epochss", "3"], "epochss"),
    (["run", "01_pretrain", "-p", "epochs", "0"], "epochs"),
    (["run", "01_pretrain", "-p", "epochs", "many"], "epochs"),
    (["run", "01_pretrain", "-p", "method", "metaugg"], "did you mean 'metaug'"),
    (["run", "01_pretrain", "-p", "preset", "paperr"], "paperr"),
    (["download", "no-such-data"], "no-such-data"),
]


@pytest.mark.parametrize(("words", "said"), COMMANDS, ids=[" ".join(words) for words, _ in COMMANDS])
def test_commands(half, words, said):
    cli = pytest.importorskip("metaug_workbook.cli.main")
    from click.testing import CliRunner

    for name, content in (("corrupt", "{"), ("strange", '{"method": "theirs"}')):
        (half.runs_dir / name).mkdir()
        (half.runs_dir / name / "config.json").write_text(content)
    words = [word.replace("RUNS", str(half.runs_dir)) for word in words]
    more = ["--runs-dir", str(half.runs_dir)] if words[0] != "download" else []
    before = {path: path.stat().st_mtime_ns for path in half.runs_dir.rglob("*") if path.is_file()}
    result = CliRunner().invoke(cli.main, [*words, *more])
    assert result.exit_code not in (0, 1), result.output
    assert "Traceback" not in result.output
    assert said in result.output
    assert before == {path: path.stat().st_mtime_ns for path in half.runs_dir.rglob("*") if path.is_file()}


def test_there_are_enough_cases():
    counted = [SETTINGS, LOADERS, CHECKPOINTS, COMMANDS]
    assert sum(map(len, counted)) >= 100
    assert json.dumps([said for _, said in SETTINGS])


def test_what_is_evaluated_has_an_order():
    with pytest.raises(MetaugError, match="^measures: needs a list or a single value: a set has no order that lasts"):
        refuse_unknown({"knn", "probe_fast"}, ("trained",))


def test_of_a_long_list_the_first_names_are_said():
    assert suggestion("?", [f"name{n:02d}" for n in range(26)]).endswith("name22, name23 and 2 more")
