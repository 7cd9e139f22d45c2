"""The command of `metaug` that compares two runs. Slow imports wait until they are needed."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import click

from metaug_workbook.cli.options import MEASURES, complete_run, format_table, takes_imports, takes_runs_dir

# Numbers of training beside the accuracies: how the table calls them, and how many decimals they have.
OF_TRAINING = {"effective_rank": ("effective rank of the features", 1), "seconds": ("seconds of training", 1)}


@click.command()
@click.argument("a", shell_complete=complete_run)
@click.argument("b", shell_complete=complete_run)
@takes_imports(expose=False)
@takes_runs_dir
def compare(a: str, b: str, runs_dir: Path) -> None:
    """Compare two runs: their settings and final numbers.

    A and B are names of runs, beginnings of names, or folders. Finished runs that differ from A or B only in the seed are taken
    with it. Each number is then a mean over seeds with its 95 % t-interval, and the difference is that of runs with the same seed.
    """
    from metaug_core.runs import store
    from metaug_workbook.results import tables

    pair = [store.open_run(name, runs_dir) for name in (a, b)]
    groups = [tables.find_seeds(run) for run in pair]
    if pair[1].path.resolve() in {run.path.resolve() for run in groups[0]}:  # the seed is all that differs
        groups = [[run] for run in pair]
    for side, run, group in zip("AB", pair, groups, strict=True):
        seeds = f"seeds {', '.join(str(one.config.seed) for one in group)}" if len(group) > 1 else ""
        click.echo("  ".join(filter(None, (side, run.path.name, seeds, "" if run.finished else "not finished"))))
    settings = list_settings(pair, with_seed=max(map(len, groups)) == 1)
    click.echo("\n" + (format_table([("setting", "A", "B"), *settings]) if settings else "no setting differs"))
    table = tables.read_table([run for group in groups for run in group])
    table["side"] = [side for side, group in zip("AB", groups, strict=True) for _ in group]
    if numbers := list_numbers(table):
        click.echo("\n" + format_table([("final number", "A", "B", "B - A"), *numbers]))
        click.echo("\nmean ± half of the 95 % t-interval over n seeds; B - A: over the seeds that both have")
    else:
        click.echo("\nno finished run, so there are no final numbers")


def list_settings(pair: Sequence[Any], with_seed: bool) -> list[tuple[str, str, str]]:
    """The settings in which two runs differ and that at least one of them uses: name, value in each, `-` where it is not used."""
    from metaug_core.runs import listing

    listed = [listing.read_folder(run.path) for run in pair]
    rows = []
    for name in chain(*listing.list_differing(listed)):
        used = [not run.config.idle(name) for run in pair]
        if any(used) and (with_seed or name != "seed"):
            values = [listing.format_setting(name, one.settings.get(name)) for one in listed]
            rows.append((name, *(value if use else "-" for value, use in zip(values, used, strict=True))))
    return rows


def list_numbers(table: Any) -> list[tuple[str, ...]]:
    """What was measured of the runs of either side: name, A, B, B - A, as texts."""
    from metaug_core.evaluation.representations import interval
    from metaug_workbook.results import tables

    columns = {f"{prefix}{measure}": (f"{features}, {title} (%)", 1, 100)
               for features, prefix in tables.PREFIX.items() for measure, title in MEASURES.items()}  # fmt: skip
    columns |= {name: (title, places, 1) for name, (title, places) in OF_TRAINING.items()}
    rows = []
    for column, (title, places, scale) in columns.items():
        if column not in table or table[column].isna().all():
            continue
        texts = []
        for side in "AB":
            values = table[column][table["side"] == side].dropna().tolist()
            texts.append(tables.format_estimate(*interval(values), len(values), scale, places))
        paired = [] if texts[0] == "-" else tables.compare_paired(table, "side", "A", column).to_dict("records")
        for row in paired:
            texts.append(tables.format_estimate(row["mean"], row["half_width"], row["n"], scale, places, sign="+"))
        rows.append((title, *texts, *([] if paired else ["-"])))
    return rows
