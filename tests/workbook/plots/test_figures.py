"""Each figure shows the right data: values computed by hand are found again in the artists."""

import io
import itertools

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib import rcParams

from metaug_core.data.images import Images
from metaug_core.errors import MetaugError
from metaug_core.evaluation.representations import interval
from metaug_core.registry import METHODS
from metaug_core.runs.files import StoreError
from metaug_core.views.augmentation import split
from metaug_workbook import notebook
from metaug_workbook.plots import confusion, features, image_grids, style, training

METRICS = pd.DataFrame(
    {
        "step": [0, 10, 20, 20],
        "epoch": [0.0, 0.5, 1.0, 1.0],
        "knn_val": [0.25, np.nan, np.nan, 0.5],
        "loss_original": [np.nan, 2.0, 1.0, np.nan],
        "loss_augmented": [np.nan, 2e-7, 1e-7, np.nan],
        "augmented_gradient_share": [np.nan, 1e-7, 3e-7, np.nan],
        "mixed_gradient_share": [np.nan, 0.2, 0.4, np.nan],
        "mag_update": [np.nan, np.nan, 0.25, np.nan],
        "positive_similarity": [np.nan, 0.6, 0.9, np.nan],
        "negative_similarity": [np.nan, 0.5, 0.4, np.nan],
        "sigma_plus": [np.nan, 0.3, 0.2, np.nan],
        "sigma_minus": [np.nan, 0.8, 0.9, np.nan],
        "augmented_similarity": [np.nan, 0.5, 0.55, np.nan],
        "effective_rank": [np.nan, 20.0, 30.0, np.nan],
        "alignment": [np.nan, 0.8, 0.4, np.nan],
        "uniformity": [np.nan, -1.0, -2.0, np.nan],
        "debias_floor_share": [np.nan, 0.2, 0.9, np.nan],
    }
)
TABLE = pd.DataFrame(
    {"probe_plain": [0.1, 0.3, 0.7], "probe_fast": [0.2, 0.4, 0.8], "knn": [0.15, 0.35, 0.65]},
    index=pd.Index(["raw pixels", "untrained", "trained"], name="representation"),
)
CURVES = list(training.PANELS)


def line(ax, label):
    (found,) = [entry for entry in ax.lines if entry.get_label() == label]
    return found


def caption(ax):
    return " ".join(text.get_text() for text in ax.texts)


@pytest.mark.parametrize("name", CURVES)
def test_a_panel_returns_its_axes_with_title_labels_and_n(name, ax):
    assert training.draw_metrics(name, METRICS, ax) is ax
    assert ax.get_title(loc="left") == training.PANELS[name].title
    assert ax.get_xlabel() == ("epoch" if name == "MAG update" else "step")
    assert ax.get_ylabel()
    assert "n = 1 run" in caption(ax)


@pytest.mark.parametrize("name", CURVES[1:])
def test_a_method_without_the_metric_gets_an_empty_panel_that_says_so(name, ax):
    assert training.draw_metrics(name, METRICS[["step", "epoch", "loss_original"]], ax) is ax
    assert not ax.lines
    assert "this method has no" in caption(ax)


def test_the_loss_of_the_features_is_linear_and_spans_its_values_so_that_one_sees_it_fall(ax):
    """On one axis with a term of a ten-millionth, a fall from 0.45 to 0.25 looked flat."""
    falling = METRICS.assign(loss_original=[np.nan, 0.45, 0.25, np.nan])
    training.draw_metrics("loss", falling, ax)
    (drawn,) = ax.lines
    assert (drawn.get_xdata().tolist(), drawn.get_ydata().tolist()) == ([10, 20], [0.45, 0.25])
    low, high = ax.get_ylim()
    assert ax.get_yscale() == "linear"
    assert (0.45 - 0.25) / (high - low) > 0.8  # the fall takes most of the height


@pytest.mark.parametrize("name", CURVES)
def test_a_panel_of_a_run_without_a_row_says_that_no_step_is_logged(name, ax):
    training.draw_metrics(name, pd.DataFrame(), ax)
    assert "no step logged yet" in caption(ax)


def test_the_loss_before_the_first_step_and_an_unknown_panel_are_named(ax):
    training.draw_metrics("loss", METRICS.head(1), ax)
    assert "no step logged yet" in caption(ax)
    with pytest.raises(MetaugError, match="unknown panel of curves 'los'; did you mean 'loss'"):
        training.draw_metrics("los", METRICS, ax)


