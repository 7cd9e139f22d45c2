"""What needs a CUDA device: captured steps, trials on streams of their own, number formats, views and images on the device.

Runs with pytest and the engine's dependencies alone: `python -m pytest tests/gpu`.
"""

import os
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import TINY, list_differences, list_tensors, repeat_step, run_steps, saved, start_state, stop_at
from torch.nn import functional as F

from metaug_core import Config, Run, evaluate, fit, fit_trials
from metaug_core.data import datasets
from metaug_core.runtime.device import arithmetic, side_by_side, unit_roundoff
from metaug_core.training import loop
from metaug_core.training.cuda_graphs import EAGER_STEPS, Batch, Stepper, make_graph
from metaug_core.training.state import TrainState, own_random_numbers
from metaug_core.training.step import train_step
from metaug_core.views.augmentation import make_views

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

os.environ.setdefault(
    "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
)  # cuBLAS reads it once; without it torch's switch is an error

REPEATS = 20


def quiet(progress):
    pass


@pytest.fixture
def deterministic():
    """Kernels whose sums have one order. What is then not the same bits is a race, or read memory that nobody wrote. A kernel that
    has only one form, such as the histogram of the log, is a warning."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def prepare_step(**changes) -> tuple[TrainState, Callable, Callable]:
    """A tiny run that has taken its eager steps; its next step as training takes it, and the same step eager. With a schedule by
    epochs that is a step of the MAG's pass."""
    s = start_state("cuda", **changes)
    s.position = s.steps_per_epoch - 1
    stepper, rows = Stepper([s]), torch.arange(16, device="cuda")
    batch = Batch(s.images.pixels[rows], rows, False)

    def step() -> dict:
        with arithmetic(s.config.precision):
            (metrics,) = stepper({0: batch}).values()
        return metrics

    def eager() -> dict:
        with arithmetic(s.config.precision), own_random_numbers(s):
            return train_step(s, *batch)

    for _ in range(EAGER_STEPS + 2):
        step()
    assert bool(stepper.replays) == (s.config.graphs != "off"), stepper.reason
    return s, step, eager


CASES = [
    {}, {"schedule": "epoch"}, {"look_ahead": "fresh"}, {"look_ahead_batch": "previous"}, {"method": "simclr"},
    {"look_ahead_update": "optimiser", "mag_objective": "scaled"},
    {"graphs": "forked"}, {"graphs": "forked", "views": ("L", "ab", "RGB"), "encoder": "resnet18", "width": 1},
    {"precision": "bf16"},
    {"method": "byol", "protocol": "own", "views": ("RGB", "RGB"), "optimiser": "lars", "blur": (0.5,)},
    {"method": "moco", "protocol": "own", "views": ("RGB", "RGB"), "queue_size": 64, "randaugment": 30},
    {"method": "swav", "views": ("RGB", "RGB"), "queue_size": 64},
]  # fmt: skip


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_a_captured_step_is_the_eager_one_from_the_same_state_to_the_bit(changes, deterministic):
    s, step, eager = prepare_step(**changes)
    of_eager = repeat_step(s, eager, REPEATS)
    captured = repeat_step(s, step, REPEATS)
    again = list_differences(of_eager, of_eager[0])
    assert not again, "eager steps from one state differ, so a kernel is not deterministic:\n" + "\n".join(again)
    again = list_differences(captured, captured[0])
    assert not again, "replays from one state differ, so within the graph there is a race:\n" + "\n".join(again)
    both = list_differences(captured[:1], of_eager[0])
    assert not both, "replays agree, and compute something else than eager steps:\n" + "\n".join(both)


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_twelve_captured_steps_are_the_eager_ones_to_the_bit(changes, deterministic):
    """Of several minibatches, logged ones among them."""
    states = [start_state("cuda", **{**changes, **other}) for other in ({}, {"graphs": "off"})]
    steps = [Stepper([s]) for s in states]
    with arithmetic(states[0].config.precision):
        captured, eager = (run_steps(step, s, 12) for step, s in zip(steps, states, strict=True))
    assert steps[0].replays, steps[0].reason
    assert steps[1].reason == "graphs is off"
    assert captured == eager
    assert not list_differences([list_tensors(states[0])], list_tensors(states[1]))


@pytest.mark.parametrize("graphs", ["auto", "off"])
def test_no_step_waits_for_the_device(graphs):
    _, step, _ = prepare_step(graphs=graphs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        with pytest.raises(RuntimeError, match="synchronizing"):
            torch.ones(1, device="cuda").item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_replays_take_no_more_memory():
    _, step, _ = prepare_step()

    def occupied() -> tuple[int, int]:
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    step()
    before = occupied()
    for _ in range(500):
        step()
    assert occupied() == before


def test_a_run_stopped_while_its_steps_are_captured_ends_with_the_same_bits(tiny, tmp_path, monkeypatch, deterministic):
    config = tiny(device="cuda", epochs=5)
    whole = saved(fit(config.replace(runs_dir=tmp_path / "whole"), quiet))
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)

    with pytest.raises(KeyboardInterrupt):
        fit(config, stop_at(13))
    resumed = saved(fit(config, quiet))
    assert resumed.keys() == whole.keys()
    assert not list_differences([resumed], whole)


