"""A helper of `making.made`: a process that goes through its owner's runs once and makes those that nobody has claimed."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from metaug_core import extensions
from metaug_core.config import Config
from metaug_core.errors import MetaugError
from metaug_core.runs import store
from metaug_core.runs.store import Run
from metaug_core.training.progress import Progress, RunsReporter
from metaug_workbook.jobs import children
from metaug_workbook.jobs.making import Left, make
from metaug_workbook.results.tables import Wanted


def known(values: dict[str, Any]) -> Iterator[Run]:
    """The run of a config that this process can read."""
    with suppress(MetaugError):
        yield store.request(Config(**values))


def diary() -> RunsReporter:
    """Says of each run once that it is trained here."""
    said: set[Path] = set()

    def tell(done: int, at: Progress | None) -> None:
        if at is not None and at.run.path not in said:
            said.add(at.run.path)
            children.say(f"trains {at.run.path.name}")

    return tell


def help_out(work: dict[str, Any]) -> None:
    """What a helper does: go through the list once."""
    for file in work["imports"]:
        extensions.load(file)
    runs = [run for values in work["configs"] for run in known(values)]
    wanted: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in work["wanted"].items()}
    left = Left(runs, Wanted(**wanted))
    make(left, 1, False, diary())
    for name, failure in left.failures.items():
        children.say(f"{name}: {failure}")


if __name__ == "__main__":
    sys.exit(children.serve(help_out, "dismissed"))
