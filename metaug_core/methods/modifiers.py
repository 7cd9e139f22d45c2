"""Modifiers: what a name adds to a method after a plus, `simclr+debiased`, `cmc+hard+mag`. None is a class of its own.

`debiased` and `hard` change the sum over negatives in a method's InfoNCE (`losses.debias`, `losses.harden`); `dcl` and `oucl` put
another objective of the same similarities in its place; `randaugment` changes the images. The modifier `mag` is in `metaug`, and
what later papers do to features in files of their own.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metaug_core import settings
from metaug_core.config import ConfigError
from metaug_core.errors import MetaugError
from metaug_core.methods.base import Composition, Context, Method, unified_contrast
from metaug_core.methods.baselines.swav import SwAV
from metaug_core.objectives import losses

Base = type[Method] | Composition
# What differs from the code of a modifier's authors, and why.
DEBIASED = "Debiased: theirs is on SimCLR alone, under a head of 512-128; here the base keeps its head, to be compared with it."
HARD = "Hard: theirs is on SimCLR alone, at t 0.5 under a head of 512-128; here the base keeps both, to be compared with it."
DCL = "DCL: theirs is on SimCLR at t 0.1; here the base keeps its temperature, to be compared with it."
RANDAUGMENT = (
    "RandAugment: it alone is added; PyContrast's CMC v2 with it also has averaged encoders, an MLP head and t 0.2."
)


def with_debiased(base: Base) -> Composition:
    """Debiased contrast (Chuang et al. 2020, eq. 8): a share tau_plus of the negatives counts as false and is subtracted.

    It brings temperature 0.5, where features are contrasted with each other: the only one at which the authors' code runs. The
    sum is at its floor, and the negatives have no gradient, once a positive leads by t log(1/tau_plus) in cosine: 1.15 at t
    0.5, but 0.16 at t 0.07. SwAV, whose negatives are prototypes, keeps its own.
    """

    def modify(method: Method) -> Method:
        find_base(method).tau_plus = method.config.tau_plus
        return method

    require_info_nce(base, "debiased")
    defaults = {} if issubclass(find_class(base), SwAV) else {"temperature": 0.5}
    objective = "sum over negatives debiased by tau_plus"
    return Composition(base, modify, "Debiased", "Chuang et al. 2020", objective, defaults, contrasts=False,
                       differs=DEBIASED, uses=base.description.uses | {"tau_plus"})  # fmt: skip


def with_hard(base: Base) -> Composition:
    """Hard negatives (Robinson et al. 2021, eq. 4): debiased, and each negative weighted by e^(hard_beta s / t).

    At the base's temperature, where the authors have 0.5: hard negatives keep the sum above the floor of `with_debiased`. The
    metric debias_floor_share tells how often they do.
    """

    def modify(method: Method) -> Method:
        contrasting = find_base(method)
        contrasting.tau_plus = method.config.tau_plus
        contrasting.hard_beta = method.config.hard_beta
        return method

    require_info_nce(base, "hard")
    objective = "sum over negatives debiased by tau_plus and weighted by e^(hard_beta s / t)"
    return Composition(base, modify, "Hard", "Robinson et al. 2021", objective, contrasts=False,
                       differs=HARD, uses=base.description.uses | {"tau_plus", "hard_beta"})  # fmt: skip


def with_oucl(base: Base) -> Composition:
    """OUCL (Li et al. 2022, eq. 7-10) of the pairs that the method contrasts, in the place of InfoNCE."""

    def modify(method: Method) -> Method:
        find_base(method).contrast = partial(unified_contrast, config=method.config)
        return method

    require_info_nce(base, "oucl")
    require_pairs(base, "oucl")
    objective = "OUCL of the same pairs in the place of InfoNCE"
    return Composition(base, modify, "OUCL", "Li et al. 2022", objective, contrasts=False,
                       uses=base.description.uses - {"temperature"} | settings.OUCL)  # fmt: skip


def with_dcl(base: Base) -> Composition:
    """Decoupled contrast (Yeh et al. 2022, eq. 6): InfoNCE without the positive in its denominator, -s+ / t + log sum e^(s- / t).

    With one positive and lambda 0, eq. 8 of OUCL is the softplus of this at t = 2 / beta, over beta. Their weighted form (DCLW) is
    left out.
    """

    def modify(method: Method) -> Method:
        find_base(method).contrast = partial(losses.decoupled, temperature=method.config.temperature / 2)
        return method

    require_info_nce(base, "dcl")
    require_pairs(base, "dcl")
    objective = "without the positive in the denominator"
    return Composition(base, modify, "DCL", "Yeh et al. 2022", objective, contrasts=False, differs=DCL,
                       uses=base.description.uses)  # fmt: skip


def with_randaugment(base: Base) -> Composition:
    """RandAugment (Cubuk et al. 2020) before the views are made, as in InfoMin Aug. (Tian et al. 2020): two operations of full
    strength, each with probability 0.5."""

    def modify(method: Method) -> Method:
        if not method.config.randaugment:
            raise ConfigError(f"method {method.config.method!r} needs randaugment > 0, got 0")
        return method

    return Composition(base, modify, "RandAugment", "Cubuk et al. 2020", "on RandAugment's pictures",
                       defaults={"randaugment": 30.0}, differs=RANDAUGMENT, uses=base.description.uses,
                       uniform={**base.description.uniform, "randaugment": 30.0})  # fmt: skip


def find_base(method: Method) -> Method:
    """The method whose loss is computed: of a method with a MAG, its base."""
    return getattr(method, "base", method)


def find_class(base: Base) -> type[Method]:
    """The class of the method under all modifiers."""
    return find_class(base.base) if isinstance(base, Composition) else base


def extend_context(method: Method, extend: Callable[[Context, torch.Generator], Context]) -> None:
    """Let the method's `context` go on with what extend draws; the draws before it stay as they were."""
    context = method.context

    def extended(
        memory: Any, views: list[Tensor], indices: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Context:
        return extend(context(memory, views, indices, labels, generator), generator)

    method.context = extended


def give(context: Context, **given: Tensor) -> Context:
    """The context with these in `given` as well."""
    return replace(context, given={**context.given, **given})


def require_pairs(base: Base, name: str) -> None:
    """Raise MetaugError if the method does not contrast features with each other."""
    if not base.description.augmentable:
        raise MetaugError(f"modifier {name!r} needs pairs of features, and {base.description.title} has none")


def require_one_part(base: Base, name: str) -> None:
    """Raise MetaugError if the method contrasts features with predictions of them, so that not all rows of z are alike."""
    if base.description.parts > 1:
        raise MetaugError(
            f"modifier {name!r} needs features alone, and {base.description.title} has other rows as well"
        )


def require_info_nce(base: Base, name: str) -> None:
    """Raise MetaugError if the method has no plain InfoNCE that the modifier could change."""
    if not base.description.contrasts:
        raise MetaugError(f"modifier {name!r} changes a plain InfoNCE, and {base.description.title} has none")
