"""Helpers of a table: real processes that share its runs, are killed, interrupted and orphaned; the table stays what it was."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from tiny import same, saved

from metaug_core import DATASETS, METHODS, Config, extensions, fit_trials
from metaug_core.runs import store
from metaug_core.training.progress import silent
from metaug_workbook.jobs import children, making
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


def made(configs, **options):
    asked = {"measures": ("knn",), "representations": ("trained",), "view": silent}
    return making.made(configs, **asked | options)


def trained(runs_dir: Path) -> dict[str, int]:
    """Names of the runs that helpers have begun, and by which process."""
    log = runs_dir / "helpers.log"
    words = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return {line[-1]: int(line[1].rstrip(":")) for line in words if line[2] == "trains"}


def until(holds):
    end = time.monotonic() + DEADLINE
    while not (found := holds()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def at_first_helper(configs, act):
    """A view for `made` whose first report waits until a helper trains, and then acts on its process."""

    def view(runs):
        acted = []

        def tell(done, at):
            if at is not None and not acted:
                acted.append(True)
                act(*until(lambda: list(trained(configs[0].runs_dir).values())))

        return tell

    return view


def test_a_helper_takes_its_share_and_the_table_is_the_same(config, tmp_path):
    configs = [config(seed=seed) for seed in (0, 1, 2)] + [config(lr=1e30, optimiser="sgd"), config(method="cmc")]
    shared = made(configs, processes=2, view=at_first_helper(configs, lambda process: None))
    assert trained(tmp_path / "runs")
    own = [one.replace(runs_dir=tmp_path / "alone") for one in configs]
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))  # as each of the two had
    alone = made(own, processes=1)
    torch.set_num_threads(threads)
    assert shared["state"].tolist() == ["finished"] * 3 + ["failed", "finished"]
    kept = [name for name in shared if name not in tables.MACHINE]
    assert shared[kept].equals(alone[kept])
    for one, other in zip(configs, own, strict=True):
        assert len(store.read_json(store.request(one).path / "environment.json")) == 1  # nobody did it twice
        if store.request(one).finished:
            assert same(saved(store.request(one)), saved(store.request(other)))
    assert not trained(tmp_path / "alone")


def test_a_failure_in_a_group_is_written_with_its_own_run(config):
    torn, large, good = config(seed=1), config(batch_size=96), config(epochs=1)
    place = store.request(torn).path
    place.mkdir(parents=True)
    (place / "checkpoint.safetensors").write_bytes(b"half a checkpoint")
    table = made([torn, large, good, config(epochs=1, seed=1)], processes=1, together=4)
    assert table["state"].tolist() == ["failed", "failed", "finished", "finished"]
    first, second = table["failure"][:2]
    assert first.startswith("cannot read ")
    assert second == "batch_size 96 is more than the 90 training images of quarters"
    assert table["knn"][2:].notna().all()


def test_one_that_cannot_be_evaluated_leaves_the_others_evaluated(config):
    configs = [config(epochs=1, seed=seed) for seed in (0, 1)]
    fit_trials(configs, lambda at: None)
    store.request(configs[0]).encoder_files()[-1].write_bytes(b"half an encoder")
    table = made(configs, processes=1, together=2)
    assert table["state"].tolist() == ["failed", "finished"]
    assert table["failure"][0].startswith("cannot read ")
    assert table["knn"][1] > 0


def test_what_a_killed_helper_leaves_is_made(config):
    configs = [config(seed=seed, epochs=20) for seed in (0, 1, 2)]
    killed = []

    def kill(process):
        killed.append(process)
        os.kill(process, signal.SIGKILL)

    table = made(configs, processes=2, view=at_first_helper(configs, kill))
    assert table["state"].tolist() == ["finished"] * 3
    assert not alive(*killed)
    left = next(name for name, process in trained(configs[0].runs_dir).items() if process in killed)
    sessions = {one.name(): store.read_json(store.request(one).path / "environment.json") for one in configs}
    assert len(sessions.pop(left)) + sum(map(len, sessions.values())) in (3, 4)  # taken up once, if it had a checkpoint


def test_interrupted_everyone_saves_and_the_same_call_goes_on(config, tmp_path):
    configs = [config(seed=seed, epochs=25) for seed in (0, 1)]

    def interrupt(process):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(configs, processes=2, view=at_first_helper(configs, interrupt))
    ((name, process),) = trained(tmp_path / "runs").items()
    assert not alive(process)
    run = store.open_run(name, tmp_path / "runs")
    assert not run.finished
    assert run.checkpoint.exists()
    assert "dismissed" in (tmp_path / "runs" / "helpers.log").read_text()
    with run.claim(), run.lock():  # nobody has it
        pass
    assert made(configs, processes=1)["state"].tolist() == ["finished"] * 2
    assert [row["from_step"] > 0 for row in store.read_json(run.path / "environment.json")] == [False, True]


def test_a_helper_does_not_outlive_a_killed_owner(config, tmp_path):
    configs = [config(seed=seed, epochs=3000) for seed in (0, 1)]
    script = textwrap.dedent("""
        import sys
        from metaug_core import extensions, Config
        from metaug_workbook.jobs import making
        extensions.load(sys.argv[1])
        configs = [Config.model_validate_json(text) for text in sys.argv[2:]]
        making.made(configs, ("knn",), ("trained",), processes=2)
    """)
    texts = [one.model_dump_json() for one in configs]
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "quarters_of_my_own.py"), *texts],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    ((name, helper),) = until(lambda: list(trained(tmp_path / "runs").items()))
    owner.kill()
    owner.wait()
    until(lambda: not alive(helper))
    assert store.open_run(name, tmp_path / "runs").checkpoint.exists()


def test_the_owner_does_not_wait_until_its_work_is_read(tmp_path, monkeypatch):
    (tmp_path / "reads_nothing.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    child = children.started("reads_nothing", {"configs": ["x" * 2**20]}, tmp_path / "log")
    assert child.poll() is None
    child.kill()
    child.communicate()


def test_a_method_of_the_notebook_alone_is_left_to_it(config, tmp_path, monkeypatch):
    own = type("Own", (METHODS["cmc"],), {})
    monkeypatch.setitem(METHODS, "own", own)
    configs = [config(method="own"), config(method="own", seed=1), config(), config(seed=1)]
    table = made(configs, processes=2, view=at_first_helper(configs, lambda process: None))
    assert table["state"].tolist() == ["finished"] * 4
    assert trained(tmp_path / "runs").keys() <= {one.name() for one in configs[2:]}


def test_what_another_process_makes_is_waited_for_and_not_made_again(config):
    configs, said = [config(seed=seed, epochs=1) for seed in (0, 1)], []
    other = ExitStack()
    other.enter_context(store.request(configs[0]).claim())

    def view(runs):
        def tell(done, at):
            said.append((done, at and at.run.config.seed))
            if at is None and done == 1 and said.count((1, None)) == 2:  # it waits: the other ends
                other.close()

        return tell

    assert made(configs, processes=1, view=view)["state"].tolist() == ["finished"] * 2
    seeds = [seed for _, seed in said if seed is not None]
    assert seeds == sorted(seeds, reverse=True)  # the free run first


def test_one_process_for_each_thread_and_run_as_far_as_memory_goes(config, monkeypatch):
    runs = [store.request(config(seed=seed)) for seed in range(4)]
    threads = torch.get_num_threads()
    try:
        for count, expected in ((1, 1), (3, 3), (9, 4)):
            torch.set_num_threads(count)
            monkeypatch.setattr(making, "HELPER_BYTES", 1)
            assert making.processes_for(runs) == expected
            monkeypatch.setattr(making, "HELPER_BYTES", 2**60)
            assert making.processes_for(runs) == 1
        with making.shared_threads(3) as share:
            assert (share, torch.get_num_threads()) == (3, 3)
        assert torch.get_num_threads() == 9
    finally:
        torch.set_num_threads(threads)
