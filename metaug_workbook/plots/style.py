"""One look for every figure: palette, panels, labels, means with their intervals, and how a figure is saved.

The palette is Okabe and Ito's (the red is Tol's), which colour-blind readers can tell apart; line styles and hatches say the
same again in grey.
"""

import io
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metaug_core.evaluation.representations import interval
from metaug_core.runs import files

plt.draw_if_interactive()  # loads the backend: in IPython that turns interactive mode on, which `use_style` would turn off again

BLUE, RED, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#CC3311", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"
METHOD_COLORS = {
    "metaug": BLUE,
    "metaug-only-oucl": ORANGE,
    "metaug-only-mag": GREEN,
    "cmc": PURPLE,
    "simclr": SKY,
    "supervised": "#000000",
    # From here Tol's muted and its neighbours; the first four also serve where ten classes are told apart.
    "dacl": "#332288",
    "looc": "#882255",
    "cmc+hard": "#999933",
    "byol": "#44AA99",
    "moco": "#AA4499",
    "barlow": "#661100",
    "swav": "#DDCC77",
    "simsiam": "#6699CC",
    "nnclr": "#117733",
    "metaug-nnclr": "#004D40",
    "infomin": "#AA4466",
    "cpc": "#774411",
    "dim": "#4477AA",
    "bigan": "#5E3C99",
    "nat": "#B2ABD2",
    "splitbrain": "#E66101",
    "wmse": "#80CDC1",
    "cmc+debiased": "#666633",
    "cmc+randaugment": "#BF5B9B",
    "metaug+randaugment": "#003D66",
    "simclr+debiased": "#1F77A4",
    "simclr+hard": "#8FD0F0",
    "swav+hard": "#A6952F",
}
MARKERS = "osD^vP*X<>hp"  # say a line's method again in grey
OTHER_COLORS = (
    "#EE3377",
    "#33BBEE",
    "#EE7733",
    "#009988",
    "#7A5195",
    "#8C564B",
)  # Tol's vibrant, for registered methods
FLOOR_COLORS = {"raw pixels": "#D9D9D9", "untrained": "#8C8C8C"}
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "metaug",
}
STYLING = threading.RLock()


def pick_color(method: str) -> str:
    """The color of a method in every figure; one registered by a user gets a fixed one by its name."""
    return (
        METHOD_COLORS.get(method)
        or OTHER_COLORS[zlib.crc32(method.encode("utf-8", "surrogatepass")) % len(OTHER_COLORS)]
    )


# --- a style that is the figure's own: nothing of the session's enters it, and the session's settings stay
@contextmanager
def use_style() -> Iterator[None]:
    """Within it, or in a function that it decorates: matplotlib's own defaults under `STYLE`, then the session's settings again.
    One thread at a time, since they are the process's."""
    with STYLING, plt.style.context(["default", STYLE]):
        yield


class StyledFigure(Figure):
    """A figure that is rendered in the workbook's style: matplotlib makes ticks, and reads fonts, only then."""

    @use_style()
    def draw(self, renderer: Any) -> None:
        super().draw(renderer)


def replace_surrogates(text: str) -> str:
    """What is no UTF-8 in a name of a file, written as an escape: it can be neither drawn nor sent to a browser."""
    return text.encode("utf-8", "backslashreplace").decode()


def verbatim(text: str) -> str:
    """A text from outside (the name of a class, a run, a method) for matplotlib to draw as it stands: $ begins no formula, _ does
    not hide it from a legend, and what is no UTF-8 is written as an escape."""
    readable = replace_surrogates(text).replace("$", r"\$")
    return f"\u200b{readable}" if readable.startswith("_") else readable


@use_style()
def make_figure(width: float, height: float) -> Figure:
    """An empty figure in the workbook's style; width and height in inches."""
    return plt.figure(figsize=(width, height), layout="constrained", FigureClass=StyledFigure)


@use_style()
def make_panels(columns: int = 1, width: float = 4.2, height: float = 3.1) -> tuple[Figure, Any]:
    """A figure and its axes side by side (one Axes if there is one column), each width by height inches."""
    figure = make_figure(width * columns, height)
    return figure, figure.subplots(1, columns)


@use_style()
def save_figure(figure: Figure, path: Path) -> None:
    """Write path.png and path.svg, each whole or not at all. Raises StoreError (full disk, no permission)."""
    kinds: dict[str, dict[str, Any]] = {"png": {"dpi": 150}, "svg": {"metadata": {"Date": None}}}
    for kind, options in kinds.items():
        with io.BytesIO() as buffer:
            figure.savefig(buffer, format=kind, **options)
            files.write(path.with_name(f"{path.name}.{kind}"), buffer.getvalue())


def label(ax: Axes, title: str, x: str = "", y: str = "", caption: str = "") -> Axes:
    """Write the title, axis labels with units, and a small caption below."""
    ax.set(title=title, xlabel=x, ylabel=y)
    if caption:
        below = {"xytext": (0, -34 if x else -20), "textcoords": "offset points", "va": "top"}
        ax.annotate(caption, (0, 0), xycoords="axes fraction", fontsize=8.5, color="0.35", **below)
    return ax


def hide_axes(ax: Axes) -> None:
    """Remove ticks and grid, for a panel whose axes have no scale."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)


def draw_empty(ax: Axes, title: str, reason: str) -> Axes:
    """An empty panel that says why it is empty."""
    ax.text(0.5, 0.5, reason, transform=ax.transAxes, ha="center", va="center", color="0.35", wrap=True)
    hide_axes(ax)
    return label(ax, title)


# --- a mean over seeds with its 95 % t-interval, which seaborn computes from the single values
def find_ends(values: Iterable[float]) -> tuple[float, float]:
    """The lower and upper end of `evaluation.interval`, for seaborn's `errorbar`; nan for one value."""
    mean, half = interval(list(values))
    return mean - half, mean + half


def draw_means(table: pd.DataFrame, x: str, y: str, ax: Axes, joined: bool = True, **look: Any) -> None:
    """The mean of y at each x: a line with a band, or, not joined, points with bars. look: of matplotlib's lines."""
    import seaborn as sns  # slow to import: it brings scipy.stats

    bars: dict[str, Any] = {} if joined else {"linestyle": "none", "err_style": "bars", "err_kws": {"capsize": 3}}
    look = {"markeredgecolor": look.get("color")} | look
    sns.lineplot(table, x=x, y=y, ax=ax, errorbar=find_ends, legend=False, **bars, **look)
