"""Where and how numbers are computed: the device, cores, the format of products, freed memory, CUDA streams side by side."""

import ctypes
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from metaug_core.config import ConfigError
from metaug_core.errors import MetaugError

T = TypeVar("T")

# torch's newer switches, one for each library and operation. The older ones (`allow_tf32`) are neither read nor written: torch
# refuses to read them wherever the newer ones say what they cannot express.
backends: Any = torch.backends
CUDA = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
CPU = (backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul)

# Half the distance from 1 to the next number: 24, 11 and 8 bits of significand, including the leading one.
UNIT_ROUNDOFF = {"float32": 2.0**-24, "tf32": 2.0**-11, "bf16": 2.0**-8}

MMAP_THRESHOLD, TRIM_THRESHOLD, MMAP_MAX = -3, -1, -4  # options of glibc's mallopt

_forked: list["torch.cuda.Stream"] = []  # the stream of the current fork, if any


def pick_device(wanted: str) -> str:
    """The device for a setting: auto is cuda, else mps, else cpu. ConfigError if a named device is not available."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name, is_there in available.items() if is_there)
    if not available[wanted]:
        raise ConfigError(f"device {wanted!r} is not available on this machine; device 'auto' takes what there is")
    return wanted


# --- cores and memory of a container


def count_cores(root: Path = Path("/")) -> int:
    """CPU cores that this process may use, at least 1: as many as it may run on, or its container's quota, rounded up.

    root: of the file system, in which proc and sys lie.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    times, periods = (read_limits(root, "cpu", f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    quotas = [*map(str.split, read_limits(root, "cpu", "cpu.max")), *zip(times, periods, strict=False)]
    limits = [int(time) / int(period) for time, period in quotas if time not in ("max", "-1")]
    return max(1, min([cores, *map(math.ceil, limits)]))


def limit_memory(root: Path = Path("/")) -> float:
    """Bytes that this process's container may take; inf without a limit. root: as of `count_cores`."""
    limits = [*read_limits(root, "memory", "memory.max"), *read_limits(root, "memory", "memory.limit_in_bytes")]
    return min((int(limit) for limit in limits if limit != "max"), default=math.inf)


def read_limits(root: Path, controller: str, name: str) -> list[str]:
    """What the files of this name say of this process's control groups and of those above them; [] where there are none.

    One hierarchy for all controllers (v2), or a folder of its own for each (v1).
    """
    mount = root / "sys/fs/cgroup"
    try:
        groups = [line.split(":", 2)[1:] for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        groups = []
    limits = {}
    for controllers, path in [["", "/"], [controller, "/"], *groups]:
        if controllers and controller not in controllers.split(","):
            continue
        top = mount / (controllers if (mount / controllers).is_dir() else controller)
        group = top / path.lstrip("/")  # inside a container only its root may be there
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                with suppress(OSError):
                    limits[folder] = (folder / name).read_text().strip()
    return list(limits.values())


@contextmanager
def explain_memory() -> Iterator[None]:
    """Context manager: a tensor for which there is no memory is a MetaugError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's allocators raise RuntimeErrors of several kinds
        text = " ".join(str(error).split())
        if not isinstance(error, MemoryError) and not any(word in text for word in ("allocate", "overflowed")):
            raise
        size = re.search(r"tried to allocate [0-9.]+ \w+", text, re.IGNORECASE)
        what = size[0].lower() if size else text[:100]
        raise MetaugError(
            f"there is not enough memory: {what}; smaller networks, banks or minibatches need less"
        ) from None


# --- number formats


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Context manager: products of float32 tensors are computed as the setting `precision` says, whatever the user's own
    switches are; these are restored afterwards.

    tf32 differs from float32 on CUDA only. bf16 is an autocast in the encoders; everything else is float32 then.
    """
    formats = {switch: "tf32" if precision == "tf32" else "ieee" for switch in CUDA} | dict.fromkeys(CPU, "ieee")
    before = {switch: switch.fp32_precision for switch in formats}
    try:
        for switch, value in formats.items():
            switch.fp32_precision = value
        yield
    finally:
        for switch, value in before.items():
            switch.fp32_precision = value


def computed_in(precision: str, device: str) -> str:
    """The format of the encoders' products in a run with this setting on this kind of device."""
    return "float32" if precision == "tf32" and device != "cuda" else precision


def unit_roundoff(precision: str, device: str) -> float:
    """The relative error of rounding an operand of the encoders' products. A part of their gradient that is a smaller share
    than this is mostly lost when the sum goes into the next product."""
    return UNIT_ROUNDOFF[computed_in(precision, device)]


# --- memory


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Context manager: glibc gives freed memory to the next tensor instead of back to the system; elsewhere it does nothing.

    By default every large tensor is new pages, each a page fault, which costs up to a fifth of a step on a virtual machine.
    Afterwards the memory is given back, and the thresholds are those that glibc would have reached by itself.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(MMAP_MAX, 0)
    except (OSError, AttributeError):
        yield
        return
    libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        for option, value in ((MMAP_MAX, 65536), (MMAP_THRESHOLD, 2**25), (TRIM_THRESHOLD, 2**26)):
            libc.mallopt(option, value)
        libc.malloc_trim(0)


# --- streams


def side_by_side(branches: Sequence[Callable[[], T]], forked: bool) -> list[T]:
    """The results of all branches. forked: each runs on a CUDA stream of its own, forked from the current stream and joined to
    it again, for use while a CUDA graph is captured; else one after another.

    The backward is forked too: autograd runs it on the stream of its forward, and orders streams where a gradient passes
    between them. A branch of a branch is not forked: streams come from a pool of 32, so branches of two trials could get the
    same stream, and with it each other's freed memory too early.
    """
    if not forked or _forked or len(branches) == 1:
        return [branch() for branch in branches]
    here = torch.cuda.current_stream()
    streams = [torch.cuda.Stream() for _ in branches]
    results = []
    _forked.append(here)
    try:
        for stream, branch in zip(streams, branches, strict=True):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                results.append(branch())
    finally:
        _forked.remove(here)
    for stream, result in zip(streams, results, strict=True):
        here.wait_stream(stream)
        if isinstance(result, Tensor):
            result.record_stream(here)  # the branch may not reuse its memory before `here` has read it
    return results
