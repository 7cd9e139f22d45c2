"""Runs of every method, killed again and again and finished: every file as if nothing had happened.

    PYTHONPATH=tests:tests/workbook python tests/project/kills.py FOLDER FIRST COUNT

tries COUNT cases in FOLDER and prints a line of JSON for each that differs from the run that was never killed, and one with the
counts at the end. Cases take the methods in turn. A case is a run with TensorBoard, three such runs side by side, or a sweep, whose
worker processes and kernels die together with their owner. A process is killed before one of its accesses to the runs'
files, chosen by the case's number; a sweep at a random time.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from tiny import TINY
from torch import Tensor
from workbooks import write_notebook

from metaug_core import METHODS, Config
from metaug_core.runs.files import read_tensors, rows
from metaug_core.runs.store import Run, list_runs
from metaug_core.training import loop

KILLS = 3  # of a case
KINDS = ("run", "trials", "run", "trials", "run", "trials", "run", "sweep")
CELL = "run = notebook.train(notebook.configure(preset=preset, seed=seed))"
PARAMETERS = 'preset: str = "quick"  # a preset\nseed: int = 0  # of everything'
SMALL: dict[str, Any] = {
    **TINY, "dataset": "shapes", "train_images": 100, "image_size": 16, "head_hidden": 16, "predictor_hidden": 16, "queue_size": 64,
    "prototypes": 8, "dim_units": 16, "checkpoint_minutes": 1e-9, "monitor_every": 1,
}  # fmt: skip
SPECIAL: dict[str, dict[str, Any]] = {
    "cpc": {"cpc_grid": 3, "cpc_skip": 0, "image_size": 32},
    "infomin": {"image_size": 32},
}


def make_configs(method: str, runs_dir: Path, seeds: int) -> list[Config]:
    """So many small runs of a method, with the views that it brings."""
    values = {**SMALL, **SPECIAL.get(method, {}), "method": method, "runs_dir": runs_dir}
    if "views" in METHODS[method].description.defaults:
        del values["views"]
    return [Config(**values, seed=seed, tensorboard=True) for seed in range(seeds)]


# --- processes


def fork(work: Callable[[], None], log: Path) -> int:
    """A process that does the work -> its number. Exit code 0, or 70 after an error, which stands in the log."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        work()
        code = 0
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def end(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train(configs: list[Config], kill_before: int = 0, count: Path | None = None) -> None:
    """Train the runs. kill_before: at this access to their files; count: where the number of accesses is written."""
    accesses, folder = 0, str(configs[0].runs_dir)

    def look(event: str, details: tuple[Any, ...]) -> None:
        nonlocal accesses
        if event in ("open", "os.rename", "os.remove", "os.link") and str(details[0]).startswith(folder):
            accesses += 1
            if accesses == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    loop.fit_trials(configs, report=lambda progress: None)
    if count is not None:
        count.write_text(str(accesses))


def start_sweep(method: str, runs_dir: Path, log: Path) -> subprocess.Popen[bytes]:
    """`metaug sweep` of two seeds with two workers."""
    [config] = make_configs(method, runs_dir, 1)
    sets = {
        "preset": "quick",
        **config.model_dump(mode="json", exclude={"runs_dir", "data_dir", "seed"}, exclude_defaults=True),
    }
    words = [f"{n}={','.join(map(str, v)) if isinstance(v, list) else v}" for n, v in sets.items() if v is not None]
    command = [
        sys.executable,
        "-m",
        "metaug_workbook.cli.main",
        "sweep",
        "--seeds",
        "2",
        "--workers",
        "2",
        "--runs-dir",
        str(runs_dir),
    ]
    command += ["--notebook", str(log.parent / "cell.ipynb"), "--measures", "knn", "--representations", "trained"]
    with log.open("ab") as file:
        return subprocess.Popen([*command, *(w for one in words for w in ("--set", one))], stdout=file, stderr=file)


# --- comparing


def differences(one: Path, other: Path) -> list[str]:
    """In which files and tensors the runs of two folders differ."""
    runs, others = ({run.path.name: run for run in list_runs(folder)} for folder in (one, other))
    found = [f"runs {sorted(runs.keys() ^ others.keys())}"] if runs.keys() != others.keys() or not runs else []
    for name in runs.keys() & others.keys():
        found += [f"{name}: {what}" for what in differences_of_runs(runs[name], others[name])]
    return found


def differences_of_runs(run: Run, other: Run) -> list[str]:
    if not (run.finished and other.finished):
        return ["not finished"]
    found = [
        name
        for name in ("metrics.jsonl", "similarities.jsonl")
        if read_bytes(run.path / name) != read_bytes(other.path / name)
    ]
    files = [str(file.relative_to(run.path)) for file in (run.checkpoint, *run.encoder_files())]
    if files != [str(file.relative_to(other.path)) for file in (other.checkpoint, *other.encoder_files())]:
        found.append("other files")
    for file in files:
        (left, left_scalars), (right, right_scalars) = read_tensors(run.path / file), read_tensors(other.path / file)
        same = (
            left_scalars == right_scalars
            and left.keys() == right.keys()
            and all(same_bits(left[n], right[n]) for n in left)
        )
        found += [] if same else [file]
    if run.evaluation() != other.evaluation():
        found.append("evaluation")
    if run.config.tensorboard and read_events(run) != (wanted := wanted_events(run)):
        missing = wanted.keys() - read_events(run).keys()
        found.append(f"TensorBoard: {len(missing)} of {len(wanted)} are missing")
    return found


def read_bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()


def read_events(run: Run) -> dict[tuple[str, int], float]:
    """What TensorBoard shows: metric and step -> value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}


def wanted_events(run: Run) -> dict[tuple[str, int], float]:
    table = rows(run.path / "metrics.jsonl")
    return {
        (name, row["step"]): float(torch.tensor(value, dtype=torch.float32))
        for row in table for name, value in row.items() if name not in ("step", "epoch")
    }  # fmt: skip


# --- the cases


def try_case(number: int, folder: Path) -> dict[str, Any]:
    """One case -> method, kind, kills, differences."""
    rng = random.Random(number)
    methods = list(METHODS)
    method, kind = methods[number % len(methods)], KINDS[number % len(KINDS)]
    folder.mkdir(parents=True)
    whole, hurt, log = folder / "whole", folder / "hurt", folder / "log"
    kills = (kill_sweeps if kind == "sweep" else kill_runs)(method, 3 if kind == "trials" else 1, whole, hurt, log, rng)
    found = differences(whole, hurt) if kills is not None else ["a run failed"]
    said = log.read_text(errors="replace")[-600:] if found and log.exists() else ""
    if not found:
        shutil.rmtree(folder)
    return {"number": number, "method": method, "kind": kind, "kills": kills or 0, "differences": found, "log": said}


def kill_runs(method: str, seeds: int, whole: Path, hurt: Path, log: Path, rng: random.Random) -> int | None:
    """Train runs undisturbed, and again with KILLS kills -> how many there were; None if one ended with an error."""
    count = log.with_name("count")
    if end(fork(lambda: train(make_configs(method, whole, seeds), count=count), log)):
        return None
    kills, code = 0, -signal.SIGKILL
    for _ in range(KILLS):
        moment = rng.randrange(1, int(count.read_text()) + 1)
        code = end(fork(lambda moment=moment: train(make_configs(method, hurt, seeds), moment), log))
        kills += code == -signal.SIGKILL
        if code not in (0, -signal.SIGKILL):
            return None
    return None if code and end(fork(lambda: train(make_configs(method, hurt, seeds)), log)) else kills


def kill_sweeps(method: str, _: int, whole: Path, hurt: Path, log: Path, rng: random.Random) -> int | None:
    """As `kill_runs`, of a sweep."""
    write_notebook(log.parent / "cell.ipynb", CELL, parameters=PARAMETERS)
    begun = time.monotonic()
    if start_sweep(method, whole, log).wait():
        return None
    seconds, kills = time.monotonic() - begun, 0
    for _ in range(KILLS):
        process = start_sweep(method, hurt, log)
        try:
            process.wait(rng.uniform(0.1, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            kills += 1
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                one.kill()
            process.wait()
    return None if start_sweep(method, hurt, log).wait() else kills


def main(folder: Path, first: int, count: int) -> None:
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    for number in range(first, first + count):
        case = try_case(number, folder / f"case-{number}")
        counts += Counter(
            cases=1, kills=case["kills"], **{case["kind"]: case["kills"]}, different=bool(case["differences"])
        )
        if case["differences"]:
            print(json.dumps(case), flush=True)
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3]))
