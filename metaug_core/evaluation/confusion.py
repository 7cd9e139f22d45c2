"""Which classes a measure takes for one another, from the predictions that a run keeps: nothing is evaluated again."""

from typing import Any

import numpy as np
import pandas as pd
import torch

from metaug_core.errors import MetaugError
from metaug_core.runs.store import Run


def count_confusions(run: Run, measure: str = "probe_plain", split: str = "test") -> pd.DataFrame:
    """How many images of each class (rows) a measure of the trained encoder takes for each class (columns): (C, C) float64, a mean
    where the measure averages. Raises MetaugError if the run keeps no predictions of it, StoreError."""
    stored = run.predictions(split)
    if measure not in stored.by_measure:
        raise MetaugError(
            f"run {run.path.name} keeps no predictions of {measure} on {split} images: evaluate(run, predictions=True) measures "
            "them"
        )
    predicted, classes = stored.by_measure[measure][..., 0].long(), len(stored.classes)
    cells = (stored.labels.long() * classes + predicted).flatten()
    counts = torch.bincount(cells, minlength=classes**2).double().view(classes, classes) / len(predicted)
    names = list(stored.classes)
    return pd.DataFrame(counts.numpy(), pd.Index(names, name="class"), pd.Index(names, name="taken for"))


def share_confusions(counts: pd.DataFrame) -> np.ndarray:
    """The rows of `count_confusions` as shares in [0, 1] of the images of each class, (C, C); NaN for a class without images."""
    with np.errstate(invalid="ignore"):
        return counts.to_numpy() / counts.to_numpy().sum(1, keepdims=True)


def wilson_interval(share: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % interval of a share in [0, 1] of n independent images (Wilson 1927), which also holds near 0 and 1."""
    z = 1.959964
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return middle - half, middle + half


def tabulate_classes(counts: pd.DataFrame) -> pd.DataFrame:
    """A row for each class that has images, the worst first: its label, n, accuracy in [0, 1] with the ends (low, high) of its 95 %
    interval over images, for which other class it is taken most, and the share of its images (taken_for, share). counts: of
    `count_confusions`."""
    shares, n = share_confusions(counts), counts.to_numpy().sum(1)
    low, high = wilson_interval(shares.diagonal(), np.maximum(n, 1))
    others = np.where(np.eye(len(shares), dtype=bool), -1, shares)
    most = others.argmax(1)
    columns = {
        "label": range(len(n)),
        "n": n.round().astype(int),
        "accuracy": shares.diagonal(),
        "low": low,
        "high": high,
        "taken_for": counts.columns.to_numpy()[most],
        "share": others[np.arange(len(others)), most],
    }
    table: Any = pd.DataFrame(columns, counts.index).loc[n > 0]
    return table.sort_values("accuracy", kind="stable")


def list_confusions(counts: pd.DataFrame) -> pd.DataFrame:
    """Which class (class) is taken for which other (taken_for), as a share of its n images, and the share the other way round
    (back); the strongest first, none of 0."""
    shares, n = share_confusions(counts), counts.to_numpy().sum(1)
    first, second = np.nonzero(np.nan_to_num(shares) * ~np.eye(len(shares), dtype=bool))
    names = counts.index.to_numpy()
    columns = {
        "class": names[first],
        "taken_for": names[second],
        "share": shares[first, second],
        "back": shares[second, first],
        "n": n[first].round().astype(int),
    }
    return pd.DataFrame(columns).sort_values("share", ascending=False, kind="stable", ignore_index=True)


def describe_confusions(counts: pd.DataFrame) -> str:
    """The strongest confusion and the worst class, in a sentence or two."""
    listed, classes = list_confusions(counts), tabulate_classes(counts)
    if listed.empty:
        return "No image is taken for another class."
    first, worst, best = listed.iloc[0], classes.iloc[0], classes.iloc[-1]
    return (
        f"Most confused: {first['class']} taken for {first.taken_for}, {100 * first.share:.0f} % of {first.n:,} images (the other "
        f"way round {100 * first.back:.0f} %). Accuracy by class: {100 * worst.accuracy:.0f} % ({worst.name}) to "
        f"{100 * best.accuracy:.0f} % ({best.name})."
    )


def order_classes(counts: pd.DataFrame) -> list[int]:
    """The positions of the classes in an order that puts those side by side that are taken for one another: leaves of the
    average-linkage tree of their mutual confusions."""
    from scipy.cluster.hierarchy import leaves_list, linkage  # slow to import
    from scipy.spatial.distance import squareform

    shares = np.nan_to_num(share_confusions(counts))
    mutual = (shares + shares.T) / 2 * ~np.eye(len(shares), dtype=bool)
    if len(shares) < 3:
        return [*range(len(shares))]
    distances = squareform(mutual.max() - mutual, checks=False)
    return leaves_list(linkage(distances, "average", optimal_ordering=True)).tolist()
