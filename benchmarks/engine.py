"""The step at the hardware's limit: what it takes, what it has to do, and what share of the machine's own limits it reaches.

    python benchmarks/engine.py [--minutes 10] [--encoders conv fc resnet50] [--sizes 32 64 224] [--batches 64 256]
                                [--precisions bf16 float32]

Plain (only OUCL) and regular + meta (metaug), each whole: views, losses, gradients, optimisers, bank. On CUDA the whole grid:
eager, captured, and captured with forked encoders; elsewhere a few small cells. Within a cell the precisions take turns, bf16 and
float32 by default, and so do the machine's own limits: a large matmul, a large convolution, a large copy. Times are medians.
The floor is max(FLOPs / the rate of matmul or convolution, bytes / the rate of the copy): FLOPs of matmuls and convolutions, bytes
that these and the optimisers must move, all else fused into them. The shares of the step are those of an eager one. Then trials
side by side, and a pretraining of CIFAR-10's size (50,000 images, batch 64, 200 epochs, MetAug) projected from real steps of `fit`,
its logs and checkpoints included.

What has a target comes first, and each part is written when it is measured. With --minutes the script ends before the part that
would not fit any more, if it took as long as the longer of the two before it, and says what it left out.
"""

import argparse
import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from _measure import PARTS, Steps, default, divide, free, launches, limits, peaks, ratio, turns
from _results import table, write

from metaug_core import DATASETS, Config, fit, preset
from metaug_core.training.loop import pick_device
from metaug_workbook.results.step_costs import Work, count_work, make_noise

Cell = tuple[str, int, int]  # encoder, pixels, batch
ON_A_CPU: list[Cell] = [("conv", 32, 64), ("conv", 64, 64), ("conv", 224, 16), ("fc", 32, 64), ("resnet50", 32, 4)]
FIRST: list[Cell] = [("conv", 32, 64), ("conv", 224, 64), ("conv", 64, 64)]  # what every target is about
STEPS = {"plain": "metaug-only-oucl", "regular + meta": "metaug"}
EXACT_FIRST = ("float32", "tf32", "bf16")
IMAGES, EPOCHS = 50_000, 200  # of the projection
SAID = ("encoder", "pixels", "batch", "precision", "step", "ms", "trials", "projected_minutes")  # while it runs


class Job(NamedTuple):
    """A part of the benchmark that is measured at once."""

    part: str  # rows, trials or projections
    what: str
    measure: Callable[[], Iterable[dict]]


def run_jobs(
    jobs: Sequence[Job], seconds: float, keep: Callable[[str, dict], None], clock: Callable[[], float] = time.monotonic
) -> list[str]:
    """Keep the rows of one job after the other, until the next would end after so many seconds, if it takes as long as the longer
    of the two before it. The first is always done. Returns what was left out."""
    begin, took = clock(), []
    for number, job in enumerate(jobs):
        started = clock()
        if took and started + max(took[-2:]) > begin + seconds:
            return [job.what for job in jobs[number:]]
        for row in job.measure():
            keep(job.part, row)
        took.append(clock() - started)
    return []


def configured(cell: Cell, precision: str, device: str) -> dict[str, Config]:
    encoder, size, batch = cell
    return {
        name: Config(encoder=encoder, image_size=size, batch_size=batch, precision=precision, device=device, method=method)
        for name, method in STEPS.items()
    }  # fmt: skip


def target(cell: Cell, name: str, device: str) -> str | None:
    """Where one is set: milliseconds on an H100 or H200, or times a plain step."""
    encoder, size, batch = cell
    if encoder != "conv" or batch != 64:
        return None
    if name != "plain":
        return "2.8 x plain" if device == "cuda" else "2.9 x plain" if size == 64 else None
    return {32: "0.9 ms", 64: "0.9 ms", 224: "2.5 ms"}.get(size) if device == "cuda" else None


def measure(cell: Cell, precisions: Sequence[str], device: str, seconds: float) -> list[dict]:
    """A row for each precision and each of STEPS, or one that says that the cell does not fit in the device's memory. On CUDA eager
    steps come first, then captured ones with the encoders on streams of their own, then captured ones as training has them."""
    configs = {(precision, name): config for precision in precisions
               for name, config in configured(cell, precision, device).items()}  # fmt: skip
    modes = {"eager": "off", "forked": "forked", "captured": "auto"} if device == "cuda" else {"eager": "off"}
    rows: dict[tuple[str, str], dict] = {key: named(cell, *key) for key in configs}
    try:
        for mode, graphs in modes.items():
            changed = {key: config.replace(graphs=graphs) for key, config in configs.items()}
            for key, row in measured(changed, mode, device, seconds).items():
                rows[key] |= row
            free(device)
        memory = peaks([config.replace(graphs="off") for config in configs.values()])
    except torch.OutOfMemoryError:
        return [named(cell, ", ".join(precisions), "out of memory")]
    finally:
        free(device)
    for (_, name), row, peak in zip(rows, rows.values(), memory, strict=True):
        took = row[f"{mode}_ms"] / 1e3  # of the last mode, as training has it
        floor = Work(row["flops"], row["least_bytes"], 0, 0).floor(row["flops_per_second"], row["bytes_per_second"])
        row |= {
            "ms": 1e3 * took, "times_plain": row[f"{mode}_times_plain"], "times_float32": row.get(f"{mode}_times_float32"),
            "images_per_second": cell[2] / took, "teraflops": row["flops"] / took / 1e12,
            "share_of_peak": row["flops"] / took / row["flops_per_second"], "floor_ms": 1e3 * floor,
            "share_of_floor": floor / took, "target": target(cell, name, device), "note": row.get("captured_reason"),
            "peak_bytes": peak, "peak_megabytes": None if peak is None else peak / 2**20}  # fmt: skip
    return list(rows.values())


