"""The metrics of a run as TensorBoard events: a file that is made of metrics.jsonl when a session begins, and grows with it."""

import time
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from metaug_core.config import ConfigError
from metaug_core.runs import files, store

NOT_METRICS = ("step", "epoch")


def begin(run: store.Run) -> Path:
    """Write all rows of metrics.jsonl as events, in place of those of an earlier session -> the file, for `append`.

    Raises ConfigError if the package is not installed, StoreError if the file cannot be written.
    """
    folder = run.path / "tensorboard"
    earlier = [*folder.glob("events.out.tfevents.*")]
    file = folder / f"events.out.tfevents.{time.time_ns()}"
    files.write(file, encode(files.rows(run.path / "metrics.jsonl"), start=True))
    for one in earlier:
        one.unlink(missing_ok=True)
    return file


def append(file: Path, row: dict[str, Any]) -> None:
    """Add a row of metrics to the file. Raises StoreError."""
    files.append_bytes(file, encode([row]))


def encode(rows: Iterable[dict[str, Any]], start: bool = False) -> bytes:
    """Rows of metrics as events, one for each metric. start: with what begins a file and has a viewer forget what it read before.

    Raises ConfigError if the package is not installed.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        raise ConfigError("tensorboard True needs the tensorboard package: pip install tensorboard") from None
    now, buffer = time.time(), BytesIO()
    writer = RecordWriter(buffer)
    if start:
        writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        log = SessionLog(status=SessionLog.START)
        writer.write(Event(wall_time=now, step=0, session_log=log).SerializeToString())
    for row in rows:
        for name, value in row.items():
            if name in NOT_METRICS:
                continue
            summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
            writer.write(Event(wall_time=now, step=row["step"], summary=summary).SerializeToString())
    return buffer.getvalue()
