"""Sweeps: grids checked before anything starts; then real workers, kernels and kills, after which the same call does the rest."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from tiny import ROOT, TINY, same, saved
from workbooks import sentence, write_notebook

from metaug_core import fit, hardware
from metaug_core.config import EVALUATION_VERSION, Config, ConfigError
from metaug_core.runs import files, store
from metaug_core.runs.files import read_tensors
from metaug_core.runs.lock import read_owner
from metaug_core.training.progress import silent
from metaug_workbook.cli import main
from metaug_workbook.jobs import estimate, grid, papermill_runner, runner, sweep, worker
from metaug_workbook.results import tables

CELL = """\
config = notebook.configure(preset=preset, seed=seed)
run = notebook.train(config)"""
PARAMETERS = 'preset: str = "quick"  # a preset\nseed: int = 0  # of everything'
FIXED = {name: value for name, value in TINY.items() if name not in ("epochs", "lr")} | {
    "checkpoint_minutes": 0.001,
    "train_images": 100,
}


def options(tmp_path: Path) -> list[str]:
    """--set of the tiny runs, the small notebook that only trains, and the file that registers the tiny data set."""
    if not (tmp_path / "cell.ipynb").exists():
        write_notebook(tmp_path / "cell.ipynb", CELL, parameters=PARAMETERS)
    sets = [f"{n}={','.join(v) if isinstance(v, tuple) else v}" for n, v in FIXED.items()]
    words = [word for one in sets for word in ("--set", one)]
    words += ["--notebook", str(tmp_path / "cell.ipynb"), "--import", str(ROOT / "tests" / "tiny.py")]
    return [*words, "--measures", "knn", "--representations", "trained"]


# --- the grid
def test_cells_are_every_combination_with_seeds_innermost():
    found = grid.list_cells(["lr=0.1,0.2", "views=L,ab;L,ab,RGB"], {"preset": "quick", "seed": "3"}, 2)
    assert len(found) == 8
    assert found[0] == {"preset": "quick", "lr": "0.1", "views": "L,ab", "seed": "3"}
    assert [(one["lr"], one["views"], one["seed"]) for one in found[1:4]] == [
        ("0.1", "L,ab", "4"),
        ("0.1", "L,ab,RGB", "3"),
        ("0.1", "L,ab,RGB", "4"),
    ]
    assert grid.list_cells([], {}, 1) == [{}]
    assert grid.describe_cell(found[0], ["lr", "seed"]) == "lr=0.1, seed=3"


REFUSED = [
    (["--grid", "lr"], "--grid lr: needs NAME=VALUE"),
    (["--grid", "lr="], "--grid lr=: needs NAME=VALUE"),
    (["--grid", "lr=0.1,,0.2"], "--grid lr=0.1,,0.2: a value is missing between two separators"),
    (["--grid", "lr=0.1,0.1"], "--grid lr=0.1,0.1: 0.1 is listed twice"),
    (["--grid", "lr=0.1", "--grid", "lr=0.2"], "--grid lr is given twice"),
    (["--grid", "lr=0.1", "--set", "lr=0.2"], "lr is given by both --grid and --set"),
    (["--grid", "train_images=all,many"], "cell train_images=many: train_images: "),
    (["--grid", "lr=0.1,0.10"], "cells lr=0.1 and lr=0.10 are one and the same run"),
    (["--grid", "device=cpu,auto"], "cells device=cpu and device=auto are one and the same run"),
    (["--grid", "cpc_grid=4,5"], "--grid cpc_grid=4,...: cpc_grid changes nothing: method 'metaug' does not use it"),
    (["--grid", "phi_dek=1,2"], "'phi_dek' is not a parameter of 01_pretrain.ipynb; did you mean 'phi_dec'?"),
    (["--grid", "phi_dec=1,two", "--set", "oucl=eq9"], "cell phi_dec=two: phi_dec: must be a number, got 'two'"),
    (["--grid", "phi_dec=1,2,4"], "cell phi_dec=2: phi_dec, gamma_detached and attenuate change Gamma"),
    (["--grid", "phi_dec=1,2,4"], "(and 1 more of 3 cells)"),
    (["--set", "method=metaugg"], "unknown method 'metaugg'; did you mean 'metaug'?"),
    (["--set", "preset=quik"], "unknown preset 'quik'; did you mean 'quick'?"),
    (["--set", "views=L"], "method 'metaug' contrasts at least 2 views, got L"),
    (["--set", "runs_dir=x"], "give one of them"),
    (["--grid", "runs_dir=x,y"], "'runs_dir' is not a parameter"),
    (["--set", "lr=0.1", "--set", "lr=0.2"], "--set lr is given twice"),
    (["--grid", "seed=1,2", "--seeds", "1"], "seed is in --grid"),
    (["--slurm", "--trials", "2"], "--trials changes nothing with --slurm: give one of them"),
    (["--slurm", "--scheduler", "tcp://127.0.0.1:1"], "--slurm changes nothing with --scheduler"),
    (["--scheduler", "tcp://127.0.0.1:1", "--workers", "2"], "--workers changes nothing with --scheduler"),
    (["--grid", "seed=1,2", "--seeds", "3"], "seed is in --grid"),
    (["--seeds", "3", "--set", "seed=-1"], "--set seed=-1: must be a whole number"),
    (["--measures", "knnn"], "unknown measure 'knnn'; did you mean 'knn'?"),
    (["--representations", "trian"], "unknown representation 'trian'"),
    (["--notebook", "01_pretran"], "there is no notebook '01_pretran'; did you mean '01_pretrain'?"),
    (["--name", "a/b"], "--name a/b: must be the name of a folder"),
    (["--import", "absent.py"], "cannot import absent.py: there is no such file"),
]


@pytest.mark.parametrize(("words", "expected"), REFUSED)
def test_a_fault_is_one_sentence_before_anything_starts(words, expected, tmp_path):
    one = [] if {"--grid", "--seeds"} & {*words} else ["--seeds", "1"]
    result = CliRunner().invoke(main.main, ["sweep", *words, *one, "--runs-dir", str(tmp_path / "runs")])
    assert expected in sentence(result)
    assert result.exit_code == 2
    assert not (tmp_path / "runs").exists()


def test_no_scheduler_is_one_sentence(tmp_path):
    words = ["sweep", "--seeds", "1", "--scheduler", "nonsense://x", "--runs-dir", str(tmp_path / "runs")]
    assert "no scheduler answers at nonsense://x" in sentence(CliRunner().invoke(main.main, words))


@pytest.mark.parametrize("words", [[], ["--set", "lr=0.1"], ["--dry-run"]])
def test_a_sweep_without_a_grid_shows_its_usage(words, tmp_path):
    result = CliRunner().invoke(main.main, ["sweep", *words, "--runs-dir", str(tmp_path / "runs")])
    assert result.exit_code == 2
    assert "a sweep needs a grid or seeds: `metaug sweep --grid NAME=V1,V2,... [--seeds N]" in sentence(result)
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_sweep_ends_with_what_varied_by_measure(tmp_path):
    """By hand: 10, 20 and 30 % have mean 20 and t-interval 4.303 * 10 / sqrt(3) = 24.8."""
    wanted = tables.Wanted(("knn", "probe_fast", "rankme"), ("untrained", "trained"), False, "test")
    plan = sweep.plan_sweep(["method=cmc,metaug", "delta=0.1,0.2"], {"preset": "sketch"}, 3, tmp_path, wanted)
    state = sweep.Sweep(plan)
    assert len(state.runs) == 9  # cmc does not use delta
    assert {*state.summary()["rankme"]} == {"–"}  # nothing is finished yet
    for run in state.runs[:7]:
        files.write_json(run.path / "finished.json", {})
        row = {
            "evaluation_version": EVALUATION_VERSION,
            "knn": 0.1 * (run.config.seed + 1),
            "probe_fast": 0.5,
            "rankme": 33.33,
        }
        files.write_json(run.evaluation_file(), {"untrained": row, "trained": row | {"probe_fast": 0.25}})
    state.save()
    assert state.summary().to_dict("list") == {
        "method": ["cmc", "cmc", "metaug", "metaug", "metaug", "metaug"],
        "delta": ["-", "-", "0.1", "0.1", "0.2", "0.2"],
        "features": ["untrained", "trained"] * 3,
        "knn": ["20.0 ± 24.8 (n = 3)"] * 4 + ["10.0 (n = 1)"] * 2,
        "probe_fast": ["50.0 ± 0.0 (n = 3)", "25.0 ± 0.0 (n = 3)"] * 2 + ["50.0 (n = 1)", "25.0 (n = 1)"],
        "rankme": ["33.3 ± 0.0 (n = 3)"] * 4 + ["33.3 (n = 1)"] * 2,
    }
    measured = [f"{prefix}{name}" for prefix in ("untrained_", "") for name in ("knn", "probe_fast", "rankme")]
    first = (plan.folder / "table.csv").read_text().splitlines()[0].split(",")[:11]
    assert first == [*plan.varying, *measured, "run", "state"]


def test_cells_that_differ_in_what_their_method_does_not_use_are_one(tmp_path):
    words = [
        "sweep",
        "--grid",
        "method=cmc,metaug",
        "--grid",
        "delta=0.1,0.2",
        "--dry-run",
        "--runs-dir",
        str(tmp_path),
    ]
    told = CliRunner().invoke(main.main, words).output.splitlines()
    assert [line.split("  ")[-2].removeprefix("missing").strip() for line in told[:3]] == [
        "method=cmc",
        "method=metaug, delta=0.1",
        "method=metaug, delta=0.2",
    ]
    assert told[3].startswith("3 runs are missing and will take about")


def test_jobs_hold_what_auto_was_where_the_sweep_was_made(tmp_path, faster_bf16, monkeypatch):
    fixed, wanted = {"device": "cpu", "train_images": "100"}, tables.Wanted(("knn",), ("trained",), False, "test")
    state = sweep.Sweep(sweep.plan_sweep([], fixed, 2, tmp_path / "runs", wanted))
    state.begin()
    monkeypatch.setenv("METAUG_CACHE", str(tmp_path / "worker"))
    hardware.locate_times().parent.mkdir()
    hardware.locate_times().write_text('{"float32": 1, "bf16": 2}')
    configs = [config for job in worker.read_jobs(tmp_path / "runs") for config in job.configs]
    assert [config.precision for config in configs] == ["bf16", "bf16"]
    assert [config.name() for config in configs] == [config.name() for config in state.plan.configs]
    task = state.notebook_task(1)
    values, config = papermill_runner.check_parameters(
        ROOT / "notebooks/01_pretrain.ipynb", task["given"], (), tmp_path / "runs"
    )
    assert config is not None
    assert config.name() == configs[1].name()
    assert values["settings"]["precision"] == "bf16"
    with pytest.raises(ConfigError, match="one and the same run"):
        sweep.plan_sweep(["precision=auto,float32"], fixed, None, tmp_path / "runs", wanted)


def test_a_dry_run_lists_cells_and_what_they_cost(tmp_path, tiny):
    words = ["sweep", *options(tmp_path), "--grid", "epochs=1,2", "--dry-run", "--runs-dir", str(tmp_path / "runs")]
    told = CliRunner().invoke(main.main, words)
    assert told.exit_code == 0, told.stderr
    assert [line.split()[:2] for line in told.output.splitlines()[:2]] == [
        ["missing", "epochs=1"],
        ["missing", "epochs=2"],
    ]
    assert "2 runs are missing and will take about" in told.output
    assert not list((tmp_path / "runs").glob("*"))


def test_the_cost_of_a_run_is_that_of_finished_ones_of_its_shape(tiny, monkeypatch):
    run = fit(tiny(epochs=1), lambda _: None)
    files.write(run.path / "timing.jsonl", b'{"step": 5, "steps": 5, "seconds": 60, "images_per_second": 1}\n')
    timed = []
    monkeypatch.setattr(
        estimate.experiments, "estimate_by_steps", lambda configs: timed.extend(configs) or 30.0 * len(configs)
    )
    configs = [tiny(epochs=3, seed=1), tiny(epochs=2, lr=0.5), other := tiny(epochs=2, width=0.1)]
    assert estimate.estimate_seconds(configs) == 60 * 3 + 60 * 2 + 30
    assert timed == [other]  # of no finished run's shape
    assert estimate.estimate_seconds(configs, processes=2) == 165
    assert estimate.describe_cost(configs) == "3 runs are missing and will take about 5 min 30 s here"
    assert estimate.describe_cost([]) == "nothing is missing"


# --- real workers
METAUG = [sys.executable, "-c", "from metaug_workbook.cli.main import main; main()", "sweep"]
GRID = ["--grid", "lr=1e30,0.01,0.02,0.03,0.04,0.05", "--set", "optimiser=sgd", "--set", "epochs=3", "--seeds", "2"]


def started(words: list[str]) -> subprocess.Popen:
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=500)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def until(condition, process: subprocess.Popen, seconds: float = 500) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def of_workers(process: subprocess.Popen) -> list[int]:
    """Worker processes of a sweep: children of its process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and "jobs.processes" in (folder / "cmdline").read_text():
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue
    return found


