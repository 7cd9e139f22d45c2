"""The embedded data set `shapes`: ten figures whose nuisances in luminance and in chroma are independent.

L and ab share the object (its form, place, size and tilt) and nothing else: light, texture and the sign of the object's contrast
in L are independent of hue and texture in ab. Contrast between two views can learn what they share, so here it has to learn the
object.
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor

CLASSES: tuple[str, ...] = (
    "disc", "ring", "square", "triangle", "star", "cross", "crescent", "heart", "ell", "arrow",
)  # fmt: skip

# Ranges to draw from. Lengths are fractions of half the image's side, Lab in its own units; chosen on validation seeds.
RADIUS = (0.42, 0.67)  # of the disc with the object's area
TILT = math.pi / 6  # to either side
LIGHTNESS, CONTRAST_L, TEXTURE_L, LIGHT, NOISE_L = (40.0, 65.0), (20.0, 30.0), (4.0, 11.0), (0.0, 12.0), 2.0
HUE, CONTRAST_AB, TEXTURE_AB, NOISE_AB = 18.0, (28.0, 42.0), (3.5, 10.0), 2.0
WAVES, CYCLES = 2, (0.5, 3.0)  # a texture is a sum of plane waves, each with so many cycles across the image

_ATLAS_SIDE, _ATLAS_REACH = 64, 2.2
_CHUNK = (
    500  # images drawn at once, so that memory does not grow with count; another number gives other images for a seed
)
_PIECE = 50  # images converted to sRGB at once, so that temporaries stay in the cache; any number gives the same images


def _regular(corners: int, inner: float = 1.0) -> np.ndarray:
    """A regular polygon, (corners, 2), on the unit circle from the top on; every second corner has radius `inner`."""
    k = np.arange(corners)
    r = np.where(k % 2 == 0, 1.0, inner)
    return np.stack([r * np.sin(2 * np.pi * k / corners), -r * np.cos(2 * np.pi * k / corners)], 1)


def _heart() -> np.ndarray:
    """A heart, (48, 2), its point downwards."""
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([16 * np.sin(t) ** 3, -13 * np.cos(t) + 5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t)], 1)


def _crescent() -> np.ndarray:
    """A crescent, (62, 2): three quarters of the unit circle, and back between the same tips on a smaller circle."""
    outer = np.linspace(0.25, 1.75, 32) * np.pi
    tip, centre = math.sqrt(0.5), 0.42
    radius, start = math.hypot(tip - centre, tip), math.atan2(tip, tip - centre)
    inner = np.linspace(2 * np.pi - start, start, 32)[1:-1]
    back = np.stack([centre + radius * np.cos(inner), radius * np.sin(inner)], 1)
    return np.concatenate([np.stack([np.cos(outer), np.sin(outer)], 1), back])


def _outlines() -> dict[str, np.ndarray]:
    """The polygon of each class, (corners, 2); y points down. That of the ring is the middle of its band."""
    cross = [[-1, -3], [1, -3], [1, -1], [3, -1], [3, 1], [1, 1], [1, 3], [-1, 3], [-1, 1], [-3, 1], [-3, -1], [-1, -1]]
    ell = [[0, 0], [2, 0], [2, 4], [5, 4], [5, 6], [0, 6]]
    arrow = [[0, -4], [3.2, 0], [1.1, 0], [1.1, 4], [-1.1, 4], [-1.1, 0], [-3.2, 0]]
    return {
        "disc": _regular(48),
        "ring": _regular(48),
        "square": np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]),
        "triangle": _regular(3),
        "star": _regular(10, 0.4),
        "cross": np.array(cross, float),
        "crescent": _crescent(),
        "heart": _heart(),
        "ell": np.array(ell, float),
        "arrow": np.array(arrow, float),
    }


def _normalised(corners: np.ndarray) -> np.ndarray:
    """The polygon with centroid 0 and area pi, so that place and area do not depend on the class."""
    after = np.roll(corners, -1, 0)
    cross = corners[:, 0] * after[:, 1] - after[:, 0] * corners[:, 1]
    centroid = ((corners + after) * cross[:, None]).sum(0) / (3 * cross.sum())
    return (corners - centroid) / math.sqrt(abs(cross.sum()) / (2 * np.pi))


def _distance(corners: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Signed distance of the points (H, W, 2) to the polygon, (H, W); negative inside."""
    squared, inside = np.full(at.shape[:2], np.inf), np.zeros(at.shape[:2], bool)
    for a, b in zip(corners, np.roll(corners, -1, 0), strict=True):
        edge, w = b - a, at - a
        t = np.clip((w @ edge) / (edge @ edge), 0, 1)
        squared = np.minimum(squared, ((w - t[..., None] * edge) ** 2).sum(-1))
        if a[1] != b[1]:
            spans = (a[1] > at[..., 1]) != (b[1] > at[..., 1])
            inside ^= spans & (w[..., 0] < edge[0] * w[..., 1] / edge[1])
    return np.where(inside, -1, 1) * np.sqrt(squared)


