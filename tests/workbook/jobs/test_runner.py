"""Workers of a table: real processes that share its runs, are killed, interrupted and orphaned; the table stays what it was."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import TINY, same, saved

from metaug_core import DATASETS, METHODS, Config, MetaugError, extensions, fit_trials
from metaug_core.runs import files, listing, lock, store
from metaug_core.training.progress import silent
from metaug_workbook.jobs import background, papermill_runner, processes, runner, sweep
from metaug_workbook.jobs.processes import LocalProcesses
from metaug_workbook.results import tables

FILE = """
from metaug_core import DATASETS
import numpy as np

def quarters(count, seed):
    random, labels = np.random.RandomState(seed), np.arange(count) % 4
    images = random.randint(0, 90, (count, 3, 16, 16))
    for image, label in zip(images, labels):
        image[:, 8 * (label // 2) :][:, :8, 8 * (label % 2) :][:, :, :8] += 100
    return images.astype(np.uint8), labels

DATASETS["quarters"] = lambda config: (*quarters(100, 0), *quarters(60, 1))
"""
DEADLINE = 120.0


@pytest.fixture
def config(tmp_path, monkeypatch):
    """config(**changes) -> a run of a few seconds, on images that only a user's file knows."""
    monkeypatch.setitem(DATASETS, "quarters", None)  # taken out again afterwards
    monkeypatch.setattr(extensions, "loaded", [])
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "quarters_of_my_own.py").write_text(FILE)
    extensions.load(tmp_path / "quarters_of_my_own.py")
    yield lambda **changes: Config(
        **{
            "dataset": "quarters", "method": "metaug-only-oucl", "image_size": 16, "views": ("L", "ab"), "width": 0.05,
            "feature_dim": 8, "bank_negatives": 32, "batch_size": 16, "epochs": 15, "lr": 3e-3, "workers": 0, "device": "cpu",
            "runs_dir": tmp_path / "runs",
        }
        | changes
    )  # fmt: skip
    del sys.modules["quarters_of_my_own"]


def make(configs, **options):
    defaults = {"measures": ("knn",), "representations": ("trained",), "view": silent}
    return runner.make_table(configs, **defaults | options)


def trainers(configs) -> dict[str, int]:
    """By run, the process other than this one that trains it now."""
    owners = {config.name(): lock.read_owner(store.request(config).path) for config in configs}
    return {name: owner["process"] for name, owner in owners.items() if owner and owner["process"] != os.getpid()}


def sessions(config) -> list[dict[str, Any]]:
    return store.request(config).sessions


def until(holds):
    end = time.monotonic() + DEADLINE
    while not (value := holds()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)
    return value


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def find_under_way(configs, steps: int = 1) -> dict[str, int]:
    """The runs under way and their processes, once so many steps of each are done."""
    under_way = trainers(configs)
    rows = [files.rows(configs[0].runs_dir / name / "timing.jsonl") for name in under_way]
    return under_way if all(row and row[-1]["step"] >= steps for row in rows) else {}


def when_training(configs, act: Callable[[dict[str, int]], None], steps: int = 1):
    """A view whose reports wait until so many steps of each run under way are done, and then act once on its processes."""
    acted = []

    def view(runs):
        def tell(done, at):
            if not acted and (under_way := find_under_way(configs, steps)):
                acted.append(True)
                act(under_way)

        return tell

    return view


@pytest.mark.slow
def test_workers_make_the_same_table_as_one_process(config, tmp_path):
    configs = [config(seed=seed) for seed in (0, 1, 2)] + [config(lr=1e30, optimiser="sgd"), config(method="cmc")]
    shared = make(configs, processes=2)
    own = [one.replace(runs_dir=tmp_path / "alone") for one in configs]
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))  # as each of the two had
    alone = make(own, processes=1)
    torch.set_num_threads(threads)
    assert shared["state"].tolist() == ["finished"] * 3 + ["failed", "finished"]
    compared = [name for name in shared if name not in tables.MACHINE]
    assert shared[compared].equals(alone[compared])
    for one, other in zip(configs, own, strict=True):
        assert len(sessions(one)) == 1  # nobody did it twice
        if store.request(one).finished:
            assert same(saved(store.request(one)), saved(store.request(other)))


