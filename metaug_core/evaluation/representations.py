"""How good a run's encoder is, beside the same encoder untrained and raw pixels; features are computed once.

No epoch is chosen: the last, or the mean of the last `keep_last`. What the protocols are stands in `probe`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parameters_to_vector

from metaug_core import methods
from metaug_core.config import PROTOCOL_VERSION, Config
from metaug_core.data import datasets
from metaug_core.errors import MetaugError, suggestion
from metaug_core.evaluation.probes import MEASURES, Labelled, measure
from metaug_core.methods.base import initial_networks
from metaug_core.runs.store import Run, load_module, read_tensors, write_json
from metaug_core.runtime.device import arithmetic, keep_freed_memory, pick_device
from metaug_core.views.augmentation import evaluation_views, plain

STATISTICS_BATCH = 512  # for BatchNorm's statistics of training images
COLUMNS = ["epochs", "n_train", "n_eval", "split", "method", "dataset", "seed"]
REPRESENTATIONS = ("raw pixels", "untrained", "trained")
AUGMENTED = "trained, z and z~"  # the heads kept, and the features of the MAG beside the original ones


def in_parts(images: datasets.Images | datasets.StreamedImages) -> tuple[Tensor, ...]:
    """Rows of all images, so many at a time as suits the device: a GPU wants many; a CPU has the activations of 128 in its caches
    for longer than those of 512 (which took 1.1 to 1.8 times the time)."""
    return torch.arange(len(images)).split(128 if images.labels.device.type == "cpu" else 512)


@torch.no_grad()
def features(networks: nn.Module, images: datasets.Images | datasets.StreamedImages, config: Config) -> Tensor:
    """h of all distinct views, concatenated, (N, sum D_j) float32: what downstream tasks use; the heads are discarded."""
    names, encoders = tuple(dict.fromkeys(config.views)), cast(Any, networks.encoders)
    with evaluating(networks), arithmetic(config.precision):
        found = [
            torch.cat(encoders(evaluation_views(pixels, config), names), dim=1)
            for pixels in images.batches(in_parts(images))
        ]
    return torch.cat(found)


@torch.no_grad()
def embeddings(
    networks: nn.Module, images: datasets.Images | datasets.StreamedImages, config: Config, mag: nn.Module | None = None
) -> Tensor:
    """z of all views, (V, N, d); with a MAG z and z~, (2V, N, d) (Table 5, "with augmented features"; Figure 2).

    z~ is what was trained once `estimate_mag_bn_stats` has been called.
    """
    found = []
    with evaluating(networks, mag), arithmetic(config.precision):
        for pixels in images.batches(in_parts(images)):
            z = embedded(networks, pixels, config)
            found.append(z if mag is None else torch.cat([z, mag(z)]))
    return torch.cat(found, dim=1)


def embedded(networks: nn.Module, pixels: Tensor, config: Config) -> Tensor:
    """z of all views of uint8 pixels (B, 3, H, W), as evaluation sees them: (V, B, d)."""
    seen = dict(zip(dict.fromkeys(config.views), evaluation_views(pixels, config), strict=True))
    return networks([seen[name] for name in config.views])


def estimate_bn_stats(networks: nn.Module, images: datasets.Images | datasets.StreamedImages, config: Config) -> None:
    """Give an untrained network's BatchNorm the statistics of training images.

    Without them it would be measured under statistics (0, 1) that no image has, and the floor would look lower than it is.
    """
    names, encoders = tuple(dict.fromkeys(config.views)), cast(Any, networks.encoders)
    with arithmetic(config.precision):
        average_statistics(networks, images, lambda pixels: encoders(evaluation_views(pixels, config), names))


def estimate_mag_bn_stats(
    networks: nn.Module, mag: nn.Module, images: datasets.Images | datasets.StreamedImages, config: Config
) -> None:
    """Give a trained MAG's BatchNorm the statistics of training images, of their z as evaluation has it.

    Those of training are of z in training mode or of an older MAG: with them z~ would be another function than the trained one.
    """
    with evaluating(networks), arithmetic(config.precision):
        average_statistics(mag, images, lambda pixels: mag(embedded(networks, pixels, config)))


@torch.no_grad()
def average_statistics(
    module: nn.Module, images: datasets.Images | datasets.StreamedImages, see: Callable[[Tensor], Any]
) -> None:
    """Make the running statistics of the module's BatchNorm the mean over what it is given when up to 2048 images are seen. All
    else is in evaluation mode, since dropout would draw from a run's random numbers."""
    norms = [found for found in module.modules() if isinstance(found, _NormBase)]
    before = [norm.momentum for norm in norms]
    some = torch.linspace(0, len(images) - 1, min(2048, len(images))).long()
    parts = some.tensor_split(-(-len(some) // STATISTICS_BATCH))  # equal parts: each has the same weight
    with evaluating(module):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's cumulative average
            norm.train()
        for pixels in images.batches(parts):
            see(pixels)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum


@contextmanager
def evaluating(*modules: nn.Module | None) -> Iterator[None]:
    """Within, the modules are in evaluation mode (BatchNorm uses its running statistics)."""
    training = [(module, module.training) for module in modules if module is not None]
    try:
        for module, _ in training:
            module.eval()
        yield
    finally:
        for module, mode in training:
            module.train(mode)


@torch.no_grad()
def raw_pixels(images: datasets.Images | datasets.StreamedImages, config: Config) -> Tensor:
    """The floor: the pixels themselves, (N, 3 S S)."""
    return torch.cat([plain(pixels, config.image_size).flatten(1) for pixels in images.batches(in_parts(images))])


def load_networks(config: Config, classes: int, file: Any = None) -> tuple[nn.Module, nn.Module | None]:
    """Encoders and MAG, untrained as the seed makes them, or with the weights of one of `Run.encoder_files`."""
    method = methods.build(config)
    networks, mag = initial_networks(method, classes, config.seed)
    if file is not None:
        tensors, _ = read_tensors(file)
        for prefix, module in (("networks.", networks), ("mag.", mag)):
            if module is not None:
                load_module(module, tensors, prefix, file)
    return networks, mag


def mag_moved(run: Run) -> float | None:
    """How far training moved the MAG's weights: the norm of the difference relative to their norm before. None without a MAG."""
    before, after = (load_networks(run.config, 2, file)[1] for file in (None, run.encoder_files()[-1]))
    if before is None or after is None:
        return None
    old, new = (parameters_to_vector(mag.parameters()) for mag in (before, after))
    return ((new - old).norm() / old.norm()).item()


def evaluate(
    run: Run,
    split: str = "test",
    augmented: bool = False,
    splits: datasets.Splits | None = None,
    device: str | None = None,
    measures: Sequence[str] = MEASURES,
    representations: Sequence[str] = REPRESENTATIONS,
) -> pd.DataFrame:
    """Raw pixels, the untrained and the trained encoder of a finished run, under every protocol; a row each.

    split: test, or val (for choosing settings). augmented: also a row for z and z~ with the heads kept (Table 5, left column).
    The trained row is the mean over the kept epochs. device: None is where splits lie, else the run's own. measures and
    representations: fewer are cheaper; the paper's probe and raw pixels cost most. The result is stored in the run's folder and
    found there: a call computes only what no earlier one did by the same version of the protocol (`PROTOCOL_VERSION`).
    Products have the run's own `precision`. Raises MetaugError if the run is not finished, the split is empty, a name is unknown,
    or splits are of other images.
    """
    if not run.finished:
        raise MetaugError(f"run {run.path.name} is not finished: finish it with `metaug resume {run.path.name}`")
    if split not in ("test", "val") or (split == "val" and not run.config.val_fraction):
        raise MetaugError(f"split must be test, or val with val_fraction > 0, got {split!r}")
    if augmented and load_networks(run.config, 2)[1] is None:
        raise MetaugError(f"method {run.config.method!r} has no MAG, so there are no augmented features to evaluate")
    refuse_unknown(measures, representations)
    stored = run.evaluation(split)
    wanted = [*representations] + [AUGMENTED] * augmented
    gaps = {name: [one for one in measures if one not in stored.get(name, {})] for name in wanted}
    if splits is not None:
        datasets.refuse_foreign(splits, run.config)
    if any(gaps.values()):
        device = device or (str(splits.train.labels.device) if splits else pick_device(run.config.device))
        splits = splits or datasets.load(run.config, device)
        with keep_freed_memory(), arithmetic(run.config.precision):
            for name in filter(gaps.get, gaps):
                stored[name] = stored.get(name, {}) | _representation(name, run, split, splits, device, gaps[name])
        write_json(
            run.evaluation_file(split), stored
        )  # once: a run whose encoders cannot be read is not one that was evaluated
    index = pd.Index(wanted, name="representation")
    return pd.DataFrame([stored[name] for name in wanted], index, [*measures, *COLUMNS])


def refuse_unknown(measures: Sequence[str], representations: Sequence[str]) -> None:
    for kind, names, known in (("measure", measures, MEASURES), ("representation", representations, REPRESENTATIONS)):
        for name in names:
            if name not in known:
                raise MetaugError(f"unknown {kind} {name!r}{suggestion(name, known)}")


def _labelled(
    name: str,
    images: datasets.Images | datasets.StreamedImages,
    config: Config,
    networks: nn.Module,
    mag: nn.Module | None,
) -> Labelled:
    if name == "raw pixels":
        return Labelled(raw_pixels(images, config), images.labels)
    if mag is not None:
        return Labelled(embeddings(networks, images, config, mag).transpose(0, 1).flatten(1), images.labels)
    return Labelled(features(networks, images, config), images.labels)


def _representation(
    name: str, run: Run, split: str, splits: datasets.Splits, device: str, measures: Sequence[str]
) -> dict[str, Any]:
    config, classes = run.config, len(splits.train.classes)
    test = splits.test if split == "test" else splits.val
    assert test is not None
    files = run.encoder_files() if name.startswith("trained") else [None]
    found = []
    for file in files:
        networks, mag = load_networks(config, classes, file)
        networks, mag = networks.to(device), mag.to(device) if mag and name == AUGMENTED else None
        if file is None and name != "raw pixels":
            estimate_bn_stats(networks, splits.train, config)
        if mag is not None:
            estimate_mag_bn_stats(networks, mag, splits.train, config)
        seen = partial(_labelled, name, config=config, networks=networks, mag=mag)
        val = seen(splits.val) if splits.val is not None and split != "val" else None
        found.append(measure(seen(splits.train), seen(test), val, classes, measures))
    mean = {key: sum(f[key] for f in found) / len(found) for key in found[0]}
    counts = {"epochs": len(found), "n_train": len(splits.train), "n_eval": len(test), "split": split}
    counts |= {"protocol": PROTOCOL_VERSION}
    return mean | counts | {"method": config.method, "dataset": config.dataset, "seed": config.seed}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % t-interval over independent trials; the half-width is nan for one trial."""
    x = torch.tensor(values, dtype=torch.float64)
    if len(x) < 2:
        return float(x.mean()), float("nan")
    return float(x.mean()), float(stats.t.ppf(0.975, len(x) - 1) * x.std() / len(x) ** 0.5)


def over_seeds(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """`evaluate` tables of the same settings with different seeds -> mean, 95 % half-width and n by representation."""
    long = pd.concat(tables).reset_index()
    found = []
    for name, group in long.groupby("representation", sort=False):
        for measured in (name for name in MEASURES if name in group):
            mean, half = interval(group[measured].tolist())
            found.append(
                {"representation": name, "measure": measured, "mean": mean, "half_width": half, "n": len(group)}
            )
    return pd.DataFrame(found)
