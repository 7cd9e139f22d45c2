"""The static site: built from small notebooks, every link leads somewhere, every picture is there, nothing is fetched."""

import base64
import io
import re
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from tiny import ROOT

from metaug_workbook.site import build, formulas

NOTEBOOKS = ROOT / "notebooks"


def png() -> bytes:
    with io.BytesIO() as buffer:
        Image.new("RGB", (4, 3), "red").save(buffer, "png")
        return buffer.getvalue()


@pytest.fixture
def root(tmp_path):
    """A workbook of two notebooks, a document and a gallery."""
    picture = {"image/png": base64.b64encode(png()).decode(), "text/plain": "a picture"}
    control = {build.WIDGET: {"model_id": "1"}, "text/plain": "VBox(children=())"}
    cells = [
        new_markdown_cell(
            "# Is it red?\n\nYes: $\\tilde z = 1$. See [two](01_b.ipynb#more), [code](../metaug_core/x.py)."
        ),
        new_code_cell("f()", outputs=[new_output("display_data", picture), new_output("display_data", control)]),
        new_markdown_cell("<details><summary>Solution</summary>\n\n**red** $$\\sum_k x_k$$\n\n</details>"),
    ]
    book = tmp_path / "book"
    (book / "notebooks").mkdir(parents=True)
    (book / "figures").mkdir()
    nbformat.write(new_notebook(cells=cells), book / "notebooks" / "00_a.ipynb")
    nbformat.write(
        new_notebook(cells=[new_markdown_cell("# Two?\n\nTwo.\n\n## more")]), book / "notebooks" / "01_b.ipynb"
    )
    (book / "figures" / "one.png").write_bytes(png())
    (book / "figures" / "README.md").write_text(
        "# Gallery\n\n![one](one.png)\n\n[where from](../notebooks/00_a.ipynb)\n"
    )
    (book / "LOG.md").write_text("# LOG\n\n[elsewhere](https://example.org/x) and [a](notebooks/00_a.ipynb)\n")
    return book


def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def test_every_link_and_picture_is_there_and_nothing_is_fetched(root, tmp_path):
    index = build.build(root, tmp_path / "out")
    assert sorted(path.name for path in index.parent.glob("*.html")) == [
        "00_a.html",
        "01_b.html",
        "index.html",
        "log.html",
    ]
    for page in index.parent.glob("*.html"):
        parsed = soup(page)
        assert not parsed.find_all(["script", "iframe"])
        assert parsed.title.get_text().endswith("MetAug Workbook")
        for tag in parsed.find_all(["a", "img", "link"]):
            url = tag.get("href") or tag.get("src")
            if url.startswith(("data:image/png;base64,", "https://example.org/")):
                continue
            name, _, fragment = url.partition("#")
            assert (page.parent / name).exists(), (page.name, url)
            if fragment and name:
                assert soup(page.parent / name).find(id=fragment), url
        for picture in parsed.find_all("img"):
            assert picture["alt"]


def test_the_gallery_is_the_front_page_and_names_the_notebooks(root, tmp_path):
    parsed = soup(build.build(root, tmp_path / "out"))
    assert parsed.h1.get_text().startswith("Gallery")
    assert (tmp_path / "out" / "figures" / "one.png").read_bytes() == png()
    assert [link["href"] for link in parsed.main.find_all("a", string=["where from", "Is it red?", "Two?"])] == [
        "00_a.html",
        "00_a.html",
        "01_b.html",
    ]


def test_a_notebook_keeps_its_picture_and_says_where_a_control_is(root, tmp_path):
    build.build(root, tmp_path / "out")
    main = soup(tmp_path / "out" / "00_a.html").main
    assert main.find("img", src=re.compile("^data:image/png")) is not None
    assert "Here JupyterLab shows a control" in main.get_text()
    assert "VBox" not in main.get_text()
    assert main.find("a", href="01_b.html#more") is not None
    assert "code" in main.get_text()
    assert main.find("a", string="code") is None  # a file that the site does not have
    assert main.details.find("strong") is not None
    assert main.find("img", alt="\\tilde z = 1")["class"] == ["formula"]


def test_a_site_is_built_over_an_older_one_and_over_nothing_else(root, tmp_path):
    out = tmp_path / "out"
    build.build(root, out)
    (root / "notebooks" / "01_b.ipynb").rename(root / "notebooks" / "02_c.ipynb")
    with pytest.raises(build.SiteError, match=r"missing|does not|01_b"):
        (root / "figures" / "one.png").unlink()
        build.build(root, out)
    assert (out / "01_b.html").exists()  # what failed left the old site whole
    (root / "figures" / "one.png").write_bytes(png())
    build.build(root, out)
    assert not (out / "01_b.html").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(build.SiteError, match="no site"):
        build.build(root, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_what_is_no_notebook_is_named(root, tmp_path):
    (root / "notebooks" / "03_d.ipynb").write_text("{")
    with pytest.raises(build.SiteError, match=r"03_d\.ipynb is not a notebook"):
        build.build(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_gallery_is_not_needed(root, tmp_path):
    (root / "figures" / "README.md").unlink()
    parsed = soup(build.build(root, tmp_path / "out"))
    assert parsed.find("img", src="figures/one.png") is not None


def test_a_formula_is_drawn_with_its_depth_or_refused():
    _, height, depth = formulas.drawn(r"\frac{a}{b}")
    _, flat_height, flat_depth = formulas.drawn("a")
    assert height > flat_height
    assert depth > flat_depth
    assert formulas.drawn(r"\nosuchcommand{x}") is None


def test_every_formula_of_the_walkthrough_can_be_drawn():
    cells = nbformat.read(NOTEBOOKS / "00_walkthrough.ipynb", 4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    found = re.findall(r"\$\$(.+?)\$\$", text, re.DOTALL) + re.findall(r"(?<!\$)\$([^$]+?)\$(?!\$)", text)
    assert len(set(found)) > 30
    assert [latex for latex in set(found) if formulas.drawn(latex) is None] == []
