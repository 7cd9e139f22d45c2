"""The paper's numbers, some of them typed again by hand from its text, and its figures: what is drawn is what was given."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from test_figures import caption, line

from metaug_core.presets import preset
from metaug_workbook.plots import feature_augmentation, features, gallery, paper_figures, style
from metaug_workbook.results import paper_values


def runs(setting, values, method="metaug", seeds=2, gain=0.0):
    """Two seeds of accuracy 0.5 + gain + 0.1 place, 0.02 apart, over values of a setting."""
    rows = [
        {setting: value, "method": method, "seed": seed, "accuracy": 0.5 + gain + 0.1 * place + 0.02 * seed,
         "untrained": 0.3, "measure": "probe_fast", "split": "test", "dataset": "shapes", "encoder": "conv"}
        for place, value in enumerate(values) for seed in range(seeds)
    ]  # fmt: skip
    return pd.DataFrame(rows)


# --- the numbers
@pytest.mark.parametrize(
    ("method", "dataset", "encoder", "accuracy"),
    [
        ("metaug", "tiny-imagenet", "conv", 44.51), ("metaug", "stl10", "conv", 85.41), ("metaug", "cifar10", "conv", 87.87),
        ("metaug", "cifar100", "conv", 59.97), ("metaug", "tiny-imagenet", "fc", 45.36), ("metaug", "stl10", "fc", 85.62),
        ("metaug", "cifar10", "fc", 88.12), ("metaug", "cifar100", "fc", 61.06), ("supervised", "cifar10", "conv", 75.39),
        ("bigan", "cifar10", "fc", 62.74), ("cmc+hard", "cifar10", "fc", 86.22), ("metaug-only-oucl", "cifar10", "conv", 85.98),
        ("swav", "cifar10", "fc", 65.20), ("looc", "stl10", "fc", 82.60), ("cmc", "tiny-imagenet", "conv", 41.58),
        ("metaug", "cifar10", "resnet50", 91.09), ("metaug", "stl10", "resnet50", 90.26), ("looc", "cifar10", "resnet50", 87.80),
        ("metaug", "imagenet", "conv", 45.1), ("cmc", "imagenet", "conv", 42.6), ("metaug-nnclr", "imagenet", "resnet50", 76.0),
    ],
)  # fmt: skip
def test_tables_1_to_3_hold_what_the_paper_says(method, dataset, encoder, accuracy):
    assert paper_values.read_accuracy(method, dataset, encoder) == accuracy


def test_what_the_paper_does_not_report_is_nan():
    assert np.isnan(paper_values.read_accuracy("supervised", "cifar10", "fc"))
    assert np.isnan(paper_values.read_accuracy("metaug", "shapes", "conv"))


def test_the_tables_have_their_rows_and_averages():
    assert {number: len(rows["method"].unique()) for number, rows in paper_values.TABLES.items()} == {
        1: 19,
        2: 12,
        3: 18,
    }
    averages = paper_values.TABLES[2].groupby("method")["accuracy"].mean()  # the paper prints them as a third column
    printed = {"swav": 83.04, "simclr": 84.19, "cmc": 86.47, "byol": 87.35, "barlow": 85.93, "dacl": 87.52, "looc": 88.21,
               "swav+hard": 84.25, "simclr+hard": 86.20, "cmc+hard": 88.02, "metaug-only-oucl": 88.55, "metaug": 90.68}  # fmt: skip
    assert averages.to_dict() == pytest.approx(printed, abs=0.0051)
    quoted = paper_values.TABLES[1][paper_values.TABLES[1]["half_width"].isna()]["method"].unique()
    assert list(quoted) == ["supervised", "bigan", "nat", "dim", "splitbrain", "cmc"]


def test_tables_4_to_6_and_figure_3():
    assert (paper_values.TABLE_4["metaug"][8] - paper_values.TABLE_4["metaug"][1]).round(
        2
    ) == 1.60  # both gaps stand in section 4.3
    assert (paper_values.TABLE_4["looc"][8] - paper_values.TABLE_4["looc"][1]).round(2) == 2.44
    assert paper_values.TABLE_4.loc[5, ["looc", "metaug"]].tolist() == [82.05, 88.12]  # the standard set: Table 1, fc
    assert paper_values.TABLE_5["without"].idxmax() == 1e-5
    assert paper_values.TABLE_5.loc[1e-7].tolist() == [86.90, 87.19]
    best = paper_values.TABLE_6.query("method == 'metaug+randaugment'")
    assert best[["views", "top1", "top5"]].to_numpy().tolist() == [["Y,DbDr", 66.7, 87.5]]
    assert paper_values.FIGURE_3 == {"without": 41.16, 6: 42.02}


def test_the_rows_with_the_double_dagger_are_those_whose_encoders_share_out_the_channels():
    """A split AlexNet for each of several kinds of views; the others have one kind. `supervised` takes what it is given."""
    for method in set(paper_values.TABLES[1]["method"]) - {"supervised"}:
        kinds = set(preset("paper", method=method).views)
        assert (len(kinds) > 1) == (method in paper_values.SPLIT_ENCODERS), method


def test_every_method_of_the_tables_has_a_name_and_a_colour_of_its_own():
    methods = (
        set(pd.concat(paper_values.TABLES.values())["method"])
        | set(paper_values.TABLE_6["method"])
        | set(paper_values.TABLE_4)
    )
    assert methods <= set(paper_values.NAMES)
    assert methods <= set(style.METHOD_COLORS)
    assert len(set(style.METHOD_COLORS.values())) == len(style.METHOD_COLORS)
    assert len(set(paper_values.NAMES.values())) == len(paper_values.NAMES)


# --- the figures
def test_a_setting_is_drawn_at_equal_distances_with_band_and_floor(ax):
    table = pd.concat([runs("beta", [16, 4, 64]), runs("beta", [16, 4, 64], "metaug-only-oucl", gain=0.1)])
    assert paper_figures.draw_accuracy_over(table, ax, "beta", "Title", r"$\beta$") is ax
    assert line(ax, "MetAug").get_xdata().tolist() == [0, 1, 2]
    assert line(ax, "MetAug").get_ydata() == pytest.approx([61, 51, 71])  # 4, 16, 64 in order, in percent
    assert line(ax, "MetAug").get_color() == style.METHOD_COLORS["metaug"]
    assert line(ax, "MetAug (only OUCL)").get_ydata() == pytest.approx([71, 61, 81])
    assert line(ax, "MetAug").get_marker() != line(ax, "MetAug (only OUCL)").get_marker()  # told apart in grey
    assert line(ax, "untrained (mean)").get_ydata()[0] == pytest.approx(30)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["4", "16", "64"]
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() - 71 == pytest.approx(12.706 * 1, rel=1e-4)  # t x standard deviation (sqrt 2) / sqrt 2, points
    assert "n = 2 seeds per point" in caption(ax)
    assert "linear probe, fast, test" in ax.get_ylabel()


def test_one_seed_says_that_there_is_no_interval_and_no_run_says_so(ax):
    table = runs("beta", [4, 16], seeds=1)
    paper_figures.draw_accuracy_over(table, ax, "beta")
    assert "n = 1 seed per point, so no interval" in caption(ax)
    ax.clear()
    paper_figures.draw_accuracy_over(table.assign(accuracy=np.nan), ax, "beta")
    assert "no finished run yet" in caption(ax)


def test_differences_have_intervals_in_points_and_the_paper_beside_them(ax):
    found = pd.DataFrame({"delta": [1e-7, 1.0], "mean": [0.01, -0.02], "half_width": [0.005, 0.03], "n": [3, 3]})
    paper_figures.draw_differences(found, ax, "delta", {1e-7: 1.21, 1e-5: 1.89}, papers_label="paper")
    ours, papers = ax.containers[0].lines[0], line(ax, "paper")
    assert ours.get_xdata().tolist() == [0, 2]
    assert ours.get_ydata() == pytest.approx([1, -2])
    ends = ax.containers[0].lines[2][0].get_segments()
    assert ends[1][:, 1] == pytest.approx([-5, 1])
    assert (papers.get_xdata().tolist(), papers.get_ydata().tolist()) == ([0, 1], [1.21, 1.89])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["$10^{-7}$", "$10^{-5}$", "1"]
    assert "n = 3 seeds" in caption(ax)


def test_a_heat_map_writes_each_mean_in_its_cell_and_names_a_blank(ax):
    found = pd.DataFrame(
        {
            "alpha": [1.0, 1e-13, 1.0],
            "beta": [4, 4, 16],
            "mean": [0.5, 0.4, 0.6],
            "half_width": [0.01, np.nan, 0.02],
            "n": 2,
        }
    )
    paper_figures.draw_heatmap(found, ax, "alpha", "beta")
    texts = {(text.get_position()): text.get_text() for text in ax.texts if text.get_transform() == ax.transData}
    assert texts == {(0.5, 0.5): "40.0", (1.5, 0.5): "50.0\n±1.0", (0.5, 1.5): "no run", (1.5, 1.5): "60.0\n±2.0"}
    assert np.ma.getmaskarray(ax.collections[0].get_array()).tolist() == [[False, False], [True, False]]
    assert ax.get_ylim() == (0, 2)  # numbers rise
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["$10^{-13}$", "1"]


def test_rows_of_methods_stand_in_order_with_blanks_named(ax):
    values = pd.DataFrame({"method": ["cmc", "metaug"], "mean": [0.8, 0.9], "half_width": [np.nan, 0.01]})
    paper_figures.draw_method_rows(values, ax, "Title", ["cmc", "looc", "metaug"])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["CMC", "LooC", "MetAug"]
    points = [(c.lines[0].get_xdata()[0], c.lines[0].get_ydata()[0]) for c in ax.containers]
    assert points == [(80, 0), (90, 2)]
    assert to_hex(ax.containers[1].lines[0].get_color()) == style.METHOD_COLORS["metaug"].lower()
    assert "no value" in caption(ax)


def test_histograms_are_densities_with_the_mean_and_the_number_of_pairs():
    table = features.bin_similarities(np.array([0.91, 0.93]), np.array([0.11, 0.31, 0.51, 0.51]), bins=10)
    same = table[table["pairs"] == "same"]
    assert same["density"].tolist() == pytest.approx([0] * 9 + [10])  # both in the last tenth
    assert table[table["pairs"] == "different"]["density"].tolist() == pytest.approx([0, 2.5, 0, 2.5, 0, 5, 0, 0, 0, 0])
    figure = paper_figures.draw_similarities(
        pd.concat(
            table.assign(features=features, margin=margin)
            for features in ("augmented", "original")
            for margin in ("none", "large")
        )
    )
    ax = figure.axes[0]
    drawn = {fill.get_label(): fill for fill in ax.collections}
    heights = drawn["different images, mean 0.36"].get_paths()[0].vertices[:, 1]
    assert sorted(set(heights.round(6))) == [0, 2.5, 5]  # the densities of the table
    labels = {label: to_hex(fill.get_facecolor()[0]) for label, fill in drawn.items()}
    assert labels == {"different images, mean 0.36": style.RED.lower(), "same image, mean 0.92": style.BLUE.lower()}
    assert "n = 2 and 4 pairs" in caption(ax)
    gaps = paper_figures.tabulate_gaps(table.assign(features="original", margin="none"))
    assert gaps.loc[("original", "none")].tolist() == [0.36, 0.92, 0.56]


def test_shares_are_drawn_over_delta_with_the_rounding_of_float32(ax):
    table = pd.DataFrame({"delta": [1e-7, 1e-7, 1.0], "augmented_gradient_share": [4e-8, 6e-8, 0.4]})
    paper_figures.draw_share_over_delta(table, ax)
    assert line(ax, "measured").get_xdata().tolist() == [1e-7, 1]
    assert line(ax, "measured").get_ydata() == pytest.approx([5e-8, 0.4])
    assert line(ax, "rounding of float32").get_ydata()[0] == np.finfo(np.float32).eps / 2
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert "n = " not in caption(ax) or "1 to 2 seeds" in caption(ax)


def test_the_rounding_that_is_drawn_is_that_of_the_runs(ax):
    table = pd.DataFrame({"delta": [1e-5, 1e-5, 1e-5, 1.0], "augmented_gradient_share": 0.1, "device": "cuda",
                          "precision": ["tf32", "bf16", "bf16", "tf32"]})  # fmt: skip
    paper_figures.draw_share_over_delta(table, ax)
    drawn = {one.get_label(): one.get_ydata()[0] for one in ax.lines if str(one.get_label()).startswith("rounding")}
    assert drawn == {"rounding of tf32": 2**-11, "rounding of bf16": 2**-8}


def test_costs_are_bars_of_ratios_with_the_range_of_the_rounds():
    table = pd.DataFrame({"step": ["plain", "meta"], "times_plain": [1.0, 3.0], "low": [1.0, 2.5], "high": [1.0, 4.0],
                          "flops_plain": [1.0, 2.9], "rounds": 5})  # fmt: skip
    (ax,) = paper_figures.draw_step_costs(table).axes
    heights = {c.get_label(): [bar.get_height() for bar in c] for c in ax.containers if hasattr(c, "patches")}
    assert heights == {"time": [1, 3], "FLOPs": [1, 2.9]}
    assert "n = 5 rounds" in caption(ax)


def test_derivatives_are_drawn_without_the_gradient_that_each_computes(ax):
    table = pd.DataFrame({"step": ["gradient", "product"], "times_plain": [1.0, 5.5], "low": [1.0, 5.0],
                          "high": [1.0, 6.0], "flops_plain": [1.0, 3.0], "rounds": 5})  # fmt: skip
    paper_figures.draw_derivative_costs(table, ax)
    heights = {c.get_label(): [bar.get_height() for bar in c] for c in ax.containers if hasattr(c, "patches")}
    assert heights == {"time": [4.5], "FLOPs": [2.0]}
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["product"]


# --- whole figures from small tables
def alpha_beta_delta():
    table = runs("delta", [1e-7, 1.0])
    return pd.concat([table.assign(panel=panel, alpha=1e-13, beta=16) for panel in "abc"])


SMALL = {
    "04-gamma-attenuation": pd.concat(
        [runs("phi_dec", [1, 6]).assign(oucl="eq9"), runs("phi_dec", [1], gain=-0.1).assign(oucl="eq8")]
    ),
    "05-batch-size": runs("batch_size", [32, 64]),
    "06-margins": pd.concat([runs("margin", ["none", "large"], method) for method in ("metaug", "metaug-only-mag")]),
    "07-hyperparameters": alpha_beta_delta(),
    "07-gamma": runs("gamma", [0, 0.4], "metaug-only-oucl"),
    "08-augmentations": runs("set", [1, 8]),
    "09-benchmarks": runs("delta", [1e-7]),
    "11-delta": pd.concat(
        [runs("weight", [-1.0, 0.0], "metaug-only-oucl"), runs("weight", [1e-7, 1.0])]
    ).assign(delta=lambda t: t["weight"].clip(lower=1e-7), augmented_gradient_share=1e-8),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_a_registered_figure_is_drawn_from_its_table_and_from_one_without_results(name):
    for table in (SMALL[name], SMALL[name].assign(accuracy=np.nan)):
        figure = gallery.FIGURES[name].draw(table)
        assert all(ax.get_title(loc="left") for ax in figure.axes if ax.get_label() != "<colorbar>")
        plt.close(figure)


def test_the_gain_by_attenuation_is_paired_with_the_loss_without_gamma():
    figure = paper_figures.draw_accuracy_over_attenuation(SMALL["04-gamma-attenuation"])
    right = figure.axes[1]
    assert right.containers[0].lines[0].get_ydata() == pytest.approx([10, 20])
    assert line(right, "paper, Tiny ImageNet").get_ydata() == pytest.approx([0.86])
    plt.close(figure)


def test_the_contrastive_loss_at_the_temperature_of_oucl_is_a_row_and_a_method_of_its_own():
    methods = ("metaug-only-mag", "metaug-only-mag at t = 0.125", "metaug")
    gains = zip(methods, (0.0, 0.05, 0.2), strict=True)
    table = pd.concat([runs("margin", ["none", "large"], method, gain=gain) for method, gain in gains])
    figure = paper_figures.draw_margins(table)
    left, right = figure.axes[:2]
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["contrastive", "contrastive\nat t = 0.125", "OUCL"]
    cells = left.collections[0].get_array()  # seeds 0 and 1 are 0.02 apart: the mean lies 1 point above the first
    assert cells[:, 0].tolist() == pytest.approx([51, 56, 71])
    assert [c.get_label() for c in right.containers] == [
        "MetAug (only MAG)", "MetAug (only MAG) at t = 0.125", "MetAug"
    ]  # fmt: skip
    plt.close(figure)
    benchmark = pd.concat([runs("delta", [1e-5], method, gain=gain) for method, gain in (("cmc", 0), ("metaug", 0.1))])
    benchmark = pd.concat([benchmark, runs("delta", [1e-5], "cmc at t = 0.125", gain=0.2)])
    figure = paper_figures.draw_benchmarks(benchmark)
    left, right = figure.axes
    assert left.get_yticklabels()[-1].get_text() == "CMC at t = 0.125"
    places = {c.lines[0].get_ydata()[0]: c.lines[0].get_xdata()[0] for c in left.containers}
    assert places[len(left.get_yticklabels()) - 1] == pytest.approx(71)
    assert len(right.containers) == 19  # the paper's rows: it has no such control
    plt.close(figure)


def test_the_delta_question_is_drawn_against_only_oucl_with_a_control():
    figure = paper_figures.draw_delta_question(SMALL["11-delta"])
    left, right = figure.axes
    assert len(line(left, "measured").get_xdata()) == 2  # MetAug alone has a share
    assert right.get_xticklabels()[0].get_text() == "control"
    assert right.containers[0].lines[0].get_ydata() == pytest.approx([10, 0, 10])
    papers = dict(zip(paper_values.TABLE_5.index, line(right, "paper, CIFAR-10").get_ydata(), strict=True))
    assert papers[1e-5] == pytest.approx(1.89)
    plt.close(figure)


@pytest.mark.slow
def test_gains_of_augmentation_are_paired_over_seeds_beside_counted_operations():
    points = {"CMC": ("cmc", 14, [0, 1]), "DCL": ("cmc+dcl", 14, [2, 4]), "MAG": ("metaug-only-mag", 14, [-1, 1]),
              "CMC, 40 epochs": ("cmc", 40, [3, 3])}  # fmt: skip
    rows = [(arm, method, epochs, seed, 0.5 + gain / 100)
            for arm, (method, epochs, gains) in points.items() for seed, gain in enumerate(gains)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["arm", "method", "epochs", "seed", "accuracy"]).assign(knn=np.nan)
    gains = feature_augmentation.tabulate_gains(table, "CMC")
    assert gains["mean"].to_dict() == pytest.approx({"DCL": 0.025, "MAG": -0.005, "CMC, 40 epochs": 0.025})
    assert gains["operations"].drop("MAG").to_dict() == pytest.approx({"DCL": 1, "CMC, 40 epochs": 40 / 14})
    assert 2 < gains["operations"]["MAG"] < 4
    assert gains["equal_mean"]["MAG"] == pytest.approx(-0.03)  # -4 and -2 points
    assert gains["equal_n"].to_dict() == {"DCL": 0, "MAG": 2, "CMC, 40 epochs": 0}
    shown = feature_augmentation.format_gains(gains)
    assert shown.loc["MAG"].tolist()[:3] == ["-0.5 ± 6.4 (n = 2)", "–", "-3.0 ± 12.7 (n = 2)"]
    assert shown["at equal cost"].tolist()[::2] == ["as at equal steps", "–"]
    alone = feature_augmentation.tabulate_gains(table[table["arm"] != "CMC, 40 epochs"], "CMC")
    assert alone["equal_n"].tolist() == [0, 0]
    assert feature_augmentation.tabulate_gains(table[table["arm"] != "CMC"], "CMC").empty


def gains_of(longer=None, equal=(np.nan, np.nan, 0), **arms):
    """As `tabulate_gains` has it: of each arm mean and half_width in points, n, operations; kNN's gain is 1 point lower. equal: the
    first three at equal cost."""
    rows = {
        arm: (
            mean / 100,
            half / 100,
            n,
            (mean - 1) / 100,
            half / 100,
            n,
            equal[0] / 100,
            equal[1] / 100,
            equal[2],
            cost,
            longer,
        )
        for arm, (mean, half, n, cost) in arms.items()
    }
    columns = [f"{prefix}{name}" for prefix in ("", "knn_", "equal_") for name in ("mean", "half_width", "n")]
    return pd.DataFrame.from_dict(rows, "index", columns=[*columns, "operations", "longer"])


def test_what_to_take_says_what_is_beyond_chance_what_is_excluded_and_what_it_costs():
    gains = gains_of(
        MAG=(2.1, 0.4, 3, 2.88), noise=(1.5, 1.2, 3, 1.01), DCL=(0, 2.5, 3, 1), dropout=(-3, 0.1, 4, 1), FT=(1, np.nan, 1, 1.05)
    )  # fmt: skip
    shown = feature_augmentation.format_gains(gains).loc["noise"].tolist()
    assert shown == ["+1.5 ± 1.2 (n = 3)", "+0.5 ± 1.2 (n = 3)", "as at equal steps", "1.01"]
    assert feature_augmentation.describe_gains(gains, "CMC") == (
        "**On CMC take noise: of what is worth its cost it adds most.** "
        "Beyond chance by the linear probe, in points: "
        "MAG +2.1 ± 0.4 (n = 3), noise +1.5 ± 1.2 (n = 3), dropout -3.0 ± 0.1 (n = 4). "
        "Beyond chance by kNN: MAG +1.1 ± 0.4 (n = 3), dropout -4.0 ± 0.1 (n = 4). "
        "Where the interval holds zero, it excludes gains above 2.5 (DCL). "
        "One seed decides nothing: FT +1.0 (n = 1). "
        "With MAG a run takes 2.88 times the operations. "
        "What as many more steps of CMC add is not measured, so at equal cost nothing is known of it. "
        "All other runs take at most 1.05 times: there equal steps are equal cost."
    )


def test_at_equal_cost_an_arm_stands_beside_the_method_that_trains_longer():
    arms = {"MAG": (2, 1, 3, 2.88), "CMC, 40 epochs": (2.5, 0.5, 3, 2.86)}
    text = feature_augmentation.describe_gains(gains_of("CMC, 40 epochs", (-0.5, 0.2, 3), **arms), "CMC")
    assert text.startswith("**On CMC MAG adds most at equal steps; at equal cost that is not shown.**")
    equal = "At equal cost CMC, 40 epochs (2.86 times) gains +2.5 ± 0.5 (n = 3); MAG minus it: -0.5 ± 0.2 (n = 3)."
    assert text.endswith(f"With MAG a run takes 2.88 times the operations. {equal}")
    text = feature_augmentation.describe_gains(gains_of("CMC, 40 epochs", (0.5, 0.2, 3), **arms), "CMC")
    assert text.startswith("**On CMC take MAG: of what is worth its cost it adds most.**")


@pytest.mark.parametrize(
    ("arms", "first"),
    [
        ({"MAG": (2, 1, 3, 2.88)}, "**On CMC MAG adds most at equal steps; at equal cost that is not shown.**"),
        ({"DCL": (0, 1, 3, 1), "MAG": (-2, 1, 3, 2.88)}, "**Take CMC as it is: nothing adds to it beyond chance.**"),
        ({"DCL": (5, np.nan, 1, 1)}, "**On CMC nothing can be told yet.** One seed decides nothing: DCL +5.0 (n = 1)."),
        ({}, "On CMC there are no runs yet."),
    ],
)
def test_what_to_take_is_said_first(arms, first):
    assert feature_augmentation.describe_gains(gains_of(**arms), "CMC").startswith(first)


def test_augmented_features_are_a_spectrum_and_dots_over_similarity():
    table = pd.DataFrame({
        "method": ["cmc", "cmc+noise", "cmc+noise", "cmc+noise", "cmc+noise"], "seed": [0, 0, 0, 1, 1],
        "accuracy": [0.5, 0.6, 0.6, 0.7, 0.7], "number": [np.nan, 1, 2, 1, 2], "value": [np.nan, 1, 0.5, 1, 0.25],
        "rank": [np.nan, 1.9, 1.9, 1.4, 1.4], "similarity": [np.nan, 0.9, 0.9, 0.95, 0.95],
    })  # fmt: skip
    figure = feature_augmentation.draw_augmented(table)
    left, right = figure.axes
    assert [one.get_ydata().tolist() for one in left.lines] == [[1, 0.5]]
    assert left.lines[0].get_label() == "CMC + noise: rank 2"
    assert line(right, "CMC").get_ydata() == [50, 50]
    assert line(right, "CMC + noise").get_xdata().tolist() == [0.9, 0.95]
    assert line(right, "CMC + noise").get_ydata().tolist() == pytest.approx([60, 70])
    assert caption(right).startswith("n = 1 to 2")
    plt.close(figure)


def test_the_commands_of_the_gallery_name_notebooks_and_parameters_that_exist():
    import papermill

    from metaug_workbook.jobs import papermill_runner

    for name, entry in gallery.FIGURES.items():
        words = entry.command.split()
        if words[:2] == ["metaug", "run"]:
            known = papermill.inspect_notebook(papermill_runner.find_notebook(words[2]))
            given = [words[i + 1] for i, word in enumerate(words) if word == "-p"]
            assert set(given) <= set(known), name


MANY_RUNS = {
    "04-gamma-attenuation": [runs("phi_dec", [1, 2]).assign(oucl="eq9"), runs("phi_dec", [1]).assign(oucl="eq8")],
    "05-batch-size": [runs("batch_size", [32, 128], method) for method in ("simclr", "metaug")],
    "06-margins": [runs("margin", ["none", "large"], method) for method in ("metaug-only-mag", "metaug")],
    "07-hyperparameters": [runs("alpha", [1e-13, 1.0]).assign(beta=16, delta=1.0, panel="a")],
    "07-gamma": [runs("gamma", [0.2, 0.4])],
    "08-augmentations": [runs("set", [1, 8], method) for method in ("looc", "metaug")],
    "09-benchmarks": [runs("width", [1], method) for method in ("cmc", "metaug")],
    "11-delta": [runs("weight", [-1.0, 0.0, 1e-5]).assign(delta=1e-5, augmented_gradient_share=np.nan)],
}


@pytest.mark.parametrize("name", MANY_RUNS)
def test_a_figure_of_many_runs_is_drawn_of_what_there_is(name):
    """No run, the first alone, the last alone, one seed."""
    table = pd.concat(MANY_RUNS[name], ignore_index=True)
    for there in (table["seed"] < 0, table.index == 0, table.index == len(table) - 1, table["seed"] == 1):
        part = table.assign(accuracy=table["accuracy"].where(there), untrained=table["untrained"].where(there))
        figure = gallery.FIGURES[name].draw(part)
        assert all(ax.get_title(loc="left") for ax in figure.axes if ax.get_label() != "<colorbar>")
        plt.close(figure)
