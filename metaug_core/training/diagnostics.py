"""Readings of a run's features and of its MAG: what a reader wants to know beside the loss. None of them changes training."""

import pandas as pd
import torch
from torch import Tensor

from metaug_core.data.datasets import Splits
from metaug_core.data.images import spread_rows
from metaug_core.evaluation import probes, representations
from metaug_core.meta.forward_ad import frozen_statistics
from metaug_core.methods.base import Context
from metaug_core.methods.modifiers import find_base
from metaug_core.networks.memory import copy_module
from metaug_core.objectives.losses import alignment, effective_rank, uniformity
from metaug_core.objectives.margins import margins
from metaug_core.objectives.similarity import similarity
from metaug_core.runs.predictions import accuracy
from metaug_core.training.state import TrainState

BINS = 50  # of a histogram over [0, 1]
MONITOR_TRAIN, MONITOR_VAL = 2000, 1000  # images of the kNN monitor: enough for +-1.5 points, cheap enough every epoch
MAG_READINGS = {
    "mag_update": "update of the MAG's weights in the last epoch, relative to their norm",
    "mixed_gradient_share": "share of the mixed part in the MAG's gradient",
    "augmented_gradient_share": "share of pairs with a z~ in the encoders' gradient",
}


def mag_readings(metrics: pd.DataFrame) -> dict[str, float]:
    """The last values of `MAG_READINGS` in a run's metrics, by description. Metrics that were never logged are left out."""
    columns = {text: metrics[name].dropna() for name, text in MAG_READINGS.items() if name in metrics}
    return {text: float(values.iloc[-1]) for text, values in columns.items() if len(values)}


@torch.no_grad()
def describe(s: TrainState, z: Tensor | None, context: Context) -> dict[str, Tensor]:
    """Readings of the features of one minibatch: z (at least V, B, d), on the device.

    Mean similarities d in [0, 1] of positives and negatives and their histograms (BINS,), the margins of eq. 4, effective rank
    (mean over views), alignment and uniformity of the first two views, and d(z, z~) of the same view: 1 is the collapse that
    R_sigma is there against. Of a method with tau_plus > 0 also the share of anchors whose debiased sum is at its floor; that
    alone if there are fewer than two views or no unit features. {} for a MAG pass (z None) and features that are not finite.
    """
    views = len(s.config.views)
    if z is None or not torch.isfinite(z).all():
        return {}
    base = find_base(s.method)
    readings = {"debias_floor_share": base.find_floors(z, context).float().mean()} if base.tau_plus else {}
    if views < 2 or not s.method.description.unit_features:
        return readings
    with frozen_statistics(s.mag):
        augmented = s.mag(z)[:views] if s.mag is not None else None
    z = z[:views]  # predictions follow the features of the views
    positives, negatives = context.pairs(views)(z, z)
    readings |= {
        "positive_similarity": positives.mean(),
        "negative_similarity": negatives.mean(),
        "positive_histogram": histogram(positives),
        "negative_histogram": histogram(negatives),
        "effective_rank": torch.stack([effective_rank(view) for view in z]).mean(),
        "alignment": alignment(z[0], z[1]),
        "uniformity": uniformity(z[0]),
    }
    if augmented is not None:
        readings["augmented_similarity"] = similarity((z * augmented).sum(-1)).mean()
    if augmented is not None and s.method.description.augmented_by != "loss":  # else nothing has margins
        sigma_plus, sigma_minus = margins(positives, negatives, s.config.margin)
        readings |= {"sigma_plus": sigma_plus.mean(), "sigma_minus": sigma_minus.mean()}
    return readings


def histogram(similarities: Tensor) -> Tensor:
    """The share of similarities in each of BINS equal bins of [0, 1], (BINS,); no wait for the device."""
    return torch.histc(similarities.float(), BINS, 0, 1) / similarities.numel()


def knn_monitor(s: TrainState, splits: Splits) -> float | None:
    """kNN accuracy on up to 1000 validation images from up to 2000 training images; None without a validation split."""
    if splits.val is None:
        return None
    train, val = (
        images.take(spread_rows(len(images), most))
        for images, most in ((splits.train, MONITOR_TRAIN), (splits.val, MONITOR_VAL))
    )
    networks = s.networks
    if s.step == 0:  # BatchNorm has no statistics before the first step; they are estimated on a copy
        networks = copy_module(networks)
        representations.estimate_bn_stats(networks, splits.train, s.config)
    h_train, h_val = (representations.features(networks, images, s.config) for images in (train, val))
    return accuracy(probes.predict_knn(h_train, train.labels, h_val, len(train.classes)), val.labels)