def test_a_failure_in_a_group_is_written_with_its_own_run(config):
    torn, large, good = config(seed=1), config(batch_size=96), config(epochs=1)
    place = store.request(torn).path
    place.mkdir(parents=True)
    (place / "checkpoint.safetensors").write_bytes(b"half a checkpoint")
    table = make([torn, large, good, config(epochs=1, seed=1)], processes=1, together=4)
    assert table["state"].tolist() == ["failed", "failed", "finished", "finished"]
    first, second = table["failure"][:2]
    assert first.startswith("cannot read ")
    assert second == "batch_size 96 is more than the 90 training images of quarters"
    assert table["knn"][2:].notna().all()


def test_one_that_cannot_be_evaluated_leaves_the_others_evaluated(config):
    configs = [config(epochs=1, seed=seed) for seed in (0, 1)]
    fit_trials(configs, lambda at: None)
    store.request(configs[0]).encoder_files()[-1].write_bytes(b"half an encoder")
    table = make(configs, processes=1, together=2)
    assert table["state"].tolist() == ["failed", "finished"]
    assert table["failure"][0].startswith("cannot read ")
    assert table["knn"][1] > 0


@pytest.mark.slow
def test_what_a_killed_worker_leaves_is_made(config):
    configs = [config(seed=seed, epochs=20) for seed in (0, 1, 2)]
    killed: dict[str, int] = {}

    def kill(under_way):
        killed.update(dict([next(iter(under_way.items()))]))
        os.kill(*killed.values(), signal.SIGKILL)

    table = make(configs, processes=2, view=when_training(configs, kill))
    assert table["state"].tolist() == ["finished"] * 3
    assert not alive(*killed.values())
    begun = {one.name(): len(sessions(one)) for one in configs}
    assert begun.pop(*killed) in (1, 2)  # 2 if it had a checkpoint
    assert set(begun.values()) == {1}


@pytest.mark.slow
def test_a_job_whose_workers_die_again_and_again_is_a_failure_and_the_others_go_on(config, monkeypatch):
    monkeypatch.setattr(processes, "LOSSES", 1)
    configs = [config(seed=seed, epochs=40 if seed == 0 else 1) for seed in (0, 1, 2)]
    deaths: list[int] = []

    def view(runs):
        def tell(done, at):
            process = trainers(configs[:1]).get(configs[0].name())
            if process is not None and process not in deaths:
                deaths.append(process)
                os.kill(process, signal.SIGKILL)

        return tell

    table = make(configs, processes=2, view=view)
    assert table["state"].tolist() == ["failed", "finished", "finished"]
    assert table["failure"][0] == "its process died 2 times (out of memory?)"
    assert len(deaths) == 2


@pytest.mark.slow
def test_interrupted_everyone_saves_and_the_same_call_goes_on(config):
    configs = [config(seed=seed, epochs=40) for seed in (0, 1)]
    workers: list[int] = []

    def interrupt(under_way):
        workers.extend(under_way.values())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(configs, processes=2, view=when_training(configs, interrupt))
    assert not any(map(alive, workers))
    begun = [one for one in configs if sessions(one)]
    assert begun
    for one in begun:
        run = store.request(one)
        assert not run.finished
        assert run.checkpoint.exists()
        with run.lock():  # nobody has it
            pass
    assert make(configs, processes=1)["state"].tolist() == ["finished"] * 2
    assert [[row["from_step"] > 0 for row in sessions(one)] for one in begun] == [[False, True]] * len(begun)


@pytest.mark.slow
def test_a_worker_does_not_outlive_a_killed_owner(config, tmp_path):
    configs = [config(seed=seed, epochs=3000) for seed in (0, 1)]
    script = textwrap.dedent("""
        import sys
        from metaug_core import extensions, Config
        from metaug_workbook.jobs import papermill_runner, processes, runner
        extensions.load(sys.argv[1])
        configs = [Config.model_validate_json(text) for text in sys.argv[2:]]
        runner.make_table(configs, ("knn",), ("trained",), processes=2)
    """)
    texts = [one.model_dump_json() for one in configs]
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "quarters_of_my_own.py"), *texts],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    under_way = until(lambda: find_under_way(configs))
    owner.kill()
    owner.wait()
    until(lambda: not any(map(alive, under_way.values())))
    for name in under_way:
        assert store.open_run(name, tmp_path / "runs").checkpoint.exists()