@functools.cache
def _atlas() -> Tensor:
    """Signed distances to the polygons of all classes on the square [-reach, reach]^2: (10, 1, side, side).

    Distances are smooth, so bilinear interpolation in a small table gives sharp edges at every size and tilt.
    """
    axis = ((np.arange(_ATLAS_SIDE) + 0.5) / _ATLAS_SIDE * 2 - 1) * _ATLAS_REACH
    at, tables = np.stack(np.meshgrid(axis, axis), -1), []
    for name, corners in _outlines().items():
        table = _distance(_normalised(corners) * (0.95 if name == "ring" else 1.0), at)
        tables.append(np.abs(table) - 0.23 if name == "ring" else table)
    return torch.tensor(np.stack(tables)[:, None], dtype=torch.float32)


def _uniform(n: int, low: float, high: float, g: torch.Generator) -> Tensor:
    """One value per image in [low, high), (n, 1, 1)."""
    return torch.rand(n, 1, 1, generator=g) * (high - low) + low


def _mask(labels: Tensor, axis: Tensor, atlas: Tensor, g: torch.Generator) -> Tensor:
    """The part of each pixel that the object covers, in [0, 1]: (n, S, S). Draws place, size, tilt and mirroring."""
    n, size = len(labels), len(axis)
    r = _uniform(n, *RADIUS, g)
    room = (1 - 1.2 * r).clamp_min(0)
    u = (axis - _uniform(n, -1, 1, g) * room) / r  # (n, 1, S)
    v = (axis[:, None] - _uniform(n, -1, 1, g) * room) / r  # (n, S, 1)
    tilt, mirror = _uniform(n, -TILT, TILT, g), _uniform(n, -1, 1, g).sign()
    x = (torch.cos(tilt) * u + torch.sin(tilt) * v) * mirror
    at = torch.stack([x, torch.cos(tilt) * v - torch.sin(tilt) * u], -1) / _ATLAS_REACH  # (n, S, S, 2)
    distance = torch.nn.functional.grid_sample(atlas[labels], at, padding_mode="border", align_corners=False)[:, 0]
    return (0.5 - distance * r * size / 2).clamp(0, 1)


def _texture(n: int, axis: Tensor, g: torch.Generator) -> Tensor:
    """Sum of plane waves of random direction, frequency and phase: (n, S, S), mean 0, standard deviation 1."""
    total = torch.zeros(n, len(axis), len(axis))
    for _ in range(WAVES):
        angle, phase = _uniform(n, 0, 2 * math.pi, g), _uniform(n, 0, 2 * math.pi, g)
        cycles = _uniform(n, *CYCLES, g) * math.pi
        across, down = cycles * torch.cos(angle) * axis + phase, cycles * torch.sin(angle) * axis[:, None]
        # sin(a + b) from sines along the axes: 2 S sines for an image, not S^2
        total += torch.sin(across) * torch.cos(down) + torch.cos(across) * torch.sin(down)
    return total / math.sqrt(WAVES / 2)


