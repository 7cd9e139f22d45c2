"""`metaug work RUNS_DIR`: a worker that needs no scheduler, for job arrays of a cluster.

Workers share nothing but the folder of runs. Each takes the next unfinished job of the sweeps recorded there by the lock of its
run, goes on with a run whose worker has died, and ends when nothing is left that it could do.
"""

import shlex
import time
from collections.abc import Callable
from pathlib import Path

from metaug_core.errors import MetaugError
from metaug_core.runs import files
from metaug_core.runs.lock import STALE_SECONDS
from metaug_workbook.jobs.runner import BUSY, WAIT_SECONDS, Job, execute

SCRIPT = """\
#!/bin/bash
# Submit with: sbatch {script}
# Every task is a worker: it takes the next unfinished run, and one that was killed is taken up where it stands.
# Add what your cluster needs (--partition, --gres=gpu:1, --time, an environment to activate).
#SBATCH --job-name=metaug-{name}
#SBATCH --array=1-{workers}
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --output={folder}/worker-%a.log
trap 'kill -TERM $worker' TERM  # two minutes before the time is up: the run under way saves
{command} &
worker=$!
wait $worker || wait $worker
"""


def write_submission(folder: Path, workers: int, command: list[str]) -> Path:
    """Write submit.sh into the folder of a sweep: a job array of so many workers that run a command. Raises StoreError."""
    script = folder / "submit.sh"
    text = SCRIPT.format(
        script=shlex.quote(str(script)), name=folder.name, workers=workers, folder=folder, command=shlex.join(command)
    )
    files.write(script, text.encode())
    return script


def read_jobs(runs_dir: Path, names: tuple[str, ...] = ()) -> list[Job]:
    """The jobs of the sweeps recorded in runs_dir (names: only of these). Raises MetaugError: no sweep, or one of another version
    of the workbook."""
    records = [runs_dir / "sweeps" / name / "sweep.json" for name in names]
    records = records or sorted(runs_dir.glob("sweeps/*/sweep.json"))
    if not records:
        raise MetaugError(f"no sweep is recorded in {runs_dir}: `metaug sweep --slurm` records one")
    jobs = []
    for record in records:
        for values in files.read_json(record)["jobs"]:
            for settings in values["configs"]:
                settings["runs_dir"] = str(runs_dir)  # the folder may be mounted elsewhere here
            jobs.append(Job.from_json(values))
    return jobs


def work(jobs: list[Job], say: Callable[[str], None]) -> None:
    """Do the jobs that are left, one at a time, until none is, or until living workers have had all that are for STALE_SECONDS.
    Raises KeyboardInterrupt once the run under way is saved."""
    failed: set[str] = set()
    waits_until = time.monotonic() + STALE_SECONDS
    while left := [job for job in jobs if any(run.path.name not in failed and job.lacks(run) for run in job.runs)]:
        outcomes = {name: outcome for job in left for name, outcome in do(job, say).items()}
        failed |= {name for name, (state, sentence) in outcomes.items() if state != BUSY and sentence}
        if any(state != BUSY for state, _ in outcomes.values()):
            waits_until = time.monotonic() + STALE_SECONDS
        elif time.monotonic() > waits_until:
            say(f"the other {len(left)} runs are trained by other workers")
            return
        else:
            time.sleep(WAIT_SECONDS)
    say("nothing is left to be done")


def do(job: Job, say: Callable[[str], None]) -> dict[str, tuple[str, str | None]]:
    """`execute`, and a line about each run that is not another's."""
    outcomes = execute(job)
    for name, (state, sentence) in outcomes.items():
        if state != BUSY:
            say(f"{name}: {sentence or state}")
    return outcomes
