"""Several runs side by side: each is the run that it would be alone, whatever happens to the others."""

import signal
import subprocess
import sys
import time

import pytest
import torch
from tiny import ROOT, same, saved, stop_at
from torch import nn

from metaug_core import ENCODERS, ConfigError, MetaugError, evaluate, fit, fit_trials
from metaug_core.errors import Paused
from metaug_core.networks.encoders import conv
from metaug_core.runs.files import read_tensors
from metaug_core.runs.store import STOP_REQUEST
from metaug_core.training import loop
from metaug_core.training.loop import attempt


def quiet(progress):
    pass


@pytest.fixture
def configs(tiny):
    """Seeds, a learning rate, a method without a MAG: settings of any kind may differ."""
    return [tiny(seed=0), tiny(seed=1), tiny(seed=0, alpha=0.5), tiny(seed=0, lr=0.02), tiny(method="cmc", epochs=1)]


@pytest.mark.slow
def test_each_trial_is_its_own_single_run(configs, tmp_path):
    together = fit_trials(configs, quiet)
    assert [run.config.name() for run in together] == [config.name() for config in configs]
    for run, config in zip(together, configs, strict=True):
        alone = fit(config.replace(runs_dir=tmp_path / "alone"), quiet)
        assert same(saved(run), saved(alone))
        assert run.metrics.equals(alone.metrics)
        assert evaluate(run).equals(evaluate(alone))
    assert not same(saved(together[0]), saved(together[1]))


def test_a_single_run_finds_its_trial_and_a_trial_its_single_run(tiny):
    alone = fit(tiny(seed=1), quiet)
    written = alone.checkpoint.stat().st_mtime_ns
    runs = fit_trials([tiny(seed=0), tiny(seed=1), tiny(seed=0)], quiet)
    assert runs[1].checkpoint.stat().st_mtime_ns == written
    assert runs[0].path == runs[2].path
    assert all(run.finished for run in runs)
    assert fit(tiny(seed=0), None).path == runs[0].path


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_finished_run_is_found_on_a_machine_without_its_device(tiny):
    run = fit(tiny(), quiet)
    assert fit(tiny(device="cuda"), quiet).path == run.path
    with pytest.raises(ConfigError, match="device 'cuda' is not available"):
        fit_trials([tiny(device="cuda"), tiny(device="cuda", seed=1)], quiet)


def test_what_an_encoder_draws_is_each_trials_own(tiny, monkeypatch, tmp_path):
    monkeypatch.setitem(
        ENCODERS, "dropping", lambda channels, config: nn.Sequential(conv(channels, config), nn.Dropout())
    )
    configs = [tiny(encoder="dropping", seed=seed, look_ahead="fresh") for seed in (0, 1)]
    for run, config in zip(fit_trials(configs, quiet), configs, strict=True):
        assert same(saved(run), saved(fit(config.replace(runs_dir=tmp_path / "alone"), quiet)))


@pytest.mark.slow
def test_what_trials_draw_is_their_own_across_an_interrupt(tiny, dropping, monkeypatch, tmp_path):
    configs = [tiny(encoder="dropping", look_ahead="fresh", seed=seed, epochs=2 + seed) for seed in (0, 1)]
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)

    with pytest.raises(KeyboardInterrupt):
        fit_trials(configs, stop_at(7))
    torch.manual_seed(5)  # what another part of the program draws is nothing to them
    for run, config in zip(fit_trials(configs[::-1], quiet)[::-1], configs, strict=True):
        assert same(saved(run), saved(fit(config.replace(runs_dir=tmp_path / "alone"), quiet)))


def damaged(tiny, seed):
    """A request whose checkpoint is torn."""
    config = tiny(seed=seed)
    path = config.runs_dir / config.name() / "checkpoint.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a checkpoint")
    return config


