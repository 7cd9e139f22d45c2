"""What is missing of a table, made: trained and evaluated, several runs at a time where that is faster, each at most once.

made(configs, measures=("knn",))        # `results.table`, after making what is missing; again, it only reads

On a CPU the steps of a small run hardly gain from a second thread, so helpers, processes of their own, go through the same list
and take what nobody has claimed. A helper's claim ends with it, however it ends, and what is left falls to the others.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from subprocess import TimeoutExpired
from typing import Any, TypeVar

import pandas as pd
import psutil
import torch

from metaug_core import extensions
from metaug_core.config import Config
from metaug_core.data import datasets
from metaug_core.errors import MetaugError
from metaug_core.evaluation import representations
from metaug_core.evaluation.probes import MEASURES
from metaug_core.runs.store import BusyError, Run
from metaug_core.runtime import distributed
from metaug_core.training import loop
from metaug_core.training.progress import Progress, RunsBar, RunsReporter
from metaug_workbook.jobs import children
from metaug_workbook.results.tables import DEFAULT, Wanted, list_missing, read_table

HELPER_BYTES = 2 * 2**30  # that must be free for each process: torch and its libraries, the images, a step
SAVE_SECONDS = 10.0  # that an interrupted owner waits for its helpers
WAIT_SECONDS = 1.0
T = TypeVar("T")


def made(
    configs: Sequence[Config],
    measures: Sequence[str] = MEASURES,
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
    6 % on a CPU). processes: of so many, each with its share of the threads; None: `processes_for`. view(number of runs to do)
    gives the reporter. Raises MetaugError for an unknown measure or representation.
    """
    todo = list_missing(configs, measures, representations, augmented, retry, split)
    if not todo:
        return read_table(configs, split)
    for run in todo:  # those asked for again: whoever comes to it sees what happened this time
        (run.path / "failed.json").unlink(missing_ok=True)
    wanted = Wanted(tuple(measures), tuple(representations), augmented, split)
    left, tell = Left(todo, wanted), view(len(todo))
    with helped(todo, wanted, processes_for(todo) if processes is None else processes):
        for patient in (False, True):  # first what nobody makes, then what others made or left
            make(left, together, patient, tell)
    return read_table(configs, split, left.failures)


class Left:
    """What is left to be made of runs, by whomever. failures: sentences by run name, of those that cannot be made here."""

    def __init__(self, runs: Sequence[Run], wanted: Wanted):
        self.wanted, self.runs, self.total = wanted, list(runs), len(runs)
        self.failures: dict[str, str] = {}

    def holds(self, run: Run) -> bool:
        return run.path.name not in self.failures and not run.failure and self.wanted.is_lacking(run)

    def done(self) -> int:
        self.runs = [run for run in self.runs if self.holds(run)]
        return self.total - len(self.runs)


def make(left: Left, together: int, patient: bool, tell: RunsReporter) -> None:
    """Go once through the runs that are left, in order, so many at a time. Those that another process makes are passed over, or
    waited for if patient."""

    def report(at: Progress | None = None) -> None:
        tell(left.done(), at)

    images = Images()
    # Who waits holds no claim: two that wait for each other would do so for ever.
    for group in batches(list(left.runs), 1 if patient else together):
        with ExitStack() as claims:
            own = []
            for run in group:
                try:
                    if claimed(run, claims, report if patient else None) and left.holds(run):
                        own.append(run)
                except MetaugError as error:
                    left.failures[run.path.name] = str(error)
            left.failures |= {name: str(error) for name, error in complete(own, left.wanted, images, report).items()}
        report()


def claimed(run: Run, claims: ExitStack, busy: Callable[[], None] | None) -> bool:
    """Whether the run is this process's to make until claims are closed. While another makes it: False, or with busy it waits."""

    def claim() -> None:
        claims.enter_context(run.claim())

    try:
        when_free(claim, busy) if busy else claim()
    except BusyError:
        return False
    return True


