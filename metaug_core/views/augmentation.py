"""Views: batched augmentation with an explicit generator, and colour splits (RGB, L, ab, Lab, Y, DbDr, Sobel).

All chance is in `draw`; the rest is a pure function of images and draws that never waits for the host. Coordinates are
sums, not matmuls, which TF32 would round. What is off costs nothing and, on, leaves the other draws alone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from metaug_core.config import Config
from metaug_core.errors import MetaugError
from metaug_core.registry import VIEWS
from metaug_core.runtime import distributed
from metaug_core.views.color import (
    FADED,
    GREY,
    adjust,
    adjust_hue,
    autocontrast,
    between,
    equalize,
    mix,
    rgb_to_lab,
    rgb_to_sobel,
    rgb_to_ydbdr,
)

Draws = dict[str, Tensor]  # for each name below a number in [0, 1) per image, (B, 1, 1, 1)
NAMES = "area ratio x y flip rotation brightness contrast saturation hue grey share partner kind1 kind2 sign1 sign2"


def draw(count: int, generator: Generator) -> Draws:
    """The chance in one augmentation of `count` images, on the generator's device. Of several processes each draws for the
    whole minibatch and uses its own part."""
    names, every = NAMES.split(), count * distributed.count()
    numbers = torch.rand(len(names), every, 1, 1, 1, generator=generator, device=generator.device)
    return {n: x if n == "partner" else distributed.own(x) for n, x in zip(names, numbers.unbind(), strict=True)}


# --- geometry: for each output pixel its input point, x right and y down, in [-1, 1] over the image
def crop(x: Tensor, y: Tensor, draws: Draws, scale: tuple[float, float], aspect: float) -> tuple[Tensor, Tensor]:
    """Random resized crop (Szegedy et al. 2015) of an image of W/H = `aspect`: area share uniform in `scale`,
    log(ratio) in +-log(4/3) as far as it fits, place uniform. (torchvision redraws area and ratio until they fit.)"""
    area = between(*scale, draws["area"])
    fit = -area.log()  # |log(ratio / aspect)| above this sticks out of the image
    low, high = (torch.full_like(fit, math.log(ratio / aspect)).clamp(-fit, fit) for ratio in (3 / 4, 4 / 3))
    stretch = (between(low, high, draws["ratio"]) / 2).exp()
    width, height = area.sqrt() * stretch, area.sqrt() / stretch  # shares of W and H
    x = between(width - 1, 1 - width, draws["x"]) + width * x
    return x, between(height - 1, 1 - height, draws["y"]) + height * y


def rotate(x: Tensor, y: Tensor, degrees: Tensor) -> tuple[Tensor, Tensor]:
    """The points of a picture that turns counter-clockwise about its centre."""
    cos, sin = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    return cos * x - sin * y, sin * x + cos * y


def coordinates(draws: Draws, config: Config, aspect: float) -> Tensor:
    """Points (B, S, S, 2) of crop, flip, rotation and RandAugment's geometry, in this order, as one affine map."""
    axis = (2 * torch.arange(config.image_size, device=draws["flip"].device) + 1) / config.image_size - 1
    x, y = axis, axis[:, None]
    for turn in (2, 1) if config.randaugment else ():  # what the picture meets last, the point meets first
        x, y = move(x, y, *operation(draws, turn, config.randaugment))
    if config.rotation:
        x, y = rotate(x, y, between(-config.rotation, config.rotation, draws["rotation"]))
    x = torch.where(draws["flip"] < config.flip, -x, x)
    if config.crop_scale != (1, 1):
        x, y = crop(x, y, draws, config.crop_scale, aspect)
    return torch.stack(torch.broadcast_tensors(x, y), dim=-1)[:, 0]


