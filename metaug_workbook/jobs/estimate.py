"""How long runs will take on this machine, before any of them starts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from metaug_core.config import Config
from metaug_core.errors import MetaugError
from metaug_core.hardware import use_threads
from metaug_core.runs import store
from metaug_core.training import loop
from metaug_workbook.results import experiments, tables

# The time of an epoch depends on these; runs that differ otherwise (seed, rates, weights) cost the same.
SHAPE = (
    *loop.SHARED, "method", "encoder", "stem", "views", "independent", "width", "feature_dim", "head", "mag_hidden", "batch_size",
    "negatives", "bank_negatives", "bank_draw", "schedule", "look_ahead", "look_ahead_update", "look_ahead_batch", "mag_gradient",
    "meta", "augmented_sets", "precision", "randaugment",
)  # fmt: skip


def shape_of(config: Config) -> tuple[Any, ...]:
    return tuple(getattr(config, name) for name in SHAPE)


def measured_epochs(runs_dir: Path, device: str) -> dict[tuple[Any, ...], float]:
    """Seconds an epoch by shape: the mean over the finished runs in runs_dir that were trained on this kind of device."""
    seconds: dict[tuple[Any, ...], list[float]] = {}
    for run in (run for run in store.list_runs(runs_dir) if run.finished):
        try:
            measured = tables.read_machine(run)
        except MetaugError:  # a damaged run says so where it is asked for
            continue
        if measured["device"] == device and measured["seconds"] > 0:
            seconds.setdefault(shape_of(run.config), []).append(measured["seconds"] / run.config.epochs)
    return {shape: sum(values) / len(values) for shape, values in seconds.items()}


def estimate_seconds(configs: Sequence[Config], processes: int = 1) -> float:
    """About how long these runs will take here, so many at a time.

    By finished runs of the same shape in the same store; where there is none, by some steps on random images (within a factor of
    two on a busy machine). Reading the data and the probes are not counted, nor the crops that
    probe_paper encodes. Raises DataError if images must be counted and are
    not there.
    """
    if not configs:
        return 0.0
    epochs = measured_epochs(configs[0].runs_dir, loop.pick_device(configs[0].device))
    known = [epochs[shape_of(config)] * config.epochs for config in configs if shape_of(config) in epochs]
    with use_threads(max(1, torch.get_num_threads() // processes)):
        timed = experiments.estimate_by_steps([config for config in configs if shape_of(config) not in epochs])
    return (sum(known) + timed) / processes


def describe_cost(configs: Sequence[Config], processes: int = 1) -> str:
    """What is missing of a table and how long it will take, in a sentence."""
    if not configs:
        return "nothing is missing"
    try:
        seconds = estimate_seconds(configs, processes)
    except MetaugError as error:
        return f"{len(configs)} runs are missing; how long they take is unknown: {error}"
    at_a_time = f", {processes} at a time" if processes > 1 else ""
    return f"{len(configs)} runs are missing and will take about {format_duration(seconds)} here{at_a_time}"


def format_duration(seconds: float) -> str:
    """A duration as a reader says it: 45 s, 3 min 20 s, 2 h 05 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
