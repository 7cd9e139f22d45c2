"""The paper's tables of methods with ours beside them, from finished runs of the preset `paper`, and what fills the blanks."""

from collections.abc import Sequence

import pandas as pd

from metaug_core.config import Config
from metaug_core.evaluation.representations import interval
from metaug_core.runs.store import request
from metaug_workbook.results import experiments, paper_values, tables

MEASURE = "probe_paper"


def cell(configs: Sequence[Config], value: float) -> str:
    """`ours / paper` in percent: mean ± 95 % half-width (n) over the finished and evaluated of these runs, `–` for none."""
    runs = [run for run in map(request, configs) if run.finished]
    found = tables.table(runs)[MEASURE].dropna().tolist() if runs else []
    mean, half = interval(found) if found else (float("nan"), float("nan"))
    ours = f"{100 * mean:.2f}" + (f" ±{100 * half:.2f}" if half == half else "") + f" ({len(found)})" if found else "–"
    return f"{ours} / {value:.2f}"


def table(number: int, seeds: int) -> pd.DataFrame:
    """Table 1, 2 or 3 of the paper (top-1): a row for each method, a column for each data set and encoder, each cell `ours / paper`
    over seeds 0 to seeds - 1; empty where the paper has none."""
    rows = paper_values.TABLES[number].query("top == 1")
    texts = []
    for method, dataset, encoder, value in rows[["method", "dataset", "encoder", "accuracy"]].itertuples(index=False):
        shared = {"preset": "paper", "dataset": dataset, "encoder": encoder}
        texts.append(cell(experiments.grid(shared, seeds, method=[method]), value))
    wide = rows.assign(text=texts).pivot(index="method", columns=["dataset", "encoder"], values="text")
    order = list(rows["method"].unique())
    return (
        wide.reindex(index=order, columns=list(dict.fromkeys(wide.columns))).fillna("").rename(index=paper_values.NAMES)
    )


def views_table(seeds: int) -> pd.DataFrame:
    """Table 6 (ImageNet, ResNet-50, top-1), batch size 128: views, method, source (quoted, the paper's reimplementation, its own),
    `ours / paper`."""
    shared = {"preset": "paper", "dataset": "imagenet", "encoder": "resnet50", "batch_size": 128}
    found = []
    for views, method, source, top1 in paper_values.TABLE_6[["views", "method", "source", "top1"]].itertuples(
        index=False
    ):
        configs = experiments.grid(shared | {"views": tuple(views.split(","))}, seeds, method=[method])
        found.append(
            {"views": views, "method": paper_values.name(method), "source": source, "ours / paper": cell(configs, top1)}
        )
    return pd.DataFrame(found).set_index(["views", "method"])


def commands(seeds: int) -> list[str]:
    """What trains and evaluates each column of Tables 1 to 3."""
    columns = pd.concat(paper_values.TABLES.values())[["dataset", "encoder"]].drop_duplicates()
    options = f'-p measure {MEASURE} -p seeds {seeds} -p methods "[]" -p max_hours 10000'
    return [
        f"metaug run 09_benchmarks -p preset paper -p dataset {dataset} -p encoder {encoder} {options}"
        for dataset, encoder in columns.itertuples(index=False)
    ]
