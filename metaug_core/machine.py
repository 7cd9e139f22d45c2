"""The machine a run is computed on: its memory, and what it is (versions, device, commit)."""

import ctypes
import platform
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from metaug_core.config import ENGINE_VERSION, ROOT, ConfigError

PACKAGES = ("torch", "torchvision", "numpy", "pydantic", "safetensors", "pandas", "papermill")


def environment(device: str) -> dict[str, Any]:
    """Versions of the engine and of the `PACKAGES` that are installed, machine and commit, for whoever wants to repeat the run."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit, changed = git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except OSError:  # no git on this machine
        commit, changed = None, None
    return {
        "engine": ENGINE_VERSION,
        "versions": installed(PACKAGES) | {"python": platform.python_version()},
        "platform": platform.platform(),
        "processor": torch.cuda.get_device_name() if device == "cuda" else cpu(),
        "device": device,
        "threads": torch.get_num_threads(),
        "commit": commit,
        "uncommitted_changes": changed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Their versions. One that is not installed is left out: training needs no papermill, only notebooks do."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def pick_device(wanted: str) -> str:
    """auto: cuda, else mps, else cpu. ConfigError if a named device is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[wanted]:
        raise ConfigError(f"device {wanted!r} is not available on this machine; device 'auto' takes what there is")
    return wanted


def cpu() -> str:
    """The processor's name, as far as the system tells: on Linux by a file, where Python knows only the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


MMAP_THRESHOLD, TRIM_THRESHOLD, MMAP_MAX = -3, -1, -4  # options of glibc's mallopt


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within, glibc hands freed memory to the next tensor instead of back to the system; elsewhere it does nothing.

    By default every large tensor is fresh pages, each a fault: 600,000 in a MetAug step (64 px, batch 64), a fifth of its time
    on a virtual machine. Afterwards the memory is given back, under the thresholds that glibc would have come to by itself.
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
