"""Views: batched augmentation with an explicit generator, and color splits (RGB, L, ab, Lab, Y, DbDr, Sobel).

`draw` makes every random number; all else is a pure function of images and draws, and never waits for the device. Coordinates
are sums, because TF32 would round matmuls. An augmentation that is off costs nothing; switched on, it leaves the draws of the
others as they were."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from metaug_core.config import Config
from metaug_core.errors import MetaugError
from metaug_core.recipes import AUGMENTATION
from metaug_core.registry import VIEWS
from metaug_core.runtime import distributed
from metaug_core.views.color import (
    FADED,
    GREY,
    adjust,
    adjust_each,
    adjust_hue,
    autocontrast,
    blur,
    constant,
    equalize,
    lerp,
    mix,
    rgb_to_lab,
    rgb_to_sobel,
    rgb_to_ydbdr,
)

Draws = dict[str, Tensor]  # for each name below one number in [0, 1) per image, (B, 1, 1, 1)
# CMC's crop and flip and nothing else, which is what a config has by default: changes for `Config.model_copy`.
CROP_AND_FLIP = {name: Config.model_fields[name].default for name in AUGMENTATION}
FACTORS = ("brightness", "contrast", "saturation")
BLUR_SIGMA = (0.1, 2.0)  # px, as SimCLR's
NAMES = """area ratio x y flip rotation brightness contrast saturation hue grey share partner kind1 kind2 sign1 sign2
    jitter order1 order2 order3 order4 blur sigma solarise use1 use2"""


def draw(count: int, generator: Generator) -> Draws:
    """Draw the random numbers of one augmentation of `count` images, on the generator's device. Each of several processes draws
    for the whole minibatch and uses its own part."""
    names = NAMES.split()
    whole_batch = count * distributed.count()
    numbers = torch.rand(len(names), whole_batch, 1, 1, 1, generator=generator, device=generator.device)
    return {n: x if n == "partner" else distributed.own(x) for n, x in zip(names, numbers.unbind(), strict=True)}


# --- geometry: for each output pixel its input point, x right and y down, in [-1, 1] over the image
def crop(x: Tensor, y: Tensor, draws: Draws, config: Config, aspect: float) -> tuple[Tensor, Tensor]:
    """Random resized crop (Szegedy et al. 2015) of an image of W/H = `aspect`: area share uniform in crop_scale, log(ratio) uniform
    in +-log(crop_ratio) as far as it fits, place uniform. (torchvision redraws area and ratio until they fit.)"""
    area = lerp(*config.crop_scale, draws["area"])

    def fit(ratio: float) -> Tensor:
        """The ratio of the crop's shares of the sides that is nearest to this one and with which it fits: area to 1 / area."""
        return area.clamp(min=ratio) if ratio < 1 else area.clamp(min=1 / ratio).reciprocal()

    narrowest, flattest = fit(1 / config.crop_ratio / aspect), fit(aspect / config.crop_ratio)  # W : H and H : W
    width = (area * narrowest / (narrowest * flattest) ** draws["ratio"]).sqrt()  # shares of W and H
    return lerp(lerp(-1, 1, draws["x"]), x, width), lerp(lerp(-1, 1, draws["y"]), y, area / width)


def rotate(x: Tensor, y: Tensor, degrees: Tensor) -> tuple[Tensor, Tensor]:
    """Input points of a picture that is turned counter-clockwise about its centre."""
    cos, sin = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    return cos * x - sin * y, sin * x + cos * y


def move_points(x: Tensor, y: Tensor, draws: Draws, config: Config, aspect: float) -> tuple[Tensor, Tensor]:
    """Input points of crop, flip, rotation and RandAugment's geometry, in this order: an affine map."""
    for turn in (2, 1) if config.randaugment else ():  # points go through the operations in reverse
        x, y = apply_geometric_operation(x, y, *choose_operation(draws, turn, config))
    if config.rotation:
        x, y = rotate(x, y, lerp(-config.rotation, config.rotation, draws["rotation"]))
    x = torch.where(draws["flip"] < config.flip, -x, x)
    return (x, y) if config.crop_scale == (1, 1) else crop(x, y, draws, config, aspect)


