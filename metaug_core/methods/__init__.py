"""Every method by name. MetAug and its ablations are compositions of an objective and the MAG, not classes of their own."""

from metaug_core.config import Config, ConfigError
from metaug_core.methods import modifiers
from metaug_core.methods.base import Composition, Context, Method
from metaug_core.methods.bigan import BiGAN
from metaug_core.methods.cpc import CPC
from metaug_core.methods.dim import DIM
from metaug_core.methods.metaug import MetAug, with_mag
from metaug_core.methods.multiview import CMC, OUCL
from metaug_core.methods.nat import NAT
from metaug_core.methods.simclr import SimCLR
from metaug_core.methods.splitbrain import SplitBrain
from metaug_core.methods.supervised import Supervised
from metaug_core.methods.wmse import WMSE
from metaug_core.registry import METHODS, MODIFIERS

__all__ = ["CMC", "METHODS", "MODIFIERS", "OUCL", "Composition", "Context", "MetAug", "Method", "SimCLR", "Supervised",
           "build", "with_mag"]  # fmt: skip

MODIFIERS |= {
    "mag": with_mag,
    "oucl": modifiers.oucl,
    "debiased": modifiers.debiased,
    "hard": modifiers.hard,
    "randaugment": modifiers.randaugment,
}
# Whole objectives of their own, which no modifier but RandAugment changes.
METHODS |= {"bigan": BiGAN, "nat": NAT, "dim": DIM, "cpc": CPC, "splitbrain": SplitBrain, "wmse": WMSE}
METHODS |= {
    "supervised": Supervised,
    "simclr": SimCLR,
    "cmc": CMC,
    "metaug-only-oucl": OUCL,
    "metaug-only-mag": with_mag(CMC).entitled("MetAug (only MAG)", "Li et al. 2022"),
    "metaug": with_mag(OUCL).entitled("MetAug", "Li et al. 2022"),
}
# Rows of the paper's tables that a name composes. Any other, `simclr+hard+mag`, works without standing here.
METHODS |= {name: METHODS[name] for name in ("simclr+debiased", "cmc+debiased", "simclr+hard", "cmc+hard",
                                             "cmc+randaugment", "metaug+randaugment")}  # fmt: skip


def build(config: Config) -> Method:
    """The method that config names. ConfigError if its views are too few."""
    method = METHODS[config.method](config)
    if len(config.views) < method.minimum_views:
        raise ConfigError(
            f"method {config.method!r} contrasts at least {method.minimum_views} views, got {', '.join(config.views)}"
        )
    return method
