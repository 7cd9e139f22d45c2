"""Fixtures of the workbook's tests: a checkout of its own, empty axes."""

from pathlib import Path

import pytest
from workbooks import git, notebook_text

from metaug_core.runs import environment
from metaug_workbook.plots import gallery
from metaug_workbook.plots.style import make_panels


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small workbook in a git repository of its own with everything committed; the gallery and the code's commit are its."""
    root = tmp_path / "workbook"
    for name, text in {
        "code.py": "a = 1\n",
        "figures/README.md": "# Figures\n",
        "notebooks/a.ipynb": notebook_text("a = 1"),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    monkeypatch.setattr(environment, "ROOT", root)
    monkeypatch.setattr(gallery, "FOLDER", root / "figures")
    return root


@pytest.fixture
def ax():
    """Empty axes in the workbook's style."""
    from matplotlib import pyplot as plt

    figure, ax = make_panels()
    yield ax
    plt.close(figure)
