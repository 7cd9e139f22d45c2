"""Sweeps: a grid of notebooks run on Dask workers, one run a cell; what was finished stays, and the same call does the rest.

    runs/sweeps/NAME/sweep.json      the grid, and of each cell: run, settings, state, error, executed notebook, seconds
    runs/sweeps/NAME/table.parquet   the `results.table` of its runs, and table.csv
    runs/sweeps/NAME/together.log    which runs were trained side by side, and what stopped that

Only this process writes sweep.json; a worker leaves what it made in the run's folder, where any later call finds it.
"""

import queue
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
from distributed import Client
from filelock import FileLock, Timeout

from metaug_core.config import Config, ConfigError
from metaug_core.errors import MetaugError
from metaug_core.runs import store
from metaug_core.training import loop
from metaug_core.training.progress import last_row
from metaug_workbook import papermill_runner
from metaug_workbook.jobs import cell, cluster, grid, together
from metaug_workbook.results import tables
from metaug_workbook.results.tables import Wanted

Say = Callable[["Sweep", str], None]  # hears of every change, and of time passing (then the text is empty)
POLL_SECONDS, STOP_SECONDS, TABLE_SECONDS = 1.0, 60.0, 20.0


@dataclass(frozen=True)
class Plan:
    """What is asked: the texts of a grid, checked. given and configs: of each cell, in order."""

    name: str
    notebook: str
    varying: tuple[str, ...]
    given: tuple[dict[str, str], ...]
    configs: tuple[Config, ...]
    imports: tuple[str, ...]
    wanted: Wanted

    @property
    def folder(self) -> Path:
        return self.configs[0].runs_dir / "sweeps" / self.name

    def words(self, number: int) -> str:
        config = self.configs[number]
        return grid.words(self.given[number], (n for n in self.varying if not config.idle(n))) or config.name()


def plan(
    axes: Sequence[str],
    fixed: Sequence[str],
    seeds: int,
    runs_dir: Path,
    wanted: Wanted,
    notebook: str = "01_pretrain",
    imports: Sequence[str] = (),
    name: str | None = None,
) -> Plan:
    """Every name and value checked against the notebook, Config and the method; nothing is started. Raises ConfigError."""
    given, path = grid.cells(axes, fixed, seeds), papermill_runner.find(notebook)
    configs, faults = [], []
    varying = tuple(n for n in given[0] if len({one[n] for one in given}) > 1)
    for one in given:
        try:
            config = papermill_runner.checked(path, one, imports)[1]
        except MetaugError as error:
            faults.append((one, str(error)))
            continue
        if config is None:
            raise ConfigError(f"{path.name} does not train one run: a cell needs the parameters `preset` and `seed`")
        configs.append(config.replace(runs_dir=runs_dir))
    if faults:
        where = "" if len(faults) == len(given) else f"cell {grid.words(faults[0][0], varying)}: "
        more = f" (and {len(faults) - 1} more of {len(given)} cells)" if where and len(faults) > 1 else ""
        raise ConfigError(f"{where}{faults[0][1]}{more}")
    for setting in varying:
        if all(reasons := [config.idle(setting) for config in configs]):
            raise ConfigError(f"--grid {setting}={given[0][setting]},...: {reasons[0]}")
    given, configs = distinct(given, configs, varying)
    names = [config.name() for config in configs]
    if name is not None and (Path(name).name != name or name in (".", "..")):
        raise ConfigError(f"--name {name}: must be the name of a folder, not a path")
    digest = sha256("\n".join([path.stem, *sorted(names)]).encode()).hexdigest()[:8]
    readable = "-".join([configs[0].dataset, *(n for n in varying if n != "seed")])[:60]
    where = notebook if not Path(notebook).exists() else str(path)  # a bare name is found in each worker's own workbook
    return Plan(name or f"{readable}-{digest}", where, varying, tuple(given), tuple(configs), tuple(imports), wanted)


def distinct(
    given: Sequence[dict[str, str]], configs: Sequence[Config], varying: Sequence[str]
) -> tuple[list[dict[str, str]], list[Config]]:
    """Each run once: cells that differ only in what their method does not use are one. ConfigError for others of one run."""
    first: dict[str, int] = {}
    for number, config in enumerate(configs):
        one, other = given[first.setdefault(config.name(), number)], given[number]
        if any(one[name] != other[name] and not config.idle(name) for name in varying):
            a, b = (grid.words(cell, varying) for cell in (one, other))
            raise ConfigError(f"cells {a} and {b} are one and the same run")
    return [given[number] for number in first.values()], [configs[number] for number in first.values()]


