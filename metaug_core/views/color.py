"""Color arithmetic on batches: torchvision's adjustments, and color spaces. Pure functions, nothing random.

Channels are mixed by sums, because TF32 would round matmuls. No function waits for the device, but for the first use of a
constant. Small images cost by the operation, so each sum is one; a CPU guesses the branches of `torch.where` pixel by pixel, so
curves in two pieces are written by `clamp`."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F


def lerp(low, high, share: Tensor) -> Tensor:
    """The point `share` of the way from `low` to `high`, which are two numbers or two tensors."""
    if isinstance(low, Tensor):
        return torch.lerp(low, high, share)
    return torch.rsub(share, low, alpha=low - high)  # low - (low - high) share


@cache
def constant(values: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers as a tensor (n, 1, 1), or a matrix as (n, m, 1, 1). Made once: a copy to a device waits for it, and cannot be
    part of a CUDA graph."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)[..., None, None]


# --- adjustments: rgb (B, 3, H, W) in [0, 1] -> the same; parameters (B, 1, 1, 1)
Matrix = tuple[tuple[float, ...], ...]


def mix(rgb: Tensor, rows: Matrix) -> Tensor:
    """Weighted sums of the three channels, one for each row of weights, (B, rows, H, W)."""
    (red, green, blue), weights = rgb.split(1, dim=1), constant(rows, rgb.dtype, rgb.device)
    return torch.addcmul(torch.addcmul(red * weights[:, 0], green, weights[:, 1]), blue, weights[:, 2])


GREY: Matrix = ((0.2989, 0.587, 0.114),)  # luma, ITU-R BT.601
FADED: dict[str, Callable[[Tensor], Tensor]] = {  # the image at factor 0; sharpness: [1 1 1; 1 5 1; 1 1 1] / 13 inside
    "brightness": torch.zeros_like,
    "contrast": lambda rgb: mix(rgb, GREY).mean((1, 2, 3), keepdim=True),
    "saturation": lambda rgb: mix(rgb, GREY),
    "sharpness": lambda rgb: rgb + F.pad((F.avg_pool2d(rgb, 3, 1) - rgb[:, :, 1:-1, 1:-1]) * (9 / 13), (1, 1, 1, 1)),
}


def adjust(rgb: Tensor, factor: Tensor, what: str) -> Tensor:
    """Move the image away from (factor > 1) or towards (factor < 1) its version without `what`, a key of FADED."""
    return lerp(FADED[what](rgb), rgb, factor).clamp(0, 1)


def adjust_each(rgb: Tensor, factor: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """`adjust` of each image by what it is to have: contrast, saturation: 1 - factor where it is that, else 0. With both 0 it is
    brightness; factor 1 leaves an image as it is."""
    grey = mix(rgb, GREY)
    faded = torch.addcmul(contrast * grey.mean((1, 2, 3), keepdim=True), saturation, grey)
    return torch.addcmul(faded, rgb, factor).clamp(0, 1)


def adjust_hue(rgb: Tensor, turn: Tensor) -> Tensor:
    """Add `turn` (1 is a full circle) to the hue of HSV, as SimCLR does; a YIQ rotation is cheaper but leaves [0, 1].

    The hue's distance from red, in sixths of a turn, is 1 + g + b - r of the channels stretched to [0, 1]."""
    red, green, blue = rgb.split(1, dim=1)
    top, low = rgb.amax(1, keepdim=True), rgb.amin(1, keepdim=True)
    spread = top - low
    spread_or_more = spread.clamp(min=1e-12)  # a grey pixel stays, whatever its hue
    distance = (top + green + blue - red).sub(low, alpha=2) / spread_or_more
    hue = torch.add(turn, torch.copysign(distance, green - blue), alpha=1 / 6)
    away = hue - constant((0, 1 / 3, 2 / 3), rgb.dtype, rgb.device)  # of red, green, blue
    share = lerp(2, -4, (away - away.round()).abs()).clamp(0, 1)
    return torch.addcmul(low, spread, share)


def autocontrast(rgb: Tensor) -> Tensor:
    """Stretch each channel to [0, 1]; a constant channel stays as it is."""
    low, high = rgb.amin((2, 3), keepdim=True), rgb.amax((2, 3), keepdim=True)
    return torch.where(high > low, (rgb - low) / torch.where(high > low, high - low, 1), rgb)


