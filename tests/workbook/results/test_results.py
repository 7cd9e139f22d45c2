"""Results: finished runs as a tidy table, the statistics over seeds by hand, what is missing made and nothing made twice."""

import math
import re

import pandas as pd
import pytest
from scipy import stats

from metaug_core import MetaugError, evaluate, fit
from metaug_core.evaluation import probes
from metaug_core.evaluation.representations import AUGMENTED, over_seeds
from metaug_core.runs import files, store
from metaug_core.runs.files import StoreError
from metaug_core.training.progress import silent
from metaug_workbook import notebook
from metaug_workbook.jobs import runner
from metaug_workbook.results import spread, tables


def quick(configs, **options):
    """`make_table` with the cheap measure only, without a bar."""
    return runner.make_table(
        configs, **{"measures": ("knn",), "representations": ("trained",), "view": silent} | options
    )


# --- rows
def test_a_row_holds_settings_measures_metrics_and_the_machine(tiny):
    config = tiny(seed=3)
    run = fit(config, lambda _: None)
    evaluated = evaluate(run, augmented=True, measures=probes.MEASURES)
    row = tables.read_row(run)
    assert (row["state"], row["run"], row["seed"], row["views"]) == ("finished", config.name(), 3, "L,ab")
    assert set(config.identity()) - {"source"} <= set(row)
    assert {"delta", "cpc_grid"} <= set(row)  # columns are the same for all methods
    assert "runs_dir" not in row
    for name, prefix in {
        "trained": "",
        "untrained": "untrained_",
        "raw pixels": "raw_",
        AUGMENTED: "augmented_",
    }.items():
        for measure in probes.MEASURES:
            assert row[prefix + measure] == evaluated.loc[name, measure]
    assert row["draws"] == 10
    last = run.metrics[run.metrics["epoch"] > config.epochs - 1]  # steps 6, 8 and 10, and the monitor's reading
    assert row["effective_rank"] == pytest.approx(last["effective_rank"].dropna().mean())
    assert row["augmented_gradient_share"] == pytest.approx(last["augmented_gradient_share"].dropna().mean())
    assert row["knn_val"] == run.metrics["knn_val"].iloc[-1]
    assert row["lr"] == config.lr  # the setting, not the last rate
    environment = files.read_json(run.path / "environment.json")
    assert row["commit"] == environment[-1]["commit"]
    assert (row["device"], row["sessions"]) == ("cpu", 1)
    assert row["seconds"] == run.timing["seconds"].iloc[-1]


def test_seconds_are_those_of_all_sessions(tiny):
    run = fit(tiny(epochs=1), lambda _: None)
    rows = [{"step": n, "seconds": s, "images_per_second": v} for n, s, v in [(2, 3.0, 1), (4, 7.0, 2), (6, 2.5, 9)]]
    (run.path / "timing.jsonl").unlink()
    files.append(run.path / "timing.jsonl", rows)
    assert tables.read_row(run)["seconds"] == 9.5
    assert tables.read_row(run)["images_per_second"] == 9


def test_a_table_has_a_row_for_each_request_in_order(tiny):
    configs = [tiny(seed=seed, epochs=1) for seed in (2, 0, 1)]
    fit(configs[2], lambda _: None)
    table = tables.read_table(configs)
    assert table["state"].tolist() == ["missing", "missing", "finished"]
    assert table["seed"].tolist() == [2, 0, 1]
    assert table["knn"].isna().all()  # trained, but not evaluated
    assert [run.config.seed for run in tables.list_missing(configs)] == [2, 0, 1]


def test_a_damaged_run_is_a_row_that_says_so(tiny):
    configs = [tiny(seed=seed, epochs=1) for seed in (0, 1, 2)]
    expected = quick(configs)
    files = [store.request(configs[0]).evaluation_file(), store.request(configs[2]).path / "metrics.jsonl"]
    for file in files:
        file.write_bytes(b"3\n")
    for table, state in ((tables.read_table(configs), "damaged"), (quick(configs), "failed")):
        assert table["state"].tolist() == [state, "finished", "damaged"]
        assert str(files[0]) in table["failure"][0]
        assert str(files[1]) in table["failure"][2]
        assert table["knn"][1] == expected["knn"][1]
    assert [run.path.name for run in tables.list_missing(configs, ("knn",), ("trained",))] == [configs[0].name()]


