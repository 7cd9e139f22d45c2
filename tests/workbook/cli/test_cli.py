"""The `metaug` command with real notebooks, kernels and processes: one sentence for bad input, nothing lost."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import papermill
import pytest
from click.testing import CliRunner, Result
from papermill.exceptions import PapermillExecutionError
from tiny import ROOT, FullDisk
from workbooks import sentence, write_notebook

from metaug_core import METHODS, MetaugError, evaluate, extensions, fit
from metaug_core.config import ENGINE_VERSION, EVALUATION_VERSION, Config
from metaug_core.presets import preset
from metaug_core.runs import files, listing, lock, store
from metaug_workbook.cli import catalogue, main
from metaug_workbook.jobs import papermill_runner
from metaug_workbook.results import tables

NOTEBOOKS = ROOT / "notebooks"
TRAIN = """\
config = notebook.configure(preset=preset, epochs=epochs, seed=seed, width=width, train_images=train_images, mag_hidden=mag_hidden)
run = notebook.train(config)"""


def metaug(*words: str) -> Result:
    """The command in this process."""
    return CliRunner().invoke(main.main, words)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch):
    for name in ("METAUG_RUNS", "PYDEVD_DISABLE_FILE_VALIDATION"):  # `metaug run` sets them for its kernel
        monkeypatch.setenv(name, os.environ.get(name, ""))


def test_help_and_version():
    assert "resume" in metaug("--help").output
    assert metaug("--version").output.startswith("metaug, version ")
    assert metaug("run", "--nonsense").exit_code == 2


def test_a_command_ends_as_always_where_its_sentence_cannot_be_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", FullDisk())
    with pytest.raises(SystemExit) as ended:
        main.main(["report", "--runs-dir", str(tmp_path), "none"])
    assert ended.value.code == main.BAD_INPUT


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_a_closed_stream_is_no_place_for_the_next_file():
    code = "import os; from metaug_workbook.cli import start\ntry: start()\nexcept SystemExit: [os.fstat(n) for n in (0, 1, 2)]"
    command = f"{sys.executable} -c '{code}' --help 0<&- 1>&- 2>&-"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0


REFUSED = [
    (["-p", "sede", "1"], "'sede' is not a parameter of 01_pretrain.ipynb; did you mean 'seed'?"),
    (["-p", "zzz", "1"], "'zzz' is not a parameter"),
    (["-p", "seed", "one"], "seed: must be a whole number, got 'one'"),
    (["-p", "seed", "1.5"], "seed: must be a whole number, got '1.5'"),
    (["-p", "seed", "None"], "seed: must be a whole number, got 'None'"),
    (["-p", "seed", "-1"], "greater than or equal to 0, got -1"),
    (["-p", "epochs", "0"], "greater than 0, got 0"),
    (["-p", "epochs", "many"], "epochs: must be a whole number, got 'many'"),
    (["-p", "delta", "nan"], "delta: "),
    (["-p", "preset", "quik"], "unknown preset 'quik'; did you mean 'quick'?"),
    (["-p", "dataset", "cifar11"], "unknown dataset 'cifar11'; did you mean 'cifar10"),
    (["-p", "method", "metaugg"], "unknown method 'metaugg'; did you mean 'metaug'?"),
    (["-p", "encoder", "7"], "unknown encoder '7'"),
    (["-p", "train_images", "10"], "train_images 10"),
]


@pytest.mark.parametrize(("words", "expected"), REFUSED)
def test_a_bad_parameter_is_refused_in_one_sentence_before_anything_starts(words, expected, tmp_path):
    result = metaug("run", "01_pretrain", *words, "--runs-dir", str(tmp_path / "runs"))
    assert expected in sentence(result)
    assert result.exit_code == 2
    assert not (tmp_path / "runs").exists()


def test_augmented_must_be_yes_or_no(tmp_path):
    result = metaug("run", "02_evaluate", "-p", "augmented", "maybe", "--runs-dir", str(tmp_path))
    assert "augmented: must be true or false, got 'maybe'" in sentence(result)
    assert result.exit_code == 2


def test_a_notebook_that_is_not_there_or_none_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "there is no notebook '01_pretran'; did you mean '01_pretrain'?" in sentence(metaug("run", "01_pretran"))
    (tmp_path / "x.ipynb").write_text("not JSON")
    assert "is not a notebook" in sentence(metaug("run", "x.ipynb"))
    write_notebook(tmp_path / "y.ipynb", "1", parameters="")
    assert "has no cell tagged 'parameters'" in sentence(metaug("run", "y"))


def test_commands_without_runs_say_what_makes_one(tmp_path):
    place = ["--runs-dir", str(tmp_path)]
    assert "no runs in" in metaug("runs", *place).output
    assert "no evaluated run" in sentence(metaug("report", *place))
    assert "no run 'x'" in sentence(metaug("resume", "x", *place))
    assert "unknown dataset" in sentence(metaug("download", "cifar11"))
    assert metaug("resume", "x", *place).exit_code == 2


def test_a_runs_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    result = metaug(
        "run", str(write_notebook(tmp_path / "n.ipynb", "1")), "--runs-dir", str(tmp_path / "file" / "runs")
    )
    assert "file" in sentence(result)
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "-p", "seed", "1", "-p", "seed", "2"], "-p seed is given twice"),
        (["run", "01_pretrain", "-p", "seed", "1", "-p", "seed", "2"], "-p seed is given twice"),
        (["train", "-p", "runs_dir", "one", "--runs-dir", "other"], "other and runs_dir says "),
        (["run", "01_pretrain", "-p", "runs_dir", "one", "--runs-dir", "other"], "give one of them"),
        (["train", "-p", "runs_dir", ""], "runs_dir: must be the name of a folder, got ''"),
        (["runs", "--runs-dir", ""], "runs_dir: must be the name of a folder, got ''"),
        (["runs", "--runs-dir", "file"], "file is not a folder"),
        (["report", "--runs-dir", "file/below"], "file is not a folder"),
        (["resume", "x", "--runs-dir", "loop"], "loop is not a folder"),
        (["train", "--seds", "2"], "No such option '--seds'"),
        (["train", "--seeds", "0"], "0 is not in the range x>=1"),
        (["train", "-p", "seed"], "'-p' requires 2 arguments"),
        (["run"], "Missing argument 'NOTEBOOK'"),
        (["trian"], "No such command 'trian'"),
        (["-1"], "No such option '-1'"),
        (["work", "file"], "'file' is a file"),
    ],
)
def test_a_refusal_is_one_line(words, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    result = metaug(*words)
    assert expected in sentence(result)
    assert result.stderr.count("\n") == 1
    assert result.exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


def test_the_setting_runs_dir_is_obeyed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = metaug("train", *SETTINGS, "-p", "runs_dir", 'it\'s "ü"')
    assert result.exit_code == 0, result.stderr
    assert [run.finished for run in store.list_runs(tmp_path / 'it\'s "ü"')] == [True]
    source = write_notebook(tmp_path / "own.ipynb", "1", parameters='x: int = 1\nruns_dir: str = "elsewhere"')
    values, _ = papermill_runner.check_parameters(source, {"x": "2"}, runs_dir=tmp_path)
    assert values == {"x": 2, "runs_dir": str(tmp_path)}


def test_an_empty_variable_is_as_none():
    code = "from metaug_core.config import Config; print(*(Config.model_fields[n].default.name for n in ('runs_dir', 'data_dir')))"
    environment = os.environ | {"METAUG_RUNS": "", "METAUG_DATA": ""}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout == "runs data\n"


def test_notebooks_that_are_not_the_workbooks_are_not_suggested(tmp_path, monkeypatch):
    monkeypatch.setattr(papermill_runner, "HOME", tmp_path)
    (tmp_path / "notebooks").mkdir()
    for name in ("01_first", "01_first-Copy1", "Untitled", "mine"):
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", "1")
    assert sentence(metaug("run", "99")).endswith("there is no notebook '99'; known: 01_first")
    assert papermill_runner.find_notebook("mine").stem == "mine"


def test_the_warnings_of_libraries_are_not_shown(tmp_path, recwarn):
    source = write_notebook(tmp_path / "old.ipynb", "1", parameters="x: int = 1")
    content = json.loads(source.read_text())
    for cell in content["cells"]:
        del cell["id"]  # of which nbformat warns
    source.write_text(json.dumps(content))
    assert "x: must be a whole number, got 'a'" in sentence(metaug("run", str(source), "-p", "x", "a"))
    assert not recwarn.list


def interrupt(words: list[str], begun: Callable[[], bool]) -> subprocess.Popen:
    """A command in a group of its own, which is signalled twice once it has begun."""
    command = [sys.executable, "-m", "metaug_workbook.cli.main", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 300
    while not begun() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.killpg(process.pid, number)
    return process


@pytest.mark.slow
def test_train_interrupted_twice_is_saved_and_says_so_on_a_line_of_its_own(tmp_path):
    words = ["train", *SETTINGS, "--import", str(ROOT / "tests" / "tiny.py"), "--runs-dir", str(tmp_path)]
    words[words.index("epochs") + 1] = "50000"
    process = interrupt(words, lambda: any(tmp_path.glob("*/timing.jsonl")))
    told = process.communicate(timeout=300)[1]
    assert process.returncode == 130, told
    lines = [line for line in told.replace("\r", "\n").splitlines() if line.startswith("metaug: ")]
    assert lines == ["metaug: interrupted and saved; the same command goes on"]
    assert "Traceback" not in told
    assert len(list(tmp_path.glob("*/checkpoint.safetensors"))) == 1


@pytest.mark.slow
def test_a_notebook_interrupted_while_it_shows_the_interrupt_was_interrupted(tmp_path):
    """As a second Ctrl-C does: the kernel's reply has no error then."""
    sleeping = f"""\
import pathlib, time
def interrupted(*_, **__):
    raise KeyboardInterrupt
get_ipython().showtraceback = interrupted
pathlib.Path({str(tmp_path / "begun")!r}).touch()
time.sleep(300)"""
    source = write_notebook(tmp_path / "sleeping.ipynb", sleeping, parameters="x: int = 1")
    words = ["run", str(source), "--runs-dir", str(tmp_path / "runs")]
    process = interrupt(words, (tmp_path / "begun").exists)
    told = process.communicate(timeout=300)[1]
    assert process.returncode == 130, told
    assert told.endswith("metaug: sleeping was interrupted\n")