def equalize(rgb: Tensor) -> Tensor:
    """Flatten the 8-bit histogram of each channel by PIL's rule; one that is too narrow stays as it is."""
    levels = (rgb.flatten(2) * 255).round().long()  # (B, 3, HW)
    counts = levels.new_zeros(*levels.shape[:2], 256).scatter_add(2, levels, torch.ones_like(levels))
    step = (levels < levels.amax(2, keepdim=True)).sum(2, keepdim=True) // 255
    table = ((counts.cumsum(2) - counts + step // 2) // step.clamp(min=1)).clamp(0, 255)
    return torch.where(step > 0, table.gather(2, levels) / 255, rgb.flatten(2)).view_as(rgb)


def blur(rgb: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur over a tenth of the image's side, as SimCLR's, each image with its sigma (B, 1, 1, 1) in pixels; the border is
    reflected."""
    radius = max(1, rgb.shape[-1] // 20)
    distances = torch.arange(-radius, radius + 1, device=rgb.device, dtype=rgb.dtype)
    weights = (-(distances**2) / (2 * sigma**2)).softmax(-1)  # (B, 1, 1, 2 radius + 1)
    for dim, padding in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        padded, count = F.pad(rgb, padding, mode="reflect"), rgb.shape[dim]
        shifted = [padded.narrow(dim, start, count) for start in range(2 * radius + 1)]
        rgb = torch.stack([x * w for x, w in zip(shifted, weights.split(1, -1), strict=True)]).sum(0)
    return rgb


# --- spaces: rgb (B, 3, H, W) in [0, 1], float32 or float64 -> (B, C, H, W) in units of the space
WHITE = (0.95047, 1, 1.08883)  # XYZ of D65
SRGB_SCALE = 1.055**2.4
XYZ = (0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227)  # of linear sRGB
# From linear sRGB in units of 1 / SRGB_SCALE to shares of the white.
SHARES = tuple(tuple(x / white / SRGB_SCALE for x in row) for row, white in zip(XYZ, WHITE, strict=True))


def power_above(x: Tensor, exponent: float, threshold: float, slope: float) -> Tensor:
    """x^exponent above the threshold, below it the line of this slope that meets the curve there. exp2 is faster than pow."""
    above = x.clamp(min=threshold)
    return (above.log2() * exponent).exp2().add(x - above, alpha=slope)


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """sRGB -> CIE L*a*b*, D65, 2 degrees: IEC 61966-2-1 and CIE 15:2004, matrix and white as scikit-image has them."""
    linear = power_above(rgb + 0.055, 2.4, 0.04045 + 0.055, SRGB_SCALE / 12.92)
    f = power_above(mix(linear, SHARES), 1 / 3, (6 / 29) ** 3, 841 / 108)
    y_and_differences = torch.cat([f[:, 1:2], f[:, :2] - f[:, 1:]], dim=1)
    shift, scale = (constant(values, rgb.dtype, rgb.device) for values in ((-16, 0, 0), (116, 500, 200)))
    return torch.addcmul(shift, y_and_differences, scale)


def rgb_to_ydbdr(rgb: Tensor) -> Tensor:
    """RGB -> Y in 0..1, Db and Dr in -1.333..1.333 (SECAM)."""
    return mix(rgb, ((0.299, 0.587, 0.114), (-0.45, -0.883, 1.333), (-1.333, 1.116, 0.217)))


def rgb_to_sobel(rgb: Tensor) -> Tensor:
    """Slope of luma to the right and downwards by Sobel's filters, (B, 2, H, W) in [-1, 1]; border pixels are repeated."""
    x = F.pad(mix(rgb, GREY), (1, 1, 1, 1), mode="replicate")
    down = smooth(x, 2)
    across = smooth(x, 3)
    return torch.cat([down[..., 2:] - down[..., :-2], across[..., 2:, :] - across[..., :-2, :]], dim=1)


def smooth(x: Tensor, dim: int) -> Tensor:
    """Mean of three neighbours along dim with weights 1 2 1; the result is two shorter."""
    count = x.shape[dim] - 2
    first, middle, last = (x.narrow(dim, start, count) for start in range(3))
    return (first + last).add(middle, alpha=2) / 4
