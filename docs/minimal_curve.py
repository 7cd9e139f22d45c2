"""Run docs/minimal.py, keep what it prints and draw it: `python docs/minimal_curve.py`, two minutes on one CPU core.

Writes minimal-output.txt and minimal-curve.svg beside this file. The page docs/minimal.md shows both.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent
LINE = re.compile(r"step (\d+): loss ([\d.]+), probe ([\d.]+)")
CHANCE = 0.1  # ten classes, equally many images of each


def run_minimal() -> str:
    """What minimal.py prints, trained by one thread. Raises subprocess.CalledProcessError if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / "minimal.py")]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def draw_curve(output: str) -> Figure:
    """The probe's accuracy and the loss of the minibatch against steps. output: what minimal.py prints."""
    untrained = float(output.partition("untrained: probe ")[2].split()[0])
    rows = [(int(step), float(loss), float(probe)) for step, loss, probe in LINE.findall(output)]
    steps = [step for step, _, _ in rows]
    figure = Figure(figsize=(5.2, 3.9), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot([0, *steps], [untrained, *(probe for _, _, probe in rows)], "o-", color="#0072B2")
    above.axhline(CHANCE, color="#8C8C8C", linestyle=":")
    above.annotate("chance", (steps[-1], CHANCE), ha="right", va="bottom", xytext=(0, 2), textcoords="offset points")
    above.set(ylabel="accuracy of the probe", ylim=(0, 1))
    losses = [loss for _, loss, _ in rows]
    below.plot(steps, losses, "s-", color="#CC3311")
    below.set(xlabel="step", ylabel="loss, eq. 11", ylim=(0, 1.1 * max(losses)))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def save_curve(output: str) -> None:
    """Write minimal-output.txt and minimal-curve.svg; the same output gives the same bytes."""
    (FOLDER / "minimal-output.txt").write_text(output, encoding="utf-8")
    with rc_context({"svg.hashsalt": "metaug", "svg.fonttype": "path"}):
        draw_curve(output).savefig(FOLDER / "minimal-curve.svg", metadata={"Date": None})


if __name__ == "__main__":
    save_curve(run_minimal())