def test_methods_are_listed():
    output = metaug("methods").output
    assert (
        "simclr: SimCLR (Chen et al. 2020)\n    views     RGB, RGB, each of its own crop\n    objective -log" in output
    )
    assert "cmc+hard: CMC + Hard (Tian et al. 2019; Robinson et al. 2021)" in output
    assert "\n    differs   The head has the paper's two layers; their code's default is three." in output
    table = metaug("methods", "--markdown").output
    assert table == catalogue.markdown()
    assert "| `metaug-only-mag` | MetAug (only MAG) | Li et al. 2022 | L, ab, RGB |" in table
    assert "### What differs from their authors' code\n\n| `method` | difference |\n" in table


def test_a_failing_notebook_is_kept_and_told_in_one_sentence(tmp_path):
    failing = write_notebook(
        tmp_path / "failing.ipynb", "raise ValueError('first line\\nthe last line')", parameters="x: int = 1"
    )
    result = metaug("run", str(failing), "--runs-dir", str(tmp_path / "runs"))
    executed = tmp_path / "runs" / "notebooks" / "failing.ipynb"
    assert "failing stopped in cell 3: ValueError: the last line" in sentence(result)
    assert str(executed) in sentence(result)
    assert result.exit_code == 1
    assert "first line" in executed.read_text()