def named(cell: Cell, precision: str, step: str) -> dict:
    return dict(zip(("encoder", "pixels", "batch"), cell, strict=True)) | {"precision": precision, "step": step}


def measured(
    configs: dict[tuple[str, str], Config], mode: str, device: str, seconds: float
) -> dict[tuple[str, str], dict]:
    """Times and launches of each config's steps; of eager ones also their work and its parts. The machine's limits take turns with
    them."""
    precisions = list(dict.fromkeys(precision for precision, _ in configs))
    yardsticks = {precision: limits(device, precision) for precision in precisions}
    steps, rows = {key: Steps(config) for key, config in configs.items()}, {}
    ways = {" ".join(key): step for key, step in steps.items()}
    for precision, yardstick in yardsticks.items():
        ways |= {f"{precision} {name}": way for name, way in yardstick.ways.items()}
    found = turns(ways, device, seconds)
    rates = {precision: yardstick.rates({name: found[f"{precision} {name}"] for name in yardstick.ways})
             for precision, yardstick in yardsticks.items()}  # fmt: skip
    for (precision, name), step in steps.items():
        times = found[f"{precision} {name}"]
        exact = found.get(f"float32 {name}")
        row = {"ms": 1e3 * statistics.median(times), "times_plain": ratio(times, found[f"{precision} plain"]),
               "times_float32": ratio(times, exact) if exact else None,
               "rounds": len(times), "reason": step.stepper.reason}  # fmt: skip
        row |= launches(step, device)
        flops, moved = find_limit(rates, precision)
        rows[precision, name] = {f"{mode}_{key}": value for key, value in row.items()} | {
            "flops_per_second": flops, "bytes_per_second": moved}  # fmt: skip
        if mode == "eager":
            rows[precision, name] |= described(count_work(step)) | {"shares": divide(step, device)}
    return rows


def find_limit(rates: dict[str, tuple[float, float]], precision: str) -> tuple[float, float]:
    """FLOP/s and bytes/s that bound a step of this precision, which may compute any product in a more exact one."""
    allowed = EXACT_FIRST[: EXACT_FIRST.index(precision) + 1]
    flops, moved = zip(*(rates[name] for name in allowed if name in rates), strict=True)
    return max(flops), max(moved)


def described(work: Work) -> dict[str, float]:
    return {"flops": work.flops, "least_bytes": work.least, "moved_bytes": work.moved, "operations": work.operations,
            "gflop": work.flops / 1e9, "gigabytes": work.least / 1e9}  # fmt: skip


def side_by_side(counts: list[int], precision: str, device: str, seconds: float) -> list[dict]:
    """A step of each of T trials against one trial's: MetAug, conv 32 px on CUDA, the small default elsewhere."""
    base = Config(precision=precision, device=device) if device == "cuda" else preset("quick", device=device)
    steps = {f"{count}": Steps(*(base.replace(seed=seed) for seed in range(count))) for count in counts}
    found = turns(steps, device, seconds)
    took = {count: statistics.median(found[f"{count}"]) for count in counts}
    return [
        {"trials": count, "ms": 1e3 * took[count], "times_one": took[count] / took[counts[0]],
         "share_of_singles": took[count] / (count * took[counts[0]]), "eager_because": steps[f"{count}"].stepper.reason,
         "target": {("cuda", 16): "4 x one", ("cpu", 4): "1.1 of four"}.get((device, count))}
        for count in counts
    ]  # fmt: skip


