"""The site as `make site` builds it: complete, linked, with formulas that need no script, and nothing that is fetched. Its
explorers run from file://, and their numbers are the engine's."""

import importlib
import json
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import torch
from chromium import NEEDS_CHROME, open_page
from tiny import ROOT
from torch.nn import functional as F

from metaug_core.objectives import losses
from metaug_core.objectives.margins import margins
from metaug_core.objectives.similarity import Pairs
from metaug_workbook.widgets import margin_explorer, meta_step_stepper, oucl
from metaug_workbook.widgets.base import Explorer

bs4 = pytest.importorskip("bs4")
for package in ("sphinx", "myst_nb", "furo", "latex2mathml"):
    pytest.importorskip(package)
pytestmark = pytest.mark.slow

sys.path.insert(0, str(ROOT / "docs"))
workbook_site = importlib.import_module("workbook_site")
explorer_data = importlib.import_module("explorer_data")

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


def test_notebooks_keep_their_pictures_and_have_explorers_or_a_sentence_for_controls(pages):
    walkthrough = pages["notebooks/00_walkthrough.html"]
    assert len(walkthrough.select(".cell_output img")) >= 15
    explorers = [(box["data-explorer"], json.loads(box["data-settings"])) for box in walkthrough.select(".explorer")]
    first, second = ("oucl", {"beta": 16, "gamma": 0.4}), ("oucl", {"phi_dec": 6})
    assert explorers == [first, second, ("margins", {"margin": "large"}), ("meta-step", {})]
    assert len(walkthrough.select("p.control")) == 1  # the augmentation viewer
    assert "VBox(" not in walkthrough.get_text()
    assert not pages["README.html"].select("script[src*=explorers]")


def test_the_front_page_has_a_card_for_every_notebook_in_its_own_words(pages, site):
    front = pages["README.html"]
    assert "00_walkthrough" not in front.find("article").get_text()  # the table of file names
    cards = front.select(".card")
    for name, card in zip(NOTEBOOKS, cards, strict=True):
        title = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4).cells[0].source.splitlines()[0]
        assert f"# {plain(card.find('a'))}" == title
        assert card.find("a")["href"] == f"notebooks/{name}.html"
        assert (site / card.find("img")["src"]).stat().st_size > 5000
    sentence = plain(cards[NOTEBOOKS.index("05_batch_size")].find_all("p")[-1])
    assert sentence.startswith("The paper's Figure 4 says that every method gains from larger minibatches and")
    told = (ROOT / "notebooks" / "06_margins.ipynb").read_text(encoding="utf-8")
    (verdict,) = re.findall(r"Claim \(e\): The Large margin is best, with either loss – ([a-z ]+)\.", told)
    assert re.search(rf"\bHere .*{verdict}\.$", plain(cards[NOTEBOOKS.index("06_margins")].find_all("p")[-1]))


def plain(element) -> str:
    """Text of an element, without typographic apostrophes."""
    return element.get_text().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def test_the_front_page_cites_the_paper_as_the_references_do(pages):
    cited, listed = (
        [text for block in pages[name].select("pre") if "@inproceedings" in (text := block.get_text())]
        for name in ("README.html", "docs/references.html")
    )
    assert cited == listed
    assert "{MetAug}: Contrastive Learning via Meta Feature Augmentation" in cited[0]


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


# --- the explorers, in a browser
@pytest.fixture(scope="module")
def browser(site):
    """The walkthrough in a browser, from file://, and what went wrong in its scripts."""
    with open_page(1280, 800) as page:
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
        page.goto((site / "notebooks" / "00_walkthrough.html").as_uri())
        yield page
        assert page.errors == []


def measure(browser, name: str, values: dict) -> dict:
    """What an explorer measures for the values of its controls, those that are not given as in the beginning."""
    return browser.evaluate(
        """([name, some]) => {
            const controls = Object.entries(EXPLORERS[name].controls);
            return EXPLORERS[name].measure({...Object.fromEntries(controls.map(([key, {value}]) => [key, value])), ...some});
        }""",
        [name, values],
    )


OUCL: dict = {"beta": 16, "gamma": 0.4, "weights": True, "phi_dec": 1}