@pytest.mark.slow
def test_a_run_that_somebody_else_stops_is_a_failure_of_this_call_and_saved(config):
    configs = [config(seed=seed, epochs=400 if seed == 0 else 1) for seed in (0, 1)]
    stopped = store.request(configs[0])
    table = make(configs, processes=2, view=when_training(configs[:1], lambda under_way: stopped.request_stop()))
    assert table["state"].tolist() == ["failed", "finished"]
    assert table["failure"][0] == f"run {stopped.path.name} was asked to stop: it is saved, the same request goes on"
    assert stopped.checkpoint.exists()


def test_the_owner_does_not_wait_until_its_calls_are_read(tmp_path):
    executor = LocalProcesses(1, tmp_path / "log")
    begun = time.monotonic()
    futures = [executor.submit(time.sleep, 0.0) for _ in range(3)] + [executor.submit(len, "x" * 2**22)]
    assert time.monotonic() - begun < 5
    assert [future.result(timeout=DEADLINE) for future in futures] == [None, None, None, 2**22]
    executor.shutdown()


@pytest.mark.slow
def test_what_a_call_raises_its_future_raises_as_a_sentence(tmp_path):
    executor = LocalProcesses(1, tmp_path / "log")
    with pytest.raises(MetaugError, match="there is no notebook 'nowhere'"):
        executor.submit(papermill_runner.find_notebook, "nowhere").result(timeout=DEADLINE)
    with pytest.raises(MetaugError, match="ZeroDivisionError: "):
        executor.submit(divmod, 1, 0).result(timeout=DEADLINE)
    assert executor.submit(divmod, 7, 2).result(timeout=DEADLINE) == [3, 1]  # the worker goes on
    executor.shutdown()


@pytest.mark.slow
def test_a_method_of_the_notebook_alone_is_left_to_it(config, monkeypatch):
    own = type("Own", (METHODS["cmc"],), {})
    monkeypatch.setitem(METHODS, "own", own)
    configs = [config(method="own"), config(method="own", seed=1), config(), config(seed=1)]
    seen: dict[str, int] = {}
    table = make(configs, processes=2, view=when_training(configs, seen.update))
    assert table["state"].tolist() == ["finished"] * 4
    assert seen.keys() <= {one.name() for one in configs[2:]}


@pytest.mark.slow
def test_what_another_process_does_is_waited_for_and_not_done_again(config):
    configs, said = [config(seed=seed, epochs=1) for seed in (0, 1)], []
    run, held, let_go = store.request(configs[0]), threading.Event(), threading.Event()

    def hold() -> None:  # another thread stands for another process: the lock is a thread's own
        with run.lock():
            held.set()
            let_go.wait(DEADLINE)

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(DEADLINE)

    def view(runs):
        def tell(done, at):
            said.append((done, at and at.run.config.seed))
            if done == 1 and sum(number == 1 for number, _ in said) > 2:  # it waits: the other ends
                let_go.set()

        return tell

    assert make(configs, processes=1, view=view)["state"].tolist() == ["finished"] * 2
    other.join()
    seeds = [seed for _, seed in said if seed is not None]
    assert seeds == sorted(seeds, reverse=True)  # the free run first
    assert len(sessions(configs[0])) == 1


