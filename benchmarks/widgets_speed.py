"""How long a moved control takes until the new picture is encoded: the time that a reader waits, but for the browser's own.

    python benchmarks/widgets_speed.py

Each control of each explorer goes to another value and back, ROUNDS times; the median and the slowest, in milliseconds. CPU time
stands beside wall time, since on a busy machine the second says more of the neighbours.
"""

import statistics
import time
from typing import Any

import torch

from metaug_workbook import widgets

ROUNDS = 5
OTHER: dict[str, dict[str, Any]] = {
    "oucl_explorer": {
        "beta": 64,
        "gamma": 0.2,
        "weights": False,
        "phi_dec": 4,
        "positive": 0.5,
        "negative": 0.9,
        "temperature": 0.2,
    },
    "margin_explorer": {"margin": "small", "strength": 0.5},
    "augmentation_viewer": {
        "number": 3,
        "seed": 4,
        "crop": 0.5,
        "rotation": 30.0,
        "randaugment": 9.0,
        "jitter": 1.0,
        "grey": 1.0,
    },
    "meta_step_stepper": {"stage": 7, "inner_lr": 0.25, "margin": False},
}


def measure(explorer: Any, name: str, other: Any) -> tuple[float, float, float]:
    """Median wall, slowest wall and median CPU time of a change of one control, ms."""
    first, wall, cpu = explorer.values[name], [], []
    for number in range(2 * ROUNDS):
        started, busy = time.perf_counter(), time.process_time()
        explorer.set(**{name: first if number % 2 else other})
        wall.append(1000 * (time.perf_counter() - started))
        cpu.append(1000 * (time.process_time() - busy))
    return statistics.median(wall), max(wall), statistics.median(cpu)


def main() -> None:
    print(f"{torch.get_num_threads()} threads, n = {2 * ROUNDS} changes of each control")
    print(f"{'control':<36}{'median ms':>10}{'slowest':>10}{'CPU ms':>10}")
    for make, controls in OTHER.items():
        explorer = getattr(widgets, make)()
        for name, other in controls.items():
            median, slowest, cpu = measure(explorer, name, other)
            print(f"{make + '.' + name:<36}{median:>10.0f}{slowest:>10.0f}{cpu:>10.0f}")


if __name__ == "__main__":
    main()
