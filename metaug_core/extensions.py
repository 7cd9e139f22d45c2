"""A user's own Python file, which enters methods, encoders, views or data sets in the registries (`--import my_methods.py`), and
what its code raises later, as one sentence."""

import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metaug_core import sources
from metaug_core.config import Config
from metaug_core.errors import MetaugError

loaded: list[Path] = []  # in this process; one that helps it needs them too


def load(file: str | Path) -> Path:
    """Run the file, once in a process, as the module of its name; its neighbours can be imported from it. Returns its full path.

    Raises MetaugError (one sentence) if it is not there, is not Python, fails, or has the name of another module.
    """
    path = Path(file).resolve()
    named = sys.modules.get(path.stem) or importlib.util.find_spec(path.stem)
    origin = getattr(named, "__file__", None) or getattr(named, "origin", None)
    if path.stem in sys.modules and origin == str(path):
        if path not in loaded:  # a program's own import
            loaded.append(path)
        return path
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise MetaugError(
            f"cannot import {file}: {'it is not a .py file' if path.is_file() else 'there is no such file'}"
        )
    if named is not None and origin != str(path):
        raise MetaugError(f"cannot import {file}: {path.stem!r} is the name of another module, give it one of its own")
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[path.stem]
        sys.path.remove(str(path.parent))
        lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        what = error.msg if isinstance(error, SyntaxError) else error
        raise MetaugError(f"cannot import {file}: line {line}: {type(error).__name__}: {what}") from None
    loaded.append(path)
    return path


@contextmanager
def name_failures(config: Config, doing: str) -> Iterator[None]:
    """Context manager: an error while the user's own encoder, method or views are used becomes a MetaugError that says whose code
    it was, where, and in what. Without code of the user's own an error stays what it is."""
    try:
        yield
    except MetaugError:
        raise
    except Exception as error:
        if not (own := config.own_code()):
            raise
        raise MetaugError(f"{' and '.join(own)}: {doing} failed{place(error)}: {name_error(error)}") from error


def place(error: BaseException) -> str:
    """The file and line of the user's code that raised the error; nothing if none of it was being run."""
    lines = [
        f" ({Path(frame.f_code.co_filename).name}, line {line})"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if sources.users(frame.f_globals.get("__name__"))
    ]
    return lines[-1] if lines else ""


def name_error(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    said = str(error).strip().splitlines() or ["it says nothing more"]
    return f"{type(error).__name__}: {said[0][:200]}"
