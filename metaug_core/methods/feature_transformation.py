# pyright: reportPrivateImportUsage=false
"""FT: untrained feature augmentation. Positives are drawn apart from each other, past negatives are mixed with each other."""

from dataclasses import replace

import torch
from torch import Tensor

from metaug_core.methods.base import Composition, Context, Method
from metaug_core.methods.modifiers import (
    Base,
    extend_context,
    find_base,
    give,
    require_info_nce,
    require_one_part,
    require_pairs,
)
from metaug_core.objectives.similarity import mean_of_other_views

DIFFERS = (
    "FT: the two directions of a pair share their weights, and so do all views' negatives. With more than two views a feature is "
    "drawn away from the mean of the others. Negatives of the minibatch are not mixed with each other, being features that are "
    "drawn apart already."
)


def with_ft(base: Base) -> Composition:
    """Feature transformation (Zhu et al. 2021, section 4) before the contrast, without a unit norm afterwards, as in their code:

        q' = m q + (1 - m) k,  k' = m k + (1 - m) q,   m = 1 + Beta(a, a) for each unit and image: harder positives
        n' = m' n + (1 - m') n_partner,                m' = Beta(a', a') for each unit and past feature: other negatives

    with ft_alphas = (a, a'). k is what the method compares q with, a key or the feature of another view.
    """

    def modify(method: Method) -> Method:
        inner = find_base(method)
        loss, views = inner.loss, len(method.config.views)
        inner.loss = lambda z, context: loss(*transform(z, context, views))
        alphas, dim = method.config.ft_alphas, method.config.feature_dim
        extend_context(method, lambda context, generator: draw_weights(context, alphas, dim, generator))
        return method

    require_info_nce(base, "ft")
    require_pairs(base, "ft")
    require_one_part(base, "ft")
    return Composition(base, modify, "FT", "Zhu et al. 2021", "of q + (m - 1)(q - k), k + (m - 1)(k - q) and mixed negatives",
                       contrasts=False, differs=DIFFERS, uses=base.description.uses | {"ft_alphas"})  # fmt: skip


def draw_weights(context: Context, alphas: tuple[float, float], dim: int, generator: torch.Generator) -> Context:
    """The context with the weights of an image's units (B, d), in 1 to 2, and if there are past features (..., K, d) with their
    weights (K, d) and partners (K,)."""
    context = give(context, ft_weights=1 + draw_beta(alphas[0], (len(context.indices), dim), generator))
    if context.negatives is None:
        return context
    count = context.negatives.shape[-2]
    partners = torch.rand(count, generator=generator, device=generator.device).argsort()
    return give(context, ft_past_weights=draw_beta(alphas[1], (count, dim), generator), ft_partners=partners)


def draw_beta(alpha: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers of Beta(alpha, alpha), as the share of one of two gamma variates."""
    alphas = torch.full((2, *shape), alpha, device=generator.device)
    first, second = torch._standard_gamma(alphas, generator=generator)
    return first / (first + second)


def transform(z: Tensor, context: Context, views: int) -> tuple[Tensor, Context]:
    """Features z (W, B, d), row w of view w % V, and what they are compared with, drawn apart and mixed."""
    given, keys, past = context.given, context.positives, context.negatives
    further = given["ft_weights"] - 1
    positives = None if keys is None else torch.addcmul(keys, further, keys - mean_of_other_views(z, keys, views))
    if past is not None:
        past = torch.lerp(past[..., given["ft_partners"], :], past, given["ft_past_weights"])
    z = torch.addcmul(z, further, z - mean_of_other_views(z if keys is None else keys, z, views))
    return z, replace(context, negatives=past, positives=positives, shared=None)