def compute_coordinates(draws: Draws, config: Config, aspect: float) -> Tensor:
    """Input points (B, S, S, 2) of all pixels."""
    last, like = 1 - 1 / config.image_size, {"dtype": draws["flip"].dtype, "device": draws["flip"].device}
    axis = torch.linspace(-last, last, config.image_size, **like)
    if not (config.rotation or config.randaugment):  # then x does not depend on y
        x, y = move_points(axis, axis[:, None], draws, config, aspect)
        return torch.stack(torch.broadcast_tensors(x, y), dim=-1)[:, 0]
    _, x, y = torch.eye(3, **like)  # the map is that of its origin and of the points (1, 0) and (0, 1)
    points = torch.stack(torch.broadcast_tensors(*move_points(x, y, draws, config, aspect)), dim=-1)  # (B, 1, 1, 3, 2)
    origin, right, down = points.movedim(3, 0)
    rows = torch.addcmul(origin, down - origin, axis[:, None, None])
    return torch.addcmul(rows, right - origin, axis[:, None])


def resample(images: Tensor, config: Config, draws: Draws) -> Tensor:
    """Apply all geometry in one bilinear grid_sample: uint8 (B, 3, H, W) -> float32 (B, 3, S, S) in [0, 1].

    Outside the image lies its reflection: black corners would be alike in all views of an image and in no other image, so that
    contrast could be won by them alone. Images so large that an average crop would skip pixels are first averaged down."""
    if config.crop_scale == (1, 1) and not (config.flip or config.rotation or config.randaugment):
        return plain(images, config.image_size)
    rgb = plain(images)
    height, width = images.shape[2:]
    shrink = int(min(height, width) * math.sqrt(sum(config.crop_scale) / 2) / config.image_size)
    if shrink > 1:
        rgb = F.adaptive_avg_pool2d(rgb, (height // shrink, width // shrink))
    points = compute_coordinates(draws, config, width / height)
    return F.grid_sample(rgb, points, "bilinear", padding_mode="reflection", align_corners=False).clamp(0, 1)


# --- RandAugment (Cubuk et al. 2020): operations and magnitudes are torchvision's; amount in [-1, 1]
GEOMETRIC = {"rotate": 30, "shear x": 0.3, "shear y": 0.3, "translate x": 300 / 331, "translate y": 300 / 331}
COLOR_OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{what: lambda rgb, amount, what=what: adjust(rgb, 1 + 0.9 * amount, what) for what in FADED},
    "posterize": lambda rgb, a: ((rgb * 255).round().int() & -torch.exp2((4 * a.abs()).round()).int()) / 255,
    "solarize": lambda rgb, amount: torch.where(rgb >= 1 - amount.abs(), 1 - rgb, rgb),
    "autocontrast": lambda rgb, amount: autocontrast(rgb),
    "equalize": lambda rgb, amount: equalize(rgb),
}


OPERATIONS = (*GEOMETRIC, *COLOR_OPERATIONS, "identity")
# For views that are color splits InfoMin's authors leave out what changes the colors: L and ab would no longer be of one image.
SPLIT_OPERATIONS = (*GEOMETRIC, "sharpness", "autocontrast", "identity")


def list_operations(config: Config) -> tuple[str, ...]:
    """The operations that RandAugment draws from."""
    splits = not config.independent and set(config.views) != {"RGB"}
    return SPLIT_OPERATIONS if splits else OPERATIONS


def choose_operation(draws: Draws, turn: int, config: Config) -> tuple[Tensor, Tensor]:
    """Kind (its place in `list_operations`) and amount (+- magnitude / 30) of each image's operation of turn 1 or 2."""
    largest, operations = config.randaugment / 30, list_operations(config)
    amount = torch.where(draws[f"sign{turn}"] < 0.5, -largest, largest)
    kind = (draws[f"kind{turn}"] * len(operations)).floor()
    return torch.where(draws[f"use{turn}"] < config.randaugment_probability, kind, operations.index("identity")), amount


def apply_geometric_operation(x: Tensor, y: Tensor, kind: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
    """Input points of a picture that is rotated, sheared from its upper left corner or moved, where `kind` is geometric: one of the
    first operations of either list."""
    degrees, shear_x, shear_y, move_x, move_y = ((kind == i) * amount * m for i, m in enumerate(GEOMETRIC.values()))
    turned_x, turned_y = rotate(x, y, degrees)
    return turned_x + shear_x * (y + 1) + move_x, turned_y + shear_y * (x + 1) + move_y


def apply_color_operation(rgb: Tensor, operations: Sequence[str], kind: Tensor, amount: Tensor) -> Tensor:
    """Apply each image's color operation, where `kind` is the place of one in operations."""
    for number, name in enumerate(operations):
        if name in COLOR_OPERATIONS:
            rgb = apply_where(kind == number, COLOR_OPERATIONS[name], rgb, amount)
    return rgb


def apply_where(chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor], rgb: Tensor, parameter: Tensor) -> Tensor:
    """change(rgb, parameter) of the chosen images, (B, 1, 1, 1) bool; the others stay.

    A CPU computes these alone. Elsewhere all are computed, so that no branch waits for the device."""
    if rgb.device.type != "cpu":
        return torch.where(chosen, change(rgb, parameter), rgb)
    rows = chosen.flatten().nonzero().flatten()
    return rgb.index_copy(0, rows, change(rgb[rows], parameter[rows])) if len(rows) else rgb


# --- from stored images, uint8 (B, 3, H, W), to augmented ones, float32 (B, 3, S, S) in [0, 1]
def plain(images: Tensor, size: int | None = None) -> Tensor:
    """uint8 images as float32 in [0, 1] without augmentation, resized to size x size (bilinear, antialiased); None: not resized.
    Raises as `refuse_other_images`."""
    refuse_other_images(images)
    rgb = images / 255
    if size is None or images.shape[2:] == (size, size):
        return rgb
    return F.interpolate(rgb, (size, size), mode="bilinear", antialias=True).clamp(0, 1)


def refuse_other_images(images: Tensor) -> None:
    """MetaugError for images that are not uint8 (B, 3, H, W)."""
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise MetaugError(f"views need uint8 images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")


def transform(images: Tensor, config: Config, draws: Draws, view: int = 0) -> Tensor:
    """`augment` with given draws."""
    return change_colors(resample(images, config, draws), config, draws, view)


def change_colors(rgb: Tensor, config: Config, draws: Draws, view: int = 0) -> Tensor:
    """Apply every change of color to rgb (B, 3, H, W) in [0, 1], in this order: RandAugment, jitter, grey, blur, solarise, mixup.

    view: number of the view, whose probabilities of blur and solarisation hold. Mixup noise is DACL's (Verma et al. 2021)."""
    for turn in (1, 2) if config.randaugment else ():
        rgb = apply_color_operation(rgb, list_operations(config), *choose_operation(draws, turn, config))
    if config.jitter:
        rgb = jitter(rgb, config, draws)
    if config.grey:
        rgb = torch.where(draws["grey"] < config.grey, mix(rgb, GREY), rgb)
    blurred, solarised = (chances[view % len(chances)] for chances in (config.blur, config.solarise))
    if blurred:
        rgb = apply_where(draws["blur"] < blurred, blur, rgb, lerp(*BLUR_SIGMA, draws["sigma"]))
    if solarised:
        rgb = torch.where((draws["solarise"] < solarised) & (rgb >= 0.5), 1 - rgb, rgb)
    if config.mixup:  # the order of random numbers is a random permutation: the partners
        partner = distributed.gather(rgb).index_select(0, distributed.own(draws["partner"].flatten().argsort()))
        rgb = lerp(rgb, partner, config.mixup * draws["share"])
    return rgb


def jitter(rgb: Tensor, config: Config, draws: Draws) -> Tensor:
    """Color jitter of SimCLR's kind, each image's four changes in an order of its own: factors of brightness, contrast and
    saturation uniform in 1 +- jitter x jitter_ranges (not below 0), hue turned by up to +- the same."""
    *limits, turns = (config.jitter * limit for limit in config.jitter_ranges)
    factors = [lerp(max(0, 1 - limit), 1 + limit, draws[name]) for name, limit in zip(FACTORS, limits, strict=True)]
    jittered = draws["jitter"] < config.jitter_probability
    # The change that each turn brings to each image, (4, B, 1, 1, 1): a factor of FACTORS, or 3, hue.
    change = torch.stack([draws[f"order{turn}"] for turn in (1, 2, 3, 4)]).argsort(0)
    factor = torch.stack([*factors, torch.ones_like(factors[0])]).gather(0, change).where(jittered, 1)
    contrast, saturation = ((1 - factor) * (change == FACTORS.index(name)) for name in ("contrast", "saturation"))
    turned = jittered & (change == len(FACTORS))
    angle = lerp(-turns, turns, draws["hue"])
    for turn in range(len(change)):
        rgb = adjust_each(rgb, factor[turn], contrast[turn], saturation[turn])
        rgb = apply_where(turned[turn], adjust_hue, rgb, angle)
    return rgb


def augment(images: Tensor, config: Config, generator: Generator, view: int = 0) -> Tensor:
    """Augment each image by its own draws; `generator` lives on the images' device. view: as `change_colors`. Raises as `plain`."""
    return transform(images, config, draw(len(images), generator), view)


@dataclass(frozen=True)
class View:
    """Channels of a color space, each mapped from its range to [-1, 1]. Your own: VIEWS["a"] = View(...), as below."""

    space: Callable[[Tensor], Tensor]  # rgb (B, 3, H, W) in [0, 1] -> (B, any, H, W)
    ranges: dict[int, tuple[float, float]]  # channel of the space -> its low and high

    @property
    def channels(self) -> int:
        return len(self.ranges)


# Ranges of CIELAB over all of sRGB.
LIGHTNESS = {0: (0.0, 100.0)}
COLOR = {1: (-86.183, 98.233), 2: (-107.857, 94.478)}
VIEWS.register_own(
    {
        "RGB": View(lambda rgb: rgb, {0: (0, 1), 1: (0, 1), 2: (0, 1)}),
        "L": View(rgb_to_lab, LIGHTNESS),
        "ab": View(rgb_to_lab, COLOR),
        "Lab": View(rgb_to_lab, LIGHTNESS | COLOR),
        "Y": View(rgb_to_ydbdr, {0: (0, 1)}),
        "DbDr": View(rgb_to_ydbdr, {1: (-1.333, 1.333), 2: (-1.333, 1.333)}),
        "Sobel": View(rgb_to_sobel, {0: (-1, 1), 1: (-1, 1)}),  # edges without color, which NAT's authors use
    }
)


def split(rgb: Tensor, names: Sequence[str]) -> list[Tensor]:
    """rgb (B, 3, H, W) in [0, 1] -> one (B, C, H, W) per name, about [-1, 1]. Raises `MetaugError` for an unknown name."""
    views = [VIEWS[name] for name in names]
    spaces = {space: space(rgb) for space in dict.fromkeys(view.space for view in views)}  # each space is computed once
    return [scale_channels(spaces[view.space], view.ranges) for view in views]


def scale_channels(space: Tensor, ranges: dict[int, tuple[float, float]]) -> Tensor:
    """Channels of a color space (B, any, H, W), each mapped from its range to [-1, 1]."""
    first, count = min(ranges), len(ranges)
    if [*ranges] == [*range(first, first + count)]:
        x = space[:, first : first + count]
    else:
        x = torch.stack([space[:, channel] for channel in ranges], dim=1)
    shifts = tuple(-(low + high) / (high - low) for low, high in ranges.values())
    scales = tuple(2 / (high - low) for low, high in ranges.values())
    if len(set(ranges.values())) == 1:
        return lerp(shifts[0], shifts[0] + scales[0], x)
    shift, scale = (constant(values, x.dtype, x.device) for values in (shifts, scales))
    return torch.addcmul(shift, x, scale)


def make_views(images: Tensor, config: Config, generator: Generator) -> list[Tensor]:
    """uint8 (B, 3, H, W) -> one (B, C, S, S) per name in config.views: splits of one augmented image, or with
    config.independent each of its own augmented image. Raises as `plain`."""
    if config.independent:
        return [split(augment(images, config, generator, v), [name])[0] for v, name in enumerate(config.views)]
    return split(augment(images, config, generator), config.views)
