"""Doing what is missing of the evidence, in the order of its worth, by `run_jobs`. Stopped at any moment, the same call goes on."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

from metaug_core.config import Config
from metaug_core.evaluation.representations import REPRESENTATIONS
from metaug_core.runs.store import Run
from metaug_core.training.progress import RunsBar, RunsReporter
from metaug_workbook.jobs.runner import Job, group_configs, run_jobs
from metaug_workbook.results import evidence_tables
from metaug_workbook.results.evidence import EXPERIMENTS, ROUNDS, Experiment
from metaug_workbook.results.evidence_tables import MEASURES, Plan, WaitingError
from metaug_workbook.results.tables import Wanted

Key = tuple[Plan, str, int]  # one run of one experiment: its plan, arm and seed


def plan_experiments(
    names: Sequence[str], given: Mapping[str, Any], folder: Path, seeds: int | None = None
) -> tuple[list[Plan], list[str]]:
    """The plans of the named experiments, of all if there is no name, and a sentence for each that has to wait for another's table.
    given: settings of every run. seeds: in place of each experiment's own number. Raises MetaugError."""
    plans, waiting = [], []
    for name in names or EXPERIMENTS:
        try:
            experiment = evidence_tables.find_experiment(name, folder)
        except WaitingError as error:
            waiting.append(str(error))
        else:
            plans.append(Plan(name, experiment, experiment.build_configs(given, seeds), folder))
    return plans, waiting


def list_todo(plans: Sequence[Plan]) -> list[Key]:
    """What is missing of the plans, in order: the first seeds of every experiment before further ones of any."""
    missing = [
        (plan, arm, seed)
        for plan in plans
        for arm, seed in plan.list_missing(evidence_tables.read(plan.name, plan.folder))
    ]
    return sorted(
        missing, key=lambda key: find_round(key[0].experiment, key[2])
    )  # sorted keeps the order within a round


def find_round(experiment: Experiment, seed: int) -> int:
    number = seed - experiment.first_seed
    return next((index for index, seeds in enumerate(ROUNDS) if number < seeds), len(ROUNDS))


def choose_measures(experiment: Experiment, arm: str) -> Wanted:
    """What is evaluated of a run of this arm: the untrained encoder only where it is not that of another arm as well."""
    with_floor = experiment.own_floors or arm == experiment.reference
    representations = ("untrained", "trained") if with_floor else ("trained",)
    return Wanted(MEASURES, representations, experiment.augmented, experiment.split)


def join(one: Wanted, other: Wanted) -> Wanted:
    """What both want, of the same split."""
    representations = tuple(name for name in REPRESENTATIONS if name in {*one.representations, *other.representations})
    return replace(one, representations=representations, augmented=one.augmented or other.augmented)


def list_jobs(todo: Sequence[Key], together: int = 1) -> list[Job]:
    """The jobs of what is missing, in its order, each run once: experiments share runs. together: so many runs that differ only in
    numbers train side by side."""
    configs: dict[str, Config] = {}
    wanted: dict[str, Wanted] = {}
    for plan, arm, seed in todo:
        name = (config := plan.configs[arm, seed]).name()
        wants = choose_measures(plan.experiment, arm)
        configs[name], wanted[name] = config, join(wanted[name], wants) if name in wanted else wants
    by_wish = {wish: [configs[name] for name in configs if wanted[name] == wish] for wish in wanted.values()}
    jobs = [Job(group, wish) for wish, some in by_wish.items() for group in group_configs(some, together)]
    order = list(configs)
    return sorted(jobs, key=lambda job: order.index(job.configs[0].name()))


def gather(
    todo: Sequence[Key],
    executor: Executor | None = None,
    together: int = 1,
    view: Callable[[int], RunsReporter] = RunsBar,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Do what `list_todo` lists, and record each run in the tables as soon as it is done. together: as in `list_jobs`. say hears of
    each failure.

    Raises KeyboardInterrupt once the runs under way are saved, and MetaugError as `run_jobs`.
    """
    places: dict[str, list[Key]] = {}
    for key in todo:
        plan, arm, seed = key
        places.setdefault(plan.configs[arm, seed].name(), []).append(key)

    def record(run: Run, failure: str | None) -> None:
        if failure:
            say(f"failed: {run.path.name}: {failure}")
        if run.finished or run.failure:  # else its data are missing, or it was stopped: it is tried again
            for plan, arm, seed in places[run.path.name]:
                plan.record({(arm, seed): run})

    run_jobs(list_jobs(todo, together), executor, view, record)
