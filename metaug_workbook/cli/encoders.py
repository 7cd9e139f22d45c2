"""Commands of `metaug` that use what a run has learned: its features, its encoder as files, and how good it is. Slow imports wait
until they are needed."""

import json
from pathlib import Path
from typing import Any

import click

from metaug_workbook.cli.options import (
    MEASURES,
    format_path,
    format_table,
    say,
    takes_imports,
    takes_run,
    takes_runs_dir,
    takes_settings,
)

FILE = click.Path(path_type=Path)
WORST = 20  # classes in the table of `evaluate --classes`
NAMES = {  # of measures in `evaluate`
    "probe_fast": "linear probe",
    "knn": "kNN",
    "probe_fast_top5": "linear probe, top-5",
    "knn_top5": "kNN, top-5",
    "rankme": "RankMe",
    "lidar": "LiDAR",
    "alpha_req": "alpha-ReQ",
    "uniformity": "uniformity",
    "alignment": "alignment",
}


@click.command()
@takes_run()
@click.argument("images", type=FILE)
@click.argument("out", type=FILE)
@takes_imports(expose=False)
@takes_runs_dir
def features(name: str, images: Path, out: Path, runs_dir: Path) -> None:
    """Write the features of your images.

    The encoder of RUN maps IMAGES to OUT, an .npz file with names, features, labels and classes. IMAGES is a folder, with a folder
    for each class or without, or an .npy or .npz file with uint8 images.
    """
    from metaug_core.evaluation import own_images
    from metaug_core.runs import store

    count, dim = own_images.write_features(store.open_run(name, runs_dir), images, out)
    click.echo(f"{count} x {dim} features: {format_path(out)}")


@click.command()
@takes_run()
@click.argument("out", type=FILE)
@takes_imports(expose=False)
@takes_runs_dir
def export(name: str, out: Path, runs_dir: Path) -> None:
    """Write the encoder of a run for use elsewhere.

    OUT (encoder.pt2) is a program that torch loads without this package. Beside it come an ONNX file, the weights of each view's
    network, and a model card.
    """
    from metaug_core.evaluation import export
    from metaug_core.runs import store

    for file, what in export.export(store.open_run(name, runs_dir), out).items():
        click.echo(f"{format_path(file)}: {what}")


@click.command()
@takes_run()
@takes_settings("-p", "A setting of other images: dataset, data_dir, train_images, ...")
@click.option("--csv", type=FILE, help="Also write the numbers into this table, a row each.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; accuracies are in [0, 1].")
@click.option("--classes", is_flag=True, help="Also the accuracy of each class, and which class is taken for which.")
@click.option(
    "--probe-seeds", type=click.IntRange(2), help="Also how much the linear probe varies over so many seeds of its own."
)
@takes_imports(expose=False)
@takes_runs_dir
def evaluate(
    name: str,
    given: dict[str, str],
    csv: Path | None,
    as_json: bool,
    classes: bool,
    probe_seeds: int | None,
    runs_dir: Path,
) -> None:
    """Measure the encoder of a run.

    On the run's own data set, or on another: `-p dataset cifar10`. Linear probe and kNN, also with 1 and 10 % of the labels, and
    what needs no labels: RankMe, LiDAR, alpha-ReQ, uniformity and alignment. On its own data set the accuracies are stored with the
    run, and --classes and --probe-seeds say more of the linear probe on plain images.
    """
    from metaug_core.errors import MetaugError
    from metaug_core.evaluation import representations, sensitivity, transfer
    from metaug_core.runs import store
    from metaug_core.runs.files import write
    from metaug_workbook.jobs.grid import parse_setting
    from metaug_workbook.results import spread

    run = store.open_run(name, runs_dir)
    images = transfer.choose_images(run, **{key: parse_setting(key, text) for key, text in given.items()})
    if given and (classes or probe_seeds):
        raise MetaugError("--classes and --probe-seeds are of the run's own images: leave -p away")
    results: dict[str, Any] = {"run": run.path.name}
    texts = []
    if not given:
        representations.evaluate(run, predictions=classes)
        results["evaluation"] = run.evaluation()
        texts.append(format_evaluation(run))
    if classes:
        results["classes"], text = describe_classes(run, draw=not as_json)
        texts.append(text)
    if probe_seeds:
        by_seed = sensitivity.measure_probe_seeds(run, probe_seeds)
        table = spread.tabulate_spread(run, by_seed)
        results |= {"probe_seeds": list_rows(by_seed), "spread": list_rows(table.reset_index())}
        texts.append(format_spread(table))
    table = transfer.transfer(run, images, (0.01, 0.1, 1.0) if given else (0.01, 0.1))
    if csv is not None:
        write(csv, table.to_csv(index=False).encode())
        say(f"written: {format_path(csv)}")
    results["transfer"] = list_rows(table)
    click.echo(json.dumps(results, indent=1) if as_json else "\n\n".join([*texts, format_transfer(table)]))


