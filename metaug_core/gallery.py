"""The gallery: every figure with the runs it came from, one sentence and the command that makes it, and a page that shows them all.

    figures/NAME.png  NAME.svg        as `style.save` writes them
    figures/NAME.json                 provenance: runs, config hashes, seeds, n, commits, command
    figures/data/NAME.csv             the small table that the figure is drawn from, without any run
    figures/README.md                 the page

A room that can draw a figure from its table enters it: ``FIGURES["name"] = Entry(sentence, command, draw)``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from metaug_core import results, store, style
from metaug_core.config import HOME
from metaug_core.registry import Registry
from metaug_core.store import Run

FOLDER = HOME / "figures"
HASH = 10  # hexadecimal digits at the end of a run's name


@dataclass(frozen=True)
class Entry:
    """A figure of the gallery.

    sentence: what is seen, with n. command: what makes it from nothing. draw: table of figures/data -> Figure; None for a figure
    that needs the runs themselves (images, features), which only its command makes again.
    """

    sentence: str
    command: str
    draw: Callable[[pd.DataFrame], Figure] | None = None


FIGURES = Registry("figure")  # name -> Entry
FIGURES["first-run"] = Entry(
    "What the default run learns: accuracies on raw pixels, the untrained and the trained encoder, and a t-SNE map of the test "
    "features before and after training (`shapes`, one seed).",
    "make run",
)


def provenance(runs: pd.DataFrame | Sequence[Run], command: str) -> dict[str, Any]:
    """Whence a figure comes. runs: the runs, or their rows of `results.table`; only finished ones count."""
    table = runs if isinstance(runs, pd.DataFrame) else results.table(runs)
    rows = [row for row in table.to_dict("records") if row["state"] == "finished"]
    names = sorted({row["run"] for row in rows})
    return {
        "command": command,
        "runs": names,
        "config_hashes": [name[-HASH:] for name in names],
        "seeds": sorted({int(row["seed"]) for row in rows}),
        "n": len(names),
        "commits": sorted({row["commit"] for row in rows if isinstance(row["commit"], str)}),
        "uncommitted_changes": any(row["uncommitted_changes"] is True for row in rows),
        "devices": sorted({row["device"] for row in rows}),
    }


def save(figure: Figure, path: Path, runs: pd.DataFrame | Sequence[Run], command: str) -> None:
    """Write path.png, path.svg and their provenance path.json. Raises StoreError."""
    style.save(figure, path)
    store.write_json(path.with_name(f"{path.name}.json"), provenance(runs, command))


def publish(name: str, table: pd.DataFrame, runs: pd.DataFrame | Sequence[Run], folder: Path = FOLDER) -> None:
    """Put a registered figure into the gallery: the table it is drawn from (small: only what it needs), provenance, PNG and SVG.

    runs: as in `provenance`. Raises MetaugError for a name that is not registered, StoreError.
    """
    entry = FIGURES[name]
    store.write(folder / "data" / f"{name}.csv", table.to_csv(index=False).encode())
    store.write_json(folder / f"{name}.json", provenance(runs, entry.command))
    rebuild(folder, [name])


def rebuild(folder: Path = FOLDER, names: Sequence[str] | None = None) -> list[str]:
    """Draw the figures again whose tables are in folder/data (names: only these), then the page. Returns what was drawn."""
    drawn = []
    for name in FIGURES if names is None else names:
        if FIGURES[name].draw is not None and (folder / "data" / f"{name}.csv").exists():
            figure = FIGURES[name].draw(results.load(folder / "data" / name))
            style.save(figure, folder / name)
            plt.close(figure)
            drawn.append(name)
    store.write(folder / "README.md", page(folder).encode())
    return drawn


def page(folder: Path) -> str:
    """The gallery as Markdown: each registered figure that is in folder, in the order of their names."""
    parts = [
        "# Figures",
        "Written by `metaug figures`, which draws again every figure that has its table in `data/`; the other figures need the "
        "command beside them. NAME.json says from which runs, seeds and commit a figure comes.",
    ]
    for name in sorted(name for name in FIGURES if (folder / f"{name}.png").exists()):
        entry, file = FIGURES[name], folder / f"{name}.json"
        parts += [f"## {name}", f"![{name}]({name}.png)", f"{entry.sentence} `{entry.command}`"]
        if file.exists():
            origin = store.read_json(file)
            parts[-1] += (
                f" ({origin['n']} runs, seeds {', '.join(map(str, origin['seeds']))}: [{name}.json]({name}.json))"
            )
    return "\n\n".join(parts) + "\n"
