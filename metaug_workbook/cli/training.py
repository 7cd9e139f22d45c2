"""Commands of `metaug` that train, and download what to train on. Slow imports wait until they are needed."""

from pathlib import Path

import click

from metaug_core.errors import Interrupted, MetaugError, Paused
from metaug_workbook.cli.notebooks import note_idle
from metaug_workbook.cli.options import (
    format_path,
    ignore,
    takes_imports,
    takes_quiet,
    takes_run,
    takes_runs_dir,
    takes_settings,
)


@click.command()
@takes_settings("-p", "Set a setting, or `preset`. May be repeated; `metaug settings` lists the settings.")
@click.option(
    "--seeds", type=click.IntRange(1), default=1, help="Train this many seeds, counted from `seed`. Default: 1."
)
@takes_imports(expose=False)
@takes_quiet
@takes_runs_dir
def train(given: dict[str, str], seeds: int, quiet: bool, runs_dir: Path) -> None:
    """Train a run, or several seeds of it.

    Several seeds train in processes of their own on a CPU, and side by side in one process on a GPU. Under torchrun, one run is
    divided among all its processes:

    \b
        torchrun --standalone --nproc-per-node 2 --no-python \\
            metaug train -p dataset cifar10
    """
    from metaug_core.runs import store
    from metaug_core.runtime import distributed
    from metaug_core.training import loop, progress
    from metaug_workbook.jobs import runner
    from metaug_workbook.jobs.grid import build_config, parse_setting

    first = build_config({**{name: parse_setting(name, text) for name, text in given.items()}, "runs_dir": runs_dir})
    if not quiet:
        note_idle(first, given)
    configs = [first.replace(seed=first.seed + number) for number in range(seeds)]
    processes = runner.count_processes([store.request(config) for config in configs])
    try:
        if processes == 1:
            loop.fit_trials(configs, ignore if quiet else None)
        else:
            with runner.start_processes(processes, runs_dir / "workers.log") as executor:
                jobs, view = (
                    [runner.Job((config,)) for config in configs],
                    progress.silent if quiet else progress.RunsBar,
                )
                failures = runner.run_jobs(jobs, executor, view)
            for sentence in failures.values():
                raise MetaugError(sentence)
    except (KeyboardInterrupt, Paused):
        raise Interrupted("interrupted and saved; the same command goes on") from None
    for config in configs if distributed.rank() == 0 else ():
        click.echo(f"finished: {format_path(store.request(config).path)}")


@click.command()
@takes_run()
@takes_imports(expose=False)
@takes_quiet
@takes_runs_dir
def resume(name: str, quiet: bool, runs_dir: Path) -> None:
    """Continue a run that was stopped.

    RUN is the name of a run, the beginning of its name, or its folder.
    """
    from metaug_core.runs import store
    from metaug_core.training import loop
    from metaug_workbook.jobs import runner

    run = store.open_run(name, runs_dir)
    if run.finished:
        click.echo(f"{run.path.name} is finished already: {format_path(run.path)}")
        return
    store.check_current(run)
    try:
        loop.fit(run.config, ignore if quiet else None)
    except (KeyboardInterrupt, Paused):
        raise Interrupted(f"interrupted{runner.how_to_continue(run)}") from None
    click.echo(f"finished: {format_path(run.path)}")


@click.command()
@takes_run()
@takes_runs_dir
def stop(name: str, runs_dir: Path) -> None:
    """Stop a run that is being trained.

    RUN is the name of a run, the beginning of its name, or its folder. Whoever trains it, here or on another machine, saves it
    after the step under way. `metaug resume RUN` continues it.
    """
    from metaug_core.runs import lock, store

    folder = store.locate_run(name, runs_dir)
    if (folder / "finished.json").exists():
        raise MetaugError(f"{folder.name} is finished: there is nothing to stop")
    if not lock.is_held(folder):
        raise MetaugError(f"{folder.name} is not being trained: there is nothing to stop")
    store.request_stop(folder)
    click.echo(f"{folder.name} will stop after the step under way; `metaug resume {folder.name}` continues it")


@click.command()
@click.argument("dataset")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder of all data sets. Default: METAUG_DATA, or data/ in the workbook.",
)
def download(dataset: str, data_dir: Path | None) -> None:
    """Download a data set from its authors."""
    from metaug_core.config import Config
    from metaug_core.data import datasets

    place = datasets.download(dataset, data_dir or Config.model_fields["data_dir"].default)
    click.echo(f"{dataset} is in {format_path(place)}")
