"""Experiments as a notebook makes them: grids, their cost before they start, tables with the untrained floor, figures kept."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from tiny import TINY
from workbooks import git

from metaug_core import METHODS, Config
from metaug_core.config import ConfigError
from metaug_core.data import datasets
from metaug_core.evaluation import representations
from metaug_core.meta import meta_gradient
from metaug_core.meta.forward_ad import frozen_statistics
from metaug_core.presets import preset
from metaug_core.runs.store import request
from metaug_workbook import notebook
from metaug_workbook.plots import paper_figures
from metaug_workbook.plots.features import bin_similarities
from metaug_workbook.results import experiments, paper_values, step_costs, tables


def test_a_grid_has_every_combination_with_seeds_innermost_and_each_methods_defaults():
    found = experiments.make_grid({"preset": "sketch", "epochs": None}, 2, method=["metaug", "simclr"], beta=[4, 8])
    assert [(c.method, c.beta, c.seed) for c in found] == [
        (method, beta, seed) for method in ("metaug", "simclr") for beta in (4, 8) for seed in (0, 1)
    ]
    assert found[0] == preset("sketch", beta=4)
    assert found[4] == preset("sketch", method="simclr", beta=4)
    assert found[4].views == ("RGB", "RGB")


@pytest.mark.parametrize(
    ("settings", "axes", "refusal"),
    [
        ({}, {"method": ["no such method"]}, "unknown method 'no such method'"),
        ({}, {"beta": [-1]}, "beta"),
        ({}, {"beta": {4, 8}}, "^beta: needs a list or a single value: a set has no order that lasts"),
        ({"method": "cmc"}, {"method": ["metaug"]}, "method: this notebook compares runs that differ in it"),
    ],
)
def test_a_grid_refuses_an_unknown_method_a_wrong_value_and_a_setting_that_an_axis_would_replace(
    settings, axes, refusal
):
    with pytest.raises(ConfigError, match=refusal):
        experiments.make_grid(settings, 1, **axes)


def test_what_a_method_refuses_is_left_out():
    without_mixup = experiments.make_grid(paper_values.AUGMENTATION_SETS[2], 1, method=["dacl", "looc", "metaug"])
    assert [config.method for config in experiments.keep_trainable(without_mixup)] == ["looc", "metaug"]


@pytest.mark.parametrize("number", paper_values.AUGMENTATION_SETS)
def test_looc_can_be_trained_with_every_set_of_table_4(number):
    sets = {"protocol": "uniform"} | paper_values.AUGMENTATION_SETS[number]
    configs = experiments.make_grid(sets, 1, method=["looc", "metaug"])
    assert experiments.keep_trainable(configs) == configs
    assert all(getattr(configs[0], name) == value for name, value in paper_values.AUGMENTATION_SETS[number].items())


@pytest.mark.parametrize(("changes", "temperature"), [({}, 0.125), ({"beta": 4}, 0.5), ({"preset": "paper"}, 0.75)])
def test_match_temperature_repeats_contrastive_configs_at_the_temperature_of_oucl(changes, temperature):
    """2 / beta in cosines (beta 16); the preset `paper` has phi_dec 6, so beta 16 / 6."""
    methods = ["simclr", "cmc", "metaug-only-oucl", "metaug-only-mag", "metaug"]
    configs = experiments.make_grid({"preset": "sketch"} | changes, 2, method=methods)
    matched = experiments.match_temperature(configs)
    assert [(c.method, c.seed) for c in matched] == [(m, s) for m in ("cmc", "metaug-only-mag") for s in (0, 1)]
    assert {c.temperature for c in matched} == {temperature}
    assert [c.replace(temperature=0.07) for c in matched] == [*configs[2:4], *configs[6:8]]
    assert experiments.match_temperature(matched) == []


def test_runs_of_a_matched_temperature_are_rows_of_their_own():
    configs = experiments.make_grid({"preset": "sketch"}, 1, method=["cmc", "simclr", "metaug"])
    configs += experiments.match_temperature(configs)
    configs += experiments.make_grid({"preset": "sketch"}, 1, method=["simclr"], temperature=[0.125])
    table = experiments.name_matched(pd.DataFrame([config.model_dump() for config in configs]))
    assert table["method"].tolist() == ["cmc", "simclr", "metaug", "cmc at t = 0.125", "simclr"]
    assert paper_values.print_name("cmc at t = 0.125") == "CMC at t = 0.125"
    assert paper_values.print_name("cmc+hallucinator") == "CMC + Hallucinator"


def test_a_plan_holds_what_was_injected_and_refuses_one_seed(monkeypatch):
    monkeypatch.setattr("metaug_workbook.notebook.read_injected", lambda known: ({"lr": 0.5}, []))
    assert notebook.plan_runs({"seeds": 2}, preset="sketch", epochs=None) == {
        "preset": "sketch",
        "epochs": None,
        "lr": 0.5,
    }
    monkeypatch.setattr("metaug_workbook.notebook.read_injected", lambda known: ({"seed": 1}, []))
    with pytest.raises(ConfigError, match="many runs"):
        notebook.plan_runs({"seeds": 2}, preset="sketch")


def test_one_floor_for_each_untrained_encoder():
    configs = experiments.make_grid({}, 2, method=["metaug", "metaug-only-oucl", "simclr"])
    assert [(c.method, c.seed) for c in experiments.select_floors(configs)] == [
        ("simclr", 1), ("simclr", 0), ("metaug", 1), ("metaug", 0)
    ]  # fmt: skip


def test_methods_share_a_floor_only_where_their_untrained_features_are_the_same():
    """Of every method: what is measured of an untrained encoder is equal for equal keys, CPC's patches and DIM's whole images
    have two keys, and methods that begin with the same encoders one."""
    bare = {name: value for name, value in TINY.items() if name != "views"}
    bare |= {"queue_size": 48, "cpc_grid": 3, "cpc_skip": 0, "randaugment": 0.0}
    assert len(experiments.select_floors([Config(**{**bare, "method": name}) for name in ("cpc", "dim")])) == 2
    images, shared = datasets.load(Config(**TINY)).train, {}
    for name in METHODS:
        try:
            config = Config(**{**bare, "method": name})
            networks, _ = representations.load_networks(config, 2)
        except ConfigError:  # a tiny run does not have what this one needs
            continue
        representations.estimate_bn_stats(networks, images, config)
        key = experiments.identify_floor(config)
        shared.setdefault(key, {})[name] = representations.features(networks, images, config)
    group = {name: key for key, found in shared.items() for name in found}
    assert len(group) > 15
    assert group["cpc"] != group["dim"]
    assert group["metaug"] == group["cmc"]
    for found in shared.values():
        first = next(iter(found.values()))
        assert all(torch.equal(first, other) for other in found.values())


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"cpc_grid": 4}, {"train_images": 50}, {"dataset": "shapes"}, {"width": 0.1}]
)
def test_a_setting_that_decides_a_floor_makes_another(changes):
    settings = {name: value for name, value in TINY.items() if name != "views"}
    settings |= {"cpc_grid": 3, "cpc_skip": 0, "method": "cpc"}
    one, other = Config(**settings), Config(**settings | changes)
    assert experiments.identify_floor(one) != experiments.identify_floor(other)
    assert experiments.identify_floor(one) == experiments.identify_floor(one.replace(lr=0.5, batch_size=8, jitter=0.1))


def test_the_cost_is_counted_in_passes_images_and_kinds_of_steps(monkeypatch):
    monkeypatch.setattr(experiments, "time_step", lambda config: {"metaug": 2.0, "cmc": 1.0}[config.method])
    settings = {"train_images": 640, "val_fraction": 0.0, "epochs": 3, "batch_size": 64, "keep_last": 1}
    metaug, cmc = experiments.make_grid(settings, 1, method=["metaug", "cmc"])
    assert experiments.estimate_by_steps([metaug]) == pytest.approx(
        2.0 * 10 * (3 + 0.5)
    )  # evaluation: half a pass more
    assert experiments.estimate_by_steps([metaug, cmc, cmc]) == pytest.approx(4.0 * 10 * (3 + 0.5))


def test_a_real_step_is_timed_and_counted(tiny):
    alternate, epoch = tiny(), tiny(schedule="epoch")
    assert 0 < experiments.time_step(alternate) < 60
    assert 0 < experiments.time_step(epoch) < 60
    ways = {name: step_costs.prepare_step(tiny(method=name)).take for name in ("metaug-only-oucl", "metaug")}
    table = step_costs.compare_costs(ways, rounds=2)
    assert table["times_plain"].iloc[0] == table["flops_plain"].iloc[0] == 1
    assert 2 < table["flops_plain"].iloc[1] < 8 / 3 + 2  # the bound of the encoders, and the MAG's share


def test_flops_are_those_of_the_matmul():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert step_costs.count_work(lambda: a @ b).flops == 2 * 3 * 5 * 7


def test_the_problem_of_the_notebook_agrees_with_double_backward_and_with_a_difference(tiny):
    p = step_costs.build_problem(tiny(delta=1.0, alpha=0.0, negatives="batch"))
    direction = {name: w.detach().sign() for name, w in p.omega.items()}
    with frozen_statistics(*p.modules):
        fast = meta_gradient.meta_gradient(*p[:4], 0.1)
        slow = meta_gradient.meta_gradient_reference(*p[:4], 0.1)
        wanted = step_costs.take_central_difference(p, 0.1, direction)
    assert step_costs.measure_distances({"fast": fast}, slow).loc["fast", "relative"] < 1e-10
    assert float(sum((fast[n] * direction[n]).sum() for n in fast)) == pytest.approx(wanted, rel=1e-7)


def test_derivatives_of_one_loss_agree_with_double_backward(tiny):
    config = tiny(delta=1.0, alpha=1.0, negatives="batch", oucl="eq9")
    found = [way() for way in step_costs.list_derivatives(config, 0.1, torch.float64).values()]
    gradient, forward_over_reverse, reverse_over_reverse, shared, alone, reference = found
    p = step_costs.build_problem(config)
    with frozen_statistics(*p.modules):
        inner = meta_gradient.gradients(p.loss(p.features(p.theta), p.omega), p.theta, create_graph=True)
        along = torch.stack([(inner[name] * gradient[name]).sum() for name in inner]).sum()
        product = meta_gradient.gradients(along, p.theta)
    products = {"forward over reverse": forward_over_reverse, "reverse over reverse": reverse_over_reverse}
    assert step_costs.measure_distances(products, product)["relative"].max() < 1e-10
    assert step_costs.measure_distances({"shared": shared, "alone": alone}, reference)["relative"].max() < 1e-10


def test_runs_are_made_once_with_their_floor_and_nothing_starts_beyond_the_hours(tiny, capsys):
    configs = [tiny(method="metaug-only-oucl", seed=seed) for seed in (0, 1)]
    table = notebook.collect_accuracies(configs, max_hours=0.0, measure="knn")
    assert table["state"].tolist() == ["missing", "missing"]
    assert table["accuracy"].isna().all()
    assert "nothing was started" in capsys.readouterr().out
    assert not request(configs[0]).finished
    table = notebook.collect_accuracies(configs, max_hours=1.0, measure="knn")
    assert table["state"].tolist() == ["finished", "finished"]
    assert table["accuracy"].tolist() == table["knn"].tolist()
    assert table["untrained"].notna().all()
    assert "0 of them there" in capsys.readouterr().out
    again = notebook.collect_accuracies(
        [*configs, configs[0].replace(lr=1e-3), configs[0]], max_hours=0.0, measure="knn"
    )
    assert "3 runs, 2 of them there" in capsys.readouterr().out  # one stands in the table twice
    assert again["accuracy"].tolist()[:2] == table["accuracy"].tolist()
    assert np.isnan(again["accuracy"].iloc[2])
    assert again["untrained"].iloc[2] == table["untrained"].iloc[0]  # the same encoder before training


def test_no_run_at_all_is_refused():
    with pytest.raises(ConfigError, match="there is no run to make"):
        notebook.collect_accuracies([], max_hours=1.0)


def test_tables_have_their_columns_before_any_run_is_finished_and_verdicts_wait(tiny):
    """11_delta, 03, 06 and 09 ended in a KeyError where nothing was trained yet."""
    configs = [tiny(method="metaug-only-oucl"), tiny(method="metaug")]
    table = notebook.select_measure(tables.read_table(configs), "knn")
    assert table[["augmented_knn", "augmented_similarity", "augmented_gradient_share"]].isna().all(axis=None)
    assert notebook.summarise_percent(table, ["method"])["accuracy"].tolist() == ["–", "–"]
    verdicts = notebook.judge_deltas(table.assign(weight=[paper_figures.REFERENCE, 1e-5]))
    assert (len(verdicts), list(verdicts)) == (0, ["minus only OUCL", "verdict", "share of the gradient"])


def test_figure_2_of_no_run_says_so(tiny):
    table = notebook.tabulate_similarities([tiny()], 20)
    assert (len(table), list(table)[:4]) == (0, ["pairs", "count", "mean", "left"])
    figure = paper_figures.draw_similarities(table)
    assert [ax.texts[0].get_text() for ax in figure.axes] == ["no finished run yet"] * 4
    plt.close(figure)
    assert paper_figures.tabulate_gaps(table).empty
    assert paper_figures.describe_margin_change(table) == "an unknown amount"


def test_a_figure_is_kept_with_its_small_table_and_where_it_comes_from(tiny, checkout):
    table = notebook.collect_accuracies(
        [tiny(method="metaug-only-oucl", gamma=gamma) for gamma in (0.2, 0.4)], 1.0, "knn"
    )
    plt.close(notebook.draw_figure("07-gamma", table, table, True, ["gamma"]))
    kept = pd.read_csv(checkout / "figures" / "data" / "07-gamma.csv")
    assert kept["gamma"].tolist() == [0.2, 0.4]
    assert kept["accuracy"].tolist() == pytest.approx(table["accuracy"].tolist())
    origin = json.loads((checkout / "figures" / "07-gamma.json").read_text())
    assert origin["numbers"]["runs"] == sorted(table["run"])
    assert origin["numbers"]["commits"] == [git(checkout, "rev-parse", "HEAD")]
    assert (checkout / "figures" / "07-gamma.svg").exists()


def test_histograms_of_figure_2_are_of_both_kinds_of_pairs(tiny):
    config = tiny()
    notebook.collect_accuracies([config], 1.0, "knn")
    table = notebook.tabulate_similarities([config, tiny(seed=5)], 20)  # the second is not there
    counts = table.groupby(["features", "pairs"])["count"].first()
    assert counts.to_dict() == {
        ("augmented", "different"): 2 * 20 * 19, ("augmented", "same"): 2 * 20,
        ("original", "different"): 20 * 19, ("original", "same"): 20,
    }  # fmt: skip
    assert table.columns.tolist()[:5] == bin_similarities(np.ones(1), np.ones(1)).columns.tolist()


def test_what_runs_add_to_their_features_is_a_row_for_each_singular_value(tiny):
    """Of what is finished and has z~: of noise at the similarity that is asked for, and of a network."""
    configs = [tiny(method=name, matched_similarity=0.9) for name in ("cmc+noise", "metaug-only-mag", "cmc")]
    notebook.collect_accuracies(configs, 1.0, "knn")
    table = notebook.tabulate_augmented([*configs, tiny(method="cmc+noise", seed=5)], 20)
    by_run = table.groupby("run", sort=False)
    assert list(by_run.groups) == [config.name() for config in configs[:2]]
    noise, network = (rows for _, rows in by_run)
    for rows in (noise, network):
        assert rows["number"].tolist() == list(range(1, configs[0].feature_dim + 1))
        assert rows["value"].iloc[0] == 1
        assert rows["value"].is_monotonic_decreasing
        assert rows[["rank", "rank_z", "similarity"]].nunique().tolist() == [1, 1, 1]
    assert noise["similarity"].iloc[0] == pytest.approx(0.9, abs=1e-6)
    assert network["similarity"].iloc[0] != pytest.approx(0.9, abs=1e-3)


def test_verdicts_follow_from_intervals():
    rows = [(weight, seed, 0.5 + gain + 0.001 * seed * (weight == 1e-7)) for weight, gain in
            ((-1.0, 0), (0.0, 0.0), (1e-7, -0.0005), (1.0, -0.1)) for seed in (0, 1)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["weight", "seed", "accuracy"]).assign(augmented_gradient_share=1e-3)
    found = notebook.judge_deltas(table)
    assert found["verdict"].to_dict() == {"control": "open", "1e-07": "open", "1": "lower"}
    assert found.loc["1"].tolist() == ["-10.00 ± 0.00 (n = 2)", "lower", "0.001"]


def test_the_papers_tables_stand_with_blanks_where_no_run_is_and_commands_that_fill_them():
    first = paper_figures.compare_methods(2, 1)
    assert first.shape == (12, 2)
    assert first.loc["MetAug", ("cifar10", "resnet50")].endswith("/ 91.09")
    marked = [name for name in paper_figures.compare_methods(1, 1).index if name.endswith("‡")]
    assert marked == ["SplitBrain‡", "CMC‡", "CMC + Debiased‡", "CMC + Hard‡", "MetAug (only OUCL)‡", "MetAug‡"]
    assert len(paper_figures.list_commands(20)) == 12
    assert paper_figures.compare_cell([], 87.87) == "– / 87.87"
