"""Commands of `metaug` that use what a run has learned: its features, its encoder as files, and how good it is. Slow imports wait
until they are needed."""

from pathlib import Path
from typing import Any

import click

from metaug_workbook.cli.options import format_path, say, takes_imports, takes_run, takes_runs_dir, takes_settings

FILE = click.Path(path_type=Path)
NAMES = {  # of measures in `evaluate`
    "probe_fast": "linear probe",
    "knn": "kNN",
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
@takes_imports(expose=False)
@takes_runs_dir
def evaluate(name: str, given: dict[str, str], csv: Path | None, runs_dir: Path) -> None:
    """Measure the encoder of a run.

    On the run's own data set, or on another: `-p dataset cifar10`. Linear probe and kNN, also with 1 and 10 % of the labels, and
    what needs no labels: RankMe, LiDAR, alpha-ReQ, uniformity and alignment. On its own data set the accuracies are stored with the
    run.
    """
    from metaug_core.evaluation import representations, transfer
    from metaug_core.runs import store
    from metaug_core.runs.files import write
    from metaug_workbook.cli.runs import format_accuracies
    from metaug_workbook.jobs.grid import parse_setting

    run = store.open_run(name, runs_dir)
    images = transfer.choose_images(run, **{key: parse_setting(key, text) for key, text in given.items()})
    if not given:
        representations.evaluate(run)
        click.echo(format_accuracies(run) + "\n")
    table = transfer.transfer(run, images, (0.01, 0.1, 1.0) if given else (0.01, 0.1))
    if csv is not None:
        write(csv, table.to_csv(index=False).encode())
        say(f"written: {format_path(csv)}")
    click.echo(format_transfer(table))


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
