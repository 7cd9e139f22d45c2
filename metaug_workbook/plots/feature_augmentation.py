"""What each way of augmenting features adds, and what it costs: a table, sentences, and figures in the registry of
`paper_figures`."""

from functools import lru_cache

import pandas as pd
from matplotlib.figure import Figure

from metaug_core.presets import preset
from metaug_workbook.plots.paper_figures import (
    SMALL,
    Table,
    compare_to,
    count_seeds,
    describe_seeds,
    draw_forest,
    print_label,
    publish_by,
    register,
    register_evidence,
)
from metaug_workbook.plots.style import draw_empty, label, make_panels, pick_color, verbatim
from metaug_workbook.results import evidence_tables, step_costs
from metaug_workbook.results.evidence import EXPERIMENTS
from metaug_workbook.results.tables import format_estimate, format_table

SAME_COST = 1.1  # times the operations of the reference: within it, equal steps are equal cost


@lru_cache
def count_operations(method: str) -> float:
    """Floating-point operations of one training step of a method in the preset `standard`: the same on every machine."""
    config = preset("standard", method=method, dataset="shapes", image_size=24)
    return step_costs.count_work(step_costs.prepare_step(config).take).flops


def count_costs(table: Table, reference: str) -> Table:
    """Operations of a run, by arm, times those of the reference: of a step, by epochs. table: arm, method, epochs."""
    arms: Table = table.drop_duplicates("arm").set_index("arm")
    costs = arms["epochs"].astype(float) * arms["method"].map(count_operations)
    return costs / costs.get(reference, float("nan"))


def draw_gain_beside_cost(table: Table, reference: str) -> Figure:
    """Left: gain of each arm on the reference's same seeds (linear probe and kNN); right: the operations of its runs beside the
    reference's. table: arm, method, epochs, seed, accuracy, knn."""
    figure, axes = make_panels(3, 4.1, 3.6)
    arms = [arm for arm in dict.fromkeys(table["arm"]) if arm != reference]
    for ax, (column, title) in zip(axes, (("accuracy", "linear probe"), ("knn", "kNN")), strict=False):
        if table[column].isna().all():
            draw_empty(ax, f"Gain on {reference}, {title}", "no finished run yet")
            continue
        gains = compare_to(table.assign(accuracy=table[column]), "arm", reference)
        draw_forest(gains, ax, arms, {}, -3)
        label(ax, f"Gain on {reference}, {title}", "difference (points), same seeds", "", describe_seeds(gains["n"]))
    costs = count_costs(table, reference)[arms].dropna()
    axes[2].barh(range(len(costs)), costs, color="0.6")
    for place, cost in enumerate(costs):
        axes[2].text(cost, place, f" {cost:.2f}", va="center", **SMALL)
    axes[2].axvline(1, color="0.3", linewidth=1)
    axes[2].set_yticks(range(len(arms)), [verbatim(arm) for arm in arms])
    axes[2].set_ylim(len(arms) - 0.5, -0.5)
    axes[2].set_xlim(0, max([*costs, 1]) * 1.15)
    label(axes[2], "Operations of a run", f"times those of {reference}", "", "counted, preset standard")
    return figure


for suffix, title in (("", "CMC"), ("-simclr", "SimCLR")):

    @register_evidence(
        f"12-feature-augmentation{suffix}",
        f"What each way of augmenting features adds to {title} on the same seeds, with 95 % intervals, and what a run costs.",
    )
    def draw(table: Table, title: str = title) -> Figure:
        return draw_gain_beside_cost(table, title)


def read_gains(experiment: str) -> pd.DataFrame:
    """The gain of each arm of an experiment on the same seeds of its reference, in [0, 1]: mean, half_width and n of the linear
    probe, knn_mean, knn_half_width and knn_n; operations of a run, times those of the reference; and longer, the arm of the
    reference's own method that trains longer, if there is one. Of arms that cost more also equal_mean, equal_half_width and
    equal_n: the probe minus that of longer. No rows without runs."""
    table = evidence_tables.select_seeds(evidence_tables.read(experiment))
    return tabulate_gains(table, EXPERIMENTS[experiment].reference) if len(table) else pd.DataFrame()


def tabulate_gains(table: Table, reference: str) -> pd.DataFrame:
    """`read_gains` of a table: arm, method, epochs, seed, accuracy, knn."""

    def compare(column: str, other: str | None, prefix: str) -> pd.DataFrame:
        return compare_to(table.assign(accuracy=table[column]), "arm", other).set_index("arm").add_prefix(prefix)

    costs = count_costs(table, reference)
    methods: Table = table.drop_duplicates("arm").set_index("arm")["method"]
    longer = next(
        (arm for arm in methods.index if methods[arm] == methods.get(reference) and costs[arm] > SAME_COST), None
    )
    gains = compare("accuracy", reference, "").join(
        [compare("knn", reference, "knn_"), compare("accuracy", longer, "equal_")]
    )
    gains = gains.assign(operations=costs.reindex(gains.index), longer=longer)
    gains.loc[gains["operations"] <= SAME_COST, ["equal_mean", "equal_half_width", "equal_n"]] = float("nan")
    return gains.fillna({"knn_n": 0, "equal_n": 0})


def format_gains(gains: Table) -> pd.DataFrame:
    """`tabulate_gains` for a reader: points with 95 % intervals."""
    columns = {"linear probe": "", "kNN": "knn_", "at equal cost": "equal_"}
    texts = {title: [estimate(row, prefix) for _, row in gains.iterrows()] for title, prefix in columns.items()}
    same = gains["operations"] <= SAME_COST
    texts["at equal cost"] = [
        "as at equal steps" if one else text for one, text in zip(same, texts["at equal cost"], strict=True)
    ]
    return format_table(pd.DataFrame(texts, gains.index).assign(operations=gains["operations"].round(2)))


