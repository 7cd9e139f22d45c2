"""The command of `metaug` that executes a notebook. Slow imports wait until they are needed."""

import json
from pathlib import Path
from typing import Any

import click

from metaug_workbook.cli.options import (
    complete_notebook,
    format_path,
    say,
    takes_imports,
    takes_quiet,
    takes_runs_dir,
    takes_settings,
)


class NotebookCommand(click.Command):
    """A command whose help, after a notebook's name, also lists the parameters of that notebook."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["words"] = list(args)  # --help ends the parsing before the arguments have their values
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        name = self.make_parser(ctx).parse_args(list(ctx.meta.get("words", ())))[0].get("notebook")
        if isinstance(name, str):
            from metaug_workbook.jobs import papermill_runner

            path = papermill_runner.find_notebook(name)
            entries = papermill_runner.read_parameters(path).values()
            with formatter.section(f"Parameters of {path.stem} ({read_title(path)})"):
                formatter.write_dl([(f"{entry['name']}  {entry['default']}", entry["help"]) for entry in entries])
            if any(entry["name"] == "preset" for entry in entries):
                formatter.write_paragraph()
                formatter.write_text("Any other setting goes with -p as well: `metaug settings` lists them.")


def read_title(path: Path) -> str:
    """The first line of a notebook, without its mark of a heading."""
    cells = json.loads(path.read_text(encoding="utf-8")).get("cells", [])
    return "".join(cells[0]["source"] if cells else "").strip().partition("\n")[0].lstrip("# ")


@click.command(cls=NotebookCommand)
@click.argument("notebook", shell_complete=complete_notebook)
@takes_settings("-p", "Set a parameter of the notebook, or any setting. May be repeated.")
@takes_imports(expose=True)
@takes_quiet
@takes_runs_dir
def run(notebook: str, given: dict[str, str], imports: list[str], quiet: bool, runs_dir: Path) -> None:
    """Execute a notebook.

    NOTEBOOK is a path, or a name such as 01_pretrain. `metaug run NOTEBOOK --help` lists the parameters of a notebook, `metaug
    settings` all settings. Every name and value is checked before anything starts. A run that is finished already is not trained
    again.
    """
    from metaug_workbook.jobs import papermill_runner

    path = papermill_runner.find_notebook(notebook)
    values, config = papermill_runner.check_parameters(path, given, imports, runs_dir)
    if config is not None and not quiet:
        note_idle(config, given)
    output = papermill_runner.execute(path, values, config, runs_dir, bar=not quiet)
    click.echo(f"executed notebook: {format_path(output)}")


def note_idle(config: Any, given: dict[str, str]) -> None:
    """Say of each setting that was given and changes nothing why that is so."""
    for name in given:
        if reason := config.idle(name):
            say(f"note: {reason}")
