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
    """Projection head g. linear: one layer (CMC); mlp: two with a ReLU between (MoCo v2); mlp-bn: these with BatchNorm after each
    (SimCLR); alexnet: the rest of the split AlexNet (Appendix B.1), fc6 to fc8 on `conv`, fc8 on any other encoder."""


class OuclSettings(Settings):
    """Of the forms of OUCL (`methods.base.unified_contrast`)."""

    oucl: Literal["eq7", "eq8", "eq9", "eq10"] = "eq10"
    """Form of OUCL. eq7: the hinge on sums; eq8: smooth, with beta; eq9: weighted by Gamma; eq10: eq. 9 at phi_dec 1,
    simplified."""
    beta: Annotated[float, Field(gt=0, le=1024)] = 16.0
    """Sharpness of OUCL (eq. 8-10), an inverse temperature."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Margin of OUCL (eq. 9 and 10); the paper fixes 0.40 (Appendix A.4)."""
    oucl_lambda: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """lambda, the margin of eq. 7 and 8."""
    phi_dec: Size = 1.0
    """Attenuation of Gamma in eq. 9 (section 4.4; the paper's best is 6, and its tables are of 6); 1: none."""
    gamma_detached: bool = False
    """eq. 9: no gradient passes through the weights Gamma (authors' code)."""
    attenuate: Literal["weight", "distance"] = "weight"
    """What phi_dec divides. weight: Gamma (paper); distance: inside Gamma, the distance to the optimum without its margin (authors'
    code)."""


class BankSettings(Settings):
    """Of methods that may take negatives from a memory bank (`methods.base.create_bank`)."""

    negatives: Literal["bank", "batch"] = "bank"
    """bank: negatives are past features from the memory bank; batch: features of the other images of the minibatch."""
    bank_negatives: Positive = 4096
    """K, past features drawn per view (paper 4096, authors' code 1024)."""
    bank_draw: Literal["shared", "per-anchor"] = "shared"
    """shared: one draw of negatives for the whole minibatch (fast); per-anchor: one for each anchor (authors' code)."""
    bank_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Weight of the old entry when an image's entry is updated; the result is normalised again."""
    positives: Literal["features", "bank"] = "features"
    """features: positives are the other views' features; bank: their stale bank entries (authors' code)."""


class MagSettings(Settings):
    """Of meta feature augmentation: what methods with a MAG use."""

    mag_hidden: Positive = 2048
    """Units of the two hidden layers of the MAG."""
    mag_optimiser: Literal["adam", "sgd"] = "adam"
    """For the MAG."""
    mag_lr: Rate = 1e-3
    """l' of eq. 6, learning rate of the MAG; 0: the MAG keeps its initial weights (a control)."""
    mag_lr_schedule: Literal["same", "constant"] = "same"
    """same: the MAG's rate follows the encoders' schedule, warm-up included; constant: it does not change (authors' code)."""
    mag_weight_decay: Rate = 0.0
    """L2 penalty on the MAG (authors' code: 1e-4)."""
    delta: Rate = 1e-5
    """delta of eq. 11: weight of the loss that includes augmented features (1e-5 in the paper's tables, by its Table 5)."""
    alpha: Rate = 1e-13
    """alpha of eq. 6: weight of R_sigma in the MAG update."""
    margin: Literal["large", "medium", "small", "none"] = "large"
    """How sigma+ and sigma- are taken from the original similarities (eq. 4, Appendix A.2)."""
    margin_scope: Literal["minibatch", "image", "anchor"] = "minibatch"
    """Over which pairs a margin is taken: those of the minibatch (eq. 4), of an image (authors' code), or of an anchor."""
    margin_pairs: Literal["other", "same", "both"] = "other"
    """Which original features R_sigma compares z~ with: those of other views, of the same view, or of both
    (`MetAug.margin_term`)."""
    margin_features: Literal["augmented", "all"] = "augmented"
    """augmented: R_sigma covers pairs with z~ (eq. 5); all: the mean of that and the same term over z (authors' code)."""
    margin_everywhere: bool = False
    """True: R_sigma also in the regular step and in the look-ahead loss (authors' code); False: only in the MAG's update
    (paper)."""
    margin_positive_weight: Rate = 1.0
    """Weight of the positive part of R_sigma (authors' code: 1e-4)."""
    augmented_sets: Literal["joint", "swapped"] = "joint"
    """L_aug. joint: one loss over z and z~ together; swapped: a sum of losses with z~ for z in each view in turn, then in all
    (authors' code)."""
    schedule: Literal["alternate", "epoch"] = "alternate"
    """alternate: a MAG step after each regular step, on the same minibatch; epoch: a pass of each in turn (Algorithm 1)."""
    look_ahead: Literal["shared", "fresh"] = "shared"
    """With alternate. shared: theta' starts from theta before the regular update and shares its gradient; fresh: from theta after
    it."""
    look_ahead_update: Literal["sgd", "optimiser"] = "sgd"
    """sgd: theta' = theta - l gradient (eq. 3); optimiser: the step that the encoders' optimiser is about to take (`next_step`)."""
    inner_lr: Rate | None = None
    """l of eq. 3, the look-ahead's learning rate; None: that of the encoders."""
    look_ahead_loss: Literal["whole", "original"] = "whole"
    """What omega lowers at theta', beside alpha R_sigma. whole: eq. 11; original: L_ori alone, which leaves only the mixed part."""
    look_ahead_batch: Literal["same", "previous"] = "same"
    """Minibatch of the loss at theta'. same: that of the inner step (paper); previous: the one before (meta-learning usually takes
    another)."""
    mag_objective: Literal["literal", "scaled"] = "literal"
    """literal: omega lowers eq. 6 as written, whose gradient is as small as delta; scaled: eq. 6 divided by delta, which has the
    same minimum and a gradient that Adam's eps (1e-8) does not hide."""
    mag_direction: Literal["descend", "ascend"] = "descend"
    """descend: omega lowers the loss at theta' (paper); ascend: it raises it, as an adversary. Both lower R_sigma."""
    mag_gradient: Literal["whole", "direct"] = "whole"
    """whole: the gradient of eq. 6; direct: only what z~ itself does to the loss at theta', without the second derivative."""
    meta: Literal["forward", "double-backward"] = "forward"
    """How the meta-gradient is computed: both are exact, and double-backward is the slow reference."""
    bank_writes: Literal["step", "every-pass"] = "step"
    """step: the bank is written once per step; every-pass: also in the look-ahead's two passes (authors' code)."""


