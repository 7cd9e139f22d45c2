"""The paper's figures and tables, and the workbook's own figures: for each one function and, above it, its registry entry.

Whoever wants another axis for Figure 3 changes `draw_accuracy_over_attenuation` here. If its table lacks that setting, notebook
04 names it in the grid and in `draw_figure(columns=)`. What several figures share is at the end of the file; the paper's numbers
are in `results.paper_values`.

A table has a row for each run (`results.tables`): its settings, `seed`, `method`, and `accuracy` in [0, 1], beside which
`untrained` is that of the same encoder before training and `measure` says which one it is (`select_measure`). Accuracies are
drawn in percent.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metaug_core.config import Config
from metaug_core.data import datasets
from metaug_core.evaluation.representations import interval
from metaug_core.presets import preset
from metaug_core.registry import Registry
from metaug_core.runs.store import request
from metaug_core.runtime.device import computed_in, unit_roundoff
from metaug_workbook.plots import diagram, image_grids
from metaug_workbook.plots.features import draw_accuracy_bars, draw_pair_histograms
from metaug_workbook.plots.style import (
    BLUE,
    FLOOR_COLORS,
    GREEN,
    MARKERS,
    ORANGE,
    draw_empty,
    draw_means,
    find_ends,
    label,
    make_figure,
    make_panels,
    pick_color,
    use_style,
    verbatim,
)
from metaug_workbook.results import evidence_tables, experiments, paper_values
from metaug_workbook.results.evidence import RATIOS
from metaug_workbook.results.tables import compare_paired, read_table, summarize

Table = Any  # a DataFrame: the type stubs of pandas take a column for anything but a Series
MEASURE_NAMES = {
    "probe_paper": "linear probe on random crops",
    "probe_plain": "linear probe on plain images",
    "probe_fast": "linear probe, fast",
    "knn": "kNN",
    "paper": "linear classifier",  # all that the paper says of its own accuracies
}
LEARNS = 5.0  # points above the same encoder untrained, with every seed
CONTROL, REFERENCE = 0.0, -1.0  # values of `weight` in the table of `draw_delta_question`
SMALL: dict[str, Any] = {"fontsize": 8}


@dataclass(frozen=True)
class Entry:
    """A figure of the gallery.

    sentence: what is seen, with n. command: what makes its numbers. draw: table of figures/data -> Figure. summarize: from the same
    table a sentence with what it counts, for the page. table: False for a picture without numbers, which is drawn from no rows.
    """

    sentence: str
    command: str
    draw: Callable[[pd.DataFrame], Figure]
    summarize: Callable[[pd.DataFrame], str] | None = None
    table: bool = True


FIGURES: dict[str, Entry] = Registry("figure")


def register(name: str, sentence: str, command: str, **options: Any) -> Callable:
    """Decorator: enter a drawing into the gallery under a name. options: as of `Entry`."""

    def enter(draw: Callable[[pd.DataFrame], Figure]) -> Callable[[pd.DataFrame], Figure]:
        FIGURES[name] = Entry(sentence, command, use_style()(draw), **options)
        return FIGURES[name].draw

    return enter


def publish_by(notebook: str, options: str = "-p seeds 3") -> str:
    """The command that makes a figure's numbers by a notebook and publishes it."""
    return f"metaug run {notebook} -p publish True {options}".strip()


def register_evidence(name: str, sentence: str) -> Callable:
    """Decorator: enter the drawing of an experiment's table (`results.evidence`), of which it gets one machine's rows a seed."""

    def enter(draw: Callable[[pd.DataFrame], Figure]) -> Callable[[pd.DataFrame], Figure]:
        def draw_selected(table: pd.DataFrame) -> Figure:
            return draw(evidence_tables.select_seeds(table) if evidence_tables.is_evidence(table) else table)

        return register(name, sentence, f"metaug evidence {name}")(draw_selected)

    return enter


# --- what the default run learns
@register(
    "first-run",
    "What the default run learns: test images and their five nearest training images before and after training (`shapes`, the "
    "first seed), and accuracies on raw pixels, the untrained and the trained encoder (three seeds).",
    "python benchmarks/shapes_learning.py --publish",
)
def draw_first_run(table: Table) -> Figure:
    """Neighbours above, accuracies below. table: rows with `panel` accuracy: of each seed, as `evaluate` has them; with `before` or
    `after`: a neighbour, as `image_grids.draw_neighbours` has them, of the first of these seeds."""
    seeds = table[table["panel"] == "accuracy"].groupby("seed")
    runs = [rows.set_index("representation") for _, rows in seeds]
    splits = datasets.load(preset("quick"))
    near = table[table["panel"] != "accuracy"].astype({"query": int, "rank": int, "neighbour": int})
    names = {"before": ("Before training", "untrained"), "after": ("After training", "trained")}
    titles = {panel: f"{name}: kNN {100 * runs[0].loc[row, 'knn']:.1f} %" for panel, (name, row) in names.items()}
    figure = make_figure(9.2, 8.0)
    above, below = figure.subplots(2, 1, height_ratios=(2.1, 1))
    image_grids.draw_neighbours(near, splits.test, splits.train, preset("quick").image_size, titles, above)
    draw_accuracy_bars(runs, below, chance=1 / len(splits.test.classes))
    return figure


# --- Figure 1
@register(
    "architecture",
    "The architecture of MetAug, after the paper's Figure 1.",
    "metaug figures architecture",
    table=False,
)
def draw_architecture(table: Table) -> Figure:
    """The diagram. table: not read."""
    del table
    return diagram.draw_diagram()


# --- Figure 2
@use_style()
def draw_similarities(table: Table) -> Figure:
    """Figure 2. table: margin (none, large), features (augmented, original), and the columns of `features.bin_similarities`."""
    figure, axes = make_panels(4, 3.2, 3.1)
    names = {"augmented": "an augmented feature", "original": "originals"}
    margins = {"none": "without $R_\\sigma$", "large": "with $R_\\sigma$"}
    cells = [(features, margin) for features in names for margin in margins]
    for ax, letter, (features, margin) in zip(axes, "abcd", cells, strict=True):
        rows = table[(table["margin"] == margin) & (table["features"] == features)]
        title = f"({letter}) {names[features]}, {margins[margin]}"
        if rows.empty:
            draw_empty(ax, title, "no finished run yet")
            continue
        draw_pair_histograms(rows, ax)
        counts = rows.groupby("pairs")["count"].first()
        caption = f"n = {counts['same']:,} and {counts['different']:,} pairs, 1 seed"
        label(ax, title, "similarity $d$", "density", caption)
    return figure


