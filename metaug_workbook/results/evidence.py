"""The evidence: the experiments that decide the paper's claims, in the order of their worth.

An experiment has arms, ways of training that are compared on the same seeds. Its name is that of the figure that shows it and of
its table in figures/data (`evidence_tables`). `metaug evidence` does what is missing (`jobs.evidence_runs`), and `claims` reads the
verdicts from the tables.

An experiment of your own is one entry: ``EXPERIMENTS["name"] = Experiment(question, arms, reference, seeds)``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from metaug_core.config import Config
from metaug_core.presets import preset
from metaug_core.registry import Registry
from metaug_workbook.results import paper_values

ROUNDS = (3, 5, 10, 20)  # all experiments get so many seeds before one gets more

Settings = Mapping[str, Any]
Table = Any  # a DataFrame: the type stubs of pandas take a column for anything but a Series


@dataclass(frozen=True)
class Experiment:
    """Arms that are compared on the same seeds.

    arms: settings by name, on top of the preset and of `settings`. reference: the arm that the others are compared with. seeds: how
    many, from first_seed on. augmented: z and z~ are tested too, where there is a MAG. own_floors: each arm has an untrained
    encoder of its own (other networks or views); else that of the reference stands for all. chosen_from: an experiment on
    validation images, from whose table `choose` takes the arms.
    """

    question: str
    arms: Mapping[str, Settings]
    reference: str
    seeds: int
    settings: Settings = field(default_factory=dict)
    preset: str = "standard"
    split: str = "test"
    first_seed: int = 0
    augmented: bool = False
    own_floors: bool = False
    chosen_from: str | None = None
    choose: "Callable[[Experiment, Table], dict[str, Settings]] | None" = None

    def build_configs(self, given: Settings, seeds: int | None = None) -> dict[tuple[str, int], Config]:
        """The config of each arm and seed, seeds outermost. given: settings of the user, over which go those of the experiment and
        of the arm. seeds: in place of its own number. Raises ConfigError."""
        numbers = range(self.first_seed, self.first_seed + (seeds or self.seeds))
        return {
            (arm, seed): preset(self.preset, **{**given, **self.settings, **changes, "seed": seed})
            for seed in numbers
            for arm, changes in self.arms.items()
        }


# --- the experiments, in the order of their worth
def name_values(settings: Settings) -> str:
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in settings.items()
    )


def cross(**axes: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """An arm for each combination of the axes' values, named by them."""
    combinations = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    return {name_values(changes): changes for changes in combinations}


def of_method(method: str, arms: Mapping[str, Settings], prefix: str = "") -> dict[str, dict[str, Any]]:
    """The arms with a method each, and with a prefix to their names."""
    return {f"{prefix}{name}": {"method": method, **changes} for name, changes in arms.items()}


def augment_features(title: str, method: str) -> dict[str, dict[str, Any]]:
    """The method, what augments its features in the order of their worth, and the method for the operations that a MAG's run takes,
    2.9 times those of its own 14 epochs."""
    modifiers = {"MAG": "mag", "DCL": "dcl", "noise": "noise", "Hallucinator": "hallucinator", "dropout": "dropout"}
    arms = {name: {"method": f"{method}+{short}"} for name, short in modifiers.items()}
    return {title: {"method": method}} | arms | {f"{title}, 40 epochs": {"method": method, "epochs": 40}}


BASES = {"metaug": "metaug-only-oucl", "metaug-only-mag": "cmc"}  # what each method with a MAG is without it


def keep_best(count: int) -> "Callable[[Experiment, Table], dict[str, Settings]]":
    """The arms of the bases, and the `count` arms that gain most on their base, in the mean over the seeds of a table."""

    def choose(experiment: Experiment, table: Table) -> dict[str, Settings]:
        means = table.groupby("arm")["accuracy"].mean()
        gains = {
            arm: means[arm] - means[BASES[changes["method"]]]
            for arm, changes in experiment.arms.items()
            if changes["method"] in BASES
        }
        best = sorted(gains, key=lambda arm: -gains[arm])[:count]
        return {arm: experiment.arms[arm] for arm in experiment.arms if arm in best or arm in BASES.values()}

    return choose


def keep_best_of_each_method(experiment: Experiment, table: Table) -> dict[str, Settings]:
    """Of each method the arm with the best mean over the seeds of a table, under the method's name."""
    means = table.groupby(["method", "arm"])["accuracy"].mean().reset_index().sort_values("accuracy")
    best = means.dropna().groupby("method")["arm"].last()
    return {method: experiment.arms[best[method]] for method in best.index}


