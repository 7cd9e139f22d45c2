"""One run over two processes (gloo, on the CPU) is the run of one process."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from tiny import ROOT, TINY
from torch.nn import functional as F

from metaug_core import Config, ConfigError, fit
from metaug_core.runs.files import read_tensors, rows
from metaug_core.runs.store import STOP_REQUEST, open_run, request
from metaug_core.runtime import distributed

SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import tiny
from metaug_core import Config, fit
from metaug_core.runtime import device, distributed
from metaug_core.methods import base
from metaug_core.methods.baselines import infomin
from metaug_core.views.augmentation import make_views
configs, parts = json.loads(sys.argv[2]), json.loads(sys.argv[3])

def in_single(*arguments):
    torch.set_default_dtype(torch.float32)
    views = [view.double() for view in make_views(*arguments)]
    torch.set_default_dtype(torch.float64)
    return views

# Everything but the pictures in float64, where rounding does not grow from step to step.
base.make_views = infomin.make_views = in_single
device.DTYPE = torch.float64
if parts:
    distributed.whole_batch.__globals__["WholeBatch"] = distributed.nullcontext
for config in configs:
    fit(Config(**config), lambda progress: None)
"""


def start_torchrun(folder, configs, processes=2, parts=False):
    """Begin to train the configs one after the other, each over so many processes. parts: every process by its own batch
    statistics."""
    (folder / "script.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
         str(folder / "script.py"), str(ROOT / "tests"),
         json.dumps([c.model_dump(mode="json") for c in configs]), json.dumps(parts)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def torchrun(*arguments, **options):
    """As `start_torchrun`, to the end: exit code and what stands on stderr."""
    process = start_torchrun(*arguments, **options)
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def difference(a, b):
    """Largest difference of two checkpoints' weights, MAG, bank, statistics and optimiser states, relative to each one's size."""
    (a, scalars), (b, others) = read_tensors(a.checkpoint), read_tensors(b.checkpoint)
    assert a.keys() == b.keys()
    assert scalars["step"] == others["step"]
    return max(
        float((a[name] - b[name]).abs().max() / b[name].abs().max().clamp(min=1e-3))
        for name in a
        if b[name].is_floating_point()
    )


CASES = {
    "metaug": {},
    "authors": {
        "look_ahead": "fresh",
        "bank_draw": "per-anchor",
        "augmented_sets": "swapped",
        "margin_everywhere": True,
    },
    "epoch": {"schedule": "epoch", "optimiser": "sgd"},
    "simclr with mixup": {"method": "simclr", "views": ("RGB", "RGB"), "mixup": 0.3, "jitter": 0.5},
    "cmc in the batch": {"method": "cmc", "negatives": "batch", "encoder": "fc"},
    "resnet18": {"encoder": "resnet18", "width": 1.0, "epochs": 1, "train_images": 48, "method": "metaug-only-mag"},
    "supervised": {"method": "supervised"},
    "moco": {"method": "moco", "queue_size": 32},
    "byol with a mag": {"method": "byol+mag", "head_hidden": 16, "predictor_hidden": 16},
    "own recipe of byol": {
        "method": "byol",
        "protocol": "own",
        "views": ("RGB", "RGB"),
        "head_hidden": 16,
        "predictor_hidden": 16,
    },
    "own recipe of moco": {"method": "moco", "protocol": "own", "views": ("RGB", "RGB"), "queue_size": 64},
    "swav with a queue": {"method": "swav+hard", "queue_size": 32, "head_hidden": 16, "prototypes": 6},
    "infomin": {"method": "infomin", "views": ("RGB", "RGB"), "queue_size": 32},
    "nat": {"method": "nat", "views": ("Sobel",), "head_hidden": 16},
    "dim": {"method": "dim", "dim_units": 16, "dim_bound": "infonce"},
    "metaug on nnclr": {"method": "metaug-nnclr", "queue_size": 32, "head_hidden": 16, "predictor_hidden": 16},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Every case over two processes and over one: (folder, {case: (run of two, run of one)})."""
    folder = tmp_path_factory.mktemp("shards")
    runs = []
    for processes in (2, 1):
        values = {**TINY, "val_fraction": 0, "runs_dir": folder / str(processes)}
        configs = [Config(**{**values, **changes}) for changes in CASES.values()]
        code, errors = torchrun(folder, configs, processes)
        assert code == 0, errors[-3000:]
        runs.append([open_run(config.name(), config.runs_dir) for config in configs])
    return folder, dict(zip(CASES, zip(*runs, strict=True), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(trained, case):
    together, alone = trained[1][case]
    assert together.finished
    assert alone.finished
    assert difference(together, alone) < 1e-6
    assert together.metrics.columns.tolist() == alone.metrics.columns.tolist()
    for name in alone.metrics:
        assert together.metrics[name].tolist() == pytest.approx(alone.metrics[name].tolist(), rel=1e-5, nan_ok=True)


@pytest.mark.slow
def test_statistics_of_a_part_would_be_seen(trained):
    """A control: without the whole minibatch's statistics the same comparison fails."""
    folder, runs = trained
    config = runs["metaug"][0].config.replace(runs_dir=folder / "parts")
    code, errors = torchrun(folder, [config], parts=True)
    assert code == 0, errors[-3000:]
    assert difference(open_run(config.name(), config.runs_dir), runs["metaug"][1]) > 1e-3


@pytest.mark.slow
def test_a_batch_that_cannot_be_divided_is_refused(tiny, tmp_path):
    code, errors = torchrun(tmp_path, [tiny(batch_size=15)])
    assert code != 0
    assert "batch_size 15 cannot be divided among 2 processes" in errors


@pytest.mark.slow
def test_a_stop_request_stops_all_processes_after_the_same_step(tiny, tmp_path):
    stopped = tiny(epochs=16, val_fraction=0)
    untouched = stopped.replace(runs_dir=tmp_path / "untouched")
    run = request(stopped)
    process = start_torchrun(tmp_path, [stopped])
    end = time.monotonic() + 120
    while len(rows(run.path / "metrics.jsonl")) < 2:
        assert process.poll() is None
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    (run.path / STOP_REQUEST).touch()
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert errors.count(f"Paused: run {stopped.name()} was asked to stop: it is saved") == 2, errors[-3000:]
    assert read_tensors(run.checkpoint)[1]["step"] < 96
    code, errors = torchrun(tmp_path, [stopped, untouched])
    assert code == 0, errors[-3000:]
    assert difference(run, request(untouched)) < 1e-6


def test_without_processes_everything_stays(monkeypatch):
    x = torch.randn(4, 3)
    assert distributed.count() == 1
    assert distributed.own(x) is x
    assert distributed.gather(x) is x
    assert distributed.sum_gradients({"x": x})["x"] is x
    assert distributed.any_of(True, "cpu")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    distributed.join("cpu")
    assert distributed.count() == 1


@pytest.mark.parametrize("shape", [(6, 3), (5, 3, 4, 4)])
def test_whole_batch_norm_is_torchs_in_one_process(shape):
    """Values, gradients and running statistics, in float64 and far from 0, where a mean square would lose the variance."""
    torch.manual_seed(0)
    make = torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d
    ours, theirs = make(3).double(), make(3).double()
    for norm in (ours, theirs):
        norm.load_state_dict(
            {"weight": torch.tensor([1.0, -2.0, 0.5]), "bias": torch.tensor([0.0, 1.0, 2.0])}, strict=False
        )
    x = 1e4 + torch.randn(shape, dtype=torch.float64)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    with distributed.WholeBatch():
        out = ours(leaves[0])
    wanted = theirs(leaves[1])
    torch.testing.assert_close(out, wanted)
    for value in (out, wanted):
        (value**3).sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    ours.eval()
    with distributed.WholeBatch():  # evaluation is left alone
        torch.testing.assert_close(
            ours(x), F.batch_norm(x, ours.running_mean, ours.running_var, ours.weight, ours.bias)
        )


def test_bad_divisions_are_refused_before_anything_starts(tiny, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="batch_size 16 cannot be divided among 3 processes"):
        fit(tiny())
