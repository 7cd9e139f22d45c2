"""One image through every stage of the augmentation in turn, and what each view sees of the result."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from torch import Tensor

from metaug_core.config import Config
from metaug_core.data import shapes
from metaug_core.errors import MetaugError
from metaug_core.views import augmentation
from metaug_workbook.plots.image_grids import show_view
from metaug_workbook.widgets.base import Explorer, Plot, slider, without_controls

SAMPLE, SIDE = (20, 7), 64  # images and seed of the built-in ones, and their side in pixels
# The stages in the order in which `augmentation.transform` takes them: name of the value -> title.
STAGES = {"crop": "crop", "flip": "flip", "rotation": "rotation", "randaugment": "RandAugment", "jitter": "jitter",
          "grey": "grey"}  # fmt: skip
VIEWS = ("RGB", "L", "ab", "Lab", "Y", "DbDr")


def apply_stages(image: Tensor, seed: int, values: Mapping[str, float]) -> list[Tensor]:
    """A uint8 image (3, H, W) as it is and after each of STAGES, each on top of those before: (3, S, S) in [0, 1].

    The draws are those of `seed` at every stage, so a stage that is off leaves the others alone.
    """
    batch, draws = image[None], augmentation.draw(1, torch.Generator().manual_seed(seed))
    settings: dict[str, Any] = {"image_size": min(image.shape[1:]), "crop_scale": (1.0, 1.0), "flip": 0.0}
    images = [augmentation.plain(batch, settings["image_size"])[0]]
    for name in STAGES:
        settings |= {"crop_scale": (values["crop"], 1.0)} if name == "crop" else {name: values[name]}
        images.append(augmentation.transform(batch, Config(**settings), draws)[0])
    return images


def describe_draws(seed: int, values: Mapping[str, float]) -> str:
    """What chance decided, in words."""
    draws = {name: float(x) for name, x in augmentation.draw(1, torch.Generator().manual_seed(seed)).items()}
    crop, rotation, randaugment, jitter = (values[name] for name in ("crop", "rotation", "randaugment", "jitter"))
    area = 100 * (crop + draws["area"] * (1 - crop))
    usual = Config()
    operations = sum(draws[f"use{turn}"] < usual.randaugment_probability for turn in (1, 2))
    jittered = draws["jitter"] < usual.jitter_probability
    parts = [
        f"cropped to {area:.0f} % of its area" if crop < 1 else "not cropped",
        "flipped" if draws["flip"] < values["flip"] else "not flipped",
        f"turned by {rotation * (2 * draws['rotation'] - 1):+.0f}°" if rotation else "",
        f"{operations} of two operations of RandAugment at magnitude {randaugment:g}" if randaugment else "",
        (f"colours jittered with strength {jitter:g}" if jittered else "colours not jittered") if jitter else "",
        "made grey" if draws["grey"] < values["grey"] else "left in colour",
    ]
    return ", ".join(filter(None, parts))


class AugmentationPlot(Plot):
    """A row of stages and a row of views. images: uint8 (N, 3, H, W)."""

    size, layout = (8.8, 3.3), None

    def __init__(self, images: Tensor):
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3 or not len(images):
            raise MetaugError(f"images must be uint8 (N, 3, H, W) with N > 0, got {images.dtype} {tuple(images.shape)}")
        self.images = images.cpu()
        self.pictures: dict[str, Any] = {}
        super().__init__()

    def draw(self) -> Sequence[Artist]:
        parts: Any = self.figure.subfigures(2, 1)
        rows = ["image", *(f"+ {title}" for title in STAGES.values())], [f"view {name}" for name in VIEWS]
        for part, titles in zip(parts, rows, strict=True):
            axes = part.subplots(1, len(titles))
            part.subplots_adjust(left=0.01, right=0.99, wspace=0.08, bottom=0.02, top=0.86)
            for ax, title in zip(axes, titles, strict=True):
                self.pictures[title] = ax.imshow(np.zeros((2, 2, 3)), extent=(0, 1, 0, 1), interpolation="nearest")
                ax.set_title(title, loc="center", fontsize=9.5)
                ax.set_axis_off()
        return list(self.pictures.values())

    def update(self, number: int, seed: int, **values: float) -> str:
        images = apply_stages(self.images[number % len(self.images)], seed, values)
        views = augmentation.split(images[-1][None], VIEWS)
        pictures = [show_view(2 * image[None] - 1, "RGB")[0] for image in images]
        pictures += [show_view(view, name)[0] for view, name in zip(views, VIEWS, strict=True)]
        for artist, pixels in zip(self.pictures.values(), pictures, strict=True):
            artist.set_data(pixels)
        happened = describe_draws(seed, values)
        return f"Image {number}, seed {seed}: {happened}. Every encoder of a run sees one of the views below."


def augmentation_viewer(
    images: Tensor | None = None, number: int = 0, seed: int = 0, crop: float = 0.2, flip: float = 0.5,
    rotation: float = 0, jitter: float = 0.5, grey: float = 0.2, randaugment: float = 0,
) -> Explorer:  # fmt: skip
    """An image through crop, flip, rotation, RandAugment, jitter and grey, one stage after the other, and its views.

    images: uint8 (N, 3, H, W); None: shapes of 64 px. crop: least area that is kept, 1 keeps all; flip and grey: probabilities;
    rotation: at most so many degrees either way; jitter: strength as SimCLR's, of four images in five; randaugment: magnitude, 0
    to 30, without its changes of colour, as for colour splits. seed: of the chance in all of them.

    Raises MetaugError for images of another type or shape.
    """
    plot = AugmentationPlot(shapes.make(*SAMPLE, SIDE)[0] if images is None else images)
    last = max(len(plot.images) - 1, 1)
    controls = {
        "number": slider("image (number)", number, 0, last, 1, "which image; they start again after the last"),
        "seed": slider("seed (number)", seed, 0, 50, 1, "another seed is another draw of all that is random"),
        "crop": slider("crop: least area (share)", crop, 0.08, 1.0, 0.02, "1: no crop; the paper crops from 0.2"),
        "flip": slider("flip (probability)", flip, 0.0, 1.0, 0.1, "horizontal"),
        "rotation": slider("rotation (degrees, ±)", rotation, 0.0, 180.0, 5.0, "uniform in ± this"),
        "randaugment": slider("RandAugment (0 to 30)", randaugment, 0.0, 30.0, 1.0, "magnitude; two operations, each by chance"),
        "jitter": slider("jitter (strength)", jitter, 0.0, 1.0, 0.1, "brightness, contrast, saturation and hue; 0: none"),
        "grey": slider("grey (probability)", grey, 0.0, 1.0, 0.1, "of losing all colour"),
    }  # fmt: skip
    return Explorer(plot, controls, "Augmentation viewer: one image, stage by stage, and what each view sees of it")


augmentation_figure = without_controls(augmentation_viewer)
