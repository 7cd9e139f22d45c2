"""What the benchmarks count and how they take turns; their times are nobody's test."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from _measure import CPU_WARM_STEPS, ratio, turns
from _results import table

from metaug_core.rehearsal import Work, counted


def test_work_by_hand():
    x, weight = torch.randn(4, 8), torch.randn(8, 16)
    work = counted(lambda: (x @ weight).T.relu())
    assert work.flops == 2 * 4 * 8 * 16
    assert work.least == 4 * (4 * 8 + 8 * 16 + 4 * 16)  # both factors read, the product written, in float32
    assert work.moved == work.least + 4 * 2 * 4 * 16  # relu reads and writes; the transpose only looks
    assert work.operations == 2


def test_a_broadcast_view_weighs_what_it_holds():
    row = torch.randn(1, 100)
    work = counted(lambda: row.expand(50, 100) * 2)
    assert work.moved == 4 * (100 + 50 * 100)


def test_the_optimiser_belongs_to_the_least():
    parameter = torch.nn.Parameter(torch.zeros(10))
    parameter.grad = torch.ones(10)
    work = counted(torch.optim.SGD([parameter], lr=0.1, fused=True).step)
    assert work.least == 4 * (10 + 10)
    assert work.flops == 0


def test_a_convolution_and_its_backward_by_hand():
    layer, x = torch.nn.Conv2d(3, 5, 3, bias=False), torch.randn(2, 3, 6, 6)
    forward = 2 * (2 * 4 * 4) * 5 * (3 * 3 * 3)
    assert counted(lambda: layer(x)).flops == forward
    assert counted(lambda: layer(x).sum().backward()).flops == 2 * forward  # the weight's gradient; x wants none


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

    from metaug_core.views import plain, split

    picture = Image.new("RGB", (4, 4), image_mode)
    theirs = rivals.to_lab(picture)
    pixels = torch.tensor(picture.getpixel((0, 0)), dtype=torch.uint8)[None, :, None, None].expand(1, 3, 4, 4)
    torch.testing.assert_close(theirs, split(plain(pixels), ["Lab"])[0][0], rtol=1e-3, atol=1e-3)
