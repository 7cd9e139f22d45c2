"""Killed at any moment, by signal or by a full disk, and resumed: on the CPU every bit is as if nothing had happened.

The runs are real processes: a driver imports the package once and forks a process for every run, which a test (or the process
itself, before its n-th access to the run's files) kills. Nothing of the package is patched.
"""

import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import ROOT, TINY, patterns

from metaug_core import Config, MetaugError, fit
from metaug_core.runs.files import StoreError, read_tensors, rows
from metaug_core.runs.store import STOP_REQUEST, Run, request
from metaug_core.training import loop

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")

DRIVER = """
import json, os, resource, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import tiny, metaug_core
from metaug_core import Config, MetaugError, fit
from metaug_core.training import loop

def hurt_before(folder, moment, number):
    accesses = 0
    def hook(event, details):
        nonlocal accesses
        if event in ("open", "os.rename", "os.remove") and str(details[0]).startswith(folder):
            accesses += 1
            if accesses == moment:
                os.kill(os.getpid(), number)
    sys.addaudithook(hook)

def run(order):
    config = Config(**order["config"])
    if order["moment"]:
        hurt_before(str(config.runs_dir), order["moment"], order["signal"])
    if order["largest_file"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"],) * 2)
    try:
        fit(config, report=lambda progress: None)
    except MetaugError as error:
        print(error, file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130
    return 0

fit(Config(**{**tiny.TINY, "epochs": 1, "runs_dir": sys.argv[2]}), report=lambda progress: None)  # what is slow once
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(order["errors"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        code = 70
        try:
            code = run(order)
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Driver:
    """Starts one run after the other, each in a process of its own."""

    def __init__(self, folder: Path):
        (folder / "driver.py").write_text(DRIVER)
        here = ROOT / "tests"
        self.process = subprocess.Popen(
            [sys.executable, str(folder / "driver.py"), str(here), str(folder / "warm")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=here.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        self.errors = folder / "errors.txt"

    def start(self, config: Config, moment: int = 0, number: int = signal.SIGKILL, largest_file: int = 0) -> int:
        """Begin a run -> its process id. It gets signal `number` before its `moment`-th access to its files (0: never)."""
        order = {"config": config.model_dump(mode="json"), "moment": moment, "signal": int(number),
                 "largest_file": largest_file, "errors": str(self.errors)}  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> int:
        """Wait for the run -> exit code; -9 for SIGKILL, 3 for a MetaugError, 130 for an interrupt."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def run(self, config: Config, **how: Any) -> int:
        self.start(config, **how)
        return self.end()

    def sentence(self) -> str:
        return self.errors.read_text().strip()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    started = Driver(tmp_path_factory.mktemp("driver"))
    yield started
    assert started.process.stdin is not None
    started.process.communicate(timeout=60)


AUTHORS = {"optimiser": "sgd", "mag_optimiser": "sgd", "weight_decay": 1e-4, "bank_draw": "per-anchor", "positives": "bank",
           "bank_writes": "every-pass", "oucl": "eq8", "augmented_sets": "swapped", "margin_everywhere": True,
           "scope": "image", "margin_scope": "image", "margin_features": "all", "mag_weight_decay": 1e-4,
           "mag_lr_schedule": "constant", "look_ahead": "fresh", "inner_lr": 1e-3}  # fmt: skip
MIDDLE = 33  # an access in the steps, when there are two checkpoints
OFTEN = {"checkpoint_minutes": 1e-9}  # after every step
SETTINGS: dict[str, dict[str, Any]] = {
    "metaug": {"jitter": 0.5, "keep_last": 2, **OFTEN},
    "epoch": {"schedule": "epoch", **OFTEN},
    "simclr": {"method": "simclr", "views": ("RGB", "RGB"), "lr_schedule": "cosine", "warmup_epochs": 0.5, **OFTEN},
    "authors": {**AUTHORS, "keep_last": 2, **OFTEN},
    "own": {
        "method": "byol",
        "protocol": "own",
        "views": ("RGB", "RGB"),
        "head_hidden": 16,
        "predictor_hidden": 16,
        "predictor_lr_schedule": "constant",
        **OFTEN,
    },  # LARS in groups, momentum that rises
    "rarely": {"keep_last": 2},  # no checkpoint is due before the end
}


def settings(name: str, folder: Path) -> Config:
    return Config(**{**TINY, "runs_dir": folder, **SETTINGS[name]})


