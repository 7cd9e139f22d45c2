"""One look for every figure: palette, panels, labels, and how a figure is saved.

The palette is Okabe and Ito's (the red is Tol's), which colour-blind readers can tell apart; line styles and hatches say the
same again in grey.
"""

import io
import zlib
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metaug_core.runs import store

BLUE, RED, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#CC3311", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"
METHOD_COLOURS = {
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
OTHERS = ("#EE3377", "#33BBEE", "#EE7733", "#009988", "#7A5195", "#8C564B")  # Tol's vibrant, for registered methods
FLOORS = {"raw pixels": "#D9D9D9", "untrained": "#8C8C8C"}
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


def method_colour(method: str) -> str:
    """The colour of a method in every figure; one registered by a user gets a fixed one by its name."""
    return METHOD_COLOURS.get(method) or OTHERS[zlib.crc32(method.encode()) % len(OTHERS)]


def panels(columns: int = 1, width: float = 4.2, height: float = 3.1) -> tuple[Figure, Any]:
    """A figure in the workbook's style and its axes side by side (one Axes if there is one column)."""
    rcParams.update(STYLE)
    return plt.subplots(1, columns, figsize=(width * columns, height), layout="constrained")


def mosaic(rows: list[Any], width: float, height: float) -> tuple[Figure, Any]:
    """A figure in the workbook's style and its axes by name. rows: lists of names, of which one that stands twice is one panel;
    width and height: of the whole, in inches."""
    rcParams.update(STYLE)
    return plt.subplot_mosaic(rows, figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> None:
    """Write path.png and path.svg, each whole or not at all. Raises StoreError (full disk, no permission)."""
    kinds: dict[str, dict[str, Any]] = {"png": {"dpi": 150}, "svg": {"metadata": {"Date": None}}}
    for kind, options in kinds.items():
        with io.BytesIO() as buffer:
            figure.savefig(buffer, format=kind, **options)
            store.write(path.with_name(f"{path.name}.{kind}"), buffer.getvalue())


def dress(ax: Axes, title: str, x: str = "", y: str = "", caption: str = "") -> Axes:
    """Title, labels with units, and a small caption below."""
    ax.set(title=title, xlabel=x, ylabel=y)
    if caption:
        below = {"xytext": (0, -34 if x else -20), "textcoords": "offset points", "va": "top"}
        ax.annotate(caption, (0, 0), xycoords="axes fraction", fontsize=8.5, color="0.35", **below)
    return ax


def nothing(ax: Axes, title: str, why: str) -> Axes:
    """An empty panel that says why it is empty."""
    ax.text(0.5, 0.5, why, transform=ax.transAxes, ha="center", va="center", color="0.35", wrap=True)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    return dress(ax, title)
