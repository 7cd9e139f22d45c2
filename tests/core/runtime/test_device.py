"""What training and evaluation do to torch's switches and to other threads, and what they leave of the user's own."""

import json
import math
import os
import signal
import threading

import pytest
import torch
from tiny import same, saved
from torch import nn
from torch.autograd import forward_ad as fwAD
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from metaug_core import ENCODERS, Config, evaluate, fit, fit_trials, hardware, open_run, preset
from metaug_core.config import ConfigError
from metaug_core.data import datasets
from metaug_core.runtime import device
from metaug_core.runtime.device import CPU, CUDA, arithmetic, computed_in, one_thread, unit_roundoff
from metaug_core.training import threads

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
        assert values(CUDA) == ["ieee" if precision == "float32" else "tf32"] * 3
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


# --- precision auto


@pytest.mark.parametrize(
    ("name", "precision"), [("quick", "bf16"), ("sketch", "bf16"), ("paper", "float32"), ("authors", "float32")]
)
def test_the_small_presets_take_the_faster_format(faster_bf16, name, precision):
    assert preset(name, device="cpu").precision == precision
    assert preset(name, device="cpu", precision="float32").precision == "float32"


def test_auto_is_settled_when_a_config_is_made(faster_bf16, monkeypatch):
    """Its settings and its name are those of what it took, and another seed is not asked again."""
    config = Config(precision="auto", device="cpu")
    assert config.model_dump()["precision"] == "bf16"
    assert config.name() == Config(precision="bf16", device="cpu").name() != Config(device="cpu").name()
    assert config.replace(seed=1) == Config(precision="bf16", device="cpu", seed=1)
    assert Config(precision="auto", device="mps").precision == "float32"
    assert Config(**config.model_dump()).precision == "bf16"
    monkeypatch.setenv("METAUG_CACHE", str(faster_bf16.parent / "other"))  # another machine, with the stored settings
    assert Config(**config.model_dump()).precision == "bf16"


@pytest.mark.parametrize(("seconds", "precision"), [(0.79, "bf16"), (0.81, "float32"), (2, "float32")])
def test_bf16_needs_a_clear_margin(tmp_path, monkeypatch, seconds, precision):
    monkeypatch.setenv("METAUG_CACHE", str(tmp_path))
    hardware.locate_times().write_text(json.dumps({"float32": 1, "bf16": seconds}))
    assert hardware.choose_precision("cpu") == precision


DAMAGED = [b"", b"{", b"[]", b"\xff", b'{"float32": 1}', b'{"float32": "NaN", "bf16": 1}', b'{"float32": 0, "bf16": 1}',
           b'{"float32": null, "bf16": 1}']  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_times_are_as_none(tmp_path, text):
    (tmp_path / "times.json").write_bytes(text)
    assert hardware.read_times(tmp_path / "times.json") is None


def test_times_are_measured_once_and_kept(tmp_path):
    file, random, count = tmp_path / "cache" / "times.json", torch.get_rng_state(), torch.get_num_threads()
    times = hardware.recall_times(file)
    assert hardware.read_times(file) == times
    assert json.loads(file.read_text())["torch"] == torch.__version__
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == count
    file.write_text("{")
    assert hardware.recall_times(file) is times  # a process measures once
    hardware.recall_times.cache_clear()
    again = hardware.recall_times(file)
    assert again is not times
    assert hardware.read_times(file) == again
    assert [path.name for path in file.parent.iterdir()] == ["times.json"]


def test_a_folder_that_cannot_be_written_costs_a_timing(tmp_path):
    (tmp_path / "file").write_text("")
    assert hardware.recall_times(tmp_path / "file" / "times.json").keys() == {"float32", "bf16"}


def test_a_run_of_auto_is_that_of_its_format_on_every_machine(tiny, faster_bf16, monkeypatch):
    asked = tiny(precision="auto", epochs=1)
    run = fit(asked, lambda at: None)
    assert json.loads((run.path / "config.json").read_text())["precision"] == "bf16"
    assert fit(tiny(precision="bf16", epochs=1), lambda at: pytest.fail("trained again")).path == run.path
    monkeypatch.setenv("METAUG_CACHE", os.environ["METAUG_CACHE"] + "-of-another")
    hardware.locate_times().parent.mkdir()
    hardware.locate_times().write_text(json.dumps({"float32": 1, "bf16": 2}))
    assert tiny(precision="auto", epochs=1).precision == "float32"
    stored = open_run(run.path, run.path.parent)
    assert stored.current
    assert stored.config == asked


# --- threads of a run


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_small_networks_take_one_thread_and_large_ones_torchs_own(three_threads):
    small = Config(width=0.125)
    assert threads.count_threads(small, "cpu") == 1
    for large in (Config(), Config(encoder="resnet18", views=("RGB",)), small.replace(image_size=224)):
        assert threads.count_threads(large, "cpu") == 3
    assert threads.count_threads(small, "cuda") == 3
    torch.set_num_threads(1)
    assert threads.count_threads(Config(), "cpu") == 1


def test_flops_of_the_first_layer_by_hand(monkeypatch):
    monkeypatch.setitem(ENCODERS, "one", lambda channels, config: nn.Conv2d(channels, 5, 3, stride=2, bias=False))
    monkeypatch.setattr(threads, "build_encoder", lambda channels, config: ENCODERS["one"](channels, config))
    # 7 x 7 places, 5 channels, kernels of 9; L has one channel, ab has two
    assert threads.count_flops(Config(image_size=16, views=("L", "ab", "L"))) == 2 * 49 * 5 * 9 * (1 + 2) / 2


