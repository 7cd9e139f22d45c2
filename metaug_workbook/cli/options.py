"""What several commands of `metaug` share: options, and how a path is shown. Slow imports wait until they are needed."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import update_wrapper
from pathlib import Path
from typing import Any

import click


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

    explained = "Folder of all runs; default: METAUG_RUNS, or runs/ in the workbook."
    return click.option("--runs-dir", type=click.Path(), help=explained)(update_wrapper(with_choice, command))


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


def takes_imports(expose: bool) -> Callable[..., Any]:
    """The option --import, which loads the user's files before anything is checked; expose: the command gets their paths."""

    def load(_: click.Context, __: click.Parameter, files: tuple[Path, ...]) -> list[str]:
        if not files:
            return []
        from metaug_core import extensions

        return [str(extensions.load(file)) for file in files]

    kind = click.Path(dir_okay=False, path_type=Path)
    explained = "A Python file with methods, encoders, views or data sets of your own. May be repeated."
    return click.option(
        "--import", "imports", type=kind, multiple=True, callback=load, expose_value=expose, help=explained
    )
