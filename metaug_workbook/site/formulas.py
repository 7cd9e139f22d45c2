"""Formulas as pictures: LaTeX to SVG by matplotlib, so that a page shows them without a script or a network."""

import io
import re
from html import escape

from matplotlib import rc_context
from matplotlib.mathtext import math_to_image

POINTS = 12.0  # size at which a formula is drawn
SCALE = 1.12 / POINTS  # to em: the font of formulas has smaller letters than that of the text
SIZES = re.compile(r"\\[bB]igg?[lr]?(?![a-zA-Z])")  # brackets of a given size, which matplotlib has no word for


def drawn(latex: str) -> tuple[str, float, float] | None:
    """(SVG text, height, depth) of a formula without its dollars, lengths in em; None where matplotlib cannot read it."""
    latex = SIZES.sub("", latex)
    with rc_context({"mathtext.fontset": "cm", "font.size": POINTS, "svg.fonttype": "path", "svg.hashsalt": "metaug"}), \
            io.BytesIO() as buffer:  # fmt: skip
        try:
            depth = math_to_image(f"${' '.join(latex.split())}$", buffer, dpi=72, format="svg")
        except ValueError:
            return None
        text = buffer.getvalue().decode()
    svg = text[text.index("<svg") :]
    height = float(svg.partition('height="')[2].partition("pt")[0])
    return svg, height * SCALE, depth * SCALE


def tag(latex: str, source: str, height: float, depth: float, display: bool) -> str:
    """The <img> of a drawn formula whose file is `source`, on the line's base; a formula of its own stands in the middle."""
    look = f"height: {height:.3f}em; vertical-align: {-depth:.3f}em"
    image = f'<img class="formula" src="{escape(source)}" alt="{escape(" ".join(latex.split()))}" style="{look}">'
    return f'<span class="display">{image}</span>' if display else image
