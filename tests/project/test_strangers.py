"""A few of the cases of `fuzz.py` and `kills.py`; METAUG_CASES and METAUG_KILLS say how many.

METAUG_CASES=2000 METAUG_KILLS=66 python -m pytest tests/project/test_strangers.py --timeout 7200
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="cases are forked")]


def try_cases(script: str, folder: Path, count: int) -> list[dict[str, Any]]:
    """What the script prints: the cases that ended badly, and the counts."""
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "workbook")]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    words = [sys.executable, "-W", "ignore", str(ROOT / "tests" / "project" / script), str(folder), "0", str(count)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_whatever_is_typed_or_lies_there_is_done_or_refused_in_one_line(tmp_path):
    *faults, counts = try_cases("fuzz.py", tmp_path, count := int(os.environ.get("METAUG_CASES", "40")))
    assert not faults
    assert counts["done"] + counts["refused"] == count
    assert counts["done"] >= count / 20  # the cases are not all nonsense


def test_killed_runs_of_every_kind_end_as_if_nothing_had_happened(tmp_path):
    *different, counts = try_cases("kills.py", tmp_path, count := int(os.environ.get("METAUG_KILLS", "3")))
    assert not different
    assert counts["kills"] >= count
