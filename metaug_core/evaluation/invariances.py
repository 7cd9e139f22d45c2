"""What features still know of an augmentation: how well its drawn parameter can be read from them, linearly.

An encoder that is invariant to an augmentation has nothing to read. What is read is the change of the features, those of the
augmented image less those of the image as it is, so that what differs between images does not hide it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from metaug_core.config import Config
from metaug_core.data.images import AnyImages
from metaug_core.errors import MetaugError
from metaug_core.evaluation.crops import split_rows
from metaug_core.evaluation.representations import embed, encode, evaluating
from metaug_core.runtime.device import arithmetic
from metaug_core.views.augmentation import CROP_AND_FLIP, draw, plain, transform

OFF = CROP_AND_FLIP | {"crop_scale": (1.0, 1.0), "crop_ratio": 1.0, "flip": 0.0, "jitter": 0.0, "grey": 0.0}
PENALTIES = tuple(10.0**power for power in range(-6, 3))  # of the ridge, beside features of mean square 1
FIT, CHOSEN = 0.6, 0.8  # up to where images fit the reader, and choose its penalty; the rest scores it


def jitter_only(place: int, limit: float) -> dict[str, Any]:
    ranges = tuple(limit if number == place else 0.0 for number in range(4))
    return {"jitter": 1.0, "jitter_probability": 1.0, "jitter_ranges": ranges}


@dataclass(frozen=True)
class Parameter:
    """One augmentation: the settings that switch it on alone, and the name of the number that is drawn for it.

    chance: it happens with this probability; 0: the number is its strength.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    chance: float = 0.0


PARAMETERS = {
    "crop's x": Parameter("x", {"crop_scale": (0.4, 0.4)}),
    "crop's y": Parameter("y", {"crop_scale": (0.4, 0.4)}),
    "crop's size": Parameter("area", {"crop_scale": (0.2, 1.0)}),
    "flip": Parameter("flip", {"flip": 0.5}, 0.5),
    "brightness": Parameter("brightness", jitter_only(0, 0.5)),
    "contrast": Parameter("contrast", jitter_only(1, 0.5)),
    "saturation": Parameter("saturation", jitter_only(2, 0.5)),
    "hue": Parameter("hue", jitter_only(3, 0.1)),
    "grey": Parameter("grey", {"grey": 0.5}, 0.5),
}


def read_linearly(features: Tensor, target: Tensor) -> float:
    """How well a linear reader predicts a target (N,) from features (N, D), on images that it has not seen: R^2 of numbers; of a
    boolean target 2 b - 1, b the balanced accuracy. 1: exactly, about 0: not at all; below 0 for a reader that misleads.

    The reader is a ridge regression in closed form, fitted on the first 60 % of the rows; the next 20 % choose its penalty. Raises
    MetaugError for fewer than 10 rows, or if the target is constant in one of the parts.
    """
    first, second = int(FIT * len(target)), int(CHOSEN * len(target))
    x, y = features.detach().cpu().double(), target.detach().cpu().double()
    parts = (slice(first), slice(first, second), slice(second, None))
    if len(y) < 10 or any((y[part] == y[part][0]).all() for part in parts):
        raise MetaugError(f"cannot read a target of {len(y)} images: it needs 10, and two values in each part")
    x, centre = x - x[:first].mean(0), y[:first].mean()
    x = x / x[:first].square().mean().sqrt().clamp(min=1e-12)
    u, s, vh = torch.linalg.svd(x[:first], full_matrices=False)
    along = u.T @ (y[:first] - centre)

    def score(penalty: float, part: slice) -> float:
        predicted = centre + x[part] @ (vh.T @ (s / (s.square() + first * penalty) * along))
        return score_reading(predicted, target[part].detach().cpu(), centre)

    best = max(PENALTIES, key=lambda penalty: score(penalty, parts[1]))
    return score(best, parts[2])


