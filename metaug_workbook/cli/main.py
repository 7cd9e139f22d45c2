"""The `metaug` command: run notebooks, list, resume and report runs, download data. Slow imports wait until they are needed."""

import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import click

from metaug_core.errors import Interrupted, MetaugError, Paused
from metaug_workbook.cli import encoders, sweep
from metaug_workbook.cli.options import format_path, say, takes_imports, takes_runs_dir, takes_settings

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


@contextmanager
def interrupt_once() -> Iterator[None]:
    """Within, the first SIGINT or SIGTERM is a KeyboardInterrupt. Those that follow change nothing, to the end of the process: what
    is under way is saved. Does nothing outside the main thread, where Python takes no signals."""
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()

    def interrupt(*_: Any) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    handlers: dict[int, Any] = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        handlers = dict.fromkeys(handlers, signal.SIG_IGN)
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def ignore_library_warnings() -> Iterator[None]:
    """Within, only the package's own warnings are shown, unless Python is asked for all (-W, PYTHONWARNINGS)."""
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.filterwarnings("ignore", module="(?!metaug_)")
        yield


class Sentences(click.Group):
    """A group whose commands end with one sentence and an exit code instead of a traceback."""

    def make_context(self, *words: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*words, **options)
        except (click.NoSuchOption, click.BadOptionUsage) as error:
            self.end_usage(error)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with interrupt_once(), ignore_library_warnings():
                return super().invoke(ctx)
        except MetaugError as error:
            code = {"CellFailed": FAILED, "Interrupted": INTERRUPTED}.get(type(error).__name__, BAD_INPUT)
            self.end(str(error), code)
        except click.UsageError as error:
            self.end_usage(error)
        except KeyboardInterrupt:
            self.end("interrupted", INTERRUPTED)
        except BrokenPipeError:
            raise
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] in ("metaug_core", "metaug_workbook"):
                raise
            self.end(f"this needs {error.name}: pip install 'metaug-workbook[workbook]'", BAD_INPUT)
        except OSError as error:
            self.end(f"{error.filename or 'the system'}: {error.strerror or error}", BAD_INPUT)

    def end_usage(self, error: click.UsageError) -> NoReturn:
        place = f"; `{error.ctx.command_path} --help` lists what there is" if error.ctx else ""
        self.end(error.format_message().rstrip(".") + place, BAD_INPUT)

    @staticmethod
    def end(sentence: str, code: int) -> NoReturn:
        say(f"metaug: {sentence}")
        sys.exit(code)


@click.group(cls=Sentences, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("metaug-workbook"), prog_name="metaug")
def main() -> None:
    """MetAug Workbook: run its notebooks, and look after the runs they leave."""


@main.command()
@click.argument("notebook")
@takes_settings("-p", "Set a parameter or a setting.")
@takes_imports(expose=True)
@takes_runs_dir
def run(notebook: str, given: dict[str, str], imports: list[str], runs_dir: Path) -> None:
    """Execute NOTEBOOK (a path, or a name such as 01_pretrain) without a screen.

    NAME is a parameter of the notebook or any setting of Config. All are checked before anything starts. A run that is finished
    already is found, not repeated.
    """
    from metaug_workbook.jobs import papermill_runner

    path = papermill_runner.find_notebook(notebook)
    values, config = papermill_runner.check_parameters(path, given, imports, runs_dir)
    if config is not None:
        note_idle(config, given)
    output = papermill_runner.execute(path, values, config, runs_dir)
    click.echo(f"executed notebook: {format_path(output)}")


def note_idle(config: Any, given: Iterable[str]) -> None:
    """Say of each setting that was given and changes nothing why that is so."""
    for name in given:
        if reason := config.idle(name):
            say(f"note: {reason}")


@main.command()
@takes_runs_dir
def runs(runs_dir: Path) -> None:
    """List the runs, oldest first."""
    from metaug_core.runs import listing

    rows = [describe(folder) for folder in listing.list_folders(runs_dir)]
    if not rows:
        click.echo(f"no runs in {format_path(runs_dir)}; `metaug run 01_pretrain` makes one")
        return
    heads = ("run", "method", "dataset", "epochs", "state", "probe %", "kNN %", "age")
    widths = [max(len(row[k]) for row in [heads, *rows]) for k in range(len(heads))]
    for row in [heads, *rows]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def describe(folder: Any) -> tuple[str, ...]:
    """One row of `metaug runs`."""
    epochs = "/".join("-" if count is None else str(count) for count in (folder.epochs_done, folder.epochs))
    probe, knn = (f"{100 * value:.1f}" if value is not None else "-" for value in (folder.probe_plain, folder.knn))
    age = format_age(time.time() - folder.touched)
    return (
        folder.name,
        folder.method or "-",
        folder.dataset or "-",
        epochs,
        folder.state + folder.needs,
        probe,
        knn,
        age,
    )


