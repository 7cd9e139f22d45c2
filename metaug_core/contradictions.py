"""What is wrong with settings, in one sentence: a fault that pydantic found, or values that cannot stand together."""

from collections.abc import Iterable, Iterator, MappingView, Set
from pathlib import PurePath
from typing import Any

from metaug_core.errors import shown, suggestion

WORDS = {  # by the beginning of pydantic's type of fault
    "int": "must be a whole number",
    "float": "must be a number",
    "finite": "must be finite",
    "bool": "must be true or false",
    "string": "must be a text",
    "tuple": "must be a list",
    "path": "must be a path",
}


def surprise(value: Any, switch: bool) -> str | None:
    """What pydantic and the file system would take for something else: true for 1, a path cut at a NUL, a set for a list."""
    if isinstance(value, bool) and not switch:
        return f"is not a switch, got {value}"
    if isinstance(value, str | PurePath) and "\0" in str(value):
        return f"holds a NUL character, got {shown(value)}"
    return unordered(value)


def unordered(value: Any) -> str | None:
    """What is wrong with a value that has another order in every process, or none after it was read once; None: nothing."""
    if isinstance(value, Set | MappingView | Iterator):
        return f"needs a list or a single value: a {type(value).__name__} has no order that lasts, got {shown(value)}"
    return None


def one_sentence(faults: list[Any], known: Iterable[str]) -> str:
    """The first fault of pydantic's list: which setting, what is wrong, what was given. known: all settings."""
    fault = faults[0]
    kind, limits = fault["type"], fault.get("ctx", {})
    if isinstance(cause := limits.get("error"), Exception):  # of our own validators; those of the whole have no loc
        return str(cause)
    first, *inner = fault["loc"] or [fault["input"]]  # of a name that is no UTF-8
    if kind == "extra_forbidden" or not fault["loc"]:
        near = suggestion(first, known)
        return f"unknown setting {shown(first)}" + (near if "mean" in near else "; Config lists them all")
    what = "is no UTF-8" if kind == "string_unicode" else WORDS.get(kind.split("_")[0])
    if kind in ("int_from_float", "int_parsing_size") or what is None:
        what = (
            fault["msg"].replace("Input should", "must").replace("must be a valid integer, got", "must be whole, not")
        )
    if kind in ("too_short", "too_long"):
        bound = f"at least {limits['min_length']}" if kind == "too_short" else f"at most {limits['max_length']}"
        what = f"needs {bound} in its list"
    if kind == "missing":
        what = f"has too few values, number {inner[-1] + 1} is missing"
        inner = []
    name = f"{first}" + "".join(f"[{part}]" for part in inner)
    more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
    return f"{name}: {what[0].lower()}{what[1:]}, got {shown(fault['input'])}{more}"


def contradictions(config: Any) -> Iterator[str]:
    """One sentence for each contradiction among the settings of a `Config`, naming the settings."""
    yield from _views_and_memory(config)
    yield from _objective(config)
    yield from _epochs(config)


def _views_and_memory(config: Any) -> Iterator[str]:
    low, high = config.crop_scale
    if not 0 < low <= high:
        yield f"crop_scale: needs 0 < low <= high, got {config.crop_scale}"
    if config.stem == "paper" and config.image_size < 64:
        yield f"stem 'paper' needs image_size >= 64, got {config.image_size}"
    for name in ("blur", "solarise"):
        count = len(getattr(config, name))
        if count > 1 and not (config.independent and count == len(config.views)):
            yield f"{name} needs one value, or with independent one for each of {len(config.views)} views, got {count}"
    if config.negatives != "bank":
        for name, value in (("positives", "bank"), ("bank_writes", "every-pass")):
            if getattr(config, name) == value:
                yield f"{name} {value!r} needs negatives 'bank', got {config.negatives!r}"
    count = config.train_images
    if count is not None and count * (1 - config.val_fraction) < config.batch_size:
        yield f"train_images {count} less val_fraction {config.val_fraction:g} gives no batch of {config.batch_size}"


def _objective(config: Any) -> Iterator[str]:
    if config.oucl != "eq9" and (config.phi_dec != 1 or config.gamma_detached or config.attenuate != "weight"):
        yield f"phi_dec, gamma_detached and attenuate change Gamma, which only oucl 'eq9' has, got oucl {config.oucl!r}"
    if config.oucl in ("eq9", "eq10") and config.oucl_lambda != 0:
        yield f"oucl_lambda is of eq7 and eq8, got oucl {config.oucl!r}"
    if config.margin_features == "all" and config.margin_pairs != "other":
        yield f"margin_features 'all' needs margin_pairs 'other' (z is 1 with itself), got margin_pairs {config.margin_pairs!r}"
    if config.schedule == "epoch" and config.look_ahead == "fresh":
        yield "look_ahead is of schedule 'alternate'; schedule 'epoch' always leaves from the updated theta"
    if config.mag_objective == "scaled" and config.delta == 0:
        yield "mag_objective 'scaled' divides eq. 6 by delta, got delta 0; 'literal' takes 0"


def _epochs(config: Any) -> Iterator[str]:
    steps, epochs = config.lr_steps, config.epochs
    if bool(steps) != (config.lr_schedule == "step"):
        yield f"lr_steps goes with lr_schedule 'step', got {config.lr_schedule!r} and {steps}"
    if list(steps) != sorted(set(steps)):
        yield f"lr_steps must rise, got {steps}"
    if steps and steps[-1] >= epochs:
        yield f"lr_steps must lie before epochs {epochs}, got {steps}"
    if config.warmup_epochs >= epochs:
        yield f"warmup_epochs {config.warmup_epochs:g} must be less than epochs {epochs}"
    if config.keep_last > epochs:
        yield f"keep_last {config.keep_last} is more than epochs {epochs}"
