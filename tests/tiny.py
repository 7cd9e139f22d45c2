"""A data set of four patterns that takes no time to make, and settings that train on it in a fraction of a second."""

import errno
import os
import signal
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaug_core import DATASETS, Config, Run
from metaug_core.data import datasets
from metaug_core.runs.files import read_tensors, weights
from metaug_core.training import state
from metaug_core.training.cuda_graphs import Batch

ROOT = Path(__file__).resolve().parents[1]  # of the checkout
CLASSES, SIDE = 4, 16
TINY: dict[str, Any] = {
    "dataset": "tiny", "image_size": SIDE, "views": ("L", "ab"), "width": 0.05, "feature_dim": 8, "mag_hidden": 16,
    "bank_negatives": 32, "batch_size": 16, "epochs": 2, "lr": 3e-3, "delta": 0.1, "alpha": 0.1, "log_every": 2,
    "workers": 0, "device": "cpu",
}  # fmt: skip


def patterns(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, 3, 16, 16) and labels (N,): noise of a random colour, with one bright quarter that is the class."""
    random = np.random.RandomState(seed)
    labels = np.arange(count) % CLASSES
    images = random.randint(0, 90, (count, 3, SIDE, SIDE)) + random.randint(0, 60, (count, 3, 1, 1))
    half = SIDE // 2
    for image, label in zip(images, labels, strict=True):
        row, column = half * (label // 2), half * (label % 2)
        image[:, row : row + half, column : column + half] += random.randint(60, 100, (3, 1, 1))
    return images.astype(np.uint8), labels


# 90 images for training and 10 for validation: 5 steps a pass.
DATASETS["tiny"] = lambda config: (*patterns(100, 0), *patterns(60, 1))


class FullDisk(StringIO):
    """A text file on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def stop_at(step: int) -> Callable[[Any], None]:
    """A view of `fit` that stops this process after so many steps, as a scheduler would. It needs `loop.REPORT_SECONDS` 0."""

    def view(progress: Any) -> None:
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return view


def saved(run: Run) -> dict[str, Tensor]:
    """What a run's checkpoint holds."""
    return read_tensors(run.checkpoint)[0]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two checkpoints hold the same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def start_state(device: str = "cpu", **changes: Any) -> state.TrainState:
    """A tiny run before its first step."""
    config = Config(**{**TINY, "device": device, **changes})
    return state.create(config, datasets.load(config, device), device)


def run_steps(step: Any, s: state.TrainState, count: int) -> list[dict[str, Any]]:
    """So many steps of a stepper on the run alone -> the metrics of each."""
    metrics_of_steps = []
    for number in range(count):
        rows = (torch.arange(16) + 16 * (number % 5)).to(s.device)
        (metrics,) = step({0: Batch(s.images.pixels[rows], rows, number % 3 == 2)}).values()
        metrics_of_steps.append({name: value.tolist() for name, value in metrics.items()})
        s.step, s.position = s.step + 1, s.position + 1
    return metrics_of_steps


def list_tensors(s: state.TrainState) -> dict[str, Tensor]:
    """Every tensor that a step changes in place, by name: weights, statistics, bank, optimisers' states, the minibatch before."""
    modules = {"networks": s.networks, "mag": s.mag, "memory": s.memory}
    tensors = {
        f"{prefix}.{name}": t for prefix, module in modules.items() if module for name, t in weights(module).items()
    }
    names = {t.data_ptr(): name for name, t in tensors.items()}
    for prefix, optimiser in {"optimiser": s.optimiser, "mag_optimiser": s.mag_optimiser}.items():
        for parameter, values in optimiser.state.items() if optimiser else ():
            name = names[parameter.data_ptr()]
            tensors |= {f"{prefix}.{key} of {name}": t for key, t in values.items() if isinstance(t, Tensor)}
    return tensors | {f"previous.{number}": t for number, t in enumerate(s.previous or ())}


def repeat_step(s: state.TrainState, step: Callable[[], dict[str, Any]], times: int) -> list[dict[str, Tensor]]:
    """One step of s, so many times from its present state: its metrics and what it leaves of `list_tensors`. s stays as it was."""
    tensors, generators = list_tensors(s), s.device_generators
    start = {name: t.detach().clone() for name, t in tensors.items()}
    drawn, random = [generator.get_state() for generator in generators], s.random
    results = []
    for _ in range(times):
        metrics = {f"metric {name}": value.clone() for name, value in step().items()}
        results.append(metrics | {name: t.detach().clone() for name, t in tensors.items()})
        with torch.no_grad():
            torch._foreach_copy_([*tensors.values()], [*start.values()])
        for generator, before in zip(generators, drawn, strict=True):
            generator.set_state(before)
        s.random = random
    return results


def list_differences(results: list[dict[str, Tensor]], first: dict[str, Tensor]) -> list[str]:
    """A line for each tensor that is not the same bits as in `first` in all results: in which of them, and by how much."""
    lines = []
    for name, value in first.items():
        others = [(number, r[name]) for number, r in enumerate(results) if not torch.equal(r[name], value)]
        largest = max((float((t.double() - value.double()).abs().max()) for _, t in others), default=0.0)
        if others:
            size = float(value.double().abs().max())
            lines.append(f"{name}: in {[number for number, _ in others]}, by up to {largest:.3g} at {size:.3g}")
    return lines
