"""MetAug: any method (`base.Method`) on meta augmented features as well (Li et al., ICML 2022, sections 3.2 and 3.4).

Algorithm 1, as `training.step` runs it:

    regular step   theta <- theta - l grad_theta  [ L(z) + delta L(z, z~) ]                      `terms`        eq. 11
    look-ahead     theta' = theta - l grad_theta  [ L(z) + delta L(z, z~) ]                      `terms`        eq. 3
    MAG step       omega <- omega - l' grad_omega [ (L + delta L_aug)(theta') + alpha R_sigma ]  `outer_terms`  eq. 6

The settings look_ahead_loss and mag_direction change the terms of the last line.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core import settings
from metaug_core.errors import MetaugError
from metaug_core.methods.base import Augment, Composition, Context, Method, OnBase
from metaug_core.networks.mag import MAG
from metaug_core.objectives.losses import margin_regularisation
from metaug_core.objectives.margins import margins
from metaug_core.objectives.similarity import Pairs, group_pairs


class MetAug(OnBase):
    """`base` with a MAG: L_MetAug = L_ori + delta L_aug, where L_aug is base's own loss over features that include z~."""

    def mag(self) -> nn.Module:
        config = self.config
        views, bf16 = self.description.parts * len(config.views), config.precision == "bf16"
        return MAG(views, config.feature_dim, config.mag_hidden, bf16)

    def terms(self, z: Tensor, context: Context, augment: Augment) -> dict[str, Tensor]:
        return self._terms(z, augment(z), context, self.config.margin_everywhere)

    def outer_terms(self, z: Tensor, context: Context, augment: Augment) -> dict[str, Tensor]:
        terms = self._terms(z, augment(z), context, margin=True)
        if self.config.look_ahead_loss == "original":
            del terms["loss_augmented"]
        if self.config.mag_direction == "ascend":
            terms |= {name: -term for name, term in terms.items() if name != "loss_margin"}
        return terms

    def _terms(self, z: Tensor, augmented: Tensor, context: Context, margin: bool) -> dict[str, Tensor]:
        context = replace(context, shared=context.pairs(len(self.config.views)))
        terms = weigh_terms(self.base, z, augmented, context)
        if margin:
            terms["loss_margin"] = self.config.alpha * self.margin_term(z, augmented, context)
        return terms

    def margin_term(self, z: Tensor, augmented: Tensor, context: Context) -> Tensor:
        """R_sigma (eq. 5) of z and z~ (V, B, d), with the margins of eq. 4 from original features of different views.

        Original features are the loss's own positives: z, or what the context holds in their place (the bank's entries).
        margin_pairs "other": z~ with original features of the other views. "same": with those of its own view. Its positive is
        the same image's, and its negatives are past features of this view or, without a bank, those of the other images.
        The paper's motive, that "augmented features and the original features are very similar", speaks of "same".
        margin_features "all": the mean of this and of the same for z in the place of z~, as in the authors' code.
        """
        config = self.config
        pairs = context.pairs(len(config.views))
        if pairs.views == 1:  # there is no pair of two views, so no margin
            return z.new_zeros(())
        if not self.description.unit_features:
            z = F.normalize(z, dim=-1)  # z~ is of unit norm by construction
        targets = z if context.positives is None else context.positives
        scope = config.margin_scope

        def compare(anchors: Tensor, which: str) -> tuple[Tensor, Tensor]:
            positives, negatives = compare_views(pairs, anchors, targets, which)
            return group_pairs(positives, scope, z.shape[1]), group_pairs(negatives, scope, z.shape[1])

        sigma = margins(*compare(z, "other"), config.margin, per_row=scope != "minibatch")
        features = [augmented, z] if config.margin_features == "all" else [augmented]
        similarities = [compare(anchors, config.margin_pairs) for anchors in features]
        terms = [margin_regularisation(*pair, *sigma, config.margin_positive_weight) for pair in similarities]
        return torch.stack(terms).mean()


def weigh_terms(base: Method, z: Tensor, augmented: Tensor, context: Context) -> dict[str, Tensor]:
    """The two weighted terms of eq. 11, of features z and augmented ones (V, B, d)."""
    config, pairs = base.config, context.pairs(len(base.config.views))
    context = replace(context, shared=pairs)
    sets = build_augmented_sets(z, augmented, config.augmented_sets, pairs)
    augmented_loss = torch.stack([base.loss(features, context) for features in sets]).sum()
    return {
        "loss_original": config.loss_scale * base.loss(z, context),
        "loss_augmented": config.loss_scale * config.delta * augmented_loss,
    }


def compare_views(pairs: Pairs, anchors: Tensor, targets: Tensor, which: str) -> tuple[Tensor, Tensor]:
    """Similarities (V, S, B, P) and (V, S, B, N) of anchors with targets of the "other" views, the "same" view or "both"."""
    if which == "other":
        return pairs.compare(anchors, targets)
    of_own = pairs.compare_own(anchors, targets)
    if which == "same":
        return of_own
    positives, negatives = zip(pairs.compare(anchors, targets), of_own, strict=True)
    return torch.cat(positives, -1), torch.cat(negatives, -1)


def build_augmented_sets(z: Tensor, augmented: Tensor, how: str, pairs: Pairs) -> list[Tensor]:
    """The sets of features over which L_aug runs, from z and z~ (V, B, d).

    joint: both stacked (2V, B, d). swapped: V + 1 sets (V, B, d), each view replaced in turn, then all (authors' code). pairs
    is told which rows are original features.
    """
    if how == "joint":
        pairs.mark(augmented, [False] * len(augmented))
        return [pairs.stack(z, augmented)]
    rows = range(len(z))  # row w is of view w % V: a prediction is swapped together with its feature
    swapped = [torch.stack([(augmented if w % pairs.views == v else z)[w] for w in rows]) for v in range(pairs.views)]
    for v, features in enumerate(swapped):
        pairs.mark(features, [w % pairs.views != v for w in rows])
    pairs.mark(augmented, [False] * len(augmented))
    return [*swapped, augmented]


def with_mag(base: type[Method] | Composition) -> Composition:
    """Compose a method with the MAG: `mine+mag` by name. Raises MetaugError if its z holds no features that a MAG could augment."""
    if not base.description.augmentable:
        raise MetaugError(f"{base.description.title} has no features that a MAG could augment")
    require_none_augmented(base, "mag")
    objective = "L(z) + delta L(z, z~), z~ = MAG(z); the MAG takes alpha R_sigma and the look-ahead"
    return Composition(base, MetAug, "MAG", "Li et al. 2022", objective,
                       augmented_by="look-ahead", uses=base.description.uses | settings.MAG)  # fmt: skip


def require_none_augmented(base: type[Method] | Composition, name: str) -> None:
    """Raise MetaugError if the method has augmented features already."""
    if base.description.augmented_by:
        raise MetaugError(f"modifier {name!r} adds augmented features, and {base.description.title} has some")
