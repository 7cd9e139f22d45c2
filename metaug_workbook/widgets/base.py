"""Controls over one figure that is drawn once and then changed in place: the frame of every explorer.

Live, the controls stand above the picture and a sentence with its numbers below it. Where no browser is listening (papermill, a
saved notebook, a code-hosting site) a plain PNG of the same figure is left, since that is what is displayed first; a style rule
hides it as long as the live picture stands below.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from html import escape
from types import MappingProxyType
from typing import Any, ParamSpec

import ipywidgets
import numpy as np
from IPython.display import DisplayHandle, display
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from metaug_workbook.plots.style import StyledFigure, replace_surrogates, use_style

ELSEWHERE = "Controls: run this cell in JupyterLab."
WHOLE_ROW = "auto / 1 / auto / -1"  # not grid_column, which ipywidgets takes away again when there is no grid_area
LIVE = "metaug-live"  # class of a box that is alive; the output just above it is its static figure
HIDE = (
    f"<style>.jp-OutputArea-child:has(+ .jp-OutputArea-child .{LIVE}) {{ display: none; }} "
    f".{LIVE} .widget-readout {{ min-width: fit-content; flex-shrink: 0; }}</style>"  # what a menu says is never cut off
)
DPI = 200  # of a live picture, which is shown at half its size: sharp on a screen of double resolution
P = ParamSpec("P")


@use_style()
def make_figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    """An empty figure of width by height inches. Not pyplot's: it would show a second time, at the end of the cell. Draw into it
    within `use_style`."""
    return StyledFigure(figsize=(width, height), dpi=100, layout=layout)


class Plot:
    """A figure that is drawn once and then changed in place.

    A plot of its own says its size in inches and has two methods: `draw` draws all that stays and returns the artists that move;
    `update`, given the values of the controls by name, changes those and returns a sentence with the most telling numbers.
    """

    size = (8.8, 4.3)
    layout: str | None = "constrained"
    update: Callable[..., str]

    def __init__(self) -> None:
        with use_style():
            self.figure = make_figure(*self.size, layout=self.layout)
            self.moving = self.draw()

    def draw(self) -> Sequence[Artist]:
        raise NotImplementedError


class LiveFigure:
    """A figure that is seen and changed in a notebook: `figure`, the sentence `text` beside it, and `png`, as it was drawn last."""

    def __init__(self, figure: Figure):
        figure.set_dpi(DPI)
        self.canvas = FigureCanvasAgg(figure)
        # As wide as the cell, the picture's margins of 2 px included, as long as a pixel of the picture is none of the screen's.
        widest = f"{figure.get_figwidth() * 1.4 * 100:.0f}px"
        layout = {"width": "calc(100% - 4px)", "max_width": widest, "align_self": "flex-start"}
        self.image, self.sentence = ipywidgets.Image(format="png", layout=layout), ipywidgets.HTML()
        self.text = ""

    @property
    def figure(self) -> Figure:
        return self.canvas.figure

    @property
    def metadata(self) -> dict[str, Any]:
        """Of a static picture: how many pixels wide a notebook shows it."""
        return {"image/png": {"width": round(100 * self.figure.get_figwidth())}}

    def arrange(self, title: str, controls: Sequence[Any], below: Sequence[Any]) -> None:
        """Make the live box: title, controls in as many columns as fit, and what stands below them; never wider than the
        notebook."""
        columns = {"grid_template_columns": "repeat(auto-fit, minmax(320px, 1fr))", "grid_gap": "2px 18px"}
        grid = ipywidgets.GridBox(list(controls), layout={"width": "auto", **columns})
        heading = ipywidgets.HTML(f"{HIDE}<b>{write_html(title)}</b>")
        layout = {"width": "100%", "max_width": "1240px", "overflow": "hidden"}
        self.box = ipywidgets.VBox([heading, grid, *below], layout=layout)
        self.box.add_class(LIVE)

    def say(self, text: str) -> None:
        """Show a sentence, which a screen reader speaks when it changes."""
        self.text = text
        self.sentence.value = f'<div aria-live="polite" style="line-height: 1.5">{write_html(text)}</div>'

    def refresh(self) -> None:
        """Show what is drawn on the canvas."""
        self.image.value = self.png = encode(self.canvas)

    def show(self) -> DisplayHandle | None:
        """Display a static picture and below it the live box that hides it; the handle changes the static one."""
        handle = display(
            bundle(encode(self.canvas, effort=9), self.text), raw=True, metadata=self.metadata, display_id=True
        )
        data: Any = self.box._repr_mimebundle_() or {}
        display({**data, "text/plain": ELSEWHERE}, raw=True)
        return handle

    def _ipython_display_(self) -> None:
        self.show()


class Explorer(LiveFigure):
    """A plot whose values are set by controls. `controls` by the name of their value, `extras` beside them (buttons).

    presets: values of the controls by the name of a button; another one sets all as they were in the beginning. `set(**values)`
    moves controls from code; `values`, `figure`, `text` and `png` say what is seen. What does not move is drawn
    once and kept, so a change costs the moving artists and the encoding.
    """

    @use_style()
    def __init__(
        self, plot: Plot, controls: Mapping[str, Any], title: str, extras: Sequence[ipywidgets.Widget] = (),
        presets: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    ):  # fmt: skip
        super().__init__(plot.figure)
        self.plot, self.controls = plot, dict(controls)
        self.held: list[Any] | None = None  # changes that wait for one drawing
        for artist in plot.moving:
            artist.set_animated(True)  # left out of the background, not of a saved file
        plot.update(**self.values)
        self.canvas.draw()
        plot.figure.set_layout_engine("none")  # a second drawing would move the axes a little
        self.background = self.canvas.copy_from_bbox(plot.figure.bbox)
        self.redraw()
        for control in self.controls.values():
            control.observe(self.redraw, "value")
        self.presets = {name: ipywidgets.Button(description=name) for name in (*presets, "Reset")}
        for (name, button), values in zip(self.presets.items(), (*presets.values(), self.values), strict=True):
            button.tooltip = f"{name}: " + ", ".join(f"{key} {value}" for key, value in values.items())
            button.on_click(lambda _, values=values: self.set(**values))
        row = ipywidgets.HBox(list(self.presets.values()), layout={"flex_flow": "row wrap", "grid_area": WHOLE_ROW})
        self.arrange(title, [*self.controls.values(), *extras, row], [self.image, self.sentence])

    @property
    def values(self) -> dict[str, Any]:
        return {name: control.value for name, control in self.controls.items()}

    def set(self, **values: Any) -> None:
        """Move controls, as a hand would, and draw once. KeyError for an unknown name."""
        self.held = held = []
        try:
            for name, value in values.items():
                self.controls[name].value = value
        finally:
            self.held = None
        if held:
            self.redraw()

    @use_style()
    def redraw(self, change: Any = None) -> None:
        """Draw the figure for the values of the controls. change: of a control, None where there is none."""
        if self.held is not None:
            self.held.append(change)
            return
        self.say(self.plot.update(**self.values))
        self.canvas.restore_region(self.background)
        for artist in self.plot.moving:
            self.figure.draw_artist(artist)
        self.refresh()


def without_controls(explorer: Callable[P, Explorer]) -> Callable[P, Figure]:
    """The plain twin of an explorer: a function of the same arguments that returns the figure alone."""

    @wraps(explorer)
    def draw(*args: P.args, **kwargs: P.kwargs) -> Figure:
        figure = explorer(*args, **kwargs).figure
        figure.set_dpi(100)
        return figure

    draw.__doc__ = f"The figure of `{explorer.__name__}`, for the same arguments."
    return draw


# --- what is displayed
def write_html(text: str) -> str:
    """A text as HTML that shows it as it stands: it holds no tag and no formula."""
    return f'<span class="tex2jax_ignore mathjax_ignore">{escape(replace_surrogates(text))}</span>'


def encode(canvas: FigureCanvasAgg, effort: int = 1) -> bytes:
    """What is drawn on a canvas, as PNG of 256 colors: a third of the bytes, and encoded in half the time of all colors.

    effort: of the compression, 1 (fast) to 9 (small)."""
    with io.BytesIO() as buffer:
        pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        few = pixels.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(buffer, "png", compress_level=effort)
        return buffer.getvalue()


def bundle(png: bytes, text: str) -> dict[str, str]:
    """A picture as the data of a notebook's output, with a sentence for those who cannot see it."""
    return {"image/png": base64.b64encode(png).decode(), "text/plain": replace_surrogates(text)}


