"""Settings that only some methods use, a part of `Config`, in groups that a method names as one: those of a projected feature, of
OUCL, of the memory bank, of the MAG, and single ones.

A method says in its `Description` which of them it uses; what it does not use is not in the name of its runs. A setting that a
single method brings stands in `SingleSettings`, under that method's name: it is then checked, saved and hashed as all are.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0, lt=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Size = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class ProjectionSettings(Settings):
    """Of features under the usual projection head (`heads.head`)."""

    feature_dim: Positive = 128
    """d, the dimension of the features z that are contrasted."""
    head: Literal["linear", "mlp", "mlp-bn", "alexnet"] = "linear"
    """Projection head g: one layer (CMC), two with a ReLU between (MoCo v2), or with BatchNorm after each as well (SimCLR);
    alexnet: what follows in the split AlexNet (Appendix B.1), fc6, fc7 and fc8 on `conv`, fc8 on any other."""


class OuclSettings(Settings):
    """Of the forms of OUCL (`methods.base.unified_contrast`)."""

    oucl: Literal["eq7", "eq8", "eq9", "eq10"] = "eq10"
    """Which form of OUCL: the hinge on sums, with a temperature, weighted by Gamma, or eq. 9 with phi_dec 1, which leaves gamma."""
    beta: Annotated[float, Field(gt=0, le=1024)] = 16.0
    """Temperature coefficient of OUCL (eq. 8-10)."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Margin of OUCL (eq. 9 and 10); the paper fixes 0.40 (Appendix A.4)."""
    oucl_lambda: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """lambda, the margin of eq. 7 and 8."""
    phi_dec: Size = 1.0
    """Attenuation of Gamma in eq. 9 (section 4.4; the paper's best is 6, and its tables are of 6); 1: none."""
    gamma_detached: bool = False
    """eq. 9: take the weights Gamma as constants, as the authors' code does."""
    attenuate: Literal["weight", "distance"] = "weight"
    """phi_dec divides the weight Gamma (paper), or the distance to the optimum inside it and not its margin (authors' code)."""


class BankSettings(Settings):
    """Of methods that may take negatives from a memory bank (`methods.base.create_bank`)."""

    negatives: Literal["bank", "batch"] = "bank"
    """Negatives: past features from the memory bank, or the other images of the minibatch."""
    bank_negatives: Positive = 4096
    """K, past features drawn per view (paper 4096, authors' code 1024)."""
    bank_draw: Literal["shared", "per-anchor"] = "shared"
    """One draw that the whole minibatch shares (fast), or one per anchor (authors' code)."""
    bank_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the old entry that stays when an image's entry is written; the result is renormalised."""
    positives: Literal["features", "bank"] = "features"
    """Positives: the other views' features, or their stale bank entries (authors' code)."""


