"""How good a run's frozen encoder is on the images of any data set: with few labels, with all, and without any."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from metaug_core import sources
from metaug_core.config import Config
from metaug_core.data import datasets
from metaug_core.errors import MetaugError, suggestion
from metaug_core.evaluation.label_free import measure_label_free
from metaug_core.evaluation.probes import Labelled, predict
from metaug_core.evaluation.representations import check_request, estimate_bn_stats, interval, represent_images
from metaug_core.extensions import name_failures
from metaug_core.runs.encoder import Encoder
from metaug_core.runs.predictions import share_correct_by_measure
from metaug_core.runs.store import Run
from metaug_core.runtime.device import arithmetic, explain_memory, keep_freed_memory, pick_device, refuse_surroundings

# What may differ from the run's settings: where the images come from.
SETTINGS = ("dataset", "data_dir", "stored_size", "train_images", "storage", "workers")
DRAWS = 5  # of the labelled images, where they are a part of all
COLUMNS = ["dataset", "representation", "measure", "labels", "mean", "half_width", "n"]


def choose_images(run: Run, **given: object) -> Config:
    """The run's config with images of another data set: all of its labelled training images, unless train_images says how many.
    None of them is held out. Raises ConfigError, or MetaugError for a setting that is not one of images (`SETTINGS`)."""
    for name in given:
        if name not in SETTINGS:
            raise MetaugError(f"{name!r} is not a setting of images{suggestion(name, SETTINGS)}")
    others: dict[str, object] = {"train_images": None} if given.keys() & {"dataset", "data_dir"} else {}
    if "dataset" in given:
        others["stored_size"] = None
        if run.config.dataset == "folder":  # its data_dir is the folder itself
            others["data_dir"] = Config.model_fields["data_dir"].default
    return run.config.replace(**{**others, "val_fraction": 0, **given})


def draw_labelled(labels: np.ndarray, count: int, draw: int) -> np.ndarray:
    """The sorted positions of `count` of the labels, int (N,), each class with its share, +-1; another draw takes others."""
    order = np.random.RandomState(draw).permutation(len(labels))
    return np.sort(order[datasets.stratified_sample(labels[order], count)])


def probe_few(train: Labelled, test: Labelled, classes: int, share: float, draw: int) -> dict[str, float]:
    """Test accuracies in [0, 1] of `probe_fast` and kNN that see a share of the training labels, and how many these are. With at
    least 6 classes also top-5.

    The learning rate is chosen on every tenth of these labels, which are then not trained on. The others are repeated, so that the
    probe takes as many steps as with all labels."""
    count = max(classes, round(share * len(train.y)))
    few = train[torch.from_numpy(draw_labelled(train.y.cpu().numpy(), count, draw)).to(train.y.device)]
    held_out = torch.arange(count, device=train.y.device) % 10 == 0
    rows = (~held_out).nonzero().flatten()
    repeated = few[rows.repeat(-(-len(train.y) // count))]
    predicted = predict(repeated, test.x, few[held_out], classes, ("probe_fast",))
    predicted |= predict(few, test.x, None, classes, ("knn",))
    shares = share_correct_by_measure(predicted, test.y, classes)
    return {name: float(share.mean()) for name, share in shares.items()} | {"labels": count}


@explain_memory()
def transfer(
    run: Run, images: Config, shares: Sequence[float] = (0.01, 0.1, 1.0), device: str | None = None
) -> pd.DataFrame:
    """Measures of a finished run's frozen encoder, untrained and trained, on the images of a config (`choose_images`), in rows.

    For each share in (0, 1] of the training labels, at least one per class: mean accuracy in [0, 1] on test images over `DRAWS`
    draws of the labelled images (all: one), its 95 % half-width over these draws, and their number n. The encoder is one: another
    seed may differ by more. Besides, the measures of `label_free` on training images, of which labels is 0 and n 1.

    The encoder is that of the last epoch; products have the run's precision. Raises MetaugError as `evaluate`.
    """
    check_request(run, "test", False, ("knn",), ("trained",))
    device = device or pick_device(run.config.device)
    refuse_surroundings()
    rows = []

    def note(representation: str, name: str, labels: int, values: list[float]) -> None:
        rows.append((images.dataset, representation, name, labels, *interval(values), len(values)))

    splits = datasets.load(images, device)
    classes = len(splits.train.classes)
    with arithmetic(run.config.precision), keep_freed_memory(), sources.keep([run.config.own_entries()]):
        for name, encoder in (("untrained", Encoder(run.config)), ("trained", run.encoder())):
            encoder.to(device)
            with name_failures(run.config, "evaluation"):
                if name == "untrained":
                    estimate_bn_stats(encoder.train(), splits.train, run.config)
                    encoder.eval()
                train, test = (
                    represent_images(name, encoder, None, run.config, part) for part in (splits.train, splits.test)
                )
                for share in shares:
                    readings = [probe_few(train, test, classes, share, n) for n in range(DRAWS if share < 1 else 1)]
                    for measured in [one for one in readings[0] if one != "labels"]:
                        note(name, measured, int(readings[0]["labels"]), [reading[measured] for reading in readings])
                for measured, value in measure_label_free(encoder, train.x, splits.train).items():
                    note(name, measured, 0, [value])
    return pd.DataFrame(rows, columns=COLUMNS)
