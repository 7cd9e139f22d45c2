"""pyproject.toml says what is needed; environment.yml and requirements.lock say the same, for every platform."""

import importlib
import itertools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from tiny import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))

CONDA_TO_PIP = {"pytorch": "torch"}
IMPORT_NAME = {"pillow": "PIL", "pyyaml": "yaml"}

RUNTIME = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
EXTRAS = [
    Requirement(line)
    for extra in PROJECT["project"]["optional-dependencies"].values()
    for line in extra
    if not line.startswith("metaug-workbook[")
]  # an extra that contains another
PYTHON = SpecifierSet(PROJECT["project"]["requires-python"])

# The machines the lock must serve. Intel Macs are not among them: torch has no wheels for them any more.
PLATFORMS = {
    "linux": {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"},
    "linux-arm": {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "platform_machine": "aarch64",
    },
    "macos": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
    "windows": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
}
PYTHONS = ["3.11", "3.12", "3.13"]


def specifiers(requirements: list[Requirement]) -> dict[str, SpecifierSet]:
    return {canonicalize_name(r.name): r.specifier for r in requirements}


def conda_specifiers(environment: dict) -> dict[str, SpecifierSet]:
    """The conda lines under their pip names, without python and pip themselves."""
    lines = [Requirement(line) for line in environment["dependencies"] if isinstance(line, str)]
    named = {CONDA_TO_PIP.get(r.name, canonicalize_name(r.name)): r.specifier for r in lines}
    return {name: bounds for name, bounds in named.items() if name not in {"python", "pip"}}


def drift(project: dict[str, SpecifierSet], conda: dict[str, SpecifierSet]) -> list[str]:
    return [
        f"{name}: pyproject.toml says {project.get(name)}, environment.yml says {conda.get(name)}"
        for name in sorted(project.keys() | conda.keys())
        if project.get(name) != conda.get(name)
    ]


def pins(lock: str) -> list[Requirement]:
    joined = lock.replace("\\\n", " ")
    lines = [line.partition("--hash")[0].strip() for line in joined.splitlines() if not line.lstrip().startswith("#")]
    return [Requirement(line) for line in lines if line]


def chosen(lock: list[Requirement], python: str, platform: str) -> dict[str, list[str]]:
    """What an installer would take on that machine: {name: versions}."""
    machine = PLATFORMS[platform] | {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
    taken: dict[str, list[str]] = {}
    for pin in lock:
        if holds(pin.marker, machine):
            taken.setdefault(canonicalize_name(pin.name), []).append(str(pin.specifier).removeprefix("=="))
    return taken


def holds(marker: Marker | None, machine: dict[str, str]) -> bool:
    return marker is None or marker.evaluate(machine)


def unmet(requirements: list[Requirement], taken: dict[str, list[str]]) -> list[str]:
    """Requirements without exactly one fitting version."""
    found = []
    for requirement in requirements:
        versions = taken.get(canonicalize_name(requirement.name), [])
        if len(versions) != 1 or not requirement.specifier.contains(versions[0]):
            found.append(f"{requirement} (the lock has {versions or 'nothing'})")
    return found


FOREIGN = {
    "a host": r"[a-z+]+://|\b(?:[a-z0-9-]+\.)+(?:org|com|net|io|dev)\b",
    "an absolute path": r"(?:^|[\s\"'=])(?:/[A-Za-z]|[A-Za-z]:[\\/]|~/)",
    "an option other than --hash": r"(?:^|\s)--?(?!hash=)[a-z]",
    "a local version": r"==[^\s;]*\+",
    "a direct reference": r"\s@\s",
}


def foreign(lock: str) -> list[str]:
    """Lines of a lock that would tie it to a machine or a registry."""
    return [
        f"line {number} holds {what}: {line.strip()}"
        for number, line in enumerate(lock.splitlines(), 1)
        for what, pattern in FOREIGN.items()
        if re.search(pattern, line)
    ]


def test_environment_yml_says_the_same():
    assert drift(specifiers(RUNTIME + EXTRAS), conda_specifiers(CONDA)) == []


def test_environment_yml_takes_the_same_python():
    (python,) = [line for line in CONDA["dependencies"] if str(line).startswith("python ")]
    assert Requirement(python).specifier == PYTHON
    assert [p for p in PYTHONS if PYTHON.contains(p)] == PYTHONS
    assert not PYTHON.contains("3.10")
    assert not PYTHON.contains("3.14")


def test_environment_yml_installs_the_package():
    (pip,) = [line["pip"] for line in CONDA["dependencies"] if isinstance(line, dict)]
    assert pip == ["-e ."]


@pytest.mark.parametrize("line", ["pytorch >=2.10", "pytorch", "dask >=1", None])
def test_drift_is_noticed(line: str | None):
    kept = [entry for entry in CONDA["dependencies"] if not str(entry).startswith(("pytorch", "dask"))]
    changed = {"dependencies": kept + ([line] if line else [])}
    assert any(
        told.startswith(("torch:", "dask:")) for told in drift(specifiers(RUNTIME + EXTRAS), conda_specifiers(changed))
    )


@pytest.mark.parametrize(("python", "platform"), list(itertools.product(PYTHONS, PLATFORMS)))
def test_the_lock_satisfies_pyproject(python: str, platform: str):
    taken = chosen(pins(LOCK), python, platform)
    build = [Requirement(line) for line in PROJECT["build-system"]["requires"]]  # built without isolation
    assert unmet(RUNTIME + EXTRAS + build, taken) == []
    assert {name: versions for name, versions in taken.items() if len(versions) > 1} == {}


def test_every_pin_is_exact_and_hashed():
    assert all(re.fullmatch(r"==[^,*]+", str(pin.specifier)) and not pin.url for pin in pins(LOCK))
    blocks = [block for block in LOCK.replace("\\\n", " ").splitlines() if "==" in block]
    assert len(blocks) == len(pins(LOCK)) > 100
    assert [block for block in blocks if "--hash=sha256:" not in block] == []


def test_the_lock_is_tied_to_no_machine():
    assert foreign(LOCK) == []


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://index.example/simple",
        "--find-links wheels",
        "-e .",
        "-f wheels",
        "torch @ file:///wheels/torch.whl",
        "torch==2.13.0+cpu \\",
        "#    uv pip compile /home/someone/pyproject.toml",
        "#    uv pip compile C:\\work\\pyproject.toml",
        "    # from pypi.org",
        "./wheels/torch.whl --no-deps",
    ],
)
def test_a_tied_lock_is_noticed(line: str):
    assert foreign(f"click==8.1.7 \\\n{line}\n") != []


