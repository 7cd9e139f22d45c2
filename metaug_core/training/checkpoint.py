"""Checkpoints: a `TrainState` as one safetensors file, and back to the same bits."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaug_core.errors import one_line
from metaug_core.runs.files import StoreError, load_module, read_tensors, weights, write_tensors
from metaug_core.training.state import TrainState

COUNTERS = ("epoch", "position", "step")


def save(s: TrainState, path: Path, before: Path | None = None) -> None:
    """Write the whole state atomically: weights, MAG, memory, optimisers, random generators, order and counters.

    before: the name that the checkpoint which stood at path gets; None: it is replaced.
    """
    tensors = _weights(s)
    for name, optimiser in _optimisers(s).items():
        for number, values in optimiser.state_dict()["state"].items():
            tensors |= {f"{name}.{number}.{key}": t for key, t in values.items() if isinstance(t, Tensor)}
    tensors |= {f"generator.{role}": generator.get_state() for role, generator in s.generators.items()}
    tensors["generator.global"] = s.random
    if s.device_random is not None:
        tensors["generator.device"] = s.device_random.get_state()
    if s.order is not None:
        tensors["order"] = s.order
    if s.omega_before is not None:
        tensors |= {f"omega_before.{number}": p for number, p in enumerate(s.omega_before)}
    if s.previous is not None:
        tensors["previous.pixels"], tensors["previous.indices"] = s.previous
    write_tensors(path, tensors, {name: getattr(s, name) for name in COUNTERS} | _identity(s), before)


def save_encoders(s: TrainState, path: Path) -> None:
    """Write only what evaluation needs: encoders, heads and MAG."""
    tensors = {name: t for name, t in _weights(s).items() if not name.startswith("memory.")}
    write_tensors(path, tensors, {"epoch": s.epoch})


def restore(s: TrainState, path: Path) -> None:
    """Load a saved state into a newly created one. StoreError if the file is damaged, foreign or of another config."""
    tensors, scalars = read_tensors(path)
    for name, value in _identity(s).items():
        if scalars.get(name) != value:
            raise StoreError(f"{path} does not fit: its {name} is {scalars.get(name)!r}, here it is {value!r}")
    for prefix, module in _modules(s).items():
        load_module(module, tensors, prefix, path)
    try:
        for name, optimiser in _optimisers(s).items():
            _load_optimiser(optimiser, tensors, name + ".")
        for role, generator in s.generators.items():
            generator.set_state(tensors[f"generator.{role}"])
        s.random = torch.Generator().set_state(tensors["generator.global"]).get_state()  # raises if it is not a state
        if s.device_random is not None:
            s.device_random.set_state(tensors["generator.device"])
        s.epoch, s.position, s.step = (int(scalars[name]) for name in COUNTERS)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise StoreError(f"{path} is not a whole checkpoint: {one_line(error)}") from None
    s.order = tensors.get("order")
    if "omega_before.0" in tensors:
        s.omega_before = [tensors[f"omega_before.{number}"].to(s.device) for number in range(len(s.omega))]
    if "previous.pixels" in tensors:
        s.previous = tensors["previous.pixels"].to(s.device), tensors["previous.indices"].to(s.device)


def find_nonfinite(s: TrainState) -> str | None:
    """The name of a weight, a statistic or a remembered feature that is NaN or infinite; None if all are finite. A frozen weight or
    a buffer that was so from the beginning (a mask of -inf) is not meant."""
    return next((name for name in list_nonfinite(s) if name not in s.infinite), None)


def list_nonfinite(s: TrainState) -> list[str]:
    return [name for name, value in _weights(s).items() if not torch.isfinite(value).all()]


def _modules(s: TrainState) -> dict[str, nn.Module]:
    modules = {"networks.": s.networks, "mag.": s.mag, "memory.": s.memory}
    return {prefix: module for prefix, module in modules.items() if module is not None}


def _weights(s: TrainState) -> dict[str, Tensor]:
    """Parameters and buffers of all modules, by prefixed name."""
    return {prefix + name: t for prefix, module in _modules(s).items() for name, t in weights(module).items()}


def _optimisers(s: TrainState) -> dict[str, torch.optim.Optimizer]:
    optimisers = {"optimiser": s.optimiser, "mag_optimiser": s.mag_optimiser}
    return {name: optimiser for name, optimiser in optimisers.items() if optimiser is not None}


def _identity(s: TrainState) -> dict[str, Any]:
    """What a checkpoint and the run that loads it must agree on."""
    return {"run": s.config.name(), "images": len(s.images)}


def _load_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str) -> None:
    states: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix):
            number, key = name.removeprefix(prefix).split(".", 1)
            states.setdefault(int(number), {})[key] = value
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
    for parameter, values in optimiser.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter).copy_(value)  # fused kernels expect the parameter's layout