def estimate(row: Table, prefix: str = "") -> str:
    """`+0.8 ± 0.3 (n = 5)` of a row of `tabulate_gains`."""
    return format_estimate(row[f"{prefix}mean"], row[f"{prefix}half_width"], row[f"{prefix}n"], sign="+")


def describe_gains(gains: Table, reference: str) -> str:
    """What a user should take, as Markdown, from `tabulate_gains`: which arms change the linear probe beyond chance, what the
    intervals of the others exclude, and what is known at equal cost."""
    if gains.empty:
        return f"On {reference} there are no runs yet."
    arms = gains.drop(gains["longer"].dropna().unique(), errors="ignore")
    clear = arms[arms["mean"].abs() > arms["half_width"]].sort_values("mean", ascending=False)
    unclear, single = arms.drop(clear.index).dropna(subset=["half_width"]), arms[arms["half_width"].isna()]
    dear = arms[arms["operations"] > SAME_COST]
    better = clear[clear["mean"] > 0]
    worth = better[(better["operations"] <= SAME_COST) | (better["equal_mean"] > better["equal_half_width"])]
    if len(clear) + len(unclear) == 0:
        sentences = [f"**On {reference} nothing can be told yet.**"]
    elif len(worth):
        sentences = [f"**On {reference} take {worth.index[0]}: of what is worth its cost it adds most.**"]
    elif len(better):
        sentences = [f"**On {reference} {better.index[0]} adds most at equal steps; at equal cost that is not shown.**"]
    else:
        sentences = [f"**Take {reference} as it is: nothing adds to it beyond chance.**"]
    if len(clear):
        sentences.append(f"Beyond chance by the linear probe, in points: {list_gains(clear)}.")
    by_knn = arms[arms["knn_mean"].abs() > arms["knn_half_width"]]
    if len(by_knn):
        sentences.append(f"Beyond chance by kNN: {list_gains(by_knn, 'knn_')}.")
    if len(unclear):
        most = unclear["mean"] + unclear["half_width"]
        listed = ", ".join(f"{100 * points:.1f} ({arm})" for arm, points in most.items())
        sentences.append(f"Where the interval holds zero, it excludes gains above {listed}.")
    if len(single):
        sentences.append(f"One seed decides nothing: {list_gains(single)}.")
    for arm, row in dear.iterrows():
        sentences.append(f"With {arm} a run takes {row['operations']:.2f} times the operations.")
        if row["equal_n"]:
            longer, cost = row["longer"], gains.loc[row["longer"], "operations"]
            equal = estimate(row, "equal_")
            sentences.append(
                f"At equal cost {longer} ({cost:.2f} times) gains {estimate(gains.loc[longer])}; {arm} minus it: {equal}."
            )
        else:
            sentences.append(
                f"What as many more steps of {reference} add is not measured, so at equal cost nothing is known of it."
            )
    if len(dear) < len(arms):
        most = arms.drop(dear.index)["operations"].max()
        sentences.append(
            f"All {'other ' if len(dear) else ''}runs take at most {most:.2f} times: there equal steps are equal cost."
        )
    return " ".join(sentences)


def list_gains(gains: Table, prefix: str = "") -> str:
    """`DCL +0.8 ± 0.3 (n = 5), noise ...` of rows of `tabulate_gains`."""
    return ", ".join(f"{arm} {estimate(row, prefix)}" for arm, row in gains.iterrows())


@register(
    "12-augmented-features",
    "What augmented features add to z: the singular values and the effective rank (RankMe) of z~ - z, and accuracy over d(z, z~) "
    "(CIFAR-10 images, JPEG re-encoded).",
    publish_by(
        "12_feature_augmentation",
        "-p preset standard -p dataset folder -p data_dir DIR -p measure probe_plain -p seeds 3",
    ),
)
def draw_augmented(table: Table) -> Figure:
    """Left: the singular values of what each method adds to its features, of the first seed; right: accuracy over d(z, z~), a dot
    for each seed, dotted lines for methods without z~. table: a row for each run (method, seed, accuracy) or, where it has z~, for
    each of its singular values, with number, value, rank and similarity (`notebook.tabulate_augmented`)."""
    figure, (left, right) = make_panels(2, 4.6, 3.5)
    seeds = table.groupby("method")["seed"].nunique()
    for method, rows in table.groupby("method", sort=False):
        look = {"color": pick_color(str(method)), "label": print_label(str(method))}
        spectrum = rows[rows["seed"] == rows["seed"].min()].dropna(subset=["number"])
        runs = rows.drop_duplicates("seed")
        if spectrum.empty:
            right.axhline(100 * runs["accuracy"].mean(), linestyle=":", **look)
            continue
        rank = f"{look['label']}: rank {spectrum['rank'].iloc[0]:.0f}"
        left.plot(spectrum["number"], spectrum["value"], color=look["color"], label=rank)
        right.plot(runs["similarity"], 100 * runs["accuracy"], "o", **look)
    left.set(yscale="log", ylim=(1e-3, 1.3))
    for ax, title, x, y, caption in (
        (left, r"Spectrum of $\tilde z - z$", "singular value", "size (the largest: 1)", "effective rank: RankMe; one seed"),
        (right, r"Accuracy by the similarity of $z$ and $\tilde z$", r"$d(z, \tilde z)$", "accuracy (%)",
         f"n = {count_seeds(seeds)}; dotted: no $\\tilde z$"),
    ):  # fmt: skip
        label(ax, title, x, y, caption)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(**SMALL)
    return figure
