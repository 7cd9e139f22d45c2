"""One image through every stage of the augmentation in turn, and what each view sees of the result."""

from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from metaug_core.config import Config
from metaug_core.data import shapes
from metaug_core.errors import MetaugError
from metaug_core.views import augmentation
from metaug_workbook.plots.image_grids import picture
from metaug_workbook.plots.style import STYLE
from metaug_workbook.widgets.base import DPI, Explorer, slider

SAMPLE, SIDE = (20, 7), 64  # images and seed of the built-in ones, and their side in pixels
OFF: dict[str, Any] = {"crop_scale": (1.0, 1.0), "flip": 0.0}
SHOWN = ("RGB", "L", "ab", "Lab", "Y", "DbDr")


def stages(
    crop: float, flip: float, rotation: float, randaugment: float, jitter: float, grey: float
) -> dict[str, dict[str, Any]]:
    """The settings of each stage by its name, in the order in which `views.transform` takes them."""
    return {
        "crop": {"crop_scale": (crop, 1.0)},
        "flip": {"flip": flip},
        "rotation": {"rotation": rotation},
        "RandAugment": {"randaugment": randaugment},
        "jitter": {"jitter": jitter},
        "grey": {"grey": grey},
    }


def through(image: Tensor, seed: int, **settings: float) -> dict[str, Tensor]:
    """A uint8 image (3, H, W) as it is and after each stage of `stages`, each on top of those before: (3, S, S) in [0, 1].

    The draws are those of `seed` at every stage, so a stage that is off leaves the others alone.
    """
    batch, draws = image[None], augmentation.draw(1, torch.Generator().manual_seed(seed))
    so_far: dict[str, Any] = {"image_size": min(image.shape[1:]), **OFF}
    found = {"image": augmentation.plain(batch, so_far["image_size"])[0]}
    for name, setting in stages(**settings).items():
        so_far |= setting
        found[name] = augmentation.transform(batch, Config(**so_far), draws)[0]
    return found


class AugmentationPlot:
    """A row of stages and a row of views. images uint8 (N, 3, H, W)."""

    def __init__(self, images: Tensor):
        self.images = images
        names = ["image", *stages(1, 0, 0, 0, 0, 0)]
        with rc_context(STYLE):
            self.figure = Figure(figsize=(8.8, 3.3), dpi=DPI)
            parts: Any = self.figure.subfigures(2, 1)
            above, below = parts
            self.pictures: dict[str, Any] = {}
            rows = (
                (above, [f"{'+ ' if n else ''}{name}" for n, name in enumerate(names)]),
                (below, [f"view {n}" for n in SHOWN]),
            )
            for part, titles in rows:
                panels = part.subplots(1, len(titles))
                part.subplots_adjust(left=0.01, right=0.99, wspace=0.08, bottom=0.02, top=0.86)
                for ax, title in zip(panels, titles, strict=True):
                    self.pictures[title] = ax.imshow(np.zeros((2, 2, 3)), extent=(0, 1, 0, 1), interpolation="nearest")
                    ax.set_title(title, loc="center", fontsize=9.5)
                    ax.set_axis_off()
        self.moving = list(self.pictures.values())

    def update(self, number: int, seed: int, **settings: float) -> str:
        found = through(self.images[number % len(self.images)], seed, **settings)
        last = list(found.values())[-1][None]
        rows = [picture(2 * rgb[None] - 1, "RGB")[0] for rgb in found.values()]
        rows += [picture(view, name)[0] for view, name in zip(augmentation.split(last, SHOWN), SHOWN, strict=True)]
        for artist, pixels in zip(self.moving, rows, strict=True):
            artist.set_data(pixels)
        return f"Image {number}, seed {seed}: {happened(seed, **settings)}. Every encoder of a run sees one of the views below."


def happened(
    seed: int, crop: float, flip: float, rotation: float, randaugment: float, jitter: float, grey: float
) -> str:
    """What chance decided, in words."""
    draws = {name: float(x) for name, x in augmentation.draw(1, torch.Generator().manual_seed(seed)).items()}
    said = [f"cropped to {100 * (crop + draws['area'] * (1 - crop)):.0f} % of its area" if crop < 1 else "not cropped"]
    said += ["flipped" if draws["flip"] < flip else "not flipped"]
    said += [f"turned by {rotation * (2 * draws['rotation'] - 1):+.0f}°"] if rotation else []
    said += [f"two operations of RandAugment at magnitude {randaugment:g}"] if randaugment else []
    said += [f"colours jittered with strength {jitter:g}"] if jitter else []
    said += ["made grey" if draws["grey"] < grey else "left in colour"]
    return ", ".join(said)


def augmentation_plot(images: Tensor | None) -> AugmentationPlot:
    images = shapes.make(*SAMPLE, SIDE)[0] if images is None else images
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3 or not len(images):
        raise MetaugError(f"images must be uint8 (N, 3, H, W) with N > 0, got {images.dtype} {tuple(images.shape)}")
    return AugmentationPlot(images.cpu())


def augmentation_figure(images: Tensor | None = None, number: int = 0, seed: int = 0, crop: float = 0.2, flip: float = 0.5,
                        rotation: float = 0, jitter: float = 0.5, grey: float = 0.2, randaugment: float = 0) -> Figure:  # fmt: skip
    """The figure of `augmentation_viewer` without controls."""
    plot = augmentation_plot(images)
    plot.update(
        number, seed, crop=crop, flip=flip, rotation=rotation, randaugment=randaugment, jitter=jitter, grey=grey
    )
    return plot.figure


def augmentation_viewer(
    images: Tensor | None = None, number: int = 0, seed: int = 0, crop: float = 0.2, flip: float = 0.5,
    rotation: float = 0, jitter: float = 0.5, grey: float = 0.2, randaugment: float = 0,
) -> Explorer:  # fmt: skip
    """An image through crop, flip, rotation, RandAugment, jitter and grey, one stage after the other, and its views.

    images: uint8 (N, 3, H, W); None: shapes of 64 px. crop: least area that is kept, 1 keeps all; flip and grey: probabilities;
    rotation: at most so many degrees either way; jitter: strength as SimCLR's; randaugment: magnitude, 0 to 30. seed: of the
    chance in all of them. Raises MetaugError for images of another type or shape.
    """
    plot = augmentation_plot(images)
    controls: dict[str, Any] = {
        "number": slider(
            "image (number)", number, 0, max(len(plot.images) - 1, 1), 1, "which image; they start again after the last"
        ),
        "seed": slider("seed (number)", seed, 0, 50, 1, "another seed is another draw of all that is random"),
        "crop": slider("crop: least area (share)", crop, 0.08, 1.0, 0.02, "1: no crop; the paper crops from 0.2"),
        "flip": slider("flip (probability)", flip, 0.0, 1.0, 0.1, "horizontal"),
        "rotation": slider("rotation (degrees, ±)", float(rotation), 0.0, 180.0, 5.0, "uniform in ± this"),
        "randaugment": slider(
            "RandAugment (0 to 30)", float(randaugment), 0.0, 30.0, 1.0, "magnitude of two random operations"
        ),
        "jitter": slider(
            "jitter (strength)", jitter, 0.0, 1.0, 0.1, "brightness, contrast, saturation and hue; 0: none"
        ),
        "grey": slider("grey (probability)", grey, 0.0, 1.0, 0.1, "of losing all colour"),
    }
    return Explorer(plot, controls, "Augmentation viewer: one image, stage by stage, and what each view sees of it")
