"""The gallery: every figure with the numbers it is drawn from, one sentence and the command that makes it, and a page that shows
them all.

    figures/NAME.png  NAME.svg        as `style.save` writes them
    figures/NAME.json                 provenance: command, commit of the drawing, and of the numbers: runs, seeds, n, commits
    figures/data/NAME.csv             the small table that the figure is drawn from, without any run
    figures/README.md                 the page

A room that can draw a figure from its table enters it: ``FIGURES["name"] = Entry(sentence, command, draw)``. Into figures/ comes
only what a commit can draw again (`refuse_changes`); any other folder takes a figure as it is.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from metaug_core.config import HOME
from metaug_core.errors import MetaugError
from metaug_core.registry import Registry
from metaug_core.runs import store
from metaug_core.runs.store import Run
from metaug_core.runtime import environment
from metaug_workbook.plots import style
from metaug_workbook.results import tables

FOLDER = HOME / "figures"
RUN_NAME = re.compile(r".+-s\d+-([0-9a-f]{10})")  # of `Config.name`, with its hash


class PublishError(MetaugError):
    """A figure for figures/ whose code or numbers no commit holds."""


@dataclass(frozen=True)
class Entry:
    """A figure of the gallery.

    sentence: what is seen, with n. command: what makes its numbers. draw: table of figures/data -> Figure. finding: from the same
    table a sentence with what it counts, for the page. table: False for a picture without numbers, which is drawn from no rows.
    """

    sentence: str
    command: str
    draw: Callable[[pd.DataFrame], Figure]
    finding: Callable[[pd.DataFrame], str] | None = None
    table: bool = True


FIGURES = Registry("figure")  # name -> Entry


# --- whence a figure comes
def numbers(runs: pd.DataFrame | Sequence[Run]) -> dict[str, Any]:
    """Whence the numbers of a figure come. runs: the runs, or their rows of `results.table`; only finished ones count."""
    table = runs if isinstance(runs, pd.DataFrame) else tables.table(runs)
    rows = [row for row in table.to_dict("records") if row["state"] == "finished"]
    names = sorted({row["run"] for row in rows})
    return {
        "runs": names,
        "config_hashes": hashes(names),
        "seeds": sorted({int(row["seed"]) for row in rows}),
        "n": len(names),
        "commits": sorted({row["commit"] for row in rows if isinstance(row["commit"], str)}),
        "uncommitted_changes": any(row["uncommitted_changes"] is True for row in rows),
        "devices": sorted({row["device"] for row in rows}),
    }


def hashes(names: Sequence[str]) -> list[str]:
    """The config hashes in the names of runs; what was measured without a run has none."""
    return [found[1] for name in names if (found := RUN_NAME.fullmatch(name))]


def joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """`numbers` of a table whose rows come from both."""
    both = {key: sorted({*one[key], *other[key]}) for key in ("runs", "seeds", "commits", "devices")}
    dirty = one["uncommitted_changes"] or other["uncommitted_changes"]
    return both | {"n": len(both["runs"]), "config_hashes": hashes(both["runs"]), "uncommitted_changes": dirty}


def provenance(command: str, origin: dict[str, Any] | None) -> dict[str, Any]:
    """What stands beside a figure that is drawn now. origin: `numbers`, or None for a picture without numbers."""
    commit, changed = environment.tree()
    return {"command": command, "numbers": origin, "commit": commit, "uncommitted_changes": changed}


def refuse_changes(tables: Sequence[str] = ()) -> None:
    """Raises PublishError where figures/ may not be written: without git, or while tracked files differ from the commit.

    What publishing and executing write (`machine.PRODUCTS`, outputs of notebooks) may differ, but for the tables of these figures.
    """
    commit, changed = environment.commit(), environment.differing()
    if commit is None or changed is None:
        raise PublishError(
            f"publish: {FOLDER.name}/ names the commit of each figure, and {environment.ROOT} is no git checkout"
        )
    asked = {f"{FOLDER.name}/data/{name}.csv" for name in tables}
    if found := [file for file in changed if file in asked or not file.startswith(environment.PRODUCTS)]:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise PublishError(
            f"publish: {FOLDER.name}/ names the commit of each figure, and tracked files differ from it ({found[0]}{more}): commit "
            "them first, or draw elsewhere (without `publish`, or by `metaug figures --out DIR`)"
        )


# --- making figures
def save(figure: Figure, path: Path, runs: pd.DataFrame | Sequence[Run], command: str) -> None:
    """Write path.png, path.svg and their provenance path.json. Raises StoreError."""
    style.save(figure, path)
    store.write_json(path.with_name(f"{path.name}.json"), provenance(command, numbers(runs)))


def publish(
    name: str,
    table: pd.DataFrame,
    runs: pd.DataFrame | Sequence[Run],
    folder: Path | None = None,
    kept: dict[str, Any] | None = None,
) -> None:
    """Put a registered figure into the gallery: the table it is drawn from (small: only what it needs), provenance, PNG and SVG.

    runs: as in `numbers`. folder: None for figures/. kept: `numbers` of those rows that were published before. Raises MetaugError
    for a name that is not registered, StoreError, and for figures/ PublishError if the tree or a run has changes that no commit
    holds.
    """
    entry, folder, origin = FIGURES[name], folder or FOLDER, numbers(runs)
    if folder.resolve() == FOLDER.resolve():
        refuse_changes()
        if origin["uncommitted_changes"]:
            raise PublishError(
                f"publish: some of the {origin['n']} runs of {name} were trained from uncommitted changes: train them again from "
                "the commit, in another runs_dir (METAUG_RUNS), where they are not found"
            )
    store.write(folder / "data" / f"{name}.csv", table.to_csv(index=False).encode())
    origin = origin if kept is None else joined(kept, origin)
    draw(name, tables.load(folder / "data" / name), provenance(entry.command, origin), folder)
    store.write(folder / "README.md", page(folder, folder / "data").encode())


def rebuild(folder: Path | None = None, names: Sequence[str] | None = None, out: Path | None = None) -> list[str]:
    """Draw the figures again whose tables are in folder/data (names: only these), then the page. Returns what was drawn.

    The numbers keep their provenance; that of the drawing is new. folder: None for figures/. out: where to draw, if not in folder.
    Raises as `publish`.
    """
    folder = folder or FOLDER
    out = out or folder
    wanted = [
        name for name in names or FIGURES if not FIGURES[name].table or (folder / "data" / f"{name}.csv").exists()
    ]
    if out.resolve() == FOLDER.resolve():
        refuse_changes(wanted)
    for name in wanted:
        entry, file = FIGURES[name], folder / f"{name}.json"
        table = tables.load(folder / "data" / name) if entry.table else pd.DataFrame()
        origin = store.read_json(file)["numbers"] if entry.table else None
        draw(name, table, provenance(entry.command, origin), out)
    store.write(out / "README.md", page(out, folder / "data").encode())
    return wanted


def draw(name: str, table: pd.DataFrame, origin: dict[str, Any], folder: Path) -> None:
    """Write a registered figure of its table, as PNG and SVG, with its provenance. Raises StoreError."""
    figure = FIGURES[name].draw(table)
    style.save(figure, folder / name)
    plt.close(figure)
    store.write_json(folder / f"{name}.json", origin)


# --- the page
def page(folder: Path, data: Path) -> str:
    """The gallery as Markdown: each registered figure that is in folder, by name, with what its table counts."""
    parts = [
        "# Figures",
        "Written by `metaug figures`, which draws every figure again from its table in `data/`; the command beside a figure makes "
        "its numbers. NAME.json says from which runs, seeds and commit the numbers come, and which commit drew them.",
    ]
    for name in sorted(name for name in FIGURES if (folder / f"{name}.json").exists()):
        entry, said = FIGURES[name], [FIGURES[name].sentence]
        if entry.finding is not None:
            said.append(entry.finding(tables.load(data / name)))
        said += [f"`{entry.command}`", f"({told(store.read_json(folder / f'{name}.json'))}[{name}.json]({name}.json))"]
        parts += [f"## {name}", f"![{name}]({name}.png)", " ".join(said)]
    return "\n\n".join(parts) + "\n"


def told(origin: dict[str, Any]) -> str:
    """How many runs and seeds stand behind a figure, of how many commits, and whether these hold what made them."""
    found = origin["numbers"]
    if found is None:
        return ""
    commits = f", of {len(found['commits'])} commits" if len(found["commits"]) > 1 else ""
    dirty = ", numbers of a tree with uncommitted changes" if found["uncommitted_changes"] else ""
    return f"{found['n']} runs, seeds {', '.join(map(str, found['seeds']))}{commits}{dirty}: "
