"""Many runs, one mechanism: a notebook's table, a sweep, `metaug train --seeds` and the benchmarks all go through `run_jobs`.

make_table(configs, measures=("knn",))          # `tables.read_table`, after making what is missing of it; again, it only reads

A job is what is wanted of one run, or of several that train side by side. `execute` does what is missing of it, here or in a
worker, under the run's lock: a run is done once, whoever asks for it, and what a dead worker leaves is taken up where it stands.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch

from metaug_core import extensions
from metaug_core.config import Config
from metaug_core.data import datasets
from metaug_core.errors import MetaugError
from metaug_core.evaluation import representations
from metaug_core.evaluation.probes import DEFAULT_MEASURES
from metaug_core.runs import data, store
from metaug_core.runs.store import BusyError, Run
from metaug_core.runtime import distributed
from metaug_core.runtime.device import count_cores, limit_memory
from metaug_core.training import loop
from metaug_core.training.progress import Progress, RunsBar, RunsReporter
from metaug_workbook.jobs.processes import SAVE_SECONDS, LocalProcesses
from metaug_workbook.results.tables import DEFAULT, Wanted, list_missing, read_table

WORKER_BYTES = 2 * 2**30  # that must be free for each process: torch and its libraries, the images, a step
POLL_SECONDS, WAIT_SECONDS = 0.5, 1.0
STEPS = ("epochs", "batch_size")  # equal in runs side by side, so that none waits for another

# What became of a run: done (or failed: then with a sentence), held by another process, or not readable by the worker.
DONE, BUSY, UNKNOWN = "done", "busy", "unknown"
OnDone = Callable[[Run, str | None], None]  # hears of each run that is done, with the sentence of one that failed


@dataclass(frozen=True)
class Job:
    """What is wanted of the runs of these configs, which train side by side. wanted: what is evaluated (None: nothing)."""

    configs: tuple[Config, ...]
    wanted: Wanted | None = None

    @cached_property
    def runs(self) -> list[Run]:
        return [store.request(config) for config in self.configs]

    def lacks(self, run: Run) -> bool:
        """Whether something is still to be done for a run of the job. Nothing is for one that diverged."""
        if run.failure is not None:
            return False
        return not run.finished if self.wanted is None else self.wanted.is_lacking(run)

    def to_json(self) -> dict[str, Any]:
        """The job with the names of its runs, and the user's files that a worker must load."""
        return {
            "configs": [config.model_dump(mode="json") for config in self.configs],
            "names": [config.name() for config in self.configs],
            "wanted": asdict(self.wanted) if self.wanted else None,
            "imports": [str(file) for file in extensions.loaded],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Job":
        """The job in another process. MetaugError if its settings, or the user's code behind them, mean other runs here."""
        for file in values["imports"]:
            extensions.load(file)
        configs = tuple(Config(**settings) for settings in values["configs"])
        wanted: dict[str, Any] = {
            n: tuple(v) if isinstance(v, list) else v for n, v in (values["wanted"] or {}).items()
        }
        names = [config.name() for config in configs]
        if names != values["names"]:
            raise MetaugError(
                f"this worker reads the settings of {values['names'][0]} differently: has its workbook the same version?"
            )
        return cls(configs, Wanted(**wanted) if wanted else None)


class LastImages:
    """The images of the run asked for last: runs of the same data set come one after another."""

    def __init__(self) -> None:
        self.last: tuple[Any, datasets.Splits] | None = None

    def load(self, config: Config, device: str) -> datasets.Splits:
        key = tuple(getattr(config, name) for name in loop.SHARED)
        last = self.last  # read once: a Dask worker may have several threads
        if last is None or last[0] != key:
            self.last = last = key, datasets.load(config, device)
        return last[1]


IMAGES = LastImages()  # of this process


# --- one job
def execute(job: Job, report: Callable[[Progress], None] = lambda at: None) -> dict[str, tuple[str, str | None]]:
    """Train the runs of a job that are not finished, side by side, and evaluate what is missing -> by run name, what became of it:
    DONE, with the sentence of a failure or None, or BUSY. Raises KeyboardInterrupt once everything is saved."""
    outcomes: dict[str, tuple[str, str | None]] = {}
    with ExitStack() as locks:
        own: list[Run] = []
        for run in job.runs:
            try:
                locks.enter_context(run.lock())
                own.append(run)
            except BusyError:
                outcomes[run.path.name] = BUSY, None
            except MetaugError as error:
                outcomes[run.path.name] = DONE, str(error)
        diverged = {run.path.name: run.failure for run in own}
        try:
            failures = train_and_evaluate(job, [run for run in own if job.lacks(run)], report)
        except MetaugError as error:  # of data that are missing: everyone's
            failures = {run.path.name: error for run in own}
    sentences = diverged | {name: str(error) for name, error in failures.items()}
    return outcomes | {run.path.name: (DONE, sentences.get(run.path.name)) for run in own}


def train_and_evaluate(job: Job, runs: list[Run], report: Callable[[Progress], None]) -> dict[str, MetaugError]:
    """-> the errors of runs that failed, by run name. Raises what is not one run's own."""
    if not runs:
        return {}
    device = loop.pick_device(runs[0].config.device)
    splits = IMAGES.load(runs[0].config, device)
    _, failures = loop.attempt([run.config for run in runs if not run.finished], report, splits)
    for run in runs:
        if run.finished and job.wanted is not None:
            with loop.keep_failure(run, failures):
                representations.evaluate(run, splits=splits, device=device, **job.wanted.list_arguments(run))
    return failures


def execute_values(values: dict[str, Any]) -> dict[str, tuple[str, str | None]]:
    """`execute` in a worker: the job as JSON. A job that the worker cannot read as it was meant is UNKNOWN."""
    try:
        job = Job.from_json(values)
    except MetaugError as error:
        return dict.fromkeys(values["names"], (UNKNOWN, str(error)))
    return execute(job)


# --- many jobs
class Watch:
    """How far the runs of some jobs are, from their folders alone, for a bar or a live line."""

    def __init__(self, jobs: Sequence[Job], view: Callable[[int], RunsReporter]):
        self.lacking = [(job, run) for job in jobs for run in job.runs]
        self.total, self.failed = len(self.lacking), set[str]()
        self.report = view(self.total)

    def tell(self, at: Progress | None = None) -> None:
        self.lacking = [(job, run) for job, run in self.lacking if run.path.name not in self.failed and job.lacks(run)]
        self.report(self.total - len(self.lacking), at or self.newest())

    def newest(self) -> Progress | None:
        """Where the run stands that was trained last."""
        rows = [(run, run.progress) for _, run in self.lacking if not run.finished]
        begun = [(run, row) for run, row in rows if row]
        if not begun:
            return None
        run, row = max(begun, key=lambda pair: (pair[0].path / "timing.jsonl").stat().st_mtime_ns)
        epoch = int(row["step"] * run.config.epochs / row["steps"])
        return Progress(
            run, epoch, row["step"], row["steps"], row["loss"], row["images_per_second"], row["seconds_left"]
        )


def run_jobs(
    jobs: Sequence[Job],
    executor: Executor | None = None,
    view: Callable[[int], RunsReporter] = RunsBar,
    on_done: OnDone = lambda run, failure: None,
) -> dict[str, str]:
    """Do what is missing of the jobs, in this process (None) or by the workers of an executor -> sentences by the names of the runs
    that failed.

    What a worker does not know (a method of a notebook's own) is done here; what another process does is waited for, and taken up
    where that one leaves it. view(number of runs) gives the reporter. Interrupted, it asks the runs under way to save, waits for
    them and raises KeyboardInterrupt; the same call goes on. A run that somebody else asks to stop counts as failed in this call.
    """
    data.check_finished(run for job in jobs for run in job.runs)
    watch, failures = Watch(jobs, view), {}

    def settle(job: Job, outcomes: Mapping[str, Sequence[Any]]) -> Job | None:
        """Take in what became of a job -> what is left of it to be done here."""
        left = []
        for config, run in zip(job.configs, job.runs, strict=True):
            state, sentence = outcomes[run.path.name]
            if state in (BUSY, UNKNOWN):
                left.append(config)
                continue
            if sentence is not None:
                failures[run.path.name] = sentence
                watch.failed.add(run.path.name)
            on_done(run, sentence)
        watch.tell()
        return Job(tuple(left), job.wanted) if left else None

    left = run_elsewhere(jobs, executor, watch, settle) if executor is not None else list(jobs)
    while left:
        rest = [settle(job, execute(job, watch.tell)) for job in left]
        busy = [job for job in rest if job is not None]
        # Runs of others are waited for one at a time: who holds some of them while it waits for the rest could wait for ever.
        left = [Job((config,), job.wanted) for job in busy for config in job.configs]
        if left:
            time.sleep(WAIT_SECONDS)
            watch.tell()
    return failures


def run_elsewhere(
    jobs: Sequence[Job],
    executor: Executor,
    watch: Watch,
    settle: Callable[[Job, Mapping[str, Sequence[Any]]], Job | None],
) -> list[Job]:
    """Jobs by the workers of an executor -> what is left of them to be done here."""
    futures: dict[Future[Any], Job] = {executor.submit(execute_values, job.to_json()): job for job in jobs}
    left: list[Job | None] = []
    waiting = set(futures)
    try:
        while waiting:
            done, waiting = wait(waiting, timeout=POLL_SECONDS)
            for future in done:
                left.append(settle(futures[future], outcomes_of(future, futures[future])))
            watch.tell()
    except BaseException:
        stop(executor, waiting, [run for future in waiting for run in futures[future].runs])
        raise
    return [job for job in left if job is not None]


def outcomes_of(future: "Future[Any]", job: Job) -> Mapping[str, Sequence[Any]]:
    """What became of a job's runs; if its worker could not say, the failure of all. Raises MetaugError if the scheduler is gone."""
    try:
        return future.result()
    except MetaugError as error:
        sentence = str(error)
    except Exception as error:
        sentence = f"{type(error).__name__}: {error}"
        if type(error).__name__ == "KilledWorker":
            sentence = "its worker died again and again (out of memory?)"
        elif type(error).__name__ in ("CancelledError", "FutureCancelledError"):
            raise MetaugError("the workers are gone; the same command goes on") from None
    return dict.fromkeys((run.path.name for run in job.runs), (DONE, sentence))


def stop(executor: Executor, futures: set["Future[Any]"], runs: Sequence[Run]) -> None:
    """Have the runs under way saved, and no other begun."""
    under_way = {future for future in futures if not future.cancel()}
    until = time.monotonic() + SAVE_SECONDS
    if isinstance(executor, LocalProcesses):
        executor.shutdown(cancel_futures=True)
    while under_way and time.monotonic() < until:
        for run in runs:
            if run.busy and not run.stop_requested:
                run.request_stop()
        _, under_way = wait(under_way, timeout=POLL_SECONDS)


# --- tables
def make_table(
    configs: Sequence[Config],
    measures: Sequence[str] = DEFAULT_MEASURES,
    representations: Sequence[str] = DEFAULT,
    augmented: bool = False,
    together: int = 1,
    processes: int | None = None,
    retry: bool = False,
    split: str = "test",
    view: Callable[[int], RunsReporter] = RunsBar,
) -> pd.DataFrame:
    """The `read_table` of these configs, after training and evaluating here what is missing of it.

    Stopped at any moment, the same call goes on. A run that diverges, or whose data are not there, is a row with its `failure`; one
    that diverged before is not tried again unless retry. measures, representations, split: as `evaluate`. augmented: also z and z~,
    where the method has a MAG. together: so many runs of the same images are trained side by side in one process (a gain on CUDA;
    6 % on a CPU). processes: of so many, each with its share of the threads; None: `count_processes`. view(number of runs to do)
    gives the reporter. Raises MetaugError for an unknown measure or representation, or a finished run of other data.
    """
    wanted = Wanted(tuple(measures), tuple(representations), augmented, split)
    data.check_finished(map(store.request, configs))
    todo = list_missing(configs, measures, representations, augmented, retry, split)
    if not todo:
        return read_table(configs, split)
    for run in todo:  # those asked for again: whoever comes to it sees what happened this time
        run.clear_failure()
    jobs = [Job(group, wanted) for group in group_configs([run.config for run in todo], together)]
    count = count_processes(todo) if processes is None else processes
    workers = start_processes(count, todo[0].config.runs_dir / "workers.log") if count > 1 else nullcontext()
    with workers as executor:
        failures = run_jobs(jobs, executor, view)
    return read_table(configs, split, failures)


def group_configs(configs: Sequence[Config], most: int) -> list[tuple[Config, ...]]:
    """Each config once and in order, in groups of at most so many that may train side by side: they differ only in the seed and
    other numbers, but not in the images or in how many steps there are."""
    groups: list[list[Config]] = []
    open_groups: dict[str, list[Config]] = {}
    for config in configs:
        group = open_groups.get(kind := common_settings(config))
        if group is None or len(group) == most:
            group = open_groups[kind] = []
            groups.append(group)
        group.append(config)
    return [tuple(group) for group in groups]


def common_settings(config: Config) -> str:
    """What runs side by side have in common, as a text."""
    fixed = {*loop.TOGETHER, *STEPS}
    values = config.model_dump(mode="json")
    return repr(sorted((n, v) for n, v in values.items() if n in fixed or type(v) not in (int, float)))


def count_processes(runs: Sequence[Run]) -> int:
    """How many processes make these runs fastest here: one for each of torch's threads (`OMP_NUM_THREADS`) and each run, as far
    as cores and memory go. One on a GPU, which a process fills by itself (`together`)."""
    if distributed.started() > 1 or any(loop.pick_device(run.config.device) != "cpu" for run in runs):
        return 1
    memory = min(psutil.virtual_memory().available, limit_memory())
    return max(1, min(torch.get_num_threads(), count_cores(), len(runs), int(memory // WORKER_BYTES)))


def count_workers(config: Config, todo: int, asked: int | None) -> int:
    """How many worker processes a command starts for so many runs: as many as asked, else one per core, or one for a GPU."""
    on_cpu = loop.pick_device(config.device) == "cpu"
    return min(asked or (count_cores() if on_cpu else 1), todo)


@contextmanager
def start_processes(processes: int, log: Path) -> Iterator[Executor]:
    """Within, so many worker processes of this machine for `run_jobs`, each with its share of torch's threads."""
    executor = LocalProcesses(processes, log, max(1, min(torch.get_num_threads(), count_cores()) // processes))
    try:
        yield executor
    except BaseException:
        executor.shutdown(cancel_futures=True)
        raise
    executor.shutdown()


def wait_while_busy(work: Callable[[], Any], on_busy: Callable[[], None] = lambda: None) -> Any:
    """What work returns; while another process has the run, on_busy is called and it waits."""
    while True:
        try:
            return work()
        except BusyError:
            on_busy()
            time.sleep(WAIT_SECONDS)


def how_to_continue(run: Run | None) -> str:
    """The end of a sentence about an interrupted run: how its training goes on, if anything was saved."""
    if run is None or run.finished or not run.checkpoints:
        return ""
    return f"; what was trained is kept, continue with `metaug resume {run.path.name}`"
