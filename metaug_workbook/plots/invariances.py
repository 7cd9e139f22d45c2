"""What features still know of an augmentation: a heat map in the registry of `paper_figures`, and a sentence about z~."""

from matplotlib.figure import Figure

from metaug_workbook.plots.paper_figures import SMALL, Table, print_label, publish_by, register
from metaug_workbook.plots.style import label, make_figure


@register(
    "13-invariances",
    "How well a linear reader finds the drawn parameter of each image augmentation in the features of each encoder (CIFAR-10 "
    "images, JPEG re-encoded; one seed).",
    publish_by("13_invariances", "-p preset standard -p dataset folder -p data_dir DIR -p images 4000"),
)
def draw_invariances(table: Table) -> Figure:
    """A heat map: how well each augmentation's parameter is read (columns) from the features of each encoder (rows). table: as
    `notebook.tabulate_invariances`."""
    import seaborn as sns  # slow to import: it brings scipy.stats

    names = (
        table["encoder"].map(lambda name: name if name == "untrained" else print_label(name)) + "  " + table["features"]
    )
    wide = table.assign(row=names).pivot(index="row", columns="augmentation", values="score")
    wide = wide.reindex(index=list(dict.fromkeys(names)), columns=list(dict.fromkeys(table["augmentation"])))
    figure = make_figure(9.2, 0.42 * len(wide) + 1.6)
    ax = figure.subplots()
    sns.heatmap(wide.clip(0, 1), annot=wide.round(2), fmt=".2f", annot_kws=SMALL, cmap="viridis", vmin=0, vmax=1, ax=ax,
                cbar_kws={"label": "1: read exactly, 0: not at all"})  # fmt: skip
    ax.tick_params(left=False, bottom=False)
    for place in range(1, len(wide)):
        if wide.index[place].rsplit("  ", 1)[0] != wide.index[place - 1].rsplit("  ", 1)[0]:
            ax.axhline(place, color="white", linewidth=3)
    label(
        ax,
        "What features still know of an augmentation",
        "",
        "",
        "R² of numbers; 2 x balanced accuracy - 1 of flip and grey",
    )
    return figure


def describe_resemblance(table: Table) -> str:
    """Which augmentation the MAG's z~ looks like, as a sentence: along whose changes of z most of z~ - z lies. table: as
    `draw_invariances`; with share for encoders with a MAG."""
    sentences = []
    for method, rows in table.dropna(subset=["share"]).groupby("encoder", sort=False):
        ordered = rows.sort_values("share", ascending=False)
        first, second, last = ordered.iloc[0], ordered.iloc[1], ordered.iloc[-1]
        sentences.append(
            f"What {print_label(str(method))} adds, z~ - z, lies most in the directions in which {first.augmentation} moves z: "
            f"{100 * first.share:.0f} % of its variance, against {100 * second.share:.0f} % for {second.augmentation} and "
            f"{100 * last.share:.0f} % for {last.augmentation}, the least."
        )
    return "\n".join(sentences) or "No encoder here has a MAG."