for suffix, dataset, options in (
    ("", "`shapes`", ""),
    ("-real", "CIFAR-10, JPEG re-encoded, 10,000 images",
     "-p preset quick -p dataset folder -p data_dir DIR -p train_images 10000 -p images 1000"),
):  # fmt: skip
    register(
        f"03-similarities{suffix}",
        f"Figure 2 on {dataset}: pairs with an augmented feature (a, b) and of original features (c, d), without and with the "
        "margin term; delta = alpha = 1, one seed.",
        publish_by("03_similarity_histograms", options),
    )(draw_similarities)
    register(
        f"03-similarities{suffix}-paper-weights",
        f"The same on {dataset} with delta = 1e-5, that of the paper's tables, and alpha = 1e-13, which its Figure 6 holds.",
        publish_by("03_similarity_histograms", options),
    )(draw_similarities)


def tabulate_gaps(table: Table) -> pd.DataFrame:
    """Mean similarity of same-image and of different-image pairs and their gap, by features and margin, from the table of
    `draw_similarities`."""
    rows = table.drop_duplicates(["margin", "features", "pairs"])
    means = rows.pivot(index=["features", "margin"], columns="pairs", values="mean")
    means = means.reindex(columns=pd.Index(["different", "same"], name="pairs")).astype(float)
    return means.assign(gap=means["same"] - means["different"]).round(3)


def describe_margin_change(table: Table) -> str:
    """By how much the margin term moves the mean similarity of same-image pairs with an augmented feature, from the table of
    `draw_similarities`."""
    means = tabulate_gaps(table)["same"]
    ends = [("augmented", margin) for margin in ("large", "none")]
    return f"{means[ends[0]] - means[ends[1]]:+.3f}" if all(end in means for end in ends) else "an unknown amount"


@register_evidence(
    "03-margin-weights",
    "Figure 2 as numbers, over the weight of R_sigma: how like z and its z~ are, and what R_sigma changes in the encoders' gap "
    "between the same and different images and in accuracy, on the same seeds, with 95 % intervals. The paper's picture is a line "
    "that falls on the left and one above 0 in the middle.",
)
def draw_margin_weights(table: Table) -> Figure:
    """Figure 2 by weights. table: delta, alpha, margin (none, large), seed, augmented_similarity, positive_similarity,
    negative_similarity, accuracy."""
    figure, axes = make_panels(3, 3.9, 3.5)
    ratio = (table["alpha"] / table["delta"]).where(table["margin"] != "none", 0.0).round(6)
    names = dict(enumerate(["no $R_\\sigma$", *(f"{ratio:g}" for ratio in RATIOS)]))
    table = table.assign(
        place=ratio.map({ratio: place for place, ratio in enumerate((0.0, *RATIOS))}),
        gap=table["positive_similarity"] - table["negative_similarity"],
        points=100 * table["accuracy"],
    )
    for (delta, rows), color, marker in zip(table.groupby("delta"), (GREEN, BLUE, ORANGE), MARKERS, strict=False):
        look: dict[str, Any] = {"color": color, "marker": marker, "label": rf"$\delta$ = {delta:g}"}
        draw_means(rows, "place", "augmented_similarity", axes[0], **look)
        for ax, column in ((axes[1], "gap"), (axes[2], "points")):
            by_place = rows.pivot(index="seed", columns="place", values=column)
            changes = by_place.sub(by_place[0], axis=0).stack().rename("change").reset_index()
            draw_means(changes, "place", "change", ax, **look)
    titles = (
        "$d(z, \\tilde z)$ of the same view",
        "Change of the originals' gap",
        "Change of the linear probe (points)",
    )
    caption = f"n = {count_seeds(table.groupby(['delta', 'place']).size())}"
    for ax, title in zip(axes, titles, strict=True):
        label(ax, title, r"$\alpha / \delta$", caption=caption if ax is axes[0] else "")
        ax.set_xticks(list(names), list(names.values()))
    axes[0].legend(**SMALL)
    for ax in axes[1:]:
        ax.axhline(0, color="0.3", linewidth=1)
    return figure


# --- Figure 3
@register_evidence(
    "04-gamma-attenuation",
    "Figure 3: accuracy by the attenuation of Gamma, and the gain over OUCL without Gamma beside the paper's at 6.",
)
def draw_accuracy_over_attenuation(table: Table) -> Figure:
    """Figure 3. table: oucl (eq9: with Gamma, eq8: without), phi_dec, method, seed, accuracy."""
    figure, (left, right) = make_panels(2, 4.6, 3.4)
    with_gamma, without = table[table["oucl"] == "eq9"], table[table["oucl"] == "eq8"]
    draw_accuracy_over(with_gamma, left, "phi_dec", "Accuracy by attenuation of Γ", r"$\phi_{dec}$")
    draw_reference(without, left, "without Γ")
    both = table.assign(attenuation=table["phi_dec"].where(table["oucl"] == "eq9", 0))
    gains = compare_to(both, "attenuation", 0)
    papers = {6: paper_values.FIGURE_3[6] - paper_values.FIGURE_3["without"]}
    draw_differences(gains, right, "attenuation", papers, "With Γ minus without, same seeds", r"$\phi_{dec}$",
                     papers_label="paper, Tiny ImageNet")  # fmt: skip
    return figure


