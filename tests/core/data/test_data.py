"""Data sets: every format is read exactly, every fault is one sentence, and no file runs code."""

import functools
import hashlib
import http.server
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from tiny import ROOT
from torch import Tensor

from metaug_core.config import Config
from metaug_core.data import datasets, shapes
from metaug_core.data.datasets import DataError, Images, StreamedImages, load
from metaug_core.data.images import read_image
from metaug_core.errors import MetaugError
from metaug_core.presets import preset
from metaug_core.registry import DATASETS

REAL = ROOT.parent / "shared/data/cifar10-images.tar.gz"
Arrays = tuple[np.ndarray, np.ndarray]


def config(**settings: Any) -> Config:
    return Config(**{"batch_size": 2, "val_fraction": 0, "image_size": 8, **settings})


def noise(count: int, side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), np.uint8)


def one_sentence(error: pytest.ExceptionInfo) -> str:
    """The message, which names what and where in one line; no library's traceback hangs on it."""
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 500
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return text


def refused(words: str, call: Callable[[], Any]) -> None:
    with pytest.raises(DataError, match=words) as error:
        call()
    one_sentence(error)


def same(images: Images | StreamedImages, pixels: np.ndarray, labels: Any) -> None:
    """`images` are exactly these, in this order."""
    (batch,) = images.batches([torch.arange(len(images))])
    assert batch.dtype == torch.uint8
    np.testing.assert_array_equal(batch.numpy(), pixels)
    np.testing.assert_array_equal(images.labels.numpy(), labels)


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Registers a data set "mine" for one test, as a user would for good."""

    def register(*values: Any) -> None:
        monkeypatch.setitem(DATASETS, "mine", lambda config: values)

    return register


# --- CIFAR, written as the originals are


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote str, and NumPy's names as they were then: the opcodes of the original files."""

    write: Any
    memoize: Any
    dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_text(self, text: bytes | str) -> None:
        raw = text.encode("ascii") if isinstance(text, str) else text
        short = len(raw) < 256
        self.write(
            (pickle.SHORT_BINSTRING if short else pickle.BINSTRING) + len(raw).to_bytes(1 if short else 4, "little")
        )
        self.write(raw)
        self.memoize(raw)

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = "numpy.core.multiarray" if obj.__name__ == "_reconstruct" else "numpy"
        self.write(b"c" + f"{module}\n{obj.__name__}\n".encode())
        self.memoize(obj)

    dispatch[bytes] = dispatch[str] = save_text
    dispatch[type] = dispatch[type(len)] = save_global