def test_the_further_terms_stand_in_a_panel_of_their_own_logarithmic_where_they_lie_far_apart(ax):
    training.draw_metrics("further terms", METRICS.assign(loss_margin=[np.nan, 0.5, 0.25, np.nan]), ax)
    assert line(ax, r"$\delta\, L_{aug}$").get_ydata().tolist() == [2e-7, 1e-7]
    assert line(ax, r"$\alpha\, R_\sigma$").get_ydata().tolist() == [0.5, 0.25]
    assert ax.get_yscale() == "log"
    assert ax.get_ylim()[0] < 1e-7
    ax.clear()
    training.draw_metrics("further terms", METRICS, ax)
    assert ax.get_yscale() == "linear"
    assert ax.get_ylim() == pytest.approx((0, 2.2e-7))


def test_the_mag_is_drawn_by_its_two_shares_and_its_update_an_epoch(ax):
    training.draw_metrics("gradient shares", METRICS.assign(augmented_gradient_share=[np.nan, 0.05, 0.1, np.nan]), ax)
    assert line(ax, r"of $\theta$: pairs with a $\tilde z$").get_ydata().tolist() == [0.05, 0.1]
    assert line(ax, r"of $\omega$: mixed part").get_ydata().tolist() == [0.2, 0.4]
    assert (ax.get_yscale(), ax.get_ylim()[0]) == ("linear", 0)
    ax.clear()
    training.draw_metrics("gradient shares", METRICS, ax)  # 1e-7 and 0.4
    assert ax.get_yscale() == "log"
    ax.clear()
    training.draw_metrics("MAG update", METRICS, ax)
    assert (ax.lines[0].get_xdata().tolist(), ax.lines[0].get_ydata().tolist()) == ([1.0], [25.0])
    assert ax.get_ylabel() == "% per epoch"


def test_similarities_shows_pairs_and_margins_on_the_unit_scale(ax):
    training.draw_metrics("similarities", METRICS, ax)
    assert line(ax, "same image").get_ydata().tolist() == [0.6, 0.9]
    assert line(ax, "different images").get_ydata().tolist() == [0.5, 0.4]
    assert line(ax, r"margin $\sigma^+$").get_ydata().tolist() == [0.3, 0.2]
    assert line(ax, r"margin $\sigma^-$").get_ydata().tolist() == [0.8, 0.9]
    assert (line(ax, "same image").get_color(), line(ax, "different images").get_color()) == (style.BLUE, style.RED)
    assert len({entry.get_linestyle() for entry in ax.lines}) >= 4  # told apart in grey
    assert ax.get_ylim()[0] == 0


def test_seeds_become_a_mean_and_its_95_percent_band(ax):
    low, high = METRICS, METRICS.assign(loss_original=METRICS["loss_original"] + 2)
    training.draw_metrics("loss", [low, high], ax)
    assert ax.lines[0].get_ydata().tolist() == [3.0, 2.0]
    band = ax.collections[0].get_paths()[0].vertices
    half = 12.706 * np.sqrt(2) / np.sqrt(2)  # t(0.975, 1 degree of freedom) x standard deviation / sqrt(n)
    assert band[:, 1].max() == pytest.approx(3 + half, rel=1e-4)
    assert "n = 2 runs" in caption(ax)


def test_knn_is_in_percent_by_epoch_with_the_colour_of_the_method(ax):
    assert training.draw_knn({"metaug": METRICS, "cmc": METRICS}, ax) is ax
    assert line(ax, "metaug").get_xdata().tolist() == [0, 1]
    assert line(ax, "metaug").get_ydata().tolist() == [25, 50]
    assert line(ax, "metaug").get_color() == style.pick_color("metaug")
    assert line(ax, "cmc").get_color() == style.pick_color("cmc")
    assert line(ax, "metaug").get_marker() != line(ax, "cmc").get_marker()
    assert "%" in ax.get_ylabel()


def test_the_epochs_of_knn_are_whole_from_the_first_reading_on(ax):
    """Before the first epoch is over there is one reading, at 0: the axis ran from -0.05 to 0.05, or from -1 to 1."""
    for metrics, last in ((METRICS.head(1), 1.0), (METRICS, 1.0), (METRICS.assign(epoch=[0, 1, 2, 3]), 3.0)):
        ax.clear()
        training.draw_knn({"metaug": metrics}, ax)
        low, high = ax.get_xlim()
        assert -0.1 * last < low < 0
        assert last < high < 1.1 * last
        ticks = [tick for tick in ax.get_xticks() if low <= tick <= high]
        assert ticks == list(range(int(last) + 1))


def test_knn_without_a_validation_split_says_so(ax):
    training.draw_knn({"metaug": METRICS.drop(columns="knn_val")}, ax)
    assert "no validation split" in caption(ax)


