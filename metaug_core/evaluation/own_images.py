"""Features of images that are in no data set: of a folder, with or without classes, or of arrays."""

import os
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from metaug_core.data.images import DataError, Files, Rows, StreamedImages, explain_os_errors, read_bytes
from metaug_core.data.readers import TEST, TRAIN, ImageFolders
from metaug_core.errors import MetaugError, one_line
from metaug_core.evaluation.crops import split_rows
from metaug_core.extensions import name_failures
from metaug_core.runs.files import write
from metaug_core.runs.store import Run
from metaug_core.runtime.device import arithmetic, explain_memory, pick_device


class OwnImages(NamedTuple):
    """Images that are read when they are needed, and what is known of them."""

    source: Rows | Files
    names: list[str]  # of N images: path below the folder, or number
    labels: np.ndarray  # int64 (N,), in [0, classes); -1: unknown
    classes: list[str]


def find_images(place: Path, size: int) -> OwnImages:
    """The images of a folder, or of an .npy or .npz file. size: that image files are read with. Raises DataError.

    Folder: all at any depth; its own folders are the classes, if no image is outside of them. File: uint8 (N, 3, H, W) or
    (N, H, W, 3); in an .npz the array `images`, and `labels` (N,) if it is there."""
    if place.suffix.lower() in (".npy", ".npz") and place.is_file():
        return read_arrays(place)
    folders = ImageFolders(place)
    with explain_os_errors(place):
        paths = folders.list_below(place)
    folders.warn()
    if not paths:
        raise DataError(f"{place} has no images")
    names = [os.path.relpath(path, place).replace(os.sep, "/") for path in paths]
    tops = [name.partition("/")[0] if "/" in name else None for name in names]
    classes = sorted({top for top in tops if top is not None}) if None not in tops else []
    if classes and {name.casefold() for name in classes} <= {*TRAIN, *TEST}:
        raise DataError(f"{place} holds {' and '.join(classes)}, which are not classes: give one of these folders")
    labels = np.array([classes.index(str(top)) if classes else -1 for top in tops])
    return OwnImages(Files(paths, size), names, labels, classes)


def read_arrays(file: Path) -> OwnImages:
    """As `find_images`, of an .npy or .npz file. Nothing in it is unpickled."""
    try:
        if file.suffix.lower() == ".npy":
            arrays = {"images": np.load(file, mmap_mode="r", allow_pickle=False)}
        else:
            arrays = dict(np.load(BytesIO(read_bytes(file)), allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file} cannot be read: {one_line(error)}") from None
    except Exception as error:  # zipfile and zlib raise errors of their own
        raise DataError(f"{file} is damaged: {one_line(error)}") from None
    images = arrays.get("images")
    if images is None:
        raise DataError(f"{file} has no array `images`, only {', '.join(arrays) or 'nothing'}")
    if images.ndim == 4 and images.shape[1] != 3 and images.shape[3] == 3:
        images = images.transpose(0, 3, 1, 2)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise DataError(f"{file}: images must be uint8 (N, 3, H, W) or (N, H, W, 3), not {images.dtype} {images.shape}")
    labels = arrays.get("labels", np.full(len(images), -1))
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise DataError(f"{file}: labels must be whole numbers ({len(images)},), not {labels.dtype} {labels.shape}")
    return OwnImages(Rows([images]), [str(n) for n in range(len(images))], labels.astype(np.int64), [])


@explain_memory()
def extract(run: Run, place: Path, device: str | None = None) -> dict[str, np.ndarray]:
    """names (N,), features float32 (N, D), labels int64 (N,), -1 for unknown, and classes (C,) of the images of `find_images`, by
    a finished run's encoder in the run's precision. Image files are read as the run's are. Raises MetaugError."""
    config, encoder = run.config, run.encoder()
    found = find_images(place, config.stored_size or config.image_size)
    device = device or pick_device(config.device)
    labels = torch.from_numpy(found.labels).to(device)
    images = StreamedImages(found.source, np.arange(len(labels)), labels, tuple(found.classes), config.workers)
    encoder, rows = encoder.to(device), split_rows(images)
    with arithmetic(config.precision), name_failures(config, "features"), torch.no_grad():
        bar = tqdm(images.batches(rows), "features", len(rows), disable=None, leave=False)
        features = torch.cat([encoder(pixels).cpu() for pixels in bar])
    if wrong := int((~features.isfinite().all(1)).sum()):
        raise MetaugError(f"the features of {wrong} of {len(features)} images are NaN or infinite in {config.name()}")
    names, classes = np.array(found.names), np.array(found.classes, dtype=np.str_)
    return {"names": names, "features": features.numpy(), "labels": found.labels, "classes": classes}


def write_features(run: Run, place: Path, out: Path) -> tuple[int, int]:
    """`extract` into an .npz file -> (N, D). Raises MetaugError, also if `out` is a folder or the images themselves."""
    if out.is_dir() or (out.exists() and place.exists() and out.samefile(place)):
        raise MetaugError(f"{out} is {'a folder' if out.is_dir() else 'the images'}: name a file for the features")
    arrays, content = extract(run, place), BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    write(out, content.getvalue())
    return arrays["features"].shape
