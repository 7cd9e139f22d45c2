"""Commands of `metaug` over many runs: sweeps and figures. Slow imports wait until they are needed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from metaug_core.errors import Interrupted, MetaugError
from metaug_workbook.cli.options import (
    MEASURES,
    format_path,
    format_table,
    ignore,
    say,
    takes_imports,
    takes_quiet,
    takes_runs_dir,
    takes_settings,
)


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="The gallery. Default: figures/.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Draw into this folder and leave the gallery alone."
)
def figures(names: tuple[str, ...], folder: Path | None, out: Path | None) -> None:
    """Draw the figures of the gallery again.

    They are drawn from their stored tables, and the page of the gallery is written. With NAME, only these figures. The gallery
    accepts only figures drawn by committed code; --out accepts any.
    """
    from metaug_workbook.plots import gallery

    drawn = gallery.rebuild(folder, names or None, out)
    place = out or folder or gallery.FOLDER
    click.echo(f"drawn: {', '.join(drawn) or 'nothing'}; see {format_path(place / 'README.md')}")


@click.command(options_metavar="--grid NAME=V1,V2,... [--seeds N] [OPTIONS]")
@click.option(
    "--grid",
    multiple=True,
    metavar="NAME=V1,V2",
    help="A setting and its values; may be repeated. A setting that is a list: views='L,ab;L,ab,RGB'.",
)
@takes_settings("--set", "Set a setting, or `preset`, of every run. May be repeated.")
@click.option(
    "--seeds", type=click.IntRange(1), help="Train each combination with this many seeds, from `seed` (0) on."
)
@click.option("--notebook", default="01_pretrain", help="The notebook to execute for each run. Default: 01_pretrain.")
@click.option(
    "--measures",
    default="probe_plain,probe_fast,knn",
    help="What to measure of each run. Default: probe_plain,probe_fast,knn; there are also rankme, which needs no labels, and "
    "probe_paper, which is slow.",
)
@click.option(
    "--representations",
    default="untrained,trained",
    help="Of which features. Default: untrained,trained; there is also 'raw pixels'.",
)
@click.option("--augmented", is_flag=True, help="Also evaluate z and z~ together, where the method has a MAG.")
@click.option("--scheduler", metavar="ADDRESS", help="Use the workers of a running Dask scheduler, tcp://host:port.")
@click.option("--slurm", is_flag=True, help="Start nothing: write a job array of --workers tasks for sbatch.")
@click.option(
    "--workers", type=click.IntRange(1), help="Processes on this machine. Default: one per CPU core, or one with a GPU."
)
@click.option(
    "--trials",
    type=click.IntRange(1),
    help="Train up to this many runs side by side in one process, if they differ only in numbers: for a GPU.",
)
@click.option(
    "--name",
    help="Name of the sweep's folder in runs/sweeps/. Default: made from the grid, the same for the same grid.",
)
@click.option("--retry", is_flag=True, help="Try again what failed before.")
@click.option("--dry-run", is_flag=True, help="Only list the runs, their states and how long they will take.")
@takes_imports(expose=True)
@takes_quiet
@takes_runs_dir
@click.pass_context
def sweep(ctx: click.Context, runs_dir: Path, dry_run: bool, slurm: bool, quiet: bool, **asked: Any) -> None:
    """Train and evaluate a grid of runs.

    For example, three seeds of each of two temperatures; --dry-run only says what they would cost:

    \b
        metaug sweep --set method=cmc --grid temperature=0.07,0.2 \\
            --seeds 3 --dry-run

    All runs go into one table. Then a notebook is executed for each of them. Every name and value is checked before anything
    starts. The same command again does only what is missing; what failed is recorded and tried again only with --retry. Ctrl-C
    saves the runs under way.
    """
    if not asked["grid"] and asked["seeds"] is None:
        usage = "`metaug sweep --grid NAME=V1,V2,... [--seeds N] [--set NAME=VALUE]...`"
        raise click.UsageError(f"a sweep needs a grid or seeds: {usage}", ctx)
    from metaug_core.training import progress
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
    view, note = (progress.silent, ignore) if quiet else (progress.RunsBar, say)
    try:
        with choose_workers(state, asked["scheduler"], asked["workers"]) as executor:
            sweep.run_sweep(state, executor, asked["trials"] or 1, view, note)
    except KeyboardInterrupt:
        counted = f"{state.count('finished')} of {len(state.cells)} cells are finished"
        raise Interrupted(f"interrupted: {counted}; the same command goes on") from None
    click.echo(format_summary(state.summary()))
    click.echo(
        f"{state.count('finished')} of {len(state.cells)} cells are finished: {format_path(plan.folder / 'table.csv')}"
    )
    failed, notebooks = state.count("failed"), sum(cell["notebook_error"] is not None for cell in state.cells)
    for count, what in ((failed, "cells"), (notebooks, "notebooks")):
        if count:
            raise papermill_runner.CellFailed(
                f"{count} of {len(state.cells)} {what} failed, see {format_path(state.file)}; --retry tries them again"
            )


def format_summary(summary: Any) -> str:
    """What a sweep measured, as text."""
    heads = [{**MEASURES, "rankme": "RankMe"}.get(name, name) for name in map(str, summary.columns)]
    table = format_table([heads, *summary.values.tolist()])
    rank = "; RankMe: directions that features of training images fill" if "RankMe" in heads else ""
    return f"{table}\ntest accuracy in %: mean ± half of the 95 % t-interval over n seeds{rank}\n"


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
@click.option("--sweep", "names", multiple=True, metavar="NAME", help="Only the runs of this sweep. May be repeated.")
@takes_quiet
def work(runs_dir: Path, names: tuple[str, ...], quiet: bool) -> None:
    """Work on the unfinished runs of sweeps.

    A worker trains and evaluates runs of the sweeps in RUNS_DIR until none is left. Any number of workers may run at the same
    time, on any machine that sees the folder. If one dies, the others continue its run.
    """
    from metaug_workbook.jobs import worker

    try:
        worker.work(worker.read_jobs(runs_dir.resolve(), names), ignore if quiet else partial(say, err=False))
    except KeyboardInterrupt:
        raise Interrupted("interrupted and saved; the same command goes on") from None