def test_methods_often_drawn_together_have_colours_of_their_own_and_others_a_fixed_one():
    """About thirty methods cannot: eight hues are what colour-blind readers tell apart."""
    colours = [style.pick_color(name) for name in style.METHOD_COLORS]
    assert set(style.METHOD_COLORS) <= set(METHODS)
    assert len(set(colours)) == len(colours)
    assert style.pick_color("mine") == style.pick_color("mine") not in colours


def test_histogram_pairs_views_of_the_same_and_of_different_images(ax):
    east, north = [1.0, 0.0], [0.0, 1.0]
    z = torch.tensor([[east, north], [east, north], [north, east]])  # (V=3, N=2, d)
    same, different = features.compare_pairs(z)
    assert sorted(same) == [0.5, 0.5, 0.5, 0.5, 1, 1]  # views 1, 2 agree, view 3 is at right angles to both
    assert sorted(different) == [0.5, 0.5, 1, 1, 1, 1]
    assert features.draw_similarity_histogram(z, ax) is ax
    drawn = {fill.get_label(): fill for fill in ax.collections}
    assert {label: to_hex(fill.get_facecolor()[0]) for label, fill in drawn.items()} == {
        "different images, mean 0.83": style.RED.lower(),
        "same image, mean 0.67": style.BLUE.lower(),
    }
    assert drawn["same image, mean 0.67"].get_paths()[0].vertices[:, 1].max() == pytest.approx(4 / 6 / 0.02)
    assert len({str(fill.get_linestyle()) for fill in ax.collections}) == 2  # told apart in grey
    assert "n = 2 images, 6 and 6 pairs" in caption(ax)


def test_histogram_of_one_view_says_what_it_needs(ax):
    features.draw_similarity_histogram(torch.ones(1, 4, 2), ax)
    assert "two views" in caption(ax)


def test_bars_are_percent_with_floors_in_grey_and_the_method_in_its_colour(ax):
    assert features.draw_accuracy_bars(TABLE, ax, "cmc", chance=0.1) is ax
    heights = {group.get_label(): [bar.get_height() for bar in group] for group in ax.containers}
    assert heights["trained"] == pytest.approx([70, 80, 65])
    assert heights["raw pixels"] == pytest.approx([10, 20, 15])
    colours = {group.get_label(): to_hex(group[0].get_facecolor()) for group in ax.containers}
    assert colours["trained"] == style.pick_color("cmc").lower()
    assert colours["untrained"] == style.FLOOR_COLORS["untrained"].lower()
    assert line(ax, "chance").get_ydata()[0] == 10
    assert "1 run, so no interval" in caption(ax)
    assert {"70.0", "30.0"} <= {text.get_text() for text in ax.texts}


def test_bars_and_table_show_each_measure_that_was_taken_by_its_name(ax):
    features.draw_accuracy_bars(TABLE.assign(probe_paper=[0.2, 0.25, 0.6]), ax)
    names = [" ".join(text.get_text().split()) for text in ax.get_xticklabels()]
    assert names == [
        "linear probe (random crops)", "linear probe (plain images)", "linear probe (fast)", "kNN"
    ]  # fmt: skip
    heights = {group.get_label(): [bar.get_height() for bar in group] for group in ax.containers}
    assert heights["trained"] == pytest.approx([60, 70, 80, 65])
    shown = notebook.format_percent(TABLE.assign(probe_paper=[0.2, 0.25, 0.6], n_eval=9))
    assert shown.loc["trained"].to_dict() == dict(zip(names, [60, 70, 80, 65], strict=True))
    assert list(notebook.format_percent(TABLE)) == names[1:]


def test_bars_over_seeds_have_the_t_interval_of_evaluation(ax):
    features.draw_accuracy_bars([TABLE, TABLE + 0.02, TABLE + 0.07], ax)
    heights = {group.get_label(): [bar.get_height() for bar in group] for group in ax.containers}
    assert heights["trained"] == pytest.approx([73, 83, 68])
    mean, half = interval([70.0, 72.0, 77.0])
    ends = [np.sort(entry.get_ydata()) for entry in ax.lines if len(entry.get_ydata()) == 2]
    assert any(end == pytest.approx([mean - half, mean + half]) for end in ends)
    assert "n = 3 runs" in caption(ax)


