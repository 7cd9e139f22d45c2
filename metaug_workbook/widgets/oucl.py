"""What OUCL asks of a pair of similarities and how hard it pushes, beside InfoNCE (eq. 1, 8, 9, 10), to be moved by hand."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import log
from typing import Any, NamedTuple

import numpy as np
import torch
from contourpy import contour_generator
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from torch import Tensor

from metaug_core.objectives import losses
from metaug_core.presets import preset
from metaug_workbook.plots.style import BLUE, ORANGE, PURPLE, RED, label
from metaug_workbook.widgets.base import Explorer, Plot, choice, slider, switch, without_controls

GRID, ARROWS = (
    61,
    9,
)  # points and arrows along a side of a map: enough to look smooth, few enough for a tenth of a second
AXIS = torch.linspace(0, 1, GRID)
UNIT: dict[str, Any] = {"xlim": (0, 1), "xticks": (0, 0.5, 1), "yticks": (0, 0.5, 1)}
NEGATIVE = "$d^-$, similarity of a negative"
Loss = Callable[[Tensor, Tensor], Tensor]  # (A, P) positives and (A, N) negatives in [0, 1] -> scalar


class Surface(NamedTuple):
    """A loss of one positive and one negative pair, over a grid or a list of them; all of the grid's shape."""

    loss: Tensor
    positive: Tensor  # d loss / d d+, at most 0: descent raises d+
    negative: Tensor  # d loss / d d-, at least 0: descent lowers d-

    def find_steepest(self) -> float:
        """The largest gradient of any pair: what the weights are measured by."""
        return float(torch.maximum(-self.positive, self.negative).max())


def make_oucl(beta: float, gamma: float, weights: bool, phi_dec: float) -> Loss:
    """OUCL of similarities: eq. 9 (with phi_dec 1: eq. 10), or without the weights Gamma eq. 8 with lambda = 1 - 2 gamma, to
    which eq. 9 falls when its weights are 1."""
    if not weights:
        return lambda p, n: losses.oucl_plain(p, n, beta, 1 - 2 * gamma)
    optimum, margin = (1 + gamma, -gamma), (1 - gamma, gamma)
    return lambda p, n: losses.oucl_weighted(p, n, beta, optimum, margin, phi_dec)


def make_info_nce(temperature: float) -> Loss:
    """InfoNCE (eq. 1) of similarities d = (1 + cos) / 2: half the temperature, since d is half as wide as a cosine."""
    return lambda p, n: losses.info_nce(p, n, temperature / 2)


def measure(loss: Loss, positives: Tensor, negatives: Tensor) -> Surface:
    """Loss and gradient of each pair of d+ and d- on its own; both tensors of one shape, in [0, 1]."""

    def one(p: Tensor, n: Tensor) -> Tensor:
        return loss(p.view(1, 1), n.view(1, 1))

    # Not torch.func.grad: it imports torch._dynamo, more than a second before the first picture.
    pairs = [tensor.flatten().requires_grad_() for tensor in (positives.clone(), negatives.clone())]
    values = torch.func.vmap(one)(*pairs)
    gradients = torch.autograd.grad(values.sum(), pairs)
    return Surface(*(tensor.detach().view_as(positives) for tensor in (values, *gradients)))


@lru_cache(maxsize=64)
def measure_square(kind: Callable[..., Loss], *settings: float) -> Surface:
    """The surface of kind(*settings) over the whole map, rows d-, columns d+; kept, since most controls leave one of the two."""
    negatives, positives = torch.meshgrid(AXIS, AXIS, indexing="ij")
    return measure(kind(*settings), positives, negatives)