class MagSettings(Settings):
    """Of meta feature augmentation: what methods with a MAG use."""

    mag_hidden: Positive = 2048
    """Units of the two hidden layers of the MAG."""
    mag_optimiser: Literal["adam", "sgd"] = "adam"
    """For the MAG."""
    mag_lr: Rate = 1e-3
    """l' of eq. 6, learning rate of the MAG; 0: the MAG stays as it was drawn (a control)."""
    mag_lr_schedule: Literal["same", "constant"] = "same"
    """The MAG's rate changes as the encoders' does, warm-up included, or stays (authors' code)."""
    mag_weight_decay: Rate = 0.0
    """L2 penalty on the MAG (authors' code: 1e-4)."""
    delta: Rate = 1e-5
    """delta of eq. 11: weight of the loss that includes augmented features (the paper's tables are of 1e-5: its Table 5)."""
    alpha: Rate = 1e-13
    """alpha of eq. 6: weight of R_sigma in the MAG update."""
    margin: Literal["large", "medium", "small", "none"] = "large"
    """How sigma+ and sigma- come from the original similarities (eq. 4, Appendix A.2)."""
    margin_scope: Literal["minibatch", "image", "anchor"] = "minibatch"
    """Margins over the minibatch (eq. 4), over all pairs of an image (authors' code), or over those of an anchor."""
    margin_pairs: Literal["other", "same", "both"] = "other"
    """R_sigma compares z~ with original features of other views, of its own view, or of both (`MetAug.margin_term`)."""
    margin_features: Literal["augmented", "all"] = "augmented"
    """R_sigma is of z~ alone (eq. 5), or the mean of that and of the same of z (authors' code)."""
    margin_everywhere: bool = False
    """R_sigma also in the regular step and in the look-ahead loss (authors' code); the paper: the MAG update only."""
    margin_positive_weight: Rate = 1.0
    """Factor on the positive part of R_sigma (authors' code: 1e-4)."""
    augmented_sets: Literal["joint", "swapped"] = "joint"
    """L_aug: one loss over z and z~ together, or a sum with each view swapped in turn and then all (authors' code)."""
    schedule: Literal["alternate", "epoch"] = "alternate"
    """MAG step after each regular one on the same minibatch, or a pass of each in turn (Algorithm 1)."""
    look_ahead: Literal["shared", "fresh"] = "shared"
    """alternate: theta' starts from theta before the regular update, whose gradient it shares, or from theta after it."""
    look_ahead_update: Literal["sgd", "optimiser"] = "sgd"
    """theta' is theta - l gradient (eq. 3), or what the encoders' optimiser is about to make of theta (`next_step`)."""
    inner_lr: Rate | None = None
    """l of eq. 3, the look-ahead's learning rate; None: that of the encoders."""
    look_ahead_loss: Literal["whole", "original"] = "whole"
    """What omega descends on at theta' (beside alpha R_sigma): eq. 11, or L_ori alone, so that only the mixed part is left."""
    look_ahead_batch: Literal["same", "previous"] = "same"
    """Minibatch of the loss at theta': that of the inner step (paper), or the one before (meta-learning usually takes another)."""
    mag_objective: Literal["literal", "scaled"] = "literal"
    """omega descends on eq. 6 as it stands, whose gradient is of the size of delta, or on eq. 6 divided by delta: the same minimum,
    but Adam's eps (1e-8) then hides nothing of it."""
    mag_direction: Literal["descend", "ascend"] = "descend"
    """omega lowers the loss at theta' (paper), or raises it, an adversary; R_sigma is lowered by both."""
    mag_gradient: Literal["whole", "direct"] = "whole"
    """The gradient of eq. 6, or its direct part alone: what z~ itself does to the loss at theta', no second derivative."""
    meta: Literal["forward", "double-backward"] = "forward"
    """How the meta-gradient is computed; both are exact, the second is the slow reference."""
    bank_writes: Literal["step", "every-pass"] = "step"
    """Write the bank once a step, or also from the look-ahead's two passes (authors' code)."""


