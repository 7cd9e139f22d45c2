"""Files of a run: written whole or not at all, so that no kill or full disk can tear one, and read with one sentence for what is
damaged. Tensors are safetensors with their scalars in the header, all else is JSON: nothing is ever unpickled."""

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from uuid import uuid4

from metaug_core.errors import MetaugError

if TYPE_CHECKING:  # torch and pandas are imported where they are needed: a list of runs needs neither
    import pandas as pd
    from torch import Tensor, nn

FORMAT = "metaug-run-1"


class StoreError(MetaugError):
    """A run's folder cannot be written or does not hold what it should."""


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Context manager: an OSError while path is written becomes a StoreError that says so."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}; what was saved before is kept") from None


def write(path: Path, content: bytes, before: Path | None = None) -> None:
    """Write all of a file or nothing: a temporary file beside it, fsynced, then renamed over it. Its mode follows the umask.

    before: the name that what stood at path gets; None: it is replaced. Raises StoreError (full disk, no permission); what stood
    at path before stays.
    """
    temporary = path.with_name(f".writing-{uuid4().hex}")
    with explain_write_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if before is not None and path.exists():
                os.replace(path, before)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def remove(path: Path) -> None:
    """Remove a file, if it is there. Raises StoreError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot remove {path}: {error.strerror or error}") from None


def write_json(path: Path, value: Any) -> None:
    write(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def open_file(path: Path) -> IO[bytes]:
    """A file to read. OSError for what is none: a folder, or a pipe or device, which need not have an end."""
    if path.exists() and not path.is_file():
        raise OSError("it is not a regular file")
    return path.open("rb")


def read_json(path: Path, kind: type = object) -> Any:
    """The value in a JSON file. StoreError if it cannot be read or is not of that kind (dict, list)."""
    try:
        with open_file(path) as file:
            value = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"cannot read {path}: {error}") from None
    if not isinstance(value, kind):
        raise StoreError(f"cannot read {path}: it holds no {'object' if kind is dict else kind.__name__}")
    return value


def read_objects(path: Path, kind: type) -> Any:
    """A dict or list of JSON objects; empty if there is no file. StoreError if it is something else."""
    value = read_json(path, kind) if os.path.lexists(path) else kind()
    if not all(isinstance(one, dict) for one in (value.values() if kind is dict else value)):
        raise StoreError(f"cannot read {path}: it holds no {kind.__name__} of objects")
    return value


def write_tensors(
    path: Path, tensors: "dict[str, Tensor]", scalars: dict[str, Any], before: Path | None = None
) -> None:
    """One safetensors file; the scalars and a checksum ride in its header, so that nothing can come apart. before: as `write`."""
    import safetensors.torch

    stored, places = {}, set()
    for name, tensor in tensors.items():
        t = tensor.detach().cpu().contiguous()
        shared = t.untyped_storage().data_ptr() in places  # by tied weights, which safetensors does not write
        stored[name] = t.clone() if shared else t
        places.add(stored[name].untyped_storage().data_ptr())
    header = {"format": FORMAT, "scalars": json.dumps(scalars), "crc32": checksum(stored)}
    write(path, safetensors.torch.save(stored, header), before)


def checksum(tensors: "dict[str, Tensor]") -> str:
    """CRC-32 over the bytes of all tensors on the CPU, in the order of their names."""
    import torch

    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def read_tensors(path: Path) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """What `write_tensors` wrote. StoreError if the file is missing, torn or somebody else's."""
    from safetensors import SafetensorError, safe_open

    try:
        with open_file(path), safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"cannot read {path}: {error}") from None
    if metadata.get("format") != FORMAT:
        raise StoreError(f"{path} was not written by this workbook (format {metadata.get('format')!r}, not {FORMAT!r})")
    if metadata.get("crc32", crc := checksum(tensors)) != crc:  # files of before it was written have none
        raise StoreError(f"cannot read {path}: its tensors are damaged (CRC-32 {crc}, not {metadata['crc32']})")
    try:
        return tensors, dict(json.loads(metadata["scalars"]))
    except (KeyError, ValueError, TypeError, RecursionError):
        raise StoreError(f"cannot read {path}: its scalars are damaged") from None


