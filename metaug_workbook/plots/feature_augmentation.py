"""What each way of augmenting features adds, and what it costs: figures in the registry of `paper_figures`."""

from functools import lru_cache

from matplotlib.figure import Figure

from metaug_core.presets import preset
from metaug_workbook.plots.paper_figures import (
    SMALL,
    Table,
    compare_to,
    describe_seeds,
    draw_forest,
    register_evidence,
)
from metaug_workbook.plots.style import draw_empty, label, make_panels, verbatim
from metaug_workbook.results import step_costs


@lru_cache
def count_operations(method: str) -> float:
    """Floating-point operations of one training step of a method in the preset `standard`: the same on every machine."""
    config = preset("standard", method=method, dataset="shapes", image_size=24)
    return step_costs.count_work(step_costs.prepare_step(config).take).flops


def draw_gain_beside_cost(table: Table, reference: str) -> Figure:
    """Left: gain of each arm on the reference's same seeds (linear probe and kNN); right: the operations of its step beside the
    reference's. table: arm, method, seed, accuracy, knn."""
    figure, axes = make_panels(3, 4.1, 3.6)
    arms = [arm for arm in dict.fromkeys(table["arm"]) if arm != reference]
    for ax, (column, title) in zip(axes, (("accuracy", "linear probe"), ("knn", "kNN")), strict=False):
        if table[column].isna().all():
            draw_empty(ax, f"Gain on {reference}, {title}", "no finished run yet")
            continue
        gains = compare_to(table.assign(accuracy=table[column]), "arm", reference)
        draw_forest(gains, ax, arms, {}, -3)
        label(ax, f"Gain on {reference}, {title}", "difference (points), same seeds", "", describe_seeds(gains["n"]))
    methods = table.drop_duplicates("arm").set_index("arm")["method"]
    costs = [
        count_operations(methods[arm]) / count_operations(methods[reference]) for arm in arms if reference in methods
    ]
    axes[2].barh(range(len(costs)), costs, color="0.6")
    for place, cost in enumerate(costs):
        axes[2].text(cost, place, f" {cost:.2f}", va="center", **SMALL)
    axes[2].axvline(1, color="0.3", linewidth=1)
    axes[2].set_yticks(range(len(arms)), [verbatim(arm) for arm in arms])
    axes[2].set_ylim(len(arms) - 0.5, -0.5)
    axes[2].set_xlim(0, max([*costs, 1]) * 1.15)
    label(axes[2], "Operations of a step", f"times those of {reference}", "", "counted, preset standard")
    return figure


for suffix, title in (("", "CMC"), ("-simclr", "SimCLR")):

    @register_evidence(
        f"12-feature-augmentation{suffix}",
        f"What each way of augmenting features adds to {title} on the same seeds, with 95 % intervals, and what a step costs.",
    )
    def draw(table: Table, title: str = title) -> Figure:
        return draw_gain_beside_cost(table, title)
