"""A data set of four patterns that takes no time to make, and settings that train on it in a fraction of a second."""

import errno
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaug_core import DATASETS, Config, Run
from metaug_core.data import datasets
from metaug_core.runs.files import read_tensors
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
