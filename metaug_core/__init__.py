"""The training engine of *MetAug: Contrastive Learning via Meta Feature Augmentation* (ICML 2022).

run = metaug_core.fit(metaug_core.preset("quick"))
metaug_core.evaluate(run)
"""

from metaug_core import methods as methods  # enters its names in METHODS, as the next two do in theirs
from metaug_core.config import Config, ConfigError
from metaug_core.data import datasets as datasets
from metaug_core.errors import MetaugError
from metaug_core.evaluation.representations import evaluate
from metaug_core.methods import with_mag
from metaug_core.networks import encoders as encoders
from metaug_core.presets import preset
from metaug_core.registry import DATASETS, ENCODERS, METHODS, MODIFIERS, VIEWS
from metaug_core.runs.store import Run, list_runs, open_run
from metaug_core.training.loop import fit, fit_trials
from metaug_core.views import augmentation as augmentation

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
