"""What the notebooks of many runs call: their plan checked, its runs made or read, their figure kept."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from metaug_core.config import Config, ConfigError
from metaug_core.evaluation import representations
from metaug_core.runtime.environment import environment
from metaug_core.training import loop
from metaug_workbook.jobs import making
from metaug_workbook.notebook import configure, injected, load, made, sample
from metaug_workbook.plots import gallery, paper_gallery
from metaug_workbook.plots.paper_figures import Table, measured
from metaug_workbook.plots.training import binned, pair_similarities
from metaug_workbook.results import experiments, tables
from metaug_workbook.widgets.live_view import clock

# Of a run, what every figure of many runs keeps in its small table.
KEPT = ["method", "dataset", "encoder", "seed", "accuracy", "untrained", "measure", "split", "precision", "device"]


def plan(own: Mapping[str, Any] | None = None, /, **settings: Any) -> dict[str, Any]:
    """The settings that all runs of a notebook share, for `experiments.grid`: its parameters, and what was injected beside them.
    Checked as `configure` does. Raises ConfigError."""
    configure(own, **settings)
    further, _ = injected([*settings, *(own or {})])
    if "seed" in further:
        raise ConfigError("seed: this notebook has many runs; its parameter `seeds` says how many, from seed 0 on")
    return {**settings, **further}


def collected(
    configs: Sequence[Config],
    max_hours: float,
    measure: str = "probe_fast",
    split: str = "test",
    augmented: bool = False,
) -> pd.DataFrame:
    """The table of these runs with `accuracy`, `untrained` and `measure`, after making here what is missing of it.

    The estimated time is printed before anything starts; if it is more than max_hours nothing does, and the table holds what there
    is. split: test, or val (where there is one) for choosing settings. augmented: also with z and z~, where the method has a MAG.
    """
    options: dict[str, Any] = {"measures": (measure,), "split": split}
    todo = tables.missing(configs, representations=("trained",), augmented=augmented, **options)
    runs = len({config.name() for config in configs})  # two panels may share one
    print(f"{runs} runs, {runs - len(todo)} of them there.", end=" " if todo else "\n")
    if todo:
        processes = making.processes_for(todo)
        with making.shared_threads(processes):
            seconds = experiments.seconds([run.config for run in todo]) / processes
        at_a_time = f", {processes} at a time" if processes > 1 else ""
        print(f"The other {len(todo)} will take about {clock(seconds)} on this machine{at_a_time}.")
        if seconds > 3600 * max_hours:
            print(f"That is more than max_hours = {max_hours:g}: nothing was started. Set max_hours to start it.")
            return floored(measured(tables.table(configs, split), measure), configs)
    found = made(configs, representations=("trained",), augmented=augmented, **options)
    made(experiments.floors(configs), representations=("untrained",), processes=1, **options)
    failed = found[found["state"] == "failed"]
    failures = dict(zip(failed["run"], failed["failure"], strict=True))
    return floored(measured(tables.table(configs, split, failures), measure), configs)


def floored(table: Table, configs: Sequence[Config]) -> pd.DataFrame:
    """The untrained accuracy of each distinct encoder in the rows of all runs that start from it; a row is of a config."""
    keys = pd.Series([experiments.floor_key(config) for config in configs], table.index)
    same = table.groupby(keys)["untrained"]
    return table.assign(untrained=same.transform("first"))


def drawn(name: str, table: Table, runs: Table | None, publish: bool, columns: Sequence[str] = ()) -> Figure:
    """The gallery's figure `name` of a table. It is kept with the table and its provenance: in figures/ if publish, else in the
    folder of the runs. columns: what the figure needs of the table beside `KEPT`; none: the whole table. runs: None for a
    measurement of this machine."""
    small = table[[*dict.fromkeys([*columns, *(c for c in KEPT if c in table)])]] if columns else table
    folder = gallery.FOLDER if publish else Config.model_fields["runs_dir"].default / "figures"
    gallery.publish(name, small, here() if runs is None else runs, folder)
    return paper_gallery.FIGURES[name].draw(small)


def here() -> pd.DataFrame:
    """Provenance of what was measured here and now, as a row of `results.table`."""
    found = environment(loop.pick_device("auto"))
    machine = {key: found[key] for key in ("device", "commit", "uncommitted_changes")}
    return pd.DataFrame(
        [machine | {"run": f"{found['platform']} {found['processor']}", "state": "finished", "seed": 0}]
    )


def percent(table: Table, by: Sequence[str]) -> pd.DataFrame:
    """Mean accuracy in percent, 95 % half-width, the untrained encoder's and n, by settings."""
    grouped = table.groupby(list(by), sort=False, dropna=False)
    found: Table = tables.summary(table, by, "accuracy").set_index(list(by))
    found = pd.DataFrame({"accuracy": 100 * found["mean"], "±": 100 * found["half_width"], "n": found["n"]})
    return found.assign(untrained=100 * grouped["untrained"].mean()).round(1)


def similarity_table(requests: tables.Requests, images: int) -> pd.DataFrame:
    """Histograms of Figure 2 of the finished ones of these runs: pairs with an augmented feature, and of original ones.

    Rows as `figures.binned`, with margin, delta, alpha and features (augmented or original). images: how many of the test split.
    """
    found, splits = [], None
    for run in map(tables.run_of, requests):
        if not run.finished:
            continue
        config = run.config
        splits = splits or load(config)
        networks, mag = representations.load_networks(config, len(splits.train.classes), run.encoder_files()[-1])
        device = splits.train.labels.device
        assert mag is not None
        networks, mag = networks.to(device), mag.to(device)
        representations.estimate_mag_bn_stats(networks, mag, splits.train, config)
        both = representations.embeddings(networks, sample(splits.test, images), config, mag)
        z, augmented = both.chunk(2)
        labels = {"margin": config.margin, "delta": config.delta, "alpha": config.alpha}
        for features, pairs in (("augmented", pair_similarities(z, augmented)), ("original", pair_similarities(z))):
            found.append(binned(*pairs).assign(features=features, **labels))
    return pd.concat(found) if found else pd.DataFrame()


def verdicts(table: Table) -> pd.DataFrame:
    """The stored table of `paper_gallery.delta_question` as paired differences from MetAug (only OUCL), in points, with a verdict:
    higher or lower where the 95 % interval excludes zero, else open."""
    found: Table = tables.paired(table, "weight", paper_gallery.REFERENCE, "accuracy").set_index("weight")
    found = found[["mean", "half_width"]].mul(100).assign(n=found["n"])
    clear = found["mean"].abs() > found["half_width"]
    verdict = found["mean"].gt(0).map({True: "higher", False: "lower"}).where(clear, "open")
    share = table.groupby("weight")["augmented_gradient_share"].mean()
    found = found.round(2).assign(verdict=verdict, share=share.map("{:.1e}".format))
    found.index = pd.Index(["control" if w == paper_gallery.CONTROL else f"{w:g}" for w in found.index], name="delta")
    return found.rename(columns={"half_width": "±"})
