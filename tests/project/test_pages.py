"""What README, CONTRIBUTING and docs/ show is done: Python blocks run, commands are understood, files that they name exist."""

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny import ROOT

from metaug_workbook.cli import main
from metaug_workbook.jobs import grid, papermill_runner

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OWN = ROOT / "docs" / "own.md"  # a test of its own runs all of it
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def find_blocks(pages: list[Path]) -> list[tuple[str, str]]:
    """Language and text of each block of these pages, in order."""
    texts = [page.read_text(encoding="utf-8") for page in pages]
    return [block for text in texts for block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


BLOCKS = find_blocks([page for page in PAGES if page != OWN])
PYTHON = [text for language, text in BLOCKS if language == "python"]
LINES = [line for language, text in BLOCKS if not language for line in text.splitlines()]
NOT_HERE = {"dask_jobqueue"}  # docs/sweeps.md says to install it


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
    (tmp_path / "blocks.py").write_text("\n".join(blocks))
    # One thread, whatever the machine has: on two cores that others use as well, two threads wait for each other.
    environment = os.environ | {"METAUG_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "blocks.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "runs").glob("shapes-mine-*/evaluation-test.json")
    accuracies = json.loads(file.read_text())
    assert accuracies["trained"]["knn"] > accuracies["untrained"]["knn"] + 0.15
    assert accuracies["trained"]["knn"] > accuracies["raw pixels"]["knn"]


@pytest.mark.slow
def test_every_block_of_the_page_on_ones_own_data_runs(tmp_path):
    """In order, in one program: a block that begins with the name of a file is that file, commands are those of `metaug`."""
    steps = ["from metaug_workbook.cli.main import main"]
    for language, text in find_blocks([OWN]):
        if language == "python" and (named := re.match(r"# (\w+\.py)\n", text)):
            (tmp_path / named[1]).write_text(text)
        elif language == "python":
            steps.append(text)
        else:
            lines = [shlex.split(line, comments=True) for line in text.splitlines()]
            assert all(words[0] == "metaug" for words in lines)
            steps += [f"main({words[1:]}, standalone_mode=False)" for words in lines]
    (tmp_path / "page.py").write_text("\n".join(steps))
    environment = os.environ | {"METAUG_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "(400, " in done.stdout  # features.npz
    for name in ("encoder.pt2", "encoder.md", "encoder-L.safetensors", "transfer.csv"):
        assert (tmp_path / name).stat().st_size > 0


def commands() -> list[list[str]]:
    """The words of each `metaug` command in a block, and of each `metaug run` with parameters in the text."""
    texts = LINES + re.findall(r"`(metaug run \S+ -p [^`]+)`", TEXT)
    words = [shlex.split(text, comments=True) for text in texts if "metaug " in text]
    return [command[command.index("metaug") + 1 :] for command in words if "metaug" in command[:-1]]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_are_understood(words, tmp_path):
    """Parsed as when they are typed, and what they set is checked as before anything starts; nothing is trained or downloaded."""
    name, *rest = words
    params = main.main.commands[name].make_context(name, list(rest)).params
    if name == "run":
        papermill_runner.check_parameters(papermill_runner.find_notebook(params["notebook"]), params["given"])
    elif name == "train":
        grid.build_config({setting: grid.parse_setting(setting, text) for setting, text in params["given"].items()})
    elif name == "sweep":
        dry = [*words, *(["--dry-run"] * ("--dry-run" not in words)), "--runs-dir", str(tmp_path)]
        result = CliRunner().invoke(main.main, dry)
        assert result.exit_code == 0, result.stderr


def test_there_are_commands_of_every_kind():
    assert {"run", "train", "runs", "report", "resume", "download", "sweep"} <= {words[0] for words in commands()}


def test_make_knows_its_targets():
    named = {words[1] for line in LINES if (words := line.split())[:1] == ["make"]}
    named |= set(re.findall(r"`make ([a-z]+)", TEXT))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"run", "lab", "site", "check", "test"} <= named <= targets


def test_files_that_pages_name_exist():
    """Paths in code spans. `python benchmarks/x.py --option` names its file; a placeholder in capitals names none."""
    spans = re.findall(r"`([^`\n]+)`", TEXT)
    roots = "metaug_core|metaug_workbook|tests|benchmarks|docs|notebooks|figures"
    paths = {path for span in spans for path in re.findall(rf"(?<![\w/])(?:{roots})/[\w./-]*", span)}
    assert len(paths) > 30
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


def test_readme_is_one_page():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120


def test_minimal_prints_the_numbers_of_its_page_and_of_its_docstring():
    """docs/minimal-output.txt is what it printed last."""
    output = (ROOT / "docs" / "minimal-output.txt").read_text(encoding="utf-8")
    untrained, *probes = re.findall(r"probe (0\.\d+)", output)
    page = (ROOT / "docs" / "minimal.md").read_text(encoding="utf-8")
    assert untrained in page
    assert probes[-1] in page
    docstring = (ROOT / "docs" / "minimal.py").read_text(encoding="utf-8").partition('"""\n')[0]
    named = [float(number) for number in re.findall(r"0\.\d\d", docstring)]
    of_output = [round(float(number), 2) for number in (untrained, *probes[1::2])]
    assert named[:5] == pytest.approx(of_output, abs=0.006)


def test_troubleshooting_quotes_what_is_said():
    """A message in bold is one that the code has, up to its dots and the names in it."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    code = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("metaug_core", "metaug_workbook")
        for path in (ROOT / folder).rglob("*.py")
    )
    code += (ROOT / "Makefile").read_text(encoding="utf-8")
    known = [
        part
        for quote in re.findall(r"^\*\*`([^`]+)`", page, re.MULTILINE)
        for part in re.findall(r"(?<!\w)[a-z][a-z ]{8,}[a-z]", quote)
    ]
    of_others = {"command not found", "module named"}
    assert len(known) > 4
    assert [part for part in known if part not in code and part not in of_others] == []
