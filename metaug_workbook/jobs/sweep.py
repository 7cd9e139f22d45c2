"""Sweeps: a grid of settings, one run per cell; what was finished stays, and the same call does the rest.

    runs/sweeps/NAME/sweep.json      the grid, and of each cell: run, settings, state, error, executed notebook
    runs/sweeps/NAME/table.parquet   the table of its runs (`results.tables`), and table.csv
    runs/sweeps/NAME/submit.sh       with --slurm: a job array of `metaug work`

The runs are trained and evaluated first (`runner.run_jobs`). Then each finished run's notebook is executed, which finds the run: a
figure that fails costs no result. Two processes may do one sweep at the same time; the runs' locks divide it.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pandas as pd

from metaug_core import extensions
from metaug_core.config import Config, ConfigError, as_file_name
from metaug_core.errors import Interrupted, MetaugError
from metaug_core.evaluation.probes import LABEL_FREE
from metaug_core.evaluation.representations import AUGMENTED, interval
from metaug_core.runs import data, files, store
from metaug_core.training.progress import RunsBar, RunsReporter
from metaug_workbook.jobs import grid, papermill_runner
from metaug_workbook.jobs.runner import Job, group_configs, run_jobs
from metaug_workbook.results import tables
from metaug_workbook.results.tables import Wanted


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
        return grid.describe_cell(self.given[number], (n for n in self.varying if not config.idle(n))) or config.name()


def plan_sweep(
    axes: Sequence[str],
    fixed: Mapping[str, str],
    seeds: int | None,
    runs_dir: Path,
    wanted: Wanted,
    notebook: str = "01_pretrain",
    imports: Sequence[str] = (),
    name: str | None = None,
) -> Plan:
    """Every name and value checked against the notebook, Config and the method; nothing is started. Raises ConfigError."""
    given, path = grid.list_cells(axes, fixed, seeds), papermill_runner.find_notebook(notebook)
    configs, faults = [], []
    varying = tuple(n for n in given[0] if len({one[n] for one in given}) > 1)
    for one in given:
        try:
            config = papermill_runner.check_parameters(path, one, imports, runs_dir)[1]
        except MetaugError as error:
            faults.append((one, str(error)))
            continue
        if config is None:
            raise ConfigError(f"{path.name} does not train one run: a cell needs the parameters `preset` and `seed`")
        configs.append(config)
    if faults:
        where = "" if len(faults) == len(given) else f"cell {grid.describe_cell(faults[0][0], varying)}: "
        more = f" (and {len(faults) - 1} more of {len(given)} cells)" if where and len(faults) > 1 else ""
        raise ConfigError(f"{where}{faults[0][1]}{more}")
    for setting in varying:
        if all(reasons := [config.idle(setting) for config in configs]):
            raise ConfigError(f"--grid {setting}={given[0][setting]},...: {reasons[0]}")
    given, configs = drop_duplicates(given, configs, varying)
    names = [config.name() for config in configs]
    if name is not None and (Path(name).name != name or name in (".", "..")):
        raise ConfigError(f"--name {name}: must be the name of a folder, not a path")
    digest = sha256("\n".join([path.stem, *sorted(names)]).encode()).hexdigest()[:8]
    readable = as_file_name("-".join([configs[0].dataset, *(n for n in varying if n != "seed")])[:60])
    where = notebook if not Path(notebook).exists() else str(path)  # a bare name is found in each worker's own workbook
    return Plan(name or f"{readable}-{digest}", where, varying, tuple(given), tuple(configs), tuple(imports), wanted)


def drop_duplicates(
    given: Sequence[dict[str, str]], configs: Sequence[Config], varying: Sequence[str]
) -> tuple[list[dict[str, str]], list[Config]]:
    """Each run once: cells that differ only in what their method does not use are one. ConfigError for others of one run."""
    first: dict[str, int] = {}
    for number, config in enumerate(configs):
        one, other = given[first.setdefault(config.name(), number)], given[number]
        if any(one[name] != other[name] and not config.idle(name) for name in varying):
            a, b = (grid.describe_cell(cell, varying) for cell in (one, other))
            raise ConfigError(f"cells {a} and {b} are one and the same run")
    return [given[number] for number in first.values()], [configs[number] for number in first.values()]


class Sweep:
    """A plan and the state of its cells: finished, failed (as recorded), or missing."""

    def __init__(self, plan: Plan, retry: bool = False):
        self.plan, self.runs = plan, [store.request(config) for config in plan.configs]
        self.file = plan.folder / "sweep.json"
        before = {c["run"]: c for c in files.read_json(self.file)["cells"]} if self.file.exists() else {}
        self.cells = [self.read_cell(n, before.get(run.path.name, {}), retry) for n, run in enumerate(self.runs)]

    def read_cell(self, number: int, before: Mapping[str, Any], retry: bool) -> dict[str, Any]:
        """The cell as the run's folder and the record say. notebook_error: why the notebook of a finished run failed."""
        run, settings = self.runs[number], {n: self.plan.given[number][n] for n in self.plan.varying}
        cell = {"run": run.path.name, "settings": settings, "error": None, "state": "missing"}
        cell |= {"notebook": self.executed(run), "notebook_error": None if retry else before.get("notebook_error")}
        if run.finished and not self.plan.wanted.is_lacking(run):
            return cell | {"state": "finished"}
        error = run.failure or before.get("error")
        return cell | {"state": "failed", "error": error} if error and not retry else cell

    def notebook(self, run: store.Run) -> Path:
        """Where the executed notebook of a run is or will be."""
        return run.path / papermill_runner.find_notebook(self.plan.notebook).name

    def executed(self, run: store.Run) -> str | None:
        """The executed notebook as it is recorded: from the folder of all runs, which may move. None: there is none."""
        notebook = self.notebook(run)
        return str(notebook.relative_to(run.config.runs_dir)) if notebook.exists() else None

    def count(self, state: str) -> int:
        return sum(cell["state"] == state for cell in self.cells)

    def missing(self) -> list[int]:
        """Numbers of the cells whose runs are not trained and evaluated."""
        return [number for number, cell in enumerate(self.cells) if cell["state"] == "missing"]

    def without_notebook(self) -> list[int]:
        """Numbers of the finished cells whose notebook is not executed since, and did not fail."""
        return [
            number
            for number, (cell, run) in enumerate(zip(self.cells, self.runs, strict=True))
            if cell["state"] == "finished"
            and not cell["notebook_error"]
            and not files.is_newer(self.notebook(run), run.path / "finished.json")
        ]

    def jobs(self, together: int = 1) -> list[Job]:
        """What is missing of the cells' runs; so many train side by side where their settings allow it."""
        groups = group_configs([self.plan.configs[number] for number in self.missing()], together)
        return [Job(group, self.plan.wanted) for group in groups]

    def settle(self, run: store.Run, failure: str | None) -> str | None:
        """Record what became of a run -> a line about a failure."""
        number = next(n for n, other in enumerate(self.runs) if other.path == run.path)
        state = "failed" if failure else "finished"
        self.cells[number] |= {"state": state, "error": failure}
        self.record()
        return f"failed: {self.plan.words(number)}: {failure}" if failure else None

    def notebook_task(self, number: int) -> dict[str, Any]:
        """What `execute_notebook` needs, as JSON. The run's precision: on the worker's machine `auto` may be another."""
        plan = self.plan
        given = plan.given[number] | {"precision": plan.configs[number].precision}
        task = {"notebook": plan.notebook, "given": given, "imports": list(plan.imports)}
        return task | {"runs_dir": str(plan.configs[number].runs_dir)}

    @cached_property
    def header(self) -> dict[str, Any]:
        """What sweep.json holds beside the cells: the same at every record. jobs: for `metaug work`."""
        plan = self.plan
        header = {"notebook": plan.notebook, "imports": list(plan.imports), "evaluate": asdict(plan.wanted)}
        jobs = [Job((config,), plan.wanted).to_json() for config in plan.configs]
        return header | {"varying": list(plan.varying), "jobs": jobs}

    def begin(self) -> None:
        """Record what is to be done, and forget earlier failures of it: whoever comes to a run sees what happened this time."""
        self.record()
        for number in self.missing():
            self.runs[number].clear_failure()

    def record(self) -> None:
        files.write_json(self.file, self.header | {"cells": self.cells})

    def table(self) -> pd.DataFrame:
        """A row for each cell: what varies, then what was measured, then everything else (`tables.read_table`)."""
        failures = {cell["run"]: cell["error"] for cell in self.cells if cell["state"] == "failed"}
        table = tables.read_table(self.plan.configs, self.plan.wanted.split, failures)
        table = table.assign(notebook=[cell["notebook"] for cell in self.cells])
        first = [*self.plan.varying, *(column for columns in self.measured().values() for column in columns.values())]
        first = [name for name in first if name in table]
        return table.reindex(columns=[*first, *table.columns.drop(first)])

    def measured(self) -> dict[str, dict[str, str]]:
        """The columns of the table that the sweep measures, by representation and measure."""
        wanted = self.plan.wanted
        names = (*wanted.representations, *((AUGMENTED,) if wanted.augmented else ()))
        return {name: {measure: f"{tables.PREFIX[name]}{measure}" for measure in wanted.measures} for name in names}

    def summary(self) -> pd.DataFrame:
        """A row for each combination of what varies but the seed (of the method, if nothing does) and each representation
        (`features`); a column for each measure, in percent (rankme: as it is) with the 95 % t-interval over the seeds, as text
        (`format_estimate`).
        A setting stands as it was given, `-` where the method does not use it."""
        plan, table, rows = self.plan, self.table(), []
        by = [name for name in plan.varying if name != "seed"] or ["method"]
        for name in by:
            pairs = list(zip(plan.given, plan.configs, strict=True))
            table[name] = ["-" if config.idle(name) else given.get(name, config.method) for given, config in pairs]
        for key, runs in table.groupby(by, sort=False):
            for features, columns in self.measured().items():
                row = dict(zip(by, cast(tuple, key), strict=True)) | {"features": features}
                for measure, column in columns.items():
                    values = runs[column].dropna().tolist()
                    scale = 1 if measure in LABEL_FREE else 100
                    row[measure] = tables.format_estimate(*interval(values), len(values), scale)
                rows.append(row)
        return pd.DataFrame(rows)

    def save(self) -> None:
        self.record()
        tables.save(self.table(), self.plan.folder / "table")


