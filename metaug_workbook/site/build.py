"""A static site of the notebooks, with the gallery as its front page: plain HTML, from file:// too, without network or script.

nbconvert turns notebooks into HTML; pages, links and formulas are ours, because nbconvert's full pages fetch MathJax and RequireJS
from other hosts. Live controls stay in JupyterLab: where one stands, the site shows its static figure.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from nbformat.reader import NotJSONError

from metaug_core.errors import MetaugError
from metaug_workbook.site import formulas
from metaug_workbook.site.layout import MARK, STYLE, TITLE, Page, whole

GALLERY, NOTEBOOKS, DOCUMENTS = (
    "figures/README.md",
    "notebooks",
    ("README.md", "CONTRIBUTING.md", "LOG.md", "CHANGELOG.md"),
)
PICTURES = {".png", ".svg", ".jpg", ".jpeg", ".gif"}
WIDGET = "application/vnd.jupyter.widget-view+json"
PICTURE_KINDS = {"image/png", "image/svg+xml", "text/html"}
UNDESCRIBED = "No description has been provided"  # what nbconvert says of every figure
CONTROL = "<p class='control'>Here JupyterLab shows a control; its figure stands above.</p>"


class SiteError(MetaugError):
    """A page cannot be made, or the folder is not ours to write."""


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
        return self._formula(body.replace(r"\frac", r"\dfrac"), display=True)


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
    describe(soup)
    return str(soup)


def copied(file: Path, root: Path, out: Path) -> str:
    place = file.relative_to(root)
    put(out / place, file.read_bytes())
    return place.as_posix()


def describe(soup: BeautifulSoup) -> None:
    """Pictures get the text that a screen reader says, where they have none."""
    for picture in soup.find_all("img"):
        if str(picture.get("alt", UNDESCRIBED)).startswith(UNDESCRIBED):
            picture["alt"] = "figure; the text below says what it shows"


# --- the site
def build(root: Path, out: Path) -> Path:
    """Write the site of the workbook at `root` into the folder `out`, all or nothing, and return its index.

    `out` may be new, empty, or an older site; any other folder is refused. Raises SiteError (one sentence) for that, for a
    file that is no notebook and for a missing picture.
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
        put(fresh / "style.css", STYLE.encode())
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
