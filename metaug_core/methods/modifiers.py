"""Modifiers: what a name adds to a method after a plus, `simclr+debiased`, `cmc+hard+mag`. None is a class of its own.

`debiased` and `hard` change the sum over negatives in a method's InfoNCE (`losses.debias`, `losses.harden`); `oucl` puts another
objective of the same similarities in its place; `randaugment` changes the images. The modifier `mag` is in `metaug`.
"""

from functools import partial

from metaug_core import settings
from metaug_core.config import ConfigError
from metaug_core.errors import MetaugError
from metaug_core.methods.base import Composition, Method, unified_contrast

Base = type[Method] | Composition


def with_debiased(base: Base) -> Composition:
    """Debiased contrast (Chuang et al. 2020, eq. 8): a share tau_plus of the negatives counts as false and is subtracted."""

    def modify(method: Method) -> Method:
        find_base(method).tau_plus = method.config.tau_plus
        return method

    require_info_nce(base, "debiased")
    objective = "sum over negatives debiased by tau_plus"
    return Composition(base, modify, "Debiased", "Chuang et al. 2020", objective, contrasts=False,
                       uses=base.description.uses | {"tau_plus"})  # fmt: skip


def with_hard(base: Base) -> Composition:
    """Hard negatives (Robinson et al. 2021, eq. 4): debiased, and each negative weighted by e^(hard_beta s / t)."""

    def modify(method: Method) -> Method:
        contrasting = find_base(method)
        contrasting.tau_plus = method.config.tau_plus
        contrasting.hard_beta = method.config.hard_beta
        return method

    require_info_nce(base, "hard")
    objective = "sum over negatives debiased by tau_plus and weighted by e^(hard_beta s / t)"
    return Composition(base, modify, "Hard", "Robinson et al. 2021", objective, contrasts=False,
                       uses=base.description.uses | {"tau_plus", "hard_beta"})  # fmt: skip


def with_oucl(base: Base) -> Composition:
    """OUCL (Li et al. 2022, eq. 7-10) of the pairs that the method contrasts, in the place of InfoNCE."""

    def modify(method: Method) -> Method:
        find_base(method).contrast = partial(unified_contrast, config=method.config)
        return method

    require_info_nce(base, "oucl")
    if not base.description.augmentable:
        raise MetaugError(f"modifier 'oucl' needs pairs of features, and {base.description.title} has none")
    objective = "OUCL of the same pairs in the place of InfoNCE"
    return Composition(base, modify, "OUCL", "Li et al. 2022", objective, contrasts=False,
                       uses=base.description.uses - {"temperature"} | settings.OUCL)  # fmt: skip


def with_randaugment(base: Base) -> Composition:
    """RandAugment (Cubuk et al. 2020) before the views are made, as in InfoMin Aug. (Tian et al. 2020): two operations of full
    strength, each with probability 0.5."""

    def modify(method: Method) -> Method:
        if not method.config.randaugment:
            raise ConfigError(f"method {method.config.method!r} needs randaugment > 0, got 0")
        return method

    return Composition(base, modify, "RandAugment", "Cubuk et al. 2020", "on RandAugment's pictures",
                       defaults={"randaugment": 30.0}, uses=base.description.uses,
                       uniform={**base.description.uniform, "randaugment": 30.0})  # fmt: skip


def find_base(method: Method) -> Method:
    """The method whose loss is computed: of a method with a MAG, its base."""
    return getattr(method, "base", method)


def require_info_nce(base: Base, name: str) -> None:
    """Raise MetaugError if the method has no plain InfoNCE that the modifier could change."""
    if not base.description.contrasts:
        raise MetaugError(f"modifier {name!r} changes a plain InfoNCE, and {base.description.title} has none")
