"""What the walkthrough says is so: its solutions run, its sections each have an exercise, its figures show the right numbers."""

import re

import matplotlib
import nbformat
import numpy as np
import pytest
import torch

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from tiny import ROOT

from metaug_workbook.plots import style, teaching
from metaug_workbook.teaching import toys

CELLS = nbformat.read(ROOT / "notebooks" / "00_walkthrough.ipynb", 4).cells
TEXT = "\n\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
SOLUTIONS = re.findall(r"<details><summary>Solution</summary>(.*?)</details>", TEXT, re.DOTALL)
CODE = [re.search(r"```python\n(.*?)```", solution, re.DOTALL) for solution in SOLUTIONS]


@pytest.fixture
def ax():
    figure, ax = style.make_panels()
    yield ax
    plt.close(figure)


def test_every_exercise_has_a_solution_in_code():
    assert len(SOLUTIONS) == TEXT.count("**Exercise.**") >= 8
    assert all(CODE)


@pytest.mark.parametrize("number", range(len(SOLUTIONS)))
def test_a_solution_holds(number):
    torch.manual_seed(number)
    source = CODE[number].group(1)
    assert "assert " in source
    exec(compile(source, f"solution {number}", "exec"), {})


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
