"""What several commands of `metaug` share: options, and how a path is shown. Slow imports wait until they are needed."""

from collections.abc import Callable
from contextlib import suppress
from functools import update_wrapper
from pathlib import Path
from typing import Any

import click


def takes_runs_dir(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option --runs-dir, as an absolute path; the default is that of Config."""

    def with_default(*args: Any, runs_dir: Path | None, **options: Any) -> Any:
        from metaug_core.config import Config

        place = runs_dir or Config.model_fields["runs_dir"].default
        return command(*args, runs_dir=place.resolve(), **options)

    kind = click.Path(file_okay=False, path_type=Path)
    explained = "Folder of all runs; default: METAUG_RUNS, or runs/ in the workbook."
    return click.option("--runs-dir", type=kind, help=explained)(update_wrapper(with_default, command))


def say(text: str, err: bool = True) -> None:
    """Print on stderr, or else on stdout, as far as there is one: what is said beside the work does not end it."""
    with suppress(OSError, ValueError):
        click.echo(text, err=err)


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
