"""The gallery's figures whole: table -> Figure, as a notebook shows them and the gallery draws them from their small tables."""

from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from metaug_workbook.plots import diagram
from metaug_workbook.plots.anatomy import gradient_shares, similarity_panel, step_costs
from metaug_workbook.plots.gallery import FIGURES, Entry
from metaug_workbook.plots.paper_figures import (
    MEASURE_NAMES,
    Table,
    against,
    differences,
    gain_rows,
    heat_map,
    learning,
    level,
    method_rows,
)
from metaug_workbook.plots.style import mosaic, panels
from metaug_workbook.plots.training import accuracy_bars, feature_map
from metaug_workbook.results import paper_values
from metaug_workbook.results.statistics import paired, summary

CONTROL, REFERENCE = 0.0, -1.0  # values of `weight` in the table of `delta_question`
FULL = "-p preset paper -p dataset cifar10 -p max_hours 10000"


def similarities(table: Table) -> Figure:
    """Figure 2. table: margin (none, large), features (augmented, original), and the columns of `anatomy.binned`."""
    figure, axes = panels(4, 3.2, 3.1)
    without, with_, what = (
        "without $R_\\sigma$",
        "with $R_\\sigma$",
        {"augmented": "an augmented feature", "original": "originals"},
    )
    cells = [(margin, features) for features in what for margin in ("none", "large")]
    for ax, letter, (margin, features) in zip(axes, "abcd", cells, strict=True):
        rows = table[(table["margin"] == margin) & (table["features"] == features)]
        similarity_panel(rows, ax, f"({letter}) {what[features]}, {without if margin == 'none' else with_}")
    return figure


def from_reference(table: Table, by: str, reference: object) -> pd.DataFrame:
    """`tables.paired` of accuracy; no rows if the reference has no finished run yet."""
    if (table[by].eq(reference) & table["accuracy"].notna()).any():
        return paired(table, by, reference, "accuracy")
    return pd.DataFrame({name: pd.Series(dtype=float) for name in (by, "mean", "half_width", "n")})


def attenuation(table: Table) -> Figure:
    """Figure 3. table: oucl (eq9: with Gamma, eq8: without), phi_dec, method, seed, accuracy."""
    figure, (left, right) = panels(2, 4.6, 3.4)
    with_gamma, without = table[table["oucl"] == "eq9"], table[table["oucl"] == "eq8"]
    against(with_gamma, left, "phi_dec", "Accuracy by attenuation of Γ", r"$\phi_{dec}$")
    level(without, left, "without Γ")
    both = table.assign(attenuation=table["phi_dec"].where(table["oucl"] == "eq9", 0))
    found = from_reference(both, "attenuation", 0)
    papers = {6: paper_values.FIGURE_3[6] - paper_values.FIGURE_3["without"]}
    title, label = "With Γ less without, same seeds", "paper, Tiny ImageNet"
    differences(found, right, "attenuation", papers, title, r"$\phi_{dec}$", papers_label=label)
    return figure


def batch_sizes(table: Table) -> Figure:
    """Figure 4. table: batch_size, method, seed, accuracy. Right: the paper's values at 64 (Table 1, CIFAR-10, conv)."""
    figure, (left, right) = panels(2, 4.9, 3.6)
    against(table, left, "batch_size", "Ours", "batch size")
    order = ["simclr", "dacl", "looc", "cmc+hard", "metaug-only-oucl", "metaug"]
    method_rows(reported(order), right, "Paper, CIFAR-10, batch size 64", order, "20 trials, 95 % intervals")
    return figure


def reported(methods: list[str], dataset: str = "cifar10", encoder: str = "conv") -> pd.DataFrame:
    """The paper's top-1 accuracies for `method_rows`: method, mean, half_width in [0, 1]."""
    rows: Table = pd.concat(paper_values.TABLES.values()).query(
        "dataset == @dataset and encoder == @encoder and top == 1"
    )
    rows = rows.set_index("method").reindex(methods).reset_index()
    return pd.DataFrame(
        {"method": rows["method"], "mean": rows["accuracy"] / 100, "half_width": rows["half_width"] / 100}
    )


def margins(table: Table) -> Figure:
    """Figure 5. table: margin, method (metaug: OUCL, metaug-only-mag: contrastive), seed, accuracy."""
    figure, (left, right) = panels(2, 4.6, 3.4)
    loss = {"metaug": "OUCL", "metaug-only-mag": "contrastive"}
    heat_map(summary(table.assign(loss=table["method"].map(loss)), ["margin", "loss"], "accuracy"), left, "margin", "loss",
             "Accuracy by margin and loss", ("margin", ""))  # fmt: skip
    order = {name: place for place, name in enumerate(("small", "medium", "large"))}
    parts = []
    for method, rows in table.groupby("method", sort=False):
        parts.append(from_reference(rows, "margin", "none").assign(method=method))
    found: Table = pd.concat(parts)
    found = found.assign(place=found["margin"].map(order))
    names = {place: name for name, place in order.items()}
    differences(found, right, "place", title="Less no margin, same seeds", label="margin", names=names)
    return figure