def test_a_value_reaches_the_notebook_with_its_type(tmp_path):
    source = write_notebook(
        tmp_path / "typed.ipynb", "print(repr((name, x)))", parameters='name: str = "a"\nx: float = 1.0'
    )
    words = ["run", str(source), "-p", "name", "3", "-p", "x", "2", "--quiet", "--runs-dir", str(tmp_path / "runs")]
    result = metaug(*words)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert "('3', 2.0)" in (tmp_path / "runs" / "notebooks" / "typed.ipynb").read_text()


SETTINGS = [w for pair in {"dataset": "tiny", "image_size": "16", "views": "L,ab", "width": "0.05", "epochs": "1",
                           "batch_size": "16", "train_images": "100", "workers": "0", "mag_hidden": "16"}.items()
            for w in ("-p", *pair)]  # fmt: skip


def test_train_makes_the_runs_of_the_seeds_and_finds_them_again(tmp_path):
    for _ in range(2):
        result = metaug("train", *SETTINGS, "-p", "seed", "3", "--seeds", "2", "--runs-dir", str(tmp_path))
        assert result.exit_code == 0, result.output
        assert result.stdout.count("finished: ") == 2
    found = store.list_runs(tmp_path)
    assert sorted(run.config.seed for run in found) == [3, 4]
    assert all(run.finished and run.config.views == ("L", "ab") for run in found)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("-p", "epoch", "1"), "unknown setting 'epoch'; did you mean 'epochs'?"),
        (("-p", "views", "L"), "method 'metaug' contrasts at least 2 views, got L"),
        (("-p", "lr", "fast"), "lr: must be a number, got 'fast'"),
        (("-p", "dataset", "cifar10", "-p", "data_dir", "nowhere"), "cifar10 is not in nowhere"),
    ],
)
def test_train_refuses_in_one_sentence_before_anything_starts(words, expected, tmp_path):
    result = metaug("train", *words, "--runs-dir", str(tmp_path / "runs"))
    assert result.exit_code == 2
    assert expected in sentence(result)
    assert not list(tmp_path.glob("runs/*/checkpoint*"))


@pytest.mark.slow
def test_interrupt_resume_find_and_report(tmp_path, monkeypatch):
    """SIGTERM in the middle of training saves; `resume` ends the run; the same request then finds it, from another folder."""
    monkeypatch.chdir(tmp_path)
    runs, place = tmp_path / "runs", ["--runs-dir", "runs"]
    write_notebook(tmp_path / "train.ipynb", TRAIN)
    config = preset("quick", epochs=3, width=0.05, train_images=700, mag_hidden=16, seed=0, runs_dir=runs)
    command = [sys.executable, "-c", "from metaug_workbook.cli.main import main; main()", "run", "train.ipynb", *place]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    timing, deadline = runs / config.name() / "timing.jsonl", time.monotonic() + 300
    while not files.rows(timing) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=300)[1]
    assert process.returncode == 130, told
    assert f"metaug resume {config.name()}" in told
    assert "Traceback" not in told
    assert not store.request(config).finished
    assert "unfinished" in metaug("runs", *place).output

    result = metaug("resume", "shapes-metaug", *place)
    assert result.exit_code == 0, result.stderr
    assert "finished: " in result.output
    assert "finished already" in metaug("resume", config.name(), *place).output

    before = (runs / config.name() / "metrics.jsonl").read_bytes()
    monkeypatch.chdir(tmp_path.parent)
    result = metaug("run", str(tmp_path / "train.ipynb"), "--runs-dir", str(runs))
    assert result.exit_code == 0, result.stderr
    assert (runs / config.name() / "metrics.jsonl").read_bytes() == before
    assert "finished, 3 epochs" in (runs / config.name() / "train.ipynb").read_text()
    assert "3/3" in metaug("runs", "--runs-dir", str(runs)).output
    reported = metaug("report", config.name(), "--runs-dir", str(runs)).output
    assert "train.ipynb" in reported
    assert "not evaluated yet" in reported


