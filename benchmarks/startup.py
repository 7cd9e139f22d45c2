"""How long one waits before anything happens, in seconds, each in a process of its own.

    python benchmarks/startup.py [--rounds 5] [--tasks import figure step ...] [--beside FOLDER]

    help, runs       `metaug --help`, and `metaug runs` in an empty folder
    core, fit        `import metaug_core`, and `from metaug_core import fit`
    import           `import metaug_workbook.notebook`
    shapes           making the images of the default run
    figure           from a kernel's start to the first figure of 01_pretrain: what `make lab` does when the server is up
    step             from `metaug run 01_pretrain` to the first training step, of one step in all

--beside: another checkout, such as a `git worktree` of an older commit, which takes turns with this one, with the same Python and
packages. Medians over rounds; the order turns about from round to round. CPU only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _measure import ratio
from _results import table, write
from jupyter_client.manager import start_new_kernel

HERE = Path(__file__).resolve().parent.parent
COMMAND = "from metaug_workbook.cli import start; start()"
SHAPES = """
import time
from metaug_core import preset
from metaug_core.data import datasets
config = preset("quick")
begin = time.perf_counter()
datasets.load(config)
print(time.perf_counter() - begin)
"""
ONE_STEP = {"epochs": "1", "train_images": "40", "batch_size": "32", "width": "0.0625", "device": "cpu"}


def environment(checkout: Path, runs: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(checkout), "METAUG_RUNS": runs}


def start(checkout: Path, runs: str, code: str, *words: str) -> subprocess.Popen:
    """A Python of the checkout that runs the code."""
    command = [sys.executable, "-c", code, *words]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    return subprocess.Popen(command, cwd=checkout, env=environment(checkout, runs), **quiet)


def finish(process: subprocess.Popen) -> str:
    """What the process printed. Raises CalledProcessError if it failed."""
    output, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return output


def time_code(code: str, *words: str) -> Callable[[Path, str], float]:
    """A task: the process, from its start to its end."""

    def task(checkout: Path, runs: str) -> float:
        begin = time.perf_counter()
        finish(start(checkout, runs, code, *words))
        return time.perf_counter() - begin

    return task


def time_shapes(checkout: Path, runs: str) -> float:
    return float(finish(start(checkout, runs, SHAPES)))


def time_figure(checkout: Path, runs: str) -> float:
    """The cells of the notebook in order, to the first that shows an image."""
    cells = json.loads((checkout / "notebooks/01_pretrain.ipynb").read_text(encoding="utf-8"))["cells"]
    shown: list[str] = []

    def note(message: dict) -> None:
        shown.extend(message["content"].get("data", {}))
        if message["msg_type"] == "error":
            raise RuntimeError(message["content"]["evalue"])

    begin = time.perf_counter()
    manager, client = start_new_kernel(cwd=str(checkout / "notebooks"), env=environment(checkout, runs))
    try:
        for cell in (cell for cell in cells if cell["cell_type"] == "code"):
            client.execute_interactive("".join(cell["source"]), output_hook=note)
            if "image/png" in shown:
                return time.perf_counter() - begin
        raise RuntimeError("01_pretrain drew no figure")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def time_step(checkout: Path, runs: str) -> float:
    """To the row that the run writes after its first step, which is its last; then the process is stopped."""
    settings = [word for name, value in ONE_STEP.items() for word in ("-p", name, value)]
    begin = time.perf_counter()
    process = start(checkout, runs, COMMAND, "run", "01_pretrain", *settings)
    while not any(Path(runs).glob("*/timing.jsonl")):
        if process.poll() is not None:
            raise RuntimeError("metaug run ended before its first step")
        time.sleep(0.005)
    seconds = time.perf_counter() - begin
    process.terminate()
    process.communicate()
    return seconds


TASKS: dict[str, Callable[[Path, str], float]] = {
    "help": time_code(COMMAND, "--help"),
    "runs": time_code(COMMAND, "runs"),
    "core": time_code("import metaug_core"),
    "fit": time_code("from metaug_core import fit"),
    "import": time_code("import metaug_workbook.notebook"),
    "shapes": time_shapes,
    "figure": time_figure,
    "step": time_step,
}


def measure(task: Callable[[Path, str], float], checkouts: dict[str, Path], rounds: int) -> dict[str, list[float]]:
    """Seconds of each checkout by round, after one that is not counted: it writes bytecode and fills the disk's cache."""
    found: dict[str, list[float]] = {name: [] for name in checkouts}
    for number in range(-1, rounds):
        for name in sorted(checkouts, reverse=bool(number % 2)):
            with tempfile.TemporaryDirectory() as runs:
                seconds = task(checkouts[name], runs)
            if number >= 0:
                found[name].append(seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="NAME")
    parser.add_argument("--beside", type=Path)
    args = parser.parse_args()
    checkouts = {"here": HERE} | ({"beside": args.beside.resolve()} if args.beside else {})
    found = {task: measure(TASKS[task], checkouts, args.rounds) for task in args.tasks}
    rows = [
        {"task": task}
        | {name: statistics.median(seconds) for name, seconds in times.items()}
        | ({"ratio": ratio(times["here"], times["beside"])} if args.beside else {})
        for task, times in found.items()
    ]
    print(table(rows, task="{task}", beside="{beside:.2f}", here="{here:.2f}", ratio="{ratio:.2f}"))
    print(f"seconds, medians of {args.rounds} rounds")
    write("startup", "startup.py", vars(args), "cpu", seconds=found)


if __name__ == "__main__":
    main()