ONLY_OUCL: dict[str, Any] = {"method": "metaug-only-oucl"}
METAUG: dict[str, Any] = {"method": "metaug"}  # the preset's MAG trains: delta = alpha = 0.1, eq. 6 divided by delta
SGD_AHEAD = {"look_ahead_update": "sgd"}
STRONG = {"delta": 1.0, "alpha": 1.0}
MATCHED = {"temperature": 0.125}  # 2 / beta: where eq. 8 is InfoNCE, divided by beta
PHI_DECS = (1, 2, 4, 6, 8)
KINDS = ("none", "small", "medium", "large")
DELTAS = tuple(10.0**-n for n in range(1, 9))
POWERS = tuple(2.0**n for n in range(1, 9))
ALPHAS = tuple(10.0**-n for n in range(3, 18, 2))
RATIOS = (0.1, 1.0, 10.0)  # alpha / delta: all that counts of both where eq. 6 is divided by delta
SHAPES = {"dataset": "shapes", "protocol": None}
RATES = (1e-3, 3e-3, 1e-2)  # of which each method's is chosen
FIGURE_4 = ("simclr", "dacl", "looc", "cmc+hard", "metaug-only-oucl", "metaug")

EXPERIMENTS: dict[str, Experiment] = Registry("experiment")
EXPERIMENTS |= {
    "09-claims": Experiment(
        "Does OUCL beat the contrastive loss, and does meta feature augmentation add to it?",
        {
            "only OUCL": ONLY_OUCL,
            "CMC": {"method": "cmc"},
            "CMC at t = 2/beta": {"method": "cmc", **MATCHED},
            "MetAug": METAUG,
            "MetAug, literal": {**METAUG, **SGD_AHEAD, "mag_objective": "literal", "delta": 1e-5, "alpha": 1e-13},
            "frozen MAG": {**METAUG, "mag_lr": 0.0},
            "no R_sigma": {**METAUG, "margin": "none"},
            "only MAG": {"method": "metaug-only-mag"},
            "MetAug, delta 1": {**METAUG, **STRONG},
            "MetAug, look-ahead by SGD": {**METAUG, **SGD_AHEAD},
            "MetAug, delta 1, look-ahead by SGD": {**METAUG, **STRONG, **SGD_AHEAD},
        },
        "only OUCL", 10, augmented=True,
    ),
    "04-gamma-attenuation": Experiment(
        "Does attenuating the weights Gamma help, most at 6 (Figure 3)?",
        {
            # Both weights at 1, as Figure 3 has it "without Gamma": lambda = 1 - 2 gamma, with gamma 0.4.
            "without Gamma": {**ONLY_OUCL, "oucl": "eq8", "oucl_lambda": 0.2},
            **{f"phi_dec {phi}": {**ONLY_OUCL, "oucl": "eq9", "phi_dec": float(phi)} for phi in PHI_DECS},
        },
        "without Gamma", 10,
    ),
    "06-margins": Experiment(
        "Is the Large margin best, with both losses (Figure 5)?",
        {
            **{f"OUCL, {kind}": {**METAUG, "margin": kind} for kind in KINDS},
            **{f"contrastive, {kind}": {"method": "metaug-only-mag", "margin": kind} for kind in KINDS},
            **{f"contrastive at t = 2/beta, {kind}": {"method": "metaug-only-mag", "margin": kind, **MATCHED} for kind in KINDS},
        },
        "OUCL, none", 10,
    ),
    "11-delta": Experiment(
        "How much do augmented features add at each delta, and do they help in the test (Table 5)?",
        {
            "only OUCL": ONLY_OUCL,
            "control": {**ONLY_OUCL, "lr": 3e-3 * (1 + 1e-6)},
            **{f"delta {delta:g}": {**METAUG, "delta": delta, "alpha": delta} for delta in DELTAS},
        },
        "only OUCL", 5, augmented=True,
    ),
    "03-margin-weights": Experiment(
        "At which weights does R_sigma do what Figure 2 shows?",
        {
            f"delta {delta:g}, {name}": {**METAUG, "delta": delta, **changes}
            for delta in (0.01, 0.1, 1.0)
            for name, changes in (
                ("no R_sigma", {"alpha": delta, "margin": "none"}),
                *((f"alpha/delta {ratio:g}", {"alpha": delta * ratio}) for ratio in RATIOS),
            )
        },
        "delta 0.1, no R_sigma", 5,
    ),
    "11-search-1": Experiment(
        "Is there a MAG that helps? First round: every variant of it, on validation images.",
        {
            base: {"method": base} for base in BASES.values()
        }
        | {
            f"{title}+MAG, {name}": {"method": method, **changes}
            for title, method in (("metaug-only-oucl", "metaug"), ("cmc", "metaug-only-mag"))
            for name, changes in (
                {
                    f"{which}, delta {delta:g}, alpha/delta {ratio:g}": {**how, "delta": delta, "alpha": delta * ratio}
                    for which, how in (
                        ("no look-ahead", {"mag_gradient": "direct"}),
                        ("look-ahead by the optimiser", {}),
                        ("only L_ori ahead", {"look_ahead_loss": "original"}),
                        ("another minibatch ahead", {"look_ahead_batch": "previous"}),
                        ("ascent", {"mag_direction": "ascend"}),
                    )
                    for delta in (0.03, 0.3)
                    for ratio in (0.1, 1.0)
                }
            ).items()
        },
        "metaug-only-oucl", 2, split="val", first_seed=100,
    ),
    "11-search-2": Experiment(
        "Is there a MAG that helps? Second round: the best eight of the first.",
        {}, "metaug-only-oucl", 5, split="val", first_seed=102, chosen_from="11-search-1", choose=keep_best(8),
    ),
    "11-search-3": Experiment(
        "Is there a MAG that helps? The best three of the second round against their base, on fresh seeds and the test split.",
        {}, "metaug-only-oucl", 10, first_seed=200, chosen_from="11-search-2", choose=keep_best(3),
    ),
    "07-gamma": Experiment(
        "Does gamma matter (Figure 7)?",
        {f"gamma {gamma:g}": {**ONLY_OUCL, "gamma": gamma} for gamma in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)},
        "gamma 0.4", 3, settings=SHAPES, preset="sketch",
    ),
    "07-hyperparameters": Experiment(
        "How do alpha, beta and delta work together (Figure 6)?",
        of_method("metaug", cross(alpha=(1e-13,), beta=POWERS, delta=DELTAS), "a: ")
        | of_method("metaug", cross(beta=(16.0,), alpha=ALPHAS, delta=DELTAS), "b: ")
        | of_method("metaug", cross(delta=(1e-5,), alpha=ALPHAS, beta=POWERS), "c: "),
        "a: alpha 1e-13, beta 16, delta 1e-05", 3, settings=SHAPES, preset="sketch",
    ),
    "08-augmentations": Experiment(
        "Is MetAug robust to weak augmentation (Table 4)?",
        {
            f"{method}, set {number}": {"method": method, **settings}
            for method in ("dacl", "looc", "metaug")
            for number, settings in paper_values.AUGMENTATION_SETS.items()
            if method != "dacl" or settings["mixup"]
        },
        "metaug, set 5", 5, settings={"protocol": "uniform"}, own_floors=True,
    ),
    "05-batch-size": Experiment(
        "How much does batch size matter (Figure 4)?",
        {
            f"{method}, batch {batch}": {"method": method, "batch_size": batch}
            for batch in (32, 64, 128, 256)
            for method in FIGURE_4
        },
        "metaug-only-oucl, batch 64", 5, settings={"protocol": "uniform"}, own_floors=True,
    ),
    "09-rates": Experiment(
        "Which of three rates suits each method (for Table 1, on validation images)?",
        {f"{name}, lr {lr:g}": {"method": name, "lr": lr} for name in paper_values.list_methods("cifar10", "conv") for lr in RATES},
        "metaug-only-oucl, lr 0.003", 2, settings={"protocol": "uniform"}, split="val", first_seed=100,
    ),
    "09-benchmarks": Experiment(
        "How do all methods do at one budget, each at its own best of three rates (Table 1, CIFAR-10)?",
        {}, "metaug-only-oucl", 5, settings={"protocol": "uniform"}, own_floors=True,
        chosen_from="09-rates", choose=keep_best_of_each_method,
    ),
    # All that have a delta take the preset's 0.1, which was chosen for the MAG: noise and dropout are its floors.
    "12-feature-augmentation": Experiment(
        "What does each way of augmenting features add to CMC, and what does it cost?",
        augment_features("CMC", "cmc") | {"MAG": {"method": "metaug-only-mag"}},
        "CMC", 5,
    ),
    "12-feature-augmentation-simclr": Experiment(
        "What does each way of augmenting features add to SimCLR, and what does it cost?",
        # FT needs a head with BatchNorm, which CMC has not: without it features collapse (LOG.md).
        augment_features("SimCLR", "simclr") | {"FT": {"method": "simclr+ft"}}, "SimCLR", 5,
    ),
}  # fmt: skip