# --- what is missing is made, once
def test_make_table_trains_evaluates_and_then_only_reads(tiny):
    configs = [tiny(seed=seed, epochs=1) for seed in (0, 1)]
    told = []
    table = quick(configs, view=lambda runs: lambda done, at: told.append((runs, done)))
    assert told[0] == (2, 0)
    assert told[-1] == (2, 2)
    assert table["state"].tolist() == ["finished", "finished"]
    assert table["knn"].between(0, 1).all()
    assert table["probe_plain"].isna().all()  # not asked, so not computed
    assert not tables.list_missing(configs, ("knn",), ("trained",))
    files = [store.request(config).path / "evaluation-test.json" for config in configs]
    before = [file.stat().st_mtime_ns for file in files]
    assert quick(configs, view=lambda runs: pytest.fail("nothing is to be done")).equals(table)
    assert [file.stat().st_mtime_ns for file in files] == before
    more = quick(configs, measures=("knn", "probe_fast"), augmented=True)
    assert more["knn"].equals(table["knn"])
    assert more[["probe_fast", "augmented_knn"]].notna().all(axis=None)


def test_a_run_that_diverges_is_a_row_and_is_not_tried_again(tiny, tmp_path):
    configs = [tiny(lr=1e30, optimiser="sgd"), tiny(), tiny(seed=1, dataset="cifar10", data_dir=tmp_path)]
    table = quick(configs)
    assert table["state"].tolist() == ["failed", "finished", "failed"]
    assert f"run {configs[0].name()} stopped at step" in table["failure"][0]
    assert table["failure"][1] is None or pd.isna(table["failure"][1])
    assert "cifar10 is not in" in table["failure"][2]
    environment = store.request(configs[0]).path / "environment.json"
    before = environment.stat().st_mtime_ns  # its text may be the same: the clock in it counts whole seconds
    assert quick(configs[:2])["failure"][0] == table["failure"][0]
    assert environment.stat().st_mtime_ns == before
    quick(configs[:1], retry=True)
    assert environment.stat().st_mtime_ns > before
    assert tables.read_table(configs)["state"].tolist() == ["failed", "finished", "missing"]  # missing data may come


@pytest.mark.parametrize("together", [2, 5])
def test_side_by_side_the_table_is_the_same(tiny, tmp_path, together):
    configs = [tiny(seed=seed, epochs=1) for seed in (0, 1, 2)] + [tiny(lr=1e30, optimiser="sgd"), tiny(method="cmc")]
    alone, beside = (quick([c.replace(runs_dir=tmp_path / str(n)) for c in configs], together=n) for n in (1, together))
    assert beside["state"].tolist() == ["finished"] * 3 + ["failed", "finished"]
    pd.testing.assert_frame_equal(alone.drop(columns=tables.MACHINE), beside.drop(columns=tables.MACHINE))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"measures": ("knnn",)}, "unknown measure 'knnn'; did you mean 'knn'?"),
        ({"representations": ("train",)}, "unknown representation 'train'; did you mean 'trained'?"),
    ],
)
def test_an_unknown_measure_is_refused_before_anything_is_trained(tiny, options, sentence):
    with pytest.raises(MetaugError, match=sentence.replace("?", r"\?")):
        quick([tiny()], **options)
    assert not store.request(tiny()).path.exists()


# --- statistics, by hand
ROWS = pd.DataFrame(
    {
        "method": ["a", "a", "a", "b", "b", "b", "c"],
        "seed": [0, 1, 2, 0, 1, 3, 0],
        "knn": [0.5, 0.6, 0.7, 0.6, 0.8, 0.1, math.nan],
    }
)
T2, T1 = 4.302652729911275, 12.706204736432095  # t(0.975) with 2 and 1 degrees of freedom


