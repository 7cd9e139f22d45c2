"""How good a run's encoder is, beside the same encoder untrained and raw pixels.

No epoch is chosen: the result is that of the last epoch, or the mean over the last `keep_last`. The measures are in `probes`,
the random crops that one of them trains on in `crops`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parameters_to_vector

from metaug_core import methods, sources
from metaug_core.config import EVALUATION_VERSION, Config
from metaug_core.contradictions import unordered
from metaug_core.data import datasets
from metaug_core.data.images import AnyImages, spread_rows
from metaug_core.errors import MetaugError, suggestion
from metaug_core.evaluation.crops import count_draws, read_images, take_in_turn
from metaug_core.evaluation.label_free import IMAGES, rankme
from metaug_core.evaluation.probes import DEFAULT_MEASURES, LABEL_FREE, MEASURES, Labelled, predict
from metaug_core.extensions import name_failures
from metaug_core.methods.base import initial_networks
from metaug_core.networks.encoders import evaluating
from metaug_core.runs import data
from metaug_core.runs.files import StoreError, load_module, read_json, read_tensors, write_json
from metaug_core.runs.predictions import Predictions, name_top5, share_correct_by_measure, write_predictions
from metaug_core.runs.store import Run
from metaug_core.runtime.device import arithmetic, explain_memory, keep_freed_memory, pick_device, refuse_surroundings
from metaug_core.views.augmentation import plain, split

STATISTICS_IMAGES, STATISTICS_BATCH = 2048, 512  # for BatchNorm's statistics of training images
COLUMNS = ["epochs", "n_train", "n_eval", "split", "method", "dataset", "seed"]
REPRESENTATIONS = ("raw pixels", "untrained", "trained")
INITIAL = "initial.json"  # in a run's folder
AUGMENTED = "trained, z and z~"  # the heads kept, and the MAG's features beside the original ones


# --- features


# draw: None for plain images, else the number of a draw of random crops and flips (`crops.read_images`).


def features(networks: nn.Module, images: AnyImages, config: Config, draw: int | None = None) -> Tensor:
    """h of all distinct views, concatenated: (N, sum of D_j) float32. Downstream tasks use it; the heads are discarded."""
    with evaluating(networks), arithmetic(config.precision), torch.no_grad():
        return torch.cat([torch.cat(encode(networks, rgb, config), 1) for rgb in read_images(images, config, draw)])


def embeddings(
    networks: nn.Module, images: AnyImages, config: Config, mag: nn.Module | None = None, draw: int | None = None
) -> Tensor:
    """z of all views, (V, N, d); with a MAG z and z~, (2V, N, d) (Table 5, "with augmented features"; Figure 2).

    Call `estimate_mag_bn_stats` first: only then z~ is the function that was trained.
    """
    parts = []
    with evaluating(networks, mag), arithmetic(config.precision), torch.no_grad():
        for rgb in read_images(images, config, draw):
            z = embed(networks, rgb, config)
            parts.append(z if mag is None else torch.cat([z, mag(z)]))
    return torch.cat(parts, dim=1)


@torch.no_grad()
def raw_pixels(images: AnyImages, config: Config, draw: int | None = None) -> Tensor:
    """The pixels themselves, (N, 3 S S): what a representation must be better than."""
    return torch.cat([rgb.flatten(1) for rgb in read_images(images, config, draw)])


def encode(networks: nn.Module, rgb: Tensor, config: Config) -> list[Tensor]:
    """h (B, D_j) of each distinct view of rgb (B, 3, S, S) in [0, 1]."""
    names = tuple(dict.fromkeys(config.views))
    return cast(Any, networks.encoders)(split(rgb, names), names)


def embed(networks: nn.Module, rgb: Tensor, config: Config) -> Tensor:
    """z (V, B, d) of all views of rgb (B, 3, S, S) in [0, 1]."""
    return networks(split(rgb, config.views))


# --- BatchNorm's statistics


def estimate_bn_stats(networks: nn.Module, images: AnyImages, config: Config) -> None:
    """Give an untrained network's BatchNorm the statistics of training images.

    The initial ones (0, 1) fit no image: with them the untrained encoder would look worse than it is.
    """
    with arithmetic(config.precision):
        average_bn_stats(networks, images, lambda pixels: encode(networks, plain(pixels, config.image_size), config))


def estimate_mag_bn_stats(networks: nn.Module, mag: nn.Module, images: AnyImages, config: Config) -> None:
    """Give a trained MAG's BatchNorm the statistics of training images, of their z in evaluation mode.

    Its own are of z in training mode and of older weights: with them z~ would be another function than the trained one.
    """
    with evaluating(networks), arithmetic(config.precision):
        average_bn_stats(mag, images, lambda pixels: mag(embed(networks, plain(pixels, config.image_size), config)))


@torch.no_grad()
def average_bn_stats(module: nn.Module, images: AnyImages, forward: Callable[[Tensor], Any]) -> None:
    """Set the running statistics of the module's BatchNorm to their mean over forward(pixels) of up to 2048 images.

    All other layers are in evaluation mode: dropout would draw from a run's random numbers. A frozen BatchNorm, one in evaluation
    mode, keeps its statistics.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, _NormBase) and layer.training]
    momenta = [norm.momentum for norm in norms]
    rows = spread_rows(len(images), STATISTICS_IMAGES)
    parts = rows.tensor_split(-(-len(rows) // STATISTICS_BATCH))  # of equal size, so that each has the same weight
    with evaluating(module):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's cumulative average
            norm.train()
        for pixels in images.batches(parts):
            forward(pixels)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


# --- networks of a run


def load_networks(config: Config, classes: int, file: Path | None = None) -> tuple[nn.Module, nn.Module | None]:
    """Encoders and MAG on the CPU: untrained, as the seed makes them, or with the weights of one of `Run.encoder_files`."""
    networks, mag = initial_networks(methods.build(config), classes, config.seed)
    if file is not None:
        tensors, _ = read_tensors(file)
        for prefix, module in (("networks.", networks), ("mag.", mag)):
            if module is not None:
                load_module(module, tensors, prefix, file)
    return networks, mag


def prepare_networks(config: Config, images: AnyImages, file: Path | None = None) -> tuple[nn.Module, nn.Module | None]:
    """`load_networks` on the device of these training images, from which untrained encoders and a trained MAG have BatchNorm's
    statistics. There is no untrained MAG: None."""
    networks, mag = load_networks(config, len(images.classes), file)
    networks = networks.to(images.labels.device)
    if file is None:
        estimate_bn_stats(networks, images, config)
        return networks, None
    if mag is not None:
        mag = mag.to(images.labels.device)
        estimate_mag_bn_stats(networks, mag, images, config)
    return networks, mag


def describe_networks(networks: nn.Module, mag: nn.Module | None) -> dict[str, list[float]]:
    """Of each parameter and buffer its mean, its root mean square and its mean along a ramp, by name."""
    readings = {}
    for prefix, module in (("networks.", networks), ("mag.", mag)):
        for name, value in [*module.named_parameters(), *module.named_buffers()] if module is not None else ():
            x = value.detach().cpu().double().flatten()
            ramp = torch.linspace(0, 1, len(x), dtype=torch.float64)
            readings[prefix + name] = [x.mean().item(), x.square().mean().sqrt().item(), (x * ramp).mean().item()]
    return readings


def note_initial_networks(run: Run, classes: int, networks: nn.Module, mag: nn.Module | None) -> None:
    """Write into the run's folder what the user's own networks are before training: they may come from a file."""
    write_json(run.path / INITIAL, {"classes": classes, "networks": describe_networks(networks, mag)})


def check_initial_networks(run: Run) -> None:
    """StoreError if encoder and method make other networks now than those that the run was trained from."""
    file = run.path / INITIAL
    if not os.path.exists(file):  # Path.exists raises for a name too long for the file system
        return
    refuse_surroundings()
    try:
        classes, noted = (read_json(file)[key] for key in ("classes", "networks"))
    except (KeyError, TypeError):
        raise StoreError(
            f"{file} does not hold what a run notes of its networks; without it they are not compared"
        ) from None
    with arithmetic(run.config.precision), sources.keep([run.config.own_entries()]):
        now = describe_networks(*load_networks(run.config, classes))
    for name in sorted(now.keys() | noted.keys()):
        before, after = (torch.tensor(readings.get(name, []), dtype=torch.float64) for readings in (noted, now))
        # Between processors the same draws differ by rounding.
        if len(before) != len(after) or not torch.allclose(before, after, 0, 1e-6 * before[1].item(), equal_nan=True):
            raise StoreError(
                f"run {run.path.name} was trained from other networks than its encoder and method make now ({name} differs): put "
                f"back what they load, and draw with torch's generator alone; if {run.path} is removed, it is trained again"
            )


def mag_moved(run: Run) -> float | None:
    """|change of the MAG's weights in training| / |weights before it|; None without a MAG."""
    before, after = (load_networks(run.config, 2, file)[1] for file in (None, run.encoder_files()[-1]))
    if before is None or after is None:
        return None
    old, new = (parameters_to_vector(mag.parameters()) for mag in (before, after))
    return ((new - old).norm() / old.norm()).item()


# --- evaluation of a run


@explain_memory()
def evaluate(
    run: Run,
    split: str = "test",
    augmented: bool = False,
    splits: datasets.Splits | None = None,
    device: str | None = None,
    measures: Sequence[str] = DEFAULT_MEASURES,
    representations: Sequence[str] = REPRESENTATIONS,
    predictions: bool = False,
) -> pd.DataFrame:
    """Accuracies in [0, 1] of raw pixels, the untrained and the trained encoder of a finished run: a row each.

    split: test, or val (for choosing settings). augmented: also a row for z and z~ with the heads kept (Table 5, left column).
    splits: the data, if they are loaded already. device: by default where splits are, else the run's own. measures
    (`probes.MEASURES`) and representations: fewer are cheaper. Raw pixels cost most, and probe_paper, which is measured only where
    it is asked for: it encodes the training images once for each of `draws`, a column that then stands in the table. rankme is
    measured only on request too: RankMe of up to 2,048 training images, which is no accuracy and needs no labels. predictions:
    measure the trained encoder again where an older evaluation did not store its predictions.

    The trained row is the mean over the kept epochs. With at least 6 classes there are top-5 accuracies too (`probe_plain_top5`;
    NaN where an older evaluation has none). Products have the run's own `precision`. Results are stored in the run's folder, of the
    trained encoder also its predictions (`Run.predictions`), and a call computes only what is missing there (of this
    `EVALUATION_VERSION`). Raises MetaugError if the run is not finished, the split is empty, a name is unknown, splits hold other
    images, the run is of other data, or a weight or a feature is not finite.
    """
    check_request(run, split, augmented, measures, representations)
    names = [*representations] + [AUGMENTED] * augmented
    stored, missing = find_missing(run, split, names, measures, predictions)
    if splits is not None:
        datasets.refuse_foreign(splits, run.config)
    if any(missing.values()):
        with open_images(run, splits, device) as (splits, device):
            # Another thread may have measured them.
            stored, missing = find_missing(run, split, names, measures, predictions)
            for name in filter(missing.get, missing):
                row, predicted = measure_representation(name, run, split, splits, device, missing[name])
                stored[name] = stored.get(name, {}) | row
                if name == "trained" and predicted.by_measure:
                    store_predictions(run, split, predicted)
            write_json(run.evaluation_file(split), stored)  # at the end: none of a run with unreadable encoders
    else:
        data.check_finished([run], splits)
    top5 = [one for one in map(name_top5, measures) if any(one in stored[name] for name in names)]
    columns = [*measures, *top5, *COLUMNS, *(["draws"] if "probe_paper" in measures else [])]
    return pd.DataFrame([stored[name] for name in names], pd.Index(names, name="representation"), columns)


@contextmanager
def open_images(run: Run, splits: datasets.Splits | None, device: str | None) -> Iterator[tuple[datasets.Splits, str]]:
    """Context manager: the images of a run, and the device on which it is evaluated; within, products have the run's precision.
    Raises MetaugError if the run is of other data."""
    device = device or (str(splits.train.labels.device) if splits else pick_device(run.config.device))
    refuse_surroundings()
    splits = splits or datasets.load(run.config, device)
    with arithmetic(run.config.precision), keep_freed_memory(), sources.keep([run.config.own_entries()]):
        data.check(run, splits.data)
        with name_failures(run.config, "evaluation"):
            yield splits, device


def find_missing(
    run: Run, split: str, names: Sequence[str], measures: Sequence[str], predictions: bool
) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """The stored rows by representation, and of each of these names the measures that are not among them. predictions: a measure of
    the trained encoder without stored predictions is missing too."""
    stored = run.evaluation(split)
    missing = {name: [one for one in measures if one not in stored.get(name, {})] for name in names}
    if predictions and "trained" in missing:
        predicted = run.predictions(split).by_measure
        unpredicted = {one for one in measures if one in MEASURES and one not in predicted}
        missing["trained"] = [one for one in measures if one in missing["trained"] or one in unpredicted]
    return stored, missing


def check_request(
    run: Run, split: str, augmented: bool, measures: Sequence[str], representations: Sequence[str]
) -> None:
    """MetaugError for what `evaluate` cannot do."""
    if not run.finished:
        raise MetaugError(f"run {run.path.name} is not finished: finish it with `metaug resume {run.path.name}`")
    if split not in ("test", "val") or (split == "val" and not run.config.val_fraction):
        raise MetaugError(f"split must be test, or val with val_fraction > 0, got {split!r}")
    if augmented and load_networks(run.config, 2)[1] is None:
        raise MetaugError(f"method {run.config.method!r} has no MAG, so there are no augmented features to evaluate")
    refuse_unknown(measures, representations)
    check_initial_networks(run)


def refuse_unknown(measures: Sequence[str], representations: Sequence[str]) -> None:
    """MetaugError for a measure or representation that does not exist, or for several without an order."""
    for kind, names, known in (
        ("measure", measures, (*MEASURES, *LABEL_FREE)),
        ("representation", representations, REPRESENTATIONS),
    ):
        if fault := unordered(names):
            raise MetaugError(f"{kind}s: {fault}")
        for name in names:
            if name not in known:
                raise MetaugError(f"unknown {kind} {name!r}{suggestion(name, known)}")


def measure_representation(
    name: str, run: Run, split: str, splits: datasets.Splits, device: str, measures: Sequence[str]
) -> tuple[dict[str, Any], Predictions]:
    """The row of one representation, the mean of its measures over the kept epochs and what they were measured on; and all
    predictions."""
    config, classes = run.config, splits.train.classes
    accuracies = [one for one in measures if one in MEASURES]
    by_epoch: list[dict[str, Tensor]] = []
    ranks: list[float] = []
    labels = torch.zeros(0)
    for train, test, val, crops in encode_splits(name, run, split, splits, device):
        predicted = predict(train, test.x, val, len(classes), accuracies, crops)
        by_epoch.append({key: ranked.cpu() for key, ranked in predicted.items()})
        if "rankme" in measures:
            ranks.append(rankme(train.x[spread_rows(len(train.x), IMAGES).to(train.x.device)]))
        labels = test.y.cpu()
    shares = [share_correct_by_measure(predicted, labels, len(classes)) for predicted in by_epoch]
    row = {key: float(torch.stack([one[key] for one in shares]).mean(0).mean()) for key in shares[0]} | {
        "epochs": len(by_epoch),
        "n_train": len(splits.train),
        "n_eval": len(labels),
        "split": split,
        "evaluation_version": EVALUATION_VERSION,
        "method": config.method,
        "dataset": config.dataset,
        "seed": config.seed,
        **({"draws": count_draws(device)} if "probe_paper" in measures else {}),
        **({"rankme": sum(ranks) / len(ranks)} if ranks else {}),
    }
    return row, Predictions({key: torch.cat([one[key] for one in by_epoch]) for key in by_epoch[0]}, labels, classes)


def encode_splits(
    name: str, run: Run, split: str, splits: datasets.Splits, device: str
) -> Iterator[tuple[Labelled, Labelled, Labelled | None, Callable[[int], Tensor]]]:
    """One representation, for each kept epoch if it is a trained one: of the training images, the images of the split, and the
    validation images on which a probe may choose (None: there are none). Last, that of random crops of the training images: the
    number of a probe's epoch -> (N, D)."""
    config = run.config
    evaluated = splits.test if split == "test" else splits.val
    assert evaluated is not None
    for file in run.encoder_files() if name.startswith("trained") else [None]:
        networks, mag = load_networks(config, len(splits.train.classes), file)
        networks = networks.to(device)
        if name == "untrained":
            estimate_bn_stats(networks, splits.train, config)
        if name == AUGMENTED and mag is not None:
            mag = mag.to(device)
            estimate_mag_bn_stats(networks, mag, splits.train, config)

        represent = partial(represent_images, name, networks, mag, config)

        def encode_crops(draw: int, represent: Callable[..., Labelled] = represent) -> Tensor:
            return represent(splits.train, draw).x

        val = represent(splits.val) if splits.val is not None and split != "val" else None
        crops = take_in_turn(encode_crops, count_draws(device))
        yield represent(splits.train), represent(evaluated), val, crops


def store_predictions(run: Run, split: str, predicted: Predictions) -> None:
    """Write the predictions of the trained encoder beside those that are there."""
    together = {**run.predictions(split).by_measure, **predicted.by_measure}
    write_predictions(run.predictions_file(split), replace(predicted, by_measure=together))


def represent_images(
    name: str, networks: nn.Module, mag: nn.Module | None, config: Config, images: AnyImages, draw: int | None = None
) -> Labelled:
    """One representation of all images, with their labels. MetaugError if it is not finite."""
    if name == "raw pixels":
        x = raw_pixels(images, config, draw)
    elif name == AUGMENTED:
        x = embeddings(networks, images, config, mag, draw).transpose(0, 1).flatten(1)
    else:
        x = features(networks, images, config, draw)
    if wrong := int((~x.norm(dim=1).isfinite()).sum()):
        raise MetaugError(
            f"{name}: the features of {wrong} of {len(x)} images are NaN, infinite or too large for their norm in {config.name()}"
        )
    return Labelled(x, images.labels)


# --- several runs


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % t-interval over independent trials; the half-width is nan for one trial."""
    from scipy.special import stdtrit  # slow to import, and only this needs it

    x = torch.tensor(values, dtype=torch.float64)
    if len(x) < 2:
        return float(x.mean()), float("nan")
    return float(x.mean()), float(stdtrit(len(x) - 1, 0.975) * x.std() / len(x) ** 0.5)


def over_seeds(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Mean, 95 % half-width and n by representation and measure, of `evaluate` tables that differ in the seed."""
    rows = []
    for name, group in pd.concat(tables).reset_index().groupby("representation", sort=False):
        for column in (column for column in MEASURES if column in group):
            mean, half = interval(group[column].tolist())
            rows.append({"representation": name, "measure": column, "mean": mean, "half_width": half, "n": len(group)})
    return pd.DataFrame(rows)
