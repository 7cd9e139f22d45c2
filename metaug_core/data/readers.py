"""Readers of the files of image data sets. They return what any loader returns (`datasets.RawSplits`).

Whatever is wrong with a file is one sentence (`DataError`). No file can run code: the pickles of CIFAR are read without making
any object that they name.
"""

import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metaug_core.data.images import DataError, explain_os_errors

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
# What a pickle names to describe a numpy array. None of it is called: harmless things stand in for it.
ARRAY_NAMES = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
               ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}  # fmt: skip


def check_labels(labels: np.ndarray, classes: int, where: object, lowest: int = 0) -> np.ndarray:
    """`labels`, int (N,), if all lie in [lowest, classes); DataError otherwise."""
    if len(wrong := labels[(labels < lowest) | (labels >= classes)]):
        raise DataError(f"{where} has label {wrong[0]}, outside {lowest}..{classes - 1}")
    return labels


# --- CIFAR and STL-10


class _Inert:
    """Stands in for every object that a pickle may name: stores its arguments and does nothing."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments

    def __setstate__(self, state: Any):
        self.state = state


class _WantsCode(Exception):
    """A pickle names an object that would have to be imported."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAY_NAMES:
            raise _WantsCode(f"{module}.{name}")
        return _Inert if module != "_codecs" else lambda text, _: text.encode("latin1")  # how Python 3 pickles bytes


def _plain(value: Any) -> Any:
    """The ndarray of a pickled uint8 array, by its state (version, shape, dtype, fortran, bytes); other values as they are."""
    if not isinstance(value, _Inert):
        return value
    _, shape, kind, fortran, raw = value.state
    if kind.arguments[0] not in ("u1", b"u1") or fortran:
        raise ValueError("not a plain uint8 array")
    return np.frombuffer(raw, np.uint8).reshape(shape)


def read_pickle(path: Path) -> dict[str, Any]:
    """The dict in a pickle of Python 2 or 3 that holds plain values and uint8 arrays; Python 2's text comes as bytes.

    Nothing the file names is imported or called. Raises DataError for a file that wants more, or is damaged.
    """
    try:
        with explain_os_errors(path), open(path, "rb") as file:
            content = _Unpickler(file, encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: _plain(value) for key, value in content.items()}
    except DataError:
        raise
    except _WantsCode as wanted:
        raise DataError(f"{path} asks for {wanted}, which would run code from the file: refused") from None
    except Exception:  # a damaged pickle raises nearly anything
        raise DataError(f"{path} is truncated or not a file of this data set") from None


def read_records(path: Path, record: Any, mapped: bool = False) -> np.ndarray:
    """A binary file as (N,) of the dtype `record`; mapped: read when indexed. DataError if it is empty or truncated."""
    record = np.dtype(record)
    with explain_os_errors(path):
        size = os.stat(path).st_size
        if not size or size % record.itemsize:
            raise DataError(f"{path} is truncated: {size} bytes are no whole number of {record.itemsize}-byte records")
        return np.memmap(path, record, "r") if mapped else np.fromfile(path, record)


def read_lines(path: Path) -> list[str]:
    """The non-blank lines of a text file, stripped."""
    try:
        with explain_os_errors(path):
            return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise DataError(f"{path} is not a text file") from None


def _cifar_batch(path: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 3, 32, 32) and labels int64 (N,) of a CIFAR file. `key` names the labels in the Python version."""
    fine = key == "fine_labels"
    if path.suffix == ".bin":  # label bytes, the last of which is the fine one, then R, G, B
        records = read_records(path, [("labels", np.uint8, (1 + fine,)), ("pixels", np.uint8, (3, 32, 32))])
        images, labels = records["pixels"], records["labels"][:, -1].astype(np.int64)
    else:
        batch = read_pickle(path)
        try:
            images, labels = batch["data"].reshape(-1, 3, 32, 32), np.array(batch[key], np.int64)
        except (KeyError, ValueError, TypeError, AttributeError):
            raise DataError(f"{path} lacks 32 x 32 images 'data' or their {key!r}") from None
    if not len(images) or labels.shape != images.shape[:1]:
        raise DataError(f"{path} has {len(images)} images, but labels of shape {labels.shape}")
    return images, check_labels(labels, 100 if fine else 10, path)


def read_cifar(root: Path, fine: bool) -> tuple:
    """CIFAR-10, or (fine) CIFAR-100 with its fine labels, below `root`: the binary version if it is there, else Python's."""
    if fine:
        binary, python, files = "cifar-100-binary", "cifar-100-python", ["train", "test"]
        key, meta, text = "fine_label", "meta", "fine_label_names.txt"
    else:
        binary, python = "cifar-10-batches-bin", "cifar-10-batches-py"
        files = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
        key, meta, text = "label", "batches.meta", "batches.meta.txt"
    folder = root / binary
    if folder.is_dir():
        files = [f"{file}.bin" for file in files]
        classes = read_lines(folder / text)
    else:
        folder = root / python
        names = read_pickle(folder / meta).get(f"{key}_names", [])
        classes = [name.decode() if isinstance(name, bytes) else str(name) for name in names]
    *train, (test, test_labels) = [_cifar_batch(folder / file, f"{key}s") for file in files]
    if len(classes) != (100 if fine else 10):
        raise DataError(f"{folder} names {len(classes)} classes, not {100 if fine else 10}")
    return [images for images, _ in train], np.concatenate([labels for _, labels in train]), test, test_labels, classes


