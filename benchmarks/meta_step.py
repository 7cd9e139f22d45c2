"""Time, FLOPs and peak memory of one step: plain, regular + meta, and regular + double backward, in one run.

    python benchmarks/meta_step.py [--encoder conv] [--size 64] [--batch 64] [--rounds 9] [--device auto]

plain is the step of MetAug (only OUCL), without a MAG. The rival's double backward takes the gradient to omega only: the fair
one. The variants take turns within a round, so that a drift of the machine's speed meets all; ratios are medians over rounds.
Peak memory is what a step adds to weights and optimiser states: on the CPU the resident set of a process of its own, on a GPU
torch's count.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _results import write
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from metaug_core import Config, state
from metaug_core.data import Images, Splits
from metaug_core.engine import pick_device
from metaug_core.machine import freed_memory_kept
from metaug_core.step import train_step

VARIANTS = {
    "plain (only OUCL)": {"method": "metaug-only-oucl"},
    "regular + meta": {"method": "metaug"},
    "regular + meta, own gradient": {"method": "metaug", "look_ahead": "fresh"},
    "regular + double backward": {"method": "metaug", "meta": "double-backward"},
}


def stepper(name: str, args: argparse.Namespace) -> Callable[[], object]:
    """A function that does one whole step: views, losses, gradients, optimisers, bank."""
    device = pick_device(args.device)
    config = Config(encoder=args.encoder, image_size=args.size, batch_size=args.batch, **VARIANTS[name])
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (8 * args.batch, 3, args.size, args.size), generator=generator, dtype=torch.uint8)
    images = Images(pixels.to(device), torch.zeros(len(pixels), dtype=torch.int64, device=device), ("one", "two"))
    s = state.create(config, Splits(images, images, None, images), device)
    rows = torch.arange(args.batch, device=device)
    return lambda: train_step(s, images.pixels[rows], rows, log=False)


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def peak_memory(name: str, args: argparse.Namespace) -> int:
    """Bytes that a step adds while it runs. Called in a process of its own on the CPU."""
    step = stepper(name, args)
    if torch.cuda.is_available() and args.device != "cpu":
        step()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    step()  # optimiser states are there from now on
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    step()
    return resident("VmHWM") - before


def in_own_process(name: str, args: argparse.Namespace) -> int:
    """`peak_memory` in a child whose malloc returns large blocks at once, so that the resident set is what tensors take."""
    command = [sys.executable, __file__, "--memory-of", name]
    for key in ("encoder", "size", "batch", "device"):
        command += [f"--{key}", str(getattr(args, key))]
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    return int(subprocess.run(command, env=settings, check=True, capture_output=True, text=True).stdout.split()[-1])


def timed(step: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Flops(TorchDispatchMode):
    """Counts the FLOPs of matmuls and convolutions by torch's own formulas (its FlopCounterMode hooks modules, and with that
    torch.autograd.grad to a feature fails)."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def counted_flops(step: Callable[[], object]) -> int:
    with Flops() as counter:
        step()
    return counter.total


def measure(args: argparse.Namespace) -> list[dict]:
    steps = {name: stepper(name, args) for name in VARIANTS}
    flops = {name: counted_flops(step) for name, step in steps.items()}  # warms up as well
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with freed_memory_kept():  # as in training
        for step in steps.values():
            step()
        for _ in range(args.rounds):
            for name, step in steps.items():
                seconds[name].append(timed(step))
    plain, *_ = VARIANTS
    memory = {name: in_own_process(name, args) for name in VARIANTS}
    return [
        {
            "step": name,
            "milliseconds": 1e3 * statistics.median(seconds[name]),
            "times_plain": statistics.median(a / b for a, b in zip(seconds[name], seconds[plain], strict=True)),
            "gflop": flops[name] / 1e9,
            "peak_megabytes": memory[name] / 2**20,
            "memory_times_plain": memory[name] / memory[plain],
        }
        for name in VARIANTS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="conv")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(peak_memory(args.memory_of, args))
        return
    table = measure(args)
    print(f"| {args.encoder}, {args.size} px, batch {args.batch} | ms | x plain | GFLOP | peak MB | x plain |")
    print("|---|---|---|---|---|---|")
    line = "| {step} | {milliseconds:.0f} | {times_plain:.2f} | {gflop:.0f} | {peak_megabytes:.0f} | {memory_times_plain:.2f} |"
    for row in table:
        print(line.format(**row))
    asked = vars(args) | {"memory_of": None}
    write(
        f"meta_step-{args.encoder}-{args.size}-{args.batch}",
        "meta_step.py",
        asked,
        pick_device(args.device),
        rows=table,
    )


if __name__ == "__main__":
    main()