def test_report_shows_the_accuracies_of_the_latest_run(tmp_path):
    run = store.request(preset("quick", runs_dir=tmp_path))
    files.write_json(run.path / "config.json", run.config.model_dump(mode="json"))
    row = {"probe_plain": 0.7, "probe_fast": 0.75, "knn": 0.6512, "evaluation_version": EVALUATION_VERSION}
    files.write_json(run.path / "evaluation-test.json", {name: row for name in ("trained", "untrained", "raw pixels")})
    output = metaug("report", "--runs-dir", str(tmp_path)).output
    assert run.path.name in output
    assert [line.split()[-4:] for line in output.splitlines() if line.startswith("trained")] == [
        ["-", "70.0", "75.0", "65.1"]
    ]


def test_report_prints_what_the_mag_did_and_nothing_where_there_is_none(tiny):
    run, without = (fit(tiny(method=method), lambda _: None) for method in ("metaug", "metaug-only-oucl"))
    output = metaug("report", run.path.name, "--runs-dir", str(run.config.runs_dir)).output
    for text, column in (
        ("update of the MAG's weights in the last epoch", "mag_update"),
        ("share of the mixed part in the MAG's gradient", "mixed_gradient_share"),
        ("share of pairs with a z~ in the encoders' gradient", "augmented_gradient_share"),
    ):
        (line,) = [line for line in output.splitlines() if text in line]
        assert f" {run.metrics[column].dropna().iloc[-1]:.2g} " in line.replace("MAG ", " ", 1)
    output = metaug("report", without.path.name, "--runs-dir", str(without.config.runs_dir)).output
    assert "MAG" not in output


@pytest.mark.slow
def test_papermill_alone_cannot_pass_a_misspelt_name(tmp_path):
    with pytest.raises(PapermillExecutionError) as caught:
        papermill.execute_notebook(
            NOTEBOOKS / "02_evaluate.ipynb", tmp_path / "x.ipynb", {"sede": 1}, progress_bar=False
        )
    assert caught.value.evalue == "'sede' is not a parameter of this notebook; did you mean 'seed'?"


@pytest.mark.slow
def test_any_setting_reaches_a_notebook_and_its_config(tmp_path):
    source = write_notebook(
        tmp_path / "settings.ipynb",
        "config = notebook.configure(preset=preset, seed=seed)",
        "print(config.views, config.lr, config.epochs, config.name())",
        parameters='preset: str = "quick"  # a preset\nseed: int = 0  # of everything',
    )
    words = ["-p", "views", "L,ab,RGB", "-p", "lr", "0.25", "-p", "seed", "4", "-p", "epochs", "None"]
    result = metaug("run", str(source), *words, "--runs-dir", str(tmp_path / "runs"))
    assert result.exit_code == 0, result.stderr
    wanted = preset("quick", views=("L", "ab", "RGB"), lr=0.25, seed=4)
    executed = tmp_path / "runs" / wanted.name() / "settings.ipynb"
    assert f"('L', 'ab', 'RGB') 0.25 {wanted.epochs} {wanted.name()}" in executed.read_text()
    assert "settings = {" in executed.read_text()


