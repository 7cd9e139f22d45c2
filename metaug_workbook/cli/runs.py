"""Commands of `metaug` that look after runs: list, report, remove. Slow imports wait until they are needed."""

import csv
import io
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from metaug_core.errors import MetaugError
from metaug_workbook.cli.options import MEASURES, format_path, format_table, takes_imports, takes_run, takes_runs_dir

MOST = 6  # columns of settings in the table; --csv has all


@click.command()
@click.argument("wanted", metavar="[NAME=VALUE]...", nargs=-1)
@click.option("--json", "form", flag_value="json", help="Print JSON with all settings; accuracies are in [0, 1].")
@click.option(
    "--csv", "form", flag_value="csv", help="Print CSV with every setting that differs; accuracies are in [0, 1]."
)
@takes_runs_dir
def runs(wanted: tuple[str, ...], form: str | None, runs_dir: Path) -> None:
    """List the runs and the settings in which they differ.

    The oldest is first. NAME=VALUE lists only the runs with this setting, or in this state (finished, failed, training, unfinished
    or damaged):

    \b
        metaug runs method=cmc seed=0 state=finished
    """
    from metaug_core.runs import listing
    from metaug_workbook.jobs.grid import parse_assignments

    folders = listing.list_folders(runs_dir)
    listed = listing.select(folders, parse_assignments("runs", wanted))
    if form == "json":
        click.echo(json.dumps([describe(run) for run in listed], indent=1))
    elif form == "csv":
        click.echo(format_csv(listed), nl=False)
    elif not folders:
        click.echo(f"no runs in {format_path(runs_dir)}; `metaug run 01_pretrain` makes one")
    elif not listed:
        click.echo(f"none of the {len(folders)} runs in {format_path(runs_dir)} has {' '.join(wanted)}")
    else:
        click.echo(format_runs(listed))


def format_runs(listed: Sequence[Any]) -> str:
    """The table of `metaug runs`, and which settings had no place in it."""
    from metaug_core.runs import listing

    head, rows, more = listing.tabulate(listed, MEASURES, MOST)
    ages = [format_age(time.time() - run.touched) for run in listed]
    table = [[*head, "age"], *([*row, age] for row, age in zip(rows, ages, strict=True))]
    return format_table(table) + (f"\nthey also differ in {', '.join(more)}: see --csv" if more else "")


def describe(run: Any) -> dict[str, Any]:
    """A run as --json has it."""
    return {
        "run": run.name,
        "path": str(run.path),
        "state": run.state,
        "epochs_done": run.epochs_done,
        "settings": run.settings,
        "evaluation": run.evaluation,
        "written": format_time(run.touched),
    }


def format_csv(listed: Sequence[Any]) -> str:
    """A row for each run, empty where it has nothing: what tells runs apart, how far it is, and how good its encoder."""
    from metaug_core.runs import listing

    fixed = ["method", "dataset", "encoder", "seed", "epochs"]
    names = fixed + [name for names in listing.list_differing(listed) for name in names if name not in fixed]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["run", *names, "epochs_done", "state", *MEASURES, "written"])
    for run in listed:
        settings = [listing.format_setting(name, run.settings[name]) if name in run.settings else "" for name in names]
        accuracies = [run.evaluation.get("trained", {}).get(measure) for measure in MEASURES]
        rows.writerow([run.name, *settings, run.epochs_done, run.state, *accuracies, format_time(run.touched)])
    return text.getvalue()


def format_time(seconds: float) -> str:
    """Seconds since the epoch as a date and time of UTC, ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def format_age(seconds: float) -> str:
    """Roughly, in one unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