def write_pickle(path: Path, content: Any, python: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        (Python2Pickler if python == 2 else pickle.Pickler)(file, 2).dump(content)


def cifar_python(root: Path, batches: list[Arrays], test: Arrays, python: int, fine: bool = False) -> Path:
    folder = root / ("cifar-100-python" if fine else "cifar-10-batches-py")
    names = [b"class %d" % k for k in range(100 if fine else 10)]
    key = b"fine_labels" if fine else b"labels"
    files = ["train", "test"] if fine else [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    for file, (pixels, labels) in zip(files, [*batches, test], strict=True):
        content = {
            b"data": pixels.reshape(-1, 3072),
            key: labels.tolist(),
            b"batch_label": b"a batch",
            b"filenames": [],
        }
        write_pickle(folder / file, content | ({b"coarse_labels": [0] * len(labels)} if fine else {}), python)
    meta = {b"fine_label_names": names} if fine else {b"label_names": names, b"num_vis": 3072}
    write_pickle(folder / ("meta" if fine else "batches.meta"), meta, python)
    return folder


def cifar_binary(root: Path, batches: list[Arrays], test: Arrays, fine: bool = False) -> Path:
    folder = root / ("cifar-100-binary" if fine else "cifar-10-batches-bin")
    folder.mkdir(parents=True)
    files = ["train", "test"] if fine else [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    for file, (pixels, labels) in zip(files, [*batches, test], strict=True):
        coarse = b"\x07" if fine else b""
        records = [coarse + bytes([label]) + image.tobytes() for image, label in zip(pixels, labels, strict=True)]
        (folder / f"{file}.bin").write_bytes(b"".join(records))
    names = folder / ("fine_label_names.txt" if fine else "batches.meta.txt")
    names.write_text("".join(f"class {k}\n" for k in range(100 if fine else 10)) + "\n")
    return folder


def batch(count: int, seed: int, classes: int = 10) -> Arrays:
    return noise(count, 32, seed), np.random.default_rng(seed).integers(0, classes, count)


@pytest.mark.parametrize("kind", ["python2", "python3", "binary"])
@pytest.mark.parametrize("fine", [False, True])
def test_cifar_is_read_exactly(tmp_path: Path, kind: str, fine: bool):
    batches = [batch(7, seed, 100 if fine else 10) for seed in range(1 if fine else 5)]
    test = batch(6, 9, 100 if fine else 10)
    if kind == "binary":
        cifar_binary(tmp_path, batches, test, fine)
    else:
        cifar_python(tmp_path, batches, test, int(kind[-1]), fine)
    splits = load(config(dataset="cifar100" if fine else "cifar10", data_dir=tmp_path))
    same(splits.train, np.concatenate([b[0] for b in batches]), np.concatenate([b[1] for b in batches]))
    same(splits.test, *test)
    assert splits.train.classes == tuple(f"class {k}" for k in range(100 if fine else 10))
    assert splits.val is None


def test_binary_cifar_is_preferred(tmp_path: Path):
    old, new = [batch(3, seed) for seed in range(6)], [batch(3, seed) for seed in range(10, 16)]
    cifar_python(tmp_path, old[:5], old[5], python=2)
    cifar_binary(tmp_path, new[:5], new[5])
    same(load(config(dataset="cifar10", data_dir=tmp_path)).test, *new[5])


class Harm:
    """Pickles as a call; unpickled freely, it would make the folder `path`."""

    def __init__(self, path: Path, call: Callable = os.mkdir):
        self.path, self.call = path, call

    def __reduce__(self):
        return self.call, (str(self.path),)


@pytest.mark.parametrize("call", [os.mkdir, eval, np.load, getattr, Path])
@pytest.mark.parametrize("place", ["data", "labels", "other", "whole"])
def test_a_pickle_that_wants_code_is_refused_and_not_run(tmp_path: Path, call: Callable, place: str):
    folder = cifar_python(tmp_path, [batch(3, seed) for seed in range(5)], batch(3, 5), python=3)
    content: Any = {b"data": noise(3, 32).reshape(3, 3072), b"labels": [0, 1, 2]}
    harm = Harm(tmp_path / "harm", call)
    content = harm if place == "whole" else content | {place.encode(): harm}
    write_pickle(folder / "data_batch_3", content, python=3)
    settings = config(dataset="cifar10", data_dir=tmp_path)
    refused("data_batch_3 asks for .*, which would run code", lambda: load(settings))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\x80", b"not a pickle", b"}.", b"N.", b"(lp0\n.", b"\x80\x02K\x01.",
        b"\x80\x02}q\x00(U\x04dataq\x01K\x01u.",
        b"c_codecs\nencode\n.",  # a name that is admitted, without what belongs to it
        b"\x80\x02}U\x04datacnumpy\nndarray\n)\x81N}b\x86s.",  # state for a stand-in
        b"\x80\x02}U\x04dataI10\ns.",
        b"cos\nsystem\n(S'true'\ntR"[:9],
    ],
)  # fmt: skip
def test_a_damaged_pickle_is_one_sentence(tmp_path: Path, raw: bytes):
    folder = cifar_python(tmp_path, [batch(3, seed) for seed in range(5)], batch(3, 5), python=3)
    (folder / "test_batch").write_bytes(raw)
    refused(str(folder / "test_batch"), lambda: load(config(dataset="cifar10", data_dir=tmp_path)))


def test_cifar_faults(tmp_path: Path):
    read = functools.partial(load, config(dataset="cifar10", data_dir=tmp_path))
    refused(r"cifar10 is not in .*: run `metaug download cifar10`, or put cifar-10-batches-py", read)
    six = [batch(3, seed) for seed in range(6)]
    folder = cifar_python(tmp_path, six[:5], six[5], python=2)
    whole = (folder / "data_batch_2").read_bytes()
    (folder / "data_batch_2").write_bytes(whole[: len(whole) // 2])
    refused("data_batch_2 is truncated", read)
    (folder / "data_batch_2").unlink()
    refused("data_batch_2 is missing", read)
    for labels, words in ((np.array([0, 1]), "3 images, but labels"), (np.array([0, 1, 10]), "label 10, outside 0..9")):
        cifar_python(tmp_path, [*six[:4], (six[4][0], labels)], six[5], python=2)
        refused(f"data_batch_5 has {words}", read)
    content = {b"data": noise(3, 32).reshape(3, 3072).astype(np.float32), b"labels": [0, 1, 2]}
    write_pickle(folder / "data_batch_5", content, python=3)
    refused("data_batch_5 is truncated or not", read)
    write_pickle(folder / "batches.meta", {b"label_names": [b"cat", b"dog"]}, python=2)
    cifar_python(tmp_path / "whole", six[:5], six[5], python=2).joinpath("data_batch_5").rename(folder / "data_batch_5")
    refused("names 2 classes, not 10", read)
    folder = cifar_binary(tmp_path, six[:5], six[5])
    (folder / "test_batch.bin").write_bytes(b"\0" * 3072)
    refused("test_batch.bin is truncated: 3072 bytes", read)
    (folder / "test_batch.bin").write_bytes(b"")
    refused("test_batch.bin is truncated: 0 bytes", read)
    (folder / "test_batch.bin").unlink()
    (folder / "test_batch.bin").mkdir()
    refused("test_batch.bin is a folder where a file is expected|test_batch.bin is truncated", read)


# --- STL-10


def stl10(root: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Writes 6 + 5 + 4 images column by column -> what they are, row by row."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    images = {part: noise(n, 96, seed + n) for part, n in (("train", 6), ("unlabeled", 5), ("test", 4))}
    for part, pixels in images.items():
        (folder / f"{part}_X.bin").write_bytes(b"".join(plane.T.tobytes() for image in pixels for plane in image))
    (folder / "train_y.bin").write_bytes(bytes([1, 10, 2, 1, 10, 2]))
    (folder / "test_y.bin").write_bytes(bytes([1, 2, 10, 10]))
    (folder / "class_names.txt").write_text("\n".join(f"class {k}" for k in range(10)))
    return images


@pytest.mark.parametrize("storage", ["device", "stream"])
def test_stl10_is_read_exactly(tmp_path: Path, storage: str):
    images = stl10(tmp_path)
    splits = load(config(dataset="stl10", data_dir=tmp_path, storage=storage))
    same(splits.train, images["train"], [0, 9, 1, 0, 9, 1])
    same(splits.pretrain, np.concatenate([images["train"], images["unlabeled"]]), [0, 9, 1, 0, 9, 1] + [-1] * 5)
    same(splits.test, images["test"], [0, 1, 9, 9])
    (mixed,) = splits.pretrain.batches(torch.tensor([[8, 2, 5, 6]]))
    np.testing.assert_array_equal(mixed.numpy()[[0, 3]], images["unlabeled"][[2, 0]])
    np.testing.assert_array_equal(mixed.numpy()[[1, 2]], images["train"][[2, 5]])


def test_stl10_counts_labelled_images_first(tmp_path: Path):
    stl10(tmp_path)
    for limit, known, free in ((4, 4, 0), (6, 6, 0), (8, 6, 2)):
        splits = load(config(dataset="stl10", data_dir=tmp_path, train_images=limit))
        assert (len(splits.train), len(splits.pretrain)) == (known, known + free)
        assert (splits.pretrain.labels[known:] == -1).all()


def test_stl10_faults(tmp_path: Path):
    read = functools.partial(load, config(dataset="stl10", data_dir=tmp_path))
    refused("stl10 is not in .*metaug download stl10", read)
    stl10(tmp_path)
    folder = tmp_path / "stl10_binary"
    (folder / "test_y.bin").write_bytes(bytes([1, 2, 10]))
    refused("test_X.bin has 4 images, but 3 labels", read)
    for wrong in (0, 11):
        (folder / "test_y.bin").write_bytes(bytes([1, 2, 10, wrong]))
        refused(f"test_y.bin has label {wrong}, outside 1..10", read)
    with open(folder / "unlabeled_X.bin", "ab") as file:
        file.write(b"\0")
    refused("unlabeled_X.bin is truncated", read)
    (folder / "unlabeled_X.bin").unlink()
    refused("unlabeled_X.bin is missing", read)


# --- folders


def save(path: Path, pixels: np.ndarray, **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.transpose(1, 2, 0)).save(path, **how)


def image_folder(root: Path, parts: tuple[str, ...], counts: dict[str, int], side: int = 8) -> dict[str, np.ndarray]:
    """PNGs of `side` pixels in root/part/class/ -> the pixels by path below the root."""
    written = {}
    for part in parts:
        for name, count in counts.items():
            for n, pixels in enumerate(noise(count, side, seed=len(written))):
                path = Path(part) / name / f"{n:03}.png"
                save(root / path, pixels)
                written[str(path)] = pixels
    return written


def stacked(written: dict[str, np.ndarray], start: str) -> np.ndarray:
    return np.stack([written[path] for path in sorted(written) if path.startswith(start)])


@pytest.mark.parametrize("test", ["test", "val"])
@pytest.mark.parametrize("storage", ["device", "stream"])
def test_folder_with_splits(tmp_path: Path, test: str, storage: str):
    written = image_folder(tmp_path, ("train", test), {"cat": 3, "dog": 4})
    (tmp_path / "train/cat/.hidden.png").write_bytes(b"no image")
    (tmp_path / "train/cat/notes.txt").write_text("no image")
    (tmp_path / "train/.cache").mkdir()
    (tmp_path / "train/dog/.thumbs").mkdir()
    (tmp_path / "train/dog/.thumbs/a.png").write_bytes(b"no image")
    (tmp_path / "train/dog/deep/er").mkdir(parents=True)
    (tmp_path / "train/dog/003.png").rename(tmp_path / "train/dog/deep/er/x.PNG")
    splits = load(config(dataset="folder", data_dir=tmp_path, storage=storage))
    assert splits.test.classes == ("cat", "dog")
    same(splits.train, stacked(written, "train"), [0] * 3 + [1] * 4)
    same(splits.test, stacked(written, test), [0] * 3 + [1] * 4)


def test_folder_prefers_test_to_val(tmp_path: Path):
    written = image_folder(tmp_path, ("train", "test", "val"), {"cat": 2, "dog": 2})
    same(load(config(dataset="folder", data_dir=tmp_path)).test, stacked(written, "test"), [0, 0, 1, 1])


def test_folder_without_splits_holds_out_every_fifth(tmp_path: Path):
    written = image_folder(tmp_path, ("",), {"cat": 11, "dog": 2, "eel": 5})
    splits = load(config(dataset="folder", data_dir=tmp_path))
    held = ["cat/000.png", "cat/005.png", "cat/010.png", "dog/000.png", "eel/000.png"]
    same(splits.test, np.stack([written[path] for path in held]), [0, 0, 0, 1, 2])
    for_training = {path: pixels for path, pixels in written.items() if path not in held}
    same(splits.train, stacked(for_training, ""), [0] * 8 + [1] + [2] * 4)


@pytest.mark.parametrize(
    "parts",
    [("training", "testing"), ("TRAIN", "Test"), ("Train", "valid"), ("train", "Validation"), ("training", "DEV")],
)
def test_folder_with_other_names_of_its_splits(tmp_path: Path, parts: tuple[str, str]):
    written = image_folder(tmp_path, parts, {"cat": 3, "dog": 4})
    splits = load(config(dataset="folder", data_dir=tmp_path))
    assert splits.test.classes == ("cat", "dog")
    same(splits.train, stacked(written, parts[0]), [0] * 3 + [1] * 4)
    same(splits.test, stacked(written, parts[1]), [0] * 3 + [1] * 4)


@pytest.mark.parametrize(
    "parts", [("part 1", "part 2"), ("photos",), ("photos/train", "photos/test"), ("train/a", "test/a")]
)
def test_images_a_level_too_deep_are_refused(tmp_path: Path, parts: tuple[str, ...]):
    image_folder(tmp_path, parts, {"cat": 2, "dog": 2})
    refused(
        f"{tmp_path}: the images are a level too deep, in .*/cat and .*/dog; they are expected in",
        lambda: load(config(dataset="folder", data_dir=tmp_path)),
    )


def test_links_to_folders_are_followed(tmp_path: Path):
    written = image_folder(tmp_path, ("train", "test", "../more"), {"cat": 2, "dog": 2})
    (tmp_path / "train/cat/more").symlink_to(tmp_path / "../more/cat")
    (tmp_path / "train/cat/again").symlink_to(tmp_path / "../more/cat")  # read once
    (tmp_path / "train/cat/more/here").symlink_to(tmp_path / "train/cat")
    (tmp_path / "train/dog/above").symlink_to(tmp_path)
    pixels = {path: stacked(written, path) for path in ("train/cat", "../more/cat", "train/dog", "test")}
    splits = load(config(dataset="folder", data_dir=tmp_path))
    cats = np.concatenate([pixels["train/cat"], pixels["../more/cat"]])
    same(splits.train, np.concatenate([cats, pixels["train/dog"]]), [0] * 4 + [1] * 2)
    same(splits.test, pixels["test"], [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("link", "to"), [("train/cat/x", "train/dog"), ("train/cat/x", "test/cat"), ("test/dog/x", "train/dog")]
)
def test_a_link_to_images_of_another_class_or_split_is_refused(tmp_path: Path, link: str, to: str):
    image_folder(tmp_path, ("train", "test"), {"cat": 2, "dog": 2})
    (tmp_path / link).symlink_to(tmp_path / to)
    refused(
        "leads to the images of .*: an image has one class, and one of train and test",
        lambda: load(config(dataset="folder", data_dir=tmp_path)),
    )


def test_skipped_files_are_said_once(tmp_path: Path):
    image_folder(
        tmp_path,
        ("",),
        {"cat": 4, "dog": 3, "__MACOSX": 6, "cat/@eaDir/x": 5, ".ipynb_checkpoints": 4, "lost+found": 3},
    )
    (tmp_path / "cat/a.gif").write_bytes(b"")
    (tmp_path / "cat/b.GIF").write_bytes(b"")
    (tmp_path / "notes").write_text("")
    (tmp_path / "Thumbs.db").write_bytes(b"")
    save(tmp_path / "beside.png", noise(1, 8)[0])
    words = (
        f"files skipped in {tmp_path}: 6 in __MACOSX, 5 in @eaDir, 4 in .ipynb_checkpoints, 3 in lost+found, 2 .gif, "
        "1 hidden, 1 outside the folders of classes, 1 without an ending"
    )
    with pytest.warns(UserWarning, match="files skipped") as warned:
        splits = load(config(dataset="folder", data_dir=tmp_path))
    assert [str(warning.message) for warning in warned] == [words]
    assert (splits.test.classes, len(splits.train), len(splits.test)) == (("cat", "dog"), 5, 2)


def test_a_folder_beside_train_and_test_is_said(tmp_path: Path):
    image_folder(tmp_path, ("train", "test", "extra"), {"cat": 2, "dog": 2})
    with pytest.warns(UserWarning, match="4 in extra"):
        load(config(dataset="folder", data_dir=tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize(
    ("dataset", "place"),
    [
        ("folder", "train/cat/001.png"),
        ("cifar10", "cifar-10-batches-py/data_batch_2"),
        ("stl10", "stl10_binary/class_names.txt"),
    ],
)
def test_a_pipe_is_named_and_not_waited_for(tmp_path: Path, dataset: str, place: str):
    image_folder(tmp_path, ("train", "test"), {"cat": 2, "dog": 2})
    six = [batch(3, seed) for seed in range(6)]
    cifar_python(tmp_path, six[:5], six[5], python=3)
    stl10(tmp_path)
    (tmp_path / place).unlink()
    os.mkfifo(tmp_path / place)
    with pytest.warns(UserWarning, match="files skipped") if dataset == "folder" else nullcontext():
        refused(f"{place} is a pipe, a socket or a device", lambda: load(config(dataset=dataset, data_dir=tmp_path)))


def test_imagenet_is_a_folder_with_train_and_val(tmp_path: Path):
    read = functools.partial(load, config(dataset="imagenet", data_dir=tmp_path, storage="stream"))
    refused("imagenet is not in .*: download it from its authors and put imagenet there", read)
    written = image_folder(tmp_path / "imagenet", ("train", "val"), {"n01440764": 2, "n01443537": 3})
    splits = read()
    assert isinstance(splits.pretrain, StreamedImages)
    assert splits.train.classes == ("n01440764", "n01443537")
    same(splits.test, stacked(written, "val"), [0, 0, 1, 1, 1])


def test_tiny_imagenet(tmp_path: Path):
    root = tmp_path / "tiny-imagenet-200"
    names = ["n02", "n01", "n03"]  # the order of wnids.txt is that of the labels
    root.mkdir()
    (root / "wnids.txt").write_text("\n".join(names) + "\n")
    (root / "words.txt").write_text("n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\tjay\n")
    for k, name in enumerate(names):
        save(root / f"train/{name}/images/{name}_0.JPEG", noise(1, 64, k)[0], quality=95)
        (root / f"train/{name}/{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t63\t63\n")
    grey = Image.fromarray(noise(1, 64)[0, 0])
    (root / "val/images").mkdir(parents=True)
    for n in range(2):
        grey.save(root / f"val/images/val_{n}.JPEG")
    (root / "val/val_annotations.txt").write_text("val_1.JPEG\tn03\t0\t32\t44\t62\nval_0.JPEG\tn01\t0\t0\t1\t1\n")
    settings = config(dataset="tiny-imagenet", data_dir=tmp_path, stored_size=64)
    splits = load(settings)
    assert splits.train.classes == ("jay", "goldfish", "n03")
    assert splits.train.labels.tolist() == [0, 1, 2]
    decoded = np.asarray(Image.open(root / "val/images/val_0.JPEG"))
    same(splits.test, np.broadcast_to(decoded, (2, 3, 64, 64)), [2, 1])
    (root / "val/val_annotations.txt").write_text("val_1.JPEG\tn04\t0\t32\t44\t62\n")
    refused("val_annotations.txt gives 'val_1.JPEG' no class", lambda: load(settings))
    refused("tiny-imagenet is not in", lambda: load(config(dataset="tiny-imagenet", data_dir=tmp_path / "no")))


# --- images of every kind


def quarters(side: int = 8) -> np.ndarray:
    """uint8 (3, side, side): a corner each of red, green, blue and grey."""
    out, half = np.zeros((3, side, side), np.uint8), side // 2
    out[0, :half, :half] = out[1, :half, half:] = out[2, half:, :half] = 255
    out[:, half:, half:] = 102
    return out


def as_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


@pytest.mark.parametrize("ending", ["png", "bmp", "ppm", "tif", "TIFF", "webp"])
def test_lossless_formats_keep_every_byte(tmp_path: Path, ending: str):
    pixels = noise(1, 8)[0]
    how: dict[str, Any] = {"lossless": True} if ending == "webp" else {}
    as_image(pixels).save(tmp_path / f"x.{ending}", **how)
    np.testing.assert_array_equal(read_image(tmp_path / f"x.{ending}", 8), pixels)


def test_every_mode_becomes_rgb(tmp_path: Path):
    grey = noise(1, 8)[0, 0]

    def read(image: Image.Image, ending: str = "png", **how: Any) -> np.ndarray:
        image.save(tmp_path / f"x.{ending}", **how)
        return read_image(tmp_path / f"x.{ending}", 8)

    three = np.stack([grey] * 3)
    np.testing.assert_array_equal(read(Image.fromarray(grey)), three)
    np.testing.assert_array_equal(read(Image.fromarray(grey > 127)), np.where(three > 127, 255, 0))
    deep = grey.astype(np.uint16) * 257 + 100  # 16 bits, not on the steps of 8 bits
    for ending in ("png", "tif"):
        np.testing.assert_array_equal(read(Image.fromarray(deep.clip(0, 65535)), ending), three)
    np.testing.assert_array_equal(read(as_image(quarters()).quantize(4)), quarters())  # a palette
    see_through = as_image(quarters()).convert("RGBA")
    see_through.paste((9, 9, 9, 0), (0, 0, 4, 4))
    on_white = quarters()
    on_white[:, :4, :4] = 255
    np.testing.assert_array_equal(read(see_through), on_white)
    palette = as_image(quarters()).quantize(4)
    np.testing.assert_array_equal(read(palette, transparency=palette.getpixel((0, 0))), on_white)
    half = Image.merge("LA", (Image.new("L", (8, 8), 100), Image.new("L", (8, 8), 0)))
    assert (read(half) == 255).all()
    ink = as_image(quarters()).convert("CMYK")
    assert np.abs(read(ink, "jpg", quality=100).astype(int) - quarters()).mean() < 12
    np.testing.assert_array_equal(read(ink, "tif"), np.asarray(ink.convert("RGB")).transpose(2, 0, 1))


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_turns_the_image_upright(tmp_path: Path, ending: str, turn: int):
    """`turn` says how the camera was held; undone, the same corners stand where they stood."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transpose that lays the upright image down
    image, exif = as_image(quarters(16)), Image.Exif()
    exif[0x0112] = turn
    laid = image.transpose(Image.Transpose(undo[turn])) if turn > 1 else image
    how: dict[str, Any] = {"quality": 100, "subsampling": 0} if ending == "jpg" else {}
    laid.save(tmp_path / f"x.{ending}", exif=exif, **how)
    pixels = read_image(tmp_path / f"x.{ending}", 16)
    assert np.abs(pixels.astype(int) - quarters(16)).max() < 40  # JPEG


def test_central_square_resized_by_the_short_side(tmp_path: Path):
    wide = noise(1, 40)[0, :, :16]  # (3, 16, 40): at half the size 20 x 8, of which columns 6 to 14 are the centre
    half = (
        np.asarray(as_image(wide).resize((20, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1)[:, :, 6:14].astype(int)
    )
    for name, pixels, target in (("wide", wide, half), ("tall", wide.swapaxes(1, 2), half.swapaxes(1, 2))):
        as_image(pixels).save(tmp_path / f"{name}.png")
        assert np.abs(read_image(tmp_path / f"{name}.png", 8) - target).max() <= 1
        assert read_image(tmp_path / f"{name}.png", 64).shape == (3, 64, 64)  # enlarged
    Image.new("RGB", (1, 500), "red").save(tmp_path / "line.png")
    assert (read_image(tmp_path / "line.png", 8)[0] == 255).all()


def test_a_large_jpeg_decoded_small_stays_close_to_the_exact_resize(tmp_path: Path):
    ramp = np.linspace(0, 255, 640).astype(np.uint8)
    pixels = np.stack([np.tile(ramp, (640, 1)), np.tile(ramp[:, None], (1, 640)), np.full((640, 640), 77, np.uint8)])
    as_image(pixels).save(tmp_path / "x.jpg", quality=95)
    exact = Image.open(tmp_path / "x.jpg").resize((32, 32), Image.Resampling.BOX)
    pixels = read_image(tmp_path / "x.jpg", 32).astype(int)
    assert np.abs(pixels - np.asarray(exact).transpose(2, 0, 1)).max() <= 4


# --- faults of folders


def test_folder_faults(tmp_path: Path):
    def read(where: Path) -> Callable[[], Any]:
        return lambda: load(config(dataset="folder", data_dir=where))

    refused("nowhere is missing", read(tmp_path / "nowhere"))
    (tmp_path / "file").write_text("x")
    refused("file is a file where a folder is expected", read(tmp_path / "file"))
    (tmp_path / "empty").mkdir()
    refused("empty has no folders, one for each class", read(tmp_path / "empty"))
    image_folder(tmp_path / "one", ("train", "test"), {"cat": 2})
    refused("fewer than two classes", read(tmp_path / "one"))
    image_folder(tmp_path / "bare", ("train", "test"), {"cat": 2, "dog": 2})
    (tmp_path / "bare/train/eel").mkdir()
    (tmp_path / "bare/test/eel").mkdir()
    refused(r"train/eel has no images \(\.jpg", read(tmp_path / "bare"))
    (tmp_path / "bare/test/eel").rmdir()
    refused("train and .*test differ in classes: only one of them has 'eel'", read(tmp_path / "bare"))
    image_folder(tmp_path / "half", ("train",), {"cat": 2, "dog": 2})
    refused("half/test is missing", read(tmp_path / "half"))
    image_folder(tmp_path / "other", ("test",), {"cat": 2, "dog": 2})
    refused("other/train is missing", read(tmp_path / "other"))
    for link in ("train/dog/round", "train/dog/round.png"):
        image_folder(tmp_path / "links", ("train", "test"), {"cat": 2, "dog": 2})
        (tmp_path / "links" / link).symlink_to(tmp_path / "links" / link)
        refused(f"links/{link} cannot be read: ", read(tmp_path / "links"))
        (tmp_path / "links" / link).unlink()
    image_folder(tmp_path / "alone", ("",), {"cat": 2, "dog": 1})
    refused("alone/dog has one image", read(tmp_path / "alone"))
    (tmp_path / "other/train").write_text("x")
    refused("train is a file where a folder is expected", read(tmp_path / "other"))


@pytest.mark.parametrize("storage", ["device", "stream"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_named(tmp_path: Path, storage: str, workers: int):
    image_folder(tmp_path, ("train", "test"), {"cat": 3, "dog": 3})
    bad = tmp_path / "train/dog/001.png"
    jpeg = tmp_path / "x.jpg"
    as_image(noise(1, 64)[0]).save(jpeg)
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "f.tif")
    for content, words in (
        (bad.read_bytes()[:60], "is not a readable image|is not an image"),
        (jpeg.read_bytes()[:700], "is not a readable image"),
        (b"", "is not an image"),
        (b"GIF89a but not really", "is not"),
        ((tmp_path / "f.tif").read_bytes(), "is not a readable image: grey values are floats"),
    ):
        bad.write_bytes(content)

        def use() -> None:
            splits = load(config(dataset="folder", data_dir=tmp_path, storage=storage, workers=workers))
            list(splits.train.batches(torch.arange(6).view(3, 2)))

        refused(rf"train/dog/001\.png {words}", use)


@pytest.fixture
def not_root() -> Iterator[Path]:
    """A folder owned by a user who is not root, with his rights as long as the test runs."""
    if not hasattr(os, "geteuid"):
        pytest.skip("needs POSIX permissions")
    with tempfile.TemporaryDirectory() as folder:
        was_root = os.geteuid() == 0
        if was_root:
            os.chown(folder, 65534, -1)
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.chmod(folder, 0o700)
            for place, folders, files in os.walk(folder):
                for name in folders + files:
                    os.chmod(Path(place) / name, 0o700)
            if was_root:
                os.seteuid(0)


@pytest.mark.parametrize("what", ["train/dog/001.png", "train/dog", "test", "."])
def test_without_permission(not_root: Path, what: str):
    image_folder(not_root, ("train", "test"), {"cat": 2, "dog": 2})
    (not_root / what).chmod(0)
    refused("may not be read: permission denied", lambda: load(config(dataset="folder", data_dir=not_root)))


# --- one's own data set


def test_own_data_set_of_arrays_tensors_and_files(tmp_path: Path, mine: Callable):
    x, y, x_test, y_test = noise(6, 8), [0, 1, 2, 0, 1, 2], noise(3, 8, 1), [2, 1, 0]
    mine(x, y, x_test, y_test)
    splits = load(config(dataset="mine"))
    same(splits.train, x, y)
    same(splits.test, x_test, y_test)
    assert splits.train.classes == ("0", "1", "2")
    mine(torch.from_numpy(x), torch.tensor(y), torch.from_numpy(x_test), torch.tensor(y_test), ["a", "b", "c"])
    splits = load(config(dataset="mine", storage="stream"))
    same(splits.train, x, y)
    assert splits.test.classes == ("a", "b", "c")
    mine([x[:1], x[1:4], x[4:]], [0, -1, -1, 1, -1, 2], x_test, y_test)  # in parts, partly labelled
    splits = load(config(dataset="mine"))
    same(splits.train, x[[0, 3, 5]], [0, 1, 2])
    same(splits.pretrain, x[[0, 3, 5, 1, 2, 4]], [0, 1, 2, -1, -1, -1])
    for n, pixels in enumerate(x):
        save(tmp_path / f"{n}.png", pixels)
    mine([tmp_path / f"{n}.png" for n in range(6)], y, [str(tmp_path / "3.png")], [0])
    splits = load(config(dataset="mine"))
    same(splits.train, x, y)
    same(splits.test, x[3:4], [0])


def test_own_data_set_faults(mine: Callable):
    x, y = noise(4, 8), [0, 1, 0, 1]
    for values, words in (
        ((x, y, x), r"its loader must return \(images"),
        ((x.transpose(0, 2, 3, 1), y, x, y), r"mine, training: images must be uint8 \(N, 3, H, W\)"),
        ((x / 255, y, x, y), r"must be uint8 \(N, 3, H, W\) of one size, not float64"),
        ((x, y, x[:, :1], y), r"mine, test: images must be uint8"),
        ((x, y, noise(4, 9), y), r"training images are \(3, 8, 8\), test images \(3, 9, 9\)"),
        (([x[:2], noise(2, 9)], y, x, y), "of one size"),
        ((x[:0], [], x, y), "mine, training: there are no images"),
        (([], [], x, y), "mine, training: there are no images"),
        ((x, y, [], []), "mine, test: there are no images"),
        ((x, y[:3], x, y), r"mine, training: 4 images need as many whole numbers as labels, not int64 \(3,\)"),
        ((x, [0.0, 1.0, 0.0, 1.0], x, y), "whole numbers as labels, not float64"),
        ((x, y, x, [0, 1, 2, 0]), "mine, test has label 2, outside 0..1"),
        ((x, y, x, [0, 1, -1, 0]), "mine, test has label -1, outside 0..1"),
        ((x, [0, 1, -2, 0], x, y), "mine, training has label -2, outside -1..1"),
        ((x, y, x, y, ["only"]), "mine, training has label 1, outside -1..0"),
        ((x, [0] * 4, x, [0] * 4), "fewer than two classes"),
        ((x, [-1] * 4, x, [0] * 4), "fewer than two classes|outside"),
        ((x, [0, 10, 20, 30], x, y), r"labels must be 0..3, .*these are 0, 10, 20, 30; number them so"),
        ((x, [1, 2, 1, 2], x, y), r"labels must be 0..1, .*these are 1, 2; number them so"),
        ((x, [15_000_000, 0, 2**62, 1], x, y), r"labels must be 0..3, .*these are 0, 1, 15000000, 4611686018427387904"),
    ):
        mine(*values)
        refused(words, lambda: load(config(dataset="mine")))
    mine(x, y, x, y)
    refused(
        "train_images 5 is more than the 4 training images of mine",
        lambda: load(config(dataset="mine", train_images=5)),
    )
    mine(x, [0, 3, 0, 3], x, [0, 1, 2, 3], ["a", "b", "c", "d"])  # the names say how many classes there are
    assert load(config(dataset="mine")).train.classes == ("a", "b", "c", "d")
    mine(x, y, x, y)
    refused("val_fraction 0.1 of 4 images", lambda: load(config(dataset="mine", val_fraction=0.1)))
    refused("stored_size 16 is for image files", lambda: load(config(dataset="mine", stored_size=16)))
    with pytest.raises(MetaugError, match="did you mean 'mine'"):
        config(dataset="mien")


# --- splits


def marked(labels: list[int]) -> np.ndarray:
    """Images uint8 (N, 3, 8, 8) that each say their own number in their first two bytes."""
    pixels = np.zeros((len(labels), 3, 8, 8), np.uint8)
    number = np.arange(len(labels))
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = number // 256, number % 256
    return pixels


def numbers(images: Images | StreamedImages) -> list[int]:
    (pixels,) = images.batches([torch.arange(len(images))])
    return (pixels[:, 0, 0, 0].long() * 256 + pixels[:, 0, 0, 1].long()).tolist()


def test_splits_are_disjoint_stratified_and_do_not_depend_on_the_seed(mine: Callable):
    labels = [0] * 400 + [1] * 200 + [2] * 50
    mine(marked(labels), labels, marked(labels)[:20], labels[:20])
    splits = load(config(dataset="mine", val_fraction=0.1))
    assert splits.val is not None
    train, val = numbers(splits.train), numbers(splits.val)
    assert sorted(train + val) == list(range(650))
    assert numbers(splits.pretrain) == train
    assert splits.val.labels.bincount().tolist() == [40, 20, 5]
    assert [labels[n] for n in train] == splits.train.labels.tolist()
    assert val != list(range(0, 650, 10))  # drawn, not every tenth
    for change in ({"seed": 5}, {"storage": "stream"}, {"workers": 0}):
        again = load(config(dataset="mine", val_fraction=0.1, **change))
        assert again.val is not None
        assert (numbers(again.train), numbers(again.val)) == (train, val)


def test_train_images_limits_before_val_is_cut(mine: Callable):
    labels = [0, 1, 2] * 200
    mine(marked(labels), labels, marked(labels)[:20], labels[:20])
    used = []
    for limit in (100, 300, 600):
        splits = load(config(dataset="mine", val_fraction=0.2, train_images=limit))
        assert splits.val is not None
        assert (len(splits.train), len(splits.val)) == (limit * 4 // 5, limit // 5)
        both = np.bincount(np.concatenate([splits.train.labels, splits.val.labels]))
        assert both.max() - both.min() <= 1
        used.append(set(numbers(splits.train) + numbers(splits.val)))
    assert used[0] < used[1] < used[2]  # more images contain fewer


def test_unlabelled_images_are_never_held_out(mine: Callable):
    labels = [0, 1, -1, -1] * 50
    mine(marked(labels), labels, marked(labels)[:2], [0, 1])
    splits = load(config(dataset="mine", val_fraction=0.5))
    assert splits.val is not None
    assert (len(splits.train), len(splits.val), len(splits.pretrain)) == (50, 50, 150)
    assert not set(numbers(splits.val)) & set(numbers(splits.pretrain))
    assert splits.pretrain.labels.tolist() == splits.train.labels.tolist() + [-1] * 100
    assert isinstance(splits.pretrain, Images)
    assert isinstance(splits.train, Images)
    assert splits.train.pixels.data_ptr() == splits.pretrain.pixels.data_ptr()  # not stored twice


def test_a_number_of_ones_own_is_asked_for_and_a_presets_is_a_most(tmp_path: Path):
    image_folder(tmp_path, ("train", "test"), {"cat": 30, "dog": 20})
    small: dict[str, Any] = {
        "dataset": "folder",
        "data_dir": tmp_path,
        "image_size": 8,
        "val_fraction": 0,
        "batch_size": 8,
    }
    for_all = preset("sketch", **small)
    assert (for_all.train_images, len(load(for_all).train)) == (1600, 50)
    assert len(load(Config(**for_all.model_dump(mode="json"))).train) == 50  # as a worker or a resumed run has it
    assert len(load(for_all.replace(seed=1)).train) == 50
    assert len(load(preset("sketch", **small, train_images=40)).train) == 40
    for text in ("all", None):
        assert preset("sketch", **small, train_images=text).train_images is None
        assert Config(train_images=text).name() == Config().name()
    for asked in (preset("sketch", **small, train_images=1600), for_all.replace(train_images=1600),
                  Config(**for_all.model_dump(mode="json")).replace(train_images=1600)):  # fmt: skip
        assert asked.name() == for_all.name()
        refused("train_images 1600 is more than the 50 .*; train_images all takes all", lambda asked=asked: load(asked))


# --- what a data set is


def test_a_digest_of_files_is_of_their_names_and_sizes(tmp_path: Path):
    image_folder(tmp_path / "a", ("train", "test"), {"cat": 2, "dog": 2})
    one = config(dataset="folder", data_dir=tmp_path / "a")
    source = datasets.digest_source(one)
    assert source is not None
    assert source.startswith("8 files, digest ")
    assert load(one).data == {"pretrain": 4, "train": 4, "val": 0, "test": 4, "classes": 2, "source": source}
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    assert datasets.digest_source(config(dataset="folder", data_dir=tmp_path / "moved")) == source
    file = tmp_path / "a/train/cat/000.png"
    content = file.read_bytes()
    file.write_bytes(content + b"\0")
    assert datasets.digest_source(one) != source
    file.write_bytes(content)
    assert datasets.digest_source(one) == source
    file.rename(file.with_name("x.png"))
    assert datasets.digest_source(one) != source


def test_a_digest_of_images_is_the_same_streamed_or_not(mine: Callable):
    x, y = noise(300, 8), [0, 1, 2] * 100
    mine(x, y, x[:9], y[:9])
    kept, streamed = (load(config(dataset="mine", storage=storage)).data for storage in ("device", "stream"))
    assert kept == streamed
    x[299, 2, 7, 7] ^= 1
    assert load(config(dataset="mine")).data["images"] != kept["images"]
    x[299, 2, 7, 7] ^= 1
    mine(x, y, x[:9], [*y[:8], 0])
    assert load(config(dataset="mine")).data["images"] != kept["images"]


# --- Images and StreamedImages


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_streamed_bytes_are_the_same(tmp_path: Path, workers: int):
    image_folder(tmp_path, ("train", "test"), {"cat": 15, "dog": 12}, side=20)
    both = [load(config(dataset="folder", data_dir=tmp_path, storage=s, workers=workers)) for s in ("device", "stream")]
    assert [type(splits.train) for splits in both] == [Images, StreamedImages]
    rows = torch.randint(0, 27, (9, 5), generator=torch.Generator().manual_seed(0))
    for given in (rows, list(rows), rows[:1], rows[:0]):
        batches = [list(splits.train.batches(given)) for splits in both]
        assert len(batches[0]) == len(given)
        assert all(torch.equal(*pair) for pair in zip(*batches, strict=True))
    few = torch.tensor([20, 3, 11])
    for part in (few, slice(4, 9)):
        taken = [splits.train.take(part) for splits in both]
        assert torch.equal(taken[0].labels, taken[1].labels)
        assert len(taken[0]) == len(taken[1]) == len(taken[0].labels)
        assert numbers(taken[0]) == numbers(taken[1])
    assert taken[1].classes == ("cat", "dog")


def test_streaming_stops_when_the_consumer_does(tmp_path: Path):
    image_folder(tmp_path, ("train", "test"), {"cat": 15, "dog": 12})
    train = load(config(dataset="folder", data_dir=tmp_path, storage="stream")).train
    before = threading.active_count()
    batches: Any = train.batches(torch.arange(26).view(13, 2))
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


class Watched:
    """A source of 8 px images that says when each batch is read; the number of an image is in all its bytes."""

    shape = (40, 3, 8, 8)

    def __init__(self) -> None:
        self.begun = [threading.Event() for _ in range(20)]

    def read(self, index: np.ndarray) -> np.ndarray:
        self.begun[index[0] // 2].set()
        if index[0] >= 30:
            raise DataError(f"image {index[0]} is damaged")
        return np.broadcast_to(index[:, None, None, None].astype(np.uint8), (len(index), 3, 8, 8)).copy()


def watched(workers: int) -> tuple[Watched, StreamedImages, Tensor]:
    source = Watched()
    images = StreamedImages(source, np.arange(40), torch.zeros(40, dtype=torch.int64), ("a",), workers)
    return source, images, torch.arange(40).view(20, 2)


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_decoded_while_the_consumer_works(workers: int):
    """While a step has its batch, those that follow are read, 2 x workers of them and not the whole epoch."""
    source, images, rows = watched(workers)
    batches: Any = images.batches(rows)
    next(batches)
    assert all(event.wait(30) for event in source.begun[1 : 2 * workers + 1])
    assert not any(event.is_set() for event in source.begun[2 * workers + 1 :])
    batches.close()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_fault_in_a_worker_comes_in_its_turn_and_ends_the_stream(workers: int):
    before = threading.active_count()
    _, images, rows = watched(workers)
    numbers_read: list[int] = []

    def consume() -> None:
        for pixels in images.batches(rows):
            numbers_read.extend(pixels[:, 0, 0, 0].tolist())

    refused("image 30 is damaged", consume)
    assert numbers_read == list(range(30))
    assert threading.active_count() == before


STREAMED_RUN = """
import threading
from pathlib import Path
from metaug_core import Config, fit
config = Config(
    dataset="folder", data_dir=Path("images"), runs_dir=Path("runs"), storage="stream", workers=3, image_size=16, width=0.05,
    views=("L", "ab"), feature_dim=8, mag_hidden=16, bank_negatives=8, batch_size=4, epochs=10**6, val_fraction=0, device="cpu",
)
try:
    fit(config, lambda progress: print("training", flush=True))
except KeyboardInterrupt:
    print("stopped with", threading.active_count(), "thread", flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_an_interrupted_stream_leaves_nothing_running(tmp_path: Path):
    """Ctrl-C in a real process: its decoding threads end, it has no children, and it exits by itself."""
    image_folder(tmp_path / "images", ("train", "test"), {"cat": 15, "dog": 12}, side=20)
    command = [sys.executable, "-c", STREAMED_RUN]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "training\n"
        run.send_signal(signal.SIGINT)
        lines = run.communicate(timeout=60)[0].splitlines()
        assert lines[-1] == "stopped with 1 thread"
        assert run.returncode == 0
    with pytest.raises(ProcessLookupError):  # nobody is left of the group that began with it
        os.killpg(run.pid, 0)


def test_a_run_does_not_depend_on_storage_or_workers(tmp_path: Path):
    from metaug_core import fit
    from metaug_core.runs.files import read_tensors

    image_folder(tmp_path / "images", ("train", "test"), {"cat": 15, "dog": 12}, side=20)
    results = []
    for number, how in enumerate(({"storage": "device"}, *({"storage": "stream", "workers": w} for w in (0, 3)))):
        run = fit(
            config(dataset="folder", data_dir=tmp_path / "images", image_size=16, width=0.05, views=("L", "ab"), feature_dim=8,
                   mag_hidden=16, bank_negatives=8, batch_size=4, epochs=2, device="cpu", runs_dir=tmp_path / str(number), **how),
            lambda progress: None,
        )  # fmt: skip
        results.append(read_tensors(run.checkpoint)[0])
    assert results[0].keys() == results[1].keys() == results[2].keys()
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name
        assert torch.equal(value, results[2][name]), name


def test_auto_storage(mine: Callable, monkeypatch: pytest.MonkeyPatch):
    mine(noise(4, 8), [0, 1, 0, 1], noise(4, 8), [0, 1, 0, 1])
    assert isinstance(load(config(dataset="mine")).test, Images)
    monkeypatch.setattr(datasets, "ON_DEVICE", 8 * 3 * 8 * 8 - 1)
    assert isinstance(load(config(dataset="mine")).test, StreamedImages)
    assert isinstance(load(config(dataset="mine", storage="device")).test, Images)


# --- shapes, downloads, the real thing


def test_shapes_come_with_the_workbook(monkeypatch: pytest.MonkeyPatch):
    sizes = datasets.SHAPES_TRAIN, datasets.SHAPES_TEST
    assert sizes[0][0] * 0.9 >= 8000
    assert sizes[1][0] == 2000
    assert sizes[0][1] != sizes[1][1]  # the seeds
    monkeypatch.setattr(datasets, "SHAPES_TRAIN", (1000, sizes[0][1]))  # fewer, for speed
    monkeypatch.setattr(datasets, "SHAPES_TEST", (500, sizes[1][1]))
    splits = load(config(dataset="shapes", val_fraction=0.1, stored_size=12))
    assert isinstance(splits.train, Images)
    assert isinstance(splits.test, Images)
    assert splits.train.pixels.shape == (900, 3, 12, 12)
    assert splits.train.labels.bincount().tolist() == [90] * 10
    assert splits.train.classes == shapes.CLASSES
    hashes = [{image.numpy().tobytes() for image in part.pixels} for part in (splits.train, splits.test)]
    assert not hashes[0] & hashes[1]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """An HTTP server of tmp_path/served -> its address."""
    (tmp_path / "served").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def archive_of(folder: Path, to: Path) -> str:
    with tarfile.open(to, "w:gz") as tar:
        tar.add(folder, folder.name)
    return hashlib.md5(to.read_bytes()).hexdigest()


def test_download(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    six = [batch(3, seed) for seed in range(6)]
    folder = cifar_python(tmp_path / "made", six[:5], six[5], python=2)
    served, root = tmp_path / "served/cifar.tar.gz", tmp_path / "data"
    md5 = archive_of(folder, served)

    def offer(path: str, md5: str) -> None:
        place = SimpleNamespace(url=f"{server}/{path}", tgz_md5=md5, base_folder="cifar-10-batches-py")
        monkeypatch.setattr(torchvision.datasets, "CIFAR10", place)

    for path, sum_, words in (("absent.tar.gz", md5, "HTTP Error 404"), ("cifar.tar.gz", "0" * 32, "corrupted")):
        offer(path, sum_)
        refused(
            f"cifar10 could not be downloaded from {server}/{path} to .*data: .*{words}",
            lambda: datasets.download("cifar10", root),
        )
        assert list(root.iterdir()) == []
    whole = served.read_bytes()
    served.write_bytes(whole[: len(whole) // 2])  # a good md5 of half an archive: it breaks while it is unpacked
    offer("cifar.tar.gz", hashlib.md5(served.read_bytes()).hexdigest())
    refused("cifar10 could not be downloaded", lambda: datasets.download("cifar10", root))
    assert list(root.iterdir()) == []
    served.write_bytes(whole)
    offer("cifar.tar.gz", md5)
    assert datasets.download("cifar10", root) == root / "cifar-10-batches-py"
    assert [path.name for path in root.iterdir()] == ["cifar-10-batches-py"]
    same(load(config(dataset="cifar10", data_dir=root)).test, *six[5])
    offer("absent.tar.gz", md5)
    assert datasets.download("cifar10", root) == root / "cifar-10-batches-py"  # it is there


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
@pytest.mark.parametrize("damage", ["empty folder", "a file", "empty file", "half a file", "a file less"])
def test_what_is_there_and_not_whole_is_not_taken_for_downloaded(tmp_path: Path, name: str, damage: str):
    if name == "stl10":
        stl10(tmp_path)
    else:
        fine = name == "cifar100"
        batches = [batch(3, seed, 10) for seed in range(1 if fine else 5)]
        cifar_python(tmp_path, batches, batch(3, 5), python=2, fine=fine)
    folder = tmp_path / datasets.PLACES[name][0]
    assert datasets.download(name, tmp_path) == folder  # whole
    victim = max(folder.iterdir(), key=lambda file: file.stat().st_size)
    content = victim.read_bytes()
    if damage in ("empty folder", "a file"):
        shutil.rmtree(folder)
        folder.mkdir() if damage == "empty folder" else folder.touch()
    elif damage == "a file less":
        victim.unlink()
    else:
        victim.write_bytes(content[: len(content) // 2 if damage == "half a file" else 0])
    refused(
        f"{folder} is there, but not whole: .*; remove it, then download it again",
        lambda: datasets.download(name, tmp_path),
    )


def test_what_cannot_be_downloaded(tmp_path: Path):
    for name, words in (
        ("tiny-imagenet", "put tiny-imagenet-200 into"),
        ("imagenet", "put imagenet into"),
        ("folder", "read"),
    ):
        refused(f"{name} cannot be downloaded here: .*{words}", lambda name=name: datasets.download(name, tmp_path))
    with pytest.raises(MetaugError, match="did you mean 'cifar10'"):
        datasets.download("cifar1", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not REAL.exists(), reason="needs the real CIFAR-10 images")
def test_the_real_images(tmp_path: Path):
    with tarfile.open(REAL) as tar:
        wanted = (m for m in tar if m.isdir() or (int(Path(m.name).stem) < (250 if m.name.startswith("train") else 50)))
        tar.extractall(tmp_path, members=wanted, filter="data")
    splits = load(config(dataset="folder", data_dir=tmp_path, image_size=32, train_images=2000, val_fraction=0.1))
    assert splits.val is not None
    assert (len(splits.train), len(splits.val), len(splits.test)) == (1800, 200, 500)
    assert splits.train.labels.bincount().tolist() == [180] * 10
    assert splits.train.classes[0] == "airplane"
    first = np.asarray(Image.open(tmp_path / "test/airplane/0000.jpg")).transpose(2, 0, 1)
    (pixels,) = splits.test.batches(torch.tensor([[0]]))
    np.testing.assert_array_equal(pixels[0].numpy(), first)
