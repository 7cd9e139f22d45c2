"""Cases that a stranger might try, each decided by its number: command lines, settings, image folders, run folders.

    PYTHONPATH=tests python tests/project/fuzz.py FOLDER FIRST COUNT [SECONDS]

tries COUNT cases in FOLDER, each in a process of its own that is forked from this one, and prints a line of JSON for each that ends
otherwise than it should (`fault`), and one with the counts at the end. A case should end with what was asked, or with one line that
says what was wrong; never with a traceback, a signal or after SECONDS (60).
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args, get_origin
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from tiny import ROOT, TINY

from metaug_core import METHODS, Config, ConfigError, MetaugError, fit
from metaug_core.evaluation import representations
from metaug_core.training import loop
from metaug_workbook.cli import start
from metaug_workbook.jobs import papermill_runner
from metaug_workbook.results.evidence import EXPERIMENTS

SMALL = {"preset": "sketch", "train_images": "64", "epochs": "1", "batch_size": "16", "width": "0.05", "mag_hidden": "8",
         "feature_dim": "8", "bank_negatives": "16", "workers": "0", "device": "cpu"}  # fmt: skip
HEAVY = {"image_size", "stored_size", "width", "epochs", "mag_hidden", "head_hidden", "feature_dim", "batch_size", "bank_negatives",
         "queue_size", "predictor_hidden", "prototypes", "dim_units"}  # fmt: skip
TEXTS = [
    "", " ", "0", "-1", "1", "2", "0.5", "1.5", "nan", "inf", "-inf", "1e400", "1e-400", "-0", "9" * 30, "9" * 5000, "true",
    "False", "None", "null", "none", "all", "[]", "[1,2", "{}", "{'a': 1}", "'a'", '"', "1,2", "a,b", ",", "L,ab", "RGB", "RGB,RGB",
    "٣", "１", "½", "0x10", "1_000", "$a_b$", "<b>x</b>", "%s %d", "{x}", "..", "../../outside", "/", "/dev/null", "/dev/full",
    "a/b", "x" * 300, "x" * 5000, "a\nb", "\t", "\x1b[31m", "\udcff", "ä", "🙂", "--help", "-p", "auto", "cpu", "cuda", "metaug",
    "cmc+hard", "cmc+hard+hard", "+", "metaug+mag", "sgd", "cosine", "step", "own", "uniform", "quick", "paper", "folder",
]  # fmt: skip
VIEWS = ["L,ab", "L,ab,RGB", "RGB,RGB", "RGB", "Sobel,Lab", "Y,DbDr", "L,L,L"]
NUMBERS = {int: ["1", "2", "3", "8", "16", "32"], float: ["0", "0.1", "0.5", "1", "2"], bool: ["true", "false"]}
COMMANDS = ["train"] * 8 + [
    "sweep",
    "sweep",
    "runs",
    "report",
    "resume",
    "work",
    "download",
    "figures",
    "methods",
    "run",
    "compare",
    "evidence",
    "claims",
    "evaluate",
    "features",
    "export",
    "stop",
    "rm",
    "settings",
]
IMAGE_NAMES = [
    "a.png",
    "b.jpg",
    "c.JPEG",
    "d.bmp",
    "e.webp",
    "f.txt",
    "Thumbs.db",
    ".hidden.png",
    "g",
    "ä b.png",
    "h.png.part",
]
CLASSES = ["cat", "dog", "$a_b$", "ü", os.fsdecode(b"\xff\xfe"), "<i>", "a b", "__MACOSX", ".git", "x" * 200]
LEVELS = [
    "train",
    "test",
    "Train",
    "TEST",
    "training",
    "val",
    "valid",
    "images",
    "__MACOSX",
    ".ipynb_checkpoints",
    "test ",
]


# --- what is typed


def pick_word(rng: random.Random, known: list[str]) -> str:
    """One that is known, one that is nearly known, or anything."""
    word, chance = rng.choice(known), rng.random()
    if chance < 0.8:
        return word
    if chance < 0.9 and word:
        place = rng.randrange(len(word))
        return word[:place] + rng.choice(["", "x", word[place] * 2]) + word[place + 1 :]
    return rng.choice(TEXTS)


def suit(name: str) -> list[str]:
    """Texts that a setting may take, if they are in its range and the others allow it."""
    names = {"method": list(METHODS), "dataset": ["shapes"], "encoder": ["conv", "fc", "resnet18"], "views": VIEWS}
    annotation = Config.model_fields[name].annotation
    parts = [part for part in (annotation, *get_args(annotation)) if part is not None]
    literal = [text for part in parts for text in get_args(part) if isinstance(text, str)]
    numbers = [text for part in parts for text in NUMBERS.get(part, [])]
    rates = [",".join(["0.5"] * len(parts[1:]))] if get_origin(annotation) is tuple else []
    return names.get(name) or literal or [text for text in parts if isinstance(text, str)] or numbers or rates or ["x"]


def pick_setting(rng: random.Random) -> tuple[str, str]:
    """The name of a setting, and a text for it: half of the time one that suits."""
    name = pick_word(rng, list(Config.model_fields))
    text = rng.choice(suit(name) if name in Config.model_fields and rng.random() < 0.5 else TEXTS)
    dear = (
        name in HEAVY and text.strip().replace(".", "").isdecimal() and float(text) > (0.05 if name == "width" else 32)
    )
    return name, SMALL.get(name, "16") if dear else text


def type_settings(rng: random.Random, form: Callable[[str, str], list[str]]) -> list[str]:
    """The words of settings of a small run, some of them changed."""
    settings = SMALL | dict(pick_setting(rng) for _ in range(rng.randrange(4)))
    return [word for name, text in settings.items() for word in form(name, text)]


def type_command(rng: random.Random, folder: Path) -> list[str]:
    """The words after `metaug`."""
    command = pick_word(rng, COMMANDS)
    places = [str(folder / "a file"), "/proc/x", "/dev/null", "", str(folder / "ä $x$ 'q'"), "x" * 300]
    runs_dir = ["--runs-dir", rng.choice(places) if rng.random() < 0.1 else str(folder / "runs")]
    surplus = [rng.choice(TEXTS)] if rng.random() < 0.05 else []
    if command == "train":
        seeds = ["--seeds", rng.choice(TEXTS)] if rng.random() < 0.05 else []
        return [command, *type_settings(rng, lambda name, text: ["-p", name, text]), *runs_dir, *seeds, *surplus]
    if command == "sweep":  # only listed: `train` is what trains
        axes = [
            f"{name}={text},{rng.choice(TEXTS)}" for name, text in (pick_setting(rng) for _ in range(rng.randrange(3)))
        ]
        words = [word for axis in axes for word in ("--grid", axis)] or ["--seeds", "1"]
        for name in ("--measures", "--representations", "--notebook", "--name", "--workers", "--trials", "--seeds"):
            if rng.random() < 0.1:
                words += [name, rng.choice([*TEXTS, "knn", "probe_plain,knn", "untrained", "01_pretrain", "2"])]
        settings = type_settings(rng, lambda name, text: ["--set", f"{name}={text}"])
        return [command, *settings, *words, "--dry-run", *runs_dir, *surplus]
    if command == "evidence":
        settings = type_settings(rng, lambda name, text: ["--set", f"{name}={text}"])
        names = [pick_word(rng, list(EXPERIMENTS)) for _ in range(rng.randrange(3))]
        return [command, *names, *settings, "--dry-run", "--tables", str(folder / "tables"), *runs_dir]
    if command == "run":  # a run of a notebook takes half a minute: the last name ends it before
        settings = type_settings(rng, lambda name, text: ["-p", name, text])
        return [command, pick_word(rng, ["01_pretrain", "06_margins", "11_delta"]), *settings, "-p", "xyzzy", "1"]
    if command == "download":  # nothing that would be fetched
        return [
            command,
            pick_word(rng, ["shapes", "folder", "cifar-10", "imagenet"]),
            "--data-dir",
            str(folder),
            *surplus,
        ]
    if command == "figures":
        return [command, *surplus, "--folder", str(folder / "figures"), "--out", str(folder / "out")]
    more = {"compare": 1, "export": 1, "features": 2}  # words beside the run
    if command in ("report", "resume", "stop", "rm", "evaluate", *more):
        names = [pick_word(rng, ["shapes", str(folder), "x" * 300]) for _ in range(1 + more.get(command, 0))]
        return [command, *names, *runs_dir, *surplus]
    if command == "settings":
        return [command, pick_word(rng, list(Config.model_fields)), *surplus]
    if command == "runs":
        return [
            command,
            *(f"{name}={text}" for name, text in [pick_setting(rng)] * rng.randrange(2)),
            *runs_dir,
            *surplus,
        ]
    return [command, *([str(folder)] if command == "work" else []), *surplus]


def try_command(rng: random.Random, folder: Path) -> None:
    (folder / "a file").touch()
    run_metaug(type_command(rng, folder))


def run_metaug(words: list[str]) -> None:
    """The command in this process, as a shell would start it."""
    print(f"metaug {words}")
    sys.argv = ["metaug", *words]
    start()


# --- what is handed to Config


def pick_object(rng: random.Random, depth: int = 0) -> Any:
    """A value of any kind, as a program may hand it over."""
    simple: list[Any] = [
        *TEXTS, None, True, 0, 1, 7, -3, 0.5, float("nan"), float("inf"), 2**31, 10**30, 1j, b"x", Decimal("0.1"), Fraction(1, 3),
        np.float32(0.5), np.int64(3), np.array([1, 2]), torch.tensor(3), torch.tensor([0.1, 0.2]), Path("x"), range(3), len,
        {1, 2}, frozenset({"L", "ab"}), {"L": 1}.keys(), iter("ab"), (c for c in "ab"), Ellipsis, bytearray(b"y"), type,
    ]  # fmt: skip
    if depth < 2 and rng.random() < 0.3:
        parts = [pick_object(rng, depth + 1) for _ in range(rng.randrange(5))]
        return rng.choice([list, tuple])(parts) if rng.random() < 0.7 else dict(enumerate(parts))
    return rng.choice(simple)


def try_config(rng: random.Random, folder: Path) -> None:
    """A Config of anything is refused in a sentence, or is a run with a name that its own settings give again."""
    values = {pick_word(rng, list(Config.model_fields)): pick_object(rng) for _ in range(rng.randrange(1, 5))}
    print(f"Config of {list(values)}: {[repr(value)[:80] for value in values.values()]!r}")
    try:
        config = Config(**{**values, "runs_dir": folder})
    except ConfigError as error:
        refuse(error)
    assert Config(**json.loads(json.dumps(config.model_dump(mode="json")))).name() == config.name()
    assert Config(**config.chosen()).name() == config.name()
    assert "/" not in config.name()


def refuse(error: MetaugError) -> None:
    """What the command line does with an error."""
    print(f"metaug: {error}", file=sys.stderr)
    sys.exit(2)


def try_parameters(rng: random.Random, folder: Path) -> None:
    """Parameters of a notebook are refused before it starts, or are a Config's."""
    path = rng.choice(sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")))
    names = [*papermill_runner.read_parameters(path), *Config.model_fields]
    given = {pick_word(rng, names): rng.choice(TEXTS) for _ in range(rng.randrange(1, 4))}
    print(f"{path.name} {given}")
    try:
        papermill_runner.check_parameters(path, given, [])
    except MetaugError as error:
        refuse(error)


# --- what lies in a folder


def make_image(rng: random.Random, path: Path) -> None:
    """A file where an image is expected: mostly a whole one, of any mode, else something else."""
    chance = rng.random()
    try:
        if chance < 0.75:
            mode = rng.choice(["RGB", "RGB", "RGB", "L", "P", "1", "RGBA", "CMYK", "I;16", "LA"])
            size = rng.choice([(20, 20), (32, 24), (1, 1), (1, 40), (300, 2)])
            Image.new(mode, size, rng.randrange(2) if mode != "P" else 0).save(
                path, format=None if path.suffix else "PNG"
            )
        elif chance < 0.8:
            path.write_bytes(b"")
        elif chance < 0.85:
            path.write_bytes(rng.randbytes(200))
        elif chance < 0.9:
            path.write_text("not an image")
        elif chance < 0.92:
            os.mkfifo(path)
        elif chance < 0.94:
            path.symlink_to(rng.choice(["nowhere", ".", "..", "a.png", "/dev/zero"]))
        elif chance < 0.96:
            path.mkdir()
        else:
            Image.new("RGB", (20, 20)).save(path, format="PNG")
            path.write_bytes(path.read_bytes()[: rng.randrange(60)])
    except (OSError, ValueError, KeyError):  # a mode that this format does not know
        path.write_bytes(rng.randbytes(20))


def make_images(rng: random.Random, folder: Path) -> None:
    """An image folder of any layout, mostly near train/CLASS/* and test/CLASS/*."""
    folder.mkdir()
    levels = ["train", "test"] if rng.random() < 0.6 else [rng.choice(LEVELS) for _ in range(rng.randrange(4))]
    for level in dict.fromkeys(levels):
        for name in ["cat", "dog"] if rng.random() < 0.5 else rng.sample(CLASSES, rng.randrange(4)):
            place = folder / level / name
            if rng.random() < 0.1:
                place /= "deeper"
            place.mkdir(parents=True, exist_ok=True)
            for _ in range(rng.choice([0, 1, 12, 12, 12, 12])):
                path = place / f"{rng.randrange(99)}{rng.choice(IMAGE_NAMES if rng.random() < 0.3 else ['a.png'])}"
                if not os.path.lexists(path):
                    make_image(rng, path)
        if rng.random() < 0.1 and (folder / level).is_dir():
            (folder / level / "loop").symlink_to(folder)


def try_images(rng: random.Random, folder: Path) -> None:
    make_images(rng, folder / "images")
    small = {**SMALL, "dataset": "folder", "data_dir": str(folder / "images"), "image_size": "16", "batch_size": "4"}
    del small["train_images"]
    print([str(path.relative_to(folder)) for path in sorted((folder / "images").glob("*/*"))])
    run_metaug(
        [
            "train",
            *(word for name, text in small.items() for word in ("-p", name, text)),
            "--runs-dir",
            str(folder / "runs"),
        ]
    )


# --- what lies in a run's folder


def damage(rng: random.Random, path: Path) -> str:
    """Do to a file what disks, editors and synchronising programs do -> what it was."""
    content = path.read_bytes()
    kinds: dict[str, Callable[[], Any]] = {
        "removed": path.unlink,
        "emptied": lambda: path.write_bytes(b""),
        "cut": lambda: path.write_bytes(content[: rng.randrange(len(content) + 1)]),
        "flipped": lambda: path.write_bytes(flip(rng, content)),
        "noise": lambda: path.write_bytes(rng.randbytes(50)),
        "json": lambda: path.write_text(
            rng.choice(["3", "null", "[]", "[1, 2]", "{}", '"x"', '{"step": "x"}\n', "[{}]", "1\n2\n", "NaN\n"])
        ),
        "nested": lambda: path.write_text("[" * 100_000),
        "swapped": lambda: path.write_bytes(
            rng.choice(sorted(p for p in path.parent.rglob("*") if p.is_file())).read_bytes()
        ),
        "a folder": lambda: (path.unlink(), path.mkdir()),
        "a fifo": lambda: (path.unlink(), os.mkfifo(path)),
        "a loop": lambda: (path.unlink(), path.symlink_to(path.name)),
    }
    kind = rng.choice(list(kinds))
    kinds[kind]()
    return f"{path.name}: {kind}"


def flip(rng: random.Random, content: bytes) -> bytes:
    if not content:
        return b"\0"
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]


