"""What the methods say about themselves, as text and as the table of docs/methods.md."""

from typing import NamedTuple

from metaug_core.config import Config
from metaug_core.registry import METHODS

BEGIN, END = "<!-- methods: `metaug methods --markdown` -->", "<!-- methods end -->"  # of the table in docs/methods.md
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


def entries() -> list[Entry]:
    """Every registered method, in the order of registration. MetaugError if one refuses its own defaults."""
    return [entry(name) for name in METHODS]


def entry(name: str) -> Entry:
    """What one method, or composition by name, says about itself."""
    about, config = METHODS[name].description, Config(method=name)
    views = ", ".join(config.views) + (", each of its own crop" if config.independent else "")
    defaults = ", ".join(f"{key} {shown(value)}" for key, value in about.defaults.items() if key not in ELSEWHERE)
    return Entry(name, about.title, about.paper, views, about.objective, about.remembers, defaults or "-")


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
        + "\n".join(f"    {key:<10}{e._asdict()[key]}" for key in ("views", "objective", "state", "defaults"))
        for e in entries()
    ]
    return "\n".join(blocks)


def markdown() -> str:
    """The methods as a table, between the two marks that stand around it in docs/methods.md."""
    heads = "| `method` | what | paper | views | objective | state | defaults |\n|---|---|---|---|---|---|---|\n"
    lines = [
        f"| `{e.name}` | {e.title} | {e.paper} | {e.views} | `{bars(e.objective)}` | {e.state} | {e.defaults} |\n"
        for e in entries()
    ]
    return f"{BEGIN}\n{heads}{''.join(lines)}{END}\n"
