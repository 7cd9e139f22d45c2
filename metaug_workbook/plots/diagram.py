"""The architecture of MetAug as one picture: what the paper's Figure 1 shows, drawn anew."""

import itertools
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from metaug_workbook.plots.style import BLUE, RED, make_panels, use_style

DATA, THETA, OMEGA, LOSS = "#F2F2F2", "#DCEBF7", "#FBE3DC", "#FFF3D6"  # images and features, encoders, MAGs, objectives
SIZE = (12.0, 5.4)


class Box(NamedTuple):
    text: str
    x: float  # of the centre, in inches
    y: float
    width: float
    height: float
    fill: str


def place_view(view: str, y: float, channel: str) -> dict[str, Box]:
    """The boxes of one view, left to right."""
    return {
        f"view {view}": Box(f"view $x^{{{view}}}$\n({channel})", 1.95, y, 1.0, 0.7, DATA),
        f"encoder {view}": Box(rf"encoder $f_{{\theta}}^{{{view}}}$", 3.45, y, 1.3, 0.7, THETA),
        f"h {view}": Box(f"$h^{{{view}}}$", 4.6, y, 0.5, 0.5, DATA),
        f"head {view}": Box(rf"head $g_{{\vartheta}}^{{{view}}}$", 5.7, y, 1.1, 0.7, THETA),
        f"z {view}": Box(f"$z^{{{view}}}$", 6.8, y, 0.5, 0.5, DATA),
        f"MAG {view}": Box(rf"MAG $a_{{\omega}}^{{{view}}}$", 7.95, y, 1.2, 0.7, OMEGA),
        f"augmented {view}": Box(rf"$\tilde z^{{{view}}}$", 9.1, y, 0.5, 0.5, DATA),
    }


BOXES: dict[str, Box] = {
    "image": Box("image $x$", 0.6, 2.7, 0.95, 0.8, DATA),
    **place_view("1", 4.3, "lightness"),
    **place_view("2", 1.1, "colour"),
    "classifier": Box("in test: linear\nclassifier on $h$", 4.6, 2.7, 1.4, 0.75, DATA),
    "loss": Box(
        "OUCL on original and\naugmented features\n" r"$L_{ori} + \delta\, L_{aug}$", 7.0, 2.7, 2.1, 0.95, LOSS
    ),
    "margin": Box("margins keep $\\tilde z$\nfrom copying $z$\n" r"$\alpha\, R_\sigma$", 9.25, 2.7, 1.6, 0.95, LOSS),
    "regular step": Box(
        "1  encoders and heads\n" r"$\theta \leftarrow \theta - \ell\, \nabla_\theta L$", 11.0, 4.3, 1.85, 0.8, THETA
    ),
    "look-ahead": Box("look ahead\n" r"$\theta' = \theta - \ell\, \nabla_\theta L$", 11.0, 2.7, 1.55, 0.8, THETA),
    "MAG step": Box(
        "2  MAGs, through "
        r"$\theta'(\omega)$"
        "\n"
        r"$\omega \leftarrow \omega - \ell'\, \nabla_\omega (L + \alpha R_\sigma)$",
        10.85,
        1.1,
        2.25,
        0.8,
        OMEGA,
    ),
}


CHAIN = ("view", "encoder", "h", "head", "z", "MAG", "augmented")  # of boxes, within a view
ARROWS = [
    *((f"{a} {v}", f"{b} {v}") for v in "12" for a, b in itertools.pairwise(CHAIN)),
    *(("image", f"view {v}") for v in "12"),
    *((f"h {v}", "classifier") for v in "12"),
    *((f"{name} {v}", "loss") for v in "12" for name in ("z", "augmented")),
    *((f"augmented {v}", "margin") for v in "12"),
]


@use_style()
def draw_diagram() -> Figure:
    """The method as a figure: grey data, blue what theta holds, red what omega holds, yellow the objectives. Boxes are in BOXES."""
    figure, ax = make_panels(width=SIZE[0], height=SIZE[1])
    ax.set(xlim=(0, SIZE[0]), ylim=(0, SIZE[1]), aspect="equal")
    ax.axis("off")
    for box in BOXES.values():
        pad = 0.06
        corner = (box.x - box.width / 2 + pad, box.y - box.height / 2 + pad)
        frame = FancyBboxPatch(corner, box.width - 2 * pad, box.height - 2 * pad, f"round,pad={pad}", facecolor=box.fill,
                               edgecolor="0.35", linewidth=0.9, zorder=2)  # fmt: skip
        ax.add_patch(frame)
        ax.text(box.x, box.y, box.text, ha="center", va="center", fontsize=10, linespacing=1.35, zorder=3)
    for source, target in ARROWS:
        draw_arrow(ax, BOXES[source], BOXES[target])
    draw_arrow(ax, BOXES["look-ahead"], BOXES["MAG step"], color=BLUE, linestyle="--")
    draw_update(ax, BLUE, 2.75, 7.15, BOXES["regular step"], 4.95, "encoding: step 1 moves it")
    draw_update(ax, RED, 7.3, 9.4, BOXES["MAG step"], 0.45, "meta feature augmentation: step 2 moves it")
    return figure


def draw_update(ax: Axes, color: str, left: float, right: float, step: Box, y: float, text: str) -> None:
    """A dashed line from a step's box to what the step moves, from left to right at height y."""
    above = y > step.y
    edge = step.y + step.height / 2 * (1 if above else -1)
    ax.plot([step.x, step.x, left], [edge, y, y], color=color, linestyle="--", linewidth=1.2, zorder=1)
    for x in (left, right):
        ax.plot([x, x], [y, y + (-0.15 if above else 0.15)], color=color, linewidth=1.2)
    ax.text((left + right) / 2, y + (0.08 if above else -0.1), text, color=color, ha="center",
            va="bottom" if above else "top", fontsize=10)  # fmt: skip


def find_edge(box: Box, towards: Box) -> tuple[float, float]:
    """Where the line from the middle of box to the middle of another leaves it."""
    dx, dy = towards.x - box.x, towards.y - box.y
    scale = min(box.width / 2 / abs(dx) if dx else 1.0, box.height / 2 / abs(dy) if dy else 1.0)
    return box.x + scale * dx, box.y + scale * dy


def draw_arrow(ax: Axes, source: Box, target: Box, **look: Any) -> None:
    """An arrow from the edge of one box to that of another. look: as of matplotlib's patches."""
    ends = find_edge(source, target), find_edge(target, source)
    ax.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=9, shrinkA=1, shrinkB=1, zorder=1,
                                 **{"color": "0.3", "linewidth": 0.9, **look}))  # fmt: skip