def projected(steps: int, precision: str, device: str) -> list[dict]:
    """`fit` on noise of CIFAR-10's size for so many steps, from its own clock, the first half second left out."""
    count = min(IMAGES, 64 * steps)
    images, test = make_noise(count, 32), make_noise(2, 32)
    DATASETS["cifar10-sized"] = lambda config: (images.pixels, images.labels, test.pixels, test.labels)
    with tempfile.TemporaryDirectory() as folder:
        config = Config(dataset="cifar10-sized", epochs=math.ceil(64 * steps / count), val_fraction=0, precision=precision,
                        device=device, runs_dir=Path(folder))  # fmt: skip
        lines = (fit(config, lambda _: None).path / "timing.jsonl").read_text().splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    first = {"step": 0, "seconds": 0} if first == last else first
    measured = last["step"] - first["step"]
    per_step = (last["seconds"] - first["seconds"]) / measured
    return [
        {"precision": precision, "measured_steps": measured, "ms_per_step": 1e3 * per_step, "images": count,
         "projected_minutes": per_step * (IMAGES // 64) * EPOCHS / 60, "target": "10 minutes" if device == "cuda" else None}
    ]  # fmt: skip


def asked_for(args: argparse.Namespace, device: str) -> list[Cell]:
    axes = (args.encoders or ["conv", "fc", "resnet50"], args.sizes or [32, 64, 224], args.batches or [64, 256])
    whole = device == "cuda" or args.encoders or args.sizes or args.batches
    return list(itertools.product(*axes)) if whole else ON_A_CPU


def plan(args: argparse.Namespace, device: str) -> list[Job]:
    """All that is asked for: the cells that have a target, trials and projections, the other cells."""
    precisions = args.precisions or default(device, ["bf16", "float32"], ["float32", "bf16"])
    seconds, steps = args.seconds or default(device, 3, 18), args.steps or default(device, 2000, 8)
    counts, cells = args.trials or default(device, [1, 4, 16], [1, 4]), asked_for(args, device)
    first = [cell for cell in FIRST if cell in cells] or cells

    def rows(chosen: list[Cell]) -> list[Job]:
        return [
            Job("rows", "{} {} px batch {}".format(*cell), partial(measure, cell, precisions, device, seconds))
            for cell in chosen
        ]

    return [
        *rows(first),
        Job("trials", f"trials {counts}", partial(side_by_side, counts, precisions[0], device, seconds)),
        *(Job("projections", f"projection in {name}", partial(projected, steps, name, device)) for name in precisions),
        *rows([cell for cell in cells if cell not in first]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="begin nothing that would take longer in all")
    parser.add_argument("--encoders", nargs="+")
    parser.add_argument("--sizes", nargs="+", type=int)
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--precisions", nargs="+", choices=EXACT_FIRST)
    parser.add_argument("--seconds", type=float, help="of timing for each cell of the grid and each way to run it")
    parser.add_argument("--trials", nargs="+", type=int, help="the first is what the others are compared with")
    parser.add_argument("--steps", type=int, help="that the projection is made from")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = pick_device(args.device)
    found: dict[str, list[dict]] = {"rows": [], "trials": [], "projections": []}

    def keep(part: str, row: dict) -> None:  # file and screen at once: what is stopped leaves what it found
        found[part].append(row)
        print({name: row[name] for name in list(row) if name in SAID}, flush=True)
        write(f"engine-{device}", "engine.py", vars(args), device, **found)

    left_out = run_jobs(plan(args, device), 60 * (args.minutes or math.inf), keep)
    write(f"engine-{device}", "engine.py", vars(args), device, **found, left_out=left_out)
    print(shown(**found))
    if left_out:
        print(f"\nLeft out, because the {args.minutes:g} minutes did not hold them: {'; '.join(left_out)}.")


def shown(rows: list[dict], trials: list[dict], projections: list[dict]) -> str:
    whole = table(
        rows, **{"encoder": "{encoder}", "px": "{pixels}", "batch": "{batch}", "precision": "{precision}", "step": "{step}",
                 "ms": "{ms:.2f}", "x plain": "{times_plain:.2f}", "x float32": "{times_float32:.2f}", "target": "{target}",
                 "images/s": "{images_per_second:.0f}", "TFLOP/s": "{teraflops:.3g}", "of peak": "{share_of_peak:.0%}",
                 "floor, ms": "{floor_ms:.2f}", "of floor": "{share_of_floor:.0%}",
                 **{part: f"{{shares[{part}]:.0%}}" for part in PARTS},
                 "eager, ms": "{eager_ms:.2f}", "forked, ms": "{forked_ms:.2f}", "operations": "{operations}",
                 "launches eager": "{eager_launches}", "launches captured": "{captured_launches}",
                 "GFLOP": "{gflop:.0f}", "GB": "{gigabytes:.2f}", "peak MB": "{peak_megabytes:.0f}", "note": "{note}"},
    )  # fmt: skip
    side = table(trials, **{"trials": "{trials}", "ms": "{ms:.1f}", "x one": "{times_one:.2f}",
                            "of single runs": "{share_of_singles:.2f}", "target": "{target}"})  # fmt: skip
    long = table(
        projections, **{"precision": "{precision}", "steps measured": "{measured_steps}", "ms per step": "{ms_per_step:.2f}",
                        "200 epochs of 50,000 images, minutes": "{projected_minutes:.1f}", "target": "{target}"},
    )  # fmt: skip
    return "\n\n".join(text for text in (whole, side, long) if text.count("\n") > 1)


if __name__ == "__main__":
    main()
