"""Sphinx extension of the site: formulas as MathML, notebooks without live controls, and the table of contents.

Browsers draw MathML themselves, so that a formula needs no script and no network.
"""

from html import escape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nbformat
from docutils import nodes
from latex2mathml.converter import convert
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
CONTENTS = Path(__file__).with_name("contents.md")
WIDGET = "application/vnd.jupyter.widget-view+json"
PICTURES = {"image/png", "image/svg+xml", "text/html"}
CONTROL = "<p class='control'>JupyterLab shows a control here. Its figure is above.</p>"
MATHML = "{http://www.w3.org/1998/Math/MathML}"
OPERANDS = {"mfrac": 2, "msub": 2, "msup": 2, "munder": 2, "mover": 2, "mroot": 2, "msubsup": 3, "munderover": 3}


# --- formulas
def to_mathml(latex: str, display: str) -> str:
    """A formula without its dollars as a <math> element. display: "inline" or "block".

    Raises ValueError for LaTeX that latex2mathml refuses, does not know, or reads only in part.
    """
    try:
        mathml = convert(latex, display=display)
    except Exception as error:  # the faults of latex2mathml have no common base
        raise ValueError(type(error).__name__) from error
    for element in ElementTree.fromstring(mathml).iter():
        tag = element.tag.removeprefix(MATHML)
        if "\\" in (element.text or "") or len(element) != OPERANDS.get(tag, len(element)):
            raise ValueError(f"{element.text or tag} is not understood")
    return mathml


def render(node: nodes.Element, display: str) -> str:
    """The formula of a node as HTML. One that cannot be converted is a warning, with its place, and shown as LaTeX."""
    latex = node.astext()
    try:
        return to_mathml(latex, display)
    except ValueError as error:
        LOGGER.warning("formula %s: %s", latex, error, location=node, type="workbook", subtype="formula")
        return f"<code>{escape(latex)}</code>"


def visit_inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(render(node, "inline"))
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<span class="formula">{render(node, "block")}</span>\n')
    raise nodes.SkipNode


# --- notebooks
def read_notebook(text: str) -> NotebookNode:
    """The notebook without live controls. Where a control has no picture of its own, a sentence says what JupyterLab shows."""
    notebook = nbformat.reads(text, as_version=4)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if data.pop(WIDGET, None) is not None and not PICTURES & set(data):
                data.clear()
                data["text/html"] = CONTROL
    return notebook


# --- contents
def add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """Append the table of contents to the front page, whose file stays plain Markdown."""
    if docname == app.config.root_doc:
        app.env.note_dependency(str(CONTENTS))
        source[0] += "\n" + CONTENTS.read_text(encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.connect("source-read", add_contents)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
