"""The step at the hardware's limit: what it takes, what it has to do, and what share of the machine's own limits it reaches.

    python benchmarks/engine.py [--encoders conv fc resnet50] [--sizes 32 64 224] [--batches 64 256] [--precisions bf16]

Plain (only OUCL) and regular + meta (metaug), each whole: views, losses, gradients, optimisers, bank. On CUDA the whole grid in
bf16, eager, captured, and captured with forked encoders; elsewhere a few small cells. Times are medians over turns. The floor is
max(FLOPs / the rate of a large matmul or convolution, bytes / the rate of a large copy): FLOPs of matmuls and convolutions, bytes
that these and the optimisers must move, all else fused into them; the rates are measured among the same turns. Then trials side
by side, and a pretraining of CIFAR-10's size (50,000 images, batch 64, 200 epochs, MetAug) projected from real steps of `fit`, its
logs and checkpoints included.
"""

import argparse
import itertools
import json
import math
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from _measure import Steps, default, free, launches, limits, peaks, ratio, turns
from _results import table, write

from metaug_core import DATASETS, Config, fit, preset
from metaug_core.training.loop import pick_device
from metaug_workbook.results.step_costs import Work, count_work, make_noise

Cell = tuple[str, int, int]  # encoder, pixels, batch
ON_A_CPU: list[Cell] = [("conv", 32, 64), ("conv", 64, 64), ("conv", 224, 16), ("fc", 32, 64), ("resnet50", 32, 4)]
STEPS = {"plain": "metaug-only-oucl", "regular + meta": "metaug"}
IMAGES, EPOCHS = 50_000, 200  # of the projection
SAID = ("encoder", "pixels", "batch", "precision", "step", "ms", "trials", "projected_minutes")  # while it runs


def configured(cell: Cell, precision: str, device: str) -> dict[str, Config]:
    encoder, size, batch = cell
    return {
        name: Config(encoder=encoder, image_size=size, batch_size=batch, precision=precision, device=device, method=method)
        for name, method in STEPS.items()
    }  # fmt: skip


def target(cell: Cell, name: str, device: str) -> str | None:
    """The design's (section 4; issue 3), where it names one: milliseconds, or times a plain step."""
    encoder, size, batch = cell
    if encoder != "conv" or batch != 64:
        return None
    if name != "plain":
        return "2.8 x plain" if device == "cuda" else "2.9 x plain" if size == 64 else None
    return {32: "0.4 ms", 64: "0.4 ms", 224: "1.5 ms"}.get(size) if device == "cuda" else None


def measure(cell: Cell, precision: str, device: str, seconds: float) -> list[dict]:
    """A row for each of STEPS. On CUDA eager steps come first, then captured ones with the encoders on streams of their own, then
    captured ones as training has them: no more than two runs fill the memory."""
    configs = configured(cell, precision, device)
    modes = {"eager": "off", "forked": "forked", "captured": "auto"} if device == "cuda" else {"eager": "off"}
    rows: dict[str, dict] = {name: {} for name in STEPS}
    for mode, graphs in modes.items():
        changed = {name: config.replace(graphs=graphs) for name, config in configs.items()}
        for name, row in measured(changed, mode, precision, device, seconds).items():
            rows[name] |= row
        free(device)
    for name, row in rows.items():
        took = row[f"{mode}_ms"] / 1e3  # of the last mode, as training has it
        floor = Work(row["flops"], row["least_bytes"], 0, 0).floor(row["flops_per_second"], row["bytes_per_second"])
        row |= named(cell, precision, name) | {
            "ms": 1e3 * took, "times_plain": row[f"{mode}_times_plain"], "images_per_second": cell[2] / took,
            "floor_ms": 1e3 * floor, "share_of_floor": floor / took, "target": target(cell, name, device),
            "note": row.get("captured_reason")}  # fmt: skip
    return list(rows.values())


def named(cell: Cell, precision: str, step: str) -> dict:
    return dict(zip(("encoder", "pixels", "batch"), cell, strict=True)) | {"precision": precision, "step": step}


def measured(configs: dict[str, Config], mode: str, precision: str, device: str, seconds: float) -> dict[str, dict]:
    """Times and launches of each config's steps; of eager ones also their work. The machine's limits take turns with them."""
    yardsticks, rows = limits(device, precision), {}
    steps = {name: Steps(config) for name, config in configs.items()}
    work = {name: count_work(step) for name, step in steps.items()} if mode == "eager" else {}
    found = turns(steps | yardsticks.ways, device, seconds)
    flops, moved = yardsticks.rates(found)
    for name, step in steps.items():
        row = {"ms": 1e3 * statistics.median(found[name]), "times_plain": ratio(found[name], found["plain"]),
               "rounds": len(found[name]), "reason": step.stepper.reason}  # fmt: skip
        row |= launches(step, device)
        rows[name] = {f"{mode}_{key}": value for key, value in row.items()} | {
            "flops_per_second": flops, "bytes_per_second": moved}  # fmt: skip
        if name in work:
            rows[name] |= described(work[name])
    return rows


