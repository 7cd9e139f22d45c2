"""The fixture `tiny`: a config of a run that takes a fraction of a second."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import TINY

from metaug_core import Config


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Config]:
    """tiny(**changes) -> Config of a run on the tiny data set, under tmp_path."""
    return lambda **changes: Config(**{**TINY, "runs_dir": tmp_path / "runs", **changes})