@pytest.fixture(scope="module")
def whole(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """whole(name of settings) -> the run that was never killed."""
    runs: dict[str, Run] = {}

    def get(name: str) -> Run:
        if name not in runs:
            config = settings(name, tmp_path_factory.mktemp("whole"))
            assert driver.run(config) == 0, driver.sentence()
            runs[name] = request(config)
        return runs[name]

    return get


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    kind = one.dtype == other.dtype and one.shape == other.shape
    return kind and one.numpy().tobytes() == other.numpy().tobytes()


def assert_same(one: Run, other: Run) -> None:
    """Bit-identical: weights, MAG, bank, optimisers, generators, position; kept encoders; metrics."""
    assert one.finished
    assert other.finished
    names = [file.name for file in one.encoder_files()]
    assert names == [file.name for file in other.encoder_files()]
    assert len(names) == one.config.keep_last
    for file in ["checkpoint.safetensors", *(f"encoders/{name}" for name in names)]:
        (left, left_scalars), (right, right_scalars) = read_tensors(one.path / file), read_tensors(other.path / file)
        assert left.keys() == right.keys()
        different = [name for name in left if not same_bits(left[name], right[name])]
        assert not different, f"{file}: {different}"
        assert left_scalars == right_scalars
    for file in ("metrics.jsonl", "similarities.jsonl"):
        assert (one.path / file).read_bytes() == (other.path / file).read_bytes()
    for run in (one, other):
        assert not list(run.path.rglob(".writing-*"))
        assert len(rows(run.path / "metrics.jsonl")) > 5


@pytest.mark.slow
def test_a_checkpoint_holds_everything(whole):
    names = set(read_tensors(whole("metaug").checkpoint)[0])
    first = {name.split(".")[0] for name in names}
    assert first == {"networks", "mag", "memory", "optimiser", "mag_optimiser", "generator"}
    assert {f"generator.{role}" for role in ("order", "views", "draw", "global")} <= names
    assert "order" not in names  # the last pass is over
    assert {"networks.encoders.nets.L.1.layers.0.running_var", "memory.entries", "optimiser.0.exp_avg_sq"} <= names


def test_the_same_request_gives_the_same_run_in_this_process(whole, tmp_path):
    assert_same(whole("metaug"), fit(settings("metaug", tmp_path), report=lambda progress: None))


def test_a_checkpoint_only_when_it_is_due_and_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    for name, expected in (("rarely", set()), ("metaug", {*range(2, 11)})):
        there = set()  # steps after which, and before whose own checkpoint, there is one

        def look(at, there=there):
            if at.run.checkpoint.exists():
                there.add(at.step)

        run = fit(settings(name, tmp_path / name), report=look)
        assert there == expected
        assert read_tensors(run.checkpoint)[1]["step"] == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "rarely"])
def test_killed_again_and_again(driver, whole, tmp_path, name):
    """SIGKILL before a random access to the files: of configs, rows, checkpoints being written, encoders."""
    moments, config, killed = random.Random(name), settings(name, tmp_path), 0
    while (code := driver.run(config, moment=31 + moments.randrange(16))) != 0:  # far enough to reach a checkpoint
        assert code == -signal.SIGKILL, driver.sentence()
        killed += 1
        assert killed < 60, "the run does not get on"
    assert killed >= 3
    assert_same(whole(name), request(config))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_with_no_checkpoint_but_those_of_interrupts(driver, whole, tmp_path, seed):
    """SIGTERM and SIGKILL in turn, before random accesses: what is killed goes on from the last interrupt, passes back."""
    moments, config, ends = random.Random(seed), settings("rarely", tmp_path), []
    run = request(config)
    for number in [signal.SIGTERM, signal.SIGKILL] * 4:
        before = run.checkpoint.read_bytes() if run.checkpoint.exists() else b""
        moment = 21 + moments.randrange(
            8
        )  # in the steps: before the first of them an interrupt ends the process at once
        ends.append(driver.run(config, moment=moment, number=number))
        assert ends[-1] in (0, 130 if number == signal.SIGTERM else -signal.SIGKILL), driver.sentence()
        if ends[-1] == -signal.SIGKILL:
            assert run.checkpoint.read_bytes() == before
    assert ends[:2] == [130, -signal.SIGKILL]
    assert driver.run(config) == 0, driver.sentence()
    assert_same(whole("rarely"), run)


