"""Readers of the files of image data sets. They return what any loader returns (`datasets.RawSplits`).

Whatever is wrong with a file is one sentence (`DataError`). No file can run code: the pickles of CIFAR are read without making
any object that they name.
"""

import os
import pickle
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from metaug_core.data.images import DataError, explain_os_errors, read_bytes

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation", "dev")  # the earliest counts
# What systems put beside the images, in lower case; folders and files with a dot in front are skipped too.
SYSTEM_FILES = {"__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information", "#recycle", "#snapshot",
                "thumbs.db", "desktop.ini", "__pycache__"}  # fmt: skip
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
        content = _Unpickler(BytesIO(read_bytes(path)), encoding="bytes").load()
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
            raise DataError(
                f"{path} is truncated: {size} bytes are not a whole number of {record.itemsize}-byte records"
            )
        return np.memmap(path, record, "r") if mapped else np.fromfile(path, record)


def read_lines(path: Path) -> list[str]:
    """The non-blank lines of a text file, stripped."""
    try:
        return [line.strip() for line in read_bytes(path).decode().splitlines() if line.strip()]
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


def list_cifar(root: Path, fine: bool) -> list[Path]:
    """The files with the images of CIFAR-10 or CIFAR-100 below `root`, that of the test last: the binary version if it is there."""
    names = ["train", "test"] if fine else [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    binary = root / ("cifar-100-binary" if fine else "cifar-10-batches-bin")
    if binary.is_dir():
        return [binary / f"{name}.bin" for name in names]
    return [root / ("cifar-100-python" if fine else "cifar-10-batches-py") / name for name in names]


def read_cifar(root: Path, fine: bool) -> tuple:
    """CIFAR-10, or (fine) CIFAR-100 with its fine labels, below `root`: the binary version if it is there, else Python's."""
    files = list_cifar(root, fine)
    folder, key = files[0].parent, "fine_label" if fine else "label"
    if files[0].suffix == ".bin":
        classes = read_lines(folder / ("fine_label_names.txt" if fine else "batches.meta.txt"))
    else:
        names = read_pickle(folder / ("meta" if fine else "batches.meta")).get(f"{key}_names", [])
        classes = [name.decode() if isinstance(name, bytes) else str(name) for name in names]
    *train, (test, test_labels) = [_cifar_batch(file, f"{key}s") for file in files]
    if len(classes) != (100 if fine else 10):
        raise DataError(f"{folder} names {len(classes)} classes, not {100 if fine else 10}")
    return [images for images, _ in train], np.concatenate([labels for _, labels in train]), test, test_labels, classes


def list_stl10(root: Path) -> list[Path]:
    """The files with the images and labels of STL-10 below `root`."""
    return [root / "stl10_binary" / f"{part}.bin" for part in ("train_X", "train_y", "unlabeled_X", "test_X", "test_y")]


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
            raise DataError(f"{file} has {len(images[part])} images, but {len(labels[part])} labels")
    both = np.concatenate([labels["train"], labels["unlabeled"]])
    return [images["train"], images["unlabeled"]], both, images["test"], labels["test"], classes


# --- folders of images


class ImageFolders:
    """Image files in folders of classes. Links are followed, but no folder is read twice; what is left out is counted."""

    def __init__(self, root: Path):
        self.root = root
        self.skipped: Counter[str] = Counter()  # files by reason
        self.owners: dict[str, Path | None] = {str(parent): None for parent in root.resolve().parents}  # by real path

    def skip_folder(self, path: str) -> None:
        self.skipped[f"in {os.path.basename(path)}"] += sum(len(files) for *_, files in os.walk(path))

    def scan(self, folder: str | Path) -> Iterator[tuple[str, bool]]:
        """Name by name what is in a folder, and whether it is one, without what is hidden or belongs to a system.

        DataError if it cannot be read.
        """
        with explain_os_errors(folder), os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if not entry.name.startswith(".") and entry.name.casefold() not in SYSTEM_FILES:
                    yield entry.name, entry.is_dir()
                elif entry.is_dir():
                    self.skip_folder(entry.path)
                else:
                    self.skipped["hidden"] += 1

    def is_image(self, name: str) -> bool:
        """Whether a file is an image by its ending; counted if it is not."""
        ending = os.path.splitext(name)[1].lower()
        if ending not in EXTENSIONS:
            self.skipped[ending or "without an ending"] += 1
        return ending in EXTENSIONS

    def list_classes(self, folder: Path) -> list[str]:
        """The sorted names of the folders in a folder; DataError if there are none."""
        self.owners[os.path.realpath(folder)] = None
        names = []
        for name, is_folder in self.scan(folder):
            if is_folder:
                names.append(name)
            elif self.is_image(name):
                self.skipped["outside the folders of classes"] += 1
        if not names:
            raise DataError(f"{folder} has no folders, one for each class")
        return names

    def list_images(self, folder: Path, classes: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Paths and labels int64 (N,) of the images at any depth below folder/CLASS, by class and name.

        DataError if a class has none, if a link leads to images of another class or split, or if folders between class and image
        look like the classes themselves.
        """
        images = [self.list_below(folder / name) for name in classes]
        if empty := [name for name, paths in zip(classes, images, strict=True) if not paths]:
            raise DataError(f"{folder / empty[0]} has no images ({', '.join(EXTENSIONS)})")
        places = [sorted({os.path.dirname(path) for path in paths}) for paths in images]
        deep = [below for below in places if len(below) > 1]
        if deep and not any(str(folder / name) in below for name, below in zip(classes, places, strict=True)):
            one, other = (os.path.relpath(place, self.root) for place in deep[0][:2])
            raise DataError(
                f"{self.root}: the images are a level too deep, in {one} and {other}; they are expected in folders CLASS, or in "
                "train/CLASS and test/CLASS"
            )
        labels = np.repeat(np.arange(len(classes)), [len(paths) for paths in images])
        return [path for paths in images for path in paths], labels

    def list_below(self, top: Path) -> list[str]:
        """The sorted paths of the images at any depth below the folder of a class."""
        paths, folders = [], [str(top)]
        while folders:
            folder = folders.pop()
            real = os.path.realpath(folder)
            if (owner := self.owners.get(real)) not in (None, top):
                raise DataError(
                    f"{folder} leads to the images of {owner}: an image has one class, and one of train and test"
                )
            if real in self.owners:  # a second link to it, or one to a folder above
                continue
            self.owners[real] = top
            for name, is_folder in self.scan(folder):
                if is_folder:
                    folders.append(os.path.join(folder, name))
                elif self.is_image(name):
                    paths.append(os.path.join(folder, name))
        return sorted(paths)

    def warn(self) -> None:
        """Say how many files were skipped, and why."""
        if self.skipped.total():
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.skipped.most_common(10) if count)
            warnings.warn(f"files skipped in {self.root}: {reasons}", stacklevel=3)


def find_name(names: Sequence[str], known: Sequence[str]) -> str | None:
    """The name that, in any case, is the earliest of the known ones; None: there is none."""
    return min(
        (name for name in names if name.casefold() in known),
        key=lambda name: known.index(name.casefold()),
        default=None,
    )


def read_folder(root: Path) -> tuple:
    """root/train/CLASS/* and root/test/CLASS/* (else val), or names like these in any case (`TRAIN`, `TEST`); or root/CLASS/*, of
    which every fifth image is for the test. A warning says which files were skipped."""
    folders = ImageFolders(root)
    names = folders.list_classes(root)
    train_name, test_name = find_name(names, TRAIN), find_name(names, TEST)
    with explain_os_errors(root):
        split = train_name or (root / "train").exists() or {name.casefold() for name in names} <= {*TEST}
    if split:
        train, test = root / (train_name or "train"), root / (test_name or "test")
        for name in sorted({*names} - {train.name, test.name}):
            folders.skip_folder(str(root / name))
        classes = folders.list_classes(train)
        if not test.exists():
            raise DataError(f"{test} is missing, and so are {', '.join(TEST[1:])}, of which one would do")
        if odd := sorted(set(classes) ^ set(folders.list_classes(test))):
            raise DataError(f"{train} and {test} differ in classes: only one of them has {odd[0]!r}")
        parts = *folders.list_images(train, classes), *folders.list_images(test, classes)
        folders.warn()
        return *parts, classes
    paths, labels = folders.list_images(root, names)
    folders.warn()
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
    return (
        *ImageFolders(folder).list_images(folder / "train", known),
        test,
        np.array([known.index(note[1]) for note in notes]),
        classes,
    )
