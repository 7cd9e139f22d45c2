"""Commands of `metaug` over many runs: sweeps and figures. Slow imports wait until they are needed."""

from pathlib import Path
from typing import Any

import click

from metaug_workbook.cli.options import shown, takes_imports, takes_runs_dir

LOG_SECONDS = 10.0  # between two drawings of the bar where it is not drawn in place


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="The gallery; default: figures/.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Draw there, and leave the gallery as it is."
)
def figures(names: tuple[str, ...], folder: Path | None, out: Path | None) -> None:
    """Draw the figures of the gallery again from their stored tables (only NAME..., if given), and write its page.

    figures/ takes only what a commit can draw again; --out any state of the code.
    """
    from metaug_workbook.plots import gallery

    drawn = gallery.rebuild(folder, names or None, out)
    place = out or folder or gallery.FOLDER
    click.echo(f"drawn: {', '.join(drawn) or 'nothing'}; see {shown(place / 'README.md')}")


@click.command()
@click.option(
    "--grid", multiple=True, metavar="NAME=V1,V2", help="An axis of the grid; of lists: views='L,ab;L,ab,RGB'."
)
@click.option(
    "--set", "fixed", multiple=True, metavar="NAME=VALUE", help="A setting of every cell; `preset` names a preset."
)
@click.option("--seeds", type=click.IntRange(1), default=1, help="So many seeds of every cell, from `seed` (0) on.")
@click.option("--notebook", default="01_pretrain", help="What a cell executes; default: 01_pretrain.")
@click.option(
    "--measures", default="probe_paper,probe_fast,knn", help="What is evaluated afterwards; fewer are cheaper."
)
@click.option("--representations", default="untrained,trained", help="Of what; also: raw pixels.")
@click.option("--augmented", is_flag=True, help="Also evaluate z and z~, where the method has a MAG.")
@click.option("--scheduler", metavar="ADDRESS", help="A Dask scheduler that runs, tcp://host:port; else workers here.")
@click.option(
    "--workers", type=click.IntRange(1), help="How many processes here; default: one a core, or one for a GPU."
)
@click.option(
    "--trials", type=click.IntRange(1), default=1,
    help="So many runs side by side in one process, if only numbers differ: for a GPU.",
)  # fmt: skip
@click.option(
    "--name", help="Of the sweep's folder in runs/sweeps; default: from its grid, so that the same call finds it."
)
@click.option("--retry", is_flag=True, help="Also try again what failed before.")
@click.option("--dry-run", is_flag=True, help="Only list the cells, their states and what they will cost.")
@takes_imports(expose=True)
@takes_runs_dir
def sweep(runs_dir: Path, dry_run: bool, **asked: Any) -> None:
    """Run a notebook for every cell of a grid of settings, evaluate the runs, and write one table.

    All names and values are checked before anything starts. The same command again does only what is missing; failures are
    recorded and not repeated without --retry. Ctrl-C saves what is under way.
    """
    from metaug_workbook import papermill_runner
    from metaug_workbook.jobs import sweep
    from metaug_workbook.results.tables import Wanted

    measures, representations = (tuple(asked[name].split(",")) for name in ("measures", "representations"))
    wanted = Wanted(measures, representations, asked["augmented"], "test")
    place = (asked["notebook"], asked["imports"], asked["name"])
    plan = sweep.plan(asked["grid"], asked["fixed"], asked["seeds"], runs_dir, wanted, *place)
    if dry_run:
        click.echo(listed(sweep.Sweep(plan, asked["retry"])))
        return
    bar = Bar()
    try:
        found = sweep.run(plan, bar, asked["scheduler"], asked["workers"], asked["retry"], asked["trials"])
    finally:
        bar.close()
    click.echo(
        f"{found.count('finished')} of {len(found.cells)} cells are finished: {shown(plan.folder / 'table.csv')}"
    )
    if failed := found.count("failed"):
        where = shown(found.file)
        raise papermill_runner.CellFailed(
            f"{failed} of {len(found.cells)} cells failed, see {where}; --retry tries them again"
        )


class Bar:
    """The progress of a sweep on stderr: cells, runs under way in part, time left; a failure is a line of its own."""

    def __init__(self) -> None:
        self.bar: Any = None

    def __call__(self, found: Any, text: str) -> None:
        import sys

        from tqdm import tqdm

        if self.bar is None:
            form = "{desc} {percentage:3.0f}%|{bar:24}| {elapsed}, {remaining} left{postfix}"
            often = 0.1 if sys.stderr.isatty() else LOG_SECONDS
            options = {
                "initial": found.share(),
                "desc": "cells",
                "bar_format": form,
                "mininterval": often,
                "smoothing": 0,
            }
            self.bar = tqdm(total=len(found.cells), **options)
        if text:
            self.bar.write(text, file=sys.stderr)
        failed = f", {count} failed" if (count := found.count("failed")) else ""
        self.bar.set_postfix_str(f"{found.count('finished')} of {len(found.cells)} finished{failed}", refresh=False)
        self.bar.update(max(0.0, found.share() - self.bar.n))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def listed(found: Any) -> str:
    """The cells of a sweep, a line each, and how long those that are missing will train on this machine."""
    from metaug_workbook.jobs import cost

    lines = [f"{one['state']:<10}{found.plan.words(number)}  {one['run']}" for number, one in enumerate(found.cells)]
    return "\n".join([*lines, cost.said([found.runs[number] for number in found.missing()])])
