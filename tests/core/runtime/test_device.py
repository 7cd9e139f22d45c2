"""What the setting `precision` does to torch's switches, and what it leaves of the user's own."""

import math
import os

import pytest
import torch

from metaug_core import evaluate, fit, fit_trials, preset
from metaug_core.config import ConfigError
from metaug_core.runtime import device
from metaug_core.runtime.device import CPU, CUDA, arithmetic, computed_in, unit_roundoff

BACKENDS = torch.backends


def values(switches):
    return [switch.fp32_precision for switch in switches]


def older():
    """What the older switches say, or that torch refuses to read them."""
    readings = []
    for read in (
        lambda: BACKENDS.cudnn.allow_tf32,
        lambda: BACKENDS.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision,
    ):
        try:
            readings.append(read())
        except RuntimeError:
            readings.append("refused")
    return readings


def nothing():
    pass


def older_switches():
    BACKENDS.cudnn.allow_tf32 = False
    BACKENDS.cuda.matmul.allow_tf32 = True


def medium():
    torch.set_float32_matmul_precision("medium")  # bf16 in oneDNN's matmuls


def newer_switches():
    BACKENDS.cuda.matmul.fp32_precision = "tf32"
    BACKENDS.cudnn.conv.fp32_precision = "ieee"
    BACKENDS.mkldnn.conv.fp32_precision = "bf16"


def for_all():
    BACKENDS.fp32_precision = "tf32"


USERS = [nothing, older_switches, medium, newer_switches, for_all]


@pytest.fixture
def switches():
    """The test may set them as it likes."""
    before = values(CUDA + CPU)
    yield
    BACKENDS.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    for switch, value in zip(CUDA + CPU, before, strict=True):
        switch.fp32_precision = value


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_the_switches_are_the_settings_within_and_the_users_afterwards(switches, user, precision):
    user()
    before = values(CUDA + CPU), older()
    with arithmetic(precision):
        assert values(CUDA) == ["tf32" if precision == "tf32" else "ieee"] * 3
        assert values(CPU) == ["ieee"] * 3
    assert (values(CUDA + CPU), older()) == before
    with pytest.raises(ZeroDivisionError), arithmetic(precision):
        raise ZeroDivisionError
    assert (values(CUDA + CPU), older()) == before


def test_within_another_the_inner_one_holds(switches):
    with arithmetic("tf32"):
        with arithmetic("float32"):
            assert values(CUDA) == ["ieee"] * 3
        assert values(CUDA) == ["tf32"] * 3


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_training_and_evaluation_are_within_it(tiny, switches, precision):
    """Seen from a report while it trains and from a view of the images; the user's own switches are the opposite."""
    newer_switches()
    before, switches = values(CUDA + CPU), []

    class Images:
        """The images of a split, which say under which switches they are asked for."""

        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def __getattr__(self, name):
            return getattr(self.images, name)

        def batches(self, parts):
            switches.append(values(CUDA))
            return self.images.batches(parts)

    from metaug_core.data import datasets

    config = tiny(precision=precision)
    run = fit(config, report=lambda at: switches.append(values(CUDA)))
    assert switches
    trained = len(switches)
    splits = datasets.load(config)
    watched = datasets.Splits(splits.pretrain, Images(splits.train), splits.val, Images(splits.test))
    evaluate(run, splits=watched, measures=("knn",), representations=("trained",))
    assert len(switches) > trained
    assert all(values_then == [{"float32": "ieee", "tf32": "tf32"}[precision]] * 3 for values_then in switches)
    assert values(CUDA + CPU) == before


def test_on_a_cpu_tf32_is_float32_to_the_bit(tiny, tmp_path):
    runs = [fit(tiny(precision=precision), lambda at: None) for precision in ("float32", "tf32")]
    assert runs[0].path != runs[1].path
    assert runs[0].metrics.equals(runs[1].metrics)


CONTAINERS = {  # files below the root -> cores, bytes
    "none": ({}, math.inf, math.inf),
    "v2": ({"cpu.max": "100000 100000", "memory.max": "4096"}, 1, 4096),
    "v2, no limit": ({"cpu.max": "max 100000", "memory.max": "max"}, math.inf, math.inf),
    "v2, of a group above": (
        {"proc": "0::/pod/one", "pod/one/cpu.max": "max 100000", "pod/cpu.max": "50000 100000", "pod/one/memory.max": "9",
         "pod/memory.max": "7"},
        1,
        7,
    ),
    "v1": (
        {"proc": "4:memory:/\n3:cpu,cpuacct:/docker/1", "cpu,cpuacct/docker/1/cpu.cfs_quota_us": "80000",
         "cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000", "memory/memory.limit_in_bytes": "5"},
        1,
        5,
    ),
    "v1, seen from inside": ({"proc": "3:cpu:/docker/1", "cpu/cpu.cfs_quota_us": "9", "cpu/cpu.cfs_period_us": "10"}, 1, math.inf),
    "v1, no limit": ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf, math.inf),
    "many": ({"cpu.max": "6400000 100000"}, math.inf, math.inf),
}  # fmt: skip


@pytest.mark.parametrize(("files", "cores", "memory"), CONTAINERS.values(), ids=CONTAINERS)
def test_the_limits_of_a_container_are_seen(tmp_path, monkeypatch, files, cores, memory):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(48), raising=False)
    for name, text in files.items():
        file = tmp_path / ("proc/self/cgroup" if name == "proc" else f"sys/fs/cgroup/{name}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    assert device.count_cores(tmp_path) == min(cores, 48)
    assert device.limit_memory(tmp_path) == memory


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000 100000", 2), ("200000 100000", 2), ("1000 100000", 1), ("250000 100000", 3)]
)
def test_a_quota_is_rounded_up(tmp_path, monkeypatch, quota, cores):
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text(quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64), raising=False)
    assert device.count_cores(tmp_path) == cores


def test_trials_of_two_precisions_are_refused(tiny):
    with pytest.raises(ConfigError, match="trials share images, device and precision, but differ in precision"):
        fit_trials([tiny(), tiny(precision="tf32")], lambda at: None)


@pytest.mark.parametrize("name", ["quick", "sketch", "paper", "authors"])
def test_presets_are_float32(name):
    assert preset(name).precision == "float32"


def test_half_a_unit_in_the_last_place_of_1():
    assert unit_roundoff("float32", "cuda") == torch.finfo(torch.float32).eps / 2
    assert unit_roundoff("bf16", "cpu") == torch.finfo(torch.bfloat16).eps / 2
    assert unit_roundoff("tf32", "cuda") == 2**-11  # 1 + 2^-10 is its next number after 1
    assert unit_roundoff("tf32", "cpu") == unit_roundoff("float32", "cpu")
    assert computed_in("tf32", "mps") == "float32"