def format_age(seconds: float) -> str:
    """Roughly, in one unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


@main.command()
@takes_settings("-p", "A setting; `preset` names a preset.")
@click.option("--seeds", type=click.IntRange(1), default=1, help="How many seeds to train at a time, from `seed` on.")
@takes_imports(expose=False)
@takes_runs_dir
def train(given: dict[str, str], seeds: int, runs_dir: Path) -> None:
    """Train a run without a notebook, or several seeds: on a CPU in processes, on a GPU side by side.

    Under torchrun one run takes all its processes:
    `torchrun --standalone --nproc-per-node 2 --no-python metaug train -p dataset cifar10`."""
    from metaug_core.runs import store
    from metaug_core.runtime import distributed
    from metaug_core.training import loop
    from metaug_workbook.jobs import runner
    from metaug_workbook.jobs.grid import build_config, parse_setting

    first = build_config({**{name: parse_setting(name, text) for name, text in given.items()}, "runs_dir": runs_dir})
    note_idle(first, given)
    configs = [first.replace(seed=first.seed + number) for number in range(seeds)]
    processes = runner.count_processes([store.request(config) for config in configs])
    try:
        if processes == 1:
            loop.fit_trials(configs)
        else:
            with runner.start_processes(processes, runs_dir / "workers.log") as executor:
                failures = runner.run_jobs([runner.Job((config,)) for config in configs], executor)
            for sentence in failures.values():
                raise MetaugError(sentence)
    except (KeyboardInterrupt, Paused):
        raise Interrupted("interrupted and saved; the same command goes on") from None
    for config in configs if distributed.rank() == 0 else ():
        click.echo(f"finished: {format_path(store.request(config).path)}")


@main.command()
@click.argument("name", metavar="RUN")
@takes_imports(expose=False)
@takes_runs_dir
def resume(name: str, runs_dir: Path) -> None:
    """Train RUN (its name, the beginning of it, or its folder) from its last checkpoint to the end."""
    from metaug_core.runs import store
    from metaug_core.training import loop
    from metaug_workbook.jobs import runner

    run = store.open_run(name, runs_dir)
    if run.finished:
        click.echo(f"{run.path.name} is finished already: {format_path(run.path)}")
        return
    store.check_current(run)
    try:
        loop.fit(run.config)
    except (KeyboardInterrupt, Paused):
        raise Interrupted(f"interrupted{runner.how_to_continue(run)}") from None
    click.echo(f"finished: {format_path(run.path)}")


@main.command()
@click.argument("name", metavar="[RUN]", required=False)
@takes_imports(expose=False)
@takes_runs_dir
def report(name: str | None, runs_dir: Path) -> None:
    """Say where a run's files are, what its MAG did and how good its encoder is; without RUN, the latest that is evaluated."""
    from metaug_core.runs import store
    from metaug_core.training import diagnostics

    run = store.open_run(name or find_latest(runs_dir), runs_dir)
    click.echo(f"run        {format_path(run.path.resolve())}")
    for label, pattern in (("notebooks", "*.ipynb"), ("figures", "figures/*.png")):
        for number, path in enumerate(sorted(run.path.resolve().glob(pattern))):
            click.echo(f"{'' if number else label:<11}{format_path(path)}")
    sessions = run.sessions
    session = sessions[-1] if sessions else {}
    if session.get("device") == "cuda" and (reason := session.get("eager_because")):
        click.echo(f"{'steps':<11}not captured as CUDA graphs: {reason}")
    for number, (text, value) in enumerate(diagnostics.mag_readings(run.metrics).items()):
        click.echo(f"{'' if number else 'MAG':<11}{value:<9.2g}{text}")
    if run.evaluation():
        click.echo("\n" + format_accuracies(run))
    elif run.finished:
        click.echo("not evaluated yet: `metaug run 02_evaluate` with the run's parameters does it")
    else:
        click.echo(run.failure or f"not finished yet: `metaug resume {run.path.name}` goes on with it")


def find_latest(runs_dir: Path) -> Path:
    """The folder of the run that was evaluated last. MetaugError if there is none."""
    from metaug_core.runs import listing

    evaluated = [folder for folder in listing.list_folders(runs_dir) if folder.evaluated]
    if not evaluated:
        raise MetaugError(f"no evaluated run in {format_path(runs_dir)}: `metaug run 02_evaluate` makes one")
    return max(evaluated, key=lambda folder: folder.evaluated).path


def format_accuracies(run: Any) -> str:
    """Accuracies in percent on the test split, as text."""
    stored = run.evaluation()
    measures = {
        "probe_paper": "probe (crops)",
        "probe_plain": "probe (plain)",
        "probe_fast": "probe (fast)",
        "knn": "kNN",
    }
    lines = [f"{'test accuracy (%)':<20}" + "".join(f"{head:>14}" for head in measures.values())]
    for name in ("trained", "trained, z and z~", "untrained", "raw pixels"):
        if name in stored:
            values = [stored[name].get(measure) for measure in measures]
            lines.append(f"{name:<20}" + "".join(f"{'-' if v is None else f'{100 * v:.1f}':>14}" for v in values))
    return "\n".join(lines)


@main.command()
@click.argument("dataset")
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Where to; default: that of Config.")
def download(dataset: str, data_dir: Path | None) -> None:
    """Fetch DATASET from its authors."""
    from metaug_core.config import Config
    from metaug_core.data import datasets

    place = datasets.download(dataset, data_dir or Config.model_fields["data_dir"].default)
    click.echo(f"{dataset} is in {format_path(place)}")


@main.command()
@click.option("--markdown", is_flag=True, help="As the table of docs/methods.md.")
def methods(markdown: bool) -> None:
    """Say of every method what it is: paper, views, objective, what it remembers, the settings it brings."""
    from metaug_workbook.cli import catalogue

    click.echo(catalogue.markdown() if markdown else catalogue.text(), nl=not markdown)


main.add_command(encoders.evaluate)
main.add_command(encoders.export)
main.add_command(encoders.features)
main.add_command(sweep.figures)
main.add_command(sweep.sweep)
main.add_command(sweep.work)

if __name__ == "__main__":
    main()