def run_sweep(
    sweep: Sweep,
    executor: Executor | None = None,
    together: int = 1,
    view: Callable[[int], RunsReporter] = RunsBar,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Do what is missing of a sweep and write its table: first the runs, then their notebooks. say hears of every failure.

    Raises KeyboardInterrupt once the runs under way are saved, and MetaugError if the workers are gone or a finished run is of
    other data. What was finished and what failed is recorded in every case.
    """

    def settle(run: store.Run, failure: str | None) -> None:
        if line := sweep.settle(run, failure):
            say(line)

    data.check_finished(sweep.runs)
    sweep.begin()
    try:
        if jobs := sweep.jobs(together):
            run_jobs(jobs, executor, view, settle)
        execute_notebooks(sweep, executor, say)
    finally:
        sweep.save()


def execute_notebooks(sweep: Sweep, executor: Executor | None, say: Callable[[str], None]) -> None:
    """Execute the notebooks of the finished cells that lack one, here or by the workers of an executor."""
    todo = {number: sweep.notebook_task(number) for number in sweep.without_notebook()}
    if not todo:
        return
    say(f"{len(todo)} notebooks are executed; their runs are finished")
    if executor is None:
        errors = ((number, execute_notebook(task)) for number, task in todo.items())
    else:
        futures = {executor.submit(execute_notebook, task): number for number, task in todo.items()}
        errors = ((futures[future], error_of(future)) for future in as_completed(futures))
    for number, error in errors:
        sweep.cells[number] |= {"notebook": sweep.executed(sweep.runs[number]), "notebook_error": error}
        sweep.record()
        if error:
            say(f"the notebook failed: {sweep.plan.words(number)}: {error}")


def error_of(future: "Future[Any]") -> str | None:
    try:
        return future.result()
    except MetaugError as error:
        return str(error)


def execute_notebook(task: dict[str, Any]) -> str | None:
    """Execute the notebook of a cell in a kernel of its own -> why it failed, in a sentence."""
    for file in task["imports"]:
        extensions.load(file)
    path = papermill_runner.find_notebook(task["notebook"])
    try:
        runs_dir = Path(task["runs_dir"])
        values, config = papermill_runner.check_parameters(path, task["given"], task["imports"], runs_dir)
        papermill_runner.execute(path, values, config, runs_dir, bar=False)
    except Interrupted:
        raise
    except MetaugError as error:
        return str(error)
    return None
