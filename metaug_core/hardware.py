"""What this machine has: its devices, its processor's name and threads, and which number format the processor is faster in.

It stands below `Config`, which asks it what `precision auto` is: no run's settings hold `auto`.
"""

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

import torch
from torch.nn import functional as F

FORMATS = {"float32": torch.float32, "bf16": torch.bfloat16}
CLEARLY = 0.8  # of float32's time: what bf16 must stay below to be chosen
TURNS, SECONDS = 4, 0.1  # of the timing: at most so many, and none is begun after so long
BF16_CAPABILITY = (8, 0)  # of CUDA cards whose multipliers take bf16


def list_devices() -> list[str]:
    """The kinds of devices there are, the best first: cuda, mps, cpu."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, is_there in available.items() if is_there]


def choose_precision(device: object) -> str:
    """What `precision auto` is on a device (auto, cpu, cuda or mps): bf16 where it is faster, else float32.

    On a CPU by a timing of a third of a second, once for a machine and a version of torch; on CUDA by the card's capability.
    """
    device = list_devices()[0] if device == "auto" else device
    if device == "cuda":
        has_bf16 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= BF16_CAPABILITY
        return "bf16" if has_bf16 else "float32"
    if device == "cpu":
        times = recall_times(locate_times())
        return "bf16" if times["bf16"] < CLEARLY * times["float32"] else "float32"
    return "float32"


# --- the processor


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Context manager: torch computes with so many threads; afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def read_cpuinfo(field: str) -> str | None:
    """The first value of a field of Linux' /proc/cpuinfo; None elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == field), None)


def name_processor() -> str:
    """The processor's name, as far as the system tells. On Linux it is in a file; Python knows only the architecture."""
    return read_cpuinfo("model name") or platform.processor() or platform.machine()


# --- its faster format


def locate_times() -> Path:
    """The file of this processor and this version of torch, in METAUG_CACHE or the user's folder of caches.

    The processor's abilities are in its name: virtual machines call processors with and without AMX the same.
    """
    text = json.dumps([name_processor(), read_cpuinfo("flags") or read_cpuinfo("Features"), torch.__version__])
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    folder = os.environ.get("METAUG_CACHE") or os.path.join(caches, "metaug-workbook")
    return Path(os.path.expanduser(folder)) / f"precision-{sha256(text.encode()).hexdigest()[:16]}.json"


@cache  # where the file cannot be written, a process measures once
def recall_times(file: Path) -> dict[str, float]:
    """Seconds by format, from the file, else measured now and written there. A file that is damaged or cannot be written is no
    error."""
    times = read_times(file)
    if times is None:
        measured = time_formats()
        times = read_times(file) or measured  # another process may have measured meanwhile: all take the same
        if times is measured:
            write_times(file, times)
    return times


def read_times(file: Path) -> dict[str, float] | None:
    """The seconds in a file; None if it is not there or not whole."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        times = {name: float(stored[name]) for name in FORMATS}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return times if all(0 < seconds < math.inf for seconds in times.values()) else None


def write_times(file: Path, times: dict[str, float]) -> None:
    """Write the file whole, if it can be written."""
    own = file.with_suffix(f".{os.getpid()}")
    whole = {"processor": name_processor(), "torch": torch.__version__} | times
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        own.replace(file)


def time_formats() -> dict[str, float]:
    """Seconds of a convolution and a product of a run's size, forward and backward, on one thread: the least of some turns of each
    format, by the processor's time, in which waiting for other processes does not count. torch's random numbers and switches
    are left alone."""
    with use_threads(1), torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        ways = {name: make_work(dtype) for name, dtype in FORMATS.items()}
        for way in ways.values():
            way()  # the first call prepares kernels
        times = dict.fromkeys(ways, math.inf)
        started = time.thread_time()
        for turn in range(TURNS):
            if turn and time.thread_time() - started > SECONDS:
                break
            for name, way in ways.items():
                begun = time.thread_time()
                way()
                times[name] = min(times[name], time.thread_time() - begun)
        return times


def make_work(dtype: torch.dtype) -> Callable[[], object]:
    """A 3 x 3 convolution of 8 x 64 x 16 x 16 and a 64 x 1024 by 1024 x 1024 product, with all their gradients."""
    shapes = (8, 64, 16, 16), (64, 64, 3, 3), (64, 1024), (1024, 1024)
    leaves = [torch.full(shape, 0.01, dtype=dtype, device="cpu") for shape in shapes]
    leaves[:2] = [leaf.contiguous(memory_format=torch.channels_last) for leaf in leaves[:2]]
    x, w, a, b = (leaf.requires_grad_() for leaf in leaves)

    def work() -> object:
        outputs = F.conv2d(x, w, padding=1), a @ b
        return torch.autograd.grad(outputs, (x, w, a, b), [out.detach() for out in outputs])

    return work
