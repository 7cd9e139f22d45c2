"""The encoder of a run as one module, from stored images to features h, for use in other programs."""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core import methods
from metaug_core.config import Config
from metaug_core.errors import MetaugError
from metaug_core.methods.base import initial_networks
from metaug_core.runs.files import load_module, read_tensors
from metaug_core.views.augmentation import refuse_other_images, split

if TYPE_CHECKING:
    from metaug_core.runs.store import Run


class Encoder(nn.Module):
    """uint8 RGB images (B, 3, H, W) of any size -> h (B, D) float32: those of all distinct views in a row, as `evaluate` measures
    them. In evaluation mode, with gradients, so that it can be fine-tuned. torch's switches (TF32, autocast) are the caller's.

    config: the run's. Without `load_encoder` it has the weights before training, as the seed makes them.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.names = config, tuple(dict.fromkeys(config.views))
        networks, _ = initial_networks(methods.build(config), 2, config.seed)
        self.encoders: Any = cast(Any, networks).encoders
        # Where they are in a run's files. The heads are left out, so that the number of classes does not matter.
        self.place = next(name for name, module in networks.named_modules() if module is self.encoders)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Of an image that is no square it takes the central one, as of image files. Raises MetaugError for other images."""
        views = split(resize_square(images, self.config.image_size), self.names)
        return torch.cat(self.encoders(views, self.names), dim=1)


def resize_square(images: Tensor, size: int) -> Tensor:
    """The central square of uint8 images (B, 3, H, W) as float32 (B, 3, size, size) in [0, 1]; the pixels of
    `views.augmentation.plain`. An exported program takes every H and W: no branch, and no slice, depends on them."""
    refuse_other_images(images)
    height, width = images.shape[2:]
    side = torch.sym_min(height, width)
    pixels = torch.arange(side, device=images.device)
    rows, columns = pixels + (height - side) // 2, pixels + (width - side) // 2
    square = images.index_select(2, rows).index_select(3, columns) / 255
    return F.interpolate(square, (size, size), mode="bilinear", antialias=True).clamp(0, 1)


def load_encoder(run: "Run") -> Encoder:
    """As `Run.encoder`."""
    if not run.finished:
        raise MetaugError(f"run {run.path.name} is not finished: finish it with `metaug resume {run.path.name}`")
    encoder, file = Encoder(run.config), run.encoder_files()[-1]
    load_module(encoder.encoders, read_tensors(file)[0], f"networks.{encoder.place}.", file)
    return encoder
