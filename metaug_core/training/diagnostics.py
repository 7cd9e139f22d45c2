"""What a reader of a run wants to know of its features, beside the loss."""

import pandas as pd
import torch
from torch import Tensor

from metaug_core.config import Config
from metaug_core.methods.base import Context
from metaug_core.objectives.losses import alignment, effective_rank, uniformity
from metaug_core.objectives.margins import margins
from metaug_core.objectives.similarity import similarity

BINS = 50  # of a histogram over [0, 1]
MAG_READINGS = {
    "mag_update": "update of the MAG's weights in the last epoch, relative to their norm",
    "mixed_gradient_share": "share of the mixed part in the MAG's gradient",
    "augmented_gradient_share": "share of pairs with a z~ in the encoders' gradient",
}


def mag_readings(metrics: pd.DataFrame) -> dict[str, float]:
    """The last values of `MAG_READINGS` in the metrics of a run, by what they are; those that were never logged are left out."""
    columns = {text: metrics[name].dropna() for name, text in MAG_READINGS.items() if name in metrics}
    return {text: float(values.iloc[-1]) for text, values in columns.items() if len(values)}


def shares(similarities: Tensor) -> Tensor:
    """The share of similarities in each of BINS equal bins of [0, 1], (BINS,); no wait for the device."""
    return torch.histc(similarities.float(), BINS, 0, 1) / similarities.numel()


@torch.no_grad()
def describe(z: Tensor, augmented: Tensor | None, context: Context, config: Config) -> dict[str, Tensor]:
    """Readings of one minibatch: z and z~ (V, B, d) of unit norm, on the device. {} for fewer than two views.

    Mean similarities d in [0, 1] of positives and negatives and their histograms (BINS,), the margins of eq. 4, effective rank
    (mean over views), alignment and uniformity of the first two views, and d(z, z~) of the same view: 1 is the collapse that
    R_sigma is there against.
    """
    views = len(config.views)
    if views < 2:
        return {}
    positives, negatives = context.pairs(views)(z, z)
    found = {
        "positive_similarity": positives.mean(),
        "negative_similarity": negatives.mean(),
        "positive_histogram": shares(positives),
        "negative_histogram": shares(negatives),
        "effective_rank": torch.stack([effective_rank(view) for view in z]).mean(),
        "alignment": alignment(z[0], z[1]),
        "uniformity": uniformity(z[0]),
    }
    if augmented is not None:
        sigma_plus, sigma_minus = margins(positives, negatives, config.margin)
        found |= {"sigma_plus": sigma_plus.mean(), "sigma_minus": sigma_minus.mean()}
        found["augmented_similarity"] = similarity((z * augmented).sum(-1)).mean()
    return found
