"""Only one process works on a run: on one machine by a lock of the operating system, between machines by a heartbeat.

The operating system frees `.lock` when its holder dies, however it dies. A network file system may not pass such locks on to
other machines. The holder therefore also writes `.owner` and touches it every BEAT_SECONDS; for other machines it is alive until
the file is STALE_SECONDS old by the clock of the file system.
"""

import json
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from metaug_core.errors import MetaugError

LOCK, OWNER = ".lock", ".owner"
BEAT_SECONDS, STALE_SECONDS = 10.0, 60.0
TAKE_SECONDS = 0.3  # `is_held` of another process has the lock for a moment

_held_here = threading.local()  # folders whose lock this thread has: it may take it again


class HeldError(MetaugError):
    """Another process holds the lock."""


def machine_id() -> str:
    """What tells this machine, since it was started, from others: containers on it share its locks."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


@contextmanager
def hold(folder: Path) -> Iterator[bool]:
    """Hold the lock of an existing folder; a thread that holds it already may take it again (then False is yielded, else True).
    Raises HeldError, OSError."""
    folders: set[Path] = _held_here.__dict__.setdefault("folders", set())
    key = folder.resolve()
    if key in folders:
        yield False
        return
    try:
        system_lock = FileLock(folder / LOCK, timeout=TAKE_SECONDS).acquire()
    except Timeout:
        raise HeldError(f"another process holds {folder}") from None
    with system_lock:
        token = take_ownership(folder)
        over = threading.Event()
        heart = threading.Thread(target=beat, args=(folder / OWNER, over), daemon=True)
        heart.start()
        folders.add(key)
        try:
            yield True
        finally:
            folders.discard(key)
            over.set()
            heart.join()
            if read_owner(folder).get("token") == token:
                (folder / OWNER).unlink(missing_ok=True)


def is_held(folder: Path) -> bool:
    """Whether a process, on this machine or another, holds the lock of a folder."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            owner = read_owner(folder)
            return bool(owner) and owner["machine"] != machine_id() and not is_stale(folder)
    except Timeout:
        return True
    except OSError:  # not a file, or not ours to open: whoever wants to hold it is told
        return False


def beat(owner_file: Path, over: threading.Event) -> None:
    while not over.wait(BEAT_SECONDS):
        with suppress(OSError):  # a full disk or an unmounted one: the next beat tries again
            os.utime(owner_file)


def read_owner(folder: Path) -> dict[str, Any]:
    """Token and machine of the last owner; {} if there is none or the file is torn."""
    try:
        return dict(json.loads((folder / OWNER).read_text()))
    except (OSError, ValueError):
        return {}


def is_stale(folder: Path) -> bool:
    """Whether the owner has not touched its file for STALE_SECONDS, by the clock of the file system."""
    probe = folder / f".writing-{uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime - (folder / OWNER).stat().st_mtime > STALE_SECONDS
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)


def take_ownership(folder: Path) -> str:
    """Write `.owner`, with the operating system's lock held -> its token. Raises HeldError while another machine's owner is alive.

    An owner of this machine is dead, since the lock was free. Of several machines that find one stale, the one that makes the
    marker file replaces it; whoever comes later reads another token.
    """
    token, owner_file = uuid4().hex, folder / OWNER
    content = json.dumps({"token": token, "machine": machine_id(), "name": platform.node(), "process": os.getpid()})
    try:
        create_whole(owner_file, token, content)
        return token
    except FileExistsError:
        other = read_owner(folder)
    if other.get("machine") == machine_id():
        replace_owner(folder, token, content)
        return token
    where = f"a process on {other.get('name', 'another machine')} holds {folder}"
    if not is_stale(folder):
        raise HeldError(where)
    marker = folder / f".owner-after-{other.get('token', 'torn')}"
    try:
        marker.open("x").close()
    except FileExistsError:
        raise HeldError(where) from None
    try:
        if read_owner(folder).get("token") != other.get("token"):
            raise HeldError(where)
        replace_owner(folder, token, content)
    finally:
        marker.unlink(missing_ok=True)
    return token


def create_whole(path: Path, token: str, content: str) -> None:
    """Create a file with its content in one step. FileExistsError if there is one."""
    temporary = path.with_name(f".writing-{token}")
    temporary.write_text(content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: two steps
        with path.open("x") as file:
            file.write(content)
    finally:
        temporary.unlink(missing_ok=True)


def replace_owner(folder: Path, token: str, content: str) -> None:
    temporary = folder / f".writing-{token}"
    temporary.write_text(content)
    os.replace(temporary, folder / OWNER)
