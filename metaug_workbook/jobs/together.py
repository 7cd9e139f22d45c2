"""Runs of a sweep that train side by side: which of them may, and the process of their own in which they do."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metaug_core import extensions
from metaug_core.config import Config
from metaug_core.runs.store import BusyError
from metaug_core.training import loop
from metaug_workbook.jobs import children

STEPS = ("epochs", "batch_size")  # equal, so that all have as many steps and none waits for another
LOCK_SECONDS, LOOK_SECONDS = 30.0, 0.2  # a process whose owner was killed holds its runs' locks until it has saved


def groups(configs: Sequence[Config], most: int) -> list[list[int]]:
    """Positions in configs, each once and in order, in groups of at most so many that may train side by side: they differ only in
    the seed and other numbers, but not in the images or in how many steps there are."""
    found: list[list[int]] = []
    filling: dict[str, list[int]] = {}
    for number, config in enumerate(configs):
        group = filling.get(kind := common(config))
        if group is None or len(group) == most:
            found.append(group := [])
            filling[kind] = group
        group.append(number)
    return found


def common(config: Config) -> str:
    """What runs side by side have in common, as a text."""
    fixed = {*loop.TOGETHER, *STEPS}
    values = config.model_dump(mode="json")
    return json.dumps({n: v for n, v in values.items() if n in fixed or type(v) not in (int, float)}, sort_keys=True)


def started(imports: Sequence[str], configs: Sequence[Config], log: Path) -> children.Child:
    """A process that trains the runs of configs side by side, from where they stand; imports are the user's own files. It saves
    and ends on `children.stop`. Raises OSError if it cannot be started."""
    work = {"imports": list(imports), "configs": [config.model_dump(mode="json") for config in configs]}
    return children.started("metaug_workbook.jobs.together", work, log)


def train(work: dict[str, Any]) -> None:
    """fit_trials of what `started` wrote. A run that another process trains is waited for a while; then BusyError."""
    for file in work["imports"]:
        extensions.load(file)
    configs = [Config(**values) for values in work["configs"]]
    children.say(f"side by side: {', '.join(config.name() for config in configs)}")
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            loop.fit_trials(configs, lambda at: None)
            return
        except BusyError:
            if time.monotonic() > until:
                raise
            time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    sys.exit(children.serve(train, "interrupted"))
