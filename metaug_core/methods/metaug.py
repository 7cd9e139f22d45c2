"""MetAug: any method with the seam, on meta augmented features as well (Li et al., ICML 2022, sections 3.2 and 3.4).

Algorithm 1, as the engine runs it with this room:

    regular step   theta <- theta - l grad_theta  [ L(z) + delta L(z, z~) ]                      `terms`        eq. 11
    look-ahead     theta' = theta - l grad_theta  [ L(z) + delta L(z, z~) ]                      `terms`        eq. 3
    MAG step       omega <- omega - l' grad_omega [ (L + delta L_aug)(theta') + alpha R_sigma ]  `outer_terms`  eq. 6
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core.config import Config
from metaug_core.generator import MAG
from metaug_core.losses import margin_regularisation
from metaug_core.margins import margins
from metaug_core.methods.base import Augment, Composition, Context, Method, named
from metaug_core.pairs import Pairs
from metaug_core.registry import MetaugError


class MetAug(Method):
    """`base` with a MAG: L_MetAug = L_ori + delta L_aug, where L_aug is base's own loss over features that include z~."""

    def __init__(self, config: Config, base: Method):
        super().__init__(config)
        self.base = base
        # All but the loss is the base method's own.
        self.views, self.networks, self.memory = base.views, base.networks, base.memory
        self.context, self.remember, self.betas = base.context, base.remember, base.betas

    def loss(self, z: Tensor, context: Context) -> Tensor:
        return self.base.loss(z, context)

    def generator(self) -> nn.Module:
        return MAG(self.base.parts * len(self.config.views), self.config.feature_dim, self.config.mag_hidden)

    def terms(self, z: Tensor, context: Context, augment: Augment) -> dict[str, Tensor]:
        return self._terms(z, augment(z), context, self.config.margin_everywhere)

    def outer_terms(self, z: Tensor, context: Context, augment: Augment) -> dict[str, Tensor]:
        return self._terms(z, augment(z), context, margin=True)

    def _terms(self, z: Tensor, augmented: Tensor, context: Context, margin: bool) -> dict[str, Tensor]:
        pairs, scale = context.pairs(len(self.config.views)), self.config.loss_scale
        sets, context = augmented_sets(z, augmented, self.config.augmented_sets, pairs), replace(context, shared=pairs)
        including = torch.stack([self.base.loss(features, context) for features in sets]).sum()
        found = {
            "loss_original": scale * self.base.loss(z, context),
            "loss_augmented": scale * self.config.delta * including,
        }
        if margin:
            found["loss_margin"] = self.config.alpha * self.margin_term(z, augmented, context)
        return found

    def margin_term(self, z: Tensor, augmented: Tensor, context: Context) -> Tensor:
        """R_sigma (eq. 5) of z and z~ (V, B, d), with the margins of eq. 4."""
        config, pairs = self.config, context.pairs(len(self.config.views))
        if not self.base.unit_features:
            z = F.normalize(z, dim=-1)  # z~ is of unit norm by construction
        source = z if config.margin_source == "original" else augmented
        sigma = margins(*pairs(source, source), config.margin, per_anchor=config.margin_scope == "anchor")
        return margin_regularisation(*pairs(augmented, z), *sigma, config.margin_positive_weight)


def augmented_sets(z: Tensor, augmented: Tensor, how: str, pairs: Pairs) -> list[Tensor]:
    """The sets of features over which L_aug runs, from z and z~ (V, B, d).

    joint: both stacked (2V, B, d). swapped: V + 1 sets (V, B, d), each view replaced in turn, then all (authors' code).
    """
    if how == "joint":
        return [pairs.stack(z, augmented)]
    rows = range(len(z))  # of view row % V: a prediction is swapped together with its feature
    one = [torch.stack([(augmented if w % pairs.views == v else z)[w] for w in rows]) for v in range(pairs.views)]
    return [*one, augmented]


def with_mag(base: type[Method] | Composition) -> Composition:
    """Compose a method with the MAG: `mine+mag` by name. MetaugError if its z is not of features that a MAG could augment."""
    if not base.augmentable:
        raise MetaugError(f"{named(base)} has no features that a MAG could augment")
    objective = "L(z) + delta L(z, z~), z~ = MAG(z); the MAG takes alpha R_sigma and the look-ahead"
    return Composition(base, lambda method: MetAug(method.config, method), "MAG", "Li et al. 2022", objective)