def test_a_table_does_not_hold_runs_of_other_data(tmp_path):
    """Nor does a sweep or a list of jobs take them for its own."""
    configs = []
    for folder, classes in (("a", "cd"), ("b", "cde")):
        for part in ("train", "val"):
            for name in classes:
                (tmp_path / folder / "imagenet" / part / name).mkdir(parents=True)
                for n in range(4):
                    Image.new("RGB", (16, 16), (9 * n, 0, 0)).save(
                        tmp_path / folder / "imagenet" / part / name / f"{n}.png"
                    )
        configs.append(Config(**{**TINY, "dataset": "imagenet", "method": "cmc", "negatives": "batch", "batch_size": 4, "epochs": 1,
                                 "val_fraction": 0, "data_dir": tmp_path / folder, "runs_dir": tmp_path / "runs"}))  # fmt: skip
    measures = {"measures": ("knn",), "representations": ("trained",)}
    assert runner.make_table(configs[:1], **measures)["state"].tolist() == ["finished"]
    plan = sweep.Plan(
        "b", "01_pretrain", (), ({},), (configs[1],), (), tables.Wanted(("knn",), ("trained",), False, "test")
    )
    for refused in (
        lambda: runner.make_table(configs[1:], **measures),
        lambda: runner.run_jobs([runner.Job((configs[1],))]),
        lambda: sweep.run_sweep(sweep.Sweep(plan)),
    ):
        with pytest.raises(MetaugError, match="is of other data: .*classes 2, .* now are .*24 files"):
            refused()


def test_one_process_for_each_thread_and_run_as_far_as_cores_and_memory_go(config, monkeypatch):
    runs = [store.request(config(seed=seed)) for seed in range(4)]
    threads = torch.get_num_threads()
    try:
        for count, cores, expected in ((1, 9, 1), (3, 9, 3), (9, 9, 4), (9, 2, 2)):
            torch.set_num_threads(count)
            monkeypatch.setattr(runner, "count_cores", lambda cores=cores: cores)
            monkeypatch.setattr(runner, "WORKER_BYTES", 1)
            assert runner.count_processes(runs) == expected
            monkeypatch.setattr(runner, "WORKER_BYTES", 2**60)
            assert runner.count_processes(runs) == 1
    finally:
        torch.set_num_threads(threads)


def test_groups_are_of_runs_that_differ_in_numbers_only(tiny):
    settings = [{}, {"lr": 0.5}, {"seed": 1}, {"delta": 0.2, "seed": 2}, {"bank_negatives": 16}]
    configs = [tiny(**changes) for changes in settings]
    a, b, c, d, e = configs
    assert runner.group_configs(configs, 9) == [(a, b, c, d, e)]
    assert runner.group_configs(configs, 2) == [(a, b), (c, d), (e,)]
    assert runner.group_configs(configs, 1) == [(a,), (b,), (c,), (d,), (e,)]
    assert runner.group_configs([], 3) == []


@pytest.mark.parametrize(
    "other",
    [
        {"epochs": 3}, {"batch_size": 8}, {"train_images": 50}, {"val_fraction": 0.2}, {"image_size": 8}, {"stored_size": 32},
        {"storage": "stream"}, {"oucl": "eq9"}, {"gamma_detached": True, "oucl": "eq9"}, {"views": ("L", "ab", "RGB")},
        {"optimiser": "sgd"}, {"method": "cmc"},
    ],
)  # fmt: skip
def test_other_settings_keep_runs_apart(tiny, other):
    configs = [tiny(), tiny(**other), tiny(seed=1), tiny(seed=1, **other), tiny(seed=2)]
    a, b, c, d, e = configs
    assert runner.group_configs(configs, 2) == [(a, c), (b, d), (e,)]


def test_a_background_run_without_its_data_is_not_listed_afterwards(tmp_path, capsys):
    run = store.request(Config(dataset="cifar10", data_dir=tmp_path / "nowhere", runs_dir=tmp_path))
    files.write_json(run.path / "config.json", run.config.model_dump(mode="json"))
    assert background.train(run.path) == 1
    assert "cifar10 is not in" in capsys.readouterr().out
    assert listing.list_folders(tmp_path) == []


def test_idle_threads_of_workers_sleep_unless_the_user_says_otherwise(tmp_path, monkeypatch):
    for name in processes.WAITING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    executor = processes.LocalProcesses(1, tmp_path / "log")
    try:
        names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
        assert [executor.submit(os.getenv, name).result() for name in names] == ["passive", "7"]
    finally:
        executor.shutdown()
