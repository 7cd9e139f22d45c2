"""Small notebooks and checkouts for the tests of the workbook."""

import json
import subprocess
from pathlib import Path

import nbformat
import numpy as np
from click.testing import Result
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

PARAMETERS = """\
preset: str = "quick"  # a preset
epochs: Optional[int] = 3  # passes
seed: int = 0  # of everything
width: float = 0.05
train_images: int = 700
mag_hidden: int = 16"""


def git(root: Path, *words: str) -> str:
    """What git says in root; commits have an author of their own."""
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", root, *author, *words], check=True, capture_output=True, encoding="utf-8"
    ).stdout.strip()


def notebook_text(source: str, output: str = "") -> str:
    """The text of a notebook of one code cell."""
    outputs = [{"output_type": "stream", "name": "stdout", "text": [output]}] if output else []
    cell = {
        "cell_type": "code",
        "id": "a",
        "metadata": {},
        "source": [source],
        "outputs": outputs,
        "execution_count": None,
    }
    return json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def sentence(result: Result) -> str:
    """The one line on stderr of a command that failed."""
    lines = [line for line in result.stderr.replace("\r", "\n").splitlines() if line.startswith("metaug: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output + result.stderr
    return lines[0]


def write_notebook(path: Path, *cells: str, parameters: str = PARAMETERS) -> Path:
    """A notebook of these code cells after one of parameters."""
    imports = "from typing import Optional\nfrom metaug_workbook import notebook"
    parts = [new_code_cell(source) for source in ("from typing import Optional", parameters, *cells)]
    parts[0].source = imports if any("notebook." in cell for cell in cells) else parts[0].source
    parts[1].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(
        new_notebook(cells=parts, metadata={"kernelspec": kernel, "language_info": {"name": "python"}}), path
    )
    return path


def write_noise_images(root: Path) -> None:
    """A data set of image files, which another process can load: two classes of noise, 16 pixels a side."""
    random = np.random.RandomState(0)
    for split, count in (("train", 24), ("test", 4)):
        for name in "ab":
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(random.randint(0, 255, (16, 16, 3)).astype("uint8")).save(folder / f"{number}.png")