def test_a_run_is_evaluated_on_the_device_as_on_the_cpu(tiny, tmp_path):
    run = fit(tiny(device="cuda"), quiet)
    shutil.copytree(run.path, tmp_path / "copy" / run.path.name)  # its accuracies are measured again
    of_cpu = Run(tmp_path / "copy" / run.path.name, run.config)
    accuracies = [evaluate(run), evaluate(of_cpu, device="cpu")]
    pd.testing.assert_frame_equal(*accuracies, rtol=0, atol=3 / 60)  # of 60 test images three may lie on a border


def test_branches_run_side_by_side_and_no_branch_of_a_branch_does():
    x = [torch.zeros(1000, device="cuda") for _ in range(4)]
    graph, streams_of_branches = torch.cuda.CUDAGraph(), []

    def within():
        return torch.cuda.current_stream()

    def branch(t):
        for _ in range(100):
            t = t + 1
        streams_of_branches.append([torch.cuda.current_stream(), *side_by_side([within, within], forked=True)])
        return t

    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        out = side_by_side([partial(branch, t) for t in x], forked=True)
        total = torch.stack(out).sum(0)
    for start in (0, 5):
        for t in x:
            t.fill_(start)
        graph.replay()
        assert torch.equal(total, torch.full_like(total, 4 * (start + 100)))
    assert len({streams[0] for streams in streams_of_branches}) == 4
    assert all(len(set(streams)) == 1 for streams in streams_of_branches)


def test_captured_trials_are_their_single_runs_to_the_bit(tmp_path, deterministic):
    configs = [Config(**{**TINY, "device": "cuda", "seed": seed, "runs_dir": tmp_path}) for seed in (0, 1, 2)]
    assert 5 * configs[0].epochs > EAGER_STEPS
    for run, config in zip(fit_trials(configs, quiet), configs, strict=True):
        alone = fit(config.replace(runs_dir=tmp_path / "alone"), quiet)
        assert not list_differences([saved(run)], saved(alone)), run.config.seed


@pytest.mark.parametrize("graphs", ["auto", "off"])
def test_what_trials_draw_on_cuda_is_their_own(tiny, dropping, tmp_path, graphs):
    """The generators end where those of the single runs do, to the bit; captured and eager."""
    settings = {"encoder": "dropping", "look_ahead": "fresh", "device": "cuda", "graphs": graphs, "optimiser": "sgd"}
    configs = [tiny(**settings, seed=seed, epochs=2 + seed) for seed in (0, 1)]
    ends = []
    for run, config in zip(fit_trials(configs, quiet), configs, strict=True):
        together, alone = saved(run), saved(fit(config.replace(runs_dir=tmp_path / "alone"), quiet))
        for name in ("generator.global", "generator.device"):
            assert torch.equal(together[name], alone[name]), name
        for name, value in together.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=1e-4, msg=name)
        ends.append(together["generator.device"])
    assert not torch.equal(*ends)


def test_a_cuda_graph_draws_anew_at_each_replay(capfd):
    images = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    config = Config(
        rotation=20, jitter=1, grey=0.5, mixup=0.4, randaugment=15, blur=(0.5,), solarise=(0.5,), image_size=16
    )
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        make_views(images, config, generator)  # warm-up
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = make_graph([generator])
    assert "deprecated" not in capfd.readouterr().err  # a warning of torch's C++ part may come there
    with torch.cuda.graph(graph):
        captured = make_views(images, config, generator)
    graph.replay()
    first = [view.clone() for view in captured]
    graph.replay()
    assert not any(torch.equal(a, b) for a, b in zip(first, captured, strict=True))


@pytest.mark.parametrize("storage", ["device", "stream"])
def test_images_of_a_folder_arrive_on_the_device(tmp_path: Path, storage: str):
    pixels = np.random.default_rng(0).integers(0, 256, (27, 8, 8, 3), np.uint8)
    for part in ("train", "test"):
        for number, image in enumerate(pixels):  # fifteen cats, then twelve dogs, as the folders are read
            file = tmp_path / part / ("cat" if number < 15 else "dog") / f"{number:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    config = Config(
        dataset="folder",
        data_dir=tmp_path,
        storage=storage,
        batch_size=2,
        val_fraction=0,
        image_size=8,  # type: ignore
    )
    splits = datasets.load(config, "cuda")
    rows = torch.randperm(27, device="cuda").view(9, 3)
    for row, batch in zip(rows, splits.train.batches(rows), strict=True):
        assert batch.is_cuda
        np.testing.assert_array_equal(batch.cpu().numpy(), pixels[row.cpu().numpy()].transpose(0, 3, 1, 2))
    assert splits.train.take(rows[0]).labels.is_cuda


def test_on_cuda_float32_is_float32_and_tf32_is_not():
    torch.manual_seed(0)
    x, w = torch.randn(8, 64, 16, 16, device="cuda"), torch.randn(64, 64, 3, 3, device="cuda")
    a = torch.randn(512, 512, device="cuda")
    exact = [F.conv2d(x.double(), w.double()), a.double() @ a.double()]
    errors = {}
    for precision in ("float32", "tf32"):
        with arithmetic(precision):
            products = [F.conv2d(x, w), a @ a]
        errors[precision] = [float((f - e).abs().max() / e.abs().max()) for f, e in zip(products, exact, strict=True)]
    assert max(errors["float32"]) < 8 * unit_roundoff("float32", "cuda")
    assert min(errors["tf32"]) > 64 * unit_roundoff("float32", "cuda")