def hyperparameters(table: Table) -> Figure:
    """Figure 6. table: panel (a: alpha fixed, b: beta fixed, c: delta fixed), alpha, beta, delta, seed, accuracy."""
    figure, axes = panels(3, 4.4, 3.5)
    symbols = {"alpha": r"$\alpha$", "beta": r"$\beta$", "delta": r"$\delta$"}
    for ax, letter, x, y, fixed in zip(axes, "abc", ("delta", "delta", "beta"), ("beta", "alpha", "alpha"),
                                       ("alpha", "beta", "delta"), strict=True):  # fmt: skip
        rows = table[table["panel"] == letter]
        title = f"({letter}) {symbols[fixed]} = {rows[fixed].iloc[0]:g}" if len(rows) else f"({letter})"
        heat_map(summary(rows, [x, y], "accuracy"), ax, x, y, title, (symbols[x], symbols[y]))
    return figure


def gammas(table: Table) -> Figure:
    """Figure 7. table: gamma, method, seed, accuracy."""
    figure, ax = panels(1, 5.2, 3.4)
    against(table, ax, "gamma", "Accuracy by the margin of OUCL (eq. 10)", r"$\gamma$")
    return figure


def augmentations(table: Table) -> Figure:
    """Table 4. table: set (1 to 8, `paper.AUGMENTATION_SETS`), method, seed, accuracy. Right: the paper's (CIFAR-10, fc)."""
    figure, (left, right) = panels(2, 6.2, 3.9)
    papers: Table = (
        paper_values.TABLE_4.reset_index()
        .melt("set", var_name="method", value_name="accuracy")
        .astype({"accuracy": float})
    )
    papers = papers.assign(accuracy=papers["accuracy"] / 100, seed=0, measure="probe_paper")
    for ax, rows, title, caption in (
        (left, table, "Ours", None),
        (right, papers, "Paper, CIFAR-10, fc", "trials and intervals not stated"),
    ):
        against(
            rows.sort_values("method"), ax, "set", title, "augmentation set of Table 4", joined=False, caption=caption
        )
    return figure


def benchmark(table: Table) -> Figure:
    """Table 1 as rows. table: method, dataset, encoder, seed, accuracy; beside it the paper's column of that data set, or of
    CIFAR-10."""
    dataset, encoder = table["dataset"].iloc[0], table["encoder"].iloc[0]
    order = list(paper_values.TABLES[1]["method"].unique())
    order += [method for method in table["method"].unique() if method not in order]
    there = paper_values.TABLES[1].query("dataset == @dataset and encoder == @encoder")
    shown = (dataset, encoder) if len(there) else ("cifar10", "conv")
    figure, (left, right) = panels(2, 4.6, 5.6)
    ours: Table = summary(table, "method", "accuracy")
    method_rows(ours, left, f"Ours: {dataset}, {encoder}", order, f"n = {int(ours['n'].max())} seed(s)")
    method_rows(reported(order, *shown), right, f"Paper: {shown[0]}, {shown[1]}", order, "20 trials, or quoted")
    return figure


def all_methods(table: Table) -> Figure:
    """Every method at one small budget, the largest gain in the first protocol above; below, what `learning` counts. table: method,
    seed, measure (probe_paper, knn), accuracy, untrained."""
    figure, axes = panels(2, 5.0, 7.0)
    first = table[table["measure"] == table["measure"].iloc[0]].groupby("method")[["accuracy", "untrained"]].mean()
    order = (first["accuracy"] - first["untrained"]).sort_values(ascending=False).index
    for ax, (measure, rows) in zip(axes, table.groupby("measure", sort=False), strict=True):
        gain_rows(rows, ax, MEASURE_NAMES[measure], list(order))
    figure.supxlabel(learning(table), fontsize=8.5, color="0.35")
    return figure


def delta_question(table: Table) -> Figure:
    """What delta can do. table: weight (delta of MetAug; CONTROL: only OUCL with its rate changed by a millionth; REFERENCE: only
    OUCL), delta, seed, accuracy, augmented_gradient_share."""
    figure, (left, right) = panels(2, 5.0, 3.6)
    gradient_shares(table[table["weight"] > 0], left)
    papers: Any = {delta: value - paper_values.reported("metaug-only-oucl", "cifar10", "conv")
              for delta, value in paper_values.TABLE_5["without"].items()}  # fmt: skip
    found = from_reference(table, "weight", REFERENCE)
    names = {CONTROL: "control"}
    title, label = "MetAug less MetAug (only OUCL), same seeds", "paper, CIFAR-10"
    differences(found, right, "weight", papers, title, r"$\delta$", names, papers_label=label)
    return figure


def costs(table: Table) -> Figure:
    """The meta-gradient's cost. table: of `rehearsal.compared`, the first way a plain step."""
    figure, ax = panels(1, 7.0, 3.6)
    step_costs(table, ax)
    return figure


