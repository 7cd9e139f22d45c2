"""The site as `make site` builds it: complete, linked, with formulas that need no script, and nothing that is fetched."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from tiny import ROOT

bs4 = pytest.importorskip("bs4")
for package in ("sphinx", "myst_nb", "furo", "latex2mathml"):
    pytest.importorskip(package)
pytestmark = pytest.mark.slow

sys.path.insert(0, str(ROOT / "docs"))
workbook_site = importlib.import_module("workbook_site")

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}
LOOSE = re.compile(r"(?:<mi>[a-zA-Z]</mi>){9}")  # nine variables in a row: prose that was taken for a formula


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder of the built site. Warnings are errors, as in the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (command,) = re.findall(r"\$\(PY\) (-m sphinx .+)", makefile)
    out = tmp_path_factory.mktemp("site")
    words = [str(out) if word == "site" else word for word in command.split()]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / "html"


@pytest.fixture(scope="module")
def pages(site):
    """Every page, parsed, by its path within the site."""
    files = [file for file in site.rglob("*.html") if "_static" not in file.parts]
    return {file.relative_to(site).as_posix(): bs4.BeautifulSoup(file.read_text(), "html.parser") for file in files}


def test_every_notebook_is_there_with_its_neighbours(pages):
    for number, name in enumerate(NOTEBOOKS):
        links = pages[f"notebooks/{name}.html"].select(".related-pages a")
        classes = {class_: link["href"] for link in links for class_ in link["class"]}
        if number > 0:
            assert classes["prev-page"] == f"{NOTEBOOKS[number - 1]}.html"
        if number + 1 < len(NOTEBOOKS):
            assert classes["next-page"] == f"{NOTEBOOKS[number + 1]}.html"


def test_every_page_is_in_the_navigation(pages):
    navigation = {link["href"] for link in pages["README.html"].select(".sidebar-tree a.internal")}
    documents = {name for name in pages if name.startswith(("docs/", "notebooks/", "figures/", "benchmarks/"))}
    assert documents | {"CONTRIBUTING.html", "CHANGELOG.html", "LOG.html"} <= navigation


def test_nothing_is_fetched_from_another_host(pages, site):
    for name, page in pages.items():
        for tag, attribute in LOADED.items():
            urls = [str(found[attribute]) for found in page.find_all(tag) if found.has_attr(attribute)]
            assert [url for url in urls if re.match(r"(https?:)?//", url)] == [], name
    sheets = [file.read_text() for file in site.rglob("*.css")]
    assert sheets
    assert [sheet for sheet in sheets if re.search(r"@import|url\(['\"]?(https?:)?//", sheet)] == []


def test_every_link_leads_somewhere(pages, site):
    for name, page in pages.items():
        for link in page.select("article a[href], .sidebar-tree a[href]"):
            url = urlsplit(str(link["href"]))
            if url.scheme or url.netloc:
                continue
            file = (site / name).parent / unquote(url.path) if url.path else site / name
            assert file.exists(), (name, link["href"])
            target = pages.get(file.resolve().relative_to(site.resolve()).as_posix())
            if url.fragment and target is not None:
                assert target.find(id=unquote(url.fragment)), (name, link["href"])


def test_formulas_are_mathml_and_prose_is_not(pages):
    walkthrough = pages["notebooks/00_walkthrough.html"]
    assert len(walkthrough.find_all("math")) > 80
    for name, page in pages.items():
        for formula in page.find_all("math"):
            assert not LOOSE.search("".join(map(str, formula.find_all(["mi", "mo"])))), (name, formula.get_text())
        strings = page.select_one("article").find_all(string=True) if page.select_one("article") else []
        text = " ".join(string for string in strings if string.find_parent(["pre", "code"]) is None)
        assert not re.search(r"\$[^$\s][^$]*\\[a-z]+[^$]*\$", text), name


@pytest.mark.parametrize("latex", [r"\nosuch{x}", r"\frac{a}", r"\left( a", "x_"])
def test_a_formula_that_is_not_understood_is_refused(latex):
    with pytest.raises(ValueError, match="understood|Error"):
        workbook_site.to_mathml(latex, "inline")


def test_notebooks_keep_their_pictures_and_say_where_a_control_is(pages):
    walkthrough = pages["notebooks/00_walkthrough.html"]
    assert len(walkthrough.select(".cell_output img")) >= 15
    assert len(walkthrough.select("p.control")) == 5
    assert "VBox(" not in walkthrough.get_text()


def test_the_page_of_minimal_shows_every_line_of_it(pages):
    page = pages["docs/minimal.html"]
    lines = "\n".join(block.get_text() for block in page.select(".beside .highlight pre")).splitlines()
    source = (ROOT / "docs" / "minimal.py").read_text(encoding="utf-8").splitlines()
    assert [line for line in source if line.strip() and line not in lines] == []


def test_search_needs_no_server(pages, site):
    assert (site / "searchindex.js").read_text().startswith("Search.setIndex(")
    scripts = [str(script["src"]) for script in pages["search.html"].find_all("script") if script.has_attr("src")]
    assert any("searchindex.js" in script for script in scripts)
    assert pages["index.html"].find("a")["href"] == "README.html"
