"""Which class is taken for which, by hand and of a run."""

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from metaug_core import MetaugError, Run
from metaug_core.evaluation.confusion import (
    count_confusions,
    describe_confusions,
    list_confusions,
    order_classes,
    tabulate_classes,
)
from metaug_core.runs.predictions import Predictions, write_predictions


@pytest.fixture
def run(tiny):
    """Seven images of cat, dog and bird; none is an owl. Two classifiers, of which the second errs once more."""
    run = Run(tiny().runs_dir / "a", tiny())
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    first = torch.tensor([[0, 1], [0, 1], [1, 0], [3, 0], [0, 1], [1, 0], [2, 0]])
    second = first.clone()
    second[1] = torch.tensor([1, 0])
    by_measure = {"knn": first[None].int(), "probe_paper": torch.stack([first, second]).int()}
    write_predictions(run.predictions_file(), Predictions(by_measure, labels, ("cat", "dog", "bird", "owl")))
    return run


def test_confusions_by_hand(run):
    counts = count_confusions(run, "knn")
    assert counts.index.tolist() == counts.columns.tolist() == ["cat", "dog", "bird", "owl"]
    assert counts.to_numpy().tolist() == [[2, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    mean = count_confusions(run, "probe_paper")
    assert mean.loc["cat"].tolist() == [1.5, 1.5, 0, 1]
    with pytest.raises(MetaugError, match="^run a keeps no predictions of probe_plain on test images"):
        count_confusions(run)
    with pytest.raises(MetaugError, match="on val images"):
        count_confusions(run, "knn", "val")


def test_accuracy_by_class_by_hand(run):
    table: Any = tabulate_classes(count_confusions(run, "knn"))
    assert table.index.tolist() == ["cat", "dog", "bird"]  # the worst first; no image is an owl
    assert table["label"].tolist() == [0, 1, 2]
    assert table["n"].tolist() == [4, 2, 1]
    assert table["accuracy"].tolist() == [0.5, 0.5, 1]
    assert table["taken_for"].tolist()[:2] == ["dog", "cat"]
    assert table["share"].tolist() == [0.25, 0.5, 0]
    z = 1.959964  # the ends p of Wilson's interval solve (share - p)^2 = z^2 p (1 - p) / n
    for row in table.itertuples():
        for end in (row.low, row.high):
            assert (row.accuracy - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / row.n, abs=1e-9)
        assert 0 <= row.low < row.high <= 1


def test_the_strongest_confusion_comes_first_and_is_said(run):
    counts = count_confusions(run, "knn")
    listed = list_confusions(counts)
    assert listed[["class", "taken_for", "share", "back", "n"]].iloc[:2].to_numpy().tolist() == [
        ["dog", "cat", 0.5, 0.25, 2],
        ["cat", "dog", 0.25, 0.5, 4],
    ]
    assert len(listed) == 3
    assert math.isnan(listed["back"].iloc[2])  # no owl can be taken for a cat
    assert describe_confusions(counts) == (
        "Most confused: dog taken for cat, 50 % of 2 images (the other way round 25 %). "
        "Accuracy by class: 50 % (cat) to 100 % (bird)."
    )
    assert describe_confusions(pd.DataFrame(np.eye(2))) == "No image is taken for another class."


def test_classes_that_are_confused_stand_side_by_side():
    """Three groups of four, mixed up."""
    random = np.random.RandomState(0)
    group = random.permutation(12) % 3
    counts = np.where(group[:, None] == group, 10.0, 0.1) + random.rand(12, 12)
    order = order_classes(pd.DataFrame(counts))
    assert sorted(order) == [*range(12)]
    assert sum(group[a] != group[b] for a, b in itertools.pairwise(order)) == 2
    assert order_classes(pd.DataFrame(np.eye(2))) == [0, 1]
