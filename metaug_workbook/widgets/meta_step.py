"""The meta-step on the circle of `toys`, stage by stage, forward and back, every gradient an arrow."""

import math
from collections.abc import Sequence
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from metaug_core.meta.forward_ad import Params
from metaug_core.objectives.similarity import similarity
from metaug_workbook.plots.style import BLUE, GREEN, ORANGE, PURPLE, RED, hide_axes, label
from metaug_workbook.teaching.toys import IMAGES, STEPS, Frame, run_algorithm
from metaug_workbook.widgets.base import Explorer, Plot, choice, slider, switch, without_controls

INNER = (0.0, 0.25, 0.5, 1.0)  # l of eq. 3: precomputed for each
OUTER = 1.3  # radius at which z~ is drawn: it lies on the unit circle as well, and would hide z
COLORS, MARKERS = (BLUE, RED, GREEN), ("o", "s")
PLAY_MS = 1500  # of a stage, when they are played
STAGES = {
    "features": "Features z (inner circle) and augmented features z̃ = MAG(z) (outer ring).",
    "look-ahead": "Look-ahead: a step of size l along the encoder's gradient would move z to the crosses (θ', eq. 3).",
    "gradient of the MAG": "The MAG's gradient at θ' has two parts. Direct: what z̃ itself does to the loss. Mixed: how z̃ steers "
    "the encoder's next step.",
    "update": "Update: the encoder steps, and the MAG follows both parts together.",
}


def measure_norm(part: Params) -> float:
    """The norm of a gradient with respect to omega."""
    return math.sqrt(sum(float(p.square().sum()) for p in part.values()))


def find_longest(frames: Sequence[Frame]) -> float:
    """The length of the longest arrow in any frame."""
    return max(float(a.norm(dim=-1).max()) for frame in frames for a in (frame.along_direct, frame.along_mixed))


class Circle:
    """z on the unit circle, z~ on a ring outside it, and the arrows of a stage."""

    def __init__(self, ax: Axes):
        turn = np.linspace(0, 2 * np.pi, 200)
        for radius, style in ((1, "-"), (OUTER, ":")):
            ax.plot(radius * np.cos(turn), radius * np.sin(turn), color="0.75", linewidth=1, linestyle=style)
        self.inner, self.outer, self.ahead = [], [], []
        hollow: dict[str, Any] = {"linestyle": "", "markerfacecolor": "none", "markeredgewidth": 2}
        cross: dict[str, Any] = {"linestyle": "", "marker": "x", "markersize": 8, "markeredgewidth": 2, "alpha": 0.8}
        for view, marker in enumerate(MARKERS, start=1):
            for color in COLORS:
                self.inner += ax.plot([], [], linestyle="", marker=marker, markersize=9, color=color)
                self.outer += ax.plot([], [], marker=marker, markersize=9, color=color, **hollow)
                self.ahead += ax.plot([], [], color=color, **cross)
            ax.plot([], [], linestyle="", marker=marker, color="0.3", label=f"$z$ of view {view}")
            ax.plot([], [], marker=marker, color="0.3", label=r"its $\tilde z$", **hollow)
        ax.plot([], [], color="0.3", label=r"$z$ at $\theta'$", **cross)
        at, arrow = np.zeros(2 * IMAGES), {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.011}
        self.direct = ax.quiver(at, at, at, at, color=ORANGE, label="direct part", **arrow)
        self.mixed = ax.quiver(at, at, at, at, color=PURPLE, label="mixed part", **arrow)
        hide_axes(ax)
        ax.set(xlim=(-1.75, 1.75), ylim=(-1.75, 1.75), aspect="equal")
        ax.spines[:].set_visible(False)
        ax.legend(loc="center left", bbox_to_anchor=(0.98, 0.5), fontsize=8.5)
        rings = "both rings are the unit circle, drawn apart"
        label(ax, "", caption=f"a colour is an image (n = {IMAGES}), a marker a view;\n{rings}")
        self.title = ax.set_title(" ")
        self.moving = [*self.inner, *self.outer, *self.ahead, self.direct, self.mixed, self.title]

    def update(self, frame: Frame, stage: int, scale: float) -> None:
        """Show a stage of a step (0 to 3); scale: of the arrows."""
        z, augmented = (frame.z, frame.augmented) if stage < 3 else (frame.z_next, frame.augmented_next)
        for artists, points in ((self.inner, z), (self.outer, OUTER * augmented), (self.ahead, frame.z_ahead)):
            for artist, (x, y) in zip(artists, points.flatten(0, 1).tolist(), strict=True):
                artist.set_data([x], [y])
        for artist in self.ahead:
            artist.set_visible(stage in (1, 2))
        # The two arrows of a feature stand beside each other: both are tangents.
        for arrows, along, place in (
            (self.direct, frame.along_direct, OUTER),
            (self.mixed, frame.along_mixed, OUTER + 0.12),
        ):
            arrows.set_offsets(place * augmented.flatten(0, 1).numpy())
            arrows.set_UVC(*(scale * along.flatten(0, 1).numpy().T))
            arrows.set_visible(stage == 2)