@click.command()
@takes_run("[RUN]", required=False)
@takes_imports(expose=False)
@takes_runs_dir
def report(name: str | None, runs_dir: Path) -> None:
    """Show a run's files, its MAG and its accuracies.

    RUN is the name of a run, the beginning of its name, or its folder. Without RUN, the run that was evaluated last.
    """
    from metaug_core.runs import store
    from metaug_core.training import diagnostics

    run = store.open_run(name or find_latest(runs_dir), runs_dir)
    click.echo(f"run        {format_path(run.path.resolve())}")
    for label, pattern in (("notebooks", "*.ipynb"), ("figures", "figures/*.png")):
        for number, path in enumerate(sorted(run.path.resolve().glob(pattern))):
            click.echo(f"{'' if number else label:<11}{format_path(path)}")
    sessions = run.sessions
    session = sessions[-1] if sessions else {}
    if session.get("device") == "cuda" and (reason := session.get("eager_because")):
        click.echo(f"{'steps':<11}not captured as CUDA graphs: {reason}")
    for number, (text, value) in enumerate(diagnostics.mag_readings(run.metrics).items()):
        click.echo(f"{'' if number else 'MAG':<11}{value:<9.2g}{text}")
    if run.evaluation():
        click.echo("\n" + format_accuracies(run))
    elif run.finished:
        click.echo("not evaluated yet: `metaug run 02_evaluate` with the run's parameters does it")
    else:
        click.echo(run.failure or f"not finished yet: `metaug resume {run.path.name}` goes on with it")


def find_latest(runs_dir: Path) -> Path:
    """The folder of the run that was evaluated last. MetaugError if there is none."""
    from metaug_core.runs import listing

    evaluated = [folder for folder in listing.list_folders(runs_dir) if folder.evaluated]
    if not evaluated:
        raise MetaugError(f"no evaluated run in {format_path(runs_dir)}: `metaug run 02_evaluate` makes one")
    return max(evaluated, key=lambda folder: folder.evaluated).path


def format_accuracies(run: Any) -> str:
    """Accuracies in percent on the test split, as text; top-5 where it is stored."""
    from metaug_core.runs.predictions import name_top5

    stored = run.evaluation()
    top5 = {name_top5(measure): head for measure, head in MEASURES.items()}
    lines = []
    for title, measures in (("test accuracy (%)", MEASURES), ("top-5 (%)", top5)):
        rows = [name for name in ("trained", "trained, z and z~", "untrained", "raw pixels")
                if any(measure in stored.get(name, {}) for measure in measures)]  # fmt: skip
        if rows:
            lines.append(f"{title:<20}" + "".join(f"{head:>14}" for head in measures.values()))
        for name in rows:
            values = [stored[name].get(measure) for measure in measures]
            lines.append(f"{name:<20}" + "".join(f"{'-' if v is None else f'{100 * v:.1f}':>14}" for v in values))
    return "\n".join(lines)


@click.command()
@takes_run("RUN...", nargs=-1, required=True)
@click.option("-y", "--yes", is_flag=True, help="Remove without asking.")
@takes_runs_dir
def rm(name: tuple[str, ...], yes: bool, runs_dir: Path) -> None:
    """Remove runs for good.

    RUN is the name of a run, the beginning of its name, or its folder, which is removed with everything in it. The command asks
    first. If one of the runs is being trained or
    evaluated, none is removed. Tables of sweeps stay as they are.
    """
    from metaug_core.runs import removal

    folders = list({folder: None for one in name for folder in [find_removable(one, runs_dir)]})
    removal.refuse_used(folders)
    if not yes:
        confirm_removal(folders)
    removal.remove(folders)
    for folder in folders:
        click.echo(f"removed: {format_path(folder)}")


def find_removable(name: str, runs_dir: Path) -> Path:
    """The folder of a run in runs_dir. MetaugError for a link, and for a folder elsewhere that has a config.json."""
    from metaug_core.runs import store

    folder = store.locate_run(name, runs_dir)
    if folder.resolve().parent != runs_dir or folder.is_symlink():
        raise MetaugError(f"{folder} is not a run in {format_path(runs_dir)}: nothing was removed")
    return folder.resolve()


def confirm_removal(folders: Sequence[Path]) -> None:
    """Ask whether to remove these runs. MetaugError unless the answer is yes."""
    from metaug_core.runs import listing, removal

    for folder in folders:
        click.echo(f"{folder.name}  {listing.read_folder(folder).state}  {removal.measure_size(folder):.1f} MB")
    try:
        agreed = click.confirm(f"remove {'this run' if len(folders) == 1 else f'these {len(folders)} runs'} for good?")
    except click.Abort:  # there is nobody to answer
        agreed = False
    if not agreed:
        raise MetaugError("nothing was removed; --yes removes without asking")
