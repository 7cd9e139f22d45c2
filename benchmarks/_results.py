"""Where every benchmark puts what it found: a JSON file with the command, the machine and the commit beside the numbers."""

import json
from pathlib import Path
from typing import Any

from metaug_core.machine import environment

FOLDER = Path(__file__).parent / "results"


def write(name: str, script: str, args: dict[str, Any], device: str, **found: Any) -> Path:
    """results/NAME.json; args that are None are not told in the command."""
    options = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in args.items() if value is not None)
    FOLDER.mkdir(exist_ok=True)
    file = FOLDER / f"{name}.json"
    whole = {"command": f"python benchmarks/{script} {options}", "machine": environment(device), **found}
    file.write_text(json.dumps(whole, indent=1, default=str) + "\n")
    return file
