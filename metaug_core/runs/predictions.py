"""What the measures of an encoder take each image for, and how a run keeps it: accuracies, top-5 and confusions come from this,
without another evaluation.

Predictions are (P, N, R) int32: R = min(5, C) classes of each of N images, the likeliest first; -1: no class is left. P counts the
classifiers that a measure averages over, with equal weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from metaug_core.config import EVALUATION_VERSION
from metaug_core.runs.files import StoreError, read_tensors, write_tensors

TOP = 5  # classes that are kept of each prediction
TOP5_CLASSES = 6  # with fewer classes, one of five is always right
LABELS = "labels"  # beside the measures in the file


def find_correct(predicted: Tensor, labels: Tensor, top: int = 1) -> Tensor:
    """Which of the images have their label (N,) among the first `top` predicted classes (..., N, R): (..., N) bool."""
    return (predicted[..., :top] == labels[:, None]).any(-1)


def share_correct(predicted: Tensor, labels: Tensor, top: int = 1) -> Tensor:
    """By which share of the P classifiers each image is classified rightly, (N,) float64 in [0, 1]."""
    return find_correct(predicted, labels, top).double().mean(0)


def accuracy(predicted: Tensor, labels: Tensor, top: int = 1) -> float:
    """Accuracy in [0, 1] of predictions (P, N, R) by labels (N,). top 5: a label among the five predicted classes is right."""
    return float(share_correct(predicted, labels, top).mean())


def name_top5(measure: str) -> str:
    """What the top-5 accuracy of a measure is called beside it."""
    return f"{measure}_top5"


def share_correct_by_measure(predicted: Mapping[str, Tensor], labels: Tensor, classes: int) -> dict[str, Tensor]:
    """`share_correct` by measure, and by `name_top5` where there are at least `TOP5_CLASSES` classes."""
    shares = {name: share_correct(ranked, labels) for name, ranked in predicted.items()}
    if classes >= TOP5_CLASSES:
        shares |= {name_top5(name): share_correct(ranked, labels, TOP) for name, ranked in predicted.items()}
    return shares


# --- in a run's folder


@dataclass(frozen=True)
class Predictions:
    """Predictions for the images of a split, in their order. Empty where nothing is stored."""

    by_measure: Mapping[str, Tensor] = field(default_factory=dict)  # (P, N, R) int32
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int32))  # (N,)
    classes: Sequence[str] = ()  # names by label


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write a file of predictions. Raises StoreError."""
    names = [
        name.encode("utf-8", "backslashreplace").decode() for name in predictions.classes
    ]  # a folder's may be no UTF-8
    scalars = {"classes": names, "evaluation_version": EVALUATION_VERSION}
    write_tensors(path, {**predictions.by_measure, LABELS: predictions.labels.int()}, scalars)


def read_predictions(path: Path) -> Predictions:
    """What `write_predictions` wrote; empty if there is no file, or if another evaluation version wrote it. Raises StoreError."""
    if not path.exists():
        return Predictions()
    try:
        tensors, scalars = read_tensors(path)
        labels, classes = tensors.pop(LABELS, None), scalars.get("classes")
        kinds = {(t.ndim, t.shape[1:2], t.dtype) for t in tensors.values()}
        if labels is None or not isinstance(classes, list) or kinds - {(3, labels.shape, torch.int32)}:
            raise StoreError(f"{path} does not hold predictions")
        if any((t >= len(classes)).any() for t in (labels, *tensors.values())):
            raise StoreError(f"{path} holds predictions of more classes than it names")
    except StoreError as error:
        raise StoreError(f"{error}; remove it, and the run is evaluated again") from None
    if scalars.get("evaluation_version") != EVALUATION_VERSION:
        return Predictions()
    return Predictions(tensors, labels, tuple(map(str, classes)))
