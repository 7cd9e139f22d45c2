"""What the notebooks call, so that a cell stays one line.

Of one run: its parameters checked, the run trained or found, networks, tables. Of many runs: their settings checked, their
table made or read, their figure kept.
"""

import ast
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from IPython.core.getipython import get_ipython
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional

from metaug_core import extensions, methods
from metaug_core.config import Config, ConfigError
from metaug_core.data import datasets
from metaug_core.data.images import spread_rows
from metaug_core.errors import suggestion
from metaug_core.evaluation import confusion, invariances, label_free, representations
from metaug_core.evaluation.probes import MEASURES
from metaug_core.methods import untrained
from metaug_core.runs.environment import environment
from metaug_core.runs.store import Run, request
from metaug_core.training import loop
from metaug_workbook.jobs import estimate, grid, parameters, runner
from metaug_workbook.jobs.estimate import format_duration
from metaug_workbook.plots import gallery, paper_figures
from metaug_workbook.plots.features import bin_similarities, compare_pairs
from metaug_workbook.plots.paper_figures import Table, select_measure
from metaug_workbook.plots.style import use_style
from metaug_workbook.results import claims, experiments, tables
from metaug_workbook.widgets.live import LiveRuns, LiveView
from metaug_workbook.widgets.run_monitor import RunStopped, run_monitor

INJECTED = "# Parameters\n"  # the first line of the cell that papermill injects


# --- parameters
def list_assigned(source: str) -> list[str]:
    """The names that a cell assigns at its top level."""
    names: list[str] = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def read_injected(known: Iterable[str]) -> tuple[Mapping[str, Any], Sequence[str]]:
    """What papermill injected beside this notebook's parameters: `settings`, a dict of any settings of Config, and `imports`, a
    list of the user's Python files. ConfigError for any other name that is not a parameter: papermill takes it without a word.

    Only the last injected cell that ran is read, so other variables, and cells run twice, do no harm.
    """
    shell, names = get_ipython(), list(known)
    cells = [cell for cell in shell.user_ns.get("In", []) if cell.startswith(INJECTED)] if shell else []
    more: dict[str, Any] = {"settings": {}, "imports": []}
    for name in list_assigned(cells[-1]) if cells else ():
        if name in more and name not in names and shell is not None:
            value = shell.user_ns[name]
            if type(value) is not type(more[name]):
                raise ConfigError(f"{name}: needs a value of type {type(more[name]).__name__}, got {value!r}")
            more[name] = value
        elif name not in names:
            raise ConfigError(f"{name!r} is not a parameter of this notebook{suggestion(name, names)}")
    return more["settings"], more["imports"]


