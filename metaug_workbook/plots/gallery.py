"""The gallery: every figure with the numbers it is drawn from, one sentence and the command that makes it, and a page that shows
them all.

    figures/NAME.png  NAME.svg        as `style.save_figure` writes them
    figures/NAME.json                 provenance: command, commit of the drawing, and of the numbers: runs, seeds, n, commits
    figures/data/NAME.csv             the small table that the figure is drawn from, without any run
    figures/README.md                 the page

Which figures there are stands in `paper_figures`; a figure of your own: ``FIGURES["name"] = Entry(sentence, command, draw)``. Into
figures/ comes only what a commit can draw again (`refuse_changes`); any other folder takes a figure as it is.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt

from metaug_core.config import HOME, as_file_name
from metaug_core.errors import MetaugError
from metaug_core.runs import environment, files
from metaug_core.runs.store import Run
from metaug_workbook.plots import feature_augmentation as feature_augmentation  # these register their figures
from metaug_workbook.plots import invariances as invariances
from metaug_workbook.plots.paper_figures import FIGURES
from metaug_workbook.plots.style import save_figure, use_style
from metaug_workbook.results import evidence_tables, tables
from metaug_workbook.results.evidence import EXPERIMENTS

FOLDER = HOME / "figures"
RUN_NAME = re.compile(r".+-s\d+-([0-9a-f]{10})")  # of `Config.name`, with its hash


class PublishError(MetaugError):
    """A figure for figures/ whose code or numbers no commit holds."""


# --- where a figure comes from
def trace_numbers(runs: pd.DataFrame | Sequence[Run]) -> dict[str, Any]:
    """Where the numbers of a figure come from. runs: the runs, or their rows of `read_table`; only finished ones count."""
    table = runs if isinstance(runs, pd.DataFrame) else tables.read_table(runs)
    rows = [row for row in table.to_dict("records") if row["state"] == "finished"]
    return {
        **name_runs({row["run"] for row in rows}),
        "seeds": sorted({int(row["seed"]) for row in rows}),
        "commits": sorted({row["commit"] for row in rows if isinstance(row["commit"], str)}),
        "uncommitted_changes": any(row["uncommitted_changes"] is True for row in rows),
        "devices": sorted({row["device"] for row in rows}),
    }


def trace_evidence(table: pd.DataFrame) -> dict[str, Any]:
    """`trace_numbers` of an experiment's table, whose rows hold it all."""
    return trace_numbers(
        table.assign(state=["failed" if missing else "finished" for missing in table["accuracy"].isna()])
    )


def name_runs(names: set[str]) -> dict[str, Any]:
    """The runs, how many they are (n), and the config hashes in their names; what was measured without a run has none."""
    runs = sorted(names)
    return {
        "runs": runs,
        "config_hashes": [match[1] for match in map(RUN_NAME.fullmatch, runs) if match],
        "n": len(runs),
    }


