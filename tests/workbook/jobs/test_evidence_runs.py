"""`metaug evidence` with real processes: killed again and again it fills the same tables; a time limit; one's own experiment."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from test_sweep import ended, started
from tiny import ROOT, TINY
from workbooks import sentence

from metaug_core import extensions
from metaug_workbook.cli import main
from metaug_workbook.jobs import evidence_runs
from metaug_workbook.plots import gallery
from metaug_workbook.plots.paper_figures import FIGURES
from metaug_workbook.results import evidence_tables
from metaug_workbook.results.evidence import EXPERIMENTS, ROUNDS, Experiment
from metaug_workbook.results.evidence_tables import Plan

OWN = """\
from metaug_workbook.results.evidence import EXPERIMENTS, Experiment

EXPERIMENTS["mine"] = Experiment(
    "Does the tiny MAG help?",
    {"CMC": {"method": "cmc"}, "MetAug": {"method": "metaug"}, "diverges": {"method": "cmc", "optimiser": "sgd", "lr": 1e30}},
    "CMC", 2, preset="quick", augmented=True,
)
EXPERIMENTS["other"] = Experiment("?", {"the same": {"method": "metaug"}}, "the same", 1, preset="quick")
"""
FIXED = {name: value for name, value in TINY.items() if name not in ("lr", "delta", "alpha")} | {
    "epochs": 30, "train_images": 100, "checkpoint_minutes": 0.001,
}  # fmt: skip
# Columns that differ between two runs of the same list: when, and how often it was begun.
OF_THE_DAY = ["seconds"]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The file of an experiment of one's own; it is forgotten afterwards, so that another test can import one of the same name."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / "own.py"
    file.write_text(OWN)
    yield file
    sys.modules.pop("own", None)
    for name in ("mine", "other"):
        EXPERIMENTS.pop(name, None)


def words(own: Path, place: Path, *more: str) -> list[str]:
    sets = [f"{n}={','.join(v) if isinstance(v, tuple) else v}" for n, v in FIXED.items()]
    options = [word for one in sets for word in ("--set", one)]
    options += ["--import", str(ROOT / "tests" / "tiny.py"), "--import", str(own)]
    return ["evidence", *more, *options, "--tables", str(place / "tables"), "--runs-dir", str(place / "runs")]


def start(arguments: list[str]) -> subprocess.Popen:
    return started([sys.executable, "-c", "from metaug_workbook.cli.main import main; main()", *arguments])


def end(process: subprocess.Popen) -> tuple[int, str]:
    code, out, err = ended(process)
    return code, out + err


def read_all(place: Path, name: str) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    folder = place / "tables"
    table = evidence_tables.read(name, folder).drop(columns=OF_THE_DAY)
    return table, evidence_tables.read_readings(name, folder), evidence_tables.read_bits(name, folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_list_that_is_killed_again_and_again_fills_the_same_tables(own, tmp_path):
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    code, said = end(start(words(own, whole, "mine", "other")))
    assert code == 0
    assert said.count("failed: ") == 2  # the arm that diverges, both seeds
    luck = random.Random(5)
    for _ in range(3):
        process = start(words(own, hurt, "mine", "other"))
        until = time.monotonic() + 300
        count = len(list(hurt.glob("runs/*/timing.jsonl")))
        while len(list(hurt.glob("runs/*/timing.jsonl"))) == count and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(luck.uniform(0, 0.5))
        process.send_signal(luck.choice([signal.SIGKILL, signal.SIGINT]))
        process.communicate(timeout=120)
    code, said = end(start(words(own, hurt, "mine", "other")))
    assert code == 0
    extensions.load(own)
    for name in ("mine", "other"):
        (table, epochs, bits), (hurt_table, hurt_epochs, hurt_bits) = read_all(whole, name), read_all(hurt, name)
        pd.testing.assert_frame_equal(table, hurt_table)
        pd.testing.assert_frame_equal(epochs, hurt_epochs)
        assert {row: one.tobytes() for row, one in bits.items()} == {
            row: one.tobytes() for row, one in hurt_bits.items()
        }
    table, epochs, bits = read_all(whole, "mine")
    trained = table[table["arm"] != "diverges"]
    assert table["arm"].tolist() == ["CMC", "MetAug", "diverges"] * 2
    assert trained["accuracy"].notna().all()
    assert table.loc[table["arm"] == "diverges", "failure"].str.contains("stopped at step").all()
    assert trained.groupby("seed")["untrained"].nunique().tolist() == [1, 1]  # measured once, of both arms
    assert trained["untrained"].notna().all()
    assert table.loc[table["arm"] == "MetAug", "augmented_accuracy"].notna().all()
    for row in trained.itertuples():
        assert evidence_tables.unpack(bits[row.row], row.n_eval).mean() == pytest.approx(row.accuracy)
    assert (
        epochs[epochs["row"].isin(trained["row"])].groupby("row").size().tolist() == [31] * 4
    )  # before, and after each epoch
    before = {path: path.stat().st_mtime_ns for path in (whole / "runs").rglob("*.safetensors")}
    assert end(start(words(own, whole, "mine", "other")))[0] == 0
    assert before == {path: path.stat().st_mtime_ns for path in (whole / "runs").rglob("*.safetensors")}


@pytest.mark.slow
def test_the_hour_ends_it_and_the_same_command_goes_on(own, tmp_path):
    long = words(own, tmp_path, "other", "--set", "monitor_every=50", "--hours", str(12 / 3600))
    long = [word.replace("epochs=30", "epochs=20000") for word in long]
    code, said = end(start(long))
    assert code == 0
    assert "hours are over: 1 runs are left; the same command goes on" in said
    (run,) = tmp_path.glob("runs/tiny-*")
    assert (run / "checkpoint.safetensors").exists()
    assert not (tmp_path / "tables" / "other.csv").exists()


# --- the order, and what needs no training
def test_every_experiment_gets_its_first_seeds_before_one_gets_more(tmp_path):
    plans = [
        Plan(name, one, one.build_configs({}), tmp_path)
        for name, one in (
            ("a", Experiment("?", {"A": {"method": "cmc"}}, "A", 6, preset="sketch")),
            ("b", Experiment("?", {"B": {"method": "dim"}}, "B", 4, preset="sketch", first_seed=100)),
        )
    ]
    EXPERIMENTS.update({plan.name: plan.experiment for plan in plans})
    try:
        order = [(arm, seed) for _, arm, seed in evidence_runs.list_todo(plans)]
    finally:
        for plan in plans:
            EXPERIMENTS.pop(plan.name)
    assert ROUNDS[:2] == (3, 5)
    first, second = [("A", n) for n in range(3)] + [("B", 100 + n) for n in range(3)], [("A", 3), ("A", 4), ("B", 103)]
    assert order == [*first, *second, ("A", 5)]


def test_experiments_share_a_run_and_it_is_measured_for_both(own, tmp_path):
    extensions.load(ROOT / "tests" / "tiny.py")
    extensions.load(own)
    plans, waiting = evidence_runs.plan_experiments(["mine", "other"], {**FIXED, "runs_dir": tmp_path}, tmp_path)
    jobs = evidence_runs.list_jobs(evidence_runs.list_todo(plans))
    assert not waiting
    assert len(jobs) == 6  # three arms of two seeds; the other experiment's run is one of them
    (shared,) = (job for job in jobs if job.configs[0].method == "metaug" and job.configs[0].seed == 0)
    assert shared.wanted is not None
    assert shared.wanted.representations == ("untrained", "trained")
    assert shared.wanted.augmented


def test_a_misspelt_experiment_is_one_sentence(tmp_path):
    result = CliRunner().invoke(main.main, ["evidence", "09-claim", "--tables", str(tmp_path)])
    assert "unknown experiment '09-claim'; did you mean '09-claims'?" in sentence(result)


def test_claims_says_what_is_there_and_what_is_not(tmp_path):
    result = CliRunner().invoke(main.main, ["claims", "--tables", str(tmp_path)])
    assert result.output.count("no runs yet") == 8
    assert "metaug evidence 04-gamma-attenuation" in result.output


# --- what is committed
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if (evidence_tables.FOLDER / f"{name}.csv").exists()])
def test_the_committed_table_of_an_experiment_is_drawn_with_its_origin(name):
    table = evidence_tables.read(name)
    if table.empty:
        pytest.skip("a table of before the evidence")
    origin = gallery.find_origin(name, table, gallery.FOLDER)
    assert origin["command"] == FIGURES[name].command == f"metaug evidence {name}"
    assert origin["numbers"]["n"] == table["run"].nunique()
    assert not origin["numbers"]["uncommitted_changes"]