def first_run(table: Table) -> Figure:
    """What the default run learns. table: rows with `panel` accuracy: of each seed, as `evaluation.evaluate` has them; with
    `before` or `after`: a test image of one run in the plane (x, y), its label and the name of its class."""
    points, seeds = table[table["panel"] != "accuracy"], table[table["panel"] == "accuracy"].groupby("seed")
    classes = points.drop_duplicates("label").sort_values("label")["name"].tolist()
    figure, axes = mosaic([["accuracy", "accuracy"], ["before", "after"]], 9.2, 6.9)
    runs = [rows.set_index("representation") for _, rows in seeds]
    accuracy_bars(runs, axes["accuracy"], chance=1 / len(classes))
    for panel, title in (("before", "Before training"), ("after", "After training")):
        rows = points[points["panel"] == panel]
        places, labels = rows[["x", "y"]].to_numpy(float), torch.tensor(rows["label"].to_numpy(int))
        feature_map(places, labels, classes, axes[panel], title, legend=panel == "after")
    return figure


def registered(notebook: str, options: str = "") -> str:
    return f"metaug run {notebook} -p publish True{' ' if options else ''}{options}"


def seeded(notebook: str, seeds: int = 3) -> str:
    return registered(notebook, f"-p seeds {seeds}")


FIGURES["first-run"] = Entry(
    "What the default run learns: accuracies on raw pixels, the untrained and the trained encoder (`shapes`, three seeds), and a "
    "t-SNE map of the test features before and after training (the first seed).",
    "python benchmarks/shapes_learning.py --publish", first_run)  # fmt: skip
FIGURES["architecture"] = Entry(
    "The architecture of MetAug, after the paper's Figure 1.",
    "metaug figures architecture", lambda _: diagram.figure(), table=False)  # fmt: skip
for real, dataset in (("", "`shapes`"), ("-real", "CIFAR-10, JPEG re-encoded, 10,000 images")):
    command = "-p preset quick -p dataset folder -p data_dir DIR -p train_images 10000 -p images 1000" if real else ""
    FIGURES[f"03-similarities{real}"] = Entry(
        f"Figure 2 on {dataset}: pairs with an augmented feature (a, b) and of original features (c, d), without and with the "
        "margin term; delta = alpha = 1, one seed.",
        registered("03_similarity_histograms", command), similarities)  # fmt: skip
    FIGURES[f"03-similarities{real}-paper-weights"] = Entry(
        f"The same on {dataset} with the paper's weights, delta = 1e-5 and alpha = 1e-13.",
        registered("03_similarity_histograms", command), similarities)  # fmt: skip
FIGURES["04-gamma-attenuation"] = Entry(
    "Figure 3: accuracy by the attenuation of Gamma, and the gain over OUCL without Gamma beside the paper's at 6.",
    seeded("04_gamma_attenuation"), attenuation)  # fmt: skip
FIGURES["05-batch-size"] = Entry(
    "Figure 4: accuracy by batch size, and the paper's values at 64.", seeded("05_batch_size"), batch_sizes)  # fmt: skip
FIGURES["06-margins"] = Entry(
    "Figure 5: accuracy by margin and loss, and what each margin adds to none.", seeded("06_margins"), margins)  # fmt: skip
FIGURES["07-hyperparameters"] = Entry(
    "Figure 6: accuracy by alpha, beta and delta, two at a time.", seeded("07_hyperparameters"), hyperparameters)  # fmt: skip
FIGURES["07-gamma"] = Entry(
    "Figure 7: accuracy by gamma.", seeded("07_hyperparameters"), gammas)  # fmt: skip
FIGURES["08-augmentations"] = Entry(
    "Table 4: accuracy by augmentation set, ours and the paper's.", seeded("08_augmentations"), augmentations)  # fmt: skip
FIGURES["09-benchmarks"] = Entry(
    "Table 1: every method, ours and the paper's.", seeded("09_benchmarks"), benchmark)  # fmt: skip
for kind, what, option in (
    ("shapes", "`shapes`, 2,200 images, 8 epochs, for W-MSE 16, for some 24 and for BiGAN 192, three seeds", ""),
    (
        "folder",
        "CIFAR-10, JPEG re-encoded, 10,000 images, 2 epochs, one seed",
        "--folder DIR --images 10000 --epochs 2 --seeds 1 ",
    ),
):
    FIGURES[f"09-all-methods-{kind}"] = Entry(
        f"Every method at one small budget with settings of its own, from the untrained encoder to the trained one ({what}). Views "
        "differ, and with them the untrained encoders: a gain says that a method learns, not which method is best.",
        f"python benchmarks/all_methods.py RUNS {option}--publish", all_methods, learning)  # fmt: skip
FIGURES["10-meta-gradient"] = Entry(
    "What a step with the meta-gradient costs, exact by one tangent pass and by double backward.",
    registered("10_meta_gradient"), costs)  # fmt: skip
FIGURES["11-delta"] = Entry(
    "The delta question: share of the encoders' gradient that augmented features supply, and MetAug less MetAug (only OUCL) on the "
    "same seeds, beside a control that changes the learning rate by a millionth.",
    seeded("11_delta", 32), delta_question)  # fmt: skip
