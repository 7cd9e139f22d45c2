"""The loss along a step: how it changes from theta to where the look-ahead goes, and to where the encoders go, and beyond."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor
from torch.func import functional_call

from metaug_core.config import Config
from metaug_core.data import datasets
from metaug_core.hardware import use_threads
from metaug_core.meta import meta_gradient
from metaug_core.meta.forward_ad import frozen_statistics
from metaug_core.runtime.device import arithmetic, pick_device
from metaug_core.training import state
from metaug_core.training.cuda_graphs import Batch
from metaug_core.training.loop import minibatches
from metaug_core.training.state import TrainState
from metaug_core.training.step import draw, look_ahead_update, regular_step, sum_terms, train_step

LENGTHS = tuple(number / 10 for number in range(16))  # of the step: 0 to 1.5 times


class Profiled(NamedTuple):
    """What a short training showed."""

    profiles: pd.DataFrame  # step, kind (look-ahead, encoders' step), length (1: the whole step), loss
    logged: pd.DataFrame  # of each step: step, and its metrics (loss_before, loss_ahead)


@torch.no_grad()
def profile(s: TrainState, batch: Batch, lengths: Sequence[float] = LENGTHS) -> list[dict[str, Any]]:
    """The regular loss (eq. 11) of the minibatch along the look-ahead's step and along the one that the optimiser takes: rows of
    kind, length, loss. The state stays as it is: its generators are put back, BatchNorm's statistics are frozen."""
    before = {role: generator.get_state() for role, generator in s.generators.items()}
    views, context = draw(s, batch.pixels, batch.indices)
    theta = {name: p.detach() for name, p in s.theta.items()}
    with frozen_statistics(s.networks, s.mag):
        with torch.enable_grad():
            gradient = regular_step(s, views, context, log=False, share=False)[0].gradient
        rules = {
            "look-ahead": look_ahead_update(s, s.theta),
            "encoders' step": meta_gradient.next_step(s.optimiser, s.theta, s.optimiser.param_groups[0]["lr"]),
        }

        def loss(ahead: dict[str, Tensor], length: float) -> float:
            at = {name: torch.lerp(p, ahead[name], length) for name, p in theta.items()}
            return float(sum_terms(s.method.terms(functional_call(s.networks, at, (views,)), context, s.mag)))

        rows = []
        for kind, rule in rules.items():
            ahead = meta_gradient.step(s.theta, gradient, rule)
            rows += [{"kind": kind, "length": length, "loss": loss(ahead, length)} for length in lengths]
    for role, generator in s.generators.items():
        generator.set_state(before[role])
    return rows


def profile_training(config: Config, at: Collection[int], splits: datasets.Splits | None = None) -> Profiled:
    """Train as config says, without writing anything to the disk, with a `profile` before each of the steps in `at` (from 0).

    The method needs a MAG that is trained on the same minibatches (schedule alternate).
    """
    device = pick_device(config.device)
    splits = splits or datasets.load(config, device)
    s = state.create(config, splits, device)
    profiles, logged = [], []
    for batch in minibatches(s):
        if s.step in at:
            profiles += [{"step": s.step} | row for row in profile(s, batch)]
        with arithmetic(config.precision), use_threads(s.threads):  # as in training
            metrics = train_step(s, batch.pixels, batch.indices, log=True)
        logged.append({"step": s.step} | {name: float(value) for name, value in metrics.items() if not value.dim()})
        s.count_step()
        if s.position == s.steps_per_epoch:
            s.end_pass()
    return Profiled(pd.DataFrame(profiles), pd.DataFrame(logged))
