"""A run's lock: one process has it, its death frees it, another machine's heartbeat keeps it, until it stops."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from metaug_core.runs import lock
from metaug_core.runs.lock import HeldError, hold, is_held

HOLDER = """
import sys, time
from pathlib import Path
from metaug_core.runs.lock import hold
with hold(Path(sys.argv[1])):
    print("holds", flush=True)
    time.sleep(600)
"""


def start_holder(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    return process


def elsewhere(folder: Path, seconds_ago: float) -> None:
    """As if a process of another machine had the lock and last touched it so long ago."""
    (folder / lock.OWNER).write_text(
        json.dumps({"token": "theirs", "machine": "another", "name": "node7", "process": 1})
    )
    then = time.time() - seconds_ago
    os.utime(folder / lock.OWNER, (then, then))


def test_another_process_keeps_it_and_its_death_frees_it_at_once(tmp_path):
    assert not is_held(tmp_path)
    process = start_holder(tmp_path)
    assert is_held(tmp_path)
    with pytest.raises(HeldError), hold(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not is_held(tmp_path)
    with hold(tmp_path):
        assert is_held(tmp_path)
    assert not (tmp_path / lock.OWNER).exists()


def test_a_thread_that_has_it_may_take_it_again_and_no_other_thread(tmp_path):
    refused = []

    def take() -> None:
        try:
            with hold(tmp_path):
                pass
        except HeldError as error:
            refused.append(str(error))

    with hold(tmp_path) as newly:
        with hold(tmp_path) as again:
            assert (newly, again) == (True, False)
        other = threading.Thread(target=take)
        other.start()
        other.join()
        assert refused
        assert lock.read_owner(tmp_path)["process"] == os.getpid()  # the inner block did not let it go


def test_a_living_process_of_another_machine_keeps_it(tmp_path):
    (tmp_path / lock.LOCK).touch()
    elsewhere(tmp_path, lock.STALE_SECONDS - 20)
    assert is_held(tmp_path)
    with pytest.raises(HeldError, match="a process on node7 holds"), hold(tmp_path):
        pass
    assert lock.read_owner(tmp_path)["token"] == "theirs"


def test_a_dead_one_of_another_machine_gives_it_up(tmp_path):
    (tmp_path / lock.LOCK).touch()
    elsewhere(tmp_path, lock.STALE_SECONDS + 20)
    assert not is_held(tmp_path)
    with hold(tmp_path):
        assert lock.read_owner(tmp_path)["machine"] == lock.machine_id()
    assert [path.name for path in tmp_path.iterdir()] == [lock.LOCK]


def test_of_several_machines_that_find_it_stale_one_gets_it(tmp_path, monkeypatch):
    """The lock of the system does not reach from machine to machine: here every thread has its own."""
    taken, start = [], threading.Barrier(8)
    elsewhere(tmp_path, lock.STALE_SECONDS + 20)
    monkeypatch.setattr(lock, "machine_id", lambda: threading.current_thread().name)

    def take() -> None:
        start.wait()
        with suppress(HeldError):
            taken.append(lock.take_ownership(tmp_path))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    assert lock.read_owner(tmp_path)["token"] == taken[0]


def test_the_holder_is_heard_of_as_long_as_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    with hold(tmp_path):
        then = time.time() - 1000
        os.utime(tmp_path / lock.OWNER, (then, then))
        until = time.monotonic() + 10
        while (tmp_path / lock.OWNER).stat().st_mtime == then:
            assert time.monotonic() < until, "no beat"
            time.sleep(0.01)


def test_a_torn_owner_file_is_somebodys_until_it_is_stale(tmp_path):
    (tmp_path / lock.OWNER).write_text("{")
    with pytest.raises(HeldError), hold(tmp_path):
        pass
    then = time.time() - lock.STALE_SECONDS - 20
    os.utime(tmp_path / lock.OWNER, (then, then))
    with hold(tmp_path):
        pass
