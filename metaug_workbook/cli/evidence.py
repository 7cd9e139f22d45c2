"""The command `metaug evidence`: the experiments behind the paper's claims. Slow imports wait until they are needed."""

import _thread
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click

from metaug_core.errors import Interrupted
from metaug_workbook.cli.options import format_path, say, takes_imports, takes_quiet, takes_runs_dir, takes_settings


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "--hours", type=click.FloatRange(0, min_open=True), help="Stop after this many hours; runs under way are saved."
)
@click.option("--seeds", type=click.IntRange(1), help="Seeds per experiment, in place of its own number.")
@click.option(
    "--workers", type=click.IntRange(1), help="Processes on this machine. Default: one per CPU core, or one with a GPU."
)
@click.option(
    "--trials",
    type=click.IntRange(1),
    default=1,
    help="Train up to this many runs side by side in one process: for a GPU.",
)
@takes_settings(
    "--set", "Set a setting of every run, such as `dataset=folder`. Those of an experiment take precedence."
)
@click.option(
    "--tables", type=click.Path(file_okay=False, path_type=Path), help="Folder of the tables. Default: figures/data."
)
@click.option(
    "--dry-run", is_flag=True, help="Only list the experiments, which runs are missing, and how long these will take."
)
@takes_imports(expose=False)
@takes_quiet
@takes_runs_dir
def evidence(
    names: tuple[str, ...], runs_dir: Path, tables: Path | None, dry_run: bool, quiet: bool, **asked: Any
) -> None:
    """Run the experiments behind the paper's claims.

    Without NAME, all of them, the most important first. Only missing runs are made. Each finished run becomes a row of
    figures/data/NAME.csv at once. The same command continues, here or on another machine; another machine begins with seeds that
    no machine has completed. `metaug claims` says what the tables decide.
    """
    from metaug_core.training import progress
    from metaug_workbook.jobs import evidence_runs
    from metaug_workbook.jobs.grid import parse_setting
    from metaug_workbook.results import evidence_tables

    given = {name: parse_setting(name, text) for name, text in asked["given"].items()} | {"runs_dir": runs_dir}
    place = tables or evidence_tables.FOLDER
    plans, waiting = evidence_runs.plan_experiments(names, given, place, asked["seeds"])
    if dry_run:
        click.echo("\n".join([*map(describe, plans), *waiting]))
        return
    todo = evidence_runs.list_todo(plans)
    view = progress.silent if quiet else progress.RunsBar
    try:
        with end_after(asked["hours"]) as is_over, choose_workers(todo, asked["workers"]) as executor:
            evidence_runs.gather(todo, executor, asked["trials"], view, say)
    except KeyboardInterrupt:
        left = len(evidence_runs.list_todo(plans))
        if not is_over():
            raise Interrupted(f"interrupted: {left} runs are left; the same command goes on") from None
        say(f"{asked['hours']:g} hours are over: {left} runs are left; the same command goes on", err=False)
    for sentence in waiting:
        say(sentence, err=False)
    click.echo(f"tables: {format_path(place)}")


@click.command()
@click.option(
    "--tables", type=click.Path(file_okay=False, path_type=Path), help="Folder of the tables. Default: figures/data."
)
@click.option("--markdown", is_flag=True, help="Print Markdown with every difference, as in docs/claims.md.")
def claims(tables: Path | None, markdown: bool) -> None:
    """Say which of the paper's claims hold.

    Each holds, does not hold, or is open, by the tables of `metaug evidence`.
    """
    from metaug_workbook.results import claims, evidence_tables

    verdicts = claims.judge_all(tables or evidence_tables.FOLDER)
    click.echo(claims.to_markdown(verdicts) if markdown else claims.to_text(verdicts), nl=not markdown)


@contextmanager
def end_after(hours: float | None) -> Iterator[Any]:
    """Within, a KeyboardInterrupt after so many hours (None: never), as by Ctrl-C -> whether the time is over."""
    until = time.monotonic() + 3600 * hours if hours else float("inf")
    timer = threading.Timer(3600 * hours, _thread.interrupt_main) if hours else None
    if timer:
        timer.daemon = True
        timer.start()
    try:
        yield lambda: time.monotonic() >= until
    finally:
        if timer:
            timer.cancel()


def choose_workers(todo: Any, workers: int | None) -> Any:
    """Context manager: the executor, of so many processes here; None where one process does it best, as on a GPU."""
    from metaug_core.training import loop
    from metaug_workbook.jobs import runner

    if not todo:
        return nullcontext()
    plan, arm, seed = todo[0]
    config = plan.configs[arm, seed]
    count = runner.count_workers(config, len(todo), workers)
    if count == 1 and loop.pick_device(config.device) != "cpu":
        return nullcontext()
    return runner.start_processes(count, config.runs_dir / "workers.log")


def describe(plan: Any) -> str:
    """An experiment, what it asks, and what is missing of it."""
    from metaug_workbook.jobs import estimate, evidence_runs

    missing = evidence_runs.list_todo([plan])
    cost = estimate.describe_cost([plan.configs[arm, seed] for _, arm, seed in missing])
    return f"{plan.name}: {plan.experiment.question}\n    {len(plan.configs)} runs; {cost}"
