"""What the README shows is done: its Python blocks run, in their order, and its commands are understood."""

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from click.testing import CliRunner
from tiny import ROOT

from metaug_workbook.cli import main
from metaug_workbook.jobs import grid, papermill_runner

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
LINES = [line for language, text in BLOCKS if not language for line in text.splitlines()]
NOT_HERE = {"dask_jobqueue"}  # the README says to install it


def imported(block: str) -> set[str]:
    """The packages that a block imports."""
    nodes = list(ast.walk(ast.parse(block)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.partition(".")[0] for name in names}


@pytest.mark.slow
def test_python_blocks_run_and_the_users_method_learns(tmp_path):
    """As a reader runs them: one after another, in one program. The method of one's own ends 15 points above untrained."""
    missing = {name for block in PYTHON for name in imported(block) if importlib.util.find_spec(name) is None}
    assert missing <= NOT_HERE
    blocks = [block for block in PYTHON if not imported(block) & NOT_HERE]
    assert len(blocks) >= 2
    (tmp_path / "readme.py").write_text("\n".join(blocks))
    # One thread, whatever the machine has: on two cores that others use as well, two threads wait for each other.
    place = os.environ | {"METAUG_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "readme.py"], cwd=tmp_path, env=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "runs").glob("shapes-mine-*/evaluation-test.json")
    found = json.loads(file.read_text())
    assert found["trained"]["knn"] > found["untrained"]["knn"] + 0.15
    assert found["trained"]["knn"] > found["raw pixels"]["knn"]


def commands() -> list[list[str]]:
    """The words of each `metaug` command in a block, and of each `metaug run` with parameters in the text."""
    texts = LINES + re.findall(r"`(metaug run \S+ -p [^`]+)`", README)
    found = [shlex.split(text, comments=True) for text in texts]
    return [words[words.index("metaug") + 1 :] for words in found if "metaug" in words]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_are_understood(words, tmp_path):
    """Parsed as when they are typed, and what they set is checked as before anything starts; nothing is trained or downloaded."""
    name, *rest = words
    asked = main.main.commands[name].make_context(name, list(rest)).params
    if name == "run":
        papermill_runner.checked(papermill_runner.find(asked["notebook"]), dict(asked["given"]))
    elif name == "train":
        grid.build({setting: grid.value(setting, text) for setting, text in asked["given"]})
    elif name == "sweep":
        dry = [*words, *(["--dry-run"] * ("--dry-run" not in words)), "--runs-dir", str(tmp_path)]
        told = CliRunner().invoke(main.main, dry)
        assert told.exit_code == 0, told.stderr


def test_there_are_commands_of_every_kind():
    assert {"run", "train", "runs", "report", "download", "sweep"} <= {words[0] for words in commands()}


def test_make_knows_its_targets():
    asked = {words[1] for line in LINES if (words := line.split())[:1] == ["make"]}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert asked
    assert asked <= targets