def score_reading(predicted: Tensor, target: Tensor, centre: Tensor) -> float:
    """`read_linearly`'s score of predictions (N,). centre: the mean of the targets that the reader was fitted on."""
    if target.dtype == torch.bool:
        says = predicted > centre
        return float(says[target].double().mean() + (~says[~target]).double().mean() - 1)
    residual, spread = (target - predicted).square().sum(), (target - centre).square().sum()
    return float(1 - residual / spread)


@torch.no_grad()
def change_features(
    networks: nn.Module,
    images: AnyImages,
    config: Config,
    parameter: Parameter,
    mag: nn.Module | None = None,
    seed: int = 0,
) -> tuple[dict[str, Tensor], Tensor]:
    """How one augmentation changes the features, by name `h`, `z` and with a MAG `z~`, (N, any), and the numbers drawn (N,), bool
    where it happens or not. Views stand side by side. The draws depend on seed alone."""
    alone = config.model_copy(update={**OFF, **parameter.changes})
    generator = torch.Generator(images.labels.device).manual_seed(seed)
    changes: dict[str, list[Tensor]] = {}
    drawn = []
    with evaluating(networks, mag), arithmetic(config.precision):
        for pixels in images.batches(split_rows(images)):
            draws = draw(len(pixels), generator)
            after = compute_features(networks, transform(pixels, alone, draws), config, mag)
            before = compute_features(networks, plain(pixels, config.image_size), config, mag)
            for name in after:
                changes.setdefault(name, []).append(after[name] - before[name])
            drawn.append(draws[parameter.name].flatten())
    numbers = torch.cat(drawn)
    return {name: torch.cat(rows) for name, rows in changes.items()}, (
        numbers < parameter.chance if parameter.chance else numbers
    )


def compute_features(networks: nn.Module, rgb: Tensor, config: Config, mag: nn.Module | None) -> dict[str, Tensor]:
    """h, z and with a MAG z~ of rgb (B, 3, S, S) in [0, 1], views side by side: (B, any) each."""
    z = embed(networks, rgb, config)
    found = {"h": torch.cat(encode(networks, rgb, config), 1), "z": z.transpose(0, 1).flatten(1)}
    return found if mag is None else found | {"z~": mag(z).transpose(0, 1).flatten(1)}


def measure_invariances(
    networks: nn.Module, images: AnyImages, config: Config, mag: nn.Module | None = None, seed: int = 0
) -> pd.DataFrame:
    """A row for each augmentation and kind of features (h, z, z~): augmentation, features, score (`read_linearly`), and with a MAG
    on the rows of z also share: of what the MAG changes, |z~ - z|^2, how much lies along what the augmentation changes
    (`share_along`). Call `estimate_mag_bn_stats` first. Raises MetaugError for fewer than 50 images or so."""
    added = None if mag is None else change_by_mag(networks, images, config, mag)
    rows = []
    for augmentation, parameter in PARAMETERS.items():
        changes, target = change_features(networks, images, config, parameter, mag, seed)
        for name, change in changes.items():
            share = share_along(added, change) if added is not None and name == "z" else float("nan")
            rows.append(
                {"augmentation": augmentation, "features": name, "score": read_linearly(change, target), "share": share}
            )
    return pd.DataFrame(rows)


@torch.no_grad()
def change_by_mag(networks: nn.Module, images: AnyImages, config: Config, mag: nn.Module) -> Tensor:
    """z~ - z of images as they are (N, V d)."""
    parts = []
    with evaluating(networks, mag), arithmetic(config.precision):
        for pixels in images.batches(split_rows(images)):
            z = embed(networks, plain(pixels, config.image_size), config)
            parts.append((mag(z) - z).transpose(0, 1).flatten(1))
    return torch.cat(parts)


def share_along(added: Tensor, change: Tensor, directions: int = 8) -> float:
    """The share of the variance of `added` (N, D) that lies in the leading directions of `change` (M, D), each about its mean; in
    random directions it would be directions / D on the average."""
    added, change = (x.detach().cpu().double() for x in (added, change))
    added, change = added - added.mean(0), change - change.mean(0)
    along = torch.linalg.svd(change, full_matrices=False).Vh[:directions]
    return float((added @ along.T).square().sum() / added.square().sum())