class Map:
    """One loss over the square of d+ (right) and d- (up): its value, where it pushes, where it is satisfied, and one pair."""

    def __init__(self, ax: Axes, title: str):
        # In bands: they read as contours, and a picture with few colors is encoded in half the time.
        bands = colormaps["Blues"].resampled(16)
        smooth: dict[str, Any] = {"interpolation": "bilinear", "interpolation_stage": "data"}
        self.image = ax.imshow(np.zeros((GRID, GRID)), origin="lower", extent=(0, 1, 0, 1), cmap=bands, **smooth)
        self.at = np.rint((np.arange(ARROWS) + 0.5) / ARROWS * (GRID - 1)).astype(int)
        x, y = np.meshgrid(AXIS[self.at], AXIS[self.at])
        look: dict[str, Any] = {"units": "xy", "scale": 9.5, "width": 0.011, "color": "0.15", "pivot": "tail"}
        self.arrows = ax.quiver(x, y, np.zeros_like(x), np.zeros_like(x), **look)
        (self.line,) = ax.plot([], [], color=ORANGE, linewidth=2, linestyle="--", label="halfway to satisfied")
        edge = {"markerfacecolor": "white", "markeredgecolor": RED, "markeredgewidth": 2.5}
        (self.dot,) = ax.plot([], [], "o", markersize=10, label="the pair", **edge)
        ax.grid(False)
        ax.set(ylim=(0, 1), **UNIT)
        label(ax, title, "$d^+$, similarity of a positive", NEGATIVE)
        self.moving = [self.image, self.line, self.arrows, self.dot]

    def update(self, surface: Surface, satisfied: float, pair: tuple[float, float]) -> None:
        """surface (GRID, GRID), rows d-. satisfied: the loss at which the softplus is halfway. pair: d+ and d-."""
        values = surface.loss.numpy()
        self.image.set(data=values, clim=(values.min(), values.max()))
        rows, steepest = np.ix_(self.at, self.at), surface.find_steepest()
        self.arrows.set_UVC(-surface.positive.numpy()[rows] / steepest, -surface.negative.numpy()[rows] / steepest)
        lines = contour_generator(AXIS, AXIS, values).lines(satisfied)
        broken = [np.concatenate([np.asarray(line), [[np.nan, np.nan]]]) for line in lines]
        self.line.set_data(*(np.concatenate(broken).T if broken else ([], [])))
        self.dot.set_data([pair[0]], [pair[1]])


class OuclPlot(Plot):
    """OUCL and InfoNCE as maps over (d+, d-), and their gradient weights over d- at one d+."""

    size = (8.8, 3.5)

    def draw(self) -> Sequence[Artist]:
        left, middle, right = self.figure.subplots(1, 3, width_ratios=(1, 1, 1.05))
        self.maps = Map(left, "OUCL: loss (dark is high)"), Map(middle, "InfoNCE: loss (dark is high)")
        looks = (("OUCL on $d^-$", RED, "-"), ("OUCL on $d^+$", BLUE, "-."), ("InfoNCE, on both alike", PURPLE, "--"))
        self.lines = [right.plot([], [], color=c, linestyle=s, linewidth=2, label=name)[0] for name, c, s in looks]
        self.here = right.axvline(0, color="0.4", linewidth=1, linestyle=":")
        right.set(ylim=(-0.02, 1.38), **UNIT)
        right.set_box_aspect(1)
        right.legend(loc="upper left", fontsize=8.5)
        label(right, "Gradient weight at this $d^+$", NEGATIVE, "share of the loss's largest")
        arrow = Line2D([], [], color="0.15", linestyle="", marker=r"$\rightarrow$", markersize=13)
        arrow.set_label("where a step of descent moves a pair")
        one = self.maps[0]
        here = Line2D([], [], color="0.4", linewidth=1, linestyle=":", label="$d^-$ of the pair")
        self.figure.legend(handles=[one.dot, one.line, arrow, here], loc="outside lower center", ncols=4)
        return [*self.maps[0].moving, *self.maps[1].moving, *self.lines, self.here]

    def update(self, beta: float, gamma: float, weights: bool, phi_dec: float, temperature: float, positive: float,
               negative: float) -> str:  # fmt: skip
        kinds: Any = (make_oucl, (beta, gamma, weights, phi_dec)), (make_info_nce, (temperature,))
        halfway = log(2) / beta, log(2)  # where the softplus bends, in the units of each loss
        along = torch.cat([AXIS, torch.tensor([negative])])  # the curve, and the marked pair behind it
        pairs, curves = [], []
        for part, (kind, settings), level in zip(self.maps, kinds, halfway, strict=True):
            surface = measure_square(kind, *settings)
            part.update(surface, level, (positive, negative))
            curve = measure(kind(*settings), torch.full_like(along, positive), along)
            curves += [gradient[:-1] / surface.find_steepest() for gradient in (curve.negative, -curve.positive)]
            pairs.append(Surface(*(t[-1] for t in curve)))
        for line, values in zip(self.lines, curves, strict=False):  # the two of InfoNCE are equal
            line.set_data(AXIS, values)
        self.here.set_xdata([negative, negative])
        form = "eq. 8" if not weights else "eq. 10" if phi_dec == 1 else f"eq. 9, Γ / {phi_dec:g}"
        own, other = pairs
        return (
            f"The pair d⁺ = {positive:.2f}, d⁻ = {negative:.2f}. OUCL ({form}): loss {float(own.loss):.3f}, gradient "
            f"{float(own.positive):+.3f} on d⁺ and {float(own.negative):+.3f} on d⁻, "
            f"{'each by its own distance' if weights else 'both alike'}. "
            f"InfoNCE: loss {float(other.loss):.3f}, gradient {float(other.positive):+.2f} and {float(other.negative):+.2f}, "
            "always alike."
        )