def test_pictures_show_a_view_in_its_true_colours():
    colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [128, 128, 128]]
    rgb = torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(4, 3, 8, 8)
    names = ("RGB", "L", "ab", "Lab", "DbDr")
    seen = dict(zip(names, split(rgb / 255, names), strict=True))
    expected = np.array(colours) / 255
    assert np.allclose(image_grids.show_view(seen["RGB"], "RGB")[:, 0, 0], expected, atol=1e-6)
    assert np.allclose(image_grids.show_view(seen["Lab"], "Lab")[:, 0, 0], expected, atol=0.01)
    grey = image_grids.show_view(seen["L"], "L")[:, 0, 0]
    assert np.ptp(grey, axis=1).max() == 0
    assert np.allclose(grey[:, 0] * 100, [53.24, 87.73, 32.30, 53.59], atol=0.02)  # L* of these colours
    plain_ab = image_grids.show_view(seen["ab"], "ab")[:, 0, 0]
    assert np.ptp(plain_ab[3]) < 0.01  # grey has no colour
    assert plain_ab[0].argmax() == 0
    assert plain_ab[1].argmax() == 1
    assert image_grids.show_view(seen["DbDr"], "DbDr").shape == (4, 8, 8, 3)


def test_sample_views_is_a_mosaic_of_one_row_per_view(ax):
    pixels = torch.full((5, 3, 8, 8), 255, dtype=torch.uint8)
    assert image_grids.draw_views(pixels, split(pixels / 255, ("L", "ab")), ("L", "ab"), ax) is ax
    assert ax.images[0].get_array().shape == (24, 40, 3)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["image", "L", "ab"]


def test_save_writes_png_and_svg_that_can_be_read(tmp_path):
    figure, ax = style.make_panels()
    training.draw_metrics("loss", METRICS, ax)
    style.save_figure(figure, tmp_path / "figures" / "loss")
    with Image.open(tmp_path / "figures" / "loss.png") as image:
        assert image.size[0] > 300
        image.verify()
    svg = (tmp_path / "figures" / "loss.svg").read_text()
    assert svg.lstrip().startswith("<?xml")
    assert "<svg" in svg
    style.save_figure(figure, tmp_path / "figures" / "again")
    assert (tmp_path / "figures" / "again.svg").read_text() == svg  # no date, no chance in it
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "again.png",
        "again.svg",
        "loss.png",
        "loss.svg",
    ]
    plt.close(figure)


def test_save_into_a_file_says_so_in_a_sentence(tmp_path):
    (tmp_path / "figures").write_text("")
    figure, _ = style.make_panels()
    with pytest.raises(StoreError, match="cannot write"):
        style.save_figure(figure, tmp_path / "figures" / "loss")
    plt.close(figure)


def test_the_palette_is_told_apart_in_grey_where_it_must_be():
    def grey(colour: str) -> float:
        return float(np.dot([int(colour[k : k + 2], 16) for k in (1, 3, 5)], (0.299, 0.587, 0.114)))

    bars = [*map(grey, style.FLOOR_COLORS.values()), grey(style.BLUE)]
    assert min(abs(a - b) for a, b in itertools.pairwise(bars)) > 40


HOSTILE = {
    "font.size": 30,
    "axes.titlelocation": "right",
    "lines.linewidth": 9,
    "savefig.facecolor": "red",
    "legend.frameon": True,
}


def draw_two_panels(path):
    figure, (left, right) = style.make_panels(2)
    training.draw_metrics("further terms", METRICS.assign(loss_margin=[np.nan, 0.5, 0.25, np.nan]), left)
    features.draw_accuracy_bars(TABLE, right)
    shown = io.BytesIO()
    figure.savefig(shown, facecolor=figure.get_facecolor())  # as a notebook shows it
    style.save_figure(figure, path)
    plt.close(figure)
    return shown.getvalue(), path.with_suffix(".png").read_bytes(), path.with_suffix(".svg").read_bytes()


def test_a_figure_is_the_same_in_every_session_and_leaves_its_settings(tmp_path):
    """The settings of the session were changed, and under dark_background a method was drawn black on black."""
    before = rcParams.copy()
    wanted = draw_two_panels(tmp_path / "plain")
    assert rcParams == before
    with plt.style.context(["dark_background", HOSTILE]):
        hostile = rcParams.copy()
        assert draw_two_panels(tmp_path / "dark") == wanted
        assert rcParams == hostile


