"""Background runs beside a working notebook: what is left of their speed, and how long a moved slider takes meanwhile.

    python benchmarks/beside.py [--preset quick] [--seconds 5] [--rounds 3]

A kernel as `make lab` starts it moves the controls of the explorers, one after another without a pause, beside one and then two
background runs; alone, one run trains while the kernel and the other run rest. These three take turns, each for so many seconds.
A run's fair share is its speed alone times min(1, cores / (busy processes x its threads)). Posix only: what rests is stopped by a
signal.
"""

import argparse
import json
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from _results import write
from jupyter_client.manager import start_new_kernel

from metaug_core import preset
from metaug_core.runs.store import Run
from metaug_core.runtime.device import count_cores
from metaug_workbook.jobs import background
from metaug_workbook.jobs.processes import WAITING

PREPARE = """
import itertools, json, sys, time
sys.path.insert(0, {folder!r})
from metaug_workbook import widgets
from widgets_speed import OTHER
explorers = {{make: getattr(widgets, make)() for make in OTHER}}
moves = itertools.cycle([(explorers[make], name, value) for make, controls in OTHER.items() for name, other in controls.items()
                         for value in (other, explorers[make].values[name])])
def move(seconds):
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        explorer, name, value = next(moves)
        started = time.perf_counter()
        explorer.set(**{{name: value}})
        times.append(1000 * (time.perf_counter() - started))
    return json.dumps(times)
"""


class Notebook:
    """A kernel with the explorers of the notebooks."""

    def __init__(self) -> None:
        self.manager, self.client = start_new_kernel(env={**WAITING, **os.environ})
        self.run(PREPARE.format(folder=str(Path(__file__).parent)))

    def run(self, code: str) -> str:
        """What the code prints."""
        parts: list[str] = []

        def take(message: dict[str, Any]) -> None:
            if message["msg_type"] == "error":
                raise RuntimeError(message["content"]["evalue"])
            if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
                parts.append(message["content"]["text"])

        self.client.execute_interactive(code, output_hook=take)
        return "".join(parts)


def measure(
    runs: list[Run], working: list[Run], notebook: Notebook | None, seconds: float
) -> tuple[float, list[float]]:
    """Steps a second of the first run while `working` train, and milliseconds of each moved slider."""
    for run in runs:
        background.children[run.path].send_signal(signal.SIGCONT if run in working else signal.SIGSTOP)
    before = working[0].progress
    times = json.loads(notebook.run(f"print(move({seconds}))")) if notebook else time.sleep(seconds) or []
    after = working[0].progress
    passed = after["seconds"] - before["seconds"]  # 0: not one step was done
    return (after["step"] - before["step"]) / passed if passed else 0.0, times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--width", type=float)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    changes: dict[str, Any] = {} if args.width is None else {"width": args.width}
    with tempfile.TemporaryDirectory() as folder:
        changes |= {"epochs": 10_000, "monitor_every": 10_000, "device": "cpu", "runs_dir": Path(folder)}
        configs = [preset(args.preset, seed=seed, **changes) for seed in (0, 1)]
        runs, notebook = [background.start(config) for config in configs], Notebook()
        try:
            while not all(run.progress for run in runs):
                time.sleep(0.5)
            cases = {"alone": (runs[:1], None, 1), "one run": (runs[:1], notebook, 2), "two runs": (runs, notebook, 3)}
            found: dict[str, list[Any]] = {name: [] for name in cases}
            for _ in range(args.rounds):
                for name, (working, kernel, _busy) in cases.items():
                    found[name].append(measure(runs, working, kernel, args.seconds))
            threads = runs[0].sessions[-1]["threads"]
        finally:
            for run in runs:
                background.children[run.path].kill()
                background.children[run.path].wait()
            notebook.manager.shutdown_kernel(now=True)
    rows = []
    for name, (_, _, busy) in cases.items():
        fair = min(1.0, count_cores() / (busy * threads))
        shares = [rate / (fair * alone) for (rate, _), (alone, _) in zip(found[name], found["alone"], strict=True)]
        moved = [ms for _, times in found[name] for ms in times]
        row = {"case": name, "steps_per_second": statistics.median(rate for rate, _ in found[name])}
        row |= {"share": statistics.median(shares), "shares": shares, "moves": len(moved)}
        if moved:
            row |= {"median_ms": statistics.median(moved), "slowest_ms": max(moved)}
        rows.append(row)
        print(
            {
                key: round(value, 2) if isinstance(value, float) else value
                for key, value in row.items()
                if key != "shares"
            }
        )
    print(f"{threads} threads a run")
    write(f"beside-{args.preset}", "beside.py", vars(args), "cpu", threads_of_run=threads, rows=rows)


if __name__ == "__main__":
    main()