@pytest.mark.slow
def test_interrupted_at_every_access_around_the_end_of_a_pass(driver, whole, tmp_path):
    """The checkpoint that ends a pass is made after its monitor reading, which has the same step; nothing is lost or doubled."""
    ends_of_pass = set()
    for moment in range(16, 30):
        config = settings("rarely", tmp_path / str(moment))
        run = request(config)
        assert driver.run(config, moment=moment, number=signal.SIGTERM) == 130
        scalars, last_row = read_tensors(run.checkpoint)[1], rows(run.path / "metrics.jsonl")[-1]
        ends_of_pass.add((scalars["epoch"], scalars["position"], "knn_val" in last_row))
        assert scalars["step"] >= last_row["step"]
        assert driver.run(config, moment=17, number=signal.SIGKILL) == -signal.SIGKILL
        assert driver.run(config) == 0, driver.sentence()
        assert_same(whole("rarely"), run)
    assert (1, 0, True) in ends_of_pass
    assert (1, 0, False) not in ends_of_pass
    assert {position for epoch, position, _ in ends_of_pass if epoch == 0} >= {4}, ends_of_pass


@pytest.mark.slow
def test_killed_at_every_access_around_the_end_of_a_pass(driver, whole, tmp_path):
    """One kill each, before every single access to the files from the last checkpoint within a pass to the first of the next."""
    ends_of_pass = set()
    for moment in range(31, 45):
        config = settings("metaug", tmp_path / str(moment))
        assert driver.run(config, moment=moment) == -signal.SIGKILL
        run = request(config)
        left = [path.stat().st_size > 0 for path in run.path.rglob(".writing-*")]
        scalars = read_tensors(run.checkpoint)[1] if run.checkpoint.exists() else {"epoch": 0, "position": 0}
        last_row = rows(run.path / "metrics.jsonl")[-1]
        ends_of_pass.add((scalars["epoch"], scalars["position"], "knn_val" in last_row, tuple(left)))
        assert driver.run(config) == 0, driver.sentence()
        assert_same(whole("metaug"), run)
    assert any(epoch == 0 and monitored and position for epoch, position, monitored, _ in ends_of_pass), ends_of_pass
    assert any(True in left for *_, left in ends_of_pass), (
        ends_of_pass
    )  # a checkpoint or encoder that had all but its name


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_from_outside_at_random_times(driver, whole, tmp_path, seed):
    times, config, killed = random.Random(seed), settings("metaug", tmp_path), 0
    for _ in range(4):
        victim = driver.start(config)
        before = checkpoint_time(config)
        wait(lambda before=before: checkpoint_time(config) != before or request(config).finished)
        time.sleep(0.15 * times.random())
        kill(victim)
        killed += driver.end() == -signal.SIGKILL
    assert killed >= 1
    assert driver.run(config) == 0, driver.sentence()
    assert_same(whole("metaug"), request(config))


def test_killed_while_a_checkpoint_is_being_written(driver, whole, tmp_path):
    """The temporary file is watched for from outside; the checkpoint beside it is the one before, and whole."""
    config, caught = settings("metaug", tmp_path), 0
    run = request(config)
    for _ in range(6):
        victim = driver.start(config)
        wait(lambda: run.checkpoint.exists())
        wait(lambda: writing(run.path) or run.finished)
        kill(victim)
        if driver.end() == 0:
            break
        caught += bool(writing(run.path))
        read_tensors(run.checkpoints[0])  # between two renames it is the one before
    assert caught >= 1
    assert driver.run(config) == 0, driver.sentence()
    assert_same(whole("metaug"), run)


@pytest.mark.slow
def test_killed_before_and_after_every_single_write(driver, tmp_path):
    """A kill before every access that changes a file, which is also one right after the access before it, until the run ends."""
    config = settings("metaug", tmp_path / "whole").replace(
        epochs=3, train_images=20
    )  # 3 steps, a checkpoint after each
    assert driver.run(config) == 0, driver.sentence()
    undisturbed, stood_at, moment, code = request(config), set(), 0, -signal.SIGKILL
    while code:
        moment += 1
        killed = config.replace(runs_dir=tmp_path / str(moment))
        code = driver.run(killed, moment=moment)
        assert code in (0, -signal.SIGKILL), driver.sentence()
        run = request(killed)
        stood_at |= {tuple(file.name for file in run.checkpoints)}
        assert driver.run(killed) == 0, driver.sentence()
        assert_same(undisturbed, run)
        assert run.checkpoints == [run.checkpoint]
    newest, before = "checkpoint.safetensors", "checkpoint-before.safetensors"
    assert stood_at == {(), (newest,), (before,), (newest, before)}  # also between the two renames
    assert moment > 40


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)


