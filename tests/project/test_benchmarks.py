"""What the benchmarks count and how they take turns; their times are nobody's test."""

import json
import sys
from argparse import Namespace

import pandas as pd
import pytest
import torch
from tiny import ROOT, TINY

sys.path.insert(0, str(ROOT / "benchmarks"))

import all_methods
import engine
from _measure import CPU_WARM_STEPS, PARTS, Steps, divide, find_parts, mark_parts, ratio, turns
from _results import FOLDER, table

from metaug_core import METHODS, Config
from metaug_core.methods import LATER
from metaug_workbook.plots import paper_figures
from metaug_workbook.results.step_costs import Work, count_work


def test_work_by_hand():
    x, weight = torch.randn(4, 8), torch.randn(8, 16)
    work = count_work(lambda: (x @ weight).T.relu())
    assert work.flops == 2 * 4 * 8 * 16
    assert work.least == 4 * (4 * 8 + 8 * 16 + 4 * 16)  # both factors read, the product written, in float32
    assert work.moved == work.least + 4 * 2 * 4 * 16  # relu reads and writes; the transpose only looks
    assert work.operations == 2


def test_a_broadcast_view_weighs_what_it_holds():
    row = torch.randn(1, 100)
    work = count_work(lambda: row.expand(50, 100) * 2)
    assert work.moved == 4 * (100 + 50 * 100)


def test_what_launches_nothing_is_no_operation():
    x = torch.ones(3, 4)

    def step():
        with torch.profiler.record_function("a mark"):
            room = [torch.empty_like(x), x.new_empty(5), torch.empty(2), torch.empty_strided((3, 4), (4, 1))]
        assert torch.ops.aten.is_same_size(x, room[0])
        assert torch.ops.aten._has_same_storage_numel(x, room[0])
        return torch.ones_like(x) + x.detach()

    work = count_work(step)
    assert work.operations == 2  # a fill and a sum
    assert work.moved == 4 * (2 * 12 + 3 * 12)  # ones_like counts the tensor it looks at as well


def test_the_optimiser_belongs_to_the_least():
    parameter = torch.nn.Parameter(torch.zeros(10))
    parameter.grad = torch.ones(10)
    work = count_work(torch.optim.SGD([parameter], lr=0.1, fused=True).step)
    assert work.least == 4 * (10 + 10)
    assert work.flops == 0


def test_a_convolution_and_its_backward_by_hand():
    layer, x = torch.nn.Conv2d(3, 5, 3, bias=False), torch.randn(2, 3, 6, 6)
    forward = 2 * (2 * 4 * 4) * 5 * (3 * 3 * 3)
    assert count_work(lambda: layer(x)).flops == forward
    assert count_work(lambda: layer(x).sum().backward()).flops == 2 * forward  # the weight's gradient; x wants none


def test_the_floor_is_the_slower_of_the_two():
    work = Work(flops=100, least=30, moved=1000, operations=1)
    assert work.floor(10, 10) == 10
    assert work.floor(100, 10) == 3


def test_turns_go_forth_and_back():
    called: list[str] = []
    found = turns({name: lambda name=name: called.append(name) for name in "ab"}, "cpu", budget=0)
    warm = ["a"] * CPU_WARM_STEPS + ["b"] * CPU_WARM_STEPS
    assert called == [*warm, *"ab", *"ab", *"ba", *"ab"]  # once to choose how many rounds, and three rounds
    assert {name: len(times) for name, times in found.items()} == {"a": 3, "b": 3}


def test_ratio_is_the_median_of_the_rounds_ratios():
    assert ratio([2, 30, 8], [1, 10, 2]) == 3  # 2, 3, 4; the ratio of medians would be 4


def test_table_leaves_out_what_nobody_has():
    rows = [{"step": "plain", "ms": 1.234, "kernels": None}, {"step": "meta", "note": "out of memory"}]
    found = table(rows, step="{step}", ms="{ms:.1f}", kernels="{kernels}", note="{note}")
    assert found.splitlines() == [
        "| step | ms | note |", "| --- | --- | --- |", "| plain | 1.2 | - |", "| meta | - | out of memory |"]  # fmt: skip


