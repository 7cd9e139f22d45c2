"""A mean over seeds with its 95 % t-interval, drawn by seaborn from the single values."""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from metaug_core.evaluation.representations import interval


def ends(values: Any) -> tuple[float, float]:
    """The lower and upper end of `evaluation.interval` of a Series, for seaborn's `errorbar`; nan for one value."""
    mean, half = interval(list(values))
    return mean - half, mean + half


def ends_of_three(values: Any) -> tuple[float, float]:
    """`ends` from three values on: of two they lie so far apart that a figure would show little else."""
    return ends(values) if len(values) > 2 else (float("nan"), float("nan"))


def draw_means(table: pd.DataFrame, x: str, y: str, ax: Axes, joined: bool = True, **look: Any) -> None:
    """The mean of y at each x: a line with a band, or, not joined, points with bars. look: of matplotlib's lines."""
    apart: dict[str, Any] = {} if joined else {"linestyle": "none", "err_style": "bars", "err_kws": {"capsize": 3}}
    look = {"markeredgecolor": look.get("color")} | look
    sns.lineplot(table, x=x, y=y, ax=ax, errorbar=ends, legend=False, **apart, **look)
