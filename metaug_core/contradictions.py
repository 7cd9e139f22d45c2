"""Settings that are each allowed and cannot stand together."""

from collections.abc import Iterator
from typing import Any


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
    if config.schedule == "epoch" and config.look_ahead == "fresh":
        yield "look_ahead is of schedule 'alternate'; schedule 'epoch' always leaves from the updated theta"


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
