"""Where and how numbers are computed: the device, cores, torch's switches, freed memory, and CUDA streams side by side."""

import ctypes
import math
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad as fwAD
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from metaug_core.config import ConfigError
from metaug_core.errors import MetaugError, one_line
from metaug_core.hardware import list_devices

T = TypeVar("T")

# torch's newer switches, one for each library and operation. The older ones (`allow_tf32`) are neither read nor written: torch
# refuses to read them wherever the newer ones say what they cannot express.
backends: Any = torch.backends
of_c: Any = torch._C  # what only torch's own C++ side tells
CUDA = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
CPU = (backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul)

DTYPE = torch.float32  # of new tensors in training and evaluation, whatever torch's default is outside

# Half the distance from 1 to the next number: 24, 11 and 8 bits of significand, including the leading one.
UNIT_ROUNDOFF = {"float32": 2.0**-24, "tf32": 2.0**-11, "bf16": 2.0**-8}

MMAP_THRESHOLD, TRIM_THRESHOLD, MMAP_MAX = -3, -1, -4  # options of glibc's mallopt

_one_thread = threading.RLock()
_forked: list["torch.cuda.Stream"] = []  # the stream of the current fork, if any


def pick_device(wanted: str) -> str:
    """The device for a setting: auto is cuda, else mps, else cpu. ConfigError if a named device is not available."""
    available = list_devices()
    if wanted == "auto":
        return available[0]
    if wanted not in available:
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
        text = one_line(error)
        if not isinstance(error, MemoryError) and not any(word in text for word in ("allocate", "overflowed")):
            raise
        size = re.search(r"tried to allocate [0-9.]+ \w+", text, re.IGNORECASE)
        what = size[0].lower() if size else text[:100]
        raise MetaugError(
            f"there is not enough memory: {what}; smaller networks, banks or minibatches need less"
        ) from None


# --- torch's switches


@contextmanager
def one_thread() -> Iterator[None]:
    """Context manager: only one thread at a time is within; others wait. torch has one set of random numbers and switches, and one
    level of forward mode, for the whole process."""
    while not _one_thread.acquire(timeout=1.0):  # so that Ctrl-C ends the wait on every system
        pass
    try:
        yield
    finally:
        _one_thread.release()


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Context manager: products of float32 tensors are computed as the setting `precision` says; new tensors are float32 and on the
    CPU, gradients are recorded, anomalies are not looked for. The user's own switches are restored afterwards. In `one_thread`.

    tf32 differs from float32 on CUDA only. bf16 is an autocast in encoders and heads. The products of the MAG and of similarities
    are TF32 then on CUDA; on a CPU the MAG's are bfloat16 (`networks.mag`). All sums, statistics and optimisers are float32.
    """
    formats = {switch: "ieee" if precision == "float32" else "tf32" for switch in CUDA} | dict.fromkeys(CPU, "ieee")
    with ExitStack() as stack:
        stack.enter_context(one_thread())
        for switch, value in formats.items():
            stack.callback(setattr, switch, "fp32_precision", switch.fp32_precision)
            switch.fp32_precision = value
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(DTYPE)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        stack.enter_context(torch.inference_mode(False))  # of torch.no_grad() as well
        yield


def refuse_surroundings() -> None:
    """ConfigError if the code around the call changes what torch computes, so that a run would not be that of its config."""
    around = ["torch.compile"] if torch.compiler.is_compiling() else []
    modes = [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]
    around += [f"the torch mode {type(mode).__name__}" for mode in modes if not isinstance(mode, DeviceContext)]
    torch.autocast_increment_nesting()
    nested = torch.autocast_decrement_nesting()  # also one that is not enabled: in it bf16 keeps a first step's weights
    if nested or any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda", "mps")):
        around.append("torch.autocast (the setting precision 'bf16' does the same)")
    if of_c._functorch.peek_interpreter_stack() is not None:
        around.append("vmap, grad or another transform of torch.func")
    if fwAD._current_level >= 0:
        around.append("torch.autograd.forward_ad")
    if not of_c._autograd._saved_tensors_hooks_is_enabled():
        around.append("disable_saved_tensors_hooks")
    if around:
        raise ConfigError(f"fit and evaluate cannot run within {around[0]}: call them outside of it")


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
        for x in result if isinstance(result, list) else [result]:
            if isinstance(x, Tensor):
                x.record_stream(here)  # the branch may not reuse its memory before `here` has read it
    return results