def resample(images: Tensor, config: Config, draws: Draws) -> Tensor:
    """uint8 (B, 3, H, W) through all geometry in one bilinear grid_sample: float32 (B, 3, S, S) in [0, 1]. Outside lies
    the image's reflection: black corners would be the same in all views of an image and in no other, a way to win the
    contrast without looking. Images so large that a mean crop would skip pixels are first averaged down."""
    if config.crop_scale == (1, 1) and not (config.flip or config.rotation or config.randaugment):
        return plain(images, config.image_size)
    rgb, (height, width) = plain(images), images.shape[2:]
    shrink = int(min(height, width) * math.sqrt(sum(config.crop_scale) / 2) / config.image_size)
    if shrink > 1:
        rgb = F.adaptive_avg_pool2d(rgb, (height // shrink, width // shrink))
    points = coordinates(draws, config, width / height)
    return F.grid_sample(rgb, points, "bilinear", padding_mode="reflection", align_corners=False).clamp(0, 1)


# --- RandAugment (Cubuk et al. 2020): 5 + 8 operations and identity, torchvision's magnitudes; amount in [-1, 1]
GEOMETRIC = {"rotate": 30, "shear x": 0.3, "shear y": 0.3, "translate x": 300 / 331, "translate y": 300 / 331}
RECOLOUR: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{what: lambda rgb, amount, what=what: adjust(rgb, what, 1 + 0.9 * amount) for what in FADED},
    "posterize": lambda rgb, a: ((rgb * 255).round().int() & -torch.exp2((4 * a.abs()).round()).int()) / 255,
    "solarize": lambda rgb, amount: torch.where(rgb >= 1 - amount.abs(), 1 - rgb, rgb),
    "autocontrast": lambda rgb, amount: autocontrast(rgb),
    "equalize": lambda rgb, amount: equalize(rgb),
}


def operation(draws: Draws, turn: int, magnitude: float) -> tuple[Tensor, Tensor]:
    """Kind (0..13) and amount, +- magnitude / 30, of the operation each image meets in `turn`, 1 or 2."""
    amount = torch.where(draws[f"sign{turn}"] < 0.5, -magnitude / 30, magnitude / 30)
    return (draws[f"kind{turn}"] * (len(GEOMETRIC) + len(RECOLOUR) + 1)).floor(), amount


def move(x: Tensor, y: Tensor, kind: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
    """The points of a picture that turns, is sheared from its upper left corner, or moves, if `kind` is geometric."""
    degrees, shear_x, shear_y, move_x, move_y = ((kind == i) * amount * m for i, m in enumerate(GEOMETRIC.values()))
    turned_x, turned_y = rotate(x, y, degrees)
    return turned_x + shear_x * (y + 1) + move_x, turned_y + shear_y * (x + 1) + move_y


def recolour(rgb: Tensor, kind: Tensor, amount: Tensor) -> Tensor:
    """Each image's colour operation. All are computed and one is kept: eight times the arithmetic, no host sync."""
    result = rgb
    for number, change in enumerate(RECOLOUR.values(), start=len(GEOMETRIC)):
        result = torch.where(kind == number, change(rgb, amount), result)
    return result


# --- from stored images, uint8 (B, 3, H, W), to augmented ones, float32 (B, 3, S, S) in [0, 1]
def plain(images: Tensor, size: int | None = None) -> Tensor:
    """Images without augmentation, resized to size x size (bilinear, antialiased) if they are not; None: as they are.
    Raises `MetaugError` for images that are not uint8 (B, 3, H, W)."""
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise MetaugError(f"views need uint8 images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    rgb = images.float() / 255
    if size is None or images.shape[2:] == (size, size):
        return rgb
    return F.interpolate(rgb, (size, size), mode="bilinear", antialias=True).clamp(0, 1)


def transform(images: Tensor, config: Config, draws: Draws) -> Tensor:
    """`augment` with given draws."""
    return tinted(resample(images, config, draws), config, draws)


def tinted(rgb: Tensor, config: Config, draws: Draws) -> Tensor:
    """All that changes colours, of rgb (B, 3, H, W) in [0, 1]. Jitter is SimCLR's: factors 1 +- 0.8 s and not below 0, hue +- 0.2 s
    turns, s = config.jitter; every image, in this order. Mixup noise is DACL's (Verma et al. 2021)."""
    strength = config.jitter
    for turn in (1, 2) if config.randaugment else ():
        rgb = recolour(rgb, *operation(draws, turn, config.randaugment))
    for what in ("brightness", "contrast", "saturation") if strength else ():
        rgb = adjust(rgb, what, between(max(0, 1 - 0.8 * strength), 1 + 0.8 * strength, draws[what]))
    if strength:
        rgb = adjust_hue(rgb, between(-0.2 * strength, 0.2 * strength, draws["hue"]))
    if config.grey:
        rgb = torch.where(draws["grey"] < config.grey, mix(rgb, GREY), rgb)
    if config.mixup:  # with a random partner: the order of random numbers is a random permutation
        partner = distributed.gather(rgb).index_select(0, distributed.own(draws["partner"].flatten().argsort()))
        rgb = between(rgb, partner, config.mixup * draws["share"])
    return rgb


def augment(images: Tensor, config: Config, generator: Generator) -> Tensor:
    """Each image by its own draws, S = config.image_size; `generator` lives on their device. Raises as `plain`."""
    return transform(images, config, draw(len(images), generator))


@dataclass(frozen=True)
class View:
    """Channels of a colour space, each mapped from its range to [-1, 1]. Your own: VIEWS["a"] = View(...), as below."""

    space: Callable[[Tensor], Tensor]  # rgb (B, 3, H, W) in [0, 1] -> (B, any, H, W)
    ranges: dict[int, tuple[float, float]]  # channel of the space -> its low and high

    @property
    def channels(self) -> int:
        return len(self.ranges)


# Ranges of CIELAB over all of sRGB.
LIGHTNESS = {0: (0.0, 100.0)}
COLOUR = {1: (-86.183, 98.233), 2: (-107.857, 94.478)}
VIEWS.register_own(
    {
        "RGB": View(lambda rgb: rgb, {0: (0, 1), 1: (0, 1), 2: (0, 1)}),
        "L": View(rgb_to_lab, LIGHTNESS),
        "ab": View(rgb_to_lab, COLOUR),
        "Lab": View(rgb_to_lab, LIGHTNESS | COLOUR),
        "Y": View(rgb_to_ydbdr, {0: (0, 1)}),
        "DbDr": View(rgb_to_ydbdr, {1: (-1.333, 1.333), 2: (-1.333, 1.333)}),
        "Sobel": View(rgb_to_sobel, {0: (-1, 1), 1: (-1, 1)}),  # edges, no colour: what NAT's authors use
    }
)


def split(rgb: Tensor, names: Sequence[str]) -> list[Tensor]:
    """rgb (B, 3, H, W) in [0, 1] -> one (B, C, H, W) per name, about [-1, 1]. `MetaugError` for an unknown name."""
    chosen = [VIEWS[name] for name in names]
    spaces = {space: space(rgb) for space in dict.fromkeys(view.space for view in chosen)}  # each is computed once
    units = [[(spaces[view.space][:, i], *limits) for i, limits in view.ranges.items()] for view in chosen]
    return [torch.stack([(x - (low + high) / 2) * (2 / (high - low)) for x, low, high in view], 1) for view in units]


def make_views(images: Tensor, config: Config, generator: Generator) -> list[Tensor]:
    """One (B, C, S, S) per name in config.views from uint8 (B, 3, H, W): splits of one augmented image, or with
    config.independent each of its own. Raises as `augment`."""
    if config.independent:
        return [split(augment(images, config, generator), [name])[0] for name in config.views]
    return split(augment(images, config, generator), config.views)


def evaluation_views(images: Tensor, config: Config) -> list[Tensor]:
    """Splits of `plain` images, one (B, C, S, S) per different name in config.views. Raises as `plain`."""
    return split(plain(images, config.image_size), list(dict.fromkeys(config.views)))
