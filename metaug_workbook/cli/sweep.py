"""Commands of `metaug` over many runs: sweeps and figures. Slow imports wait until they are needed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from metaug_core.errors import Interrupted, MetaugError
from metaug_workbook.cli.options import format_path, say, takes_imports, takes_runs_dir, takes_settings


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
    click.echo(f"drawn: {', '.join(drawn) or 'nothing'}; see {format_path(place / 'README.md')}")


@click.command()
@click.option(
    "--grid", multiple=True, metavar="NAME=V1,V2", help="An axis of the grid; of lists: views='L,ab;L,ab,RGB'."
)
@takes_settings("--set", "A setting of every cell; `preset` names a preset.")
@click.option("--seeds", type=click.IntRange(1), help="So many seeds of every cell, from `seed` (0) on.")
@click.option("--notebook", default="01_pretrain", help="What is executed of every run; default: 01_pretrain.")
@click.option(
    "--measures",
    default="probe_plain,probe_fast,knn",
    help="What is evaluated afterwards; fewer are cheaper, probe_paper is dear.",
)
@click.option("--representations", default="untrained,trained", help="Of what; also: raw pixels.")
@click.option("--augmented", is_flag=True, help="Also evaluate z and z~, where the method has a MAG.")
@click.option("--scheduler", metavar="ADDRESS", help="A Dask scheduler that runs, tcp://host:port; else workers here.")
@click.option("--slurm", is_flag=True, help="Start nothing; write a job array of --workers tasks for sbatch.")
@click.option("--workers", type=click.IntRange(1), help="How many processes; default: one a core, or one for a GPU.")
@click.option(
    "--trials", type=click.IntRange(1),
    help="So many runs side by side in one process, if only numbers differ: for a GPU.",
)  # fmt: skip
@click.option(
    "--name", help="Of the sweep's folder in runs/sweeps; default: from its grid, so that the same call finds it."
)
@click.option("--retry", is_flag=True, help="Also try again what failed before.")
@click.option("--dry-run", is_flag=True, help="Only list the cells, their states and what they will cost.")
@takes_imports(expose=True)
@takes_runs_dir
def sweep(runs_dir: Path, dry_run: bool, slurm: bool, **asked: Any) -> None:
    """Train a run for every cell of a grid of settings, evaluate the runs, write one table, and execute a notebook of each run.

    All names and values are checked before anything starts. The same command again does only what is missing; failures are
    recorded and not repeated without --retry. Ctrl-C saves what is under way.
    """
    from metaug_workbook.jobs import papermill_runner, sweep
    from metaug_workbook.results.tables import Wanted

    refuse_ignored(asked | {"slurm": slurm})
    measures, representations = (tuple(asked[name].split(",")) for name in ("measures", "representations"))
    wanted = Wanted(measures, representations, asked["augmented"], "test")
    place = (asked["notebook"], asked["imports"], asked["name"])
    plan = sweep.plan_sweep(asked["grid"], asked["given"], asked["seeds"], runs_dir, wanted, *place)
    state = sweep.Sweep(plan, asked["retry"])
    if dry_run:
        click.echo(describe(state))
        return
    if slurm:
        click.echo(submit(state, asked["workers"] or 4))
        return
    try:
        with choose_workers(state, asked["scheduler"], asked["workers"]) as executor:
            sweep.run_sweep(state, executor, asked["trials"] or 1, say=say)
    except KeyboardInterrupt:
        counted = f"{state.count('finished')} of {len(state.cells)} cells are finished"
        raise Interrupted(f"interrupted: {counted}; the same command goes on") from None
    click.echo(
        f"{state.count('finished')} of {len(state.cells)} cells are finished: {format_path(plan.folder / 'table.csv')}"
    )
    failed, notebooks = state.count("failed"), sum(cell["notebook_error"] is not None for cell in state.cells)
    for count, what in ((failed, "cells"), (notebooks, "notebooks")):
        if count:
            raise papermill_runner.CellFailed(
                f"{count} of {len(state.cells)} {what} failed, see {format_path(state.file)}; --retry tries them again"
            )


def refuse_ignored(asked: dict[str, Any]) -> None:
    """MetaugError if two options are given of which one would change nothing."""
    for one, other in (("scheduler", "slurm"), ("scheduler", "workers"), ("slurm", "trials")):
        if asked[one] and asked[other]:
            raise MetaugError(f"--{other} changes nothing with --{one}: give one of them")


@contextmanager
def choose_workers(state: Any, scheduler: str | None, workers: int | None) -> Iterator[Any]:
    """The executor of a sweep: the workers of a Dask scheduler, or so many processes here. None if nothing is to be done."""
    from metaug_workbook.jobs import dask_cluster, runner

    todo = state.missing() or state.without_notebook()
    if scheduler is not None:
        state.record()  # the workers look whether they see the folder
        with dask_cluster.connect(scheduler, state.plan.folder, state.plan.imports) as executor:
            yield executor
    elif not todo:
        yield None
    else:
        count = runner.count_workers(state.plan.configs[0], len(todo), workers)
        with runner.start_processes(count, state.plan.folder / "workers.log") as executor:
            yield executor


def describe(state: Any) -> str:
    """The cells of a sweep, a line each, and how long those that are missing will take on this machine."""
    from metaug_workbook.jobs import estimate

    lines = [f"{cell['state']:<10}{state.plan.words(n)}  {cell['run']}" for n, cell in enumerate(state.cells)]
    return "\n".join([*lines, estimate.describe_cost([state.plan.configs[number] for number in state.missing()])])


def submit(state: Any, workers: int) -> str:
    """Write the job array of a sweep -> what to do with it."""
    from metaug_workbook.jobs import worker

    plan = state.plan
    state.begin()
    state.save()
    command = [sys.executable, "-m", "metaug_workbook.cli.main", "work", str(plan.configs[0].runs_dir)]
    command += ["--sweep", plan.name]
    script = worker.write_submission(plan.folder, min(workers, max(1, len(state.missing()))), command)
    return (
        f"{len(state.missing())} of {len(state.cells)} cells are missing\n"
        f"submit: sbatch {format_path(script)}\n"
        "afterwards the same command without --slurm writes the table and executes the notebooks"
    )


@click.command()
@click.argument("runs_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--sweep", "names", multiple=True, metavar="NAME", help="Only the jobs of this sweep. May be repeated.")
def work(runs_dir: Path, names: tuple[str, ...]) -> None:
    """Do unfinished jobs of the sweeps in RUNS_DIR until nothing is left. As many as you like may work at the same time, on any
    machine that sees the folder; one that dies is replaced by the others."""
    from metaug_workbook.jobs import worker

    try:
        worker.work(worker.read_jobs(runs_dir.resolve(), names), partial(say, err=False))
    except KeyboardInterrupt:
        raise Interrupted("interrupted and saved; the same command goes on") from None