# --- Figure 4
@register_evidence("05-batch-size", "Figure 4: accuracy by batch size, and the paper's values at 64.")
def draw_accuracy_over_batch_size(table: Table) -> Figure:
    """Figure 4. table: batch_size, method, seed, accuracy. Right: the paper's values at 64 (Table 1, CIFAR-10, conv)."""
    figure, (left, right) = make_panels(2, 4.9, 3.6)
    draw_accuracy_over(table, left, "batch_size", "Ours", "batch size")
    order = ["simclr", "dacl", "looc", "cmc+hard", "metaug-only-oucl", "metaug"]
    papers = select_papers(order, "cifar10", "conv")
    draw_method_rows(papers, right, "Paper, CIFAR-10, batch size 64", order, "20 trials, 95 % intervals")
    return figure


# --- Figure 5
@register_evidence("06-margins", "Figure 5: accuracy by margin and loss, and what each margin adds to none.")
def draw_margins(table: Table) -> Figure:
    """Figure 5. table: margin, method (metaug: OUCL; metaug-only-mag: contrastive, also as `experiments.name_matched` has
    it), seed, accuracy."""
    figure, (left, right) = make_panels(2, 4.6, 3.4)
    table = experiments.name_matched(table) if "temperature" in table else table
    names = {"metaug": "OUCL", "metaug-only-mag": "contrastive"}
    losses = [verbatim(paper_values.print_name(method, names)).replace(" at ", "\nat ") for method in table["method"]]
    means = summarize(table.assign(loss=losses), ["margin", "loss"], "accuracy")
    draw_heatmap(means, left, "margin", "loss", "Accuracy by margin and loss", ("margin", ""))
    margins = dict(enumerate(("small", "medium", "large")))
    by_method = table.groupby("method", sort=False)
    gains: Table = pd.concat([compare_to(rows, "margin", "none").assign(method=method) for method, rows in by_method])
    gains = gains.assign(place=gains["margin"].map({name: place for place, name in margins.items()}))
    draw_differences(gains, right, "place", title="Minus no margin, same seeds", x="margin", names=margins)
    loss_of = dict(zip(table["method"], losses, strict=True))
    handles, _ = right.get_legend_handles_labels()
    right.legend(handles, [loss_of[method].replace("\n", " ") for method in gains["method"].unique()], **SMALL)
    return figure


# --- Figure 6
@register_evidence("07-hyperparameters", "Figure 6: accuracy by alpha, beta and delta, two at a time.")
def draw_hyperparameters(table: Table) -> Figure:
    """Figure 6. table: panel (a: alpha fixed, b: beta fixed, c: delta fixed), alpha, beta, delta, seed, accuracy."""
    figure, axes = make_panels(3, 4.4, 3.5)
    table = table if "panel" in table else table.assign(panel=table["arm"].str[0])
    symbols = {"alpha": r"$\alpha$", "beta": r"$\beta$", "delta": r"$\delta$"}
    panels = {"a": ("alpha", "delta", "beta"), "b": ("beta", "delta", "alpha"), "c": ("delta", "beta", "alpha")}
    for ax, (letter, (fixed, x, y)) in zip(axes, panels.items(), strict=True):
        rows = table[table["panel"] == letter]
        title = f"({letter}) {symbols[fixed]} = {rows[fixed].iloc[0]:g}" if len(rows) else f"({letter})"
        draw_heatmap(summarize(rows, [x, y], "accuracy"), ax, x, y, title, (symbols[x], symbols[y]))
    return figure


# --- Figure 7
@register_evidence("07-gamma", "Figure 7: accuracy by gamma.")
def draw_accuracy_over_gamma(table: Table) -> Figure:
    """Figure 7. table: gamma, method, seed, accuracy."""
    figure, ax = make_panels(1, 5.2, 3.4)
    draw_accuracy_over(table, ax, "gamma", "Accuracy by the margin of OUCL (eq. 10)", r"$\gamma$")
    return figure


# --- Table 4
@register_evidence("08-augmentations", "Table 4: accuracy by augmentation set, ours and the paper's.")
def draw_augmentation_sets(table: Table) -> Figure:
    """Table 4. table: set (1 to 8, `paper_values.AUGMENTATION_SETS`), method, seed, accuracy. Right: the paper's (CIFAR-10, fc)."""
    figure, axes = make_panels(2, 6.2, 3.9)
    table = table if "set" in table else table.assign(set=table["arm"].str.extract(r"set (\d+)")[0].astype(int))
    papers: Table = paper_values.TABLE_4.astype(float).div(100).reset_index()
    papers = papers.melt("set", var_name="method", value_name="accuracy").assign(seed=0, measure="paper")
    panels = ((table, "Ours", None), (papers, "Paper, CIFAR-10, fc", "trials and intervals not stated"))
    for ax, (rows, title, caption) in zip(axes, panels, strict=True):
        x = "augmentation set of Table 4"
        draw_accuracy_over(rows.sort_values("method"), ax, "set", title, x, joined=False, caption=caption)
    return figure


# --- the claims
@register_evidence(
    "09-claims",
    "What each part of MetAug adds: accuracy minus that of only OUCL on the same seeds, with 95 % intervals, and the paper's "
    "differences (Table 1, CIFAR-10, conv). An arrow: below the scale.",
)
def draw_claims(table: Table) -> Figure:
    """What each part adds. table: arm, seed, accuracy, untrained, knn."""
    figure, axes = make_panels(2, 5.6, 4.4)
    arms = [arm for arm in dict.fromkeys(table["arm"]) if arm != "only OUCL"]
    only_oucl = paper_values.read_accuracy("metaug-only-oucl", "cifar10", "conv")
    papers = {arm: paper_values.read_accuracy(method, "cifar10", "conv") - only_oucl
              for arm, method in (("CMC", "cmc"), ("MetAug, literal", "metaug"))}  # fmt: skip
    reference = table[table["arm"] == "only OUCL"]
    for ax, (column, title) in zip(axes, (("accuracy", "linear probe"), ("knn", "kNN")), strict=True):
        floor = "untrained" if column == "accuracy" else f"untrained_{column}"
        rows = table.assign(accuracy=table[column])
        draw_forest(compare_to(rows, "arm", "only OUCL"), ax, arms, papers if column == "accuracy" else {}, -6)
        level, gain = 100 * reference[column].mean(), 100 * (reference[column] - reference[floor]).mean()
        caption = (
            f"only OUCL: {level:.1f} %, {gain:+.1f} over untrained; n = {count_seeds(table.groupby('arm').size())}"
        )
        label(ax, f"{title}, minus only OUCL", "points", "", caption)
        ax.yaxis.set_tick_params(labelleft=ax is axes[0])
    return figure