@pytest.mark.browser
@NEEDS_CHROME
@pytest.mark.parametrize("pair", [(0.8, 0.6), (0.0, 1.0), (1.0, 0.0), (0.31, 0.47)])
@pytest.mark.parametrize(
    "some", [{}, {"beta": 256, "gamma": 0.05}, {"phi_dec": 6}, {"weights": False, "gamma": 0.5}, {"temperature": 0.01}]
)
def test_oucl_in_the_site_is_that_of_the_engine(browser, some, pair):
    measured = measure(browser, "oucl", {**some, "positive": pair[0], "negative": pair[1]})
    values = OUCL | {key: value for key, value in some.items() if key != "temperature"}
    axis = torch.linspace(0, 1, 21, dtype=torch.float64)
    square = torch.meshgrid(axis, axis, indexing="ij")
    for name, loss in {
        "oucl": oucl.make_oucl(**values),
        "infoNce": oucl.make_info_nce(some.get("temperature", 0.07)),
    }.items():
        surface = oucl.measure(loss, *(torch.tensor([x], dtype=torch.float64) for x in pair))
        wanted = {key: float(value) for key, value in surface._asdict().items()}
        wanted["steepest"] = oucl.measure(loss, *square).find_steepest()
        assert measured[name] == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    if not some:
        (p, n), settings = (torch.tensor([[x]], dtype=torch.float64) for x in pair), (16, 0.4)
        assert measured["oucl"]["loss"] == pytest.approx(float(losses.oucl(p, n, *settings)), abs=1e-6)


@pytest.mark.browser
@NEEDS_CHROME
@pytest.mark.parametrize("strength", [0.0, 0.35, 1.0])
@pytest.mark.parametrize("kind", ["large", "medium", "small"])
def test_margins_in_the_site_are_those_of_the_engine(browser, site, kind, strength):
    script = (site / "_static" / "explorers" / "data.js").read_text()
    features = json.loads(re.findall(r"^const FEATURES = (.*);$", script, re.MULTILINE)[0])
    z, augmented = (F.normalize(torch.tensor(features[name]).double(), dim=-1) for name in ("z", "augmented"))
    compare = Pairs(len(z))
    sigma = margins(*compare(z, z), kind)
    positives, negatives = compare(F.normalize(torch.lerp(z, augmented, strength), dim=-1), z)
    wanted = {
        "sigmaPlus": float(sigma[0]),
        "sigmaMinus": float(sigma[1]),
        "regularisation": float(losses.margin_regularisation(positives, negatives, *sigma)),
        "shares": [float((positives > sigma[0]).double().mean()), float((negatives < sigma[1]).double().mean())],
    }
    measured = measure(browser, "margins", {"margin": kind, "strength": strength})
    for name, value in wanted.items():
        assert measured[name] == pytest.approx(value, abs=1e-6), name
    for name, value in (("positives", positives), ("negatives", negatives)):
        assert sorted(measured[name]) == pytest.approx(sorted(value.flatten().tolist()), abs=1e-6)


@pytest.mark.browser
@NEEDS_CHROME
def test_the_meta_step_in_the_site_is_that_of_the_engine(browser):
    frames = explorer_data.write_frames(0.5, 1.0)
    for stage, updated in ((8, 0), (11, 1)):  # the features of step 3, and what its update makes of them
        measured = measure(browser, "meta-step", {"stage": stage, "inner_lr": 0.5, "margin": True})
        for name in ("z", "augmented", "ahead", "direct", "mixed", "norms"):
            wanted = frames[name][2 + updated * (name in ("z", "augmented"))]
            assert measured[name] == pytest.approx(wanted, abs=1e-6), name
        assert measured["loss"] == pytest.approx(frames["loss"][2], abs=1e-6)


def describe(control) -> dict:
    """What a control of a widget offers, in the words of the site's."""
    if hasattr(control, "options"):
        return {"options": [value for _, value in control.options]}
    return {name: getattr(control, name) for name in ("min", "max", "step") if hasattr(control, name)}


