"""Sphinx extension of the site: formulas as MathML, explorers in place of a notebook's controls, and the front page.

Browsers draw MathML themselves, so that a formula needs no script and no network. An explorer is a script in _static/explorers.
"""

import ast
import base64
import io
import json
import re
from html import escape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nbformat
from docutils import nodes
from latex2mathml.converter import convert
from nbformat import NotebookNode
from PIL import Image
from sphinx.application import Sphinx
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
ROOT = Path(__file__).parents[1]
CONTENTS = Path(__file__).with_name("contents.md")
REFERENCES = Path(__file__).with_name("references.md")
WIDGET = "application/vnd.jupyter.widget-view+json"
PICTURES = {"image/png", "image/svg+xml", "text/html"}
CONTROL = "<p class='control'>JupyterLab shows a control here. Its figure is above.</p>"
EXPLORERS = {
    "oucl_explorer": "oucl",
    "margin_explorer": "margins",
    "meta_step_stepper": "meta-step",
}  # widget -> its script
VERDICTS = {  # on a card, after a sentence that says what the paper claims
    "holds": "**Here it holds.**", "does not hold": "**Here it does not hold.**",
    "open": "**Here it is open.**", "no runs yet": "*Here there are no runs yet.*",
}  # fmt: skip
THUMBNAIL = (640, 360)  # pixels, twice what a card shows
BEST_FIGURES = {
    "02_evaluate": "first-run"
}  # of a notebook that draws none of figures/ itself; otherwise its largest picture
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
    """The notebook with explorers in place of live controls. Where a control has neither an explorer nor a picture of its own, a
    sentence says what JupyterLab shows."""
    notebook = nbformat.reads(text, as_version=4)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if data.pop(WIDGET, None) is not None and not PICTURES & set(data):
                data.clear()
                data["text/html"] = write_explorer(cell.source) or CONTROL
    return notebook


def write_explorer(source: str) -> str | None:
    """The place of the explorer that a cell ends with, such as `widgets.oucl_explorer(beta=16)`, as HTML; None without one."""
    match ast.parse(source).body:
        case [*_, ast.Expr(ast.Call(ast.Attribute(attr=name), [], keywords))] if name in EXPLORERS:
            settings = json.dumps({keyword.arg: ast.literal_eval(keyword.value) for keyword in keywords})
            return f"<div class='explorer' data-explorer='{EXPLORERS[name]}' data-settings='{escape(settings)}'></div>"
    return None


def add_scripts(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Load the explorers where a page has one, in this order."""
    if "class='explorer'" in context.get("body", ""):
        for name in ("explorer", "data", *EXPLORERS.values()):
            app.add_js_file(f"explorers/{name}.js", loading_method="defer")


# --- the front page
def add_cards(app: Sphinx, docname: str, source: list[str]) -> None:
    """Make the front page of README.md, which stays plain Markdown: its first screen, a card for each notebook in place of the
    table of them, its other sections, the citation, and the table of contents."""
    if docname != app.config.root_doc:
        return
    notebooks = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    for path in (CONTENTS, REFERENCES, *notebooks):
        app.env.note_dependency(str(path))
    first, *sections = re.split(r"^(?=## )", source[0], flags=re.MULTILINE)
    (table,) = (section for section in sections if section.startswith("## Notebooks\n"))
    rest = re.sub(r"^## Notebooks\n|^\|.*\n", "", table, flags=re.MULTILINE)
    cards = "\n".join(write_card(path, Path(app.outdir) / "thumbnails") for path in notebooks)
    others = "".join(section for section in sections if section is not table)
    front = [first, f"## Notebooks\n\n::::{{container}} cards\n{cards}\n::::\n", rest, others, write_citation()]
    source[0] = "\n".join([*front, CONTENTS.read_text(encoding="utf-8")])


def write_card(path: Path, folder: Path) -> str:
    """A notebook's title, the first sentence below it, the verdict on its claim and its thumbnail, which is written to folder, as
    Markdown."""
    notebook = nbformat.read(path, as_version=4)
    title, answer = re.fullmatch(r"# (.+?)\n+(.+)", notebook.cells[0].source, re.DOTALL).groups()  # type: ignore[union-attr]
    sentence = re.split(r"(?<=[.?!])\s+(?=[A-Z])", " ".join(answer.split()))[0]
    folder.mkdir(parents=True, exist_ok=True)
    picture = find_picture(path.stem, notebook).convert("RGB")
    picture.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    picture.save(folder / f"{path.stem}.png", optimize=True)
    image = f'<img src="thumbnails/{path.stem}.png" alt="" width="{picture.width}" height="{picture.height}">'
    text = " ".join([sentence, *map(VERDICTS.__getitem__, find_verdicts(notebook)[:1])])
    return f":::{{container}} card\n{image}\n\n**[{title}](notebooks/{path.name})**\n\n{text}\n:::"


def find_verdicts(notebook: NotebookNode) -> list[str]:
    """The verdicts of the claims that a notebook shows, as `claims.judge` wrote them into its outputs."""
    texts = "\n".join(list_outputs(notebook, "text/markdown"))
    return re.findall(r"^\*\*Claim \(.\): .+ – (.+)\.\*\*", texts, re.MULTILINE)


def list_outputs(notebook: NotebookNode, kind: str) -> list[str]:
    """What the cells of a notebook put out of one kind, such as image/png."""
    outputs = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    return [data[kind] for data in outputs if kind in data]


def find_picture(name: str, notebook: NotebookNode) -> Image.Image:
    """The best committed figure of a notebook: the first of figures/ that its cells name, else its largest picture."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    for figure in [*re.findall(r'"(\d\d-[\w-]+)"', code), BEST_FIGURES.get(name, "")]:
        if (file := ROOT / "figures" / f"{figure}.png").exists():
            return Image.open(file)
    pictures = [Image.open(io.BytesIO(base64.b64decode(png))) for png in list_outputs(notebook, "image/png")]
    return max(pictures, key=lambda picture: picture.width * picture.height)


def write_citation() -> str:
    """The section with the citation of docs/references.md."""
    (citation,) = re.findall(r"^```bibtex\n.*?^```$", REFERENCES.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return f"## Cite\n\nIf you use the method, please cite its paper:\n\n{citation}\n"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.connect("source-read", add_cards)
    app.connect("html-page-context", add_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