def test_a_run_takes_its_threads_and_gives_them_back(tiny, three_threads, monkeypatch):
    """Of an encoder of the user's own nothing is known: it takes torch's own number."""
    counts = set()

    def report(at):
        counts.add(torch.get_num_threads())

    monkeypatch.setitem(ENCODERS, "mine", lambda channels, config: ENCODERS["conv"](channels, config))
    assert fit(tiny(epochs=1), report).sessions[-1]["threads"] == 1
    assert fit(tiny(epochs=1, encoder="mine"), report).sessions[-1]["threads"] == 3
    assert counts == {3}  # a report is the user's own
    assert torch.get_num_threads() == 3


def test_a_small_run_has_the_same_bits_whatever_torchs_threads_are(tiny, three_threads):
    many = saved(fit(tiny(), lambda at: None))
    torch.set_num_threads(1)
    one = saved(fit(tiny(runs_dir=tiny().runs_dir / "one"), lambda at: None))
    assert same(many, one)


def test_half_a_unit_in_the_last_place_of_1():
    assert unit_roundoff("float32", "cuda") == torch.finfo(torch.float32).eps / 2
    assert unit_roundoff("bf16", "cpu") == torch.finfo(torch.bfloat16).eps / 2
    assert unit_roundoff("tf32", "cuda") == 2**-11  # 1 + 2^-10 is its next number after 1
    assert unit_roundoff("tf32", "cpu") == unit_roundoff("float32", "cpu")
    assert computed_in("tf32", "mps") == "float32"


# --- the user's other switches


def state_of_torch():
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(),
            torch.is_anomaly_enabled(), torch.get_default_device())  # fmt: skip


def test_a_run_is_the_same_under_any_switches_and_these_stay(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "SHAPES_TRAIN", (20, 1))
    monkeypatch.setattr(datasets, "SHAPES_TEST", (20, 2))
    shapes = preset("sketch", train_images=20, batch_size=8, val_fraction=0.2)
    plain = fit(tiny(epochs=1), lambda at: None)
    accuracies = evaluate(plain, measures=("knn",))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.autograd.set_detect_anomaly(True), torch.device("meta"):
            before = state_of_torch()
            other = fit(tiny(epochs=1, runs_dir=tmp_path / "other"), lambda at: None)
            table = evaluate(other, measures=("knn",))
            with pytest.raises(ConfigError, match="more than the 90 training images"):
                fit(tiny(batch_size=91), lambda at: None)
            assert state_of_torch() == before
            images = datasets.load(shapes).test.pixels
    finally:
        torch.set_default_dtype(torch.float32)
    assert same(saved(plain), saved(other))
    assert accuracies.equals(table)
    assert torch.equal(images, datasets.load(shapes).test.pixels)


def test_gradients_are_recorded_where_the_user_records_none(tiny):
    with torch.no_grad():
        assert fit(tiny(epochs=1, method="cmc"), lambda at: None).finished
        assert not torch.is_grad_enabled()


AROUND = {
    "torch.autocast": lambda call: with_context(torch.autocast("cpu", torch.bfloat16), call),
    "torch.autocast ": lambda call: with_context(torch.autocast("cpu", enabled=False), call),
    "vmap, grad": lambda call: torch.vmap(lambda x: (call(), x)[1])(torch.ones(2)),
    "vmap, grad or": lambda call: torch.func.grad(lambda x: (call(), x)[1])(torch.ones(())),
    "torch.autograd.forward_ad": lambda call: with_context(fwAD.dual_level(), call),
    "the torch mode TorchFunctionMode": lambda call: with_context(TorchFunctionMode(), call),
    "the torch mode _FlopCounterMode": lambda call: with_context(FlopCounterMode(display=False), call),
    "disable_saved_tensors_hooks": lambda call: with_context(
        torch.autograd.graph.disable_saved_tensors_hooks("none"), call
    ),
}


def with_context(context, call):
    with context:
        call()


@pytest.mark.parametrize("name", AROUND)
def test_what_would_change_a_run_from_outside_is_refused(tiny, name):
    with pytest.raises(ConfigError, match=f"^fit and evaluate cannot run within {name}.*: call them outside of it$"):
        AROUND[name](lambda: fit(tiny(epochs=1, method="cmc"), lambda at: None))
    assert not tiny().runs_dir.exists()


# --- threads


def test_two_threads_train_and_evaluate_the_runs_that_one_does(tiny, tmp_path):
    alone = [fit(tiny(epochs=1, seed=seed), lambda at: None) for seed in (0, 1)]
    accuracies = [evaluate(run, measures=("knn",), representations=("untrained",)) for run in alone]
    together, tables = {}, {}

    def work(seed):
        together[seed] = fit(tiny(epochs=1, seed=seed, runs_dir=tmp_path / "together"), lambda at: None)
        tables[seed] = evaluate(together[seed], measures=("knn",), representations=("untrained",))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (0, 1):
        assert same(saved(alone[seed]), saved(together[seed]))
        assert tables[seed].equals(accuracies[seed])


def test_ctrl_c_ends_the_wait_for_another_thread(tiny):
    taken, over = threading.Event(), threading.Event()

    def hold():
        with one_thread():
            taken.set()
            over.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()
    interrupt = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        fit(tiny(), lambda at: None)
    over.set()
    holder.join()
    with one_thread():  # nothing is left locked
        pass
