"""What several commands of `metaug` share: arguments and options, and how paths and tables are shown. Slow imports wait until they
are needed."""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import update_wrapper
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

MEASURES = {  # as tables on the terminal call them
    "probe_paper": "probe (crops)",
    "probe_plain": "probe (plain)",
    "probe_fast": "probe (fast)",
    "knn": "kNN",
}


def takes_settings(flag: str, explained: str) -> Callable[..., Any]:
    """The option -p NAME VALUE, or --set NAME=VALUE, as the dict `given`. A name that is given twice is refused."""

    def collect(_: click.Context, __: click.Parameter, given: tuple[Any, ...]) -> dict[str, str]:
        from metaug_workbook.jobs import grid

        return grid.parse_assignments(flag, given) if flag == "--set" else grid.collect_pairs(flag, given)

    kind: dict[str, Any] = {"metavar": "NAME=VALUE"} if flag == "--set" else {"metavar": "NAME VALUE", "nargs": 2}
    return click.option(flag, "given", multiple=True, callback=collect, help=explained, **kind)


def takes_runs_dir(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option --runs-dir, or the setting runs_dir among those given, as an absolute path; the default is that of Config."""

    def with_choice(*args: Any, runs_dir: str | None, **options: Any) -> Any:
        place = choose_runs_dir(runs_dir, options.get("given", {}).pop("runs_dir", None))
        return command(*args, runs_dir=place, **options)

    explained = "The folder of all runs. Default: METAUG_RUNS, or runs/ in the workbook."
    return click.option("--runs-dir", type=click.Path(), help=explained)(update_wrapper(with_choice, command))


def takes_run(metavar: str = "RUN", **options: Any) -> Callable[..., Any]:
    """The argument `name` (with nargs -1 a tuple of them): a run, of which the shell completes the name."""
    return click.argument("name", metavar=metavar, shell_complete=complete_run, **options)


def complete_run(ctx: click.Context, _: click.Parameter, begun: str) -> list[str]:
    """The names of the runs that begin so, for the shell."""
    from metaug_core.runs import store

    return [folder.name for folder in store.find_folders(choose_runs_dir(ctx.params.get("runs_dir"), None))
            if folder.name.startswith(begun)]  # fmt: skip


def complete_setting(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    """The names of the settings that begin so, for the shell."""
    from metaug_core.config import Config

    return [name for name in Config.model_fields if name.startswith(begun)]


def complete_notebook(_: click.Context, __: click.Parameter, begun: str) -> list[Any]:
    """The workbook's notebooks that begin so, for the shell; if there is none, files."""
    from metaug_core.config import HOME

    names = [path.stem for path in sorted((HOME / "notebooks").glob("[0-9][0-9]_*.ipynb"))]
    return [name for name in names if name.startswith(begun)] or [CompletionItem(begun, type="file")]


def takes_quiet(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option --quiet."""
    return click.option("-q", "--quiet", is_flag=True, help="Show only results and errors: no bar, no notes.")(command)


def ignore(*_: Any) -> None:
    """Show nothing: in place of what shows progress or notes, with --quiet."""


def choose_runs_dir(option: str | None, setting: str | None) -> Path:
    """The one folder that --runs-dir or the setting names, else the default of Config; it need not exist.

    Raises ConfigError: two folders, an empty name, a file in the place of a folder.
    """
    from metaug_core.config import Config, ConfigError

    if "" in (option, setting):
        raise ConfigError("runs_dir: must be the name of a folder, got ''")
    option, setting = (os.path.realpath(text) if text else None for text in (option, setting))
    if option and setting and option != setting:
        raise ConfigError(f"--runs-dir says {option} and runs_dir says {setting}: give one of them")
    place = Path(option or setting or os.path.realpath(Config.model_fields["runs_dir"].default))
    for part in (place, *place.parents):
        if os.path.lexists(part) and not os.path.isdir(part):
            raise ConfigError(f"{place} cannot be the folder of all runs: {part} is not a folder")
    return place


def say(text: str, err: bool = True) -> None:
    """Print on stderr, or else on stdout, on a line of its own beside a bar, as far as there is a stream: what is said beside the
    work does not end it."""
    from tqdm import tqdm

    with suppress(OSError, ValueError):
        tqdm.write(text, file=sys.stderr if err else sys.stdout)


def format_path(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def format_table(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as text: columns as wide as they need, two spaces apart."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def takes_imports(expose: bool) -> Callable[..., Any]:
    """The option --import, which loads the user's files before anything is checked; expose: the command gets their paths."""

    def load(_: click.Context, __: click.Parameter, files: tuple[Path, ...]) -> list[str]:
        if not files:
            return []
        from metaug_core import extensions

        return [str(extensions.load(file)) for file in files]

    kind = click.Path(dir_okay=False, path_type=Path)
    explained = "A Python file with your own methods, encoders, views or data sets. May be repeated."
    return click.option(
        "--import", "imports", type=kind, multiple=True, callback=load, expose_value=expose, help=explained
    )
