"""Color arithmetic on batches: torchvision's adjustments, and color spaces. Pure functions, nothing random.

Channels are mixed by sums, because TF32 would round matmuls. No function waits for the device."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def lerp(low, high, share: Tensor) -> Tensor:
    """The point `share` of the way from `low` to `high`, which are numbers or tensors."""
    return low + share * (high - low)


# --- adjustments: rgb (B, 3, H, W) in [0, 1] -> the same; parameters (B, 1, 1, 1)
def mix(rgb: Tensor, weights: Sequence[float]) -> Tensor:
    """The weighted sum of the three channels, (B, 1, H, W)."""
    red, green, blue = rgb.split(1, dim=1)
    return (red * weights[0]).add(green, alpha=weights[1]).add(blue, alpha=weights[2])


GREY = (0.2989, 0.587, 0.114)  # luma, ITU-R BT.601
FADED: dict[str, Callable[[Tensor], Tensor]] = {  # the image at factor 0; sharpness: [1 1 1; 1 5 1; 1 1 1] / 13 inside
    "brightness": torch.zeros_like,
    "contrast": lambda rgb: mix(rgb, GREY).mean((1, 2, 3), keepdim=True),
    "saturation": lambda rgb: mix(rgb, GREY),
    "sharpness": lambda rgb: rgb + F.pad((F.avg_pool2d(rgb, 3, 1) - rgb[:, :, 1:-1, 1:-1]) * (9 / 13), (1, 1, 1, 1)),
}


def adjust(rgb: Tensor, factor: Tensor, what: str) -> Tensor:
    """Move the image away from (factor > 1) or towards (factor < 1) its version without `what`, a key of FADED."""
    return lerp(FADED[what](rgb), rgb, factor).clamp(0, 1)


def adjust_hue(rgb: Tensor, turn: Tensor) -> Tensor:
    """Add `turn` (1 is a full circle) to the hue of HSV, as SimCLR does; a YIQ rotation is cheaper but leaves [0, 1]."""
    (red, green, blue), top = rgb.unbind(1), rgb.amax(1)
    spread = top - rgb.amin(1)
    divisor = torch.where(spread > 0, spread, 1)
    sector = torch.where(green == top, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    sector = torch.where(red == top, (green - blue) / divisor, sector) + 6 * turn[:, 0]  # hue in sixths of a turn
    away = [torch.remainder(sector + start, 6) for start in (5, 3, 1)]  # of red, green, blue
    return torch.stack([top - spread * torch.minimum(k, 4 - k).clamp(0, 1) for k in away], dim=1)


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
def rgb_to_lab(rgb: Tensor) -> Tensor:
    """sRGB -> CIE L*a*b*, D65, 2 degrees (scikit-image's constants). exp2 is faster than pow; clamping avoids NaN gradients."""
    linear = torch.where(rgb > 0.04045, (((rgb.clamp(min=0.04045) + 0.055) / 1.055).log2() * 2.4).exp2(), rgb / 12.92)
    rows = (0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227)
    xyz = torch.cat([mix(linear, row) / white for row, white in zip(rows, (0.95047, 1, 1.08883), strict=True)], dim=1)
    x, y, z = torch.where(xyz > 0.008856, (xyz.clamp(min=0.008856).log2() / 3).exp2(), 7.787 * xyz + 16 / 116).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def rgb_to_ydbdr(rgb: Tensor) -> Tensor:
    """RGB -> Y in 0..1, Db and Dr in -1.333..1.333 (SECAM)."""
    rows = (0.299, 0.587, 0.114), (-0.45, -0.883, 1.333), (-1.333, 1.116, 0.217)
    return torch.cat([mix(rgb, row) for row in rows], dim=1)


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