def test_unmet_requirements_are_noticed():
    lock = pins("torch==2.10.0\nnumpy==1.26.0 ; sys_platform == 'linux'\n")
    wanted = [Requirement("torch>=2.11"), Requirement("numpy>=1.26")]
    assert len(unmet(wanted, chosen(lock, "3.11", "linux"))) == 1
    assert len(unmet(wanted, chosen(lock, "3.11", "macos"))) == 2


@pytest.mark.parametrize("name", sorted(canonicalize_name(r.name) for r in RUNTIME))
def test_every_runtime_dependency_imports(name: str):
    importlib.import_module(IMPORT_NAME.get(name, name.replace("-", "_")))


def test_the_command_exists():
    module, _, function = PROJECT["project"]["scripts"]["metaug"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_makefile_reads_the_lock():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "-r requirements.lock" in makefile
    assert not re.search(r"https?://|file://|--(?:extra-)?index-url|--find-links", makefile)


def test_make_lab_shows_the_walkthrough_from_a_root_that_holds_the_runs():
    """The run browser links from notebooks/ to executed notebooks in runs/: a root below the checkout would cut that off."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (root,) = re.findall(r"--ServerApp.root_dir=(\S+)", makefile)
    (page,) = re.findall(r"--LabApp.default_url=/lab/tree/(\S+)", makefile)
    assert (ROOT / root).resolve() == ROOT.resolve()
    assert (ROOT / root / page).is_file()
    assert "--ServerApp.ip=127.0.0.1" in makefile


@pytest.mark.parametrize(("user", "allowed"), [("0", True), ("1000", False)])
def test_make_lab_starts_for_root_too(user: str, allowed: bool, tmp_path: Path):
    (tmp_path / "id").write_text(f"#!/bin/sh\necho {user}\n")
    (tmp_path / "id").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    said = subprocess.run(["make", "-n", "lab"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert ("--allow-root" in said.stdout) == allowed


SELDOM_NEEDED = {"seaborn", "scipy", "torchvision", "torch._dynamo"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "absent"),
    [
        ("from metaug_core import evaluate, fit", SELDOM_NEEDED | {"matplotlib", "IPython", "ipywidgets"}),
        ("import metaug_workbook.notebook", SELDOM_NEEDED),
    ],
)
def test_an_import_leaves_out_what_draws_and_what_few_runs_need(start: str, absent: set[str]):
    """They take seconds, and a training on a server may lack what draws."""
    code = f"import sys; {start}; print(sorted({absent} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
