"""The meta-step on the toy of `meta_toy`, stage by stage, forward and back, every gradient an arrow."""

from typing import Any

import ipywidgets
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metaug_core.objectives.similarity import similarity
from metaug_workbook.plots.style import BLUE, GREEN, ORANGE, PURPLE, RED, STYLE, dress
from metaug_workbook.teaching.meta_toy import IMAGES, STEPS, Frame, norm, trajectory
from metaug_workbook.widgets.base import DPI, Explorer, choice, slider, switch

INNER = (0.0, 0.25, 0.5, 1.0)  # l of eq. 3: precomputed for each
STAGES = ("features", "look-ahead", "gradient of the MAG", "update")
OUTER = (
    1.3  # radius at which augmented features are drawn: they lie on the unit circle as well, and would hide the others
)
COLOURS, MARKERS = (BLUE, RED, GREEN), ("o", "s")
SAID = (
    "Features z (inner circle) and augmented features z̃ = MAG(z) (outer ring).",
    "Look-ahead: a step of size l along the encoder's gradient would move z to the crosses (θ', eq. 3).",
    "The MAG's gradient at θ' has two parts. Direct: what z̃ itself does to the loss. Mixed: how z̃ steers the encoder's next step.",
    "Update: the encoder steps, and the MAG follows both parts together.",
)


class Circle:
    """z on the unit circle, z~ on a ring outside it, and the arrows of a stage."""

    def __init__(self, ax: Axes):
        turn = np.linspace(0, 2 * np.pi, 200)
        for radius, style in ((1, "-"), (OUTER, ":")):
            ax.plot(radius * np.cos(turn), radius * np.sin(turn), color="0.75", linewidth=1, linestyle=style)
        self.inner, self.outer, self.ahead = [], [], []
        for view, marker in enumerate(MARKERS):
            for colour in COLOURS:
                look: dict[str, Any] = {"marker": marker, "linestyle": "", "color": colour}
                self.inner += ax.plot([], [], markersize=9, **look)
                self.outer += ax.plot([], [], markersize=9, markerfacecolor="none", markeredgewidth=2, **look)
                self.ahead += ax.plot(
                    [], [], linestyle="", marker="x", markersize=8, markeredgewidth=2, color=colour, alpha=0.8
                )
            ax.plot([], [], marker=marker, color="0.3", linestyle="", label=f"$z$ of view {view + 1}")
            hollow = {"markerfacecolor": "none", "markeredgewidth": 2, "linestyle": ""}
            ax.plot([], [], marker=marker, color="0.3", label=r"its $\tilde z$", **hollow)
        at, arrow = np.zeros(2 * IMAGES), {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.011}
        self.direct = ax.quiver(at, at, at, at, color=ORANGE, label="direct part", **arrow)
        self.mixed = ax.quiver(at, at, at, at, color=PURPLE, label="mixed part", **arrow)
        ax.set(xlim=(-1.75, 1.75), ylim=(-1.75, 1.75), xticks=(), yticks=(), aspect="equal")
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.legend(loc="center left", bbox_to_anchor=(0.98, 0.5), fontsize=8.5)
        dress(
            ax,
            "",
            "",
            "",
            f"a colour is an image (n = {IMAGES}), a marker a view;\nboth rings are the unit circle, drawn apart",
        )
        self.title = ax.set_title(" ")
        self.moving = [*self.inner, *self.outer, *self.ahead, self.direct, self.mixed, self.title]

    def update(self, frame: Frame, stage: int, scale: float) -> None:
        z, augmented = (frame.z, frame.augmented) if stage < 3 else (frame.z_next, frame.augmented_next)
        for artists, points in ((self.inner, z), (self.outer, OUTER * augmented), (self.ahead, frame.z_ahead)):
            for artist, (x, y) in zip(artists, points.flatten(0, 1).tolist(), strict=True):
                artist.set_data([x], [y])
        for artist in self.ahead:
            artist.set_visible(stage in (1, 2))
        for arrows, along in ((self.direct, frame.along_direct), (self.mixed, frame.along_mixed)):
            place = OUTER if arrows is self.direct else OUTER + 0.12  # beside each other: both are tangents
            arrows.set_offsets(place * augmented.flatten(0, 1).numpy())
            arrows.set_UVC(*(scale * along.flatten(0, 1).numpy().T))
            arrows.set_visible(stage == 2)


