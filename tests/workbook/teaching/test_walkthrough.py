"""What the walkthrough says is so: its solutions pass their checks, its answers hold, its figures show the right numbers."""

import re

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from tiny import ROOT

from metaug_workbook.plots import style, teaching
from metaug_workbook.teaching import check, toys

CELLS = nbformat.read(ROOT / "notebooks" / "00_walkthrough.ipynb", 4).cells
TEXT = "\n\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
FOLDED = re.compile(r"<details><summary>(\w+)</summary>(.*?)</details>", re.DOTALL)
CODE = {"Solution": [], "Answer": []}  # what stands folded: of the exercises, of the questions
for kind, folded in FOLDED.findall(TEXT):
    CODE[kind] += re.findall(r"```python\n(.*?)```", folded, re.DOTALL)
EXERCISES = [name for cell in CELLS for name in re.findall(r"^check\.(\w+)\(", cell.source, re.MULTILINE)]


@pytest.fixture
def ax():
    figure, ax = style.make_panels()
    yield ax
    plt.close(figure)


def test_every_exercise_has_a_stub_minutes_and_a_folded_solution():
    assert 4 <= len(EXERCISES) <= 6
    assert len(re.findall(r"\*\*Exercise \d \(\d+ minutes\)\.\*\*", TEXT)) == len(EXERCISES) == len(CODE["Solution"])
    assert set(EXERCISES) == {name for name, value in vars(check).items() if isinstance(value, check.Exercise)}


@pytest.mark.parametrize(("name", "source"), list(zip(EXERCISES, CODE["Solution"], strict=True)), ids=EXERCISES)
def test_a_solution_passes_its_check(name, source):
    names = {}
    exec(compile(source, f"solution of {name}", "exec"), names)
    result = getattr(check, name)(names[name])
    assert result.passed, result


@pytest.mark.parametrize("name", EXERCISES)
def test_the_saved_stub_says_what_is_missing_and_goes_on(name):
    (cell,) = [cell for cell in CELLS if f"\ncheck.{name}(" in cell.source]
    assert "not written yet" in cell.outputs[0].data["text/plain"]


@pytest.mark.parametrize("number", range(len(CODE["Answer"])))
def test_an_answer_holds(number):
    torch.manual_seed(number)
    source = CODE["Answer"][number]
    assert "assert " in source
    exec(compile(source, f"answer {number}", "exec"), {})


def test_every_question_has_an_answer_or_a_cell_that_gives_it():
    assert TEXT.count("**Predict first:**") >= 8
    assert len(CODE["Answer"]) >= 7


def test_lines_of_code_fit_a_narrow_screen():
    for cell in CELLS:
        if cell.cell_type == "code":
            assert max(map(len, cell.source.splitlines())) <= 95, cell.source


def test_the_glossary_and_the_references_can_be_reached():
    assert "\n## Glossary\n" in TEXT
    page = (ROOT / "docs" / "references.md").read_text(encoding="utf-8")
    links = set(re.findall(r"https://(?:arxiv|doi)\.org/[^)]+", TEXT))
    assert len(links) >= 6
    assert all(link in page for link in links)


def test_the_success_shows_the_means_of_the_table(ax):
    rows = [
        ("raw pixels", 0, 0.2),
        ("untrained", 0, 0.3),
        ("untrained", 1, 0.4),
        ("trained", 0, 0.7),
        ("trained", 1, 0.9),
    ]
    teaching.draw_success(pd.DataFrame(rows, columns=["representation", "seed", "knn"]), ax)
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([20, 35, 80])
    assert "35 % before training, 80 % after" in ax.get_title(loc="left")


def test_the_checks_of_the_notebook_are_many():
    assert sum(cell.source.count("assert ") for cell in CELLS if cell.cell_type == "code") >= 12


def test_concentration_of_equal_and_of_single_weights(ax):
    teaching.draw_weight_concentration(torch.full((3, 4), 0.25), ax)
    assert ax.lines[0].get_ydata().tolist() == [0, 25, 50, 75, 100]
    teaching.draw_weight_concentration(torch.tensor([[0.0, 1.0, 0.0, 0.0]]), ax)
    assert ax.lines[2].get_ydata().tolist() == [0, 100, 100, 100, 100]


def test_the_histogram_counts_every_pair(ax):
    teaching.draw_weight_histogram(torch.tensor([[0.0, 1.0], [0.5, 0.5]]), ax)
    outline = ax.collections[0].get_paths()[0].vertices
    assert outline[:, 1].max() == 2  # two pairs of an equal share
    assert "n = 2 anchors x 2 negatives" in ax.texts[-1].get_text()


def test_the_largest_beta_lies_on_the_hardest_pair_and_eq_7_does_not(ax):
    teaching.draw_soft_hinges((4, 512), ax)
    _, sharp, hardest, summed = (line.get_ydata() for line in ax.lines)
    assert np.abs(np.array(sharp) - np.array(hardest)).max() < 0.003
    assert np.abs(np.array(summed) - np.array(hardest)).max() == pytest.approx(0.2, abs=1e-6)


def test_attenuation_lowers_the_share_of_the_hardest(ax):
    teaching.draw_attenuation(ax)
    lines = ax.lines[: len(teaching.ATTENUATIONS)]
    tops = [float(line.get_ydata()[-1]) for line in lines]
    assert tops == sorted(tops, reverse=True)
    assert [float(sum(line.get_ydata())) for line in lines] == pytest.approx([100] * 5)


def test_the_circle_draws_each_feature_and_its_augmented_one(ax):
    z = toys.place_on_circle(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    teaching.draw_circle(z, -z, ax)
    points = np.array([[line.get_xdata()[0], line.get_ydata()[0]] for line in ax.lines])
    assert np.allclose(points[::2], z.flatten(0, 1))
    assert np.allclose(points[1::2], -1.18 * z.flatten(0, 1))


def test_arrows_over_omega_point_down_the_gradient(ax):
    theta = {"angles": toys.scatter(3, 0.4, 2)}
    omega = {"turn": torch.tensor([0.5, 0.2], dtype=torch.float64)}
    now = toys.measure_moment(toys.make_toy(lr=3.0, alpha=0.0), theta, omega)
    teaching.draw_omega_plane(torch.eye(3), torch.linspace(0, 1, 3), now, ax)
    ends = np.array([text.xy for text in ax.texts[:3]]) - omega["turn"].numpy()
    assert np.allclose(ends[0] + ends[1], ends[2])
    slope = now.gradient["turn"].numpy()
    assert ends[2] / np.linalg.norm(ends[2]) == pytest.approx(-slope / np.linalg.norm(slope))


def test_the_share_passes_the_measured_point_and_half_where_it_must(ax):
    teaching.draw_share_by_delta(0.2, 0.25, ax)  # ratio 1: half at delta = 1
    x, y = ax.lines[0].get_xdata(), ax.lines[0].get_ydata()
    assert np.interp(1.0, x, y) == pytest.approx(0.5, abs=1e-3)
    assert np.interp(0.25, x, y) == pytest.approx(0.2, abs=2e-3)
    assert "below the rounding of float32" in [text.get_text() for text in ax.texts]
    assert ax.patches[-1].get_extents().transformed(ax.transData.inverted()).y1 == pytest.approx(2**-24)


def test_the_grey_of_a_run_in_bf16_is_the_rounding_of_bf16(ax):
    teaching.draw_share_by_delta(0.2, 0.25, ax, "bf16", "cuda")
    assert "below the rounding of bf16" in [text.get_text() for text in ax.texts]
    assert ax.patches[-1].get_extents().transformed(ax.transData.inverted()).y1 == pytest.approx(2**-8)