def weights(module: "nn.Module") -> "dict[str, Tensor]":
    """Parameters and buffers of a module by name, also the buffers that are not in its `state_dict` (persistent=False)."""
    return dict(module.named_buffers(remove_duplicate=False)) | module.state_dict()


def load_module(module: "nn.Module", tensors: "dict[str, Tensor]", prefix: str, source: Path) -> None:
    """Load the tensors under prefix into module. StoreError if a name or a shape is not the module's, or a number not finite."""
    values = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    own = weights(module)
    if values.keys() != own.keys():
        name = sorted(values.keys() ^ own.keys())[0]
        raise StoreError(f"{source} does not fit this run's config: {prefix}{name} is in only one of the two")
    for name, value in values.items():
        if value.shape != own[name].shape:
            shapes = f"{tuple(value.shape)} instead of {tuple(own[name].shape)}"
            raise StoreError(f"{source} does not fit this run's config: {prefix}{name} has shape {shapes}")
        if not (value.isfinite() | (value == own[name])).all():  # a mask may hold -inf from the beginning
            raise StoreError(
                f"{source} is damaged: {prefix}{name} is not finite; train the run again in another runs_dir"
            )
    in_state_dict = module.state_dict().keys()
    module.load_state_dict({name: value for name, value in values.items() if name in in_state_dict})
    for name in values.keys() - in_state_dict:
        own[name].copy_(values[name])


def is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def is_row(row: Any, columns: Sequence[str]) -> bool:
    """Whether it is an object with numbers in these columns."""
    return isinstance(row, dict) and all(is_number(row.get(name)) for name in columns)


def rows(path: Path, columns: Sequence[str] = ("step",)) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file; a torn last line (a kill while writing) is not one. [] if there is no file. StoreError
    if a line is not an object with numbers in these columns."""
    if not os.path.lexists(path):
        return []
    try:
        with open_file(path) as file:
            table = [json.loads(line) for line in file.read().split(b"\n")[:-1]]
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"cannot read {path}: {error}") from None
    if not all(is_row(row, columns) for row in table):
        raise StoreError(f"{path} does not hold rows of metrics")
    return table


def read_numbers(path: Path, columns: Sequence[str]) -> "pd.DataFrame":
    """The rows of a JSON-lines file as a table. StoreError as `rows`, and if any value is not a number."""
    import pandas as pd

    table = pd.DataFrame(rows(path, columns))
    if len(other := table.select_dtypes(exclude="number").columns):
        raise StoreError(f"{path} does not hold rows of metrics: {other[0]} is not a number everywhere")
    return table


def last_row(path: Path, columns: Sequence[str]) -> dict[str, Any]:
    """The last whole line of a JSON-lines file; {} if there is none with numbers in these columns. Reads only its end."""
    try:
        with open_file(path) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().split(b"\n")[:-1]
        row = json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return row if is_row(row, columns) else {}


def append(path: Path, new: Iterable[dict[str, Any]]) -> None:
    """Add rows to a JSON-lines file. StoreError if the disk is full."""
    append_bytes(path, "".join(json.dumps(row) + "\n" for row in new).encode())


def append_bytes(path: Path, content: bytes) -> None:
    """Add to a file. StoreError if the disk is full."""
    with explain_write_errors(path), path.open("ab") as file:
        file.write(content)


def keep_rows(path: Path, last_step: int) -> None:
    """Drop the rows after last_step: a resumed run writes them again."""
    kept = [row for row in rows(path) if row["step"] <= last_step]
    write(path, "".join(json.dumps(row) + "\n" for row in kept).encode())


def is_newer(file: Path, other: Path) -> bool:
    """Whether a file is there and was not written before the other, which is there."""
    return file.exists() and file.stat().st_mtime_ns >= other.stat().st_mtime_ns


def modified(path: Path) -> float:
    """When a file was written, in seconds since the epoch; 0 if it is not there."""
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def sync(path: Path) -> None:
    """Push a file's rows to the disk itself."""
    with explain_write_errors(path), path.open("a") as file:
        os.fsync(file.fileno())
