"""Where every benchmark puts what it found: a JSON file with the command, the machine and the commit beside the numbers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaug_core.runs.environment import environment

FOLDER = Path(__file__).parent / "results"


def write(name: str, script: str, args: dict[str, Any], device: str, **found: Any) -> Path:
    """results/NAME.json; args that are None are not told in the command."""
    options = "".join(
        f" --{key.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for key, value in args.items()
        if value is not None
    )
    FOLDER.mkdir(exist_ok=True)
    file = FOLDER / f"{name}.json"
    whole = {"command": f"python benchmarks/{script}{options}", "machine": environment(device), **found}
    file.write_text(json.dumps(whole, indent=1, default=str) + "\n")
    return file


def table(rows: Sequence[Mapping[str, Any]], **columns: str) -> str:
    """Markdown: title=format, as str.format takes it of a row's values ("{ms:.2f}"). What a row has not, or is None, is a dash;
    a column that no row has is left out."""
    cells = {title: [_cell(column, row) for row in rows] for title, column in columns.items()}
    cells = {title: column for title, column in cells.items() if set(column) != {"-"}}
    lines = [cells, ["---"] * len(cells), *zip(*cells.values(), strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(column: str, row: Mapping[str, Any]) -> str:
    try:
        return column.format(**{name: value for name, value in row.items() if value is not None})
    except KeyError:
        return "-"