# --- controls: every one has a name with its unit, and arrow keys move it
def _describe(label: str, tip: str) -> dict[str, Any]:
    return {
        "description": label,
        "tooltip": tip or label,
        "style": {"description_width": "170px"},
        "layout": {"width": "auto", "min_width": "0"},  # 100 % and its margins would be too wide
    }


def slider(label: str, value: float, low: float, high: float, step: float, tip: str = "") -> Any:
    """A number on an even scale; whole numbers where low, high and step are."""
    whole = all(isinstance(number, int) for number in (low, high, step))
    kind: Callable[..., Any] = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
    return kind(value, min=low, max=high, step=step, **_describe(label, tip))


def choice(label: str, value: Any, options: Sequence[Any], tip: str = "") -> Any:
    """One of a few numbers on a slider, such as powers of two; a value that is not among them is added in its order."""
    pairs = [(f"{number:g}", number) for number in sorted({*options, value})]
    return ipywidgets.SelectionSlider(options=pairs, value=value, **_describe(label, tip))


def switch(label: str, value: bool, tip: str = "") -> Any:
    """On or off, by the space key."""
    return ipywidgets.Checkbox(value, **(_describe(label, tip) | {"indent": True}))


def menu(label: str, value: Any, options: Sequence[Any], tip: str = "") -> Any:
    """One of several names in a drop-down list. options are names, or pairs of what is shown and what is meant.

    By keyboard: Alt and the down arrow open the list; JupyterLab takes the arrows alone to move between cells."""
    return ipywidgets.Dropdown(options=list(options), value=value, **_describe(label, tip))
