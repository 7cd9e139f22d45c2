"""Images by number: arrays, or files decoded when read; kept on the device, or streamed to it.

Whatever is wrong with a file is one sentence (`DataError`).
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from metaug_core.errors import MetaugError, one_line

CHUNK = 256  # images read at a time to fill the device
FAULTS = {
    FileNotFoundError: "is missing",
    PermissionError: "may not be read: permission denied",
    NotADirectoryError: "is a file where a folder is expected",
    IsADirectoryError: "is a folder where a file is expected",
}


class DataError(MetaugError):
    """A data set is missing, damaged or not what it should be; one sentence that names what and where."""


@contextmanager
def explain_os_errors(path: str | Path) -> Iterator[None]:
    """Context manager: an OSError becomes a `DataError` about the file that it names, or `path`."""
    try:
        yield
    except OSError as error:
        why = FAULTS.get(type(error), f"cannot be read: {error.strerror or error}")
        raise DataError(f"{error.filename or path} {why}") from None


def read_bytes(path: str | Path) -> bytes:
    """All of a file. DataError if it is not there, may not be read, or is a pipe, socket or device, which need not have an end."""
    with explain_os_errors(path):
        mode = os.stat(path).st_mode
        if not (S_ISREG(mode) or S_ISDIR(mode)):
            raise DataError(f"{path} is a pipe, a socket or a device where a file is expected")
        with open(path, "rb") as file:
            return file.read()


# --- one file


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB: transparency over white, 16-bit grey as 8 bits. ValueError for grey of unknown range."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("grey values beyond 16 bits")
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("grey values are floats")
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def read_image(path: str | Path, size: int) -> np.ndarray:
    """The central square of the upright image, resized to uint8 (3, size, size) if it has another size.

    Raises DataError, naming the file, if it cannot be opened or decoded.
    """
    try:
        with Image.open(BytesIO(read_bytes(path))) as image:
            image.draft(None, (2 * size, 2 * size))  # a large JPEG is decoded at a fraction of its size
            ImageOps.exif_transpose(image, in_place=True)
            rgb = to_rgb(image)
        if rgb.size != (size, size):
            width, height = rgb.size
            side = min(rgb.size)
            box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
            rgb = rgb.resize((size, size), Image.Resampling.BILINEAR, box, reducing_gap=2.0)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{path} is not an image, or of an unknown format") from None
    except Exception as error:  # Pillow's plugins raise nearly anything for a damaged file
        raise DataError(f"{path} is not a readable image: {one_line(error)}") from None
    return np.asarray(rgb).transpose(2, 0, 1)


# --- many images


class Rows:
    """Images in consecutive arrays uint8 (n, 3, H, W), in memory or mapped. Several threads may read at once."""

    def __init__(self, arrays: Sequence[np.ndarray]):
        self.arrays, self.ends = arrays, np.cumsum([len(array) for array in arrays])
        self.shape = (int(self.ends[-1]), *arrays[0].shape[1:])

    def read(self, index: np.ndarray) -> np.ndarray:
        """int64 (B,) in [0, N) -> uint8 (B, 3, H, W)."""
        out = np.empty((len(index), *self.shape[1:]), np.uint8)
        part = np.searchsorted(self.ends, index, "right")
        for number, array in enumerate(self.arrays):
            out[part == number] = array[index[part == number] - self.ends[number] + len(array)]
        return out


class Files:
    """Image files of any size and mode, decoded when read. Several threads may read at once."""

    def __init__(self, paths: Sequence[str | Path], size: int):
        self.paths, self.shape = paths, (len(paths), 3, size, size)

    def read(self, index: np.ndarray) -> np.ndarray:
        """int64 (B,) in [0, N) -> uint8 (B, 3, size, size). Raises DataError, naming the file."""
        out = np.empty((len(index), *self.shape[1:]), np.uint8)
        for place, number in enumerate(index):
            out[place] = read_image(self.paths[number], self.shape[-1])
        return out


def read_ahead(read: Callable[[Any], Any], rows: Iterable[Any], workers: int) -> Generator[Any, None, None]:
    """read(row) for each row, in order. `workers` threads read up to 2 `workers` rows ahead; 0: no threads."""
    if not workers:
        yield from map(read, rows)
        return
    pool = ThreadPoolExecutor(workers, "metaug-data")
    pending = deque()
    try:
        for row in rows:
            pending.append(pool.submit(read, row))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # also when the consumer stops early
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, eq=False)
class Images:
    """Images in memory: pixels uint8 (N, 3, H, W) and labels int64 (N,) on one device, -1 for unlabelled."""

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor | slice) -> "Images":
        """The images at int64 (M,) indices; a slice shares memory."""
        return replace(self, pixels=self.pixels[indices], labels=self.labels[indices])

    def batches(self, rows: Sequence[Tensor] | Tensor) -> Iterator[Tensor]:
        """For each row of int64 (B,) indices, on any device: uint8 (B, 3, H, W) on the device."""
        rows = rows.to(self.pixels.device) if isinstance(rows, Tensor) else rows
        for row in rows:
            yield self.pixels[row.to(self.pixels.device, non_blocking=True)]


@dataclass(frozen=True, eq=False)
class StreamedImages:
    """As `Images`, and the same bytes for the same rows, but read by threads when they are needed."""

    source: Any  # Rows, Files, or an object with their `shape` and `read`
    index: np.ndarray  # int64 (N,), the numbers of these images in the source
    labels: Tensor
    classes: tuple[str, ...]
    workers: int = 2

    def __len__(self) -> int:
        return len(self.index)

    def take(self, indices: Tensor | slice) -> "StreamedImages":
        """The images at int64 (M,) indices, or in a slice."""
        index = self.index[indices if isinstance(indices, slice) else indices.cpu().numpy()]
        return replace(self, index=index, labels=self.labels[indices])

    def batches(self, rows: Sequence[Tensor] | Tensor) -> Iterator[Tensor]:
        """For each row of int64 (B,) indices, on any device: uint8 (B, 3, H, W) on the device. Raises DataError."""
        device = self.labels.device
        cuda = device.type == "cuda"

        def prepare(row: Tensor) -> tuple[np.ndarray, Tensor | None]:
            # Pinned memory is taken here: a worker that called CUDA while a step is captured would spoil the capture.
            pinned = torch.empty(len(row), *self.source.shape[1:], dtype=torch.uint8, pin_memory=True) if cuda else None
            return self.index[row.cpu().numpy()], pinned

        def read(request: tuple[np.ndarray, Tensor | None]) -> Tensor:
            index, pinned = request
            pixels = torch.from_numpy(self.source.read(index))
            return pixels if pinned is None else pinned.copy_(pixels)

        rows = rows.cpu() if isinstance(rows, Tensor) else rows
        with closing(read_ahead(read, map(prepare, rows), self.workers)) as batches:
            yield from copy_ahead(batches, device) if cuda else (pixels.to(device) for pixels in batches)


AnyImages = Images | StreamedImages


def spread_rows(count: int, most: int) -> Tensor:
    """Up to `most` of so many rows, evenly spaced (image folders are sorted by class): int64."""
    return torch.linspace(0, count - 1, min(most, count)).long()


def copy_ahead(batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Copy pinned batches to a CUDA device, each on a stream of its own beside the step before it."""
    side = torch.cuda.Stream(device)
    pending: tuple[Tensor, torch.cuda.Event] | None = None
    for pixels in batches:
        with torch.cuda.stream(side):
            copy, copied = pixels.to(device, non_blocking=True), torch.cuda.Event()
        copied.record(side)
        if pending is not None:
            yield receive(*pending)
        pending = copy, copied
    if pending is not None:
        yield receive(*pending)


def receive(batch: Tensor, copied: torch.cuda.Event) -> Tensor:
    """Let the current stream wait for a batch that another stream copies."""
    here = torch.cuda.current_stream(batch.device)
    here.wait_event(copied)
    batch.record_stream(here)  # its memory was taken on the other stream
    return batch


def read_all(source: Rows | Files, index: np.ndarray, device: torch.device, workers: int) -> Tensor:
    """The images at int64 (M,) `index`, read by threads: uint8 (M, 3, H, W) on the device."""
    pixels = torch.empty((len(index), *source.shape[1:]), dtype=torch.uint8, device=device)
    chunks = [index[start : start + CHUNK] for start in range(0, len(index), CHUNK)]
    for number, chunk in enumerate(read_ahead(source.read, chunks, workers)):
        pixels[number * CHUNK : number * CHUNK + len(chunk)] = torch.from_numpy(chunk).to(device)
    return pixels
