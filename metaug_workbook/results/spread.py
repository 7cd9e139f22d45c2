"""How much an accuracy varies, and from where: the probe's seed, the training's seed, the size of the test set."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from metaug_core.runs.store import Run
from metaug_workbook.results.tables import find_seeds


def estimate_sampling(share: np.ndarray, n: int) -> float:
    """Standard deviation in [0, 1] that an accuracy would have between seeds if each image were right by chance alone, with its own
    probability: the part that the test set's size explains (Jordan 2023). share (N,): in which share of n seeds each image is
    right; n > 1, and unbiased for it, since the shares are themselves means over n seeds."""
    return float(((share * (1 - share)).mean() * n / (n - 1) / len(share)) ** 0.5)


def estimate_deviation(values: Sequence[float]) -> tuple[float, float, float]:
    """Standard deviation of independent values and the ends of its 95 % interval (by chi^2, for normal values); nan for one."""
    from scipy.special import chdtri  # slow to import

    n = len(values)
    if n < 2:
        return float("nan"), float("nan"), float("nan")
    deviation = float(np.std(values, ddof=1))
    low, high = (deviation * ((n - 1) / chdtri(n - 1, p)) ** 0.5 for p in (0.025, 0.975))
    return deviation, float(low), float(high)


def tabulate_spread(run: Run, by_seed: pd.DataFrame, measure: str = "probe_plain", split: str = "test") -> pd.DataFrame:
    """By source, how much the accuracy of a probe on the trained encoder varies, in points: deviation with the ends of its 95 %
    interval, and over how many (n). by_seed: of `sensitivity.measure_probe_seeds`.

    The probe's seed: on the features of this run. The training's seed: the finished runs of `find_seeds` that are evaluated, which
    share the probe's seed. The test set: `estimate_sampling` of these.
    """
    stored = [(one, one.correct(split)) for one in find_seeds(run)]
    accuracies = [one.evaluation(split)["trained"][measure] for one, correct in stored if measure in correct]
    shares = [correct[measure].double().numpy() for _, correct in stored if measure in correct]
    n = len(shares)
    sampling = estimate_sampling(np.mean(shares, 0), n) if n > 1 else float("nan")
    rows = {
        "seed of the probe": (*estimate_deviation(by_seed["accuracy"].tolist()), len(by_seed)),
        "seed of the training": (*estimate_deviation(accuracies), n),
        "of which the test set's size": (sampling, float("nan"), float("nan"), n),
    }
    table = pd.DataFrame.from_dict(rows, "index", columns=["deviation", "low", "high", "n"]).rename_axis("source")
    return table.assign(**{name: 100 * table[name] for name in ("deviation", "low", "high")})