class SingleSettings(Settings):
    """Of losses, heads, queues and modifiers, each used by a few methods."""

    # --- contrast
    temperature: Size = 0.07
    """t of InfoNCE (eq. 1) and NT-Xent."""
    scope: Literal["anchor", "image", "minibatch"] = "anchor"
    """anchor: one OUCL per anchor, averaged; image: one per image, over the pairs of all its views (authors' code); minibatch: one
    in all."""

    # --- modifiers debiased and hard
    tau_plus: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Assumed share of negatives that are of the anchor's class (Chuang et al. 2020); 0: the plain sum."""
    hard_beta: Annotated[float, Field(ge=0, le=100)] = 1.0
    """b: negatives are weighted by e^(b s / t), hard ones most (Robinson et al. 2021); 0: as `debiased`."""

    # --- predictors, averaged networks, queues, prototypes: settings of single methods
    head_hidden: Positive = 2048
    """Units of the hidden layers of projection heads with BatchNorm (BYOL, SimSiam, Barlow Twins, NNCLR, SwAV, NAT)."""
    projector_norm: bool = False
    """BatchNorm after the last layer of the projector of BYOL and SwAV. It centres each view's features; the authors have none."""
    predictor_hidden: Positive = 512
    """Units of the hidden layer of the predictor (BYOL and NNCLR 4096, SimSiam 512)."""
    predictor_lr_schedule: Literal["same", "constant"] = "same"
    """same: the predictor's rate follows the encoders' schedule; constant: it does not change (SimSiam's authors)."""
    ema_momentum: Share = 0.99
    """m of averaged networks: m old + (1 - m) new after each step (MoCo 0.999, BYOL 0.996, for many more steps)."""
    ema_schedule: Literal["constant", "cosine"] = "constant"
    """constant: m does not change; cosine: it rises to 1 by the end of the run, along half a cosine (BYOL)."""
    queue_size: Annotated[int, Field(ge=0, lt=2**31)] = 4096
    """Past features of each view that are remembered (MoCo, NNCLR, SwAV; SwAV also 0)."""
    shared_queue: bool = False
    """True: one queue for all views, as with two crops of one kind; False: one per view."""
    barlow_lambda: Rate = 0.0051
    """Weight of the off-diagonal entries of Barlow Twins' cross-correlation."""
    prototypes: Annotated[int, Field(ge=2, lt=2**31)] = 512
    """SwAV's prototypes (3000 in the paper and in solo-learn on CIFAR; 512 is lightly's number)."""
    prototypes_frozen_epochs: Rate = 1.0
    """SwAV: epochs at the start in which the prototypes do not change (the authors: 1 on ImageNet, solo-learn: 2 on CIFAR)."""
    sinkhorn_epsilon: Size = 0.05
    """Temperature of SwAV's assignments; smaller is sharper."""
    sinkhorn_steps: Positive = 3
    """Iterations of Sinkhorn's normalisation."""

    # --- objectives of other kinds: settings of single methods
    nat_every: Positive = 3
    """NAT: targets are assigned again every this many epochs, beginning with the first."""
    whitening_size: Positive | None = None
    """W-MSE: number of images whitened together, best at least twice feature_dim; None: the minibatch."""
    dim_units: Positive = 2048
    """DIM: units of the embeddings of local and global features, hidden and output."""
    dim_bound: Literal["jsd", "infonce"] = "jsd"
    """DIM: the bound of the mutual information that is raised. jsd: Jensen-Shannon (eq. 4); infonce: InfoNCE (eq. 5)."""
    cpc_grid: Annotated[int, Field(ge=2, le=16)] = 5
    """CPC: patches per side; they overlap by half (7 in the paper)."""
    cpc_skip: Annotated[int, Field(ge=0)] = 1
    """CPC: number of rows below that are skipped, since the nearest shares pixels (2 in the paper)."""
    jigsaw_grid: Annotated[int, Field(ge=2, le=8)] = 3
    """InfoMin: pieces per side in the jigsaw branch."""
    jigsaw_weight: Share = 0.5
    """InfoMin: weight w of the jigsaw branch; the other branch has 1 - w."""
    looc_held: Annotated[tuple[Literal["colour", "crop", "flip", "rotation"], ...], Field(min_length=1)] = (
        "colour",
        "rotation",
    )
    """LooC: augmentations with a head of their own that stays sensitive to them."""

    # --- methods after the paper
    vicreg_weights: tuple[Rate, Rate, Rate] = (25.0, 25.0, 1.0)
    """VICReg: weights of invariance, variance and covariance."""
    ft_alphas: tuple[Size, Size] = (2.0, 1.6)
    """FT: a of Beta(a, a) for the weights of positives (1 + the draw) and of past negatives."""
    hallucinator_reach: Rate = 0.1
    """Hallucinator: r of the extrapolation (1 + r) q - r k is uniform in [0, this)."""
    hardest_negatives: Positive = 256
    """MoCHi, SynCo: number of past features nearest to the query from which synthetic negatives are made; all if there are
    fewer."""
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
