"""The evidence: what is missing of an experiment, its tables, and what they say; by hand-made tables, without training."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from metaug_core import methods
from metaug_core.config import HOME, Config
from metaug_core.errors import MetaugError
from metaug_workbook.results import claims, evidence_tables
from metaug_workbook.results.claims import FAILS, HOLDS, MISSING, OPEN, SHOWN, Contrast
from metaug_workbook.results.evidence import EXPERIMENTS, Experiment, keep_best, keep_best_of_each_method
from metaug_workbook.results.evidence_tables import MACHINE, Difference, Plan, WaitingError, compare, select_seeds

HERE = {"processor": "this", "device": "cpu", "precision": "float32", "torch": "2", "engine": 4}
OTHER = HERE | {"processor": "another"}
PAIR = ((("B", "accuracy"),), (("A", "accuracy"),))


def row(arm, seed, accuracy, machine=None, **more):
    return {"row": f"{arm}{seed}{(machine or HERE)['processor']}", "arm": arm, "seed": seed, "accuracy": accuracy, "n_eval": 8,
            **(machine or HERE), **more}  # fmt: skip


def make_table(*rows):
    return pd.DataFrame(rows)


# --- differences
def test_a_difference_is_the_mean_over_seeds_with_its_t_interval_and_one_over_images():
    right = np.random.RandomState(0).rand(3, 2, 8) < 0.6  # seeds, arms, images
    rows = [row(arm, seed, right[seed, n].mean()) for seed in range(3) for n, arm in enumerate("AB")]
    bits = {r["row"]: np.packbits(right[r["seed"], "AB".index(r["arm"])]) for r in rows}
    found = compare(make_table(*rows), *PAIR, bits)
    differences = 100 * (right[:, 1].mean(1) - right[:, 0].mean(1))
    assert found.mean == pytest.approx(differences.mean())
    assert found.half == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(differences))
    each = 100 * (right[:, 1].mean(0) - right[:, 0].mean(0))
    assert found.half_images == pytest.approx(1.96 * stats.sem(each))
    assert found.n == 3
    assert np.isnan(compare(make_table(*rows), *PAIR, {}).half_images)


def test_arms_of_two_machines_are_never_compared():
    table = make_table(
        row("A", 0, 0.9, OTHER), row("A", 0, 0.5), row("B", 0, 0.6),  # seed 0: whole here, one arm there
        row("A", 1, 0.9, OTHER), row("B", 1, 0.1),  # seed 1: nobody has both
        row("A", 2, 0.2, OTHER), row("B", 2, 0.4, OTHER),
    )  # fmt: skip
    found = compare(table, *PAIR, {})
    assert (found.n, found.mean) == (2, pytest.approx(15))
    assert not select_seeds(table).duplicated(["seed", "arm"]).any()


@pytest.mark.parametrize("name", MACHINE)
def test_a_seed_is_compared_only_where_the_machine_is_the_same_in_everything(name):
    table = make_table(row("A", 0, 0.5), row("B", 0, 0.6, HERE | {name: "3"}))
    assert compare(table, *PAIR, {}).n == 0


def test_a_failed_run_is_no_accuracy():
    assert compare(make_table(row("A", 0, 0.5), row("B", 0, None)), *PAIR, {}).n == 0


def test_a_difference_of_differences():
    arms = {"A": 0.5, "B": 0.7, "C": 0.1, "D": 0.2}
    table = make_table(*(row(arm, seed, value + seed / 100) for arm, value in arms.items() for seed in range(2)))
    cells = {arm: (arm, "accuracy") for arm in arms}
    found = compare(table, (cells["B"], cells["C"]), (cells["A"], cells["D"]), {})
    assert (found.mean, found.half) == (pytest.approx(10), pytest.approx(0, abs=1e-9))


def test_two_columns_of_one_arm():
    table = make_table(row("A", 0, 0.5, augmented_accuracy=0.4), row("A", 1, 0.6, augmented_accuracy=0.4))
    assert compare(table, (("A", "augmented_accuracy"),), (("A", "accuracy"),), {}).mean == pytest.approx(-15)


def test_how_much_of_the_spread_between_seeds_is_the_test_sets_size():
    random = np.random.RandomState(1)
    p = random.rand(400)

    def spread(right):
        rows = [row("A", seed, one.mean()) | {"n_eval": 400} for seed, one in enumerate(right)]
        return evidence_tables.split_spread(
            make_table(*rows), "A", {r["row"]: np.packbits(right[r["seed"]]) for r in rows}
        )

    sd, sampling = spread(random.rand(300, 400) < p)  # every image by chance alone
    assert sampling == pytest.approx(100 * np.sqrt((p * (1 - p)).mean() / 400), rel=0.02)
    assert sd == pytest.approx(sampling, rel=0.15)
    skill = random.rand(50, 1) < 0.5  # every image is right in the same half of the runs
    sd, sampling = spread(np.repeat(skill, 400, 1))
    assert sd > 10 * sampling


def test_seeds_for_an_interval():
    known = Difference(0.0, 1.0, 5)
    needed = known.count_seeds(0.5)
    assert needed is not None
    sd = 5**0.5 / stats.t.ppf(0.975, 4)
    for n, enough in ((needed, True), (needed - 1, False)):
        assert (stats.t.ppf(0.975, n - 1) * sd / n**0.5 <= 0.5) == enough
    assert known.count_seeds(2.0) == 5
    assert Difference(0.0, float("nan"), 1).count_seeds(0.5) is None


# --- what is missing
EXPERIMENT = Experiment("?", {"A": {"method": "cmc"}, "B": {"method": "metaug-only-oucl"}}, "A", 2, preset="sketch")


def plan_here(monkeypatch, folder):
    monkeypatch.setattr(evidence_tables, "describe_machine", lambda config: HERE)
    return Plan("mine", EXPERIMENT, EXPERIMENT.build_configs({}), folder)


def rows_of(plan, *keys, machine=None):
    named = {"dataset": "shapes"}
    return [row(arm, seed, 0.5, machine, settings=plan.digests[arm, seed], **named) for arm, seed in keys]


def test_a_seed_is_done_where_one_machine_has_all_its_arms(tmp_path, monkeypatch):
    plan = plan_here(monkeypatch, tmp_path)
    everything = [("A", 0), ("B", 0), ("A", 1), ("B", 1)]
    assert plan.list_missing(make_table(*rows_of(plan, ("A", 0), ("B", 0), machine=OTHER))) == everything[2:]
    assert plan.list_missing(make_table(*rows_of(plan, ("A", 0), machine=OTHER))) == everything
    assert plan.list_missing(make_table(*rows_of(plan, ("A", 0)))) == everything[1:]
    assert (
        plan.list_missing(make_table(*rows_of(plan, ("A", 0)), *rows_of(plan, ("B", 0), machine=OTHER)))
        == everything[1:]
    )


def test_rows_of_other_settings_are_done_again(tmp_path, monkeypatch):
    plan = plan_here(monkeypatch, tmp_path)
    table = make_table(*rows_of(plan, ("A", 0), ("B", 0)))
    old = table.assign(settings=["another", *table["settings"][1:]])
    assert plan.list_missing(old) == [("A", 0), ("A", 1), ("B", 1)]
    gone = table.assign(arm=["an arm that is gone", "B"])
    assert plan.drop_stale(gone)["arm"].tolist() == ["B"]
    of_other_images = old.assign(dataset="folder")  # another data set is no older state of this one
    assert len(plan.drop_stale(of_other_images)) == 2


def test_the_digest_does_not_know_where_images_are_and_which_engine_ran(tmp_path, monkeypatch):
    one = Config(dataset="folder", data_dir=tmp_path / "here", seed=3)
    assert evidence_tables.digest(one) == evidence_tables.digest(one.replace(data_dir=tmp_path / "there"))
    assert evidence_tables.digest(one) != evidence_tables.digest(one.replace(lr=0.5))
    before = evidence_tables.digest(one)
    monkeypatch.setattr("metaug_core.config.ENGINE_VERSION", 99)
    assert evidence_tables.digest(one) == before


def test_a_table_is_the_same_text_in_whatever_order_its_rows_came(tmp_path):
    known = {"accuracy": 0.5, "n_eval": 60, "uncommitted_changes": False, "failure": None}
    failed = {"accuracy": None, "n_eval": None, "uncommitted_changes": None, "failure": "diverged"}
    rows = [{"row": "a", **known}, {"row": "b", **failed}, {"row": "c", **known}]
    texts = set()
    for order in itertools.permutations(rows):
        table = pd.DataFrame(columns=pd.Index(["row", *known]))
        for one in order:
            table = evidence_tables.merge(table, pd.DataFrame([one]), ["row"]).sort_values("row")
            (tmp_path / "t.csv").write_bytes(evidence_tables.format_csv(table))
            table = evidence_tables.read_csv(tmp_path / "t.csv")
        texts.add((tmp_path / "t.csv").read_text())
    assert texts == {
        "row,accuracy,n_eval,uncommitted_changes,failure\na,0.5,60,False,\nb,,,,diverged\nc,0.5,60,False,\n"
    }


# --- the experiments as they are listed
@pytest.mark.parametrize("name", [name for name, one in EXPERIMENTS.items() if one.chosen_from is None])
def test_every_arm_can_be_trained_and_every_arm_is_another_run(name):
    experiment = EXPERIMENTS[name]
    configs = experiment.build_configs({"dataset": "shapes"} if "dataset" not in experiment.settings else {}, seeds=1)
    digests = [evidence_tables.digest(config) for config in configs.values()]
    for config in {config.method: config for config in configs.values()}.values():
        methods.build(config)
    assert experiment.reference in experiment.arms
    if name != "07-hyperparameters":  # its three panels share cells
        assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: claim.letter)
def test_every_claim_is_about_arms_of_its_experiment(claim):
    arms = EXPERIMENTS[claim.experiment].arms
    assert {arm for contrast in claim.contrasts for arm, _ in (*contrast.plus, *contrast.minus)} <= arms.keys()


def test_the_best_arms_are_chosen_by_their_gain_on_their_own_base():
    arms = {
        "metaug-only-oucl": {"method": "metaug-only-oucl"}, "cmc": {"method": "cmc"},
        "M1": {"method": "metaug"}, "M2": {"method": "metaug"}, "C1": {"method": "metaug-only-mag"},
    }  # fmt: skip
    means = {"metaug-only-oucl": 0.5, "cmc": 0.8, "M1": 0.6, "M2": 0.4, "C1": 0.85}
    table = make_table(*(row(arm, seed, mean) for arm, mean in means.items() for seed in range(2)))
    experiment = Experiment("?", arms, "cmc", 2)
    assert list(keep_best(1)(experiment, table)) == ["metaug-only-oucl", "cmc", "M1"]
    assert list(keep_best(2)(experiment, table)) == ["metaug-only-oucl", "cmc", "M1", "C1"]


def test_of_each_method_the_best_rate_is_chosen():
    arms = {f"{method}, lr {lr}": {"method": method, "lr": lr} for method in ("cmc", "dim") for lr in (0.1, 0.2)}
    means = dict(zip(arms, (0.5, 0.6, 0.9, 0.1), strict=True))
    table = make_table(*(row(arm, 0, mean, method=arms[arm]["method"]) for arm, mean in means.items()))
    chosen = keep_best_of_each_method(Experiment("?", arms, "cmc, lr 0.1", 1), table)
    assert chosen == {"cmc": arms["cmc, lr 0.2"], "dim": arms["dim, lr 0.1"]}


def test_an_experiment_whose_arms_are_not_chosen_yet_waits(tmp_path):
    with pytest.raises(WaitingError, match=r"^11-search-3 waits for 11-search-2, from which"):
        evidence_tables.find_experiment("11-search-3", tmp_path)
    with pytest.raises(MetaugError, match="unknown experiment '09-claim'; did you mean '09-claims'"):
        evidence_tables.find_experiment("09-claim", tmp_path)


# --- verdicts
@pytest.mark.parametrize(
    ("needs", "mean", "half", "word"),
    [
        ("more", 1.0, 0.9, HOLDS), ("more", 0.2, 0.3, OPEN), ("more", 0.1, 0.3, FAILS), ("more", -2.0, 1.0, FAILS),
        ("more", 1.0, 1.1, OPEN), ("less", -1.0, 0.9, HOLDS), ("less", 1.0, 0.9, FAILS), ("less", -0.2, 0.4, OPEN),
        ("same", 0.3, 0.6, HOLDS), ("same", 0.3, 0.8, OPEN), ("same", -1.5, 0.4, FAILS), ("more", 1.0, float("nan"), OPEN),
    ],
)  # fmt: skip
def test_a_contrast_is_judged_by_its_interval(needs, mean, half, word):
    assert Contrast("", (), (), needs).judge(Difference(mean, half, 1 if np.isnan(half) else 5)) == word


def test_a_claim_without_runs_says_so_and_one_contrast_that_fails_decides(tmp_path):
    (claim,) = (claim for claim in claims.CLAIMS if claim.letter == "a")
    verdict = claims.judge(claim, tmp_path)
    assert verdict.word == MISSING
    assert claims.describe_needs(verdict) == "`metaug evidence 09-claims`"
    levels = {"only OUCL": 0.5, "CMC": 0.4, "CMC at t = 2/beta": 0.6}
    shown = dict.fromkeys(("dataset", "encoder", "settings"), "x") | dict.fromkeys(
        ("train_images", "image_size", "width", "epochs", "knn"), 1
    )
    rows = [
        row(arm, seed, level + seed / 1000 * (arm == "CMC"), **shown)
        for arm, level in levels.items()
        for seed in range(3)
    ]
    make_table(*rows).to_csv(tmp_path / "09-claims.csv", index=False)
    verdict = claims.judge(claim, tmp_path)
    assert verdict.word == FAILS
    assert list(verdict.words.values()) == [HOLDS, FAILS, SHOWN, SHOWN]
    assert "+9.9 ± 0.2 (n = 3)" in claims.to_markdown([verdict])


def test_the_page_of_the_claims_says_what_the_committed_tables_say():
    page = (HOME / "docs" / "claims.md").read_text(encoding="utf-8")
    assert page[page.index(claims.BEGIN) :] == claims.to_markdown(claims.judge_all())


def test_what_is_only_shown_decides_nothing():
    assert Contrast("", (), (), "nothing").judge(Difference(-9.0, 0.1, 5)) == SHOWN
