"""What a second thread gains: a step, and the encoding of plain images, with one thread and with all, by turns in one run.

    python benchmarks/threads.py [--batches 32 64] [--widths 0.125 0.25 0.5 1] [--sizes 32 64] [--methods cmc metaug]

Beside each gain stand the FLOPs (two for each multiplication) of an image in an encoder, by which `training.threads.count_threads`
decides, and those of the step. CPU only, with as many threads as cores. Nothing may run beside it: where two threads share a core,
they wait for each other.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable
from functools import partial

import torch
from _measure import Steps, ratio, turns
from _results import table, write

from metaug_core import preset
from metaug_core.evaluation import representations
from metaug_core.hardware import use_threads
from metaug_core.training.threads import count_flops
from metaug_workbook.results.step_costs import count_work, make_noise


def compare(run: Callable[[int], object], budget: float) -> dict[str, float]:
    """Milliseconds of run(threads) with one thread and with all (medians), and the gain (median of the rounds' ratios)."""
    found = turns({"one": partial(run, 1), "all": partial(run, torch.get_num_threads())}, "cpu", budget)
    times = {name: 1e3 * statistics.median(seconds) for name, seconds in found.items()}
    return times | {"gain": ratio(found["one"], found["all"]), "rounds": len(found["one"])}


def step_with(step: Steps, threads: int) -> object:
    step.stepper.states[0].threads = threads
    return step()


def encode_with(way: Callable[[], object], threads: int) -> object:
    with use_threads(threads):
        return way()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["cmc", "metaug"])
    parser.add_argument("--encoder", default="conv")
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 64])
    parser.add_argument("--widths", nargs="+", type=float, default=[0.125, 0.25, 0.5, 1.0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[32])
    parser.add_argument("--seconds", type=float, default=3.0, help="For each row.")
    args = parser.parse_args()
    rows = []
    for size, width, batch, method in itertools.product(args.sizes, args.widths, args.batches, args.methods):
        config = preset("quick", method=method, encoder=args.encoder, width=width, image_size=size, batch_size=batch,
                        mag_hidden=round(1024 * width), device="cpu", precision="float32", train_images=None)  # fmt: skip
        step = Steps(config)
        row = {"method": method, "px": size, "width": width, "batch": batch, "image": count_flops(config) / 1e6}
        row |= {"step": count_work(step).flops / 1e6, **compare(partial(step_with, step), args.seconds)}
        if method == args.methods[0]:
            networks, _ = representations.load_networks(config, 2)
            way = partial(representations.features, networks, make_noise(batch, size), config)
            row["encoding"] = compare(partial(encode_with, way), args.seconds / 3)["gain"]
        rows.append(row)
    print(table(rows, method="{method}", px="{px}", width="{width}", batch="{batch}", **{
        "MFLOP of an image": "{image:.3g}", "of a step": "{step:.3g}", "ms, one thread": "{one:.1f}", "ms, all": "{all:.1f}",
        "gain": "{gain:.2f}", "rounds": "{rounds}", "gain of encoding": "{encoding:.2f}"}))  # fmt: skip
    write("threads", "threads.py", vars(args), "cpu", rows=rows)


if __name__ == "__main__":
    main()
