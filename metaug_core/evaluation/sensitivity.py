"""How much a measure depends on choices of its reader, on the same features: k of kNN, and the seed of a probe."""

from collections.abc import Sequence

import pandas as pd
import torch

from metaug_core.data import datasets
from metaug_core.errors import MetaugError
from metaug_core.evaluation.probes import predict, predict_knn
from metaug_core.evaluation.representations import check_request, encode_splits, open_images
from metaug_core.runs.predictions import accuracy, share_correct_by_measure
from metaug_core.runs.store import Run
from metaug_core.runtime.device import explain_memory

COUNTS = (1, 5, 10, 20, 50, 100, 200)  # of neighbours, as DINO and lightly show them


@explain_memory()
def measure_neighbour_counts(
    run: Run,
    split: str = "test",
    splits: datasets.Splits | None = None,
    device: str | None = None,
    counts: Sequence[int] = COUNTS,
    representations: Sequence[str] = ("untrained", "trained"),
) -> pd.DataFrame:
    """kNN accuracies in [0, 1] of a finished run for several k, from one search: a row for each representation and each k of counts
    that is at most the number of training images (columns representation, k, knn, knn_top5 with at least 6 classes, n_eval).

    The kNN that is reported has k = 20, whatever this shows: a k chosen on the split that is reported would flatter it. Raises
    MetaugError as `evaluate`.
    """
    check_request(run, split, False, ("knn",), representations)
    rows = []
    with open_images(run, splits, device) as (splits, device):
        fitting, classes = [k for k in counts if k <= len(splits.train)], len(splits.train.classes)
        for name in representations:
            by_epoch = []
            for train, test, _, _ in encode_splits(name, run, split, splits, device):
                ranked = predict_knn(train.x, train.y, test.x, classes, fitting)
                by_epoch.append([share_correct_by_measure({"knn": one[None]}, test.y, classes) for one in ranked])
            for k, shares in zip(fitting, zip(*by_epoch, strict=True), strict=True):
                means = {one: float(torch.stack([s[one].mean() for s in shares]).mean()) for one in shares[0]}
                rows.append({"representation": name, "k": k, **means, "n_eval": len(shares[0]["knn"])})
    return pd.DataFrame(rows)


@explain_memory()
def measure_probe_seeds(
    run: Run,
    count: int = 10,
    measure: str = "probe_plain",
    split: str = "test",
    splits: datasets.Splits | None = None,
    device: str | None = None,
) -> pd.DataFrame:
    """Accuracy in [0, 1] of a probe on the trained encoder's features by the probe's own seed, 0 to count - 1: columns probe_seed,
    accuracy. Seed 0 is the one of `evaluate`.

    The seed is of the order of minibatches alone, since the probe's weights begin at 0. Features are computed once. Raises
    MetaugError as `evaluate`.
    """
    check_request(run, split, False, (measure,), ("trained",))
    if measure == "knn":
        raise MetaugError("kNN has no seed: name a probe")
    by_epoch = []
    with open_images(run, splits, device) as (splits, device):
        classes = len(splits.train.classes)
        for train, test, val, crops in encode_splits("trained", run, split, splits, device):
            predicted = [
                predict(train, test.x, val, classes, (measure,), crops, seed)[measure] for seed in range(count)
            ]
            by_epoch.append([accuracy(one, test.y) for one in predicted])
    means = torch.tensor(by_epoch, dtype=torch.float64).mean(0)
    return pd.DataFrame({"probe_seed": range(count), "accuracy": means.tolist()})
