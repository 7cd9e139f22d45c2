"""Data sets as uint8 images on the device, or streamed to it; `load` gives the splits of a config.

A data set of your own is one entry in a table. Its loader takes the config and returns training images and labels, test
images and labels and, optionally, class names; images are uint8 (N, 3, H, W) or a list of image files::

    DATASETS["mine"] = lambda config: (images, labels, test_images, test_labels)
    splits = load(Config(dataset="mine"), "cuda")
"""

import hashlib
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metaug_core.config import Config, ConfigError
from metaug_core.data import readers, shapes
from metaug_core.data.images import (
    CHUNK,
    AnyImages,
    DataError,
    Files,
    Images,
    Rows,
    StreamedImages,
    explain_os_errors,
    read_all,
)
from metaug_core.errors import one_line
from metaug_core.registry import DATASETS
from metaug_core.runtime.device import arithmetic, explain_memory

ON_DEVICE = 8 * 2**30  # storage "auto": more bytes than this are streamed
SHAPES_TRAIN = (10_000, 1)  # images and seed of the embedded data set
SHAPES_TEST = (2_000, 2)
ARCHIVES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "stl10": "STL10"}  # of torchvision, which has url and md5
LISTS = {  # the files of the data sets that are not folders of images
    "cifar10": lambda config: readers.list_cifar(config.data_dir, fine=False),
    "cifar100": lambda config: readers.list_cifar(config.data_dir, fine=True),
    "stl10": lambda config: readers.list_stl10(config.data_dir),
}
DIGESTED = 50_000  # files whose sizes, or images whose bytes, enter a digest: evenly spaced ones of more
PLACES = {  # the folders in data_dir, one of which holds the data set; a download makes the first
    "cifar10": ("cifar-10-batches-py", "cifar-10-batches-bin"),
    "cifar100": ("cifar-100-python", "cifar-100-binary"),
    "stl10": ("stl10_binary",),
    "tiny-imagenet": ("tiny-imagenet-200",),
    "imagenet": ("imagenet",),
}


class RawSplits(NamedTuple):
    """What a loader returns; a plain tuple in this order will do."""

    train: Any  # uint8 (N, 3, H, W) array or tensor, a list of consecutive ones, or a list of image files
    train_labels: Any  # int (N,) in [0, classes); -1: unlabelled, for pretraining only
    test: Any  # as train, of the same H and W
    test_labels: Any  # int (M,) in [0, classes)
    classes: Sequence[str] | None = None  # names by label; None: the numbers


IMAGES = (
    "dataset",
    "data_dir",
    "image_size",
    "stored_size",
    "train_images",
    "fewer_images",
    "val_fraction",
)  # settings


@dataclass(frozen=True)
class Splits:
    """The images of a run. No image of `val` or `test` is in another split."""

    pretrain: AnyImages  # for the encoder: `train`, then the unlabelled images if there are any
    train: AnyImages  # labelled, for the probe
    val: AnyImages | None  # held out of the labelled training images; None: val_fraction 0
    test: AnyImages
    of: Mapping[str, Any] | None = None  # the settings `IMAGES` of the config they were loaded for; None: made by hand
    source: str | None = None  # what `digest_source` says of them; None: only the images themselves tell

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the images are, JSON-ready, for `runs.data`: counts, and a digest of their files or of the images themselves."""
        parts = [part for part in (self.pretrain, self.val, self.test) if part is not None]
        counts = {
            "pretrain": len(self.pretrain),
            "train": len(self.train),
            "val": len(self.val or ()),
            "test": len(self.test),
        }
        digest = {"source": self.source} if self.source else {"images": digest_images(*parts)}
        return counts | {"classes": len(self.train.classes)} | digest


def refuse_foreign(splits: Splits, config: Config) -> None:
    """ConfigError if the splits were loaded for other images than config's. Splits made by hand fit every config."""
    for name, value in (splits.of or {}).items():
        wanted = getattr(config, name)
        if value != wanted:
            raise ConfigError(
                f"splits were loaded with {name} {value}, but the run has {wanted}: datasets.load(config) gives its own"
            )