def test_each_failure_is_its_own_runs_and_the_others_are_trained(tiny):
    torn, large = damaged(tiny, 1), tiny(batch_size=96)
    diverging, good = tiny(lr=1e30, optimiser="sgd"), tiny()
    runs, failures = attempt([torn, large, diverging, good], quiet)
    assert [run.finished for run in runs] == [False, False, False, True]
    sentences = {name: str(error) for name, error in failures.items()}
    assert sentences.pop(torn.name()).startswith("cannot read ")
    assert sentences.pop(large.name()) == "batch_size 96 is more than the 90 training images of tiny"
    assert sentences.pop(diverging.name()).startswith(f"run {diverging.name()} stopped at step")
    assert not sentences
    assert runs[2].failure
    assert runs[0].failure is None  # with another checkpoint it would train
    with pytest.raises(MetaugError, match="cannot read "):
        fit_trials([torn, good], quiet)


def test_one_that_diverges_does_not_stop_the_others(tiny):
    bad, good = tiny(lr=1e30, optimiser="sgd"), tiny()
    with pytest.raises(MetaugError, match=f"run {bad.name()} stopped at step"):
        fit_trials([bad, good], quiet)
    run = fit(good, None)  # finished already: nothing is trained
    assert run.finished


@pytest.mark.parametrize("change", [{"image_size": 24}, {"train_images": 50}, {"dataset": "shapes"}])
def test_trials_of_different_images_are_refused(tiny, change):
    with pytest.raises(
        ConfigError, match=f"trials share images, device and precision, but differ in {next(iter(change))}"
    ):
        fit_trials([tiny(), tiny(**change)], quiet)


@pytest.mark.slow
def test_an_interrupt_saves_every_trial_and_they_go_on(tiny, tmp_path, monkeypatch):
    configs = [tiny(seed=seed, epochs=4) for seed in (0, 1)]

    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        fit_trials(configs, stop_at(7))
    files = [config.runs_dir / config.name() / "checkpoint.safetensors" for config in configs]
    assert [read_tensors(file)[1]["step"] for file in files] == [7, 7]
    for run, config in zip(fit_trials(configs, quiet), configs, strict=True):
        assert same(saved(run), saved(fit(config.replace(runs_dir=tmp_path / "alone"), quiet)))


def test_a_stop_request_pauses_its_own_trial_alone(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "LOOK_SECONDS", 0.0)
    paused, other = tiny(seed=0), tiny(seed=1, epochs=4)

    def ask(progress):
        if progress.step == 3:
            (paused.runs_dir / paused.name() / STOP_REQUEST).touch()

    runs, failures = attempt([paused, other], ask)
    assert [run.finished for run in runs] == [False, True]
    assert [type(error) for error in failures.values()] == [Paused]
    assert read_tensors(runs[0].checkpoint)[1]["step"] in (3, 4)
    for run, config in zip(fit_trials([paused, other], quiet), (paused, other), strict=True):
        assert same(saved(run), saved(fit(config.replace(runs_dir=tmp_path / "alone"), quiet)))


KILLED = """
import sys
sys.path.insert(0, {here!r})
from tiny import TINY
from metaug_core import Config, fit_trials
often = {{**TINY, "runs_dir": {runs!r}, "epochs": 30, "checkpoint_minutes": 1e-4}}
fit_trials([Config(**often, seed=seed) for seed in (0, 1, 2)], lambda _: None)
"""


@pytest.mark.slow
def test_killed_trials_resume_bit_identical(tiny, tmp_path):
    here = str(ROOT / "tests")
    process = subprocess.Popen([sys.executable, "-c", KILLED.format(here=here, runs=str(tmp_path / "killed"))])
    configs = [tiny(seed=seed, epochs=30, runs_dir=tmp_path / "killed") for seed in (0, 1, 2)]
    files = [config.runs_dir / config.name() / "checkpoint.safetensors" for config in configs]
    while not all(file.exists() for file in files):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    for run, config in zip(fit_trials(configs, quiet), configs, strict=True):
        assert same(saved(run), saved(fit(config.replace(runs_dir=tmp_path / "alone"), quiet)))
