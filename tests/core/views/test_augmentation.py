"""Views: every operation against torchvision or scikit-image, the geometry by hand, and no wait for the host."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import color as skimage_color
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import RandAugment
from torchvision.transforms import functional as v1
from torchvision.transforms.v2 import functional as tv

from metaug_core.config import Config
from metaug_core.errors import MetaugError
from metaug_core.registry import VIEWS
from metaug_core.views import augmentation, color
from metaug_core.views.augmentation import augment, draw, make_views, plain, split
from metaug_core.views.color import rgb_to_lab, rgb_to_sobel, rgb_to_ydbdr

OFF = {"crop_scale": (1, 1), "flip": 0, "views": ("RGB",), "image_size": 16}
EVERYTHING = {
    "rotation": 20,
    "jitter": 1,
    "grey": 0.5,
    "mixup": 0.4,
    "randaugment": 15,
    "blur": (0.5,),
    "solarise": (0.5,),
}
KINDS = [*augmentation.GEOMETRIC, *augmentation.COLOR_OPERATIONS, "identity"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(count: int = 4, size: int = 16, width: int | None = None) -> Tensor:
    return torch.randint(256, (count, 3, size, width or size), generator=seeded(99), dtype=torch.uint8)


def factors(count: int, low: float, high: float) -> Tensor:
    return torch.linspace(low, high, count)[:, None, None, None]


def fixed(count: int, **values: float) -> augmentation.Draws:
    """Draws of one half, but for those named."""
    return {name: torch.full((count, 1, 1, 1), float(values.get(name, 0.5))) for name in augmentation.NAMES.split()}


def operated(images: Tensor, kind: str, sign: float = 0.75, magnitude: float = 30) -> Tensor:
    """RandAugment with `kind` in its first turn and identity in its second."""
    shares = {name: (number + 0.5) / len(KINDS) for number, name in enumerate(KINDS)}
    draws = fixed(len(images), kind1=shares[kind], sign1=sign, kind2=shares["identity"])
    config = Config(**OFF).replace(image_size=images.shape[3], randaugment=magnitude, randaugment_probability=1)
    return augmentation.transform(images, config, draws)


# --- colour spaces


CORNERS = torch.cartesian_prod(*[torch.tensor([0.0, 0.002, 0.04, 0.041, 0.5, 1.0], dtype=torch.float64)] * 3)
PIXELS = torch.cat([CORNERS, torch.rand(2000, 3, generator=seeded(), dtype=torch.float64)])  # (N, 3)


def convert(space: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    return space(pixels.T[None, :, :, None])[0, :, :, 0].T


@pytest.mark.parametrize(
    ("ours", "theirs", "tolerance"),  # scikit-image rounds CIE's two constants to four digits
    [(rgb_to_lab, skimage_color.rgb2lab, 3e-4), (rgb_to_ydbdr, skimage_color.rgb2ydbdr, 1e-6)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_colour_spaces_agree_with_scikit_image(ours, theirs, tolerance, dtype):
    converted = convert(ours, PIXELS.to(dtype))
    assert converted.dtype == dtype
    torch.testing.assert_close(converted.double(), torch.from_numpy(theirs(PIXELS.numpy())), rtol=0, atol=tolerance)


def test_lab_is_the_standards_definition():
    linear = torch.where(PIXELS > 0.04045, ((PIXELS + 0.055) / 1.055) ** 2.4, PIXELS / 12.92)
    to_xyz = [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
    xyz = linear @ linear.new_tensor(to_xyz).T / linear.new_tensor([0.95047, 1, 1.08883])
    x, y, z = torch.where(xyz > (6 / 29) ** 3, xyz ** (1 / 3), (29 / 6) ** 2 / 3 * xyz + 4 / 29).T
    expected = torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)
    # The two pieces of sRGB's curve miss each other by 2.3e-9; ours meet.
    torch.testing.assert_close(convert(rgb_to_lab, PIXELS), expected, rtol=0, atol=1e-5)


def test_lab_has_gradients_after_a_first_use_in_inference_mode():
    color.constant.cache_clear()
    with torch.inference_mode():
        rgb_to_lab(torch.rand(1, 3, 2, 2))
    rgb = torch.rand(1, 3, 2, 2, requires_grad=True)
    rgb_to_lab(rgb).sum().backward()
    assert rgb.grad is not None


def test_lab_of_white_black_and_red():
    rgb = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0]]).T[None, :, :, None]
    expected = torch.tensor([[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20]])  # CIE values of sRGB red
    torch.testing.assert_close(rgb_to_lab(rgb)[0, :, :, 0].T, expected, rtol=0, atol=0.02)


def test_lab_has_a_finite_and_right_gradient_everywhere():
    rgb = torch.rand(1, 3, 4, 4, generator=seeded(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rgb_to_lab, rgb)
    edges = torch.tensor([0.0, 1e-30, 0.04045, 1.0]).expand(1, 3, 1, 4).clone().requires_grad_()
    rgb_to_lab(edges).sum().backward()
    assert edges.grad is not None
    assert edges.grad.isfinite().all()


def test_views_map_the_ends_of_their_ranges_to_one():
    black, white = split(torch.zeros(1, 3, 1, 1), ["L", "Y", "RGB"]), split(torch.ones(1, 3, 1, 1), ["L", "Y", "RGB"])
    for low, high in zip(black, white, strict=True):
        torch.testing.assert_close(low, -torch.ones_like(low), rtol=0, atol=1e-4)
        torch.testing.assert_close(high, torch.ones_like(high), rtol=0, atol=1e-4)
    cube = torch.cartesian_prod(*[torch.linspace(0, 1, 9)] * 3).T[None, :, :, None]  # the extremes are at its corners
    for view in split(cube, ["ab", "DbDr"]):
        torch.testing.assert_close(view.amax((0, 2, 3)), torch.ones(2), rtol=0, atol=1e-3)
        torch.testing.assert_close(view.amin((0, 2, 3)), -torch.ones(2), rtol=0, atol=1e-3)


def test_lab_is_its_l_beside_its_ab():
    lab, lightness, chroma = split(plain(photos(), 16), ["Lab", "L", "ab"])
    torch.testing.assert_close(lab, torch.cat([lightness, chroma], dim=1), rtol=0, atol=0)


def test_sobel_is_scipys_on_luma():
    rgb = torch.rand(2, 3, 7, 9, generator=seeded(), dtype=torch.float64)
    luma = np.tensordot([0.2989, 0.587, 0.114], rgb.numpy(), axes=(0, 1))
    expected = [[ndimage.sobel(image, axis, mode="nearest") / 4 for axis in (1, 0)] for image in luma]
    torch.testing.assert_close(rgb_to_sobel(rgb), torch.from_numpy(np.array(expected)))
    edge = torch.zeros(1, 3, 4, 4)
    edge[..., 2:] = 1
    across, down = split(edge, ["Sobel"])[0][0]
    assert across.tolist() == [pytest.approx([0, 0.9999, 0.9999, 0])] * 4  # luma's weights sum to 0.9999
    assert not down.any()


def test_split_computes_a_shared_space_once(monkeypatch):
    calls = []

    def counted(rgb: Tensor) -> Tensor:
        calls.append(rgb)
        return rgb_to_lab(rgb)

    for name in ("L", "ab"):
        monkeypatch.setitem(VIEWS, name, replace(VIEWS[name], space=counted))
    shapes = [view.shape[1] for view in split(torch.rand(2, 3, 4, 4), ["L", "RGB", "ab", "L"])]
    assert len(calls) == 1
    assert shapes == [1, 3, 2, 1]


def test_a_new_view_is_one_line(monkeypatch):
    monkeypatch.setitem(VIEWS, "a", augmentation.View(rgb_to_lab, {1: (-86.183, 98.233)}))
    config = Config(**OFF).replace(views=("L", "a", "ab"))
    lightness, a, ab = make_views(photos(), config, seeded())
    assert VIEWS["a"].channels == a.shape[1] == lightness.shape[1] == 1
    torch.testing.assert_close(a, ab[:, :1], rtol=0, atol=0)


def test_a_view_takes_its_channels_in_its_own_order_and_ranges(monkeypatch):
    view = augmentation.View(lambda rgb: rgb, {2: (0, 1), 0: (-1, 3)})  # blue to -1..1, red from -1..3 to -1..1
    monkeypatch.setitem(VIEWS, "blue and red", view)
    rgb = torch.tensor([1.0, 0.3, 0.25], dtype=torch.float64)[None, :, None, None]
    assert split(rgb, ["blue and red"])[0].flatten().tolist() == [pytest.approx(-0.5), pytest.approx(0.0)]


def test_an_unknown_view_is_named():
    with pytest.raises(MetaugError, match=r"unknown view 'Lba'.*'Lab'"):
        split(torch.rand(1, 3, 4, 4), ["Lba"])


# --- colour operations, against torchvision


@pytest.mark.parametrize(
    ("what", "oracle"),
    [
        ("brightness", tv.adjust_brightness),
        ("contrast", tv.adjust_contrast),
        ("saturation", tv.adjust_saturation),
        ("sharpness", tv.adjust_sharpness),
    ],
)
def test_adjustments_agree_with_torchvision(what, oracle):
    rgb, factor = plain(photos(7), 16), factors(7, 0.0, 2.4)
    expected = torch.stack([oracle(image, float(f)) for image, f in zip(rgb, factor, strict=True)])
    torch.testing.assert_close(color.adjust(rgb, factor, what), expected, rtol=0, atol=1e-5)


def test_hue_agrees_with_torchvision():
    images = torch.cat([photos(8), torch.zeros(1, 3, 16, 16, dtype=torch.uint8)])
    images[0] = images[0, :1]  # grey: no hue
    rgb, turn = plain(images, 16), factors(9, -0.5, 0.5)
    expected = torch.stack([tv.adjust_hue(image, float(t)) for image, t in zip(rgb, turn, strict=True)])
    torch.testing.assert_close(color.adjust_hue(rgb, turn), expected, rtol=0, atol=1e-5)


def test_hue_by_hand():
    red, third = torch.tensor([1.0, 0, 0])[None, :, None, None], torch.full((1, 1, 1, 1), 1 / 3)
    green = torch.tensor([0.0, 1, 0])[None, :, None, None]
    torch.testing.assert_close(color.adjust_hue(red, third), green, rtol=0, atol=1e-6)
    torch.testing.assert_close(color.adjust_hue(green, -third), red, rtol=0, atol=1e-6)


def test_grey_agrees_with_torchvision():
    images = photos()
    expected = tv.rgb_to_grayscale(plain(images, 16), num_output_channels=3)
    torch.testing.assert_close(augment(images, Config(**OFF).replace(grey=1), seeded()), expected, rtol=0, atol=1e-5)


def test_autocontrast_agrees_with_torchvision():
    images = photos() // 3 + 40
    images[0, 1] = 77  # a constant channel stays
    rgb = plain(images, 16)
    torch.testing.assert_close(color.autocontrast(rgb), tv.autocontrast(rgb), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [8, 16, 33])  # at 8 pixels there are too few for a step: PIL leaves the image
def test_equalize_agrees_with_torchvision(size):
    images = photos(4, size) // 5 + 60
    images[0, 1] = 77
    images[1] = photos(1, size)[0]
    expected = tv.equalize(images).float() / 255
    torch.testing.assert_close(color.equalize(plain(images, size)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("magnitude", [1, 4, 12, 20, 30])
@pytest.mark.parametrize("sign", [0.25, 0.75])
@pytest.mark.parametrize("kind", list(augmentation.COLOR_OPERATIONS))
def test_randaugment_colours_agree_with_torchvision(kind, sign, magnitude):
    images, direction = photos(), -1 if sign < 0.5 else 1
    theirs = {"saturation": "Color", "autocontrast": "AutoContrast"}
    name = theirs[kind] if kind in theirs else kind.capitalize()
    sizes, signed = RandAugment()._augmentation_space(31, (16, 16))[name]
    amount = float(sizes[magnitude] if sizes.ndim else 0) * (direction if signed else 1)
    oracle = {
        "brightness": lambda x: tv.adjust_brightness(x, 1 + amount),
        "contrast": lambda x: tv.adjust_contrast(x, 1 + amount),
        "saturation": lambda x: tv.adjust_saturation(x, 1 + amount),
        "sharpness": lambda x: tv.adjust_sharpness(x, 1 + amount),
        "posterize": lambda x: tv.posterize((x * 255).round().to(torch.uint8), int(amount)).float() / 255,
        "solarize": lambda x: tv.solarize((x * 255).round().to(torch.uint8), amount).float() / 255,
        "autocontrast": tv.autocontrast,
        "equalize": tv.equalize,
    }[kind]
    ours = operated(images, kind, sign, magnitude)
    torch.testing.assert_close(ours, oracle(plain(images, 16)), rtol=0, atol=1e-4)


# --- geometry


@pytest.mark.parametrize("sign", [0.25, 0.75])
@pytest.mark.parametrize("kind", list(augmentation.GEOMETRIC))
def test_randaugment_geometry_agrees_with_torchvision(kind, sign):
    images, direction = photos(2, 32), -1 if sign < 0.5 else 1
    magnitude = 20 / 30 * direction
    angle = magnitude * 30 if kind == "rotate" else 0
    # a sign is a coin toss; where ours means the other direction than torchvision's the oracle is turned
    shear = [math.degrees(math.atan(0.3 * magnitude)) * (kind == f"shear {axis}") for axis in "xy"]
    shift = [-150 / 331 * 32 * magnitude * (kind == f"translate {axis}") for axis in "xy"]

    def oracle(rgb: Tensor) -> Tensor:
        if kind == "rotate":
            return v1.rotate(rgb, angle, v1.InterpolationMode.BILINEAR)
        corner = [0.0, 0.0] if kind.startswith("shear") else None
        return tv.affine(rgb, 0, shift, 1.0, shear, v1.InterpolationMode.BILINEAR, center=corner)

    rgb = plain(images, 32)
    inside = oracle(torch.ones_like(rgb)) > 1 - 1e-4  # torchvision is black outside, we reflect
    assert 0.4 < inside.float().mean() < 1
    ours = operated(images, kind, sign, 20)
    torch.testing.assert_close(ours[inside], oracle(rgb)[inside], rtol=0, atol=1e-3)


def test_nothing_on_is_the_image():
    images = photos()
    assert torch.equal(augment(images, Config(**OFF), seeded()), images / 255)
    warped = augment(images, Config(**OFF).replace(rotation=1e-6), seeded())  # through grid_sample
    torch.testing.assert_close(warped, images / 255, rtol=0, atol=1e-5)


def test_a_certain_flip_is_torch_flip():
    images = photos(width=16)
    flipped = augment(images, Config(**OFF).replace(flip=1), seeded())
    torch.testing.assert_close(flipped, images.flip(3) / 255, rtol=0, atol=1e-5)


def test_flip_happens_as_often_as_asked():
    images = photos(1, 8).expand(4000, -1, -1, -1)
    flipped = augment(images, Config(**OFF).replace(flip=0.3, image_size=8), seeded())
    changed = (flipped - plain(images[:1], 8)).abs().amax((1, 2, 3)) > 0.1
    assert changed.float().mean() == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("quarters", [-1, 1, 2])
def test_quarter_turns_are_rot90(quarters):
    images = photos()
    draws = fixed(4, rotation=0.5 + quarters / 4)
    turned = augmentation.transform(images, Config(**OFF).replace(rotation=180), draws)
    torch.testing.assert_close(turned, torch.rot90(images, quarters, (2, 3)) / 255, rtol=0, atol=1e-4)


def test_geometry_is_one_map_crop_then_flip_then_rotation():
    images = photos(3, 32)
    config = Config(**OFF).replace(crop_scale=(0.25, 0.25), flip=1, rotation=180)
    ours = augmentation.transform(images, config, fixed(3, ratio=0.5, x=0, y=0, flip=0, rotation=0.75))
    corner = images[:, :, :16, :16] / 255  # a quarter of the area, square, upper left; 16 pixels: no interpolation
    torch.testing.assert_close(ours, torch.rot90(corner.flip(3), 1, (2, 3)), rtol=0, atol=1e-4)


def test_outside_is_the_reflection():
    images = photos(1, 32)
    moved = operated(images, "translate x", 0.75, 331 / 300 * 30 * 0.25)  # 0.25 of half the side: 4 pixels
    expected = torch.cat([images[..., 4:], images[..., -4:].flip(3)], dim=3) / 255
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("aspect", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.5, 0.6), (0.9, 1.0)])
def test_crops_have_the_area_lie_inside_and_keep_the_ratio_if_it_fits(scale, aspect):
    edge = torch.tensor([-1.0, 1.0])
    x, y = augmentation.crop(edge, edge, draw(5000, seeded()), Config(crop_scale=scale), aspect)
    width, height = ((end[..., 1] - end[..., 0]).flatten() / 2 for end in (x, y))
    area, ratio = width * height, width * aspect / height
    assert area.min() >= scale[0] - 1e-5
    assert area.max() <= scale[1] + 1e-5
    assert area.mean() == pytest.approx(sum(scale) / 2, abs=0.02)
    assert max(x.abs().max(), y.abs().max()) <= 1 + 1e-5
    fits = (area < 0.75 * min(aspect, 1 / aspect)).nonzero()  # any ratio in 3/4..4/3 fits then
    assert torch.all((ratio[fits] >= 3 / 4 - 1e-4) & (ratio[fits] <= 4 / 3 + 1e-4))
    if len(fits) > 1000:
        assert ratio[fits].log().mean() == pytest.approx(0, abs=0.02)
        assert ratio[fits].log().std() == pytest.approx(2 * math.log(4 / 3) / math.sqrt(12), abs=0.01)
    if scale == (0.5, 0.6):  # places vary over all that the crop leaves free
        centre = (x.mean(-1).flatten() / (1 - width)).sort().values
        assert centre[[50, -50]].tolist() == pytest.approx([-0.98, 0.98], abs=0.03)


def test_large_images_are_averaged_not_skipped():
    stripes = (torch.arange(64) % 4 == 0).to(torch.uint8) * 255  # bilinear samples at every fourth pixel would show 0
    images = stripes.expand(2, 3, 64, 64)
    small = augment(images, Config(**OFF).replace(flip=0.5), seeded())
    torch.testing.assert_close(small, torch.full_like(small, 0.25), rtol=0, atol=1e-5)


# --- the whole


def test_plain_resizes_as_torchvision_does():
    images = photos(2, 40, 30)
    expected = tv.resize(images.float() / 255, [16, 16], antialias=True)
    torch.testing.assert_close(plain(images, 16), expected, rtol=0, atol=1e-6)
    assert torch.equal(plain(photos(), 16), photos() / 255)
    assert plain(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8), 8).max() == 1  # the weights add up to 1 + 1e-7


@pytest.mark.parametrize("independent", [False, True])
def test_a_seed_gives_the_same_bytes_and_another_gives_others(independent):
    config = Config(**EVERYTHING, image_size=16, independent=independent)
    first, second, other = (make_views(photos(8), config, seeded(s)) for s in (1, 1, 2))
    for a, b, c in zip(first, second, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@pytest.mark.parametrize("setting", [{"crop_scale": (0.2, 1)}, {"flip": 0.5}] + [{k: v} for k, v in EVERYTHING.items()])
def test_samples_of_a_batch_have_their_own_parameters(setting):
    images = photos(1).expand(16, -1, -1, -1).clone()
    if "mixup" in setting:
        images[::2] = 255 - images[::2]  # with itself a mixture changes nothing
    result = augment(images, Config(**OFF).replace(**setting), seeded())
    assert len({tuple(image.flatten().tolist()) for image in result}) > 1
    assert not torch.allclose(result, images / 255, atol=1e-3)


def test_turning_one_item_on_leaves_the_draws_of_others():
    images, config = photos(), Config(**OFF).replace(crop_scale=(0.2, 1), flip=0.5)
    coloured = augment(images, config.replace(grey=1), seeded())
    expected = tv.rgb_to_grayscale(augment(images, config, seeded()), num_output_channels=3)
    torch.testing.assert_close(coloured, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("share", "is_grey"), [(0.29, True), (0.31, False)])
def test_grey_is_drawn_by_its_own_draw_against_its_probability(share, is_grey):
    result = augmentation.transform(photos(), Config(**OFF).replace(grey=0.3), fixed(4, grey=share))
    assert ((result.amax(1) - result.amin(1)).max() == 0) == is_grey


@pytest.mark.parametrize(("end", "sign"), [(0.0, -1), (1.0, 1)])
def test_jitter_has_simclrs_strengths(end, sign):
    orders = {f"order{turn}": turn / 10 for turn in (1, 2, 3, 4)}  # rising: brightness, contrast, saturation, hue
    draws, images = fixed(4, brightness=end, contrast=end, saturation=end, hue=end, **orders), photos()
    ours = augmentation.transform(images, Config(**OFF).replace(jitter=0.5), draws)
    expected = plain(images, 16)
    for change in (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation):
        expected = change(expected, 1 + 0.4 * sign)
    expected = tv.adjust_hue(expected, 0.1 * sign)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_jitter_follows_each_images_own_order_strengths_and_chance():
    turns = {"order1": [0.4, 0.1, 0.1], "order2": [0.3, 0.2, 0.2], "order3": [0.2, 0.3, 0.3], "order4": [0.1, 0.4, 0.4]}
    draws = fixed(3, brightness=1, contrast=1, saturation=1, hue=1)
    draws |= {name: torch.tensor(values)[:, None, None, None] for name, values in turns.items()}
    draws["jitter"] = torch.tensor([0.6, 0.6, 0.8])[:, None, None, None]  # the third is left as it is
    config = Config(**OFF).replace(jitter=0.5, jitter_ranges=(0.8, 0.6, 0.4, 0.2), jitter_probability=0.7)
    images = photos(3)
    changes = [
        lambda rgb: tv.adjust_brightness(rgb, 1.4),
        lambda rgb: tv.adjust_contrast(rgb, 1.3),
        lambda rgb: tv.adjust_saturation(rgb, 1.2),
        lambda rgb: tv.adjust_hue(rgb, 0.1),
    ]
    expected = plain(images, 16)
    for row, order in ((0, reversed(changes)), (1, changes)):
        for change in order:
            expected[row : row + 1] = change(expected[row : row + 1])
    torch.testing.assert_close(augmentation.transform(images, config, draws), expected, rtol=0, atol=1e-5)


def test_every_order_of_jitter_is_drawn_as_often():
    draws = draw(24000, seeded())
    order = torch.stack([draws[f"order{turn}"] for turn in (1, 2, 3, 4)]).argsort(0).flatten(1)
    counts = (order * torch.tensor([[64], [16], [4], [1]])).sum(0).bincount()
    assert counts[counts > 0].div(1000).tolist() == pytest.approx([1] * 24, abs=0.1)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_chosen_images_are_changed_alone_and_elsewhere_all_are_computed(device):
    chosen = torch.tensor([True, False, True])[:, None, None, None].to(device)
    images, factor = plain(photos(3)).to(device), torch.full((3, 1, 1, 1), 2.0, device=device)
    seen = []
    result = augmentation.apply_where(chosen, lambda x, f: (seen.append(len(x)), x * f)[1], images, factor)
    assert seen == [2 if device == "cpu" else 3]
    if device == "cpu":
        assert torch.equal(result, torch.where(chosen, images * factor, images))
        assert augmentation.apply_where(chosen & False, None, images, factor) is images


@pytest.mark.parametrize("side", [16, 64])
def test_blur_is_torchvisions(side):
    images, sigma = plain(photos(2, side)), torch.tensor([0.3, 1.7])[:, None, None, None]
    kernel = 2 * max(1, side // 20) + 1
    expected = [tv.gaussian_blur(image, [kernel, kernel], [s.item()]) for image, s in zip(images, sigma, strict=True)]
    torch.testing.assert_close(color.blur(images, sigma), torch.stack(expected), rtol=0, atol=1e-5)


def test_blur_and_solarisation_have_a_probability_for_each_view():
    config = Config(**OFF).replace(views=("RGB", "RGB"), independent=True, blur=(0.6, 0.1), solarise=(0.0, 0.6))
    images, draws = photos(2), fixed(2)
    first, second = (augmentation.transform(images, config, draws, view) for view in (0, 1))
    middle = torch.full((2, 1, 1, 1), sum(augmentation.BLUR_SIGMA) / 2)
    assert torch.equal(first, color.blur(plain(images), middle))
    torch.testing.assert_close(second, tv.solarize(plain(images), 0.5), rtol=0, atol=1e-6)
    crops = make_views(images, config, seeded())
    assert not torch.equal(crops[0], crops[1])


def test_a_crop_of_ratio_one_keeps_the_images_shape():
    images = photos(64, 16)
    draws = draw(64, seeded())
    config = Config(**OFF).replace(crop_scale=(0.25, 0.25), crop_ratio=1)
    points = augmentation.compute_coordinates(draws, config, 1.0)
    width, height = (points[..., i].amax((1, 2)) - points[..., i].amin((1, 2)) for i in (0, 1))
    torch.testing.assert_close(width, height)
    torch.testing.assert_close(width, torch.full((64,), 0.5 * 2 * 15 / 16))
    assert augmentation.transform(images, config, draws).shape == images.shape


def test_a_strong_jitter_does_not_turn_colours_into_their_negative():
    result = augmentation.transform(
        photos(), Config(**OFF).replace(jitter=2, jitter_probability=1), fixed(4, saturation=0)
    )  # 1 - 1.6 is held at 0
    assert (result.amax(1) - result.amin(1)).max() < 1e-5


def test_mixup_adds_a_share_of_a_partner_drawn_as_a_permutation():
    images = (torch.eye(3, dtype=torch.uint8) * 255)[:, :, None, None].expand(3, 3, 16, 16)
    draws = fixed(3, share=0.5) | {"partner": torch.tensor([0.9, 0.1, 0.4])[:, None, None, None]}
    mixed = augmentation.transform(images, Config(**OFF).replace(mixup=0.4), draws)[:, :, 0, 0]
    expected = 0.8 * torch.eye(3) + 0.2 * torch.eye(3)[[1, 2, 0]]
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-6)


def test_randaugment_draws_its_operations_and_signs_evenly():
    draws, config = draw(28000, seeded()), Config(**OFF).replace(randaugment=15, randaugment_probability=1)
    kind, amount = augmentation.choose_operation(draws, 1, config)
    assert kind.flatten().long().bincount().div(2000).tolist() == pytest.approx([1] * 14, abs=0.1)
    assert amount.abs().unique().tolist() == [0.5]
    assert amount.mean().item() == pytest.approx(0, abs=0.01)
    second = augmentation.choose_operation(draws, 2, config)[0]
    assert (kind == second).float().mean().item() == pytest.approx(1 / 14, abs=0.01)


def test_randaugment_leaves_out_half_of_the_operations():
    config = Config(**OFF).replace(randaugment=30)
    kind, _ = augmentation.choose_operation(draw(28000, seeded()), 1, config)
    assert (kind == KINDS.index("identity")).float().mean().item() == pytest.approx(0.5 + 0.5 / 14, abs=0.01)


def test_randaugment_of_color_splits_changes_no_color():
    config = Config(**OFF).replace(views=("L", "ab"), randaugment=30, randaugment_probability=1)
    kind, _ = augmentation.choose_operation(draw(8000, seeded()), 1, config)
    drawn = {augmentation.list_operations(config)[int(number)] for number in kind.unique()}
    assert drawn == {*augmentation.GEOMETRIC, "sharpness", "autocontrast", "identity"}
    crops = config.replace(views=("RGB", "RGB"), independent=True)
    assert augmentation.list_operations(crops) == tuple(KINDS)


def test_randaugments_second_turn_comes_after_the_first():
    shares = {name: (number + 0.5) / len(KINDS) for number, name in enumerate(KINDS)}
    wave = torch.linspace(0, 6, 64).sin()  # smooth: a second interpolation changes nothing
    images = (127 + 100 * wave[:, None] * wave.cos()).to(torch.uint8).expand(2, 3, 64, 64)
    config = Config(**OFF).replace(image_size=64, randaugment=10, randaugment_probability=1)
    turns = fixed(2, kind1=shares["rotate"], kind2=shares["translate x"], sign1=0.75, sign2=0.75)
    ours = augmentation.transform(images, config, turns)

    def rotated(rgb: Tensor) -> Tensor:
        return v1.rotate(rgb, 10, v1.InterpolationMode.BILINEAR)

    def moved(rgb: Tensor) -> Tensor:
        shift = [-150 / 331 * 64 / 3, 0]
        return tv.affine(rgb, 0, shift, 1.0, [0, 0], v1.InterpolationMode.BILINEAR)

    middle = (slice(None), slice(None), slice(16, 48), slice(16, 48))
    torch.testing.assert_close(ours[middle], moved(rotated(plain(images, 64)))[middle], rtol=0, atol=0.01)
    assert (ours - rotated(moved(plain(images, 64))))[middle].abs().max() > 0.05
    images = photos(2, 64)
    order = fixed(2, kind1=shares["solarize"], kind2=shares["brightness"], sign2=0.25)
    solarized = operated(images, "solarize", magnitude=10)
    expected = color.adjust(solarized, torch.tensor(0.7), "brightness")
    torch.testing.assert_close(augmentation.transform(images, config, order), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, EVERYTHING, EVERYTHING | {"jitter": 2, "randaugment": 30, "mixup": 0.9}])
@pytest.mark.parametrize("shape", [(6, 3, 16, 16), (6, 3, 40, 25), (1, 3, 9, 9)])
def test_the_result_lies_in_its_range(settings, shape):
    images = torch.randint(256, shape, generator=seeded(3), dtype=torch.uint8)
    images[0] = 255  # all the weights of an interpolation must not add up to more
    result = augment(images, Config(**settings, image_size=16), seeded())
    assert result.shape == (shape[0], 3, 16, 16)
    assert result.dtype == torch.float32
    assert result.min() >= 0
    assert result.max() <= 1


def test_views_split_one_image_or_each_its_own():
    images, config = photos(), Config(views=("RGB", "RGB"), image_size=16)
    one, same = make_views(images, config, seeded())
    assert torch.equal(one, same)
    first, second = make_views(images, config.replace(independent=True), seeded())
    assert torch.equal(first, one)
    assert (first - second).abs().mean() > 0.05


@pytest.mark.parametrize("images", [torch.rand(2, 3, 8, 8), photos()[:, :1], photos()[0]])
def test_other_types_and_shapes_are_refused_in_a_sentence(images):
    config = Config(image_size=16)
    for call in (lambda: make_views(images, config, seeded()), lambda: plain(images, config.image_size)):
        with pytest.raises(MetaugError, match=r"views need uint8 images \(B, 3, H, W\), got torch\."):
            call()


# --- the host


def without_host(monkeypatch, call, *tensors: Tensor) -> None:
    """Runs `call` on CUDA tensors that have no values, so that a read of one, or a shape that hangs on one, fails. Constants may be
    copied in a first call."""

    def refuse(*_, **__):
        raise AssertionError("a tensor is made from Python numbers: a copy to the device")

    with monkeypatch.context() as patch, FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor).to("cuda") for tensor in tensors]
        patch.setattr(color, "constant", cache(color.constant.__wrapped__))  # what it keeps here are no real tensors
        patch.setattr(augmentation, "constant", color.constant)
        call(*fakes)
        for name in ("tensor", "as_tensor", "from_numpy"):
            patch.setattr(torch, name, refuse)
        call(*fakes)


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("settings", [{}, EVERYTHING])
def test_views_never_wait_for_the_host(monkeypatch, settings, independent):
    config, draws = Config(**settings, image_size=16, independent=independent), draw(4, seeded())

    def views(images: Tensor, *numbers: Tensor) -> list[Tensor]:
        return split(augmentation.transform(images, config, dict(zip(draws, numbers, strict=True))), config.views)

    without_host(monkeypatch, views, photos(4, 40), *draws.values())


@pytest.mark.parametrize(
    "call", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: 1 if x.any() else 0, lambda x: torch.tensor([1.0])]
)
def test_that_check_finds_a_wait(monkeypatch, call):
    with pytest.raises(Exception, match=r"_local_scalar_dense|nonzero|Python numbers"):
        without_host(monkeypatch, call, photos())