def described(work: Work) -> dict[str, float]:
    return {"flops": work.flops, "least_bytes": work.least, "moved_bytes": work.moved, "operations": work.operations,
            "gflop": work.flops / 1e9, "gigabytes": work.least / 1e9}  # fmt: skip


def grid(cells: list[Cell], precisions: list[str], device: str, seconds: float) -> Iterator[dict]:
    """Rows by cell; a cell that does not fit in the device's memory says so."""
    for cell, precision in itertools.product(cells, precisions):
        try:
            yield from measure(cell, precision, device, seconds)
        except torch.OutOfMemoryError:
            yield named(cell, precision, "out of memory")
        free(device)


def remember_peaks(rows: list[dict], device: str) -> None:
    """Peak memory of each row's step, an eager one."""
    whole = [row for row in rows if row["step"] in STEPS]
    configs = [
        configured((r["encoder"], r["pixels"], r["batch"]), r["precision"], device)[r["step"]].replace(graphs="off")
        for r in whole
    ]
    for row, peak in zip(whole, peaks(configs), strict=True):
        row |= {"peak_bytes": peak, "peak_megabytes": None if peak is None else peak / 2**20}


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


def projected(steps: int, precision: str, device: str) -> dict:
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
    return {"precision": precision, "measured_steps": measured, "ms_per_step": 1e3 * per_step, "images": count,
            "projected_minutes": per_step * (IMAGES // 64) * EPOCHS / 60,
            "target": "8 minutes" if device == "cuda" else None}  # fmt: skip


def asked_for(args: argparse.Namespace, device: str) -> list[Cell]:
    axes = (args.encoders or ["conv", "fc", "resnet50"], args.sizes or [32, 64, 224], args.batches or [64, 256])
    whole = device == "cuda" or args.encoders or args.sizes or args.batches
    return list(itertools.product(*axes)) if whole else ON_A_CPU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+")
    parser.add_argument("--sizes", nargs="+", type=int)
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--precisions", nargs="+", choices=("float32", "tf32", "bf16"))
    parser.add_argument("--seconds", type=float, help="of timing for each cell of the grid")
    parser.add_argument("--trials", nargs="+", type=int, help="the first is what the others are compared with")
    parser.add_argument("--steps", type=int, help="that the projection is made from")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = pick_device(args.device)
    precisions = args.precisions or [default(device, "bf16", "float32")]
    seconds = args.seconds or default(device, 1.5, 18)
    found: dict[str, list[dict]] = {"rows": [], "trials": [], "projections": []}

    def keep(
        part: str, rows: Iterable[dict]
    ) -> None:  # file and screen at once: a long run that is stopped leaves what it found
        for row in rows:
            found[part].append(row)
            print({name: row[name] for name in list(row) if name in SAID}, flush=True)
            write(f"engine-{device}", "engine.py", vars(args), device, **found)

    keep("rows", grid(asked_for(args, device), precisions, device, seconds))
    remember_peaks(found["rows"], device)
    keep("trials", side_by_side(args.trials or default(device, [1, 4, 16], [1, 4]), precisions[0], device, seconds))
    steps = args.steps or default(device, 2000, 8)
    keep("projections", (projected(steps, precision, device) for precision in precisions))
    print(shown(**found))


def shown(rows: list[dict], trials: list[dict], projections: list[dict]) -> str:
    whole = table(
        rows, **{"encoder": "{encoder}", "px": "{pixels}", "batch": "{batch}", "precision": "{precision}", "step": "{step}",
                 "ms": "{ms:.2f}", "x plain": "{times_plain:.2f}", "target": "{target}", "images/s": "{images_per_second:.0f}",
                 "GFLOP": "{gflop:.0f}", "GB": "{gigabytes:.2f}", "floor, ms": "{floor_ms:.2f}", "of floor": "{share_of_floor:.0%}",
                 "eager, ms": "{eager_ms:.2f}", "forked, ms": "{forked_ms:.2f}", "operations": "{operations}",
                 "launches eager": "{eager_launches}", "launches captured": "{captured_launches}",
                 "peak MB": "{peak_megabytes:.0f}", "note": "{note}"},
    )  # fmt: skip
    side = table(trials, **{"trials": "{trials}", "ms": "{ms:.1f}", "x one": "{times_one:.2f}",
                            "of single runs": "{share_of_singles:.2f}", "target": "{target}"})  # fmt: skip
    long = table(
        projections, **{"precision": "{precision}", "steps measured": "{measured_steps}", "ms per step": "{ms_per_step:.2f}",
                        "200 epochs of 50,000 images, minutes": "{projected_minutes:.1f}", "target": "{target}"},
    )  # fmt: skip
    return "\n\n".join((whole, side, long))


if __name__ == "__main__":
    main()