def oucl_explorer(beta: float = 16, gamma: float = 0.4, weights: bool = True, phi_dec: float = 1, temperature: float = 0.07,
                  positive: float = 0.8, negative: float = 0.6) -> Explorer:  # fmt: skip
    """OUCL beside InfoNCE for one positive (similarity d+) and one negative (d-), both in [0, 1].

    beta > 0, gamma in [0, 1] and phi_dec > 0 are those of eq. 8-10; weights: with Gamma (eq. 9, 10) or without (eq. 8);
    temperature: of InfoNCE (eq. 1), on cosines. positive, negative: the pair that is marked.
    """
    formula = "(1 + cos) / 2"
    controls = {
        "beta": choice("β, temperature (2 to 256)", beta, [2**k for k in range(1, 9)], "of OUCL, eq. 8 to 10; no unit"),
        "gamma": slider("γ, margin (0 to 1)", gamma, 0.0, 1.0, 0.05, "of OUCL; the paper uses 0.40"),
        "weights": switch("weights Γ (eq. 9, 10)", weights, "off: eq. 8 with λ = 1 - 2γ"),
        "phi_dec": choice("φ_dec, divides Γ", phi_dec, [1, 2, 4, 6, 8], "attenuation of Γ (section 4.4); 1: none"),
        "positive": slider("d⁺ of the pair (0 to 1)", positive, 0.0, 1.0, 0.01, f"similarity of a positive, {formula}"),
        "negative": slider("d⁻ of the pair (0 to 1)", negative, 0.0, 1.0, 0.01, f"similarity of a negative, {formula}"),
        "temperature": slider("t of InfoNCE", temperature, 0.01, 0.5, 0.01, "temperature on cosines, eq. 1; no unit"),
    }
    controls["phi_dec"].disabled = not weights
    controls["weights"].observe(lambda change: setattr(controls["phi_dec"], "disabled", not change["new"]), "value")
    title = "OUCL explorer: what a loss asks of a pair, and how hard it pushes"
    return Explorer(OuclPlot(), controls, title, presets=make_presets())


def make_presets() -> dict[str, dict[str, float | bool]]:
    """What the buttons set: OUCL as the presets `paper` and `authors` have it, and a negative that is more alike than the
    positive, the hardest that there is."""
    named = {name.capitalize(): preset(name) for name in ("paper", "authors")}
    buttons: dict[str, dict[str, float | bool]] = {}
    for name, config in named.items():
        weights = config.oucl != "eq8"
        gamma = config.gamma if weights else (1 - config.oucl_lambda) / 2  # lambda = 1 - 2 gamma
        buttons[name] = {"beta": config.beta, "gamma": gamma, "phi_dec": config.phi_dec, "weights": weights}
    return buttons | {"Hardest negative": {"positive": 0.6, "negative": 0.95}}


oucl_figure = without_controls(oucl_explorer)
