"""Images and their views as a reader sees them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from metaug_core.data.images import AnyImages
from metaug_core.views.augmentation import plain
from metaug_workbook.plots.style import BLUE, ORANGE, hide_axes, label, use_style, verbatim

GAP = 0.55  # between the query, the neighbours before and those after, in images


def convert_lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (..., 3), D65 -> sRGB in [0, 1], clipped; for showing only."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, (f - 16 / 116) / 7.787) * (0.95047, 1, 1.08883)
    matrix = ((3.24048, -1.53715, -0.49854), (-0.96926, 1.87599, 0.04156), (0.05565, -0.20404, 1.05731))
    linear = np.clip(xyz @ np.array(matrix).T, 0, 1)
    return np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def show_view(view: Tensor, name: str) -> np.ndarray:
    """A view (N, C, S, S), about [-1, 1] -> colors (N, S, S, 3) in [0, 1]; ab at lightness 65, one channel as grey."""
    x = (view.float().cpu().numpy().transpose(0, 2, 3, 1) + 1) / 2  # (N, S, S, C) in [0, 1]
    if name in ("ab", "Lab"):
        low, high = np.array([-86.183, -107.857]), np.array([98.233, 94.478])
        lightness = np.full_like(x[..., :1], 65) if name == "ab" else 100 * x[..., :1]
        return convert_lab_to_rgb(np.concatenate([lightness, low + (high - low) * x[..., -2:]], axis=-1))
    if x.shape[-1] == 1:
        x = np.repeat(x, 3, axis=-1)
    filled = np.concatenate([x, np.full_like(x[..., :1], 0.5)], axis=-1)[..., :3]
    return np.clip(filled, 0, 1)


@use_style()
def draw_views(pixels: Tensor, views: Sequence[Tensor], names: Sequence[str], ax: Axes) -> Axes:
    """The images uint8 (N, 3, H, W) in the first row, and below each what every encoder sees of it, (N, C, S, S)."""
    size = views[0].shape[-1]
    rows = [show_view(2 * plain(pixels, size) - 1, "RGB")]
    rows += [show_view(view, name) for view, name in zip(views, names, strict=True)]
    mosaic = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
    ax.imshow(mosaic, interpolation="nearest")
    hide_axes(ax)
    ax.set_yticks([size * (k + 0.5) for k in range(len(rows))], ["image", *map(verbatim, names)])
    ax.spines[:].set_visible(False)
    return ax


# --- neighbours
def take_pixels(images: AnyImages, indices: Sequence[int], size: int) -> np.ndarray:
    """The images of these numbers as they are stored: colors (N, S, S, 3) in [0, 1]."""
    some = torch.tensor(list(indices))
    pixels = torch.cat([batch.cpu() for batch in images.batches(some[:, None].to(images.labels.device))])
    return show_view(2 * plain(pixels, size) - 1, "RGB")


@use_style()
def draw_neighbours(
    table: pd.DataFrame, test: AnyImages, train: AnyImages, size: int, titles: dict[str, str], ax: Axes
) -> Axes:
    """Queries in rows, and beside each its nearest training images, before training and after it.

    table: rows with `panel` (before, after), `query` (number of a test image), `rank` (from 1) and `neighbour` (number of a
    training image). titles: of the two panels. A neighbour of the query's class has a solid blue frame and a check mark,
    another one a dashed orange frame and a cross. size: side of the pictures in pixels.
    """
    queries, most = list(dict.fromkeys(table["query"])), max(table["rank"].tolist())
    left = {"query": 0.0, "before": 1 + GAP, "after": 1 + most + 2 * GAP}
    look: dict[str, Any] = {"interpolation": "nearest", "aspect": "equal"}
    for row, picture in enumerate(take_pixels(test, queries, size)):
        ax.imshow(picture, extent=(0, 0.94, row + 0.94, row), **look)
    pictures = take_pixels(train, table["neighbour"].tolist(), size)
    for place, picture in zip(table.to_dict("records"), pictures, strict=True):
        x, y = left[place["panel"]] + place["rank"] - 1, queries.index(place["query"])
        right = bool(test.labels[place["query"]] == train.labels[place["neighbour"]])
        ax.imshow(picture, extent=(x, x + 0.94, y + 0.94, y), **look)
        color, line, mark = (BLUE, "-", "\N{CHECK MARK}") if right else (ORANGE, "--", "\N{BALLOT X}")
        ax.add_patch(
            Rectangle((x + 0.02, y + 0.02), 0.9, 0.9, fill=False, edgecolor=color, linestyle=line, linewidth=2.2)
        )
        ax.text(x + 0.08, y + 0.1, mark, color="black", fontsize=9, va="top", weight="bold",
                bbox={"boxstyle": "square,pad=0.12", "facecolor": "white", "edgecolor": color, "linewidth": 1})  # fmt: skip
    hide_axes(ax)
    ax.set(xlim=(-0.05, left["after"] + most), ylim=(len(queries), -0.1))
    ax.set_yticks(np.arange(len(queries)) + 0.47, [verbatim(test.classes[test.labels[query]]) for query in queries])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    for panel, title in {"query": "Query", **titles}.items():
        ax.text(left[panel], -0.14, title, fontsize=10.5, va="bottom")
    caption = f"nearest of {len(train):,} training images by the cosine of $h$; \N{CHECK MARK} same class, \N{BALLOT X} another"
    return label(ax, "", caption=caption)
