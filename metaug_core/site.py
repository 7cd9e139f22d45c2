"""A static site of the notebooks, with the gallery as its front page: plain HTML that works from file:// without a network or a script.

nbconvert turns notebooks into HTML; pages, links and formulas are ours, because nbconvert's full pages fetch MathJax and RequireJS
from other hosts. Live controls stay in JupyterLab: where one stands, the site shows its static figure.
"""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import nbformat
from bs4 import BeautifulSoup, Tag
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from nbformat.reader import NotJSONError
from pygments.formatters import HtmlFormatter

from metaug_core import formulas
from metaug_core.registry import MetaugError

TITLE = "MetAug Workbook"
GALLERY, NOTEBOOKS, DOCUMENTS = (
    "figures/README.md",
    "notebooks",
    ("README.md", "CONTRIBUTING.md", "LOG.md", "CHANGELOG.md"),
)
PICTURES = {".png", ".svg", ".jpg", ".jpeg", ".gif"}
WIDGET = "application/vnd.jupyter.widget-view+json"
CONTROL = "<p class='control'>Here JupyterLab shows a control; its figure stands above.</p>"
MARK = "<!-- metaug site -->"  # in the index of a site that this room built: nothing else is ever overwritten
STYLE = """
body { margin: 0 auto; max-width: 52rem; padding: 0 1rem 3rem; font: 16px/1.55 system-ui, sans-serif; color: #222; }
nav { padding: .7rem 0; border-bottom: 1px solid #ddd; font-size: .9rem; line-height: 1.9; }
nav a, footer a { margin-right: .9rem; white-space: nowrap; } nav [aria-current] { font-weight: 600; color: inherit; text-decoration: none; }
a { color: #0060a0; } a.anchor-link { visibility: hidden; margin-left: .3rem; } :is(h1, h2, h3):hover > a.anchor-link { visibility: visible; }
h1 { line-height: 1.2; } h2 { margin-top: 2.2rem; } img { max-width: 100%; } img.formula { max-width: none; }
.display { display: block; text-align: center; margin: .9rem 0; } .display, table, pre { overflow-x: auto; }
pre { background: #f6f6f4; padding: .6rem .8rem; font-size: .82rem; line-height: 1.45; border-radius: 4px; margin: .6rem 0; }
.output pre { background: none; padding: .2rem 0; white-space: pre-wrap; overflow-wrap: anywhere; } :not(pre) > code { background: #f6f6f4; overflow-wrap: anywhere; }
table { display: block; border-collapse: collapse; font-size: .88rem; margin: .8rem 0; } th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
details { border-left: 3px solid #b8d4e8; padding: .1rem .9rem; margin: 1rem 0; } summary { cursor: pointer; color: #0060a0; }
.control { color: #666; font-size: .85rem; } footer { margin-top: 3rem; border-top: 1px solid #ddd; padding-top: .7rem; }
"""


class SiteError(MetaugError):
    """A page cannot be made, or the folder is not ours to write."""


class Page(NamedTuple):
    """One page: the file that it shows, its own file in the site, and what the navigation calls it."""

    source: Path
    name: str
    label: str


class Formulas(IPythonRenderer):
    """Markdown to HTML as nbconvert does it, with formulas drawn into the folder `out`/formulas."""

    def __init__(self, out: Path):
        super().__init__(escape=False)  # <details> and tables in our own files are meant
        self.out = out

    def _formula(self, latex: str, display: bool) -> str:
        found = formulas.drawn(latex)
        if found is None:
            return f"<code>{escape(latex)}</code>"
        svg, height, depth = found
        file = Path("formulas", hashlib.sha256(latex.encode()).hexdigest()[:12] + ".svg")
        put(self.out / file, svg.encode())
        return formulas.tag(latex, file.as_posix(), height, depth, display)

    def inline_math(self, body: str) -> str:
        return self._formula(body, display=False)

    def block_math(self, body: str) -> str:
        return self._formula(body, display=True)