def try_run(rng: random.Random, folder: Path) -> None:
    """A run with one or two damaged files, beside a whole one that stays in the list."""
    runs, source = folder / "runs", folder.parent / "whole"
    whole, stopped = sorted(path for path in source.iterdir() if path.is_dir())
    shutil.copytree(source, runs)
    hurt = runs / rng.choice([whole, stopped]).name
    files = sorted(path for path in hurt.rglob("*") if path.is_file() and not path.name.startswith("."))
    print([damage(rng, path) for path in rng.sample(files, rng.choice([1, 1, 2])) if os.path.lexists(path)])
    words = rng.choice(
        [
            ["runs"],
            ["report"],
            ["report", hurt.name],
            ["resume", hurt.name],
            ["report", str(hurt)],
            ["work", str(runs)],
            ["runs", "seed=1"],
            ["runs", "--json"],
            ["runs", "--csv"],
            ["compare", whole.name, stopped.name],
            ["evaluate", hurt.name],
            ["export", hurt.name, str(folder / "encoder.pt2")],
            ["stop", hurt.name],
            ["rm", hurt.name, "--yes"],
        ]
    )
    run_metaug([*words, *([] if words[0] == "work" else ["--runs-dir", str(runs)])])


def make_whole(folder: Path) -> None:
    """Two runs, for `try_run`: one finished and evaluated, one with a checkpoint in the middle."""
    config = Config(
        **{**TINY, "dataset": "shapes", "train_images": 100, "monitor_every": 10, "epochs": 1, "runs_dir": folder}
    )
    representations.evaluate(fit(config, report=lambda progress: None), measures=["knn"])
    longer = config.replace(epochs=3, seed=1)

    def stop(progress: Any) -> None:
        progress.run.request_stop()

    try:
        with patch.multiple(
            loop, REPORT_SECONDS=0.0, LOOK_SECONDS=0.0
        ):  # a fast machine ends it before the usual first look
            fit(longer, report=stop)
    except MetaugError:
        return
    raise AssertionError("the second run was not stopped")