def check_own(own: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """ConfigError if a parameter of the notebook's own is not of the type that its parameters cell annotates. settings: of the
    notebook, beside which values of settings are checked."""
    shell = get_ipython()
    annotations = shell.user_ns.get("__annotations__", {}) if shell else {}
    for name, value in own.items():
        parameters.check_value(name, value, parameters.find_type(annotations.get(name, Any)), settings)


def configure(own: Mapping[str, Any] | None = None, /, **settings: Any) -> Config:
    """The Config of a notebook. settings: `preset` and settings of Config, None for the preset's own. own: parameters of the
    notebook that are not settings. Settings that are no parameters come as `read_injected`. Raises ConfigError (one sentence) for
    an unknown name or a wrong value, injected ones too, and PublishError if `publish` is asked for what may not be published.
    """
    own = own or {}
    further, imports = read_injected([*settings, *own])
    for file in imports:
        extensions.load(file)
    for name in further.keys() & settings.keys():
        if settings[name] is not None and settings[name] != further[name]:
            raise ConfigError(
                f"{name} is given twice: {settings[name]!r} in the notebook, {further[name]!r} in `settings`"
            )
    parameters.refuse_varied(further, own)
    config = grid.build_config({**settings, **further})
    check_own(own, {**settings, **further})
    if own.get("publish"):
        gallery.refuse_changes()  # before hours of training, not after
    return config


# --- a run and what belongs to it
def load_images(config: Config) -> datasets.Splits:
    """The images of a run, on the device that it uses."""
    return datasets.load(config, loop.pick_device(config.device))


def train(config: Config, splits: datasets.Splits | None = None) -> Run:
    """The finished run of config: found if there is one, else trained. If another process trains it, this one waits; if that one
    is stopped, this one goes on from its checkpoint.

    An interrupt saves the run; a reader in JupyterLab then sees RunStopped, one sentence. KeyboardInterrupt elsewhere.
    """
    run, view = request(config), LiveView(config)
    try:
        run = runner.wait_while_busy(lambda: loop.fit(config, view, splits), lambda: view.wait(request(config)))
    except KeyboardInterrupt:
        if has_reader():
            raise RunStopped(run.path.name) from None
        raise
    view.finish(run)
    return run


async def train_watched(config: Config, splits: datasets.Splits | None = None) -> Run:
    """As `train`. Where a browser listens, an unfinished run trains in a process of its own, and a `run_monitor` steers it while
    the cell waits. One that needs code of the user's own trains here, since another process does not know it.

    Raises RunStopped where the reader stops the run, MetaugError if it fails.
    """
    run = request(config)
    if not has_reader() or run.finished or config.own_entries():
        return train(config, splits)
    monitor = run_monitor(config, start=True)
    display(monitor)
    await monitor.wait()
    return run


def has_reader() -> bool:
    """Whether the cell that runs was sent by somebody who can answer, as JupyterLab says; papermill, nbconvert and nbval say no."""
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and bool(kernel.get_parent("shell").get("content", {}).get("allow_stdin"))


# `runner.make_table` with its progress in one line of the cell's output.
make_table = partial(runner.make_table, view=LiveRuns)
find_seeds = tables.find_seeds


def load_networks(run: Run, splits: datasets.Splits, trained: bool) -> nn.Module:
    """Encoders and heads of the last kept epoch, or as they were before training, on the device of the images."""
    file = run.encoder_files()[-1] if trained else None
    networks, _ = representations.load_networks(run.config, len(splits.train.classes), file)
    networks = networks.to(splits.train.labels.device)
    if not trained:
        representations.estimate_bn_stats(networks, splits.train, run.config)
    return networks


def sample(images: datasets.Images | datasets.StreamedImages, count: int) -> Any:
    """Up to so many images, evenly spaced (image folders are sorted by class)."""
    return images.take(spread_rows(len(images), count))


def find_neighbours(run: Run, splits: datasets.Splits, queries: int = 6, count: int = 5) -> pd.DataFrame:
    """The nearest training images, by the cosine of h as kNN takes it, of the first test image of each of the first classes.

    queries: how many classes. Rows: panel (before, after: training), query, rank (from 1) and neighbour, as
    `image_grids.draw_neighbours` has them.
    """
    labels = splits.test.labels.tolist()
    first = [labels.index(number) for number in sorted(set(labels))[:queries]]
    asked = splits.test.take(torch.tensor(first, device=splits.test.labels.device))
    found = []
    for panel, trained in (("before", False), ("after", True)):
        networks = load_networks(run, splits, trained)
        h, known = (representations.features(networks, images, run.config) for images in (asked, splits.train))
        cosines = functional.normalize(h, dim=1) @ functional.normalize(known, dim=1).T
        for query, nearest in zip(first, cosines.topk(count, dim=1).indices.tolist(), strict=True):
            ranks = range(1, count + 1)
            found.append(pd.DataFrame({"panel": panel, "query": query, "rank": ranks, "neighbour": nearest}))
    return pd.concat(found, ignore_index=True)


def measure_accuracies(run: Run, splits: datasets.Splits, augmented: bool = False) -> pd.DataFrame:
    """`evaluate` on the test split, on the device of the images. augmented: also z and z~, where the method has a MAG."""
    augmented = augmented and methods.build(run.config).mag() is not None
    return representations.evaluate(run, augmented=augmented, splits=splits, device=str(splits.train.labels.device))


def count_confusions(run: Run, splits: datasets.Splits, measure: str = "probe_plain") -> pd.DataFrame:
    """`confusion.count_confusions` on the test split, from what is stored, or after measuring it."""
    options: dict[str, Any] = {"measures": (measure,), "representations": ("trained",), "predictions": True}
    representations.evaluate(run, splits=splits, device=str(splits.train.labels.device), **options)
    return confusion.count_confusions(run, measure)


def format_percent(table: pd.DataFrame) -> pd.DataFrame:
    """The accuracies of an `evaluate` table in percent, as one shows them."""
    measured = [name for name in MEASURES if name in table]
    return pd.DataFrame(table, columns=measured).rename(columns=tables.LABELS).mul(100).round(1)


def last_value(metrics: pd.DataFrame, column: str) -> float:
    """The last value of a metric, for a sentence about it; nan if the method has none."""
    values = metrics[column].dropna().tolist() if column in metrics else []
    return values[-1] if values else float("nan")


# --- many runs and what belongs to them
# Of a run, what every figure of many runs keeps in its small table.
KEPT = ["method", "dataset", "encoder", "seed", "accuracy", "untrained", "measure", "split", "precision", "device"]


def plan_runs(own: Mapping[str, Any] | None = None, /, **settings: Any) -> dict[str, Any]:
    """The settings that all runs of a notebook share, for `experiments.make_grid`: its parameters and what was injected.
    Checked as `configure` does. Raises ConfigError."""
    configure(own, **settings)
    further, _ = read_injected([*settings, *(own or {})])
    return {**settings, **further}


def collect_accuracies(
    configs: Sequence[Config],
    max_hours: float,
    measure: str = "probe_fast",
    split: str = "test",
    augmented: bool = False,
) -> pd.DataFrame:
    """The table of these runs with `accuracy`, `untrained` and `measure`, after making here what is missing of it.

    The estimated time is printed before anything starts; if it is more than max_hours nothing does, and the table holds what there
    is. split: test, or val (where there is one) for choosing settings. augmented: also with z and z~, where the method has a MAG.
    Raises ConfigError if there are no configs.
    """
    if not configs:
        raise ConfigError("there is no run to make: no method can be trained with these settings")
    options: dict[str, Any] = {"measures": (measure,), "split": split}
    todo = tables.list_missing(configs, representations=("trained",), augmented=augmented, **options)
    runs = len({config.name() for config in configs})  # two panels may share one
    print(f"{runs} runs, {runs - len(todo)} of them there.", end=" " if todo else "\n")
    if todo:
        processes = runner.count_processes(todo)
        seconds = estimate.estimate_seconds([run.config for run in todo], processes)
        at_a_time = f", {processes} at a time" if processes > 1 else ""
        print(f"The other {len(todo)} will take about {format_duration(seconds)} on this machine{at_a_time}.")
        if seconds > 3600 * max_hours:
            print(f"That is more than max_hours = {max_hours:g}: nothing was started. Set max_hours to start it.")
            return share_untrained(select_measure(tables.read_table(configs, split), measure), configs)
    table = make_table(configs, representations=("trained",), augmented=augmented, **options)
    make_table(experiments.select_floors(configs), representations=("untrained",), processes=1, **options)
    failed = table[table["state"] == "failed"]
    failures = dict(zip(failed["run"], failed["failure"], strict=True))
    return share_untrained(select_measure(tables.read_table(configs, split, failures), measure), configs)


def share_untrained(table: Table, configs: Sequence[Config]) -> pd.DataFrame:
    """The untrained accuracy of each distinct encoder in the rows of all runs that start from it; a row is of a config."""
    keys = pd.Series([experiments.identify_floor(config) for config in configs], table.index)
    same = table.groupby(keys)["untrained"]
    return table.assign(untrained=same.transform("first"))


def show_evidence(letters: str, *figures: str) -> None:
    """Show the first of these figures that is committed, with its runs and its command, and what the evidence says of the paper's
    claims of these letters. Nothing is trained."""
    verdicts = [claims.judge(claim) for claim in claims.CLAIMS if claim.letter in letters]
    if verdicts and len(verdicts) <= 2:
        display(Markdown("\n\n".join(map(claims.to_answer, verdicts))))
    shown = next(filter(gallery.is_shown, figures), None)
    if shown is not None:
        display(Image(gallery.FOLDER / f"{shown}.png", width=860))
        display(Markdown(f"{gallery.FIGURES[shown].sentence} {gallery.write_caption(shown)}."))
    elif not verdicts:
        display(Markdown(f"There are no runs of it yet: `{gallery.FIGURES[figures[0]].command}`."))
    if len(verdicts) > 2:
        display(Markdown(claims.to_table(verdicts)))


@use_style()
def draw_figure(
    name: str, table: Table, runs: Table | None, publish: bool = False, columns: Sequence[str] = ()
) -> Figure:
    """The gallery's figure `name` of a table. It is kept with the table and its provenance: in figures/ if publish, else in the
    folder of the runs. columns: what the figure needs of the table beside `KEPT`; none: the whole table. runs: None for a
    measurement of this machine."""
    small = table[[*dict.fromkeys([*columns, *(c for c in KEPT if c in table)])]] if columns else table
    folder = gallery.FOLDER if publish else Config.model_fields["runs_dir"].default / "figures"
    gallery.publish(name, small, describe_this_machine() if runs is None else runs, folder)
    return paper_figures.FIGURES[name].draw(small)


def describe_this_machine() -> pd.DataFrame:
    """Provenance of what was measured here and now, as a row of `tables.read_table`."""
    session = environment(loop.pick_device("auto"))
    machine = {key: session[key] for key in ("device", "commit", "uncommitted_changes")}
    return pd.DataFrame(
        [machine | {"run": f"{session['platform']} {session['processor']}", "state": "finished", "seed": 0}]
    )


def summarise_percent(table: Table, by: Sequence[str]) -> pd.DataFrame:
    """Accuracy in percent by settings, as `38.5 ± 1.2 (n = 3)`, and the mean of the untrained encoder's."""
    rows: Table = tables.summarize(table, by, "accuracy").set_index(list(by))
    texts = [tables.format_estimate(row.mean, row.half_width, row.n) for row in rows.itertuples()]
    untrained = table.groupby(list(by), sort=False, dropna=False)["untrained"].mean()
    return pd.DataFrame({"accuracy": texts, "untrained": (100 * untrained).round(1)}, rows.index)


def tabulate_similarities(requests: tables.Requests, images: int) -> pd.DataFrame:
    """Histograms of Figure 2 of the finished ones of these runs: pairs with an augmented feature, and of original ones.

    Rows as `features.bin_similarities`, with margin, delta, alpha and features (augmented or original); none if no run is finished.
    images: how many of the test split.
    """
    histograms, splits = [], None
    columns = ["pairs", "count", "mean", "left", "density", "features", "margin", "delta", "alpha"]
    for run in map(tables.find_run, requests):
        if not run.finished:
            continue
        config = run.config
        splits = splits or load_images(config)
        networks, mag = representations.prepare_networks(config, splits.train, run.encoder_files()[-1])
        assert mag is not None
        both = representations.embeddings(networks, sample(splits.test, images), config, mag)
        z, augmented = both.chunk(2)
        labels = {"margin": config.margin, "delta": config.delta, "alpha": config.alpha}
        for features, pairs in (("augmented", compare_pairs(z, augmented)), ("original", compare_pairs(z))):
            histograms.append(bin_similarities(*pairs).assign(features=features, **labels))
    return pd.concat(histograms) if histograms else pd.DataFrame(columns=pd.Index(columns))


def tabulate_invariances(runs: Sequence[Run], images: int) -> pd.DataFrame:
    """`invariances.measure_invariances` of each of these runs on so many test images, and of the first one untrained, with a column
    `encoder`: a method, or untrained."""
    splits, measured = load_images(runs[0].config), []
    for run, trained in [(runs[0], False), *((run, True) for run in runs)]:
        file = run.encoder_files()[-1] if trained else None
        networks, mag = representations.prepare_networks(run.config, splits.train, file)
        table = invariances.measure_invariances(networks, sample(splits.test, images), run.config, mag)
        measured.append(table.assign(encoder=run.config.method if trained else "untrained"))
    return pd.concat(measured, ignore_index=True)


def tabulate_augmented(requests: tables.Requests, images: int) -> pd.DataFrame:
    """What each finished one of these runs adds to its features of so many test images (`label_free.compare_augmented`), a row for
    each singular value: run, number (from 1), value, rank (RankMe of z~ - z), rank_z (of z) and similarity (d(z, z~)). All views
    are taken together. Runs without z~ have no rows."""
    splits, rows = None, []
    for run in map(tables.find_run, requests):
        method = methods.build(run.config)
        if not run.finished or not method.description.augmented_by:
            continue
        splits = splits or load_images(run.config)
        networks, mag = representations.prepare_networks(run.config, splits.train, run.encoder_files()[-1])
        z = representations.embeddings(networks, sample(splits.test, images), run.config)
        augmented = untrained.augment_features(method, z, mag)
        values, rank, similarity = label_free.compare_augmented(z.flatten(0, 1), augmented.flatten(0, 1))
        shared = {"rank": rank, "rank_z": label_free.rankme(z.flatten(0, 1)), "similarity": similarity}
        rows += [
            {"run": run.path.name, "number": number, "value": value, **shared}
            for number, value in enumerate(values.tolist(), 1)
        ]
    return pd.DataFrame(rows, columns=pd.Index(["run", "number", "value", "rank", "rank_z", "similarity"]))


def judge_deltas(table: Table) -> pd.DataFrame:
    """The stored table of `paper_figures.draw_delta_question` as paired differences from MetAug (only OUCL), in points, with a
    verdict: higher or lower where the 95 % interval excludes zero, else open. No rows if no pair is finished."""
    differences: Table = paper_figures.compare_to(table, "weight", paper_figures.REFERENCE).set_index("weight")
    clear = differences["mean"].abs() > differences["half_width"]
    shown = pd.DataFrame(
        {
            "minus only OUCL": [
                tables.format_estimate(row.mean, row.half_width, row.n, places=2, sign="+")
                for row in differences.itertuples()
            ],
            "verdict": differences["mean"].gt(0).map({True: "higher", False: "lower"}).where(clear, "open"),
            "share of the gradient": table.groupby("weight")["augmented_gradient_share"]
            .mean()
            .reindex(differences.index),
        }
    )
    shown.index = pd.Index(["control" if w == paper_figures.CONTROL else f"{w:g}" for w in shown.index], name="delta")
    return tables.format_table(shown, digits=2)
