"""What the benchmarks share: steps of a run, timing by turns, counts of work, peaks of memory, and the machine's own limits."""

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile, record_function

from metaug_core import Config
from metaug_core.data.datasets import Images, Splits
from metaug_core.runtime.device import arithmetic, keep_freed_memory
from metaug_core.training import state
from metaug_core.training.cuda_graphs import EAGER_STEPS, Batch, Stepper
from metaug_core.training.loop import pick_device
from metaug_workbook.results.step_costs import Way, make_noise

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler takes a machine without a GPU for an error and says so

LEAST_ROUNDS, MOST_ROUNDS = 3, 25
BACKWARD = 1  # the profiler's scope of a node of a backward pass
CPU_WARM_STEPS = 4  # the heap has its size after so many: before, most large tensors are page faults
CHAIN_SECONDS = 0.02  # on CUDA so many steps are timed together that the events' own microseconds do not count


class Steps:
    """Whole steps, one per call, of trials side by side: views, losses, gradients, optimisers, bank."""

    def __init__(self, *configs: Config, images: Images | None = None):
        device, batch = pick_device(configs[0].device), configs[0].batch_size
        images = images or make_noise(8 * batch, configs[0].image_size, device)
        splits = Splits(images, images, None, images)
        self.stepper = Stepper([state.create(config, splits, device) for config in configs])
        self.images, self.rows = images, torch.arange(batch, device=device)

    def __call__(self, pixels: Tensor | None = None) -> object:
        pixels = self.images.pixels[self.rows] if pixels is None else pixels
        with arithmetic(self.stepper.states[0].config.precision):
            return self.stepper({n: Batch(pixels, self.rows, False) for n in range(len(self.stepper.states))})


# --- time


def wait(device: str) -> None:
    """Until the device has done all it was asked."""
    if device != "cpu":
        getattr(torch, device).synchronize()


def seconds(way: Way, device: str, repeat: int = 1) -> float:
    """Of one call, among `repeat` in a row: by the device's own events on CUDA, else by the clock."""
    wait(device)
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeat):
            way()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeat
    begin = time.perf_counter()
    for _ in range(repeat):
        way()
    wait(device)
    return (time.perf_counter() - begin) / repeat


def turns(ways: Mapping[str, Way], device: str, budget: float) -> dict[str, list[float]]:
    """Seconds of each way by round, after warming up. Within a round each has its turn, so that a drift of the machine meets all,
    and every other round goes backwards. As many rounds as fit in `budget` seconds, from 3 to 25."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    with keep_freed_memory():  # as in training
        for way in ways.values():
            for _ in range(EAGER_STEPS + 2 if device == "cuda" else CPU_WARM_STEPS):  # CUDA: past the capture
                way()
        once = {name: seconds(way, device) for name, way in ways.items()}
        repeat = {n: max(1, min(50, round(CHAIN_SECONDS / t))) if device == "cuda" else 1 for n, t in once.items()}
        rounds = int(budget / sum(repeat[name] * once[name] for name in ways))
        for number in range(min(max(rounds, LEAST_ROUNDS), MOST_ROUNDS)):
            for name in sorted(ways, key=list(ways).index, reverse=bool(number % 2)):
                found[name].append(seconds(ways[name], device, repeat[name]))
    return found


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """The median over rounds of one's time in that of the other."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


# --- work