def read_stl10(root: Path) -> tuple:
    """STL-10 below `root`, unlabelled images with label -1. In the files columns come before rows, and labels start at 1."""
    folder = root / "stl10_binary"
    images, labels = {}, {}
    classes = read_lines(folder / "class_names.txt")
    for part in ("train", "unlabeled", "test"):
        file = folder / f"{part}_X.bin"
        images[part] = read_records(file, [("pixels", np.uint8, (3, 96, 96))], mapped=True)["pixels"].swapaxes(2, 3)
        labels[part] = np.full(len(images[part]), -1)
        if part != "unlabeled":
            names = folder / f"{part}_y.bin"
            labels[part] = check_labels(read_records(names, np.uint8).astype(np.int64), len(classes) + 1, names, 1) - 1
        if len(labels[part]) != len(images[part]):
            raise DataError(f"{file} has {len(images[part])} images, but {len(labels[part])} labels lie beside it")
    both = np.concatenate([labels["train"], labels["unlabeled"]])
    return [images["train"], images["unlabeled"]], both, images["test"], labels["test"], classes


# --- folders of images


def class_names(folder: Path) -> list[str]:
    """The sorted names of the folders in a folder, without hidden ones; DataError if there are none."""
    with explain_os_errors(folder), os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder} has no folders, one for each class")
    return names


def images_in(folder: Path, classes: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Paths and labels int64 (N,) of the images at any depth below folder/CLASS, by class and name, without hidden ones."""

    def refuse(error: OSError):
        raise error

    paths, labels = [], []
    for label, name in enumerate(classes):
        images = []
        with explain_os_errors(folder / name):
            for place, folders, files in os.walk(folder / name, onerror=refuse):
                folders[:] = [one for one in folders if not one.startswith(".")]
                images += [
                    os.path.join(place, file) for file in files if file.lower().endswith(EXTENSIONS) and file[0] != "."
                ]
        if not images:
            raise DataError(f"{folder / name} has no images ({', '.join(EXTENSIONS)})")
        paths += sorted(images)
        labels += [label] * len(images)
    return paths, np.array(labels)


def read_folder(root: Path) -> tuple:
    """root/train/CLASS/* and root/test/CLASS/* (else val); or root/CLASS/*, of which every fifth image is for the test."""
    names = class_names(root)
    with explain_os_errors(root):
        split = (root / "train").exists()
    if split or set(names) <= {"test", "val"}:
        train, test = root / "train", root / ("val" if "val" in names and "test" not in names else "test")
        classes = class_names(train)
        if odd := sorted(set(classes) ^ set(class_names(test))):
            raise DataError(f"{train} and {test} differ in classes: only one of them has {odd[0]!r}")
        return *images_in(train, classes), *images_in(test, classes), classes
    paths, labels = images_in(root, names)
    place = np.arange(len(labels)) - np.searchsorted(labels, labels)  # within the class
    if len(alone := np.flatnonzero(np.bincount(labels) < 2)):
        raise DataError(f"{root / names[alone[0]]} has one image, where training and test need one each")
    train, test = np.flatnonzero(place % 5), np.flatnonzero(place % 5 == 0)
    return [paths[n] for n in train], labels[train], [paths[n] for n in test], labels[test], names


def read_tiny_imagenet(root: Path) -> tuple:
    """Tiny ImageNet below `root`. Its labelled `val` is the test split; a class is named by the first of its words."""
    folder = root / "tiny-imagenet-200"
    known = read_lines(folder / "wnids.txt")
    words = {name: rest for name, _, rest in (line.partition("\t") for line in read_lines(folder / "words.txt"))}
    notes = [line.split("\t") for line in read_lines(folder / "val" / "val_annotations.txt")]
    if wrong := [note for note in notes if len(note) < 2 or note[1] not in known]:
        raise DataError(f"{folder / 'val' / 'val_annotations.txt'} gives {wrong[0][0]!r} no class of wnids.txt")
    test = [str(folder / "val" / "images" / note[0]) for note in notes]
    classes = [words.get(name, name).partition(",")[0] for name in known]
    return *images_in(folder / "train", known), test, np.array([known.index(note[1]) for note in notes]), classes
