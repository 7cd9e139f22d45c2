"""Settings as texts, as the command line has them: to a Config, and many at once, as a grid."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from metaug_core import presets
from metaug_core.config import Config, ConfigError


def build_config(values: Mapping[str, Any]) -> Config:
    """`apply_preset`, and ConfigError for views that the method cannot contrast."""
    from metaug_core import methods  # torch

    config = apply_preset(values)
    methods.build(config)
    return config


def apply_preset(values: Mapping[str, Any]) -> Config:
    """The Config of a notebook's parameters: `preset` names the preset, a None leaves a setting to it. Raises ConfigError."""
    given = {name: value for name, value in values.items() if value is not None}
    return presets.preset(given.pop("preset", "quick"), **given)


def takes_list(name: str) -> bool:
    """Whether the setting takes a list of values."""
    field = Config.model_fields.get(name)
    return field is not None and str(field.annotation).startswith("tuple")


def parse_setting(name: str, text: str) -> Any:
    """What the text of an option means to `Config`: a setting that takes several values is written with commas."""
    return (
        text.split(",") if takes_list(name) else None if text == "None" else text
    )  # None leaves the setting to the preset


def parse_assignments(option: str, texts: Iterable[str]) -> dict[str, str]:
    """NAME=VALUE texts of an option -> {name: value}. Raises ConfigError."""
    pairs = []
    for text in texts:
        name, equals, right = (part.strip() for part in text.partition("="))
        if not (name and equals and right):
            raise ConfigError(f"{option} {text}: needs NAME=VALUE")
        pairs.append((name, right))
    return collect_pairs(option, pairs)


def collect_pairs(option: str, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """(name, value) pairs of an option -> {name: value}. Raises ConfigError for a name that is given twice."""
    values: dict[str, str] = {}
    for name, text in pairs:
        if name in values:
            raise ConfigError(f"{option} {name} is given twice")
        values[name] = text
    return values


def parse_axis(name: str, text: str) -> list[str]:
    """The values of a grid's axis, `1,2,4`; of a setting that takes a list, `L,ab;L,ab,RGB`. Raises ConfigError."""
    parts = [part.strip() for part in text.split(";" if takes_list(name) else ",")]
    if not all(parts):
        raise ConfigError(f"--grid {name}={text}: a value is missing between two separators")
    if repeated := [part for part in parts if parts.count(part) > 1]:
        raise ConfigError(f"--grid {name}={text}: {repeated[0]} is listed twice")
    return parts


def list_cells(grid: Iterable[str], fixed: Mapping[str, str], seeds: int | None) -> list[dict[str, str]]:
    """The texts of every cell's settings: each combination of the axes over what is fixed, seeds innermost. Raises ConfigError.

    grid: texts NAME=V1,V2,...; fixed: texts by name; seeds: how many, from the fixed seed (0) on; None: one.
    """
    axes = {name: parse_axis(name, text) for name, text in parse_assignments("--grid", grid).items()}
    common = dict(fixed)
    for name in axes:
        if name in common:
            raise ConfigError(f"{name} is given by both --grid and --set")
    if seeds is not None and "seed" in axes:
        raise ConfigError("seed is in --grid already, so --seeds has no meaning")
    if seeds is not None and seeds > 1:
        if not (first := common.pop("seed", "0")).isdecimal():
            raise ConfigError(f"--set seed={first}: must be a whole number, not below 0")
        axes["seed"] = [str(int(first) + number) for number in range(seeds)]
    return [common | dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def describe_cell(given: Mapping[str, str], names: Iterable[str]) -> str:
    """The named settings of a cell as one writes them: `oucl=eq9, seed=1`."""
    return ", ".join(f"{name}={given[name]}" for name in names)
