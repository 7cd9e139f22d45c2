"""The grid of runs that a figure of the paper needs, and what they will cost on this machine before any of them starts.

configs = make_grid({"preset": "sketch"}, seeds=3, method=["metaug-only-oucl"], oucl=["eq9"], phi_dec=[1, 2, 4, 6, 8])
estimate_by_steps(configs)
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import numpy as np
import pandas as pd
import safetensors.torch

from metaug_core import methods
from metaug_core.config import Config, ConfigError
from metaug_core.contradictions import unordered
from metaug_core.data import datasets
from metaug_core.errors import MetaugError
from metaug_core.evaluation import representations
from metaug_core.presets import preset
from metaug_core.training import loop
from metaug_workbook.results import step_costs

# Images that an encoder sees in a pass; those of other data sets are counted by loading them.
TRAINING_IMAGES = {"shapes": 10_000, "cifar10": 50_000, "cifar100": 50_000, "stl10": 105_000, "tiny-imagenet": 100_000,
                   "imagenet": 1_281_167}  # fmt: skip
# Settings on which the time of a step depends; runs that share them are timed once.
KIND = ("method", "encoder", "views", "image_size", "batch_size", "width", "mag_hidden", "negatives", "bank_negatives",
        "schedule", "precision", "randaugment", "device")  # fmt: skip
TIMED_PIXELS = 64 * 64 * 64  # a minibatch is timed whole up to this many pixels, else a part of it
TIMED_STEPS = 3
CONTRASTIVE = ("cmc", "metaug-only-mag")  # InfoNCE where `metaug-only-oucl` and `metaug` have OUCL, all else alike
EVALUATION = 1 / 3  # of the time of a training step on as many images: forward without backward


def make_grid(settings: Mapping[str, Any], seeds: int = 1, **axes: Sequence[Any]) -> list[Config]:
    """The Config of every combination of the axes' values, for seeds 0 to seeds - 1, seeds innermost.

    settings: `preset` and settings as a notebook has them (None: the preset's); a method brings its own defaults. Raises
    ConfigError for an unknown setting or value, for an axis whose values have no order, and for a setting that an axis would
    replace.
    """
    for name, values in axes.items():
        if fault := unordered(values):
            raise ConfigError(f"{name}: {fault}")
    given = {name: value for name, value in settings.items() if value is not None}
    if replaced := sorted(given.keys() & axes):
        raise ConfigError(f"{replaced[0]}: this notebook compares runs that differ in it, so it cannot be set")
    configs = []
    for values in itertools.product(*axes.values()):
        chosen = {"preset": "quick"} | given | dict(zip(axes, values, strict=True))
        name = chosen.pop("preset")
        configs += [preset(name, **chosen, seed=seed) for seed in range(seeds)]
    return configs


def match_temperature(configs: Sequence[Config]) -> list[Config]:
    """The contrastive ones of these configs again, at the temperature that OUCL has with their beta: the control without
    which a table of both losses compares temperatures first of all.

    Eq. 8 with one positive and lambda 0 is InfoNCE divided by beta at t = 1 / beta in d, that is 2 / beta in cosines;
    phi_dec divides beta (section 4.4). A config that has this temperature already is not repeated.
    """
    contrastive = [config for config in configs if config.method in CONTRASTIVE]
    matched = [config.replace(temperature=2 * config.phi_dec / config.beta) for config in contrastive]
    return [new for new, old in zip(matched, contrastive, strict=True) if new.temperature != old.temperature]


def name_matched(table: Any) -> pd.DataFrame:
    """A table of runs (`tables.read_table`) in which those of `match_temperature` have a method name of their own,
    `cmc at t = 0.125`: they are rows of their own wherever a table or figure goes by method."""
    is_matched = np.isclose(table["temperature"], 2 * table["phi_dec"] / table["beta"])
    names = table["method"] + " at t = " + table["temperature"].map("{:g}".format)
    return table.assign(method=names.where(is_matched & table["method"].isin(CONTRASTIVE), table["method"]))


def keep_trainable(configs: Sequence[Config]) -> list[Config]:
    """Those of the configs that their method can train: LooC, say, refuses images without the augmentations that it holds."""
    trainable = []
    for config in configs:
        with suppress(ConfigError):
            methods.build(config)
            trainable.append(config)
    return trainable


def select_floors(configs: Sequence[Config]) -> list[Config]:
    """One config for each distinct untrained encoder, whose accuracy is the floor of trained ones: none is measured twice."""
    return list({identify_floor(c): c for c in reversed(configs)}.values())


def hash_untrained(config: Config) -> str:
    """A hash of what an untrained encoder is: its weights, and its h of made-up images, which tells apart networks that use the
    same weights in other ways (on patches of another grid). What is measured of equal ones on the same images is equal."""
    networks, _ = representations.load_networks(config, 2)
    h = representations.features(networks, step_costs.make_noise(2, config.image_size), config)
    weights = cast(Any, networks.encoders).state_dict()
    tensors = {"h": h} | {f"weights.{name}": tensor.contiguous() for name, tensor in weights.items()}
    return hashlib.sha256(safetensors.torch.save(tensors)).hexdigest()


def identify_floor(config: Config) -> tuple[Any, ...]:
    """Equal where the untrained accuracy is: the same encoder before training, on the same images."""
    images = tuple(getattr(config, name) for name in loop.SHARED)
    try:
        return *images, hash_untrained(config)
    except MetaugError:  # networks that cannot be made have no floor to share
        return *images, config.name()


def count_images(config: Config) -> int:
    """How many images a pass of this run has. Raises DataError if they must be counted and are not there."""
    counts = [count for count in (TRAINING_IMAGES.get(config.dataset), config.train_images) if count is not None]
    if not counts or (config.fewer_images and len(counts) == 1):
        labelled, unlabelled, _ = datasets.divide(datasets.read_raw(config).train_labels, config)
        return len(labelled) + len(unlabelled)
    return round(min(counts) * (1 - config.val_fraction))


def time_step(config: Config) -> float:
    """Seconds of training by one minibatch, on random images and after one step to warm up; of Algorithm 1 both passes."""
    batch = min(config.batch_size, max(4, TIMED_PIXELS // config.image_size**2))
    prepared = step_costs.prepare_step(config.replace(batch_size=batch, train_images=None))
    s = prepared.s
    total = 0.0
    for position in (0, s.steps_per_epoch // 2) if s.mag is not None and config.schedule == "epoch" else (0,):
        s.position = position
        prepared.take()
        # The least of them: threads that wait for a busy core have made a step of 90 ms take five seconds.
        total += min(step_costs.time_call(prepared.take) for _ in range(TIMED_STEPS))
    return total * config.batch_size / batch


def estimate_by_steps(configs: Sequence[Config]) -> float:
    """About how long these runs will train and be evaluated here, one after another; within a factor of two on a busy machine.

    Not counted: the probes themselves, the crops that probe_paper encodes, and reading the data.
    """
    by_kind: dict[tuple[Any, ...], float] = {}
    total = 0.0
    for config in configs:
        kind = tuple(getattr(config, name) for name in KIND)
        if kind not in by_kind:
            by_kind[kind] = time_step(config)
        passes = config.epochs + EVALUATION * 1.5 * config.keep_last
        total += by_kind[kind] * passes * count_images(config) / config.batch_size
    return total
