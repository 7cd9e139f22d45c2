"""The machine a run is computed on: its memory, and what it is (versions, device, commit)."""

import ctypes
import json
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
PRODUCTS = ("figures/", "benchmarks/results/")  # what publishing and measuring write; they make no numbers


def environment(device: str) -> dict[str, Any]:
    """Versions of the engine and of the `PACKAGES` that are installed, machine and commit, for whoever wants to repeat the run."""
    named, changed = tree()
    return {
        "engine": ENGINE_VERSION,
        "versions": installed(PACKAGES) | {"python": platform.python_version()},
        "platform": platform.platform(),
        "processor": torch.cuda.get_device_name() if device == "cuda" else cpu(),
        "device": device,
        "threads": torch.get_num_threads(),
        "commit": named,
        "uncommitted_changes": changed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def git(*words: str) -> str | None:
    """What git says of the workbook's own files; None without git or outside a repository."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, encoding="utf-8", check=False)
    except OSError:  # no git on this machine
        return None
    return done.stdout if done.returncode == 0 else None


def commit() -> str | None:
    """The commit that is checked out, or None."""
    found = git("rev-parse", "HEAD")
    return found and found.strip()


def differing() -> list[str] | None:
    """The tracked files that differ from the commit, relative to the workbook; None without one. A notebook whose outputs alone
    differ is not among them."""
    found = git("diff", "--name-only", "--no-renames", "--relative", "-z", "HEAD", "--", ".")
    if found is None:
        return None
    return [name for name in found.split("\0") if name and not (name.endswith(".ipynb") and only_outputs_differ(name))]


def only_outputs_differ(name: str) -> bool:
    """Whether a notebook has the cells of its commit, but for what executing it writes into them."""
    try:
        now, then = (ROOT / name).read_text(encoding="utf-8"), git("show", f"HEAD:./{name}")
        return then is not None and cells(now) == cells(then)
    except (OSError, ValueError, KeyError):  # deleted, or no notebook
        return False


def cells(notebook: str) -> list[tuple[str, str, list[str]]]:
    """Kind, source and tags of each cell. Raises ValueError or KeyError if the text is no notebook."""
    found = json.loads(notebook)["cells"]
    return [(cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in found]


def tree() -> tuple[str | None, bool | None]:
    """The commit, and whether tracked files other than the `PRODUCTS` differ from it; None each without git."""
    changed = differing()
    return commit(), None if changed is None else any(not name.startswith(PRODUCTS) for name in changed)


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
def keep_freed_memory() -> Iterator[None]:
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
