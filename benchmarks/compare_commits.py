"""Do two commits train the same runs to the same bits, and how long do they take? For refactorings, which must change nothing.

    python benchmarks/compare_commits.py [A] [B] [--assert-equal] [--resume] [--methods NAME ...]

A and B: commits, or "." for the working tree (default: HEAD and "."). Each trains the same small runs on the CPU, one thread, in a
process of its own; compared are every row of their metrics and every tensor of their checkpoints and kept encoders. --resume: also
take a run of A that was stopped half-way to B, which must end it with the same bits or refuse it in one sentence.
--assert-equal: exit with status 1 at any difference. Both commits must know the settings in RUNS.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from metaug_core.runs import files

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "train_images": 400,
    "epochs": 2,
    "width": 0.125,
    "mag_hidden": 32,
    "batch_size": 32,
    "log_every": 1,
    "device": "cpu",
}
RUNS: dict[str, dict[str, Any]] = {
    "metaug": {"method": "metaug", "delta": 0.1, "alpha": 0.1},
    "metaug, as the paper": {
        "method": "metaug", "views": ["L", "ab", "RGB"], "negatives": "bank", "bank_negatives": 64, "schedule": "epoch",
        "oucl": "eq9", "phi_dec": 6.0, "delta": 1e-5, "alpha": 1e-13,
    },
    "metaug-only-oucl": {"method": "metaug-only-oucl"},
    "simclr": {"method": "simclr"},
    "byol": {"method": "byol", "head_hidden": 64, "predictor_hidden": 64},
    "resnet18": {"method": "cmc", "encoder": "resnet18", "width": 1.0, "train_images": 128, "epochs": 1},
}  # fmt: skip

# What a commit is asked to do: it knows nothing of this file, which may be younger.
CHILD = """
import json, os, signal, sys, time
import metaug_core
work = json.loads(sys.stdin.read())
config = metaug_core.preset("quick", **work["settings"], runs_dir=work["runs"])
def report(progress):
    if work["stop"] and progress.step >= progress.steps // 2:
        os.kill(os.getpid(), signal.SIGTERM)
started = time.monotonic()
try:
    run = metaug_core.fit(config, report)
except KeyboardInterrupt:
    print(json.dumps({"stopped": True})); sys.exit()
except metaug_core.MetaugError as error:
    print(json.dumps({"refused": str(error)})); sys.exit()
print(json.dumps({"path": str(run.path), "seconds": time.monotonic() - started}))
"""


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A folder with the files of the commit; "." is the working tree itself."""
    if commit == ".":
        yield ROOT
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", folder, commit], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", folder], check=True)


def train(folder: Path, runs: Path, settings: dict[str, Any], stop: bool = False) -> dict[str, Any]:
    """Train a run by the code in folder: its path and seconds, or that it was stopped or refused."""
    work = json.dumps({"settings": SMALL | settings, "runs": str(runs), "stop": stop})
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    child = subprocess.run([sys.executable, "-c", CHILD], input=work, env=environment, cwd=folder, text=True,
                           stdout=subprocess.PIPE, check=True)  # fmt: skip
    return json.loads(child.stdout.splitlines()[-1])


def differences(a: Path, b: Path) -> list[str]:
    """What differs between two runs' folders: one sentence for the first different row, and one for each file."""
    sentences = []
    rows = [files.rows(run / "metrics.jsonl") for run in (a, b)]
    for one, other in zip(*rows, strict=False):
        shared = one.keys() & other.keys()
        if unlike := [name for name in sorted(shared) if repr(one[name]) != repr(other[name])]:
            sentences.append(
                f"metrics differ from step {one['step']} on: {unlike[0]} {one[unlike[0]]} and {other[unlike[0]]}"
            )
            break
    if len(rows[0]) != len(rows[1]):
        sentences.append(f"{len(rows[0])} and {len(rows[1])} rows of metrics")
    saved = [{str(f.relative_to(run)) for f in run.rglob("*.safetensors")} for run in (a, b)]
    sentences += [f"only one has {name}" for name in sorted(saved[0] ^ saved[1])]
    for name in sorted(saved[0] & saved[1]):
        tensors = [load_file(run / name) for run in (a, b)]
        names = tensors[0].keys() ^ tensors[1].keys()
        unlike = [
            key for key in tensors[0].keys() & tensors[1].keys() if not torch.equal(tensors[0][key], tensors[1][key])
        ]
        if names or unlike:
            sentences.append(f"{name}: {len(unlike)} tensors differ, {len(names)} are in one alone")
    return sentences


def resumed(a: Path, b: Path, runs: Path, settings: dict[str, Any], whole: Path) -> list[str]:
    """What differs between B's own run and one that A began and B ended."""
    if "stopped" not in train(a, runs, settings, stop=True):
        return ["A had ended the run before it could be stopped"]
    finished = train(b, runs, settings)
    if "refused" in finished:
        print(f"    B refuses a run that A began: {finished['refused']}")
        return []
    if len([*runs.glob("*/config.json")]) > 1:
        print("    B has another name for the run that A began, and trained its own")
    return differences(Path(finished["path"]), whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", nargs="?", default="HEAD")
    parser.add_argument("b", nargs="?", default=".")
    parser.add_argument("--assert-equal", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--methods", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME")
    args = parser.parse_args()
    unequal = False
    with checkout(args.a) as a, checkout(args.b) as b, tempfile.TemporaryDirectory() as scratch:
        for name in args.methods:
            ends = [train(folder, Path(scratch) / which / name, RUNS[name]) for which, folder in (("a", a), ("b", b))]
            if refusals := [end["refused"] for end in ends if "refused" in end]:
                print(f"{name}: not trained: {refusals[0]}")
                unequal = True
                continue
            paths = [Path(end["path"]) for end in ends]
            found = differences(*paths)
            if args.resume:
                found += [
                    f"resumed: {one}" for one in resumed(a, b, Path(scratch) / "resumed" / name, RUNS[name], paths[1])
                ]
            times = " and ".join(f"{end['seconds']:.1f}" for end in ends)
            print(f"{name}: {'; '.join(found) or 'equal to the bit'} ({times} s)", flush=True)
            unequal |= bool(found)
    sys.exit(1 if args.assert_equal and unequal else 0)


if __name__ == "__main__":
    main()
