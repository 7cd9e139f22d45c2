"""Where a run was computed: versions, machine and commit."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from metaug_core.config import ROOT

PACKAGES = ("torch", "torchvision", "numpy", "pydantic", "safetensors", "pandas", "papermill")


def environment(device: str) -> dict[str, Any]:
    """Versions, machine and commit, for whoever wants to repeat the run."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit, changed = git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except OSError:  # no git on this machine
        commit, changed = None, None
    return {
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "platform": platform.platform(),
        "processor": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "device": device,
        "threads": torch.get_num_threads(),
        "commit": commit,
        "uncommitted_changes": changed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