@pytest.mark.parametrize("image_mode", ["white", "red"])
def test_the_rivals_lab_is_ours(image_mode: str):
    """The published data path's Lab of a plain colour, channel by channel in [-1, 1], is what our views make of it."""
    rivals = pytest.importorskip("rivals")
    from PIL import Image

    from metaug_core.views.augmentation import plain, split

    picture = Image.new("RGB", (4, 4), image_mode)
    theirs = rivals.to_lab(picture)
    pixels = torch.tensor(picture.getpixel((0, 0)), dtype=torch.uint8)[None, :, None, None].expand(1, 3, 4, 4)
    torch.testing.assert_close(theirs, split(plain(pixels), ["Lab"])[0][0], rtol=1e-3, atol=1e-3)


# --- the engine's benchmark
PART_OF = {"convolution": "encoders", "convolution_backward": "encoders", "max_pool2d_with_indices_backward": "encoders",
           "grid_sampler_2d": "views", "_fused_adam_": "optimisers", "bmm": "loss and MAG",
           "index_put_": "loss and MAG"}  # fmt: skip


def test_each_operation_is_of_one_part_of_the_step_and_a_backward_one_of_its_forwards():
    step = Steps(Config(**TINY))
    step()
    (s,) = step.stepper.states
    with mark_parts(s), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        step()
    parts = {name: set() for name in PART_OF}
    for event, part in find_parts(seen.events()).items():
        name = event.name.removeprefix("aten::")
        if name in parts:
            parts[name].add(part)
    assert parts == {name: {part} for name, part in PART_OF.items()}
    shares = divide(step, "cpu")
    assert tuple(shares) == PARTS
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) > 0
    assert "views" not in vars(s.method)


def run_by_hand(lengths: list[float], seconds: float) -> tuple[list[int], list[str]]:
    """The jobs that are run, each of which moves the clock by its length, and what is left out."""
    now, done = [100.0], []

    def measure(number: int):
        now[0] += lengths[number]
        yield {"number": number}

    jobs = [engine.Job("rows", f"job {n}", lambda n=n: measure(n)) for n in range(len(lengths))]
    left_out = engine.run_jobs(jobs, seconds, lambda part, row: done.append(row["number"]), lambda: now[0])
    return done, left_out


def test_a_job_is_begun_if_the_longer_of_the_two_before_it_would_still_end_in_time():
    assert run_by_hand([3, 3, 3, 3], 10) == ([0, 1, 2], ["job 3"])
    assert run_by_hand([3, 3, 3], 9) == ([0, 1, 2], [])
    assert run_by_hand([6, 1, 1, 1], 8) == ([0], ["job 1", "job 2", "job 3"])
    assert run_by_hand([2, 1, 1, 1], 5) == ([0, 1, 2, 3], [])
    assert run_by_hand([5, 1], 1) == ([0], ["job 1"])  # the first in any case
    assert run_by_hand([5, 1], float("inf")) == ([0, 1], [])


def test_what_is_asked_for_comes_by_worth():
    by_default = dict.fromkeys(("encoders", "sizes", "batches", "precisions", "trials", "steps", "seconds"))
    jobs = engine.plan(Namespace(**by_default), "cuda")
    assert [job.what for job in jobs[:6]] == [
        "conv 32 px batch 64", "conv 224 px batch 64", "conv 64 px batch 64", "trials [1, 4, 16]", "projection in bf16",
        "projection in float32"]  # fmt: skip
    assert len({job.what for job in jobs}) == len(jobs) == 3 * 3 * 2 + 3
    (cell, *others) = engine.plan(Namespace(**by_default | {"encoders": ["fc"], "sizes": [32], "batches": [4]}), "cpu")
    assert cell.what == "fc 32 px batch 4"
    assert {job.part for job in others} == {"trials", "projections"}


def test_a_step_of_a_precision_may_compute_in_a_more_exact_one():
    rates = {"float32": (190.0, 9.0), "bf16": (104.0, 10.0)}
    assert engine.find_limit(rates, "bf16") == (190, 10)
    assert engine.find_limit(rates, "float32") == (190, 9)
    assert engine.find_limit({"bf16": (104.0, 10.0)}, "bf16") == (104, 10)


# --- every method at one small budget
def gains(**by_epochs):
    """Rows of `fewest_epochs` of e8=[...] and so on, a gain for each seed."""
    rows = [(int(name[1:]), seed, gain) for name, found in by_epochs.items() for seed, gain in enumerate(found)]
    return pd.DataFrame(rows, columns=["epochs", "seed", "gain"])