class Course:
    """One or two numbers over all steps, and where we are. looks: color and line style by name."""

    def __init__(self, ax: Axes, title: str, y: str, limits: tuple[float, float], looks: dict[str, tuple[str, str]]):
        x = np.arange(1, STEPS + 1)
        self.lines = [
            ax.plot(x, 0 * x, color=color, linestyle=style, marker="o", markersize=4, label=name)[0]
            for name, (color, style) in looks.items()
        ]
        self.here = ax.axvline(1, color="0.4", linestyle=":", linewidth=1, label="this step")
        ax.set(xlim=(0.7, STEPS + 0.3), ylim=limits, xticks=x)
        if len(looks) > 1:
            ax.legend(fontsize=8.5, loc="upper right")
        label(ax, title, "step", y)
        self.moving = [*self.lines, self.here]

    def update(self, step_number: int, *values: Sequence[float]) -> None:
        for line, numbers in zip(self.lines, values, strict=True):
            line.set_ydata(numbers)
        self.here.set_xdata([step_number] * 2)


class MetaPlot(Plot):
    """The circle at one stage, and beside it the two parts of the MAG's gradient and how close z~ has come to z."""

    size = (8.8, 4.2)

    def __init__(self, seed: int):
        self.seed = seed
        super().__init__()

    def draw(self) -> Sequence[Artist]:
        grid = self.figure.add_gridspec(2, 2, width_ratios=(1.5, 1))
        self.circle = Circle(self.figure.add_subplot(grid[:, 0]))
        above, below = (self.figure.add_subplot(grid[row, 1]) for row in (0, 1))
        looks = {"direct": (ORANGE, "-"), "mixed": (PURPLE, "--")}
        self.parts = Course(above, "Gradient of the MAG", "norm", (0, 0.65), looks)
        y = r"$d(z, \tilde z)$; 1 is a copy"
        self.copy = Course(below, r"Does $\tilde z$ copy $z$?", y, (0.85, 1.005), {"": ("0.3", "-")})
        return [*self.circle.moving, *self.parts.moving, *self.copy.moving]

    def update(self, stage: int, inner_lr: float, margin: bool) -> str:
        frames = run_algorithm(inner_lr, float(margin), self.seed)
        number, stage = divmod(stage, len(STAGES))
        name, sentence = list(STAGES.items())[stage]
        scale = 0.8 / find_longest(frames)
        direct, mixed = ([measure_norm(part) for part in parts] for parts in
                         zip(*((frame.now.direct, frame.now.mixed) for frame in frames), strict=True))  # fmt: skip
        self.circle.update(frames[number], stage, scale)
        self.circle.title.set_text(f"Step {number + 1} of {STEPS}: {name}")
        self.parts.update(number + 1, direct, mixed)
        self.copy.update(number + 1, [float(similarity((f.z * f.augmented).sum(-1)).mean()) for f in frames])
        return (
            f"{sentence} Norms: direct {direct[number]:.3f}, mixed {mixed[number]:.3f}; loss at θ' "
            f"{frames[number].now.loss_ahead:.3f}. Arrows are drawn {scale:.1f} times as long as they are."
        )


def meta_step_stepper(stage: int = 2, inner_lr: float = 1.0, margin: bool = True, seed: int = 0) -> Explorer:
    """Algorithm 1 on a circle, stage by stage, forward and back: four stages a step, counted from 0 to 4 STEPS - 1.

    inner_lr: l of the look-ahead (eq. 3); at 0 the mixed part vanishes. margin: with R_sigma (alpha 1, Large) or without it.
    """
    last, tip = len(STAGES) * STEPS - 1, "in units of the gradient; 0: no second derivative"
    controls = {
        "stage": slider("stage (4 per step)", stage, 0, last, 1, "features, look-ahead, gradient of the MAG, update"),
        "inner_lr": choice("l, look-ahead step (eq. 3)", inner_lr, INNER, tip),
        "margin": switch("R_σ, the margins (eq. 5)", margin, "off: nothing keeps z̃ from copying z"),
    }
    for _, rate in controls["inner_lr"].options:
        for alpha in (0.0, 1.0):
            run_algorithm(rate, alpha, seed)  # kept, so that a moved slider has it at once
    play = ipywidgets.Play(stage, min=0, max=last, interval=PLAY_MS, tooltip="a stage every second and a half")
    ipywidgets.jslink((play, "value"), (controls["stage"], "value"))
    buttons = [ipywidgets.Button(description=text, tooltip=text) for text in ("◀ Back", "Forward ▶")]
    for button, by in zip(buttons, (-1, 1), strict=True):
        button.on_click(lambda _, by=by: move(controls["stage"], by))
    title = "Meta-step stepper: what the MAG's gradient is made of"
    return Explorer(MetaPlot(seed), controls, title, [ipywidgets.HBox([play, *buttons])])


def move(control: Any, by: int) -> None:
    """A step forward or back, as far as the slider goes."""
    control.value = min(max(control.value + by, control.min), control.max)


meta_step_figure = without_controls(meta_step_stepper)
