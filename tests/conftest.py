"""Fixtures of all tests: a config of a run that takes a fraction of a second, an encoder that draws."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import TINY
from torch import nn

from metaug_core import ENCODERS, Config
from metaug_core.networks.encoders import conv


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