NAMES = ["$a_b$", "$", r"a\$b$", "_hidden", "caf\udce9", "<b>", "$\\frac$"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_from_outside_is_drawn_as_it_stands(name):
    def draw(text, **look):
        figure = style.make_figure(3, 1)
        figure.text(0.1, 0.5, text, **look)
        figure.canvas.draw()
        pixels = np.array(figure.canvas.buffer_rgba())
        plt.close(figure)
        return pixels

    readable = name.replace("\udce9", "\\udce9")
    assert np.array_equal(draw(style.verbatim(name)), draw(readable, parse_math=False))


def test_names_of_classes_methods_and_views_may_be_formulas_hidden_or_no_utf8():
    """A class called $a_b$ ended notebook 02 after its training; one called _a was missing in the legend."""
    figure, (left, right) = style.make_panels(2)
    pixels, labels = torch.zeros(len(NAMES), 3, 8, 8, dtype=torch.uint8), torch.arange(len(NAMES))
    images = Images(pixels, labels, tuple(NAMES))
    near = pd.DataFrame({"panel": "before", "query": range(len(NAMES)), "rank": 1, "neighbour": 0})
    image_grids.draw_neighbours(near, images, images, 8, {"before": "", "after": ""}, left)
    training.draw_knn(dict.fromkeys(NAMES, METRICS), right)
    figure.canvas.draw()
    shown = [left.get_yticklabels(), right.get_legend().get_texts()]
    assert [[text.get_text() for text in texts] for texts in shown] == [[style.verbatim(name) for name in NAMES]] * 2
    right.clear()
    image_grids.draw_views(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [torch.zeros(1, 1, 8, 8)], ["$a_b$"], right)
    figure.canvas.draw()
    plt.close(figure)


def test_the_curves_of_a_live_view_are_a_png():
    from metaug_core.config import Config
    from metaug_workbook.widgets import live

    class Fake:  # of a Run, only what curves reads
        metrics, config = METRICS, Config()

    with Image.open(io.BytesIO(live.draw_curves(Fake()))) as image:  # type: ignore[arg-type]
        assert image.format == "PNG"
    assert [live.format_duration(s) for s in (0.4, 59, 61, 3600, 7510)] == [
        "0 s",
        "59 s",
        "1 min 01 s",
        "1 h 00 min",
        "2 h 05 min",
    ]


# --- how a measure errs


def test_confusions_are_drawn_in_percent_beside_the_accuracy_of_each_row():
    names = ["cat", "dog", "$owl", "none"]
    counts = pd.DataFrame(
        [[6.0, 4, 0, 0], [2, 8, 0, 0], [0, 0, 5, 0], [0, 0, 0, 0]], pd.Index(names, name="class"), names
    )
    figure = confusion.draw_confusions(counts)
    heat, right = figure.axes[:2]
    drawn = [tick.get_text() for tick in heat.get_yticklabels()]
    assert drawn == [tick.get_text() for tick in heat.get_xticklabels()]
    assert sorted(drawn) == sorted(["cat", "dog", r"\$owl"])  # none has no images
    numbers = {(drawn[round(t.get_position()[1])], drawn[round(t.get_position()[0])]): t.get_text() for t in heat.texts}
    assert numbers == {("cat", "cat"): "60", ("cat", "dog"): "40", ("dog", "cat"): "20", ("dog", "dog"): "80",
                       (r"\$owl", r"\$owl"): "100"}  # fmt: skip
    points = right.lines[0]
    assert dict(zip(map(drawn.__getitem__, points.get_ydata()), points.get_xdata(), strict=True)) == pytest.approx(
        {"cat": 60, "dog": 80, r"\$owl": 100}
    )
    assert right.get_title(loc="left") == "mean 76.0 %"
    plt.close(figure)


def test_of_many_classes_the_least_accurate_hundred_are_drawn():
    names = [f"class {number}" for number in range(103)]
    counts = pd.DataFrame(np.full((103, 103), 0.1), names, names)
    for number in range(103):
        counts.iloc[number, number] = 110 - number
    figure = confusion.draw_confusions(counts)
    heat = figure.axes[0]
    assert {tick.get_text() for tick in heat.get_yticklabels()} == set(names[3:])
    assert "the 100 least accurate of 103 classes" in heat.get_title(loc="left")
    assert not heat.texts
    figure.canvas.draw()
    boxes = [tick.get_window_extent() for tick in heat.get_yticklabels()]
    assert all(below.y1 <= above.y0 + 1 for above, below in itertools.pairwise(boxes))  # names do not overlap
    plt.close(figure)


def test_knn_over_k_marks_the_reported_k(ax):
    table = pd.DataFrame(
        {
            "representation": ["untrained"] * 2 + ["trained"] * 2,
            "k": [1, 20] * 2,
            "knn": [0.2, 0.3, 0.5, 0.6],
            "n_eval": 9,
        }
    )
    assert confusion.draw_neighbour_counts(table, ax) is ax
    assert line(ax, "trained").get_ydata().tolist() == [50, 60]
    assert line(ax, "untrained").get_ydata().tolist() == [20, 30]
    assert set(line(ax, "k = 20, reported").get_xdata()) == {20}
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "20"]
    assert "n = 9 images" in caption(ax)