def make_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [cut, flip_a_bit, make_a_folder])
def test_a_damaged_checkpoint_is_kept_and_the_one_before_taken(driver, whole, tmp_path, damage):
    config = settings("metaug", tmp_path)
    assert driver.run(config, moment=MIDDLE) == -signal.SIGKILL
    run = request(config)
    step = read_tensors(run.checkpoint_before)[1]["step"]
    assert read_tensors(run.checkpoint)[1]["step"] == step + 1
    damage(run.checkpoint)
    kept = run.checkpoint.with_stem("checkpoint-damaged-1")
    content = run.checkpoint.is_file() and run.checkpoint.read_bytes()
    with pytest.warns(RuntimeWarning) as said:
        assert_same(whole("metaug"), fit(config, report=lambda progress: None))
    (sentence,) = [str(one.message) for one in said if one.category is RuntimeWarning]
    assert_one_sentence(
        sentence, f"cannot read {run.checkpoint}: ", f"goes on from {run.checkpoint_before.name}, step {step}"
    )
    assert (kept.is_file() and kept.read_bytes()) == content
    assert kept.exists()
    assert run.checkpoints == [run.checkpoint]


def test_two_damaged_checkpoints_are_one_sentence(driver, tmp_path):
    config = settings("metaug", tmp_path)
    assert driver.run(config, moment=MIDDLE) == -signal.SIGKILL
    run = request(config)
    for file in run.checkpoints:
        cut(file)
    left = [(file, file.read_bytes()) for file in run.checkpoints]
    with pytest.raises(StoreError) as refused:
        fit(config, report=lambda progress: pytest.fail("it trains"))
    assert_one_sentence(str(refused.value), f"cannot read {run.checkpoint}: ", "remove it, and the run starts over")
    assert [(file, file.read_bytes()) for file in run.checkpoints] == left


def checkpoint_time(config: Config) -> int:
    path = request(config).checkpoint
    return path.stat().st_mtime_ns if path.exists() else 0


def writing(folder: Path) -> list[str]:
    return [entry.name for entry in os.scandir(folder) if entry.name.startswith(".writing-")]


def kill(victim: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):  # it had just finished
        os.kill(victim, number)


def wait(ready: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "waited in vain"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_saves_at_the_next_step(driver, whole, tmp_path, number):
    """Without a checkpoint that is due: the one that is there is the interrupt's."""
    config = settings("rarely", tmp_path)
    run = request(config)
    wanted = len(rows(whole("rarely").path / "metrics.jsonl"))
    victim = driver.start(config)
    wait(lambda: len(rows(run.path / "metrics.jsonl")) >= 2)  # step 2 of 5
    os.kill(victim, number)
    assert driver.end() == 130
    scalars = read_tensors(run.checkpoint)[1]
    assert scalars["step"] >= 2
    assert not run.finished
    assert len(rows(run.path / "metrics.jsonl")) < wanted
    assert driver.run(config) == 0, driver.sentence()
    assert_same(whole("rarely"), run)


@pytest.mark.parametrize("moment", [28, 33, 39, 45])
def test_an_interrupt_while_files_are_written(driver, whole, tmp_path, moment):
    config = settings("authors", tmp_path)
    assert driver.run(config, moment=moment, number=signal.SIGTERM) == 130
    assert read_tensors(request(config).checkpoint)[1]["step"] > 0
    assert driver.run(config) == 0, driver.sentence()
    assert_same(whole("authors"), request(config))


@pytest.mark.slow
def test_a_stop_request_of_another_process_saves_and_stops_the_run(driver, tmp_path):
    config, untouched = (settings("rarely", tmp_path / name).replace(epochs=40) for name in ("stopped", "untouched"))
    run = request(config)
    run.path.mkdir(parents=True)
    (run.path / STOP_REQUEST).touch()  # an earlier request, which starting the run takes back
    driver.start(config)
    wait(lambda: len(rows(run.path / "metrics.jsonl")) >= 2)
    assert not (run.path / STOP_REQUEST).exists()
    (run.path / STOP_REQUEST).touch()
    assert driver.end() == 3
    assert_one_sentence(
        driver.sentence(), f"run {config.name()} was asked to stop: it is saved, the same request goes on"
    )
    assert 2 <= read_tensors(run.checkpoint)[1]["step"] < 200
    assert not run.finished
    assert run.failure is None
    for same_config in (config, untouched):
        assert driver.run(same_config) == 0, driver.sentence()
    assert_same(request(untouched), run)


def test_a_finished_run_is_found(whole, driver):
    run = whole("metaug")
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.path.rglob("*")}
    again = fit(run.config.replace(workers=1, checkpoint_minutes=3.0), report=lambda progress: pytest.fail("it trains"))
    assert again.path == run.path
    assert driver.run(run.config) == 0
    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.path.rglob("*")}


