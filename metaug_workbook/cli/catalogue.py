"""What the methods say about themselves, as text and as the tables of docs/methods.md."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from metaug_core.config import Config
from metaug_core.recipes import SMALL_IMAGES, Recipe
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
    own: str  # settings of its authors' recipe, for the protocol `own`
    differs: str  # from its authors' code


def entries() -> list[Entry]:
    """Every registered method, in the order of registration. MetaugError if one refuses its own defaults."""
    return [entry(name) for name in METHODS]


def entry(name: str) -> Entry:
    """What one method, or composition by name, says about itself."""
    about, config = METHODS[name].description, Config(method=name)
    views = ", ".join(config.views) + (", each of its own crop" if config.independent else "")
    defaults = ", ".join(f"{key} {shown(value)}" for key, value in about.defaults.items() if key not in ELSEWHERE)
    own = describe_recipe(about.recipe) if about.recipe else "-"
    differs = after_base(name, about.differs) or "-"
    return Entry(name, about.title, about.paper, views, about.objective, about.remembers, defaults or "-", own, differs)


def after_base(name: str, sentences: str) -> str:
    """What differs in a composition, with its base's sentences left to the base's own row."""
    base = name.rpartition("+")[0]
    shared = METHODS[base].description.differs if base else ""
    return f"As `{base}`. {sentences.removeprefix(shared).strip()}".strip() if shared else sentences


def describe_recipe(recipe: Recipe) -> str:
    """A recipe's settings and the rules by which it is scaled."""
    parts = [f"{key} {shown(value)}" for key, value in recipe.settings.items() if key not in ("blur", "lr_schedule")]
    if recipe.lr_at_256 is not None:
        parts.append(f"lr {shown(recipe.lr_at_256)} x batch_size / 256")
    if recipe.lr_steps:
        steps = ", ".join(f"{100 * share:.3g}" for share in recipe.lr_steps)
        parts.append(f"lr_schedule step after {steps} % of the run")
    elif schedule := recipe.settings.get("lr_schedule"):
        parts.append(f"lr_schedule {schedule}")
    if recipe.warmup:
        parts.append(f"warm-up {100 * recipe.warmup:g} % of the run")
    if recipe.ema_momentum is not None:
        parts.append(f"ema_momentum {shown(recipe.ema_momentum)}")
    if any(blur := recipe.settings.get("blur", ())):
        parts.append(f"from {SMALL_IMAGES} px blur {shown(blur)}")
    return ", ".join(parts)


def shown(value: object) -> str:
    """A setting as one would type it; of several by the run's length, each with the most epochs it holds for."""
    if isinstance(value, Mapping):
        return ", ".join(f"{shown(one)} (to {most} epochs)" for most, one in value.items())
    return "-".join(f"{part:g}" for part in value) if isinstance(value, tuple) else str(value)


def bars(line: str) -> str:
    """A line whose bars do not end a table's cell."""
    return line.replace("|", "\\|")


def text() -> str:
    """The methods one after the other, a line for each thing said."""
    blocks = [
        f"{e.name}: {e.title} ({e.paper})\n"
        + "\n".join(
            f"    {key:<10}{e._asdict()[key]}" for key in ("views", "objective", "state", "defaults", "own", "differs")
        )
        for e in entries()
    ]
    return "\n".join(blocks)


def markdown() -> str:
    """Three tables of the methods, between the two marks that stand around them in docs/methods.md: what each is, its
    authors' recipe, and what differs from their code. Methods that say the same share a row of the last two."""
    what = [
        (f"`{e.name}`", e.title, e.paper, e.views, f"`{bars(e.objective)}`", e.state, e.defaults) for e in entries()
    ]
    tables = (
        table(("`method`", "what", "paper", "views", "objective", "state", "defaults"), what),
        "### The recipes of their authors\n",
        table(("`method`", "with `protocol own`"), group_names("own")),
        "### What differs from their authors' code\n",
        table(("`method`", "difference"), group_names("differs")),
    )
    return BEGIN + "\n" + "\n".join(tables) + END + "\n"


def group_names(column: str) -> list[tuple[str, str]]:
    """The names of all methods that say the same in a column, and what they say."""
    names: dict[str, list[str]] = {}
    for e in entries():
        names.setdefault(getattr(e, column), []).append(f"`{e.name}`")
    return [(", ".join(alike), bars(said)) for said, alike in names.items()]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = (heads, ["---"] * len(heads), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
