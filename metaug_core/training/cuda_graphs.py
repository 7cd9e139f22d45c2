"""Runs steps one after another on a CPU; on CUDA each kind of step is captured once as a graph and replayed as one launch.

A step at batch 64 is hundreds of kernels of microseconds, and launching them takes longer than computing them. Several trials go
into one graph, each on a stream of its own, so that they fill the device together. No trial touches data of another, so its
numbers are those of its own single run. With `graphs="forked"` the encoders of a single run are forked in the same way.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from metaug_core.errors import MetaugError, one_line
from metaug_core.extensions import name_failures
from metaug_core.runtime import distributed
from metaug_core.runtime.device import side_by_side
from metaug_core.training.diagnostics import describe
from metaug_core.training.state import TrainState, own_device_numbers, own_random_numbers
from metaug_core.training.step import Update, train_step, update

EAGER_STEPS = 3  # of a kind before its capture: they make optimiser states and cuBLAS workspaces


class Batch(NamedTuple):
    """The input of one step of a trial."""

    pixels: Tensor  # uint8 (B, 3, H, W)
    indices: Tensor  # int64 (B,), on the device
    log: bool  # whether the metrics of this step will be read


class Replay(NamedTuple):
    """A captured step: copy the batches into `inputs`, replay, read `outputs`."""

    graph: "torch.cuda.CUDAGraph"
    inputs: list[Batch]
    outputs: list[Update]


def explain_eager_steps(states: Sequence[TrainState]) -> str | None:
    """Why these trials step eagerly, or None if they are captured."""
    if states[0].device != "cuda":
        return f"device {states[0].device} has no CUDA graphs"
    if states[0].config.graphs == "off":
        return "graphs is off"
    if distributed.count() > 1:
        return "several processes take part"
    if any(s.config.meta == "double-backward" for s in states):
        return "meta double-backward is the plain reference"
    if any(s.draws and s.trains_mag for s in states):
        return "each pass of a step draws the random numbers of the user's own networks again"
    for s in states:
        if not s.method.description.captured:
            return f"method {s.config.method!r} waits for the device within a step"
    return None


def make_graph(generators: Sequence[torch.Generator]) -> "torch.cuda.CUDAGraph":
    """An empty CUDA graph whose replays draw new numbers from these generators of the device. From torch 2.14 on a graph registers
    whatever generator its capture draws from, and to name them is deprecated (pytorch/pytorch#176753)."""
    graph = torch.cuda.CUDAGraph()
    if torch.__version__ < "2.14":  # compares as a version, not as text
        for generator in generators:
            graph.register_generator_state(generator)
    return graph


def capture(states: Sequence[TrainState], batches: Sequence[Batch], generators: Sequence[torch.Generator]) -> Replay:
    """Capture a step of each of these states as one graph; nothing is run. RuntimeError (torch's) if it cannot be captured."""
    graph = make_graph(generators)
    inputs = [Batch(b.pixels.clone(), b.indices.clone(), b.log) for b in batches]
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        outputs = side_by_side([partial(update_alone, *pair) for pair in zip(states, inputs, strict=True)], forked=True)
    return Replay(graph, inputs, outputs)


def update_alone(s: TrainState, batch: Batch) -> Update:
    """`update` with the trial's own random numbers."""
    with own_device_numbers(s):
        return update(s, *batch)


class Stepper:
    """Steps of one run, or of several trials, which are numbered as in `states`.

    reason: why steps are not captured, or None; a failed capture sets it.
    """

    def __init__(self, states: Sequence[TrainState]):
        self.states = states
        self.reason = explain_eager_steps(states)
        self.seen: Counter[tuple] = Counter()
        self.replays: dict[tuple, Replay] = {}

    def __call__(self, batches: dict[int, Batch]) -> dict[int, dict[str, Tensor] | MetaugError]:
        """One step of each trial that has a batch; its metrics, tensors not read yet, by the trial's number. The error of a user's
        own code stands in their place."""
        if self.reason is not None:
            return {number: self._eager(number, batch) for number, batch in batches.items()}
        kind = tuple((number, batch.log, self.states[number].mag_pass) for number, batch in batches.items())
        self.seen[kind] += 1
        if self.seen[kind] <= EAGER_STEPS or (kind not in self.replays and not self._capture(kind, batches)):
            return {number: self._eager(number, batch) for number, batch in batches.items()}
        return self._replay(kind, batches)

    def _eager(self, number: int, batch: Batch) -> dict[str, Tensor] | MetaugError:
        s = self.states[number]
        try:
            with own_random_numbers(s), name_failures(s.config, f"step {s.step + 1}"):
                return train_step(s, *batch)
        except MetaugError as error:
            return error

    def _capture(self, kind: tuple, batches: dict[int, Batch]) -> bool:
        """Capture a kind of step without running it. False, and `reason` is set, if it cannot be captured."""
        states = [self.states[number] for number in batches]
        generators = [generator for s in states for generator in s.device_generators]
        before = [generator.get_state() for generator in generators]
        try:
            self.replays[kind] = capture(states, [*batches.values()], generators)
        except RuntimeError as error:
            self.reason = f"the step could not be captured: {one_line(error)[:200]}"
            for generator, state in zip(generators, before, strict=True):
                generator.set_state(state)
            return False
        return True

    def _replay(self, kind: tuple, batches: dict[int, Batch]) -> dict[int, dict[str, Tensor] | MetaugError]:
        replay = self.replays[kind]
        for place, batch in zip(replay.inputs, batches.values(), strict=True):
            place.pixels.copy_(batch.pixels, non_blocking=True)
            place.indices.copy_(batch.indices, non_blocking=True)
        replay.graph.replay()
        metrics: dict[int, dict[str, Tensor] | MetaugError] = {}
        for (number, batch), (values, z, context) in zip(batches.items(), replay.outputs, strict=True):
            copied = {name: value.clone() for name, value in values.items()}  # the next replay overwrites them
            metrics[number] = copied | (describe(self.states[number], z, context) if batch.log else {})
        return metrics