class Sweep:
    """A plan and the state of its cells: finished, failed (as recorded), or missing."""

    def __init__(self, plan: Plan, retry: bool = False):
        self.plan, self.runs = plan, [store.request(config) for config in plan.configs]
        self.file = plan.folder / "sweep.json"
        before = {c["run"]: c for c in store.read_json(self.file)["cells"]} if self.file.exists() else {}
        self.cells = [self.found(number, before.get(run.path.name, {}), retry) for number, run in enumerate(self.runs)]

    def found(self, number: int, before: Mapping[str, Any], retry: bool) -> dict[str, Any]:
        """The cell as the run's folder and the record say."""
        run, settings = self.runs[number], {n: self.plan.given[number][n] for n in self.plan.varying}
        executed = self.notebook(run) if self.notebook(run).exists() else None
        kept = {"seconds": before.get("seconds"), "notebook": self.relative(executed)}
        found = {"run": run.path.name, "settings": settings, "error": None, "state": "missing"} | kept
        if run.finished and not self.plan.wanted.is_lacking(run):
            return found | {"state": "finished"}
        error = before.get("error") or run.failure  # the second: a process died before it could record that
        return found | {"state": "failed", "error": error} if error and not retry else found

    def notebook(self, run: store.Run) -> Path:
        return run.path / papermill_runner.find(self.plan.notebook).name

    def relative(self, path: str | Path | None) -> str | None:
        """As it is recorded: from the folder of all runs, which may move."""
        return None if path is None else str(Path(path).relative_to(self.plan.configs[0].runs_dir))

    def count(self, state: str) -> int:
        return sum(one["state"] == state for one in self.cells)

    def missing(self) -> list[int]:
        return [number for number, one in enumerate(self.cells) if one["state"] == "missing"]

    def share(self) -> float:
        """How many cells are done, runs under way counted in part."""
        under_way = [last_row(self.runs[n].path / "timing.jsonl") for n in self.missing()]
        return len(self.cells) - len(under_way) + sum(0.9 * row["step"] / row["steps"] for row in under_way if row)

    def record(self) -> None:
        plan = self.plan
        said = {"notebook": plan.notebook, "imports": list(plan.imports), "evaluate": asdict(plan.wanted)}
        store.write_json(self.file, said | {"varying": list(plan.varying), "cells": self.cells})

    def table(self) -> pd.DataFrame:
        failures = {one["run"]: one["error"] for one in self.cells if one["state"] == "failed"}
        found = tables.read_table(self.plan.configs, self.plan.wanted.split, failures)
        return found.assign(notebook=[one["notebook"] for one in self.cells])

    def save(self) -> pd.DataFrame:
        self.record()
        table = self.table()
        tables.save(table, self.plan.folder / "table")
        return table


def run(
    plan: Plan, say: Say, scheduler: str | None = None, workers: int | None = None, retry: bool = False, trials: int = 1
) -> Sweep:
    """Do what is missing of a plan on the workers of a scheduler (None: so many processes here), and write the table. Up to so
    many trials, where settings allow it, are trained side by side before their notebooks find them.

    Raises MetaugError: another process runs the sweep, no scheduler, a worker that lacks something; Interrupted after Ctrl-C or
    SIGTERM. Finished cells and recorded failures stay in every case.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(plan.folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise MetaugError(f"sweep {plan.name} is being run by another process") from None
    with lock:
        sweep = Sweep(plan, retry)
        sweep.record()
        say(sweep, "")
        if todo := sweep.missing():
            try:
                on_cpu = loop.pick_device(plan.configs[0].device) == "cpu"
                here = min(workers or (cluster.cores() if on_cpu else 1), len(todo))
                with terminated(), cluster.connected(scheduler, here, "metaug_workbook.jobs.cell") as client:
                    work(sweep, client, say, trials)
            finally:
                sweep.save()
        sweep.save()
    return sweep


@contextmanager
def terminated() -> Iterator[None]:
    """Within, SIGTERM is a KeyboardInterrupt."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def work(sweep: Sweep, client: Client, say: Say, trials: int) -> None:
    """Hand out the missing cells and take in what comes of them."""
    plan, session = sweep.plan, uuid.uuid4().hex
    for where, lack in cluster.on_all_workers(client, cell.ready, str(plan.folder), list(plan.imports)).items():
        if lack:
            raise MetaugError(f"worker {where}: {lack}")
    common = {"session": session, "notebook": plan.notebook, "imports": list(plan.imports), "sweep": str(plan.folder)}
    common |= {"runs_dir": str(plan.configs[0].runs_dir), "evaluate": asdict(plan.wanted)}
    keys = {f"{plan.name}-{session}-{n}": n for n in sweep.missing()}
    tasks = {key: common | {"run": sweep.cells[n]["run"], "given": plan.given[n]} for key, n in keys.items()}
    order, found = list(keys), together.groups([plan.configs[n] for n in keys.values()], trials)
    done = cluster.submitted(client, cell.work, tasks, [[order[n] for n in one] for one in found], cell.trained)
    try:
        take(sweep, done, keys, say)
    except KeyboardInterrupt:
        say(sweep, "interrupted: the runs under way are being saved")
        cluster.on_all_workers(client, cell.stop, session)
        take(sweep, done, keys, say, time.monotonic() + STOP_SECONDS)
        counted = f"{sweep.count('finished')} of {len(sweep.cells)} cells are finished"
        raise papermill_runner.Interrupted(f"interrupted: {counted}; the same command goes on") from None


def take(sweep: Sweep, done: "queue.Queue[Any]", keys: dict[str, int], say: Say, until: float = float("inf")) -> None:
    """Take in the outcomes of the cells in keys, and take them out of it, until all are there or it is too late."""
    saved = time.monotonic()
    while keys and time.monotonic() < until:
        try:
            future = done.get(timeout=POLL_SECONDS)
        except queue.Empty:
            say(sweep, "")
            continue
        one = sweep.cells[number := keys.pop(future.key)]
        outcome = result(sweep, number, future)
        if outcome["state"] != "interrupted":
            one |= {name: outcome[name] for name in ("state", "error", "seconds")}
            one["notebook"] = sweep.relative(outcome["notebook"])
        sweep.record()
        if time.monotonic() - saved > TABLE_SECONDS:
            sweep.save()
            saved = time.monotonic()
        failed = one["state"] == "failed"
        say(sweep, f"failed: {sweep.plan.words(number)}: {one['error']}" if failed else "")


def result(sweep: Sweep, number: int, future: Any) -> dict[str, Any]:
    """The outcome of a cell; of one whose workers died, the failure. ClusterError if the scheduler is gone."""
    try:
        return cluster.outcome(future)
    except cluster.ClusterError as error:
        if future.status in ("cancelled", "lost"):
            raise
        executed = sweep.notebook(sweep.runs[number])
        left = str(executed) if executed.exists() else None
        return {"state": "failed", "error": str(error), "notebook": left, "seconds": None}
