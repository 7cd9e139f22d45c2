"""A table made by several processes against one after the other: the same runs, in one run of this script.

    python benchmarks/processes.py [--preset sketch] [--runs 8] [--processes 2] [--rounds 3]

Seeds of MetAug on `shapes`, trained and probed; the helpers' start is counted. The order of the two turns about from round to
round; the ratio is the median. Processes: one for each of torch's threads, unless said otherwise. CPU only.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from _measure import ratio, seconds
from _results import write

from metaug_core import preset
from metaug_core.training.progress import silent
from metaug_workbook.jobs import runner

QUIET = {"measures": ("probe_fast",), "representations": ("trained",), "view": silent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="sketch")
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--processes", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    found: dict[str, list[float]] = {"processes": [], "one by one": []}
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name in sorted(found, reverse=bool(number % 2)):
                configs = [
                    preset(args.preset, seed=seed, device="cpu", runs_dir=Path(folder) / name)
                    for seed in range(args.runs)
                ]
                count = args.processes if name == "processes" else 1
                took = seconds(lambda c=configs, n=count: runner.make_table(c, processes=n, **QUIET), "cpu")
                found[name].append(took)
    share = ratio(found["processes"], found["one by one"])
    print(f"{args.runs} runs by {args.processes} processes take {share:.3f} of the time of one after the other")
    print(f"(median of {args.rounds}; {statistics.median(found['one by one']):.1f} s one after the other)")
    write(f"processes-{args.preset}", "processes.py", vars(args), "cpu", ratio=share, seconds=found)


if __name__ == "__main__":
    main()
