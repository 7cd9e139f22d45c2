"""What needs a CUDA device: captured steps, trials on streams of their own, number formats, views and images on the device.

Runs with the engine's dependencies alone: `python -m pytest tests/gpu`.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY, run_steps, saved, start_state
from torch.nn import functional as F

from metaug_core import Config, fit, fit_trials
from metaug_core.data import datasets
from metaug_core.runs.files import read_tensors
from metaug_core.runtime.device import arithmetic, side_by_side, unit_roundoff
from metaug_core.training.cuda_graphs import EAGER_STEPS, Stepper
from metaug_core.views.augmentation import make_views

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def quiet(progress):
    pass


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [({}, 1e-4), ({"schedule": "epoch"}, 1e-4), ({"look_ahead": "fresh"}, 1e-4), ({"method": "simclr"}, 1e-4),
     ({"graphs": "forked"}, 1e-4), ({"graphs": "forked", "views": ("L", "ab", "RGB"), "encoder": "resnet18", "width": 1}, 1e-3),
     ({"precision": "bf16"}, 3e-2),
     ({"method": "byol", "protocol": "own", "views": ("RGB", "RGB"), "optimiser": "lars", "blur": (0.5,)}, 1e-3),
     ({"method": "moco", "protocol": "own", "views": ("RGB", "RGB"), "queue_size": 64, "randaugment": 30}, 1e-3),
     ({"method": "swav", "views": ("RGB", "RGB"), "queue_size": 64}, 1e-3)],
)  # fmt: skip
def test_captured_steps_are_the_eager_ones(changes, tolerance):
    changes = {
        "optimiser": "sgd",
        "mag_optimiser": "sgd",
        "lr": 0.02,
        "views": ("L", "ab"),
        "graphs": "auto",
        **changes,
    }
    states = [start_state("cuda", **{**changes, **other}) for other in ({}, {"graphs": "off"})]
    steps = [Stepper([s]) for s in states]
    metrics = [run_steps(step, s, 12) for step, s in zip(steps, states, strict=True)]
    assert steps[0].reason is None
    assert steps[0].replays
    assert steps[1].reason == "graphs is off"
    for captured, eager in zip(*metrics, strict=True):
        assert captured.keys() == eager.keys()
        for name, value in captured.items():
            assert value == pytest.approx(eager[name], rel=10 * tolerance, abs=tolerance), name
    for (name, a), b in zip(
        states[0].networks.state_dict().items(), states[1].networks.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=name)


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


def test_captured_trials_are_their_single_runs(tmp_path):
    configs = [
        Config(**{**TINY, "device": "cuda", "optimiser": "sgd", "seed": seed, "runs_dir": tmp_path})
        for seed in (0, 1, 2)
    ]
    assert 5 * configs[0].epochs > EAGER_STEPS
    for run, config in zip(fit_trials(configs, lambda _: None), configs, strict=True):
        alone = fit(config.replace(runs_dir=tmp_path / "alone"), lambda _: None)
        for a, b in zip(
            read_tensors(run.checkpoint)[0].values(), read_tensors(alone.checkpoint)[0].values(), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


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


def test_a_cuda_graph_draws_anew_at_each_replay():
    images = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    config = Config(
        rotation=20, jitter=1, grey=0.5, mixup=0.4, randaugment=15, blur=(0.5,), solarise=(0.5,), image_size=16
    )
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        make_views(images, config, generator)  # warm-up
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
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
