"""The training engine of *MetAug: Contrastive Learning via Meta Feature Augmentation* (ICML 2022).

run = metaug_core.fit(metaug_core.preset("quick"))
metaug_core.evaluate(run)

Everything here is imported when it is first used, so that the command line can answer without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metaug_core.config import Config, ConfigError
    from metaug_core.errors import MetaugError
    from metaug_core.evaluation.representations import evaluate
    from metaug_core.methods import with_mag
    from metaug_core.presets import preset
    from metaug_core.registry import DATASETS, ENCODERS, METHODS, MODIFIERS, VIEWS
    from metaug_core.runs.store import Run, list_runs, open_run
    from metaug_core.training.loop import fit, fit_trials

__all__ = [
    "DATASETS",
    "ENCODERS",
    "METHODS",
    "MODIFIERS",
    "VIEWS",
    "Config",
    "ConfigError",
    "MetaugError",
    "Run",
    "evaluate",
    "fit",
    "fit_trials",
    "list_runs",
    "open_run",
    "preset",
    "with_mag",
]
MODULES = {
    "config": ["Config", "ConfigError"],
    "errors": ["MetaugError"],
    "evaluation.representations": ["evaluate"],
    "methods": ["with_mag"],
    "presets": ["preset"],
    "registry": ["DATASETS", "ENCODERS", "METHODS", "MODIFIERS", "VIEWS"],
    "runs.store": ["Run", "list_runs", "open_run"],
    "training.loop": ["fit", "fit_trials"],
}
SOURCES = {name: module for module, names in MODULES.items() for name in names}
PACKAGES = {"data", "evaluation", "meta", "methods", "networks", "objectives", "runs", "runtime", "training", "views"}


def __getattr__(name: str) -> Any:
    if name in PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in SOURCES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{SOURCES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *PACKAGES])
