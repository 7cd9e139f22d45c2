"""The `metaug` command: its group, how it ends, and which commands there are."""

import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NoReturn

import click

from metaug_core.errors import Interrupted, MetaugError
from metaug_workbook.cli import compare, encoders, evidence, notebooks, reference, runs, sweep, training
from metaug_workbook.cli.options import say

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
    """MetAug Workbook: run the notebooks, train, and look after the runs.

    `metaug COMMAND --help` explains a command.
    """


main.add_command(notebooks.run)
main.add_command(training.train)
main.add_command(training.resume)
main.add_command(training.stop)
main.add_command(training.download)
main.add_command(runs.runs)
main.add_command(runs.report)
main.add_command(runs.rm)
main.add_command(compare.compare)
main.add_command(encoders.evaluate)
main.add_command(encoders.features)
main.add_command(encoders.export)
main.add_command(reference.methods)
main.add_command(reference.settings)
main.add_command(sweep.figures)
main.add_command(sweep.sweep)
main.add_command(sweep.work)
main.add_command(evidence.evidence)
main.add_command(evidence.claims)

if __name__ == "__main__":
    main()