def test_the_fewest_epochs_are_taken_at_which_every_seed_gains_five_points():
    assert all_methods.fewest_epochs(gains(e8=[4.9, 30], e16=[5.0, 6], e24=[20, 20])) == 16
    assert all_methods.fewest_epochs(gains(e24=[20, 20], e8=[5, 5])) == 8  # in whatever order they were made
    assert all_methods.fewest_epochs(gains(e8=[4, 5], e16=[4, 9], e24=[2, 3])) == 16  # none: the largest mean


def test_a_methods_epochs_are_chosen_on_validation_images_and_with_seeds_that_are_not_reported(tmp_path):
    args = Namespace(runs=tmp_path, folder=None, images=2200, epochs=8, times=[1, 2, 3], protocol=None)
    found = all_methods.choice_configs("wmse", args)
    assert [(c.epochs, c.seed) for c in found] == [(epochs, seed) for epochs in (8, 16, 24) for seed in range(20, 25)]
    reported = all_methods.config_of("wmse", 0, args)
    assert {c.train_images * (1 - c.val_fraction) for c in found} == {
        reported.train_images * (1 - reported.val_fraction)
    }
    stored = json.loads((FOLDER / "all_methods-choice-wmse.json").read_text())
    assert {(row["split"], row["seed"] in range(20, 25)) for row in stored["rows"]} == {("val", True)}
    assert stored["chosen_epochs"] == all_methods.fewest_epochs(pd.DataFrame(stored["rows"])) == reported.epochs


HAND = pd.DataFrame(
    [("a", "probe_plain", 0, 0.50, 0.40), ("a", "probe_plain", 1, 0.45, 0.40),  # 10 and 5 points: learns
     ("b", "probe_plain", 0, 0.90, 0.40), ("b", "probe_plain", 1, 0.44, 0.40),  # 4 with one seed: does not
     ("c", "probe_plain", 0, 0.60, 0.40), ("c", "probe_plain", 1, 0.70, 0.40),
     ("a", "knn", 0, 0.60, 0.30), ("a", "knn", 1, 0.60, 0.30),  # confirmed
     ("b", "knn", 0, 0.60, 0.30), ("b", "knn", 1, 0.60, 0.30),  # by kNN alone, which is not asked
     ("c", "knn", 0, 0.60, 0.30), ("c", "knn", 1, 0.20, 0.30)],
    columns=["method", "measure", "seed", "accuracy", "untrained"],
)  # fmt: skip


def test_who_learns_by_the_probe_and_whom_knn_confirms_is_counted():
    assert paper_figures.find_learners(HAND) == {"probe_plain": {"a", "c"}, "knn": {"a", "b"}}
    count = "2 of 3 gain at least 5 points with each of 2 seeds; of these 2, kNN confirms 1."
    assert (
        paper_figures.count_learners(HAND)
        == f"Whether a method learns is judged by the linear probe on plain images: {count}"
    )
    one = paper_figures.count_learners(HAND[HAND["seed"] == 1])
    assert one.endswith(": 2 of 3 gain at least 5 points with one seed; of these 2, kNN confirms 1.")


@pytest.mark.parametrize("kind", ["shapes", "folder"])
def test_the_results_and_the_figures_table_are_of_the_same_runs_and_of_every_method(kind):
    rows = pd.DataFrame(json.loads((FOLDER / f"all_methods-{kind}.json").read_text())["rows"])
    wide = rows.pivot(index=["method", "seed"], columns="representation", values=["probe_plain", "knn"])
    drawn = pd.read_csv(ROOT / "figures" / "data" / f"09-all-methods-{kind}.csv")
    assert set(drawn["method"]) == METHODS.keys() - LATER.keys()
    for measure, group in drawn.groupby("measure"):
        found = group.set_index(["method", "seed"]).sort_index()
        assert found["accuracy"].tolist() == pytest.approx(wide[measure]["trained"].sort_index().tolist())
        assert found["untrained"].tolist() == pytest.approx(wide[measure]["untrained"].sort_index().tolist())


def test_the_page_of_methods_says_what_the_table_counts():
    drawn = pd.read_csv(ROOT / "figures" / "data" / "09-all-methods-shapes.csv")
    text = " ".join((ROOT / "docs" / "methods.md").read_text(encoding="utf-8").split())
    assert paper_figures.count_learners(drawn) in text
