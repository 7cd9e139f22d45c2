"""Fixtures of all tests: a config of a run that takes a fraction of a second, an encoder that draws, float64. On every machine
`precision auto` is float32 here, by a file of times that says so."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import TINY
from torch import nn

from metaug_core import ENCODERS, Config, extensions, hardware
from metaug_core.methods import base
from metaug_core.networks.encoders import conv
from metaug_core.views.augmentation import make_views


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """On a CUDA machine there may be no pytest-timeout: its setting in pyproject.toml is then known all the same."""
    if not pluginmanager.has_plugin("timeout"):
        parser.addini("timeout", "seconds for one test, of pytest-timeout")


@pytest.fixture(scope="session", autouse=True)
def _times(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAUG_CACHE", str(tmp_path_factory.mktemp("cache")))
        hardware.locate_times().write_text(json.dumps({"float32": 1, "bf16": 2}))
        yield


@pytest.fixture(autouse=True)
def _imports():
    """A file that a test imports as a user's is not handed to the worker processes of another test, when it is long gone."""
    before = [*extensions.loaded]
    yield
    extensions.loaded[:] = before


@pytest.fixture
def faster_bf16(tmp_path: Path, monkeypatch) -> Path:
    """The file of a machine whose processor was measured to be faster in bf16."""
    monkeypatch.setenv("METAUG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    hardware.locate_times().write_text(json.dumps({"float32": 1, "bf16": 0.5}))
    return hardware.locate_times()


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Config]:
    """tiny(**changes) -> Config of a run on the tiny data set, under tmp_path."""
    return lambda **changes: Config(**{**TINY, "runs_dir": tmp_path / "runs", **changes})


@pytest.fixture
def dropping(monkeypatch):
    """An encoder of a user, which draws from torch's global generator."""
    monkeypatch.setitem(
        ENCODERS, "dropping", lambda channels, config: nn.Sequential(conv(channels, config), nn.Dropout())
    )


@pytest.fixture
def in_double(monkeypatch):
    """Networks, bank and views in float64, where rounding does not grow from step to step."""

    def in_single(*arguments):
        torch.set_default_dtype(torch.float32)
        views = [view.double() for view in make_views(*arguments)]
        torch.set_default_dtype(torch.float64)
        return views

    monkeypatch.setattr(base, "make_views", in_single)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