def test_summary_by_hand():
    found = tables.summarize(ROWS, "method", "knn").set_index("method")
    assert found["n"].to_dict() == {"a": 3, "b": 3, "c": 0}
    assert found["mean"]["a"] == pytest.approx(0.6)
    assert found["half_width"]["a"] == pytest.approx(T2 * 0.1 / 3**0.5)
    assert found["mean"]["b"] == pytest.approx(0.5)
    assert math.isnan(found["mean"]["c"])
    two = tables.summarize(ROWS.assign(x=[None, None, 1, 1, 1, 1, 1]), ["x", "method"], "knn")
    assert two["n"].tolist() == [2, 1, 3, 0]  # None is a value too: the setting was left open
    assert math.isnan(two["half_width"][1])


def test_paired_by_hand():
    found = tables.compare_paired(ROWS, "method", "a", "knn").to_dict("records")
    assert len(found) == 1  # c has no value at all
    assert found[0]["n"] == 2  # seeds 0 and 1: differences 0.1 and 0.2
    assert found[0]["mean"] == pytest.approx(0.15)
    assert found[0]["half_width"] == pytest.approx(T1 * (0.1 / 2**0.5) / 2**0.5)


def test_pairs_may_share_more_than_the_seed():
    both = pd.concat([ROWS.assign(batch=16), ROWS.assign(batch=32, knn=ROWS["knn"] + 0.01)], ignore_index=True)
    with pytest.raises(MetaugError, match=r"paired: two rows with method = a and seed = \(0,\); select first"):
        tables.compare_paired(both, "method", "a", "knn")
    found = tables.compare_paired(both, "method", "a", "knn", shared=("seed", "batch"))
    assert found["n"].tolist() == [4]
    assert found["mean"][0] == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: tables.summarize(ROWS, "metod", "knn"), "no column 'metod'; did you mean 'method'"),
        (lambda: tables.summarize(ROWS, "method", "kn"), "no column 'kn'; did you mean 'knn'"),
        (lambda: tables.compare_paired(ROWS, "method", "z", "knn"), "no row has method = 'z' and a knn"),
        (lambda: tables.compare_paired(ROWS, "method", "c", "knn"), "no row has method = 'c' and a knn"),
    ],
)
def test_statistics_refuse_in_one_sentence(call, sentence):
    with pytest.raises(MetaugError, match=sentence):
        call()


# --- disk
def test_a_table_comes_back_from_parquet_and_from_csv(tmp_path):
    tables.save(ROWS, tmp_path / "deep" / "table")
    pd.testing.assert_frame_equal(tables.load(tmp_path / "deep" / "table"), ROWS)
    (tmp_path / "deep" / "table.parquet").unlink()
    pd.testing.assert_frame_equal(tables.load(tmp_path / "deep" / "table"), ROWS)
    (tmp_path / "deep" / "table.csv").unlink()
    with pytest.raises(StoreError, match="there is no table"):
        tables.load(tmp_path / "deep" / "table")


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    tables.save(ROWS, tmp_path / "table")
    before = (tmp_path / "table.csv").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left on device; what was saved before is kept"):
        tables.save(ROWS.head(1), tmp_path / "table")
    assert (tmp_path / "table.csv").read_bytes() == before
    assert not list(tmp_path.glob(".writing-*"))


def test_the_notebooks_line_says_how_many_runs_are_made(tiny, monkeypatch):
    shown = []

    class Handle:
        def update(self, data, raw):
            shown.append(data["text/plain"])

    monkeypatch.setattr("metaug_workbook.widgets.live.display", lambda *_, **__: Handle())
    monkeypatch.setattr("metaug_core.training.loop.REPORT_SECONDS", 0.0)
    configs = [tiny(seed=seed, epochs=1) for seed in (0, 1)]
    notebook.make_table(
        configs, measures=("knn",), representations=("trained",), processes=1
    )  # a busy machine would take two
    assert any(
        re.fullmatch(r"1 of 2 runs made, .+ left; tiny-metaug-conv-s1-\w+: step 3 of 5, loss [\d.]+", s) for s in shown
    )
    assert shown[-1] == "2 of 2 runs made"


