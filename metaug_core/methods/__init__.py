"""Every method by name. MetAug and its ablations are compositions of an objective and the MAG, not classes of their own."""

from metaug_core.config import Config, ConfigError
from metaug_core.methods.base import Context, Method
from metaug_core.methods.metaug import MetAug, with_mag
from metaug_core.methods.multiview import CMC, OUCL
from metaug_core.methods.simclr import SimCLR
from metaug_core.methods.supervised import Supervised
from metaug_core.registry import METHODS

__all__ = ["CMC", "METHODS", "OUCL", "Context", "MetAug", "Method", "SimCLR", "Supervised", "build", "with_mag"]

METHODS |= {
    "metaug": with_mag(OUCL),
    "metaug-only-oucl": OUCL,
    "metaug-only-mag": with_mag(CMC),
    "cmc": CMC,
    "simclr": SimCLR,
    "supervised": Supervised,
}


def build(config: Config) -> Method:
    """The method that config names. ConfigError if its views are too few."""
    method = METHODS[config.method](config)
    if len(config.views) < method.minimum_views:
        raise ConfigError(
            f"method {config.method!r} contrasts at least {method.minimum_views} views, got {', '.join(config.views)}"
        )
    return method
