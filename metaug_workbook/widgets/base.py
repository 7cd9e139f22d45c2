"""Controls over one figure that is drawn once and then changed in place: the frame of every explorer.

Live, the controls stand above the picture and a sentence with its numbers below it. Where no browser is listening (papermill, a
saved notebook, a code-hosting site) a plain PNG of the same figure is left, since that is what is displayed first; a style rule
hides it as long as the live picture stands below.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, Protocol

import ipywidgets
import numpy as np
from IPython.display import DisplayHandle, display
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

ELSEWHERE = "Controls: run this cell in JupyterLab."
LIVE = "metaug-live"  # class of a box that is alive; the output just above it is its static figure
HIDE = (
    f"<style>.jp-OutputArea-child:has(+ .jp-OutputArea-child .{LIVE}) {{ display: none; }} "
    f".{LIVE} .widget-readout {{ min-width: fit-content; flex-shrink: 0; }}</style>"  # what a menu says is never cut off
)
DPI = 100


class Plot(Protocol):
    """A figure and the numbers in it. `figure` carries all that stays, `moving` the artists that `update` changes."""

    @property
    def figure(self) -> Figure: ...
    @property
    def moving(self) -> Sequence[Artist]: ...
    @property
    def update(self) -> Callable[..., str]:
        """Puts the numbers for values given by name into the artists; returns a sentence that says the most telling ones."""
        ...


class Picture:
    """A figure as PNG. What does not move is drawn once and kept, so a change costs the moving artists and the encoding.

    Not pyplot's: it would show the figure a second time, at the end of the cell.
    """

    def __init__(self, figure: Figure, moving: Sequence[Artist]):
        self.canvas, self.moving, self.background = FigureCanvasAgg(figure), moving, None
        for artist in moving:
            artist.set_animated(True)  # left out of the background, not of a saved file

    def png(self, effort: int = 1) -> bytes:
        """effort: of the compression, 1 (fast) to 9 (small)."""
        if self.background is None:
            self.canvas.draw()
            self.background = self.canvas.copy_from_bbox(self.canvas.figure.bbox)
        self.canvas.restore_region(self.background)
        for artist in self.moving:
            self.canvas.figure.draw_artist(artist)
        return encoded(self.canvas, effort)


def encoded(canvas: FigureCanvasAgg, effort: int = 1) -> bytes:
    """What is drawn on a canvas, as PNG of 256 colours: a third of the bytes, and encoded in half the time of all colours."""
    with io.BytesIO() as buffer:
        drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        few = drawn.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(buffer, "png", compress_level=effort)
        return buffer.getvalue()


class Explorer:
    """A plot whose values are set by controls. `controls` by the name of their value, `extras` beside them (buttons).

    `set(**values)` moves controls from code; `values`, `figure`, `text` and `png` say what is shown.
    """

    def __init__(self, plot: Plot, controls: Mapping[str, Any], title: str, extras: Sequence[ipywidgets.Widget] = ()):
        self.plot, self.controls = plot, dict(controls)
        self.picture = Picture(plot.figure, plot.moving)
        self.image = image()
        self.sentence = ipywidgets.HTML()
        self.redraw()
        self.static = self.picture.png(effort=9)
        for control in self.controls.values():
            control.observe(self.redraw, "value")
        self.box = live_box(title, [*self.controls.values(), *extras], [self.image, self.sentence])

    @property
    def values(self) -> dict[str, Any]:
        return {name: control.value for name, control in self.controls.items()}

    @property
    def figure(self) -> Figure:
        return self.plot.figure

    def set(self, **values: Any) -> None:
        """Move controls, as a hand would. KeyError for a name that is none."""
        for name, value in values.items():
            self.controls[name].value = value

    def redraw(self, change: Any = None) -> None:
        del change
        self.text = self.plot.update(**self.values)
        self.sentence.value = said(self.text)
        self.image.value = self.png = self.picture.png()

    def _ipython_display_(self) -> None:
        show(self.static, self.text, self.box)


def image() -> ipywidgets.Image:
    """What a picture is shown in: never wider than the notebook, its margins of 2 px included."""
    return ipywidgets.Image(format="png", layout={"max_width": "calc(100% - 4px)", "align_self": "flex-start"})


def said(sentence: str) -> str:
    """A sentence as the HTML below a picture, spoken by a screen reader when it changes."""
    return f'<div aria-live="polite" style="line-height: 1.5">{escape(sentence)}</div>'


def live_box(title: str, controls: Sequence[Any], below: Sequence[Any]) -> ipywidgets.VBox:
    """Title, controls in as many columns as fit, and what stands below them; never wider than the notebook."""
    columns = {"grid_template_columns": "repeat(auto-fit, minmax(320px, 1fr))", "grid_gap": "2px 18px"}
    grid = ipywidgets.GridBox(list(controls), layout={"width": "auto", **columns})
    heading = ipywidgets.HTML(f"{HIDE}<b>{escape(title)}</b>")
    box = ipywidgets.VBox([heading, grid, *below], layout={"width": "100%", "max_width": "900px", "overflow": "hidden"})
    box.add_class(LIVE)
    return box


def show(static: bytes, text: str, box: ipywidgets.Widget) -> DisplayHandle | None:
    """Display a static picture and below it the live box that hides it; the handle changes the static one."""
    handle = display(bundle(static, text), raw=True, display_id=True)
    data: Any = box._repr_mimebundle_() or {}
    display({**data, "text/plain": ELSEWHERE}, raw=True)
    return handle


def bundle(png: bytes, text: str) -> dict[str, str]:
    """A picture as the data of a notebook's output, with a sentence for those who cannot see it."""
    return {"image/png": base64.b64encode(png).decode(), "text/plain": text}


# --- controls: every one has a name with its unit, and arrow keys move it
def _look(label: str, tip: str) -> dict[str, Any]:
    return {
        "description": label,
        "tooltip": tip or label,
        "style": {"description_width": "170px"},
        "layout": {"width": "auto", "min_width": "0"},  # 100 % and its margins would be too wide
    }


def slider(label: str, value: float, low: float, high: float, step: float, tip: str = "") -> Any:
    """A number on an even scale; whole numbers where the step is one."""
    whole = all(isinstance(number, int) for number in (value, low, high, step))
    kind: Callable[..., Any] = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
    return kind(value, min=low, max=high, step=step, **_look(label, tip))


def choice(label: str, value: Any, options: Sequence[Any], tip: str = "") -> Any:
    """One of a few numbers on a slider, such as powers of two; a value that is not among them is added in its order."""
    known = sorted({*options, value})
    return ipywidgets.SelectionSlider(options=[(f"{x:g}", x) for x in known], value=value, **_look(label, tip))


def switch(label: str, value: bool, tip: str = "") -> Any:
    """On or off, by the space key."""
    return ipywidgets.Checkbox(value, **(_look(label, tip) | {"indent": True}))


def menu(label: str, value: Any, options: Sequence[Any], tip: str = "") -> Any:
    """One of several names, on a slider too: of a focused drop-down list JupyterLab takes the arrow keys to move between cells.
    options are names, or pairs of what is shown and what is meant."""
    return ipywidgets.SelectionSlider(options=list(options), value=value, **_look(label, tip))
