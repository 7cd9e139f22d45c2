"""Images and their views as a reader sees them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from metaug_core.views.augmentation import plain
from metaug_workbook.plots.style import hide_axes, use_style, verbatim


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