@use_style()
def draw_forest(differences: Table, ax: Axes, order: Sequence[str], papers: Mapping[str, float], low: float) -> None:
    """A row for each arm in order from above: its difference in [0, 1] (`compare_paired`) in points with the 95 % interval, dark
    where that excludes 0; below low an arrow with the numbers. papers: the paper's own, in points."""
    for row in differences.itertuples():
        place, mean, half = order.index(row.arm), 100 * row.mean, 100 * row.half_width
        color = BLUE if abs(mean) > half else "0.6"
        if mean < low:
            interval = "" if np.isnan(half) else f" ± {half:.1f}"
            ax.plot(low, place, marker="<", color=color, clip_on=False)
            ax.annotate(
                f"{mean:+.1f}{interval}", (low, place), (8, 0), textcoords="offset points", va="center", **SMALL
            )
        else:
            ax.errorbar(mean, place, xerr=None if np.isnan(half) else half, fmt="o", color=color, capsize=4)
    if papers:
        look = {"marker": "D", "markerfacecolor": "white", "color": "0.2", "linestyle": "none", "markersize": 7}
        ax.plot([*papers.values()], [order.index(arm) for arm in papers], **look)
        for arm, value in papers.items():
            ax.annotate("paper", (value, order.index(arm)), (0, 7), textcoords="offset points", ha="center", **SMALL)
    ax.axvline(0, color="0.3", linewidth=1)
    ax.set_xlim(left=low)
    ax.set_yticks(range(len(order)), [verbatim(arm) for arm in order])
    ax.set_ylim(len(order) - 0.5, -0.7)


@register(
    "09-claims-epochs",
    "The same while training goes on: kNN on validation images minus that of only OUCL, mean over seeds with 95 % band.",
    "metaug evidence 09-claims",
)
def draw_differences_over_epochs(table: Table) -> Figure:
    """Differences as training goes on. table: arm, seed, epoch, knn_val (`evidence_tables.read_readings`)."""
    figure, axes = make_panels(2, 5.2, 3.6)
    readings = (
        table.drop_duplicates(["arm", "seed", "epoch"]).set_index(["seed", "epoch", "arm"])["knn_val"].unstack("arm")
    )
    panels = (
        ("Other losses", ["CMC", "CMC at t = 2/beta", "only MAG"]),
        ("Meta feature augmentation", ["MetAug", "MetAug, literal", "frozen MAG", "no R_sigma"]),
    )
    colors = [BLUE, ORANGE, GREEN, "0.35"]
    for ax, (title, arms) in zip(axes, panels, strict=True):
        for arm, color, marker in zip([arm for arm in arms if arm in readings], colors, MARKERS, strict=False):
            gains = (100 * (readings[arm] - readings["only OUCL"])).dropna().rename("gain").reset_index()
            draw_means(gains, "epoch", "gain", ax, color=color, marker=marker, label=verbatim(arm))
        ax.axhline(0, color="0.3", linewidth=1)
        ax.legend(**SMALL)
        label(
            ax,
            title,
            "epoch",
            "kNN minus only OUCL (points)",
            f"n = {count_seeds(table.groupby(['arm', 'epoch']).size())}",
        )
    return figure


# --- Tables 1, 2, 3 and 6
@register_evidence("09-benchmarks", "Table 1: every method, ours and the paper's.")
def draw_benchmarks(table: Table) -> Figure:
    """Table 1 as rows. table: method (also as `experiments.name_matched` has it), dataset, encoder, seed, accuracy;
    beside it the paper's column of that data set, or of CIFAR-10."""
    dataset, encoder = table["dataset"].iloc[0], table["encoder"].iloc[0]
    first = paper_values.TABLES[1]
    order = list(dict.fromkeys([*first["method"], *table["method"]]))
    has_column = len(first.query("dataset == @dataset and encoder == @encoder")) > 0
    column = (dataset, encoder) if has_column else ("cifar10", "conv")
    figure, (left, right) = make_panels(2, 4.6, 5.6)
    ours: Table = summarize(table, "method", "accuracy")
    draw_method_rows(ours, left, verbatim(f"Ours: {dataset}, {encoder}"), order, f"n = {int(ours['n'].max())} seed(s)")
    papers = select_papers(order, *column)
    draw_method_rows(papers, right, f"Paper: {column[0]}, {column[1]}", order, "20 trials, or quoted")
    return figure


def select_papers(methods: list[str], dataset: str, encoder: str) -> pd.DataFrame:
    """The paper's top-1 accuracies for `draw_method_rows`: method, mean, half_width in [0, 1]; NaN where it has none."""
    rows = paper_values.select(dataset, encoder).query("top == 1").set_index("method").reindex(methods)
    return pd.DataFrame({"mean": rows["accuracy"] / 100, "half_width": rows["half_width"] / 100}).reset_index()


def compare_methods(number: int, seeds: int) -> pd.DataFrame:
    """Table 1, 2 or 3 of the paper (top-1): a row for each method, a column for each data set and encoder, each cell `ours / paper`
    over seeds 0 to seeds - 1 of the preset `paper`; empty where the paper has none. Table 1 keeps its double dagger."""
    rows = paper_values.TABLES[number].query("top == 1")
    texts = []
    for method, dataset, encoder, value in rows[["method", "dataset", "encoder", "accuracy"]].itertuples(index=False):
        shared = {"preset": "paper", "dataset": dataset, "encoder": encoder}
        texts.append(compare_cell(experiments.make_grid(shared, seeds, method=[method]), value))
    wide = rows.assign(text=texts).pivot(index="method", columns=["dataset", "encoder"], values="text")
    wide = wide.reindex(index=list(rows["method"].unique()), columns=list(dict.fromkeys(wide.columns)))
    marked = paper_values.SPLIT_ENCODERS if number == 1 else ()
    return wide.fillna("").rename(index=lambda name: paper_values.print_name(name) + "‡" * (name in marked))