def test_a_method_in_a_file_of_ones_own_is_known(tmp_path):
    file = tmp_path / "my_own_methods.py"
    file.write_text("from metaug_core import METHODS\nMETHODS['my-own'] = METHODS['cmc']\n")
    words = ["-p", "method", "my-own", *SETTINGS, "--runs-dir", str(tmp_path / "runs")]
    assert "unknown method 'my-own'" in sentence(metaug("train", *words))
    try:
        assert metaug("train", *words, "--import", str(file)).exit_code == 0
        assert [run.config.method for run in store.list_runs(tmp_path / "runs")] == ["my-own"]
    finally:
        del METHODS["my-own"]
    file.write_text("\n\nMETHODS\n")
    other = file.rename(tmp_path / "my_other_methods.py")
    assert "my_other_methods.py: line 3: NameError: name 'METHODS'" in sentence(
        metaug("train", *words, "--import", str(other))
    )


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("absent.py", None, "there is no such file"),
        ("mine.txt", "", "it is not a .py file"),
        ("json.py", "", "'json' is the name of another module"),
        ("broken_mine.py", "x = (\n", "line 1: SyntaxError"),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_sentence(name, content, expected, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    result = metaug("train", "--import", str(tmp_path / name), "--runs-dir", str(tmp_path / "runs"))
    assert expected in sentence(result)
    assert result.exit_code == 2


# --- runs that are damaged
OTHER_JSON = (
    "null",
    "3",
    "[0.1, 0.2]",
    '"text"',
    "{}",
    '{"trained": 3}',
    '{"step": "x", "epoch": Infinity}\n',
    "[" * 5000,
)


def damage(random: Random, run: Path) -> None:
    """Damage a file of a run at random: cut, a flipped bit, emptied, swapped, other JSON, a folder, not UTF-8, gone."""
    file, other = random.sample(sorted(path for path in run.rglob("*") if path.is_file()), 2)
    content = bytearray(file.read_bytes())
    at = random.randrange(len(content)) if content else 0
    kind = random.choice(["cut", "flip", "empty", "swap", "json", "folder", "bytes", "gone"])
    if kind == "swap":
        content = other.read_bytes()
        other.write_bytes(file.read_bytes())
    elif kind == "flip" and content:
        content[at] ^= 1 << random.randrange(8)
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind != "gone":
        other_content = {
            "cut": content[:at],
            "empty": b"",
            "json": random.choice(OTHER_JSON).encode(),
            "bytes": b"\xff{",
        }
        file.write_bytes(other_content.get(kind, content))


@pytest.mark.slow
def test_whatever_is_damaged_all_runs_are_listed_and_each_is_read_or_refused_in_one_sentence(tiny, tmp_path):
    whole, random = fit(tiny(epochs=1), lambda _: None), Random(0)
    evaluate(whole, measures=("knn",), representations=("trained",))
    place = ["--runs-dir", str(tmp_path / "runs")]
    said = listing.read_folder(whole.path)
    refused = 0
    for number in range(150):
        run = store.Run(whole.path.with_name(f"damaged-{number}"), whole.config)
        shutil.copytree(whole.path, run.path)
        for _ in range(random.randint(1, 2)):
            damage(random, run.path)
        assert listing.read_folder(run.path).path == run.path
        result = metaug("report", run.path.name, *place)
        assert result.exit_code in (0, 2), result.exception
        refused += bool(result.exit_code and sentence(result))
        tensors = [run.checkpoint, *run.path.glob("encoders/*")]
        readings = [(run.evaluation,), (run.encoder_files,), *((files.read_tensors, file) for file in tensors)]
        for read, *arguments in [*readings, *((getattr, run, name) for name in ("metrics", "timing", "sessions"))]:
            with suppress(MetaugError):
                read(*arguments)
        assert str(run.progress) + str(run.failure)
        assert tables.read_row(run)["state"] in ("finished", "damaged", "failed", "missing")
    assert refused > 20
    assert listing.read_folder(whole.path) == said
    lines = metaug("runs", *place).output.splitlines()
    assert len(lines) == 1 + 1 + 150
    assert any(line.startswith(whole.path.name) and " finished " in line for line in lines)
    assert sum(" damaged " in line for line in lines) > 50
    assert metaug("report", *place).output.startswith("run ")  # one of those whose evaluation is whole


def test_report_says_how_a_run_goes_on(tiny):
    diverged = store.request(tiny(lr=1e30, optimiser="sgd"))
    place = ["--runs-dir", str(diverged.config.runs_dir)]
    with pytest.raises(MetaugError) as error:
        fit(diverged.config, lambda _: None)
    assert "no checkpoint had been made" in str(error.value)
    assert metaug("report", diverged.path.name, *place).output.splitlines()[-1] == str(error.value)
    diverged.clear_failure()
    last = metaug("report", diverged.path.name, *place).output.splitlines()[-1]
    assert last == f"not finished yet: `metaug resume {diverged.path.name}` goes on with it"


def test_a_run_of_ones_own_code_is_listed_and_its_file_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(extensions, "loaded", [])
    file = tmp_path / "my_recorded_methods.py"
    file.write_text("from metaug_core import METHODS\nMETHODS['recorded'] = METHODS['cmc']\n")
    place = ["--runs-dir", str(tmp_path / "runs")]

    def forget():
        METHODS.pop("recorded", None)
        sys.modules.pop(file.stem, None)
        extensions.loaded.clear()

    try:
        assert metaug("train", "-p", "method", "recorded", *SETTINGS, *place, "--import", str(file)).exit_code == 0
        forget()
        assert f" finished (needs --import {file}) " in metaug("runs", *place).output
        assert "recorded" not in METHODS  # a list runs nobody's code
        (run,) = (tmp_path / "runs").glob("tiny-recorded-*")
        (run / "finished.json").unlink()
        with pytest.warns(UserWarning, match=f"was trained with --import {file}: the file is loaded"):
            assert metaug("resume", run.name, *place).exit_code == 0
        forget()
        if os.getuid() == 0:
            os.chown(file, 12345, 12345)
            said = sentence(metaug("report", run.name, *place))
            assert f"it was trained with --import {file}, which is another user's" in said
            assert "recorded" not in METHODS
        file.rename(tmp_path / "moved.py")
        said = sentence(metaug("report", run.name, *place))
        assert "unknown method 'recorded'" in said
        assert f"it was trained with --import {file}, which is not there any more" in said
        (tmp_path / "elsewhere").mkdir()
        moved = (tmp_path / "moved.py").rename(tmp_path / "elsewhere" / file.name)
        assert metaug("report", run.name, *place, "--import", str(moved)).exit_code == 0
    finally:
        forget()


def test_the_package_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "metaug_workbook", "--version"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.startswith("metaug, version ")


# --- look after runs: list, compare, stop, remove
def write_run(runs_dir: Path, knn: float | None = None, **settings) -> store.Run:
    """A run's folder without training; with an accuracy, that of a finished and evaluated one."""
    run = store.request(Config(**{"runs_dir": runs_dir, **settings}))
    files.write_json(run.path / "config.json", run.config.model_dump(mode="json"))
    files.write_json(run.path / "environment.json", [{"engine": ENGINE_VERSION}])
    if knn is not None:
        row = {"knn": knn, "evaluation_version": EVALUATION_VERSION}
        files.write_json(run.path / "evaluation-test.json", {"trained": row})
        files.write_json(run.path / "finished.json", {})
    return run


def list_names(*words: str) -> list[str]:
    """The first column of `metaug runs`, without its head."""
    return [line.split()[0] for line in metaug("runs", *words).output.splitlines()[1:]]


def test_runs_shows_what_differs_and_can_be_filtered(tmp_path):
    place = ["--runs-dir", str(tmp_path)]
    a = write_run(tmp_path, 0.5, method="cmc", lr=0.001)
    b = write_run(tmp_path, method="cmc", lr=0.01, seed=1)
    c = write_run(tmp_path, 0.25, method="simclr", views=["RGB", "RGB"])
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("{")
    lines = {line.split()[0]: line.split() for line in metaug("runs", *place).output.splitlines()}
    heads = lines["run"]
    assert heads == ["run", "method", "lr", "seed", "epochs", "state", "kNN", "%", "age"]
    assert lines[a.path.name][1:7] == ["cmc", "0.001", "0", "-/200", "finished", "50.0"]
    assert lines[c.path.name][1:7] == ["simclr", "0.001", "0", "-/200", "finished", "25.0"]
    assert lines["damaged"][1:7] == ["-", "-", "-", "-/-", "damaged", "-"]
    assert lines["they"][:4] == ["they", "also", "differ", "in"]  # what comes with simclr has no place
    assert {"views,", "independent,"} < {*lines["they"]}
    head, *rows = metaug("runs", "method=cmc", *place).output.splitlines()
    assert head.split() == ["run", "lr", "seed", "epochs", "state", "kNN", "%", "age"]
    assert [row.split()[:5] for row in rows] == [
        [a.path.name, "0.001", "0", "-/200", "finished"],
        [b.path.name, "0.01", "1", "-/200", "unfinished"],
    ]
    assert list_names("lr=1e-3", "views=L,ab,RGB", *place) == [a.path.name]
    assert list_names("state=unfinished", *place) == [b.path.name]
    assert list_names("state=damaged", *place) == ["damaged"]
    assert list_names("train_images=all", "independent=true", *place) == [c.path.name]
    assert "none of the 4 runs in" in metaug("runs", "seed=7", *place).output
    assert "unknown setting 'methd'; did you mean 'method'?" in sentence(metaug("runs", "methd=cmc", *place))
    assert "runs cmc: needs NAME=VALUE" in sentence(metaug("runs", "cmc", *place))


def test_runs_as_json_and_csv(tmp_path):
    place = ["--runs-dir", str(tmp_path)]
    assert metaug("runs", "--json", *place).output == "[]\n"
    run, other = write_run(tmp_path, 0.5, method="cmc"), write_run(tmp_path, method="cmc", seed=1)
    (other.path / "environment.json").write_text("[{}]")  # from before there was a version of the engine
    first, _ = json.loads(metaug("runs", "--json", *place).output)
    assert first["settings"] == run.config.model_dump(mode="json") | {"engine": ENGINE_VERSION}
    assert first["evaluation"]["trained"]["knn"] == 0.5
    assert (first["run"], first["path"], first["state"]) == (run.path.name, str(run.path), "finished")
    rows = list(csv.DictReader(metaug("runs", "--csv", *place).output.splitlines()))
    assert [(row["run"], row["seed"], row["engine"], row["knn"], row["probe_fast"]) for row in rows] == [
        (run.path.name, "0", str(ENGINE_VERSION), "0.5", ""),
        (other.path.name, "1", "None", "", ""),
    ]
    (other.path / "config.json").write_text('{"method": "cmc", "seed": 1}')  # of a version with fewer settings
    _, row = csv.DictReader(metaug("runs", "--csv", *place).output.splitlines())
    assert (row["epochs"], row["encoder"]) == ("200", "conv")


def test_compare_pairs_runs_by_their_seeds(tmp_path):
    """By hand: cmc 40, 42, 44 % and 10 more with simclr but for 1 in the last: differences 10, 10, 9 have mean 9.7 and t-interval
    4.303 * 0.577 / sqrt(3) = 1.4; 40, 42, 44 have 4.303 * 2 / sqrt(3) = 5.0."""
    cmc = [write_run(tmp_path, 0.40 + 0.02 * seed, method="cmc", seed=seed) for seed in range(3)]
    simclr = [write_run(tmp_path, knn, method="simclr", seed=seed) for seed, knn in enumerate((0.5, 0.52, 0.53, 0.9))]
    write_run(tmp_path, 0.99, method="cmc", seed=4, lr=0.5)
    write_run(tmp_path, method="cmc", seed=5)  # not finished
    older = write_run(tmp_path, 0.99, method="cmc", seed=6)
    (older.path / "environment.json").write_text('[{"engine": 1}]')
    place = ["--runs-dir", str(tmp_path)]
    told = metaug("compare", cmc[1].path.name, simclr[0].path.name, *place)
    assert told.exit_code == 0, told.stderr
    lines = [re.split(r"  +", line) for line in told.output.splitlines()]
    assert lines[0] == ["A", cmc[1].path.name, "seeds 0, 1, 2"]
    assert lines[1] == ["B", simclr[0].path.name, "seeds 0, 1, 2, 3"]
    assert ["method", "cmc", "simclr"] in lines
    assert not any(line[0] in ("seed", "bank_negatives") for line in lines)
    mean = "61.3 ± 30.6 (n = 4)"
    assert ["trained, kNN (%)", "42.0 ± 5.0 (n = 3)", mean, "+9.7 ± 1.4 (n = 3)"] in lines
    told = metaug("compare", cmc[0].path.name, cmc[2].path.name, *place).output
    lines = [re.split(r"  +", line) for line in told.splitlines()]
    assert ["seed", "0", "2"] in lines
    assert ["trained, kNN (%)", "40.0 (n = 1)", "44.0 (n = 1)", "–"] in lines
    unfinished = [write_run(tmp_path / "other", method="cmc", seed=seed) for seed in range(2)]
    told = metaug("compare", *(run.path.name for run in unfinished), "--runs-dir", str(tmp_path / "other")).output
    assert told.splitlines()[0] == f"A  {unfinished[0].path.name}  not finished"
    assert told.endswith("no finished run, so there are no final numbers\n")


def test_rm_asks_and_removes_only_runs_of_its_folder(tmp_path, monkeypatch):
    runs, place = tmp_path / "runs", ["--runs-dir", str(tmp_path / "runs")]
    a, b, c = (write_run(runs, method="cmc", seed=seed) for seed in range(3))
    elsewhere = write_run(tmp_path / "elsewhere", method="cmc")
    (runs / "linked").symlink_to(elsewhere.path, target_is_directory=True)
    for words, answer in (
        ([a.path.name], "n\n"),
        ([a.path.name], ""),
        ([str(elsewhere.path), "-y"], ""),
        (["linked", "-y"], ""),
    ):
        result = CliRunner().invoke(main.main, ["rm", *words, *place], input=answer)
        assert "nothing was removed" in result.stderr
        assert result.exit_code == 2
    with lock.hold(b.path):
        assert f"{b.path.name} is in use" in sentence(metaug("rm", a.path.name, b.path.name, "--yes", *place))
    assert all(run.path.exists() for run in (a, b, c, elsewhere))
    result = CliRunner().invoke(main.main, ["rm", a.path.name, a.path.name, *place], input="y\n")
    assert f"{a.path.name}  unfinished  " in result.output
    assert f"removed: {a.path}" in result.output
    monkeypatch.chdir(runs)
    assert metaug("rm", c.path.name, "--yes", *place).exit_code == 0  # as a folder, too
    assert {path.name for path in runs.iterdir()} == {b.path.name, "linked"}
    assert "no run" in sentence(metaug("rm", a.path.name, "--yes", *place))


@pytest.mark.slow
def test_a_run_that_another_process_trains_is_listed_and_can_be_stopped(tmp_path):
    place = ["--runs-dir", str(tmp_path)]
    words = ["train", *SETTINGS, "--import", str(ROOT / "tests" / "tiny.py"), "--quiet", *place]
    words[words.index("epochs") + 1] = "50000"
    command = [sys.executable, "-m", "metaug_workbook.cli.main", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not any(tmp_path.glob("*/timing.jsonl")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    (run,) = list_names("state=training", *place)
    assert f"{run} is in use" in sentence(metaug("rm", run, "--yes", *place))
    assert f"{run} will stop after the step under way" in metaug("stop", run, *place).output
    told = process.communicate(timeout=300)[1]
    assert process.returncode == 130, told
    assert told == "metaug: interrupted and saved; the same command goes on\n"
    assert (tmp_path / run / "checkpoint.safetensors").exists()
    assert f"{run} is not being trained" in sentence(metaug("stop", run, *place))


def test_what_looks_after_runs_needs_no_torch(tmp_path):
    run = write_run(tmp_path, 0.5, method="cmc")
    code = """\
import sys
from click.testing import CliRunner
from metaug_workbook.cli import main
name, place = sys.argv[1], ["--runs-dir", sys.argv[2]]
for words, code in [(["runs"], 0), (["runs", "method=cmc", "--csv"], 0), (["stop", name], 2), (["sweep", "--set", "lr=0.1"], 2),
                    (["run", "01_pretrain", "--hlep"], 2), (["rm", name, "--yes"], 0)]:
    result = CliRunner().invoke(main.main, [*words, *place])
    assert result.exit_code == code, (words, result.output)
assert CliRunner().invoke(main.main, ["settings", "delat"]).exit_code == 2
assert CliRunner().invoke(main.main, ["--help"]).exit_code == 0
assert not {"torch", "pandas", "papermill"} & {*sys.modules}
"""
    done = subprocess.run(
        [sys.executable, "-c", code, run.path.name, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not run.path.exists()


# --- help
def test_settings_are_explained():
    everything = metaug("settings").output
    assert all(f"  {name}  " in everything for name in Config.model_fields)
    assert everything.startswith("Used by every method:\n  dataset  shapes ")
    assert "\nUsed by barlow:\n  barlow_lambda  0.0051  Weight of the off-diagonal entries" in everything
    delta = " ".join(metaug("settings", "delta").output.split())
    assert "values a number >= 0 default 1e-05 in presets" in delta
    assert delta.endswith("used by metaug-only-mag, metaug, metaug-nnclr, NAME+mag, NAME+noise, NAME+dropout")
    assert re.search(r"in presets +quick 0\.1, ", metaug("settings", "delta").output)
    assert re.search(r"only with +negatives bank\n", metaug("settings", "bank_momentum").output)
    assert re.search(r"values +eq7 or eq8 or eq9 or eq10\n", metaug("settings", "oucl").output)
    assert "2 values with commas between, each a number >= 0 and <= 1" in metaug("settings", "crop_scale").output
    assert "does not depend on it" in metaug("settings", "log_every").output
    part = metaug("settings", "jigsaw").output
    assert [line.split()[0] for line in part.splitlines() if line.startswith("  jigsaw")] == [
        "jigsaw_grid",
        "jigsaw_weight",
    ]
    assert "unknown setting 'delat'; did you mean 'delta'?" in sentence(metaug("settings", "delat"))


def test_the_help_of_run_lists_the_parameters_of_a_notebook(tmp_path):
    source = write_notebook(tmp_path / "own.ipynb", "1", parameters="depth: int = 3  # how deep to go")
    for words in (["-p", "depth", "4", str(source), "--help"], [str(source), "-h"]):
        told = metaug("run", *words)
        assert told.exit_code == 0, told.stderr
        assert re.search(r"Parameters of own .*\n  depth  3  how deep to go\n$", told.output)
    told = metaug("run", "01_pretrain", "--help").output
    assert "Parameters of 01_pretrain (Does MetAug learn to see without labels?):" in told
    assert "Any other setting goes with -p as well" in told
    assert "Parameters of" not in metaug("run", "--help").output
    assert "there is no notebook '01_pretran'" in sentence(metaug("run", "01_pretran", "--help"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_the_names_of_runs(tmp_path):
    """With what the shell itself asks for, in a real one."""
    names = [write_run(tmp_path / "runs", method=method).path.name for method in ("cmc", "simclr")]
    command = tmp_path / "metaug"
    command.write_text(f"#!{sys.executable}\nfrom metaug_workbook.cli import start\nstart()\n")
    command.chmod(0o755)
    script = """\
eval "$(_METAUG_COMPLETE=bash_source metaug)"
for words in "metaug resume shapes-c" "metaug rm $1 shapes-s" "metaug compare shapes-" "metaug res"; do
    COMP_WORDS=($words) COMP_CWORD=$(($(wc -w <<< "$words") - 1)) COMPREPLY=()
    _metaug_completion metaug
    echo "${COMPREPLY[@]}"
done"""
    paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "METAUG_RUNS": str(tmp_path / "runs")}
    done = subprocess.run(
        ["bash", "-c", script, "bash", names[0]], env=os.environ | paths, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [names[0], names[1], " ".join(names), "resume"]


def test_quiet_shows_the_result_alone(tmp_path):
    words = ["train", *SETTINGS, "-p", "cpc_grid", "4", "--runs-dir", str(tmp_path)]
    quiet = metaug(*words, "--quiet")
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    assert quiet.stdout == f"finished: {next(tmp_path.glob('tiny-*'))}\n"
    assert "note: cpc_grid changes nothing" in metaug(*words).stderr