@pytest.mark.browser
@NEEDS_CHROME
@pytest.mark.parametrize(
    ("name", "widget"),
    [("oucl", oucl.oucl_explorer), ("margins", margin_explorer), ("meta-step", meta_step_stepper)],
)
def test_controls_and_presets_in_the_site_are_those_of_the_widget(browser, name, widget):
    explorer: Explorer = widget()
    found = browser.evaluate("name => EXPLORERS[name].controls", name)
    assert {key: control["value"] for key, control in found.items()} == explorer.values
    for key, control in explorer.controls.items():
        offered = found[key] | ({"options": list(found[key]["menu"])} if "menu" in found[key] else {})
        assert describe(control).items() <= offered.items()
    if name == "oucl":
        presets = browser.evaluate("EXPLORERS.oucl.presets.map(([name, , values]) => [name, values])")
        assert dict(presets) == oucl.make_presets()


@pytest.mark.browser
@NEEDS_CHROME
def test_the_pair_is_dragged_moved_by_keys_and_set_by_a_preset(browser):
    box = browser.locator(".explorer").first
    box.scroll_into_view_if_needed()
    sentence, handle = box.locator(".explorer-sentence"), box.locator(".handle").first
    begin = "The pair d⁺ = 0.80, d⁻ = 0.60. OUCL (eq. 10): loss 0.095"
    wait_for(sentence, begin)
    place, axes = handle.bounding_box(), box.locator("svg clipPath rect").first
    middle = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    width, height = (float(axes.get_attribute(name)) for name in ("width", "height"))
    browser.mouse.move(*middle)
    browser.mouse.down()
    browser.mouse.move(middle[0] - 0.5 * width, middle[1] - 0.3 * height, steps=3)
    browser.mouse.up()
    wait_for(sentence, "The pair d⁺ = 0.30, d⁻ = 0.90.")
    handle.press("ArrowRight")
    wait_for(sentence, "The pair d⁺ = 0.31, d⁻ = 0.90.")
    handle.press("Shift+ArrowDown")
    wait_for(sentence, "The pair d⁺ = 0.31, d⁻ = 0.80.")
    twice = "h => [1, 2].forEach(() => h.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft'})))"
    handle.evaluate(twice)  # within a frame
    wait_for(sentence, "The pair d⁺ = 0.29, d⁻ = 0.80.")
    box.get_by_role("button", name="Hardest negative").click()
    wait_for(sentence, "The pair d⁺ = 0.60, d⁻ = 0.95.")
    box.get_by_label("weights").uncheck()
    wait_for(sentence, "eq. 8")
    box.get_by_role("button", name="Reset").click()
    wait_for(sentence, begin)


def wait_for(element, text: str) -> None:
    """A control is answered in the next frame; on a busy machine that can take a while."""
    element.filter(has_text=text).wait_for(timeout=30_000)


@pytest.mark.browser
@NEEDS_CHROME
def test_no_page_scrolls_sideways_on_a_phone(browser, site, pages):
    with closing(browser.context.browser.new_page(viewport={"width": 390, "height": 844})) as page:
        for name in set(pages) - {"index.html"}:  # which leads to README.html
            page.goto((site / name).as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        page.goto((site / "notebooks" / "03_similarity_histograms.html").as_uri())
        page.locator("a.large").first.click()
        assert page.locator("dialog.large img").bounding_box()["width"] > 800


@pytest.mark.browser
@NEEDS_CHROME
def test_a_finger_drags_the_pair_and_scrolls_the_page_beside_it(browser, site):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with closing(browser.context.browser.new_page(**phone)) as page:
        page.goto((site / "notebooks" / "00_walkthrough.html").as_uri())
        box = page.locator(".explorer").first
        box.evaluate("box => scrollTo(0, box.getBoundingClientRect().top + scrollY - 100)")
        handle, map_ = box.locator(".handle").first.bounding_box(), box.locator("svg").first.bounding_box()
        width = float(box.locator("svg clipPath rect").first.get_attribute("width"))
        touch = page.context.new_cdp_session(page)

        def move(x, y, right, down):
            touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
            for share in (0.25, 0.5, 0.75, 1):
                points = [{"x": x + share * right, "y": y + share * down}]
                touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": points})
            touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

        at = page.evaluate("scrollY")
        move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2, -width / 2, 0)
        wait_for(box.locator(".explorer-sentence"), "The pair d⁺ = 0.30, d⁻ = 0.60.")
        assert page.evaluate("scrollY") == at
        move(map_["x"] + 60, map_["y"] + 60, 0, -60)
        page.wait_for_function(f"scrollY > {at} + 20")
        wait_for(box.locator(".explorer-sentence"), "The pair d⁺ = 0.30, d⁻ = 0.60.")