def list_rows(table: Any) -> list[dict[str, Any]]:
    """The rows of a table for JSON; NaN is null."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def format_evaluation(run: Any) -> str:
    """The stored accuracies as text, and why there is no top-5 where there is none."""
    from metaug_core.runs import data
    from metaug_core.runs.files import read_json
    from metaug_core.runs.predictions import TOP5_CLASSES, name_top5
    from metaug_workbook.cli.runs import format_accuracies

    text, file = format_accuracies(run), run.path / data.FILE
    count = read_json(file, dict).get("classes") if file.exists() else None
    if isinstance(count, int) and count < TOP5_CLASSES:
        return f"{text}\ntop-5 needs at least {TOP5_CLASSES} classes, and here are {count}"
    if not any(name_top5(measure) in run.evaluation().get("trained", {}) for measure in MEASURES):
        return f"{text}\nno top-5: an older version evaluated this run; --classes measures it"
    return text


def describe_classes(run: Any, draw: bool) -> tuple[dict[str, Any], str]:
    """For JSON and as text: accuracy by class, the worst first, and confusions of the linear probe on plain images. draw: also
    write the figure of them into the run's folder."""
    from metaug_core.evaluation import confusion

    counts = confusion.count_confusions(run)
    table: Any = confusion.tabulate_classes(counts)
    rows = [
        (str(row.Index), f"{row.n:,}", f"{100 * row.accuracy:.1f}", f"{100 * row.low:.1f} to {100 * row.high:.1f}",
         f"{row.taken_for} {100 * row.share:.1f}" if row.share else "-")
        for row in table.head(WORST).itertuples()
    ]  # fmt: skip
    lines = [format_table([("class", "images", "probe (plain) %", "95 %", "most taken for"), *rows])]
    if len(table) > WORST:
        lines.append(f"and {len(table) - WORST} classes above them: see --json")
    lines.append(confusion.describe_confusions(counts))
    if draw:
        from metaug_workbook.plots.confusion import draw_confusions
        from metaug_workbook.plots.style import save_figure

        save_figure(draw_confusions(counts, run.config.method), run.path / "figures" / "confusions")
        lines.append(f"figure: {format_path(run.path / 'figures' / 'confusions.png')}")
    matrix = {"classes": [*counts.index], "counts": counts.to_numpy().tolist()}
    return {"accuracies": list_rows(table.reset_index()), "confusions": matrix}, "\n".join(lines)


def format_spread(table: Any) -> str:
    """The table of `tabulate_spread` as text."""
    rows = [
        (source, "-" if row.deviation != row.deviation else f"{row.deviation:.2f}",
         "-" if row.low != row.low else f"{row.low:.2f} to {row.high:.2f}", str(row.n))
        for source, row in zip(table.index, table.itertuples(), strict=True)
    ]  # fmt: skip
    return format_table([("probe (plain) varies by", "points (SD)", "95 %", "n"), *rows])


def format_transfer(table: Any) -> str:
    """The table of `transfer` as text: a line for each measure, a column for each representation."""
    from metaug_core.evaluation.label_free import BETTER

    def cell(row: Any) -> str:
        if not row.labels:
            return f"{row.mean:.3g}"
        return f"{100 * row.mean:.1f}" + (f" ± {100 * row.half_width:.1f}" if row.n > 1 else "")

    representations = list(dict.fromkeys(table.representation))
    lines = []
    for (labels, measure), rows in table.groupby(["labels", "measure"], sort=False):
        if not lines or bool(labels) != bool(lines[-1][0]):
            head = f"test accuracy (%), {table.dataset[0]}" if labels else "without labels"
            lines.append((labels, f"{head:<34}" + "".join(f"{name:>14}" for name in representations)))
        said = f"{NAMES[measure]}, {labels} labels" if labels else f"{NAMES[measure]} ({BETTER[measure]} is better)"
        cells = {row.representation: cell(row) for row in rows.itertuples()}
        lines.append((labels, f"{said:<34}" + "".join(f"{cells[name]:>14}" for name in representations)))
    repeated = table[table.n > 1]
    note = f"\n± is the 95 % interval over {repeated.n.iloc[0]} draws of the labels" if len(repeated) else ""
    return "\n".join(line for _, line in lines) + note