# --- all of it

KINDS: dict[str, Callable[[random.Random, Path], None]] = {
    "command": try_command, "config": try_config, "parameters": try_parameters, "images": try_images, "run": try_run,
}  # fmt: skip


def try_case(number: int, folder: Path) -> None:
    """One case, to its end by SystemExit or a fault."""
    list(KINDS.values())[number % len(KINDS)](random.Random(number), folder)


def fork_case(number: int, folder: Path, seconds: float) -> dict[str, Any]:
    """One case in a process of its own -> number, kind, exit code (None: it hung), seconds, what it printed."""
    place = folder / f"case-{number}"
    place.mkdir(parents=True)
    begun, child = time.monotonic(), os.fork()
    if child == 0:
        os.setsid()
        os.chdir(place)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT), descriptor)
        code = 0
        try:
            try_case(number, place)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1 if error.code else 0
        except BaseException:
            traceback.print_exc()
            code = 70
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = wait_for(child, seconds)
    said = {name: (place / name).read_text(errors="replace") for name in ("stdout", "stderr")}
    shutil.rmtree(place, ignore_errors=True)
    return {
        "number": number,
        "kind": list(KINDS)[number % len(KINDS)],
        "code": code,
        "seconds": time.monotonic() - begun,
    } | said


def wait_for(child: int, seconds: float) -> int | None:
    """The exit code of a process; None if it had to be killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def fault(case: dict[str, Any]) -> str | None:
    """What is wrong with how a case ended, or None."""
    code = case["code"]
    lines = [line.rpartition("\r")[2] for line in case["stderr"].splitlines()]
    said = [line for line in lines if line.strip() and not line.startswith("note: ")]
    if code is None:
        return "it hung"
    if code not in (0, 1, 2):
        return f"it ended with {code}"
    if "Traceback" in case["stderr"]:
        return "a traceback"
    if code == 0 and not case["stdout"]:
        return "nothing done, nothing said"
    if code and [line.startswith("metaug: ") for line in said if "step/s" not in line] != [True]:
        return "not one sentence"
    return None


def main(folder: Path, first: int, count: int, seconds: float) -> None:
    torch.set_num_threads(1)
    make_whole(folder / "whole")
    METHODS.keys()
    endings: Counter[str] = Counter()
    for number in range(first, first + count):
        case = fork_case(number, folder, seconds)
        wrong = fault(case)
        endings["faults" if wrong else "refused" if case["code"] else "done"] += 1
        if wrong:
            print(json.dumps(case | {"fault": wrong}), flush=True)
    print(json.dumps(endings), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3]), float((sys.argv[4:] or [60])[0]))
