"""What a run is computed with: versions, machine, commit."""

import json
import platform
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from metaug_core.config import ENGINE_VERSION, ROOT
from metaug_core.hardware import name_processor

PACKAGES = ("torch", "torchvision", "numpy", "pydantic", "safetensors", "pandas", "papermill")
PRODUCTS = ("figures/", "benchmarks/results/")  # what publishing and measuring write; no number depends on it


def environment(device: str) -> dict[str, Any]:
    """Versions of the engine and of the installed `PACKAGES`, machine and commit, for whoever wants to repeat the run."""
    commit_name, changed = tree()
    return {
        "engine": ENGINE_VERSION,
        "versions": installed(PACKAGES) | {"python": platform.python_version()},
        "platform": platform.platform(),
        "processor": torch.cuda.get_device_name() if device == "cuda" else name_processor(),
        "device": device,
        "threads": torch.get_num_threads(),
        "commit": commit_name,
        "uncommitted_changes": changed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The versions of the packages; those that are not installed are left out (only notebooks need papermill)."""
    versions = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def tree() -> tuple[str | None, bool | None]:
    """The commit, and whether tracked files other than the `PRODUCTS` differ from it; None each without git."""
    changed = differing()
    return commit(), None if changed is None else any(not name.startswith(PRODUCTS) for name in changed)


def commit() -> str | None:
    """The commit that is checked out, or None."""
    output = git("rev-parse", "HEAD")
    return output and output.strip()


def differing() -> list[str] | None:
    """The tracked files that differ from the commit, relative to the workbook, without notebooks of which only the outputs
    differ; None without git."""
    output = git("diff", "--name-only", "--no-renames", "--relative", "-z", "HEAD", "--", ".")
    if output is None:
        return None
    return [name for name in output.split("\0") if name and not (name.endswith(".ipynb") and only_outputs_differ(name))]


def only_outputs_differ(name: str) -> bool:
    """Whether a notebook has the cells of its commit, but for what executing it writes into them."""
    try:
        committed = git("show", f"HEAD:./{name}")
        return committed is not None and cells((ROOT / name).read_text(encoding="utf-8")) == cells(committed)
    except (OSError, ValueError, KeyError):  # deleted, or not a notebook
        return False


def cells(notebook: str) -> list[tuple[str, str, list[str]]]:
    """Kind, source and tags of each cell. Raises ValueError or KeyError if the text is no notebook."""
    return [
        (cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", []))
        for cell in json.loads(notebook)["cells"]
    ]


def git(*words: str) -> str | None:
    """The output of a git command in the workbook's folder; None without git or outside a repository."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, encoding="utf-8", check=False)
    except OSError:  # git is not installed
        return None
    return done.stdout if done.returncode == 0 else None
