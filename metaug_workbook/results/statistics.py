"""Tidy tables of results, one row a run: what they say over seeds, and their way to the disk and back."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd

from metaug_core.errors import MetaugError, suggestion
from metaug_core.evaluation.representations import interval
from metaug_core.runs import store
from metaug_core.runs.store import StoreError


def summary(table: pd.DataFrame, by: str | Sequence[str], measure: str) -> pd.DataFrame:
    """Mean of a measure and the half-width of its 95 % t-interval over the rows that share `by`: by, mean, half_width, n.

    Rows without the measure (missing, failed) do not count. half_width is NaN for n = 1. MetaugError for an unknown column.
    """
    by = [by] if isinstance(by, str) else list(by)
    known(table, [*by, measure])
    found = []
    for key, rows in table.groupby(by, sort=False, dropna=False):
        kept = rows[measure].dropna().tolist()
        found.append((*cast(tuple, key), *interval(kept), len(kept)))
    return pd.DataFrame(found, columns=pd.Index([*by, "mean", "half_width", "n"]))


def paired(
    table: pd.DataFrame, by: str, reference: Any, measure: str, shared: Sequence[str] = ("seed",)
) -> pd.DataFrame:
    """Differences of a measure from the rows where `by` is reference, over the seeds that both have: by, mean, half_width, n.

    The mean of the differences with its 95 % t-interval, which chance that the seeds share does not widen. shared: the columns that
    must agree in a pair. MetaugError for an unknown column or reference, and for two rows where there should be one.
    """
    known(table, [by, measure, *shared])
    values: dict[Any, dict[Any, float]] = {}  # value of by -> what pairs share -> measure
    for row in table.dropna(subset=[measure]).to_dict("records"):
        pair = tuple(row[name] for name in shared)
        if pair in values.setdefault(row[by], {}):
            raise MetaugError(f"paired: two rows with {by} = {row[by]} and {', '.join(shared)} = {pair}; select first")
        values[row[by]][pair] = row[measure]
    if reference not in values:
        raise MetaugError(f"paired: no row has {by} = {reference!r} and a {measure}")
    found = []
    for value in (value for value in values if value != reference):
        common = [pair for pair in values[reference] if pair in values[value]]
        differences = [values[value][pair] - values[reference][pair] for pair in common]
        found.append((value, *interval(differences), len(differences)))
    return pd.DataFrame(found, columns=pd.Index([by, "mean", "half_width", "n"]))


def known(table: pd.DataFrame, columns: Iterable[str]) -> None:
    for name in columns:
        if name not in table:
            raise MetaugError(f"the table has no column {name!r}{suggestion(name, table.columns)}")


def save(table: pd.DataFrame, path: Path) -> None:
    """Write path.parquet and path.csv, each whole or not at all. Raises StoreError (full disk, no permission)."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    store.write(path.with_name(f"{path.name}.parquet"), buffer.getvalue())
    store.write(path.with_name(f"{path.name}.csv"), table.to_csv(index=False).encode())


def load(path: Path) -> pd.DataFrame:
    """What `save` wrote: path.parquet, or path.csv if only that is there. Raises StoreError."""
    for kind, read in (("parquet", pd.read_parquet), ("csv", pd.read_csv)):
        file = path.with_name(f"{path.name}.{kind}")
        if file.exists():
            try:
                return read(file)
            except (OSError, ValueError) as error:
                raise StoreError(f"cannot read {file}: {error}") from None
    raise StoreError(f"there is no table {path}.parquet or {path}.csv")
