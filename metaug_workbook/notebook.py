"""What the notebooks call, so that a cell stays one line: their parameters checked, the run trained or found, networks, tables."""

import ast
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from IPython.core.getipython import get_ipython
from pydantic import TypeAdapter, ValidationError
from torch import nn

from metaug_core import extensions, methods
from metaug_core.config import Config, ConfigError
from metaug_core.data import datasets
from metaug_core.errors import suggestion
from metaug_core.evaluation import representations
from metaug_core.runs.store import Run, list_runs, request
from metaug_core.training import loop
from metaug_workbook.jobs import making
from metaug_workbook.jobs.grid import build as build
from metaug_workbook.plots import gallery
from metaug_workbook.widgets.live_view import LiveRuns, live

INJECTED = "# Parameters\n"  # the first line of the cell that papermill injects


# --- parameters
def assigned(source: str) -> list[str]:
    """The names that a cell assigns at its top level."""
    found: list[str] = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [target.id for target in targets if isinstance(target, ast.Name)]
    return found


def injected(known: Iterable[str]) -> tuple[Mapping[str, Any], Sequence[str]]:
    """What papermill injected beside this notebook's parameters: `settings`, a dict of any settings of Config, and `imports`, a
    list of the user's Python files. ConfigError for any other name that is not a parameter: papermill takes it without a word.

    Only the last injected cell that ran is read, so other variables, and cells run twice, do no harm.
    """
    shell, names = get_ipython(), list(known)
    cells = [cell for cell in shell.user_ns.get("In", []) if cell.startswith(INJECTED)] if shell else []
    more: dict[str, Any] = {"settings": {}, "imports": []}
    for name in assigned(cells[-1]) if cells else ():
        if name in more and name not in names and shell is not None:
            value = shell.user_ns[name]
            if type(value) is not type(more[name]):
                raise ConfigError(f"{name}: needs a value of type {type(more[name]).__name__}, got {value!r}")
            more[name] = value
        elif name not in names:
            raise ConfigError(f"{name!r} is not a parameter of this notebook{suggestion(name, names)}")
    return more["settings"], more["imports"]


def check_own(own: Mapping[str, Any]) -> None:
    """ConfigError if a parameter of the notebook's own is not of the type that its parameters cell annotates."""
    shell = get_ipython()
    kinds = shell.user_ns.get("__annotations__", {}) if shell else {}
    for name, value in own.items():
        try:
            TypeAdapter(kinds.get(name, Any)).validate_python(value, strict=True)
        except ValidationError:
            kind = getattr(kinds[name], "__name__", kinds[name])
            raise ConfigError(f"{name}: needs a value of type {kind}, got {value!r}") from None


def configure(own: Mapping[str, Any] | None = None, /, **settings: Any) -> Config:
    """The Config of a notebook. settings: `preset` and settings of Config, None for the preset's own. own: parameters of the
    notebook that are not settings. Settings that are no parameters come as `injected`. Raises ConfigError (one sentence) for an
    unknown name or a wrong value, injected ones too, and PublishError if `publish` is asked for what may not be published.
    """
    own = own or {}
    further, imports = injected([*settings, *own])
    check_own(own)
    if own.get("publish"):
        gallery.refuse_changes()  # before hours of training, not after
    for file in imports:
        extensions.load(file)
    return build({**settings, **further})


# --- a run and what belongs to it
def load(config: Config) -> datasets.Splits:
    """The images of a run, on the device that it uses."""
    return datasets.load(config, loop.pick_device(config.device))


def trained(config: Config, splits: datasets.Splits | None = None) -> Run:
    """The finished run of config: found if there is one, else trained here in a live view. If another process trains it, this
    one waits; if that one is stopped, this one goes on from its checkpoint."""
    view = live(config)
    run = making.when_free(lambda: loop.fit(config, view, splits), lambda: view.wait(request(config)))
    view.finish(run)
    return run


# `making.made` with its progress in one line of the cell's output.
made = partial(making.made, view=LiveRuns)


def networks(run: Run, splits: datasets.Splits, trained: bool) -> nn.Module:
    """Encoders and heads of the last kept epoch, or as they were before training, on the device of the images."""
    file = run.encoder_files()[-1] if trained else None
    found, _ = representations.load_networks(run.config, len(splits.train.classes), file)
    found = found.to(splits.train.labels.device)
    if not trained:
        representations.settle_statistics(found, splits.train, run.config)
    return found


def sample(images: datasets.Images | datasets.StreamedImages, count: int) -> Any:
    """Up to so many images, evenly spaced (image folders are sorted by class)."""
    return images.take(torch.linspace(0, len(images) - 1, min(count, len(images))).long())


def accuracies(run: Run, splits: datasets.Splits, augmented: bool = False) -> pd.DataFrame:
    """`evaluate` on the test split, on the device of the images. augmented: also z and z~, where the method has a MAG."""
    augmented = augmented and methods.build(run.config).mag() is not None
    return representations.evaluate(run, augmented=augmented, splits=splits, device=str(splits.train.labels.device))


def seeds(run: Run) -> list[Run]:
    """This run and the finished ones beside it that differ from it by their seed only."""
    wanted = run.config.identity() | {"seed": None}
    found = [other for other in list_runs(run.config.runs_dir) if other.finished and other.current]
    return [other for other in found if other.config.identity() | {"seed": None} == wanted]


def percent(table: pd.DataFrame) -> pd.DataFrame:
    """The accuracies of an `evaluate` table in percent, as one shows them."""
    names = {"probe_paper": "linear probe (paper)", "probe_fast": "linear probe (fast)", "knn": "kNN"}
    return pd.DataFrame(table, columns=list(names)).set_axis(list(names.values()), axis=1).mul(100).round(1)


def last(metrics: pd.DataFrame, column: str) -> float:
    """The last value of a metric, for a sentence about it; nan if the method has none."""
    values = metrics[column].dropna().tolist() if column in metrics else []
    return values[-1] if values else float("nan")
