"""Runs removed for good: all that are asked for, or none."""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from metaug_core.errors import MetaugError
from metaug_core.runs import lock


def refuse_used(folders: Sequence[Path]) -> None:
    """MetaugError if one of these runs is being trained or evaluated, or is a link to a folder elsewhere."""
    for folder in folders:
        if folder.is_symlink():
            raise MetaugError(f"{folder} is a link: nothing was removed")
        if lock.is_held(folder):
            raise MetaugError(
                f"{folder.name} is in use (`metaug stop {folder.name}` stops training): nothing was removed"
            )


def measure_size(folder: Path) -> float:
    """How many megabytes a run's files have."""
    return sum(file.lstat().st_size for file in folder.rglob("*")) / 1e6


def remove(folders: Sequence[Path]) -> None:
    """Remove these runs with everything in their folders. MetaugError, and none is removed, as `refuse_used`."""
    refuse_used(folders)
    with ExitStack() as stack:
        for folder in folders:  # all before any: else some could be removed and some not
            stack.enter_context(lock.hold(folder))
        for folder in folders:
            empty_folder(folder)
    for folder in folders:
        shutil.rmtree(folder)


def empty_folder(folder: Path) -> None:
    """Remove what is in a run's folder but the files of its lock, which is held."""
    for path in folder.iterdir():
        if path.name in (lock.LOCK, lock.OWNER):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
