"""How steps are run: captured on CUDA and eager elsewhere, with the same results; memory that is kept between them."""

import platform
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from tiny import list_differences, list_tensors, repeat_step, run_steps, start_state

from metaug_core import fit, fit_trials
from metaug_core.runs import files
from metaug_core.training import cuda_graphs
from metaug_core.training.cuda_graphs import EAGER_STEPS, Stepper
from metaug_core.training.state import own_random_numbers
from metaug_core.training.step import descend, train_step
from metaug_workbook.cli import main
from metaug_workbook.results import tables


def test_on_a_cpu_steps_are_eager_and_say_why():
    s, other = start_state(), start_state()
    step = Stepper([s])
    assert step.reason == "device cpu has no CUDA graphs"
    metrics = run_steps(step, s, 3)
    rows = torch.arange(16)
    with own_random_numbers(other):  # and threads
        first = train_step(other, other.images.pixels[rows], rows, False)
    assert metrics[0] == {name: value.tolist() for name, value in first.items()}
    assert "effective_rank" in metrics[2]


@pytest.mark.parametrize("changes", [{"jitter": 0.5}, {"look_ahead_batch": "previous", "optimiser": "sgd"}], ids=str)
def test_a_step_repeated_from_one_state_is_the_same_and_a_difference_is_named(changes):
    """The comparison that tests/gpu makes of captured steps."""
    s = start_state(**changes)
    stepper, rows = Stepper([s]), torch.arange(16)

    def step():
        return stepper({0: cuda_graphs.Batch(s.images.pixels[rows], rows, False)})[0]

    step()  # makes the optimisers' states
    before = {name: t.clone() for name, t in list_tensors(s).items()}
    results = repeat_step(s, step, 3)
    assert not list_differences(results, results[0])
    assert not list_differences([list_tensors(s)], before)  # it stays where it was
    moved = [line.split(":")[0] for line in list_differences(results[:1], results[0] | before)]
    for name in ("networks.encoders.nets.L.0.weight", "mag.first.weight", "memory.entries"):
        assert name in moved
    assert any(name.startswith("optimiser.") for name in moved)
    assert any(name.startswith("mag_optimiser.") for name in moved)
    results[2]["memory.entries"][0, 0, 0] += 0.5
    (line,) = list_differences(results, results[0])
    assert line.startswith("memory.entries: in [2], by up to 0.5 at ")


without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")


@without_cuda
def test_where_a_capture_fails_the_step_is_eager_and_says_why():
    """The capture is real, and so is the error of torch: there is no device."""
    s, other = start_state(jitter=0.5), start_state(jitter=0.5)
    step, eager = Stepper([s]), Stepper([other])
    step.reason = None
    metrics = run_steps(step, s, EAGER_STEPS + 3)
    assert metrics == run_steps(eager, other, EAGER_STEPS + 3)
    assert step.reason is not None
    assert step.reason.startswith("the step could not be captured: CUDA error: ")
    assert "\n" not in step.reason


@without_cuda
def test_why_a_capture_failed_stands_with_the_run_and_is_said_once(tiny, tmp_path, monkeypatch):
    plain = fit(tiny(runs_dir=tmp_path / "plain"), lambda at: None)
    assert tables.read_row(plain)["eager_because"] == "device cpu has no CUDA graphs"
    # The device is taken for one that captures; what then happens is torch's.
    monkeypatch.setattr(cuda_graphs, "explain_eager_steps", lambda states: None)
    with pytest.warns(RuntimeWarning, match="could not be captured: CUDA error: .* kernel by kernel") as warned:
        runs = fit_trials([tiny(), tiny(seed=1)], lambda at: None)
    assert len([one for one in warned if one.category is RuntimeWarning]) == 1
    for run in runs:
        assert tables.read_row(run)["eager_because"].startswith("the step could not be captured: CUDA error: ")
    assert runs[0].metrics.equals(plain.metrics)
    file = runs[0].path / "environment.json"
    (session,) = files.read_json(file)
    files.write_json(file, [session | {"device": "cuda"}])
    report = CliRunner().invoke(main.main, ["report", runs[0].path.name, "--runs-dir", str(runs[0].path.parent)]).output
    assert f"steps      not captured as CUDA graphs: {session['eager_because']}" in report


def test_forked_encoders_are_the_same_run_where_nothing_is_captured():
    metrics = []
    for graphs in ("auto", "forked"):
        s = start_state(graphs=graphs)
        metrics.append(run_steps(Stepper([s]), s, 3))
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_a_gradient_in_another_layout_moves_the_right_weights(make):
    """Fused optimisers go by memory: with channels last on one side only they would mix up the weights."""
    torch.manual_seed(0)
    start, gradient = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    moved = []
    for layout in (torch.contiguous_format, torch.channels_last):
        parameter = torch.nn.Parameter(start.clone().to(memory_format=layout))
        descend(make([parameter], lr=0.1, fused=True), {"w": parameter}, {"w": gradient})
        moved.append(parameter.detach())
        assert parameter.grad is None
    assert torch.equal(*moved)
    assert not torch.equal(moved[0], start)


FAULTS = """
import resource, torch
from metaug_core.runtime.device import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with keep_freed_memory():
    faults()
    print(faults())
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is meant")
def test_freed_memory_is_kept_within_and_given_back_after():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    within, after = map(int, done.stdout.split())
    assert within < 100  # 10 tensors of 40 MB would be 97,000 pages of 4 KB
    assert after > 10 * max(within, 10)