def sweep_of(runs: Path) -> dict:
    (file,) = runs.glob("sweeps/*/sweep.json")
    return json.loads(file.read_text())


def states(runs: Path, wanted: str) -> list[dict]:
    return (
        [one for one in sweep_of(runs)["cells"] if one["state"] == wanted]
        if list(runs.glob("sweeps/*/sweep.json"))
        else []
    )


def until_free(runs: list[store.Run]) -> None:
    """Until the workers of a killed sweep have saved and ended."""
    deadline = time.monotonic() + 120
    while any(run.busy for run in runs):
        assert time.monotonic() < deadline, "workers outlive their sweep"
        time.sleep(0.1)


def stamps(runs: Path, name: str) -> dict[str, int]:
    """When a file of each run was written last; it changes if the run is trained again."""
    return {path.parent.name: path.stat().st_mtime_ns for path in runs.glob(f"*/{name}")}


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> dict:
    """Twelve cells, two of which fail; a worker is killed, then the main process; then the same call again."""
    place = tmp_path_factory.mktemp("killed")
    runs = place / "runs"
    words = [*METAUG, *options(place), *GRID, "--workers", "2", "--runs-dir", str(runs)]
    process = started(words)
    until(lambda: len(states(runs, "failed")) == 2 and len(list(runs.glob("*/timing.jsonl"))) > 2, process)
    before = stamps(runs, "finished.json")
    os.kill(of_workers(process)[0], signal.SIGKILL)
    until(lambda: len(states(runs, "finished")) >= 4, process)
    workers = of_workers(process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    then = stamps(runs, "finished.json"), stamps(runs, "environment.json")
    failed = [one["run"] for one in states(runs, "failed")]
    deadline = time.monotonic() + 120
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "workers outlive their sweep"
        time.sleep(0.1)
    process.communicate(timeout=60)
    code, out, err = ended(started(words))
    return {"runs": runs, "before": before, "then": then, "failed": failed, "code": code, "out": out, "err": err}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_after_a_killed_worker_and_a_killed_sweep_the_same_call_does_the_rest(killed):
    runs = killed["runs"]
    assert killed["code"] == 1
    assert "10 of 12 cells are finished" in killed["out"]
    assert "metaug: 2 of 12 cells failed, see" in killed["err"]
    finished, failed = states(runs, "finished"), states(runs, "failed")
    assert (len(finished), len(failed)) == (10, 2)
    for one in failed:
        assert one["settings"]["lr"] == "1e30"
        assert "stopped at step" in one["error"]
        assert one["notebook"] is None  # there is nothing to draw
    assert all((runs / one["notebook"]).exists() for one in finished)
    table = pd.read_csv(next(runs.glob("sweeps/*/table.csv")))
    assert table["state"].tolist() == ["failed"] * 2 + ["finished"] * 10
    assert table["knn"].notna().tolist() == [False] * 2 + [True] * 10


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_no_cell_was_run_twice_to_the_end(killed):
    after, environments = stamps(killed["runs"], "finished.json"), stamps(killed["runs"], "environment.json")
    finished, begun = killed["then"]
    assert len(finished) >= 4
    assert killed["before"].items() <= finished.items() <= after.items()
    assert len(after) == 10
    for run in [*finished, *killed["failed"]]:  # nor was a recorded failure tried again
        assert environments[run] == begun[run]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_scheduler_of_ones_own_gives_the_same_table(killed, tmp_path):
    dask = [sys.executable, "-m"]
    file, runs = tmp_path / "scheduler.json", tmp_path / "runs"
    quiet = ["--scheduler-file", str(file), "--no-dashboard"]
    cluster = [started([*dask, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", *quiet])]
    try:
        until(file.exists, cluster[0])
        worker = [*dask, "distributed.cli.dask_worker", *quiet, "--nthreads", "1", "--host", "127.0.0.1"]
        cluster += [started([*worker, "--local-directory", str(tmp_path)]) for _ in range(2)]
        address = json.loads(file.read_text())["address"]
        some = [
            "--grid",
            "lr=1e30,0.01",
            *GRID[2:],
        ]  # four of the twelve cells, two of which fail: a cell costs ten seconds
        words = [*METAUG, *options(tmp_path), *some, "--scheduler", address, "--runs-dir", str(runs)]
        code, out, err = ended(started([*words, "--trials", "2"]))
        assert code == 1, err
        assert "2 of 4 cells are finished" in out
    finally:
        for process in cluster:
            process.kill()
            process.communicate()
    local, there = (
        pd.read_parquet(next(place.glob("sweeps/*/table.parquet"))).drop(columns=tables.MACHINE)
        for place in (killed["runs"], runs)
    )
    pd.testing.assert_frame_equal(local[local["run"].isin(there["run"])].reset_index(drop=True), there)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("cells", [1, 2])
def test_an_interrupt_saves_what_is_under_way(cells, tmp_path):
    runs = tmp_path / "runs"
    words = [*METAUG, *options(tmp_path), "--set", "epochs=5000", "--workers", "1", "--runs-dir", str(runs)]
    process = started([*words, "--seeds", str(cells), "--trials", str(cells)])
    until(lambda: len(list(runs.glob("*/timing.jsonl"))) == cells, process)
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 130, err
    assert f"interrupted: 0 of {cells} cells are finished; the same command goes on" in err
    assert [one["state"] for one in sweep_of(runs)["cells"]] == ["missing"] * cells
    steps = [read_tensors(checkpoint)[1]["step"] for checkpoint in runs.glob("*/checkpoint.safetensors")]
    assert len(steps) == cells
    assert all(steps)
    assert len(set(steps)) == 1  # side by side, so they stand at one step


# --- trials
def of_cell(runs: Path, **settings: Any) -> Config:
    return grid.build_config(FIXED | settings).replace(runs_dir=runs)


def alone(configs: list[Config], place: Path) -> list[store.Run]:
    """The same runs, each trained by itself in this process, with as many threads as a worker has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [fit(config.replace(runs_dir=place), lambda _: None) for config in configs]
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_trials_of_a_sweep_are_the_runs_they_would_be_alone(tmp_path):
    runs = tmp_path / "runs"
    mixed = ["--grid", "seed=0,1,2", "--grid", "lr=1e30,0.01", "--set", "optimiser=sgd", "--set", "epochs=3"]
    words = [*METAUG, *options(tmp_path), *mixed, "--trials", "3", "--workers", "2", "--runs-dir", str(runs)]
    code, out, err = ended(started(words))
    assert code == 1, err
    assert "3 of 6 cells are finished" in out
    for one in states(runs, "failed"):
        assert one["settings"]["lr"] == "1e30"
        assert "stopped at step" in one["error"]
    configs = [of_cell(runs, optimiser="sgd", epochs=3, lr=0.01, seed=seed) for seed in range(3)]
    found = [store.request(config) for config in configs]
    for run, other in zip(found, alone(configs, tmp_path / "alone"), strict=True):
        assert len(files.read_json(run.path / "environment.json")) == 1  # the notebook found a finished run
        assert same(saved(run), saved(other))
        finished, executed = ((run.path / name).stat().st_mtime_ns for name in ("finished.json", "cell.ipynb"))
        assert finished < executed
    wanted = tables.Wanted(("knn",), ("trained",), False, "test")
    others = [config.replace(runs_dir=tmp_path / "alone") for config in configs]
    by_itself = runner.make_table(others, **asdict(wanted), view=silent)
    table = pd.read_parquet(next(runs.glob("sweeps/*/table.parquet")))
    assert table["state"].tolist() == ["failed", "finished"] * 3
    assert table["knn"].dropna().tolist() == by_itself["knn"].tolist()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_trials_go_on_after_a_killed_worker_and_a_killed_sweep(tmp_path):
    runs, epochs = tmp_path / "runs", 24
    words = [*METAUG, *options(tmp_path), "--set", f"epochs={epochs}", "--seeds", "3", "--trials", "3"]
    words += ["--workers", "2", "--runs-dir", str(runs)]
    configs = [of_cell(runs, epochs=epochs, seed=seed) for seed in range(3)]
    found = [store.request(config) for config in configs]

    def trains(sessions: int) -> bool:
        records = [run.path / "environment.json" for run in found]
        return all(f.exists() and len(files.read_json(f)) == sessions for f in records) and all(
            run.progress for run in found
        )

    process = started(words)
    until(lambda: trains(1), process)
    (worker,) = {read_owner(run.path)["process"] for run in found}  # all three in one process
    assert worker in of_workers(process)
    os.kill(worker, signal.SIGKILL)
    until(lambda: trains(2), process)
    process.kill()
    process.communicate(timeout=60)
    until_free(found)
    assert not any(run.finished for run in found)
    code, out, err = ended(started(words))
    assert code == 0, err
    assert "3 of 3 cells are finished" in out
    for run, other in zip(found, alone(configs, tmp_path / "alone"), strict=True):
        begun = [session["from_step"] for session in files.read_json(run.path / "environment.json")]
        assert begun == sorted(set(begun))
        assert len(begun) == 3
        assert begun[1] > 0
        assert same(saved(run), saved(other))
