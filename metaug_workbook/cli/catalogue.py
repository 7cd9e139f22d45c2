"""What the methods say about themselves, as text and as the tables of docs/methods.md."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from metaug_core.config import Config
from metaug_core.registry import METHODS

BEGIN, END = "<!-- methods: `metaug methods --markdown` -->", "<!-- methods end -->"  # of the tables in docs/methods.md
ELSEWHERE = ("views", "independent", "negatives")  # defaults that a column of their own tells, or that every run shows


class Entry(NamedTuple):
    """One registered method."""

    name: str  # what `method` is set to
    title: str
    paper: str
    views: str
    objective: str
    state: str  # what is remembered between steps, besides theta and omega
    defaults: str  # settings it brings
    differs: str  # from its authors' code


def entries() -> list[Entry]:
    """Every registered method, in the order of registration. MetaugError if one refuses its own defaults."""
    return [entry(name) for name in METHODS]


def entry(name: str) -> Entry:
    """What one method, or composition by name, says about itself."""
    about, config = METHODS[name].description, Config(method=name)
    views = ", ".join(config.views) + (", each of its own crop" if config.independent else "")
    defaults = ", ".join(f"{key} {shown(value)}" for key, value in about.defaults.items() if key not in ELSEWHERE)
    return Entry(
        name, about.title, about.paper, views, about.objective, about.remembers, defaults or "-", about.differs or "-"
    )


def shown(value: object) -> str:
    """A setting as one would type it."""
    return "-".join(f"{part:g}" for part in value) if isinstance(value, tuple) else str(value)


def bars(line: str) -> str:
    """A line whose bars do not end a table's cell."""
    return line.replace("|", "\\|")


def text() -> str:
    """The methods one after the other, a line for each thing said."""
    blocks = [
        f"{e.name}: {e.title} ({e.paper})\n"
        + "\n".join(
            f"    {key:<10}{e._asdict()[key]}" for key in ("views", "objective", "state", "defaults", "differs")
        )
        for e in entries()
    ]
    return "\n".join(blocks)


def markdown() -> str:
    """Two tables of the methods, between the two marks that stand around them in docs/methods.md: what each is, and
    what differs from its authors' code, where methods that say the same share a row."""
    what = [
        (f"`{e.name}`", e.title, e.paper, e.views, f"`{bars(e.objective)}`", e.state, e.defaults) for e in entries()
    ]
    names: dict[str, list[str]] = {}
    for e in entries():
        names.setdefault(e.differs, []).append(f"`{e.name}`")
    differs = [(", ".join(alike), bars(said)) for said, alike in names.items()]
    tables = (
        table(("`method`", "what", "paper", "views", "objective", "state", "defaults"), what),
        table(("`method`", "differs from its authors' code"), differs),
    )
    return BEGIN + "\n" + "\n".join(tables) + END + "\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = (heads, ["---"] * len(heads), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
