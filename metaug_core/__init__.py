"""MetAug Workbook: the training engine of *MetAug: Contrastive Learning via Meta Feature Augmentation* (ICML 2022).

run = metaug_core.fit(metaug_core.preset("quick"))
metaug_core.evaluate(run)
"""

from metaug_core import data, encoders, methods, views  # noqa: F401  (they enter their names in the registries)
from metaug_core.config import Config, ConfigError
from metaug_core.engine import fit, fit_trials
from metaug_core.evaluation import evaluate
from metaug_core.methods import with_mag
from metaug_core.presets import preset
from metaug_core.registry import DATASETS, ENCODERS, METHODS, MODIFIERS, VIEWS, MetaugError
from metaug_core.store import Run, list_runs, open_run

for table in (DATASETS, ENCODERS, METHODS, MODIFIERS, VIEWS):
    table.settle()

__all__ = [
    "DATASETS",
    "ENCODERS",
    "METHODS",
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
