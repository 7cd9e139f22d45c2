"""A data set of four patterns that takes no time to make, and configs that train on it in a fraction of a second."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metaug_core import DATASETS, Config, gallery, machine
from metaug_core.style import panels

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


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Config]:
    """tiny(**changes) -> Config of a run on the tiny data set, under tmp_path."""
    return lambda **changes: Config(**{**TINY, "runs_dir": tmp_path / "runs", **changes})


def git(root: Path, *words: str) -> str:
    """What git says in root; commits have an author of their own."""
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", root, *author, *words], check=True, capture_output=True, encoding="utf-8"
    ).stdout.strip()


def notebook(source: str, output: str = "") -> str:
    """The text of a notebook of one code cell."""
    outputs = [{"output_type": "stream", "name": "stdout", "text": [output]}] if output else []
    cell = {
        "cell_type": "code",
        "id": "a",
        "metadata": {},
        "source": [source],
        "outputs": outputs,
        "execution_count": None,
    }
    return json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small workbook in a git repository of its own with everything committed; the gallery and the code's commit are its."""
    root = tmp_path / "workbook"
    for name, text in {
        "code.py": "a = 1\n",
        "figures/README.md": "# Figures\n",
        "notebooks/a.ipynb": notebook("a = 1"),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    monkeypatch.setattr(machine, "ROOT", root)
    monkeypatch.setattr(gallery, "FOLDER", root / "figures")
    return root


@pytest.fixture
def ax():
    """Empty axes in the workbook's style."""
    from matplotlib import pyplot as plt

    figure, ax = panels()
    yield ax
    plt.close(figure)