def digest_files(paths: Sequence[str | Path]) -> str:
    """How many files there are, and a digest of their sizes and of their names below the folder that holds all of them.

    The files are not read. Raises DataError if one is missing.
    """
    names = [str(path) for path in paths]
    start = os.path.commonprefix([min(names), max(names)]).rfind(os.sep) + 1  # noqa: RUF071  (cut at a separator)
    digest = hashlib.sha256(
        "\n".join(name[start:].replace(os.sep, "/") for name in names).encode(errors="surrogateescape")
    )
    for name in names[:: math.ceil(len(names) / DIGESTED)]:
        with explain_os_errors(name):
            digest.update(b"%d " % os.stat(name).st_size)
    return f"{len(names)} files, digest {digest.hexdigest()[:12]}"


def digest_images(*parts: AnyImages) -> str:
    """A digest of images and labels; the same for images that are streamed."""
    digest = hashlib.sha256()
    for images in parts:
        digest.update(images.labels.cpu().numpy().tobytes())
        for pixels in images.batches(torch.arange(0, len(images), math.ceil(len(images) / DIGESTED)).split(CHUNK)):
            digest.update(pixels.cpu().numpy().tobytes())
    return f"digest {digest.hexdigest()[:12]}"


def digest_source(config: Config, raw: RawSplits | None = None) -> str | None:
    """What a data set is read from, found without reading an image: `digest_files`, or that it is drawn.

    raw: what was read (`read_raw`), if it was. Returns None for arrays of a user's own, or where only the user's own loader could
    tell. Raises DataError if files are missing.
    """
    own = DATASETS.added(config.dataset)
    if not own and config.dataset in LISTS:
        return digest_files(LISTS[config.dataset](config))
    if not own and config.dataset == "shapes":
        return "drawn"
    raw = raw if raw or own else read_raw(config)
    if raw is None or not isinstance(raw.train, Files) or not isinstance(raw.test, Files):
        return None
    return digest_files([*raw.train.paths, *raw.test.paths])


def stratified_sample(labels: np.ndarray, count: int) -> np.ndarray:
    """The sorted positions of `count` of the labels, int (N,); each class has its share, +-1. Every call gives the same.

    A larger sample of the same labels contains the smaller ones.
    """
    order = np.random.RandomState(0).permutation(len(labels))  # NumPy guarantees this stream, and no other, for ever
    order = order[np.argsort(labels[order], kind="stable")]
    _, first, size = np.unique(labels[order], return_index=True, return_counts=True)
    first, size = np.repeat(first, size), np.repeat(size, size)
    place = (np.arange(len(labels)) - first + 0.5) / size  # within the class, in (0, 1)
    return np.sort(order[np.argsort(place, kind="stable")[:count]])