def compare_views(seeds: int) -> pd.DataFrame:
    """Table 6 (ImageNet, ResNet-50, top-1), batch size 128: views, method, source (quoted, the paper's reimplementation, its own),
    `ours / paper`."""
    shared = {"preset": "paper", "dataset": "imagenet", "encoder": "resnet50", "batch_size": 128}
    papers: Table = paper_values.TABLE_6
    cells = []
    for views, method, value in papers[["views", "method", "top1"]].itertuples(index=False):
        configs = experiments.make_grid(shared | {"views": tuple(views.split(","))}, seeds, method=[method])
        cells.append(compare_cell(configs, value))
    names = papers["method"].map(paper_values.print_name)
    return papers.assign(method=names, **{"ours / paper": cells}).set_index(["views", "method"])[
        ["source", "ours / paper"]
    ]


def compare_cell(configs: Sequence[Config], value: float) -> str:
    """`ours / paper` in percent: mean ± 95 % half-width (n) over the runs that probe_paper has measured, `–` for none."""
    runs = [run for run in map(request, configs) if run.finished]
    values = read_table(runs)["probe_paper"].dropna().tolist() if runs else []
    if not values:
        return f"– / {value:.2f}"
    mean, half = interval(values)
    spread = "" if np.isnan(half) else f" ±{100 * half:.2f}"
    return f"{100 * mean:.2f}{spread} ({len(values)}) / {value:.2f}"


def list_commands(seeds: int) -> list[str]:
    """What trains and evaluates each column of Tables 1 to 3."""
    columns = pd.concat(paper_values.TABLES.values())[["dataset", "encoder"]].drop_duplicates()
    options = f'-p measure probe_paper -p seeds {seeds} -p methods "[]" -p max_hours 10000'
    return [
        f"metaug run 09_benchmarks -p preset paper -p dataset {dataset} -p encoder {encoder} {options}"
        for dataset, encoder in columns.itertuples(index=False)
    ]


# --- every method at one small budget
def find_learners(table: Table) -> dict[str, set[str]]:
    """The methods that gain at least `LEARNS` points with every seed, by measure in the order of the table. table: as of
    `draw_all_methods`."""
    gains = table.assign(gain=100 * (table["accuracy"] - table["untrained"]))
    least = gains.groupby(["measure", "method"], sort=False)["gain"].min()
    learners: dict[str, set[str]] = {measure: set() for measure in table["measure"].unique()}
    for measure, method in least.index[least >= LEARNS - 1e-9]:
        learners[measure].add(method)
    return learners


def count_learners(table: Table) -> str:
    """How many methods learn by the linear probe on plain images, and how many of them nearest neighbours confirm, counted from the
    table."""
    learners = find_learners(table)
    seeds, methods, by_probe = table["seed"].nunique(), table["method"].nunique(), learners["probe_plain"]
    each = f"each of {seeds} seeds" if seeds > 1 else "one seed"
    return (
        f"Whether a method learns is judged by the linear probe on plain images: {len(by_probe)} of {methods} gain at least "
        f"{LEARNS:g} points with {each}; of these {len(by_probe)}, kNN confirms {len(by_probe & learners['knn'])}."
    )


@use_style()
def draw_all_methods(table: Table) -> Figure:
    """Every method at one small budget, the largest gain in the first measure above; below, what `count_learners` says. table:
    method, seed, measure (probe_plain, knn), accuracy, untrained."""
    figure, axes = make_panels(2, 5.0, 7.0)
    first = table[table["measure"] == table["measure"].iloc[0]].groupby("method")[["accuracy", "untrained"]].mean()
    order = (first["accuracy"] - first["untrained"]).sort_values(ascending=False).index
    for ax, (measure, rows) in zip(axes, table.groupby("measure", sort=False), strict=True):
        draw_gain_rows(rows, ax, MEASURE_NAMES[measure], list(order))
    figure.supxlabel(count_learners(table), fontsize=8.5, color="0.35")
    return figure


for kind, what, options in (
    ("shapes", "`shapes`, 2,200 images, 8 epochs, for W-MSE 16, for some 24 and for BiGAN 192, three seeds", ""),
    ("folder", "CIFAR-10, JPEG re-encoded, 10,000 images, 2 epochs, one seed",
     "--folder DIR --images 10000 --epochs 2 --seeds 1 "),
):  # fmt: skip
    register(
        f"09-all-methods-{kind}",
        f"Every method at one small budget with settings of its own, from the untrained encoder to the trained one ({what}). Views "
        "differ, and with them the untrained encoders: a gain says that a method learns, not which method is best.",
        f"python benchmarks/all_methods.py RUNS {options}--publish",
        summarize=count_learners,
    )(draw_all_methods)


CIFAR_RUNS = "CIFAR-10, JPEG re-encoded, 10,000 images, 2 epochs, networks of `sketch`"
for protocol, words in (
    (
        "uniform",
        "under the paper's protocol (section 4.1: CMC's crop and flip, one optimiser and minibatch size for all)",
    ),
    ("own", "with the augmentation, optimiser and BatchNorm of its authors, scaled to this length and minibatch"),
):
    register(
        f"09-all-methods-folder-{protocol}",
        f"Every method {words}, from the untrained encoder to the trained one ({CIFAR_RUNS}). Nothing was chosen for this budget.",
        f"python benchmarks/all_methods.py RUNS --protocol {protocol} --folder DIR --images 10000 --epochs 2 --publish",
        summarize=count_learners,
    )(draw_all_methods)