def put(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


# --- what there is
def pages(root: Path) -> list[Page]:
    """The site of the workbook at `root`: the front page, every notebook in order, and the documents that exist."""
    found = [Page(root / GALLERY, "index.html", "Gallery")]
    notebooks = sorted((root / NOTEBOOKS).glob("*.ipynb"))
    if not notebooks:
        raise SiteError(f"no notebooks in {root / NOTEBOOKS}: a site needs at least one")
    found += [Page(path, f"{path.stem}.html", path.stem) for path in notebooks]
    documents = [root / name for name in DOCUMENTS if (root / name).is_file()]
    return found + [Page(path, f"{path.stem.lower()}.html", path.stem.capitalize()) for path in documents]


def read(path: Path) -> NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except (NotJSONError, nbformat.ValidationError, UnicodeDecodeError):
        raise SiteError(f"{path} is not a notebook") from None


def opening(path: Path) -> tuple[str, str]:
    """Title and first paragraph of a notebook."""
    cells = read(path).cells
    title, _, rest = cells[0].source.partition("\n") if cells else ("", "", "")
    return title.lstrip("# ") or path.stem, rest.strip().partition("\n\n")[0]


# --- the inside of a page
def static(notebook: NotebookNode) -> NotebookNode:
    """The notebook without live controls: an output of a control keeps its picture, or says where the control is."""
    for output in [output for cell in notebook.cells for output in cell.get("outputs", [])]:
        data = output.get("data", {})
        if data.pop(WIDGET, None) is not None and not PICTURE_KINDS & set(data):
            data.clear()
            data["text/html"] = CONTROL
    notebook.metadata.pop("widgets", None)
    return notebook


PICTURE_KINDS = {"image/png", "image/svg+xml", "text/html"}


def notebook_html(path: Path, out: Path) -> str:
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.register_filter("markdown2html", lambda text: markdown_html(text, out))
    return exporter.from_notebook_node(static(read(path)))[0]


def markdown_html(text: str, out: Path) -> str:
    return MarkdownWithMath(renderer=Formulas(out)).render(text)


def front_html(page: Page, others: Sequence[Page], out: Path) -> str:
    """The gallery, or where there is none yet the pictures of its folder, and below it what each notebook asks."""
    if page.source.is_file():
        gallery = page.source.read_text(encoding="utf-8")
    else:
        shown = sorted(page.source.parent.glob("*.png"))
        gallery = "\n\n".join([f"# {TITLE}", *[f"![{path.stem}]({path.name})\n\n*{path.stem}*" for path in shown]])
    rows = ["\n\n## Notebooks\n"]
    for other in others:
        if other.source.suffix == ".ipynb":
            title, answer = opening(other.source)
            rows.append(f"### [{title}]({other.source.as_posix()})\n\n{answer}\n")
    return markdown_html(gallery + "\n".join(rows), out)


# --- links
def local(html: str, page: Page, known: Sequence[Page], root: Path, out: Path) -> str:
    """html with every link and picture pointing into the site: pages by their names, pictures copied, other files as plain text."""
    soup = BeautifulSoup(html, "html.parser")
    names = {other.source.resolve(): other.name for other in known}
    for link in soup.find_all(["a", "img"]):
        attribute = "href" if link.name == "a" else "src"
        url = urlsplit(str(link.get(attribute, "")))
        if url.scheme or url.netloc or not url.path or url.path.startswith("formulas/"):
            continue
        target = (page.source.parent / unquote(url.path)).resolve()
        if target in names:
            link[attribute] = names[target] + (f"#{url.fragment}" if url.fragment else "")
        elif target.suffix.lower() in PICTURES and target.is_file() and target.is_relative_to(root):
            link[attribute] = copied(target, root, out)
        elif link.name == "img":
            raise SiteError(f"{page.source}: the picture {url.path} does not exist")
        else:
            link.unwrap()
    widen(soup)
    return str(soup)


def copied(file: Path, root: Path, out: Path) -> str:
    place = file.relative_to(root)
    put(out / place, file.read_bytes())
    return place.as_posix()


def widen(soup: BeautifulSoup) -> None:
    """Pictures get the text that a screen reader says, where they have none."""
    for picture in soup.find_all("img"):
        if isinstance(picture, Tag) and picture.get(
            "alt", "No description has been provided for this image"
        ).startswith("No desc"):
            picture["alt"] = "figure; the text below says what it shows"


# --- whole pages
def whole(inside: str, page: Page, known: Sequence[Page]) -> str:
    """The page: navigation, inside, and the way to its neighbours."""
    title = re.search(r"<h1[^>]*>(.*?)(?:<a class|</h1>)", inside, re.DOTALL)
    text = BeautifulSoup(title.group(1), "html.parser").get_text() if title else page.label
    links = [
        f'<a href="{other.name}"{" aria-current=page" if other is page else ""}>{escape(other.label)}</a>'
        for other in known
    ]
    at = known.index(page)
    near = [("previous", known[at - 1])] if at else []
    near += [("next", known[at + 1])] if at + 1 < len(known) else []
    footer = " ".join(f'<a href="{other.name}" rel="{way}">{way}: {escape(other.label)}</a>' for way, other in near)
    return (
        f'<!DOCTYPE html>\n{MARK}\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(text)} - {TITLE}</title>'
        f'<link rel="stylesheet" href="style.css"></head><body><nav>{" ".join(links)}</nav>\n<main>{inside}</main>\n'
        f"<footer>{footer}</footer></body></html>\n"
    )


def build(root: Path, out: Path) -> Path:
    """Write the site of the workbook at `root` into the folder `out`, all or nothing, and return its index.

    `out` may be new, empty, or an older site; any other folder is refused. Raises SiteError (one sentence) for that, for a file that is
    no notebook and for a missing picture.
    """
    root, out, index = root.resolve(), out.resolve(), out / "index.html"
    if out.exists() and any(out.iterdir()) and not (index.is_file() and MARK in index.read_text(encoding="utf-8")):
        raise SiteError(f"{out} holds files that are no site: name a new folder")
    known = pages(root)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".site-") as folder:
        fresh = Path(folder) / "site"
        for page in known:
            inside = inner(page, known, fresh)
            put(fresh / page.name, whole(local(inside, page, known, root, fresh), page, known).encode())
        put(fresh / "style.css", (STYLE + HtmlFormatter().get_style_defs(".highlight")).encode())
        if out.exists():
            shutil.rmtree(out)
        fresh.rename(out)
    return out / "index.html"


def inner(page: Page, known: Sequence[Page], out: Path) -> str:
    if page.name == "index.html":
        return front_html(page, known, out)
    if page.source.suffix == ".ipynb":
        return notebook_html(page.source, out)
    return markdown_html(page.source.read_text(encoding="utf-8"), out)
