"""Hallucinator: a network makes positives in feature space and descends on the regular loss, without a look-ahead or margins."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from metaug_core import settings
from metaug_core.errors import MetaugError
from metaug_core.methods.base import Augment, Composition, Context, Method, OnBase
from metaug_core.methods.metaug import require_none_augmented
from metaug_core.methods.modifiers import Base, extend_context, find_class, give, require_one_part, require_pairs
from metaug_core.networks.second_order import unit
from metaug_core.objectives.similarity import mean_of_other_views

DIFFERS = (
    "Hallucinator: q is of unit norm before it is extrapolated, theirs after. Every view asks in turn, through one network. It has "
    "an optimiser of its own (mag_lr). Where the base has no keys, z stands in their place, and q is drawn away from it as from a "
    "constant. Crops are the base's, theirs ContrastiveCrop's for one view."
)
OF_NETWORK = {"hallucinator_reach", "mag_optimiser", "mag_lr", "mag_lr_schedule", "mag_weight_decay"}


class Hallucinator(nn.Module):
    """z~ = MLP([q, (1 + r) q - r k]) of two hidden layers of 2 d units, at unit norm (their code). One for all views.

    z (W, B, d) -> z~ (W, B, d), row w of view w % V. keys (R, B, d): what features are extrapolated away from, the mean of the
    other views' if there are several, a constant; None: the features themselves. r: None is half of reach.
    """

    def __init__(self, views: int, dim: int, reach: float):
        super().__init__()
        self.views, self.reach = views, reach
        self.layers = nn.Sequential(
            nn.Linear(2 * dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim)
        )

    def forward(self, z: Tensor, keys: Tensor | None = None, r: Tensor | None = None) -> Tensor:
        others = mean_of_other_views(z.detach() if keys is None else keys, z, self.views)  # as keys, without a gradient
        away = z + (self.reach / 2 if r is None else r) * (z - others)
        return unit(self.layers(torch.cat([z, away], -1)))


class Hallucinated(OnBase):
    """`base` on hallucinated features as well: z and z~ ask, and only z answers (or what the context holds in its place).

    z~ is made of the other views too, so as a positive it would hand their own features back to them.
    """

    def mag(self) -> nn.Module:
        return Hallucinator(len(self.config.views), self.config.feature_dim, self.config.hallucinator_reach)

    def terms(self, z: Tensor, context: Context, augment: Augment) -> dict[str, Tensor]:
        hallucinated = augment(z, context.positives, context.given["reach"])
        context = replace(context, positives=z if context.positives is None else context.positives)
        return {"loss_original": self.config.loss_scale * self.loss(torch.cat([z, hallucinated]), context)}


def with_hallucinator(base: Base) -> Composition:
    """Hallucinator (Wu et al. 2023, section 3): L of features z and of z~ = g(q, (1 + r) q - r k), r uniform in [0, reach) for the
    minibatch. g is a small MLP that descends on the same loss, so that z~ comes near to k. L is the mean over z and z~ against the
    same keys, as in their code; where a method has no keys, against z.

    The settings of the MAG's optimiser are those of g.
    """

    def modify(method: Method) -> Method:
        hallucinated, reach = Hallucinated(method), method.config.hallucinator_reach
        extend_context(hallucinated, lambda context, generator: give(
            context, reach=reach * torch.rand((), generator=generator, device=generator.device)))  # fmt: skip
        return hallucinated

    require_pairs(base, "hallucinator")
    require_one_part(base, "hallucinator")
    of_class = find_class(base).description
    if not (of_class.contrasts or settings.OUCL <= of_class.uses != settings.OPTIONAL):
        raise MetaugError(
            f"modifier 'hallucinator' needs a loss in which z~ asks and z answers, and {base.description.title} has none"
        )
    require_none_augmented(base, "hallucinator")
    return Composition(base, modify, "Hallucinator", "Wu et al. 2023", "L(z, z~), z~ = g(q, (1 + r) q - r k); g descends on it",
                       differs=DIFFERS, augmented_by="loss", uses=base.description.uses | OF_NETWORK, revision=1)  # fmt: skip
