"""The diagram names every part of the method, and no text runs out of its box or into another."""

import itertools

import matplotlib
import pytest

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from metaug_workbook.plots import diagram


@pytest.fixture(scope="module")
def drawn():
    figure = diagram.draw_diagram()
    figure.canvas.draw()
    yield figure
    plt.close(figure)


def extents(figure):
    renderer = figure.canvas.get_renderer()
    return {text.get_text(): text.get_window_extent(renderer) for text in figure.axes[0].texts}


def test_every_part_of_the_method_is_named(drawn):
    said = " ".join(extents(drawn))
    for part in ("image", "view", "encoder", "head", "MAG", "OUCL", "R_\\sigma", "L_{aug}", "look ahead", "classifier",
                 "\\theta'", "\\nabla_\\omega", "\\nabla_\\theta", "\\tilde z"):  # fmt: skip
        assert part in said, part


def test_no_texts_overlap(drawn):
    for (one, a), (other, b) in itertools.combinations(extents(drawn).items(), 2):
        assert not a.overlaps(b), (one, other)


def test_every_text_fits_its_box(drawn):
    places, to_screen = extents(drawn), drawn.axes[0].transData
    for name, box in diagram.BOXES.items():
        (left, low), (right, high) = to_screen.transform(
            [(box.x - box.width / 2, box.y - box.height / 2), (box.x + box.width / 2, box.y + box.height / 2)]
        )
        text = places[box.text]
        assert left < text.x0 < text.x1 < right, name
        assert low < text.y0 < text.y1 < high, name


def test_boxes_keep_apart_and_arrows_join_boxes():
    for a, b in itertools.combinations(diagram.BOXES.values(), 2):
        assert abs(a.x - b.x) > (a.width + b.width) / 2 or abs(a.y - b.y) > (a.height + b.height) / 2, (a, b)
    assert {name for arrow in diagram.ARROWS for name in arrow} <= set(diagram.BOXES)
    assert ("z 1", "MAG 1") in diagram.ARROWS
    assert ("augmented 2", "margin") in diagram.ARROWS
