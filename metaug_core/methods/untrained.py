"""Floors for the MAG: in its place noise or dropout, which knows nothing and learns nothing, at the same similarity d(z, z~)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core.errors import MetaugError
from metaug_core.methods.base import Augment, Composition, Context, Method, OnBase
from metaug_core.methods.metaug import require_none_augmented, weigh_terms
from metaug_core.methods.modifiers import Base, extend_context, give, require_pairs
from metaug_core.networks.second_order import unit

Perturb = Callable[[Tensor, Tensor, float], Tensor]  # z (W, B, d), the draws, the cosine of z and z~ -> z~


class Perturbed(OnBase):
    """`base` on randomly changed features as well: L(z) + delta L(z, z~), as eq. 11, without a MAG."""

    def __init__(self, base: Method, perturb: Perturb):
        super().__init__(base)
        self.perturb = perturb

    def terms(self, z: Tensor, context: Context, augment: Augment | None) -> dict[str, Tensor]:
        del augment
        cosine = 2 * self.config.matched_similarity - 1
        return weigh_terms(self.base, z, self.perturb(z, context.given["noise"], cosine), context)


def add_noise(z: Tensor, noise: Tensor, cosine: float) -> Tensor:
    """z turned by Gaussian noise at right angles to it, so that each z~ has this cosine with its z."""
    aside = unit(noise - (noise * z).sum(-1, keepdim=True) * z)
    return cosine * z + (1 - cosine**2) ** 0.5 * aside


def drop_units(z: Tensor, noise: Tensor, cosine: float) -> Tensor:
    """z without some of its units, at unit norm. A share cosine^2 of them stays, so that the root mean square of the cosine is the
    one that is asked for. Where none stays z~ is 0."""
    kept = torch.special.ndtr(noise) < cosine**2  # uniform numbers
    return F.normalize(z * kept, dim=-1)


def with_noise(base: Base) -> Composition:
    """Gaussian noise in the place of the MAG: z~ has d(z, z~) = matched_similarity exactly."""
    return compose(base, "noise", "noise", "z~ = z turned by Gaussian noise", add_noise)


def with_dropout(base: Base) -> Composition:
    """Dropout of z in the place of the MAG: z~ has d(z, z~) = matched_similarity on the average."""
    return compose(base, "dropout", "dropout", "z~ = z without some units", drop_units)


def compose(base: Base, name: str, title: str, what: str, perturb: Perturb) -> Composition:
    """A method on features that are changed so as well. Raises MetaugError if it has no features to change."""

    def modify(method: Method) -> Method:
        perturbed, config = Perturbed(method, perturb), method.config
        rows = method.description.parts * len(config.views)
        extend_context(perturbed, partial(draw_noise, rows=rows, dim=config.feature_dim))
        return perturbed

    require_pairs(base, name)
    require_none_augmented(base, name)
    return Composition(base, modify, title, "", f"L(z) + delta L(z, z~), {what}", augmented_by="chance",
                       uses=base.description.uses | {"delta", "augmented_sets", "matched_similarity"})  # fmt: skip


@torch.no_grad()
def augment_features(method: Method, z: Tensor, mag: nn.Module | None) -> Tensor:
    """z~ of features z (V, B, d) as the method has it: of its trained network mag, or by chance, drawn from the run's seed. Raises
    MetaugError if it augments none."""
    if mag is not None:
        return mag.eval()(z)
    if not isinstance(method, Perturbed):
        raise MetaugError(f"{method.description.title} has no augmented features")
    noise = torch.randn(z.shape, generator=torch.Generator(z.device).manual_seed(method.config.seed), device=z.device)
    return method.perturb(z, noise, 2 * method.config.matched_similarity - 1)


def draw_noise(context: Context, generator: torch.Generator, rows: int, dim: int) -> Context:
    """The context with normal numbers (W, B, d) for each feature of the minibatch."""
    shape = (rows, len(context.indices), dim)
    return give(context, noise=torch.randn(shape, generator=generator, device=generator.device))