def divide(labels: np.ndarray, config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of labelled training, unlabelled training and validation images, by labels int (N,), -1 for unlabelled.

    train_images limits all of them, labelled ones come first; val_fraction is of the labelled ones. The seed has no influence.
    DataError if there are fewer than train_images, unless it is a preset's (fewer_images).
    """
    known, free = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
    if (limit := config.train_images) is not None:
        if limit > len(labels) and not config.fewer_images:
            raise DataError(
                f"train_images {limit} is more than the {len(labels)} training images of {config.dataset}; "
                "train_images all takes all of them"
            )
        limit = min(limit, len(labels))
        known = known[stratified_sample(labels[known], min(limit, len(known)))]
        free = free[stratified_sample(labels[free], limit - len(known))]
    held = stratified_sample(labels[known], round(config.val_fraction * len(known)))
    if len(held) == len(known) or (config.val_fraction and not len(held)):
        raise DataError(
            f"val_fraction {config.val_fraction:g} of {len(known)} images of {config.dataset} leaves one side empty"
        )
    return np.delete(known, held), free, known[held]


def to_source(images: Any, config: Config, where: str) -> Rows | Files:
    """Images as in `RawSplits`, as a source with `shape` and `read`; DataError that names `where` if they are anything else."""
    parts = list(images) if isinstance(images, list | tuple) else [images]
    if parts and isinstance(parts[0], str | Path):
        return Files(parts, config.stored_size or config.image_size)
    parts = [part.cpu().numpy() if isinstance(part, Tensor) else np.asarray(part) for part in parts]
    for part in parts:
        if part.dtype != np.uint8 or part.ndim != 4 or part.shape[1:] != (3, *parts[0].shape[2:]):
            raise DataError(f"{where}: images must be uint8 (N, 3, H, W) of one size, not {part.dtype} {part.shape}")
        if config.stored_size and part.shape[2:] != (config.stored_size, config.stored_size):
            raise DataError(f"{where}: stored_size {config.stored_size} is for image files, not arrays {part.shape}")
    if not sum(map(len, parts)):
        raise DataError(f"{where}: there are no images")
    return Rows(parts)


def to_labels(labels: Any, count: int, where: str) -> np.ndarray:
    """Labels as in `RawSplits`, as int64 (count,); DataError that names `where` if they are anything else."""
    array = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.dtype.kind not in "iu" or array.shape != (count,):
        raise DataError(
            f"{where}: {count} images need as many whole numbers as labels, not {array.dtype} {array.shape}"
        )
    return array.astype(np.int64)


def read_raw(config: Config) -> RawSplits:
    """What the loader of config.dataset returns, as sources, int64 arrays and a tuple of names. Raises DataError."""
    raw = DATASETS[config.dataset](config)
    if not isinstance(raw, tuple) or len(raw) not in (4, 5):
        raise DataError(
            f"{config.dataset}: its loader must return (images, labels, test images, test labels[, classes])"
        )
    raw = RawSplits(*raw)
    in_train, in_test = f"{config.dataset}, training", f"{config.dataset}, test"
    train, test = to_source(raw.train, config, in_train), to_source(raw.test, config, in_test)
    labels = to_labels(raw.train_labels, train.shape[0], in_train)
    test_labels = to_labels(raw.test_labels, test.shape[0], in_test)
    seen = np.unique(labels[labels >= 0])
    if len(seen) < 2:
        raise DataError(f"{in_train}: the images are of fewer than two classes")
    if raw.classes is None and seen[-1] >= len(seen):
        numbers = ", ".join(map(str, seen[:5])) + (", ..." if len(seen) > 5 else "")
        raise DataError(
            f"{in_train}: labels must be 0..{len(seen) - 1}, a number for each class, and these are {numbers}; number them so, or "
            "let the loader return the names of all classes too"
        )
    classes = tuple(map(str, seen if raw.classes is None else raw.classes))
    readers.check_labels(labels, len(classes), in_train, lowest=-1)
    readers.check_labels(test_labels, len(classes), in_test)
    if train.shape[1:] != test.shape[1:]:
        raise DataError(f"{config.dataset}: training images are {train.shape[1:]}, test images {test.shape[1:]}")
    return RawSplits(train, labels, test, test_labels, classes)


def is_streamed(config: Config, size: int, device: torch.device) -> bool:
    """Whether `size` bytes of images are streamed (config.storage); auto: above 8 GiB or half the device's free memory."""
    if config.storage != "auto":
        return config.storage == "stream"
    return size > ON_DEVICE or (device.type == "cuda" and size > torch.cuda.mem_get_info(device)[0] / 2)


@explain_memory()
@arithmetic("float32")  # what is made of random numbers, shapes for one, is the same under any default of the user's
def load(config: Config, device: torch.device | str = "cpu") -> Splits:
    """The splits of config.dataset on the device, or streaming to it (config.storage). Raises DataError."""
    raw, device = read_raw(config), torch.device(device)
    known, free, held = divide(raw.train_labels, config)
    count = len(known) + len(free) + len(held) + len(raw.test_labels)
    stream = is_streamed(config, count * math.prod(raw.train.shape[1:]), device)
    classes = tuple(raw.classes or ())

    def place(source: Rows | Files, labels: np.ndarray, index: np.ndarray) -> AnyImages:
        on_device = torch.from_numpy(labels[index]).to(device)
        if stream:
            return StreamedImages(source, index, on_device, classes, config.workers)
        return Images(read_all(source, index, device, config.workers), on_device, classes)

    pretrain = place(raw.train, raw.train_labels, np.concatenate([known, free]))
    return Splits(
        pretrain=pretrain,
        train=pretrain.take(slice(len(known))),  # shares memory with pretrain
        val=place(raw.train, raw.train_labels, held) if len(held) else None,
        test=place(raw.test, raw.test_labels, np.arange(len(raw.test_labels))),
        of={name: getattr(config, name) for name in IMAGES},
        source=digest_source(config, raw),
    )


# --- the data sets that come with the workbook


def locate(name: str, data_dir: Path) -> Path:
    """`data_dir` if one of the folders of data set `name` is there; otherwise a DataError that says what to do."""
    with explain_os_errors(data_dir):
        there = any((data_dir / place).exists() for place in PLACES[name])
    if not there:
        how = f"run `metaug download {name}`, or" if name in ARCHIVES else "download it from its authors and"
        raise DataError(f"{name} is not in {data_dir}: {how} put {' or '.join(PLACES[name])} there")
    return data_dir


def read_own_folder(root: Path) -> tuple:
    """`read_folder` of the user's images. Raises DataError."""
    if not os.path.lexists(root):
        raise DataError(f"{root} is missing: data_dir names the folder of your images")
    return readers.read_folder(root)


def _shapes(config: Config) -> RawSplits:
    size = config.stored_size or config.image_size
    return RawSplits(*shapes.make(*SHAPES_TRAIN, size), *shapes.make(*SHAPES_TEST, size), shapes.CLASSES)


DATASETS.register_own(
    {
        "shapes": _shapes,
        "cifar10": lambda config: readers.read_cifar(locate("cifar10", config.data_dir), fine=False),
        "cifar100": lambda config: readers.read_cifar(locate("cifar100", config.data_dir), fine=True),
        "stl10": lambda config: readers.read_stl10(locate("stl10", config.data_dir)),
        "tiny-imagenet": lambda config: readers.read_tiny_imagenet(locate("tiny-imagenet", config.data_dir)),
        "imagenet": lambda config: readers.read_folder(locate("imagenet", config.data_dir) / "imagenet"),
        "folder": lambda config: read_own_folder(config.data_dir),
    }
)


def download(name: str, data_dir: Path) -> Path:
    """Download data set `name` and check its md5. Returns its folder, which appears in data_dir complete or not at all.

    One that is there already is read, and no more is done. Raises DataError if it is not whole, if the data set cannot be
    downloaded, or the download fails.
    """
    DATASETS[name]  # raises if it is unknown
    if name not in ARCHIVES:
        where = f"put {PLACES[name][0]} into {data_dir}" if name in PLACES else "it is made, or read from where it lies"
        raise DataError(f"{name} cannot be downloaded here: {where}")
    from torchvision import datasets  # slow to import: it brings torch.compile

    archive, final = getattr(datasets, ARCHIVES[name]), data_dir / PLACES[name][0]
    with explain_os_errors(data_dir):
        there = [data_dir / place for place in PLACES[name] if (data_dir / place).exists()]
    if there:
        try:
            read_raw(Config(dataset=name, data_dir=data_dir))
        except DataError as error:
            raise DataError(
                f"{there[-1]} is there, but not whole: {error}; remove it, then download it again"
            ) from None
        return there[-1]
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=".download-") as folder:
            datasets.utils.download_and_extract_archive(archive.url, folder, md5=archive.tgz_md5)
            (Path(folder) / archive.base_folder).rename(final)
    except Exception as error:  # the network, the disk, tar and gzip raise nearly anything
        raise DataError(f"{name} could not be downloaded from {archive.url} to {data_dir}: {one_line(error)}") from None
    return final