def join_numbers(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """`trace_numbers` of a table whose rows come from both."""
    both = {key: sorted({*one[key], *other[key]}) for key in ("seeds", "commits", "devices")}
    changed = one["uncommitted_changes"] or other["uncommitted_changes"]
    return {**name_runs({*one["runs"], *other["runs"]}), **both, "uncommitted_changes": changed}


def describe_origin(command: str, numbers: dict[str, Any] | None) -> dict[str, Any]:
    """The provenance of a figure that is drawn now. numbers: `trace_numbers`, or None for a picture without numbers."""
    commit, changed = environment.tree()
    return {"command": command, "numbers": numbers, "commit": commit, "uncommitted_changes": changed}


def refuse_changes(figures: Sequence[str] = ()) -> None:
    """Raises PublishError where figures/ may not be written: without git, or while tracked files differ from the commit.

    What publishing and executing write (`environment.PRODUCTS`, outputs of notebooks) may differ, but for the tables of these
    figures.
    """
    commit, changed = environment.commit(), environment.differing()
    because = f"publish: {FOLDER.name}/ names the commit of each figure, and "
    if commit is None or changed is None:
        raise PublishError(f"{because}{environment.ROOT} is no git checkout")
    drawn_from = {f"{FOLDER.name}/data/{name}.csv" for name in figures}
    files = [file for file in changed if file in drawn_from or not file.startswith(environment.PRODUCTS)]
    if files:
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        raise PublishError(
            f"{because}tracked files differ from it ({files[0]}{more}): commit them first, or draw elsewhere (without `publish`, "
            "or by `metaug figures --out DIR`)"
        )


# --- making figures
def publish(
    name: str,
    table: pd.DataFrame,
    runs: pd.DataFrame | Sequence[Run],
    folder: Path | None = None,
    earlier: dict[str, Any] | None = None,
) -> None:
    """Put a registered figure into the gallery: the table it is drawn from (small: only what it needs), provenance, PNG and SVG.

    runs: as in `trace_numbers`. folder: None for figures/. earlier: `trace_numbers` of rows that were published before. Raises
    MetaugError for a name that is not registered, StoreError, and for figures/ PublishError if the tree or a run has changes that
    no commit holds.
    """
    if as_file_name(name) != name:
        raise MetaugError(f"figure {name!r}: must be the name of a file, not a path")
    folder, numbers = folder or FOLDER, trace_numbers(runs)
    command = FIGURES[name].command
    if folder.resolve() == FOLDER.resolve():
        refuse_changes()
        if numbers["uncommitted_changes"]:
            raise PublishError(
                f"publish: some of the {numbers['n']} runs of {name} were trained from uncommitted changes: train them again from "
                "the commit, in another runs_dir (METAUG_RUNS), where they are not found"
            )
    files.write(folder / "data" / f"{name}.csv", table.to_csv(index=False).encode())
    numbers = numbers if earlier is None else join_numbers(earlier, numbers)
    draw(name, tables.load(folder / "data" / name), describe_origin(command, numbers), folder)
    files.write(folder / "README.md", write_page(folder, folder / "data").encode())


def rebuild(folder: Path | None = None, names: Sequence[str] | None = None, out: Path | None = None) -> list[str]:
    """Draw the figures again whose tables are in folder/data (names: only these), then the page. Returns the names of those drawn.

    The numbers keep their provenance; that of the drawing is new. folder: None for figures/. out: where to draw, if not in folder.
    Raises as `publish`.
    """
    folder = folder or FOLDER
    out = out or folder
    there = [name for name in FIGURES if not FIGURES[name].table or (folder / "data" / f"{name}.csv").exists()]
    drawable = list(names or there)
    if out.resolve() == FOLDER.resolve():
        refuse_changes(drawable)
    for name in drawable:
        table = tables.load(folder / "data" / name) if FIGURES[name].table else pd.DataFrame()
        draw(name, table, find_origin(name, table, folder), out)
    files.write(out / "README.md", write_page(out, folder / "data").encode())
    return drawable


def find_origin(name: str, table: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """The provenance of a figure that is drawn now from its stored table: the rows of an experiment say where they come from, for
    any other table the figure's record does."""
    command, experiment = FIGURES[name].command, name.removesuffix("-epochs")
    if not FIGURES[name].table:
        return describe_origin(command, None)
    rows = evidence_tables.read(experiment, folder / "data") if experiment in EXPERIMENTS else pd.DataFrame()
    if len(rows):
        return describe_origin(command, trace_evidence(rows))
    before = files.read_json(folder / f"{name}.json")
    return describe_origin(before["command"], before["numbers"])


@use_style()
def draw(name: str, table: pd.DataFrame, origin: dict[str, Any], folder: Path) -> None:
    """Write a registered figure of its table, as PNG and SVG, with its provenance. Raises StoreError."""
    figure = FIGURES[name].draw(table)
    save_figure(figure, folder / name)
    plt.close(figure)
    files.write_json(folder / f"{name}.json", origin)


# --- the page
def write_page(folder: Path, data: Path) -> str:
    """The gallery as Markdown: each registered figure that is in folder, by name, with what its table counts."""
    parts = [
        "# Figures",
        "Written by `metaug figures`, which draws every figure again from its table in `data/`; the command beside a figure makes "
        "its numbers. NAME.json says from which runs, seeds and commit the numbers come, and which commit drew them.",
    ]
    for name in sorted(name for name in FIGURES if (folder / f"{name}.json").exists()):
        entry = FIGURES[name]
        counts = [] if entry.summarize is None else [entry.summarize(tables.load(data / name))]
        text = " ".join([entry.sentence, *counts, write_caption(name, folder, f"[{name}.json]({name}.json)")])
        parts += [f"## {name}", f"![{name}]({name}.png)", text]
    return "\n\n".join(parts) + "\n"


def write_caption(name: str, folder: Path | None = None, link: str = "") -> str:
    """What made a figure's numbers and of how many runs they are, as Markdown. link: to its record."""
    origin = files.read_json((folder or FOLDER) / f"{name}.json")
    runs = describe_runs(origin["numbers"])
    return f"`{origin['command']}` ({': '.join(part for part in (runs, link) if part)})"


def is_shown(name: str) -> bool:
    """Whether a figure of figures/ is one to begin with: it is there, and that of an experiment is drawn from the evidence."""
    if not (FOLDER / f"{name}.png").exists():
        return False
    return name not in EXPERIMENTS or len(evidence_tables.read(name, FOLDER / "data")) > 0


def describe_runs(numbers: dict[str, Any] | None) -> str:
    """How many runs and seeds stand behind a figure, of how many commits, and whether these hold what made them."""
    if numbers is None:
        return ""
    commits = f", of {len(numbers['commits'])} commits" if len(numbers["commits"]) > 1 else ""
    changed = ", numbers of a tree with uncommitted changes" if numbers["uncommitted_changes"] else ""
    return f"{numbers['n']} runs, {list_seeds(numbers['seeds'])}{commits}{changed}"


def list_seeds(seeds: Sequence[int]) -> str:
    """`seeds 0 to 4`, or each where one is left out. seeds: ascending."""
    if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"