class Course:
    """One or two numbers over all steps, and where we are."""

    def __init__(self, ax: Axes, title: str, label: str, looks: dict[str, tuple[str, str]], top: float | None = None):
        x = np.arange(1, STEPS + 1)
        self.ax, self.top = ax, top
        self.lines = [
            ax.plot(x, 0 * x, color=colour, linestyle=style, marker="o", markersize=4, label=name)[0]
            for name, (colour, style) in looks.items()
        ]
        self.here = ax.axvline(1, color="0.4", linestyle=":", linewidth=1)
        ax.set(xlim=(0.7, STEPS + 0.3), xticks=x)
        if len(looks) > 1:
            ax.legend(fontsize=8.5, loc="upper right")
        dress(ax, title, "step", label)
        self.moving = [*self.lines, self.here]

    def update(self, step_number: int, *values: list[float]) -> None:
        for line, numbers in zip(self.lines, values, strict=True):
            line.set_ydata(numbers)
        self.here.set_xdata([step_number] * 2)


class MetaPlot:
    """The circle at one stage, and beside it the two parts of the MAG's gradient and how close z~ has come to z."""

    def __init__(self, seed: int):
        self.seed = seed
        with rc_context(STYLE):
            self.figure = Figure(figsize=(8.8, 4.2), dpi=DPI, layout="constrained")
            grid = self.figure.add_gridspec(2, 2, width_ratios=(1.5, 1))
            self.circle = Circle(self.figure.add_subplot(grid[:, 0]))
            looks = {"direct": (ORANGE, "-"), "mixed": (PURPLE, "--")}
            above, below = (self.figure.add_subplot(grid[row, 1]) for row in (0, 1))
            self.parts = Course(above, "Gradient of the MAG", "norm", looks)
            self.copy = Course(
                below, r"Does $\tilde z$ copy $z$?", r"$d(z, \tilde z)$; 1 is a copy", {"": ("0.3", "-")}
            )
            above.set_ylim(0, 0.65)
            below.set_ylim(0.85, 1.005)
        self.moving = [*self.circle.moving, *self.parts.moving, *self.copy.moving]

    def update(self, stage: int, inner_lr: float, margin: bool) -> str:
        frames = trajectory(inner_lr, float(margin), self.seed)
        number, stage = divmod(stage, len(STAGES))
        frame, longest = (
            frames[number],
            max(float(a.norm(dim=-1).max()) for f in frames for a in (f.along_direct, f.along_mixed)),
        )
        self.circle.update(frame, stage, 0.8 / longest)
        self.circle.title.set_text(f"Step {number + 1} of {STEPS}: {STAGES[stage]}")
        norms = [[norm(part) for part in (f.direct, f.mixed)] for f in frames]
        self.parts.update(number + 1, *map(list, zip(*norms, strict=True)))
        self.copy.update(number + 1, [float(similarity((f.z * f.augmented).sum(-1)).mean()) for f in frames])
        numbers = (
            f" Norms: direct {norms[number][0]:.3f}, mixed {norms[number][1]:.3f}; loss at θ' {frame.loss_ahead:.3f}."
        )
        return f"{SAID[stage]}{numbers} Arrows are drawn {0.8 / longest:.1f} times as long as they are."


def meta_step_figure(stage: int = 2, inner_lr: float = 1.0, margin: bool = True, seed: int = 0) -> Figure:
    """The figure of `meta_step_stepper` without controls."""
    plot = MetaPlot(seed)
    plot.update(stage, inner_lr, margin)
    return plot.figure


def meta_step_stepper(stage: int = 2, inner_lr: float = 1.0, margin: bool = True, seed: int = 0) -> Explorer:
    """Algorithm 1 on a circle, stage by stage, forward and back: four stages a step, counted from 0 to 4 STEPS - 1.

    inner_lr: l of the look-ahead (eq. 3); at 0 the mixed part vanishes. margin: with R_sigma (alpha 1, Large) or without it.
    """
    last = len(STAGES) * STEPS - 1
    controls: dict[str, Any] = {
        "stage": slider("stage (four a step)", stage, 0, last, 1, "features, look-ahead, gradient of the MAG, update"),
        "inner_lr": choice(
            "l, look-ahead step (eq. 3)", inner_lr, INNER, "in units of the gradient; 0: no second derivative"
        ),
        "margin": switch("R_σ, the margins (eq. 5)", margin, "off: nothing keeps z̃ from copying z"),
    }
    for _, rate in controls["inner_lr"].options:
        for alpha in (0.0, 1.0):
            trajectory(rate, alpha, seed)  # kept, so that a moved slider finds it
    buttons = [ipywidgets.Button(description=text, tooltip=text) for text in ("◀ Back", "Forward ▶")]
    for button, by in zip(buttons, (-1, 1), strict=True):
        button.on_click(lambda _, by=by: move(controls["stage"], by))
    title = "Meta-step stepper: what the MAG's gradient is made of"
    return Explorer(MetaPlot(seed), controls, title, [ipywidgets.HBox(buttons)])


def move(control: Any, by: int) -> None:
    """A step forward or back, as far as the slider goes."""
    control.value = min(max(control.value + by, control.min), control.max)