class Images:
    """The images of the run asked for last: runs of the same data set come one after another."""

    def __init__(self) -> None:
        self.key, self.splits = None, None

    def __call__(self, config: Config, device: str) -> datasets.Splits:
        if self.splits is None or self.key != images_key(config):
            self.key, self.splits = images_key(config), datasets.load(config, device)
        return self.splits


def images_key(config: Config) -> tuple[Any, ...]:
    return tuple(getattr(config, name) for name in loop.SHARED)


def common_key(config: Config) -> tuple[Any, ...]:
    """What runs must share to be trained side by side."""
    return tuple(getattr(config, name) for name in loop.TOGETHER)


def batches(runs: Iterable[Run], size: int) -> Iterator[list[Run]]:
    """Runs that may be trained side by side together, at most so many at a time; else in order."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(common_key(run.config), []).append(run)
    for group in groups.values():
        yield from (group[k : k + size] for k in range(0, len(group), size))


def complete(
    runs: list[Run], wanted: Wanted, images: Images, report: Callable[[Progress | None], None]
) -> dict[str, MetaugError]:
    """Train those of runs that are not finished, side by side, and evaluate all that are then -> errors by run name, each run's
    own; of data that are missing, everyone's."""
    if not runs:
        return {}
    try:
        device = loop.pick_device(runs[0].config.device)
        splits = images(runs[0].config, device)
        todo = [run.config for run in runs if not run.finished]
        _, failures = when_free(lambda: loop.attempt(todo, report, splits))
    except MetaugError as error:
        return {run.path.name: error for run in runs}
    for run in (run for run in runs if run.finished):
        with loop.keep_failure(run, failures):
            representations.evaluate(run, splits=splits, device=device, **wanted.list_arguments(run))
    return failures


def when_free(work: Callable[[], T], busy: Callable[[], None] = lambda: None) -> T:
    """What work returns; while another process has the run, busy is called and it waits."""
    while True:
        try:
            return work()
        except BusyError:
            busy()
            time.sleep(WAIT_SECONDS)


# --- helpers
def processes_for(runs: Sequence[Run]) -> int:
    """How many processes make these runs fastest here: one for each of torch's threads (`OMP_NUM_THREADS`) and each run, as far
    as memory goes. One on a GPU, which a process fills by itself (`together`)."""
    if distributed.started() > 1 or any(loop.pick_device(run.config.device) != "cpu" for run in runs):
        return 1
    return max(1, min(torch.get_num_threads(), len(runs), psutil.virtual_memory().available // HELPER_BYTES))


@contextmanager
def shared_threads(processes: int) -> Iterator[int]:
    """Within, torch has the share of its threads that each of so many processes gets."""
    whole = torch.get_num_threads()
    share = max(1, whole // max(1, processes))
    torch.set_num_threads(share)
    try:
        yield share
    finally:
        torch.set_num_threads(whole)


@contextmanager
def helped(todo: Sequence[Run], wanted: Wanted, processes: int) -> Iterator[None]:
    """Within, so many processes, this one among them, make the runs. A helper knows what the package and loaded files register;
    a run of a notebook's own method is left to the notebook. One that cannot be started, or dies, only costs time."""
    work = {"imports": [str(file) for file in extensions.loaded], "wanted": asdict(wanted)}
    work["configs"] = [run.config.model_dump(mode="json") for run in todo]
    helpers: list[children.Child] = []
    with shared_threads(processes) as threads:
        try:
            with suppress(OSError):
                for _ in range(processes - 1):
                    log = todo[0].config.runs_dir / "helpers.log"
                    helpers.append(children.started("metaug_workbook.jobs.helper", work, log, threads))
            yield
        except BaseException:
            let_save(helpers)
            raise
        for helper in helpers:  # nothing is left to do: one that is still importing torch need not get to know it
            helper.kill()
            helper.communicate()


def let_save(helpers: Sequence[children.Child]) -> None:
    """Have the helpers save and end, and wait a little: they end by themselves, and their claims with them."""
    for helper in helpers:
        with suppress(OSError):
            children.stop(helper)
    until = time.monotonic() + SAVE_SECONDS
    for helper in helpers:
        with suppress(TimeoutExpired):
            helper.wait(max(0.0, until - time.monotonic()))