def test_the_validation_split_may_be_asked_instead(tiny):
    table = quick([tiny(epochs=1)], split="val")
    assert (table["split"][0], table["n_eval"][0]) == ("val", 10)
    assert table["knn"].notna().all()
    assert tables.list_missing([tiny(epochs=1)], ("knn",), ("trained",))  # on the test split
    assert tables.read_table([tiny(epochs=1)])["knn"].isna().all()


# --- for a reader
def test_a_table_for_a_reader_has_numbers_as_one_writes_them():
    index = pd.MultiIndex.from_tuples([("metaug", 1e-13), ("mine", math.nan)], names=["method", "alpha"])
    columns = {"accuracy": [46.0, 25.5], "gap": [1e-16, math.nan], "n": [1998, 3], "crop": [(0.2, 1.0), ("flip",)]}
    shown = tables.format_table(pd.DataFrame(columns, index))
    assert shown.index.tolist() == [("MetAug", "1e-13"), ("mine", "–")]
    assert shown.to_dict("list") == {
        "accuracy (%)": ["46.0", "25.5"], "gap": ["1e-16", "–"], "n": ["1,998", "3"], "crop": ["0.2, 1", "flip"],
    }  # fmt: skip


def test_a_table_for_a_reader_may_be_empty():
    assert tables.format_table(pd.DataFrame({"accuracy": []})).empty


# --- where an accuracy varies
def test_the_interval_of_a_standard_deviation_is_that_of_chi_squared():
    values = [0.5, 0.52, 0.47, 0.53, 0.51]
    deviation, low, high = spread.estimate_deviation(values)
    mean = sum(values) / 5
    assert deviation == pytest.approx(math.sqrt(sum((value - mean) ** 2 for value in values) / 4))
    squares = sum((value - mean) ** 2 for value in values)
    assert low == pytest.approx(math.sqrt(squares / stats.chi2.ppf(0.975, 4)))
    assert high == pytest.approx(math.sqrt(squares / stats.chi2.ppf(0.025, 4)))
    assert all(map(math.isnan, spread.estimate_deviation([0.5])))


def test_spread_by_source_in_points(tiny):
    runs = [fit(tiny(seed=seed, epochs=1), silent) for seed in range(2)]
    by_seed = pd.DataFrame({"accuracy": [0.5, 0.52]})
    evaluate(runs[0], representations=("trained",))
    alone = spread.tabulate_spread(runs[0], by_seed)
    assert alone["n"].tolist() == [2, 1, 1]
    assert alone["deviation"].isna().tolist() == [False, True, True]
    rows = [evaluate(run, representations=("trained",)).loc["trained"] for run in runs]
    table = spread.tabulate_spread(runs[1], by_seed)
    assert table["n"].tolist() == [2, 2, 2]
    first, second = (row["probe_plain"] for row in rows)
    images = sum(a != b for a, b in zip(*(run.correct()["probe_plain"].tolist() for run in runs), strict=True))
    sampling = math.sqrt(2 * 0.25 * images / 60 / 60)  # an image that one of two runs has right: p (1 - p) = 1/4
    expected = [math.sqrt(0.0002), abs(first - second) / math.sqrt(2), sampling]
    assert table["deviation"].tolist() == pytest.approx([100 * value for value in expected])


def test_a_table_over_seeds_is_written_in_percent_with_intervals():
    found = [
        pd.DataFrame({"representation": ["trained", "untrained"], "seed": seed, "probe_plain": plain, "knn": knn})
        for seed, plain, knn in ((0, [0.5, 0.25], [0.4, 0.2]), (1, [0.7, 0.25], [0.4, 0.3]))
    ]
    shown = tables.format_over_seeds(over_seeds([one.set_index("representation") for one in found]))
    assert list(shown.index) == ["trained", "untrained"]
    assert list(shown.columns) == ["linear probe (plain images)", "kNN"]
    assert shown.loc["trained"].tolist() == ["60.0 ± 127.1 (n = 2)", "40.0 ± 0.0 (n = 2)"]  # t = 12.706, sd 0.1414
    alone = tables.format_over_seeds(over_seeds([found[0].set_index("representation")]))
    assert alone.loc["untrained"].tolist() == ["25.0 (n = 1)", "20.0 (n = 1)"]