class SingleSettings(Settings):
    """Of losses, heads, queues and modifiers, each used by a few methods."""

    # --- contrast
    temperature: Size = 0.07
    """t of InfoNCE (eq. 1) and NT-Xent."""
    scope: Literal["anchor", "image", "minibatch"] = "anchor"
    """One OUCL per anchor, averaged; one per image, over the pairs of all its views (authors' code); or one over the minibatch."""

    # --- modifiers debiased and hard
    tau_plus: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of negatives that are of the anchor's own class (Chuang et al. 2020); 0: the plain sum."""
    hard_beta: Annotated[float, Field(ge=0, le=100)] = 1.0
    """b, how much more hard negatives weigh, e^(b s / t) (Robinson et al. 2021); 0: as `debiased`."""

    # --- predictors, averaged networks, queues, prototypes: settings of single methods
    head_hidden: Positive = 2048
    """Units of the hidden layers of projection heads with BatchNorm (BYOL, SimSiam, Barlow Twins, NNCLR, SwAV, NAT)."""
    projector_norm: bool = False
    """BatchNorm after the last layer of the projector of BYOL and SwAV, which theirs has not: it centres each view's features."""
    predictor_hidden: Positive = 512
    """Units of the hidden layer of the predictor (BYOL and NNCLR 4096, SimSiam 512)."""
    predictor_lr_schedule: Literal["same", "constant"] = "same"
    """The predictor's learning rate changes as the encoders', or stays (SimSiam's authors)."""
    ema_momentum: Share = 0.99
    """m of averaged networks, m old + (1 - m) new after each step (MoCo 0.999, BYOL 0.996 in runs of many more steps)."""
    ema_schedule: Literal["constant", "cosine"] = "constant"
    """m stays, or rises to 1 at the end of the run by half a cosine (BYOL)."""
    queue_size: Annotated[int, Field(ge=0, lt=2**31)] = 4096
    """Past features of each view that are remembered (MoCo, NNCLR, SwAV; SwAV also 0)."""
    shared_queue: bool = False
    """One queue for all views, as for two crops of one kind, or one for each."""
    barlow_lambda: Rate = 0.0051
    """Weight of the off-diagonal entries of Barlow Twins' cross-correlation."""
    prototypes: Annotated[int, Field(ge=2, lt=2**31)] = 512
    """SwAV's prototypes (3000 in the paper and in solo-learn on CIFAR; 512 is lightly's number)."""
    prototypes_frozen_epochs: Rate = 1.0
    """SwAV: passes over the images in which the prototypes stay as drawn (the authors: 1 on ImageNet, solo-learn: 2 on CIFAR)."""
    sinkhorn_epsilon: Size = 0.05
    """Temperature of SwAV's assignments; smaller is sharper."""
    sinkhorn_steps: Positive = 3
    """Rounds of Sinkhorn's normalisation."""

    # --- objectives of other kinds: settings of single methods
    nat_every: Positive = 3
    """NAT: targets are assigned anew in every such pass over the images, the first included."""
    whitening_size: Positive | None = None
    """W-MSE: images whitened together, at least 2 feature_dim is best; None: the minibatch."""
    dim_units: Positive = 2048
    """DIM: units of the embeddings of local and global features, hidden and output."""
    dim_bound: Literal["jsd", "infonce"] = "jsd"
    """DIM: which bound of the mutual information is raised, Jensen-Shannon's (eq. 4) or InfoNCE (eq. 5)."""
    cpc_grid: Annotated[int, Field(ge=2, le=16)] = 5
    """CPC: patches a side, which overlap by half (7 in the paper)."""
    cpc_skip: Annotated[int, Field(ge=0)] = 1
    """CPC: so many rows below are not predicted; the nearest shares pixels (2 in the paper)."""
    jigsaw_grid: Annotated[int, Field(ge=2, le=8)] = 3
    """InfoMin: pieces a side of the jigsaw branch."""
    jigsaw_weight: Share = 0.5
    """InfoMin: weight of the jigsaw branch, 1 less this that of the other."""
    looc_held: Annotated[tuple[Literal["colour", "crop", "flip", "rotation"], ...], Field(min_length=1)] = (
        "colour",
        "rotation",
    )
    """LooC: augmentations that one head each stays sensitive to."""

    # --- methods after the paper
    vicreg_weights: tuple[Rate, Rate, Rate] = (25.0, 25.0, 1.0)
    """VICReg: weights of invariance, variance and covariance."""
    ft_alphas: tuple[Size, Size] = (2.0, 1.6)
    """FT: a of Beta(a, a), from which the weights of positives (1 + it) and of past negatives are drawn."""
    hallucinator_reach: Rate = 0.1
    """Hallucinator: the largest r of the extrapolation (1 + r) q - r k, which is uniform in [0, this)."""
    hardest_negatives: Positive = 256
    """MoCHi, SynCo: synthetic negatives are made of so many past features, those nearest to the query; all if there are fewer."""
    adversary_lr: Rate = 3.0
    """AdCo: learning rate of the negatives, by SGD with momentum 0.9."""
    adversary_temperature: Size = 0.02
    """AdCo: t of the InfoNCE that the negatives raise."""
    matched_similarity: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Modifiers noise and dropout: d(z, z~), which a MAG's run logs as augmented_similarity."""


PROJECTION, OUCL, BANK, MAG, SINGLE = (
    frozenset(group.model_fields)
    for group in (ProjectionSettings, OuclSettings, BankSettings, MagSettings, SingleSettings)
)
OPTIONAL = PROJECTION | OUCL | BANK | MAG | SINGLE  # all else in `Config` every method uses

MARGIN_KINDS = {"large", "medium", "small"}  # with margin "none" R_sigma is 0
# A setting that does nothing unless another, of those that the method uses, has one of these values.
ONLY_WITH: dict[str, dict[str, set[str]]] = {
    **{name: {"negatives": {"bank"}} for name in BANK - {"negatives"}},
    "gamma": {"oucl": {"eq9", "eq10"}},
    "beta": {"oucl": {"eq8", "eq9", "eq10"}},
    "momentum": {"optimiser": {"sgd", "lars"}, "mag_optimiser": {"sgd"}},
    "lr_decay": {"lr_schedule": {"step"}},
    **{name: {"margin": MARGIN_KINDS} for name in MAG if name.startswith("margin_")},
}