def test_a_second_process_is_refused(driver, tmp_path):
    config = settings("metaug", tmp_path).replace(epochs=60)
    victim = driver.start(config)
    wait(lambda: request(config).checkpoint.exists())
    with pytest.raises(StoreError) as refused:
        fit(config, report=lambda progress: pytest.fail("it trains"))
    assert str(refused.value) == f"run {config.name()} is being trained by another process"
    kill(victim)
    assert driver.end() == -signal.SIGKILL
    last = read_tensors(request(config).checkpoint)[1]["step"]
    kill_later: list[int] = []  # the lock died with its holder

    def interrupt(progress):
        kill_later.append(progress.step)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(config, report=interrupt)
    assert kill_later[0] > last


def test_what_a_killed_writer_left_is_cleaned(driver, whole, tmp_path):
    config = settings("metaug", tmp_path)
    assert driver.run(config, moment=33) == -signal.SIGKILL
    run = request(config)
    (run.path / "encoders").mkdir(exist_ok=True)
    for left in (run.path / ".writing-abc", run.path / "encoders" / ".writing-def"):
        left.write_bytes(b"half a file")
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "epoch": 1.8, "lr": 0.1}\n{"step": 10, "loss_orig')
    with (run.path / "timing.jsonl").open("ab") as file:
        file.write(b"\0\0\0\xff")  # as some file systems leave it when the power fails
    assert driver.run(config) == 0, driver.sentence()
    assert_same(whole("metaug"), run)
    assert run.timing["step"].is_monotonic_increasing


def test_a_file_that_may_not_grow_stops_the_run_and_loses_nothing(driver, whole, tmp_path):
    """The checkpoint does not fit (a quota; RLIMIT_FSIZE here), in the middle of a pass."""
    config = settings("metaug", tmp_path)
    assert driver.run(config, moment=25) == -signal.SIGKILL
    run = request(config)
    good = run.checkpoint.read_bytes()
    assert driver.run(config, largest_file=len(good) // 2) == 3
    assert_one_sentence(
        driver.sentence(), f"cannot write {run.checkpoint}: File too large; what was saved before is kept"
    )
    assert run.checkpoint.read_bytes() == good
    assert driver.run(config) == 0, driver.sentence()
    assert_same(whole("metaug"), run)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A real file system of one megabyte."""
    libc, place = ctypes.CDLL(None, use_errno=True), tmp_path / "disk"
    place.mkdir()
    mount = getattr(libc, "mount", None)
    if mount is None or mount(b"tmpfs", str(place).encode(), b"tmpfs", 0, b"size=1m") != 0:
        pytest.skip("a tmpfs needs Linux and root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("left", [0, 8192, 80_000])
def test_a_full_disk_stops_the_run_and_loses_nothing(driver, whole, small_disk, left):
    """Full at once, after the small files, or when checkpoints are to be written (two of them do not fit)."""
    config = settings("metaug", small_disk / "runs")
    assert driver.run(config, moment=25) == -signal.SIGKILL
    run = request(config)
    good, filler = run.checkpoint.read_bytes(), small_disk / "filler"
    for left_over in run.path.rglob(
        ".writing-*"
    ):  # on a slow machine 22 is within a checkpoint; its space would be free again
        left_over.unlink()
    filler.write_bytes(bytes(max(0, shutil.disk_usage(small_disk).free - left)))
    assert driver.run(config) == 3
    assert_one_sentence(driver.sentence(), f"cannot write {run.path}", "No space left on device")
    assert run.checkpoint.read_bytes() == good
    assert not run.finished
    filler.unlink()
    assert driver.run(config) == 0, driver.sentence()
    assert_same(whole("metaug"), run)


def assert_one_sentence(sentence: str, *parts: str) -> None:
    assert sentence.count("\n") == 0, sentence
    for part in parts:
        assert part in sentence, sentence


def test_a_folder_that_has_lost_images_is_refused(driver, tmp_path):
    """A checkpoint remembers how many images it trains on: its order and its bank are of those."""
    images, labels = patterns(100, 0)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        for split in ("train", "test") if number < 20 else ("train",):
            file = tmp_path / "images" / split / str(label) / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(file)
    config = settings("simclr", tmp_path / "runs").replace(dataset="folder", data_dir=tmp_path / "images")
    assert driver.run(config, moment=23) == -signal.SIGKILL
    assert request(config).checkpoint.exists()
    for file in sorted((tmp_path / "images" / "train" / "0").iterdir())[:20]:
        file.unlink()
    with pytest.raises(MetaugError, match=r"is of other data: .*\(pretrain 90, .* now are \(pretrain 72, "):
        fit(config, report=lambda progress: None)