def _luminance(mask: Tensor, axis: Tensor, g: torch.Generator) -> Tensor:
    """L of the object `mask` (n, S, S) on a textured, unevenly lit ground: (n, S, S)."""
    n = len(mask)
    angle, sign = _uniform(n, 0, 2 * math.pi, g), _uniform(n, -1, 1, g).sign()
    slope = torch.cos(angle) * axis + torch.sin(angle) * axis[:, None]
    light = _uniform(n, *LIGHTNESS, g) + _uniform(n, *LIGHT, g) * slope
    ground = light + _uniform(n, *TEXTURE_L, g) * _texture(n, axis, g)
    return ground + sign * _uniform(n, *CONTRAST_L, g) * mask + NOISE_L * torch.randn(mask.shape, generator=g)


def _chroma(mask: Tensor, axis: Tensor, g: torch.Generator) -> Tensor:
    """ab of the object `mask` (n, S, S) on a ground of one hue, with a texture in a and one in b: (n, 2, S, S)."""
    n = len(mask)
    ground, shift = _uniform(n, 0, 2 * math.pi, g), _uniform(n, 0, 2 * math.pi, g)
    contrast, strength = _uniform(n, *CONTRAST_AB, g) * mask, _uniform(n, *TEXTURE_AB, g)
    a = HUE * torch.cos(ground) + contrast * torch.cos(shift) + strength * _texture(n, axis, g)
    b = HUE * torch.sin(ground) + contrast * torch.sin(shift) + strength * _texture(n, axis, g)
    ab = torch.stack([a, b], 1)
    return ab + NOISE_AB * torch.randn(ab.shape, generator=g)


def _rgb(lightness: Tensor, ab: Tensor) -> Tensor:
    """sRGB, uint8 (n, 3, S, S), of Lab (D65): L (n, S, S) and ab (n, 2, S, S). Colors outside sRGB are clipped."""
    y = (lightness + 16) / 116
    f = torch.stack([y + ab[:, 0] / 500, y, y - ab[:, 1] / 200]).flatten(1)  # (3, n S S)
    white = f.new_tensor([[0.95047], [1.0], [1.08883]])
    xyz = torch.where(f > 6 / 29, f**3, (f - 4 / 29) * (3 * (6 / 29) ** 2)) * white
    to_rgb = [[3.2404542, -1.5371385, -0.4985314], [-0.969266, 1.8760108, 0.041556], [0.0556434, -0.2040259, 1.0572252]]
    linear = (f.new_tensor(to_rgb) @ xyz).clamp(0, 1)
    gamma = torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (gamma * 255).round().to(torch.uint8).view(3, *lightness.shape).transpose(0, 1)


def make(count: int, seed: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """`count` images, uint8 (count, 3, size, size) in sRGB, and their labels, int64 (count,), indices into CLASSES.

    The classes are balanced (their counts differ by one at most) and shuffled. The same seed gives the same images; take
    different seeds for train, validation and test. Raises ValueError for a count < 1, a size < 8 or a seed < 0.
    """
    for name, value, least in (("count", count, 1), ("size", size, 8), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"shapes: {name} must be at least {least}, got {value}")
    g = torch.Generator().manual_seed(seed)
    labels = (torch.arange(count) % len(CLASSES))[torch.randperm(count, generator=g)]
    axis, atlas = (torch.arange(size) + 0.5) / size * 2 - 1, _atlas()
    images = torch.empty(count, 3, size, size, dtype=torch.uint8)
    for out, some in zip(images.split(_CHUNK), labels.split(_CHUNK), strict=True):
        mask = _mask(some, axis, atlas, g)
        lightness, ab = _luminance(mask, axis, g), _chroma(mask, axis, g)
        for piece, *lab in zip(out.split(_PIECE), lightness.split(_PIECE), ab.split(_PIECE), strict=True):
            piece.copy_(_rgb(*lab))
    return images, labels
