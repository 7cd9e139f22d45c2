"""How long runs will train, from finished runs of the same shape in the same store: measured, or said to be unknown."""

from collections.abc import Sequence
from typing import Any

from metaug_core.runs import store
from metaug_core.runs.store import Run
from metaug_core.training import loop
from metaug_workbook.results import tables

# On these the time of an epoch depends; runs that differ otherwise (seed, rates, weights) cost the same.
SHAPE = (
    *loop.SHARED, "method", "encoder", "stem", "views", "independent", "width", "feature_dim", "head", "mag_hidden", "batch_size",
    "negatives", "bank_negatives", "bank_draw", "schedule", "look_ahead", "look_ahead_update", "look_ahead_batch", "mag_gradient",
    "meta", "augmented_sets", "precision", "randaugment",
)  # fmt: skip


def shape(run: Run) -> tuple[Any, ...]:
    return tuple(getattr(run.config, name) for name in SHAPE)


def epoch_seconds(runs_dir: Any, device: str) -> dict[tuple[Any, ...], float]:
    """Seconds an epoch by shape: the mean over the finished runs there that were trained on this kind of device."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for run in (run for run in store.list_runs(runs_dir) if run.finished):
        measured = tables.read_machine(run)
        if measured["device"] == device and measured["seconds"] > 0:
            found.setdefault(shape(run), []).append(measured["seconds"] / run.config.epochs)
    return {key: sum(values) / len(values) for key, values in found.items()}


def said(runs: Sequence[Run]) -> str:
    """What training these runs costs, one after another, in a sentence."""
    if not runs:
        return "nothing is missing"
    by_shape = epoch_seconds(runs[0].config.runs_dir, loop.pick_device(runs[0].config.device))
    known = [by_shape[shape(run)] * run.config.epochs for run in runs if shape(run) in by_shape]
    unknown = len(runs) - len(known)
    text = f"{len(runs)} cells are missing"
    if known:
        text += f"; training takes about {sum(known) / 60:.1f} min for {len(known)} of them, one after another"
    if unknown:
        text += f"; {unknown} have no finished run of their shape here to tell by"
    return text + " (the notebook's figures and the evaluation come on top)"