@use_style()
def draw_gain_rows(table: Table, ax: Axes, title: str, order: Sequence[str]) -> Axes:
    """A row for each method, in order from above: a line from the untrained encoder (grey) to the trained one (its color), with
    the gain in points; from two seeds on each of them as a dot, from three on the 95 % interval of their mean (of two it is wider
    than the figure). table: method, seed, accuracy, untrained."""
    import seaborn as sns  # slow to import: it brings scipy.stats

    percent = table.assign(accuracy=100 * table["accuracy"], untrained=100 * table["untrained"])
    means: Table = percent.groupby("method")[["untrained", "accuracy"]].mean().reindex(order)
    colors = {method: pick_color(method) for method in order}
    places, (low, high) = range(len(order)), means.to_numpy().T
    ax.hlines(places, low, high, colors=list(colors.values()), linewidth=1.2, alpha=0.6)
    ax.plot(low, places, "|", markersize=9, markeredgewidth=2, color=FLOOR_COLORS["untrained"])
    columns: dict[str, Any] = {"x": "accuracy", "y": "method", "hue": "method", "order": order, "palette": colors}
    seeds = int(percent.groupby("method").size().max())

    def find_ends_of_three(values: Any) -> tuple[float, float]:
        return find_ends(values) if len(values) > 2 else (np.nan, np.nan)

    sns.pointplot(percent, **columns, errorbar=find_ends_of_three, linestyle="none", markersize=6,
                  err_kws={"linewidth": 1.5}, capsize=0.3, legend=False, ax=ax)  # fmt: skip
    if seeds > 1:
        sns.stripplot(percent, **columns, jitter=False, size=3.5, alpha=0.5, legend=False, ax=ax)
    for place, gain in zip(places, high - low, strict=True):
        ax.annotate(f"{gain:+.1f}", (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=7.5)
    label_methods(ax, order, fontsize=8.5)
    spread = {1: "n = 1 seed", 2: "n = 2 seeds, dots: each"}.get(seeds, f"n = {seeds} seeds, 95 % intervals")
    return label(ax, title, name_axis(table).replace("\n", ": "), "", f"| untrained; {spread}; right: gain")


# --- what a step costs
@register(
    "10-meta-gradient",
    "What a step with the meta-gradient costs, exact by one tangent pass and by double backward.",
    publish_by("10_meta_gradient", ""),
)
def draw_step_costs(table: Table) -> Figure:
    """Cost of a training step as a multiple of a plain one: time (solid) and counted FLOPs (hatched) by kind of step. table: of
    `step_costs.compare_costs`, the first way a plain step."""
    figure, ax = make_panels(1, 7.0, 3.6)
    draw_cost_bars(table, ax)
    ax.axhline(8 / 3, color="0.3", linestyle=":", linewidth=1, label="8/3: the encoders' bound")
    ax.legend(loc="upper left", **SMALL)
    label(ax, "A step, as a multiple of a plain one", "", "times a plain step", count_rounds(table))
    return figure


@use_style()
def draw_derivative_costs(table: Table, ax: Axes) -> Axes:
    """Cost of derivatives of one loss in further gradients: without the gradient that each computes on its way. Beside them, as
    bands, what Dagreou et al. 2024 (bench-hvp) measured for a Hessian-vector product. table: of `step_costs.compare_costs`, the
    first way that gradient."""
    rows = table.iloc[1:].reset_index(drop=True)
    ratios = ["times_plain", "low", "high", "flops_plain"]
    draw_cost_bars(rows.assign(**{name: rows[name] - 1 for name in ratios}), ax)
    for (low, high), color, name in (((2, 3), GREEN, "JAX"), ((4, 5), ORANGE, "torch.func, transformers")):
        ax.axhspan(low, high, color=color, alpha=0.12, zorder=0, label=f"bench-hvp (A100): {name}")
    ax.axhline(0, color="0.3", linewidth=1)
    ax.legend(loc="upper right", ncols=2, **SMALL)
    return label(ax, "A derivative, beside the gradient itself", "", "further gradients", "\n" + count_rounds(table))


def draw_cost_bars(table: Table, ax: Axes) -> None:
    """Time (solid, with the range of the rounds) and counted FLOPs (hatched) of each row of `step_costs.compare_costs`."""
    place = np.arange(len(table))
    ends = np.stack([table["times_plain"] - table["low"], table["high"] - table["times_plain"]])
    looks: dict[str, dict[str, Any]] = {
        "times_plain": {"yerr": ends, "color": BLUE, "ecolor": "0.3", "capsize": 3, "label": "time"},
        "flops_plain": {"color": "#D9D9D9", "hatch": "///", "edgecolor": "0.4", "label": "FLOPs"},
    }
    for (column, look), shift, padding in zip(looks.items(), (-0.2, 0.2), (8, 2), strict=True):
        bars = ax.bar(place + shift, table[column], 0.38, **look)
        ax.bar_label(bars, fmt="%.2f", padding=padding, **SMALL)
    ax.set_xticks(place, table["step"].tolist())
    ax.set_ylim(min(0, float(table["low"].min())), 1.25 * float(table[["high", "flops_plain"]].max().max()))
    ax.grid(axis="x", visible=False)


def count_rounds(table: Table) -> str:
    """A caption below names of two lines."""
    return f"\nmedian, least and greatest of n = {int(table['rounds'].iloc[0])} rounds"


# --- what delta can do (beside Table 5)
@register(
    "11-delta-shapes",
    "The delta question on `shapes` at the size of `sketch`, with 32 seeds.",
    publish_by("11_delta", "-p seeds 32"),
)
@register_evidence(
    "11-delta",
    "The delta question: share of the encoders' gradient that augmented features supply, and MetAug minus MetAug (only OUCL) on "
    "the same seeds, beside a control that changes the learning rate by a millionth.",
)
def draw_delta_question(table: Table) -> Figure:
    """What delta can do. table: weight (delta of MetAug; CONTROL: only OUCL with its rate changed by a millionth; REFERENCE: only
    OUCL), delta, seed, accuracy, augmented_gradient_share."""
    figure, (left, right) = make_panels(2, 5.0, 3.6)
    table = table if "weight" in table else table.assign(weight=weigh_arms(table))
    draw_share_over_delta(table[table["weight"] > 0], left)
    only_oucl = paper_values.read_accuracy("metaug-only-oucl", "cifar10", "conv")
    papers = (paper_values.TABLE_5["without"] - only_oucl).to_dict()
    title = "MetAug minus MetAug (only OUCL), same seeds"
    draw_differences(compare_to(table, "weight", REFERENCE), right, "weight", papers, title, r"$\delta$",
                     {CONTROL: "control"}, "paper, CIFAR-10")  # fmt: skip
    return figure


def weigh_arms(table: Table) -> pd.Series:
    """`weight` of the rows of the experiment 11-delta."""
    special = {"only OUCL": REFERENCE, "control": CONTROL}
    return table["arm"].map(special).fillna(table["delta"])


@use_style()
def draw_share_over_delta(table: Table, ax: Axes) -> Axes:
    """Share of the encoders' gradient that augmented features supply, over delta, both logarithmic; a dotted line where the runs'
    format begins to lose it (`unit_roundoff`).

    table: delta, augmented_gradient_share, and precision and device where they are not float32 on a CPU."""
    import seaborn as sns  # slow to import: it brings scipy.stats

    title, measure = r"Share of the gradient from $\tilde z$", "augmented_gradient_share"
    rows = table.dropna(subset=[measure]) if measure in table else table.head(0)
    if rows.empty:
        return draw_empty(ax, title, "no run with augmented features yet")
    least_to_greatest = ("pi", 100)
    sns.lineplot(
        rows, x="delta", y=measure, errorbar=least_to_greatest, color=BLUE, marker="o", label="measured", ax=ax
    )
    missing = {name: value for name, value in (("precision", "float32"), ("device", "cpu")) if name not in rows}
    formats = rows.assign(**missing).fillna({"precision": "float32", "device": "cpu"})
    roundings = {
        computed_in(*pair): unit_roundoff(*pair) for pair in zip(formats["precision"], formats["device"], strict=True)
    }
    for name, rounding in sorted(roundings.items()):
        ax.axhline(rounding, color="0.3", linestyle=":", label=f"rounding of {name}")
    ax.set(xscale="log", yscale="log")
    ax.legend(**SMALL)
    caption = f"mean of {count_seeds(rows.groupby('delta')[measure].size())}, band: least and greatest"
    return label(ax, title, r"$\delta$", "share (1 = all of it)", caption)


# --- what several figures share
def select_measure(table: Table, measure: str) -> pd.DataFrame:
    """The table with `accuracy`, `untrained` and `measure` of one measure (`probes.MEASURES`)."""
    unknown = pd.Series(float("nan"), table.index)
    columns = {"accuracy": measure, "untrained": f"untrained_{measure}"}
    values = {name: pd.to_numeric(table.get(column, unknown)) for name, column in columns.items()}
    return table.assign(**values, measure=measure)


def compare_to(table: Table, by: str, reference: object) -> pd.DataFrame:
    """`compare_paired` of accuracy; no rows if the reference has no finished run yet."""
    if (table[by].eq(reference) & table["accuracy"].notna()).any():
        return compare_paired(table, by, reference, "accuracy")
    return pd.DataFrame(columns=pd.Index([by, "mean", "half_width", "n"]), dtype=float)


@use_style()
def draw_accuracy_over(
    table: Table, ax: Axes, setting: str, title: str = "", x: str | None = None, joined: bool = True,
    caption: str | None = None,
) -> Axes:  # fmt: skip
    """Accuracy over the values of a setting: each method's mean and 95 % band over seeds, every seed as a dot, and the untrained
    encoder as a dashed line.

    x: the name of the axis. joined: draw lines between values that have an order; else methods stand side by side. caption: in
    place of the number of seeds.
    """
    table = table.dropna(subset=["accuracy"])
    if table.empty:
        return draw_empty(ax, title, "no finished run yet")
    at, counts, methods = place_values(table[setting]), [], list(table["method"].unique())
    for number, method in enumerate(methods):
        rows = table[table["method"] == method]
        shift = 0.0 if joined else shift_beside(number, len(methods))
        points = pd.DataFrame({"x": rows[setting].map(at) + shift, "accuracy": 100 * rows["accuracy"]})
        look: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "label": print_label(method)}
        draw_means(points, "x", "accuracy", ax, joined, color=pick_color(method), **look)
        seeds = points.groupby("x").size().tolist()
        if max(seeds) > 1:
            ax.scatter(points["x"], points["accuracy"], s=9, color=pick_color(method), alpha=0.55, linewidths=0)
        counts += seeds
    untrained: Any = table["untrained"].dropna() if "untrained" in table else []
    if len(untrained):
        look = {"color": FLOOR_COLORS["untrained"], "linestyle": "--", "label": "untrained (mean)"}
        ax.axhline(100 * untrained.mean(), **look)
    label_values(ax, at)
    ax.legend(**SMALL, **({"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(methods) > 3 else {}))
    return label(ax, title, x or setting, name_axis(table), caption or describe_seeds(counts))


@use_style()
def draw_reference(table: Table, ax: Axes, name: str, color: str = "0.2") -> None:
    """A dotted line at the mean accuracy over seeds with its 95 % band, for runs without the setting on the axis."""
    accuracies = table["accuracy"].dropna().tolist()
    if not accuracies:
        return
    mean, half = (100 * value for value in interval(accuracies))
    ax.axhline(mean, color=color, linestyle=":", label=name)
    if not np.isnan(half):
        ax.axhspan(mean - half, mean + half, color=color, alpha=0.12, linewidth=0)
    ax.legend(**SMALL)


@use_style()
def draw_differences(
    differences: Table, ax: Axes, setting: str, papers: Mapping[Any, float] | None = None, title: str = "",
    x: str | None = None, names: Mapping[Any, str] | None = None, papers_label: str = "paper",
) -> Axes:  # fmt: skip
    """Paired differences of accuracy (`tables.compare_paired`) with their 95 % intervals; papers: the paper's own, in points.

    An interval that crosses zero leaves the sign open. Values of the setting that only one side has are drawn as well. A column
    `method` draws each method in its color, side by side. x: the name of the axis; names: of values on it.
    """
    papers = papers or {}
    if differences.empty and not papers:
        return draw_empty(ax, title, "no finished pair of runs yet")
    at = place_values(pd.Series([*differences[setting], *papers]))
    groups = differences.groupby("method", sort=False) if "method" in differences else [("", differences)]
    for number, (method, rows) in enumerate(groups):
        color, name = (pick_color(str(method)), print_label(str(method))) if method else (BLUE, "ours")
        look: dict[str, Any] = {"marker": MARKERS[number], "linestyle": "none", "capsize": 4}
        places, half = rows[setting].map(at) + shift_beside(number, len(groups)), 100 * rows["half_width"].fillna(0)
        ax.errorbar(places, 100 * rows["mean"], half, color=color, label=name, **look)
    if papers:
        look = {"marker": "D", "markerfacecolor": "white", "color": "0.2", "linestyle": "none", "markersize": 8}
        ax.plot([at[value] for value in papers], list(papers.values()), label=papers_label, zorder=1, **look)
    ax.axhline(0, color="0.3", linewidth=1)
    label_values(ax, at, names)
    ax.legend(**SMALL)
    return label(ax, title, x or setting, "difference (points)", describe_seeds(differences["n"]))


@use_style()
def draw_heatmap(
    means: Table, ax: Axes, x: str, y: str, title: str = "", labels: tuple[str, str] | None = None
) -> Axes:
    """Mean accuracy of a `tables.summarize` by two settings, written in each cell with its 95 % half-width; a cell without a run
    stays white and says so. Text settings keep their order, numbers rise."""
    import seaborn as sns  # slow to import: it brings scipy.stats

    if means["mean"].isna().all():
        return draw_empty(ax, title, "no finished run yet")
    columns, rows = (list(dict.fromkeys(means[name])) for name in (x, y))
    columns, rows = (sorted(v) if all(isinstance(i, int | float) for i in v) else v for v in (columns, rows))
    wide = 100 * means.pivot(index=y, columns=x, values=["mean", "half_width"])
    mean, half = (wide[name].reindex(index=rows, columns=columns) for name in ("mean", "half_width"))
    texts = mean.map("{:.1f}".format) + half.map(lambda width: "" if np.isnan(width) else f"\n±{width:.1f}")
    ticks: dict[str, Any] = {"xticklabels": [*map(format_value, columns)], "yticklabels": [*map(format_value, rows)]}
    sns.heatmap(mean, cmap="viridis", annot=texts, fmt="", annot_kws=SMALL, ax=ax, **ticks,
                cbar_kws={"label": "accuracy (%)", "shrink": 0.85})  # fmt: skip
    for row, column in np.argwhere(mean.isna()):
        ax.text(column + 0.5, row + 0.5, "no run", ha="center", va="center", color="0.4", **SMALL)
    ax.invert_yaxis()
    ax.tick_params(left=False, bottom=False, labelrotation=0)
    return label(ax, title, *(labels or (x, y)), describe_seeds(means["n"]))


@use_style()
def draw_method_rows(values: Table, ax: Axes, title: str, order: Sequence[str], caption: str = "") -> Axes:
    """A row for each method, in order from above: its accuracy in percent with a half-width; a row without one says `no value`.

    values: method, mean, half_width in [0, 1].
    """
    rows = 100 * values.set_index("method")[["mean", "half_width"]].reindex(order)
    for place, (method, mean, half) in enumerate(rows.itertuples()):
        if np.isnan(mean):
            ax.text(0.02, place, "no value", transform=ax.get_yaxis_transform(), va="center", color="0.5", **SMALL)
            continue
        look: dict[str, Any] = {"color": pick_color(method), "marker": "o", "capsize": 3, "linestyle": "none"}
        ax.errorbar([mean], [place], xerr=None if np.isnan(half) else [half], **look)
        ax.annotate(f"{mean:.1f}", (mean, place), (0, 6), textcoords="offset points", ha="center", fontsize=7)
    label_methods(ax, order)
    ax.margins(x=0.12)
    return label(ax, title, "accuracy (%)", "", caption)


def print_label(method: str) -> str:
    """A method as the paper prints it, for matplotlib."""
    return verbatim(paper_values.print_name(method))


def label_methods(ax: Axes, order: Sequence[str], **look: Any) -> None:
    """Write the methods on the y axis as the paper prints them, the first above."""
    ax.set_yticks(range(len(order)), [print_label(method) for method in order], **look)
    ax.set_ylim(len(order) - 0.5, -0.7)


def name_axis(table: Table) -> str:
    """Which accuracy a table holds: the measure and the split."""
    parts = [MEASURE_NAMES.get(str(table["measure"].iloc[0]), "accuracy")] if len(table) else ["accuracy"]
    parts += [str(split) for split in table.get("split", pd.Series(dtype=str)).dropna().unique()[:1]]
    return f"accuracy (%)\n{', '.join(parts)}"


def count_seeds(counts: Any) -> str:
    """The number of seeds per point, or its range, with the unit."""
    low, high = int(min(counts, default=0)), int(max(counts, default=0))
    return f"{high if low == high or high <= 1 else f'{low} to {high}'} seed{'s' if high > 1 else ''}"


def describe_seeds(counts: Any) -> str:
    """How many seeds stand behind each point: for the caption of every figure."""
    if max(counts, default=0) <= 1:
        return f"n = {count_seeds(counts)} per point, so no interval"
    return f"mean and 95 % interval, n = {count_seeds(counts)} per point"


def format_value(value: Any) -> str:
    """A value of a setting on an axis: 0.4, 6, 1e-07 as a power of ten."""
    if not isinstance(value, int | float | np.number):
        return verbatim(str(value))
    power = np.log10(value) if value > 0 else 0.5
    return f"$10^{{{power:.0f}}}$" if abs(power) >= 2 and np.isclose(power, round(power)) else f"{value:g}"


def place_values(values: Any) -> dict[Any, int]:
    """Where each value of a setting stands on the axis: in rising order, at equal distances, as the paper's figures have them."""
    return {value: place for place, value in enumerate(sorted(values.dropna().unique()))}


def label_values(ax: Axes, at: Mapping[Any, int], names: Mapping[Any, str] | None = None) -> None:
    """Write the values of a setting on the x axis, or their names."""
    ax.set_xticks(list(at.values()), [(names or {}).get(value, format_value(value)) for value in at])
    ax.set_xlim(-0.4, len(at) - 0.6)


def shift_beside(number: int, count: int) -> float:
    """How far the number-th of so many methods stands from the middle of its place on the x axis."""
    return (number - (count - 1) / 2) * 0.16