def launches(step: Way, device: str) -> dict[str, int | None]:
    """What the host sends off in one step, a graph counting once, and the kernels and copies that the device then runs."""
    if device != "cuda":
        return {"launches": None, "kernels": None}
    wait(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step()
        wait(device)
    events = seen.events() or []
    on_device = [e for e in events if e.device_type == DeviceType.CUDA and not getattr(e, "is_user_annotation", False)]
    sent = [e for e in events if e.device_type == DeviceType.CPU and "Launch" in e.name and e.name.startswith("cu")]
    return {"launches": len(sent), "kernels": len(on_device)}


PARTS = ("views", "encoders", "loss and MAG", "optimisers")


def divide(step: Steps, device: str) -> dict[str, float]:
    """The share of each of PARTS in one eager step of a single run, by torch's profiler: of the kernels' time on CUDA, else of the
    operations'. Under "loss and MAG" stands what is none of the others, the bank as well."""
    (s,) = step.stepper.states
    activities = default(device, [ProfilerActivity.CPU, ProfilerActivity.CUDA], [ProfilerActivity.CPU])
    wait(device)
    with mark_parts(s), profile(activities=activities) as seen:
        step()
        wait(device)
    total: Counter[str] = Counter(dict.fromkeys(PARTS, 0.0))
    parts = find_parts(seen.events() or [])
    for event in parts:
        kernels = sum(
            kernel.duration for kernel in event.kernels if kernel.name != event.name
        )  # not the range of a mark
        total[parts[event]] += kernels if device == "cuda" else event.self_cpu_time_total
    return {part: time / total.total() for part, time in total.items()}


@contextmanager
def mark_parts(s: state.TrainState) -> Iterator[None]:
    """Context manager: the profiler sees when views are made and when the networks run. Optimisers mark their steps themselves."""
    views, forward = s.method.views, s.networks.forward
    s.method.views, s.networks.forward = record_function("views")(views), record_function("encoders")(forward)
    try:
        yield
    finally:
        del s.method.views, s.networks.forward  # the classes' own are found again


def find_parts(events: Iterable[FunctionEvent]) -> dict[FunctionEvent, str]:
    """Each event of the host with its part. A node of a backward pass is of the part that its forward operation was of, which has
    the same number in the same thread: the last one that has it, because operations without a node do not count on."""
    parts: dict[FunctionEvent, str] = {}
    nodes: dict[tuple[int | None, int], str] = {}  # by thread and number
    host = [event for event in events if event.device_type == DeviceType.CPU]
    for event in sorted(host, key=lambda event: (event.time_range.start, -event.time_range.end)):
        backward = event.name.startswith("autograd::engine::evaluate_function") or event.scope == BACKWARD
        node = event.fwd_thread if backward else event.thread, event.sequence_nr
        if event.name in PARTS:
            parts[event] = event.name
        elif event.name.startswith("Optimizer.step"):
            parts[event] = "optimisers"
        elif backward and node in nodes:
            parts[event] = nodes[node]
        else:
            parent = event.cpu_parent
            parts[event] = parts[parent] if parent is not None and parent in parts else "loss and MAG"
        if not backward and event.sequence_nr >= 0:
            nodes[node] = parts[event]
    return parts


@dataclass(frozen=True)
class Limits:
    """The machine's own limits, as ways that take their turns with what they are to judge: large products and a large copy."""

    ways: dict[str, Way]
    amounts: dict[str, int]  # FLOPs or bytes of one call

    def rates(self, found: Mapping[str, Sequence[float]]) -> tuple[float, float]:
        """Best FLOP/s and bytes/s among the rounds."""
        best = {name: amount / min(found[name]) for name, amount in self.amounts.items()}
        return max(best["matmul"], best["convolution"]), best["copy"]


def limits(device: str, precision: str) -> Limits:
    """precision: of matmul and convolution, as `Config` has it. Both, because they come from two libraries: on an AMD processor
    oneDNN's convolution is a third faster than MKL's matmul."""
    side, size, images = (8192, 2**28, (256, 512, 32, 32)) if device == "cuda" else (2048, 2**26, (16, 192, 32, 32))
    made = {"device": device, "dtype": torch.bfloat16 if precision == "bf16" else torch.float32}
    a, x, w = (torch.randn(shape, **made) for shape in ((side, side), images, (images[1], images[1], 5, 5)))
    x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
    out, source = torch.empty_like(a), torch.empty(size, dtype=torch.uint8, device=device)
    goal = torch.empty_like(source)

    def multiply() -> None:
        with arithmetic(precision):
            torch.mm(a, a, out=out)

    def convolve() -> None:
        with arithmetic(precision):
            F.conv2d(x, w, padding=2)

    return Limits(
        {"matmul": multiply, "convolution": convolve, "copy": lambda: goal.copy_(source)},
        {"matmul": 2 * side**3, "convolution": 2 * x.numel() * w[0].numel(), "copy": 2 * size},
    )


# --- memory


def free(device: str) -> None:
    """What nobody holds any more goes back to the device."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM at its highest (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def added(config: Config) -> int:
    """Bytes that an eager step adds, while it runs, to weights and optimiser states."""
    free(pick_device(config.device))
    step = Steps(config.replace(graphs="off"))
    step()  # the optimisers' states are there from now on
    if pick_device(config.device) == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    step()
    return resident("VmHWM") - before


def peaks(configs: Sequence[Config]) -> list[int | None]:
    """`added` of each. On a CPU in one child, whose malloc returns large blocks at once, so that its resident set is what tensors
    take; None where there is no /proc."""
    if pick_device(configs[0].device) == "cuda":
        return [added(config) for config in configs]
    if not Path("/proc/self/clear_refs").exists():
        return [None] * len(configs)
    command = [sys.executable, "-c", "import _measure; _measure.answer()"]
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    asked = json.dumps([config.model_dump(mode="json") for config in configs])
    where = Path(__file__).parent
    done = subprocess.run(command, input=asked, env=settings, cwd=where, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def answer() -> None:
    """The child's part of `peaks`."""
    print(json.dumps([added(Config(**values)) for values in json.loads(sys.stdin.read())]))


def default(device: str, on_cuda: Any, elsewhere: Any) -> Any:
    """What an option is where the user said nothing."""
    return on_cuda if device == "cuda" else elsewhere
