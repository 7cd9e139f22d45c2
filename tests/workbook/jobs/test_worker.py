"""`metaug work`: workers that share only a folder do a sweep to its end, though one of them is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_sweep import options, until
from workbooks import sentence

from metaug_core.runs import files
from metaug_core.runs.lock import read_owner
from metaug_workbook.cli import main
from metaug_workbook.jobs import worker

METAUG = [sys.executable, "-m", "metaug_workbook.cli.main"]
DEADLINE = 300.0


def start_worker(runs: Path) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*METAUG, "work", str(runs)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def write_sweep(place: Path, *words: str) -> Path:
    """A sweep that is recorded and not begun -> its folder of runs."""
    given = ["sweep", *options(place), *words, "--slurm", "--runs-dir", str(place / "runs")]
    result = CliRunner().invoke(main.main, given)
    assert result.exit_code == 0, result.stderr
    return place / "runs"


def test_slurm_writes_a_job_array_that_the_shell_understands(tmp_path):
    runs = write_sweep(tmp_path, "--seeds", "3", "--workers", "8", "--name", "mine")
    script = runs / "sweeps" / "mine" / "submit.sh"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    assert "#SBATCH --array=1-3" in lines  # no more workers than runs
    assert not any(line.startswith("#SBATCH --output=") and str(runs) not in line for line in lines)
    assert [run.path.name for job in worker.read_jobs(runs) for run in job.runs] == [
        cell["run"] for cell in files.read_json(script.with_name("sweep.json"))["cells"]
    ]


def test_slurm_with_retry_forgets_a_failure_so_that_the_workers_try_again(tmp_path):
    one = ("--seeds", "1")
    (run,) = worker.read_jobs(write_sweep(tmp_path, *one))[0].runs
    files.write_json(run.path / "failed.json", {"error": "diverged"})
    assert [job.lacks(run) for job in worker.read_jobs(write_sweep(tmp_path, *one))] == [False]
    assert [job.lacks(run) for job in worker.read_jobs(write_sweep(tmp_path, *one, "--retry"))] == [True]


def test_a_folder_without_a_sweep_is_one_sentence(tmp_path):
    result = CliRunner().invoke(main.main, ["work", str(tmp_path)])
    assert "no sweep is recorded in" in sentence(result)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_do_a_sweep_once_though_one_of_them_is_killed(tmp_path):
    runs = write_sweep(tmp_path, "--set", "epochs=6", "--seeds", "4")
    folders = [run.path for job in worker.read_jobs(runs) for run in job.runs]
    workers = [start_worker(runs) for _ in range(2)]
    until(lambda: any((folder / "timing.jsonl").exists() for folder in folders), workers[0], DEADLINE)
    victim = next(owner["process"] for folder in folders if (owner := read_owner(folder)))
    os.kill(victim, signal.SIGKILL)
    said = {process.pid: process.communicate(timeout=DEADLINE)[0] for process in workers}
    codes = {process.pid: process.returncode for process in workers}
    assert codes.pop(victim) == -signal.SIGKILL
    assert list(codes.values()) == [0]
    (survivor,) = codes
    assert said[survivor].splitlines()[-1] == "nothing is left to be done"
    assert all((folder / "finished.json").exists() and (folder / "evaluation-test.json").exists() for folder in folders)
    assert sorted(len(files.read_json(folder / "environment.json")) for folder in folders) in (
        [1, 1, 1, 1],
        [1, 1, 1, 2],
    )
    result = CliRunner().invoke(
        main.main,
        ["sweep", *options(tmp_path), "--set", "epochs=6", "--seeds", "4", "--runs-dir", str(runs), "--dry-run"],
    )
    assert result.output.count("finished") == 4


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the script is one of bash")
def test_the_script_hands_slurms_warning_on_so_that_the_run_is_saved(tmp_path):
    runs = write_sweep(tmp_path, "--set", "epochs=5000", "--seeds", "1", "--name", "mine")
    (folder,) = [run.path for job in worker.read_jobs(runs) for run in job.runs]
    script = subprocess.Popen(["bash", runs / "sweeps" / "mine" / "submit.sh"], stderr=subprocess.PIPE, text=True)
    until((folder / "timing.jsonl").exists, script, DEADLINE)
    script.terminate()  # Slurm signals the batch shell alone (--signal=B:TERM)
    _, errors = script.communicate(timeout=DEADLINE)
    assert "metaug: interrupted and saved; the same command goes on" in errors
    assert (folder / "checkpoint.safetensors").exists()


def test_runs_that_living_workers_have_are_left_to_them(tiny, monkeypatch):
    said: list[str] = []
    job = worker.Job((tiny(),))
    folder = job.runs[0].path
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    files.write_json(folder / ".owner", {"token": "theirs", "machine": "another", "name": "node7", "process": 1})
    monkeypatch.setattr(worker, "STALE_SECONDS", 1.5)
    worker.work([job], said.append)
    assert said == ["the other 1 runs are trained by other workers"]
    assert not (folder / "config.json").exists()
