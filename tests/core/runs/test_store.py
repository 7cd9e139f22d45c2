"""A run's folder: written whole or not at all, found again by its request, and never unpickled."""

import json
import os
import pickle
import re
import shutil
from importlib import metadata
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny import TINY

from metaug_core import DATASETS, ENCODERS, METHODS, Config, MetaugError, evaluate, fit, list_runs, open_run
from metaug_core.runs import files
from metaug_core.runs.files import (
    StoreError,
    append,
    keep_rows,
    load_module,
    read_json,
    read_tensors,
    rows,
    write,
    write_json,
    write_tensors,
)
from metaug_core.runs.listing import list_folders, read_folder
from metaug_core.runs.store import Run, begin, request


def left(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".writing-*")]


# --- files


def test_write_replaces_all_of_a_file(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    write(path, b"first, and long")
    write(path, b"second")
    assert path.read_bytes() == b"second"
    assert not left(tmp_path)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_keeps_what_stood_there(tmp_path, monkeypatch, broken):
    path = tmp_path / "file"
    write(path, b"good")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, full)
    with pytest.raises(StoreError) as error:
        write(path, b"half")
    assert str(error.value) == f"cannot write {path}: No space left on device; what was saved before is kept"
    assert path.read_bytes() == b"good"
    assert not left(tmp_path)


def test_a_write_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("replace"), replace(*names)))
    write_json(tmp_path / "file", {"b": 1, "a": [None, 2.5]})
    assert done == ["fsync", "replace"]
    assert read_json(tmp_path / "file") == {"a": [None, 2.5], "b": 1}


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
def test_the_files_of_a_run_follow_the_umask(tiny, umask, mode):
    before = os.umask(umask)
    try:
        run = fit(tiny(epochs=1), lambda progress: None)
    finally:
        os.umask(before)
    assert {file.name: file.stat().st_mode & 0o777 for file in run.path.rglob("*") if file.is_file()} == dict.fromkeys(
        [file.name for file in run.path.rglob("*") if file.is_file()], mode
    )


def test_tensors_and_scalars_come_back(tmp_path):
    path = tmp_path / "t.safetensors"
    tensors = {
        "a": torch.randn(2, 3),
        "transposed": torch.randn(4, 5).T,
        "bytes": torch.arange(9, dtype=torch.uint8),
        "one": torch.tensor(3),
        "bf16": torch.randn(3).bfloat16(),
        "empty": torch.zeros(0, 4),
    }
    write_tensors(path, tensors, {"step": 3, "run": "x"})
    found, scalars = read_tensors(path)
    assert scalars == {"step": 3, "run": "x"}
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 20, 200, -1])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.randn(20, 3)}, {})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(StoreError, match=f"^cannot read {re.escape(str(path))}: [^\n]+$"):
        read_tensors(path)


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


def test_nothing_is_unpickled(tmp_path, monkeypatch, tiny):
    """A checkpoint that is a pickle, by torch or by Python, is refused and not run."""
    monkeypatch.chdir(tmp_path)
    for name in ("torch", "pickle"):
        config = tiny(seed=len(name))
        run = request(config)
        run.path.mkdir(parents=True)
        if name == "torch":
            torch.save({"networks": Bomb()}, run.checkpoint)
        else:
            run.checkpoint.write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(StoreError, match=r"^cannot read \S+checkpoint\.safetensors: [^\n]+$"):
            fit(config, lambda progress: None)
    assert not (tmp_path / "exploded").exists()


def test_load_module_names_what_does_not_fit(tmp_path):
    module, source = torch.nn.Linear(3, 2), tmp_path / "file"
    good = {f"x.{name}": t + 1 for name, t in module.state_dict().items()}
    load_module(module, good | {"other": torch.ones(1)}, "x.", source)
    assert torch.equal(module.weight, good["x.weight"])
    with pytest.raises(StoreError, match=r"does not fit this run's config: x\.bias is in only one of the two$"):
        load_module(module, {"x.weight": good["x.weight"]}, "x.", source)
    with pytest.raises(StoreError, match=r"x\.weight has shape \(3, 3\) instead of \(2, 3\)$"):
        load_module(module, good | {"x.weight": torch.ones(3, 3)}, "x.", source)


# --- rows


def test_rows_append_and_keep(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert rows(path) == []
    append(path, [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2}])
    append(path, [{"step": 3, "text": "a\u2028b\nc"}])
    assert [row["step"] for row in rows(path)] == [1, 2, 3]
    assert rows(path)[0]["loss"] == 0.1 + 0.2
    assert rows(path)[2]["text"] == "a\u2028b\nc"
    before = path.read_bytes()
    keep_rows(path, 3)
    assert path.read_bytes() == before
    keep_rows(path, 1)
    assert [row["step"] for row in rows(path)] == [1]
    keep_rows(path, -1)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("torn", [b'{"step": 3', b'{"step": 3}', b"\0\0\0", b"\xff\xfe", b'{"step": 1e'])
def test_a_torn_last_line_is_not_a_row(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    append(path, [{"step": 1}, {"step": 2}])
    with path.open("ab") as file:
        file.write(torn)
    assert [row["step"] for row in rows(path)] == [1, 2]
    keep_rows(path, 2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("line", [b"{]\n", b"\xff\n", b"3\n", b"{}\n"])
def test_a_damaged_line_is_one_sentence(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'{"step": 2}\n')
    with pytest.raises(StoreError, match=rf"^[^\n]*{re.escape(str(path))}[^\n]+$"):
        rows(path)


def test_begin_drops_later_rows_and_remembers_sessions(tiny):
    run = request(tiny())
    begin(run, 0, "cpu")
    logs = ("metrics.jsonl", "similarities.jsonl", "timing.jsonl")
    for name in logs:
        append(run.path / name, [{"step": step} for step in (0, 2, 4)])
    begin(run, 2, "cpu")
    assert [[row["step"] for row in rows(run.path / name)] for name in logs] == [[0, 2]] * 3
    assert [session["from_step"] for session in read_json(run.path / "environment.json")] == [0, 2]
    begin(run, 0, "cpu")
    assert run.metrics.empty
    assert len(read_json(run.path / "environment.json")) == 1


def test_the_environment_says_what_is_needed_to_repeat(tiny):
    run = request(tiny())
    begin(run, 0, "cpu")
    (session,) = read_json(run.path / "environment.json")
    assert (
        session["versions"]["torch"] == torch.__version__.split("+")[0]
        or session["versions"]["torch"] in torch.__version__
    )
    assert {"python", "numpy", "torchvision", "safetensors"} <= session["versions"].keys()
    assert session["device"] == "cpu"
    assert session["threads"] == 1  # of so small a run, whatever torch has
    assert session["commit"] is None or re.fullmatch("[0-9a-f]{40}", session["commit"])
    assert {"platform", "uncommitted_changes", "started"} <= session.keys()
    cpuinfo = Path("/proc/cpuinfo")
    known = cpuinfo.exists() and "model name" in cpuinfo.read_text()
    assert f": {session['processor']}\n" in cpuinfo.read_text() if known else session["processor"]


def test_a_run_begins_where_packages_of_the_notebooks_are_not_installed(tiny, monkeypatch):
    known = metadata.Distribution.from_name

    def without(name):
        if name in ("papermill", "pandas"):
            raise metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(metadata.Distribution, "from_name", without)
    run = request(tiny())
    begin(run, 0, "cpu")
    (session,) = read_json(run.path / "environment.json")
    assert session["versions"].keys() == {"python", "torch", "torchvision", "numpy", "pydantic", "safetensors"}


# --- names


def test_the_same_request_has_the_same_name():
    config = Config(**TINY)
    assert config.name() == Config(**TINY).name() == config.replace().name()
    assert config.name() == Config(**json.loads(config.model_dump_json())).name()
    assert config.name() == Config(**{**TINY, "lr": "0.003", "epochs": 2.0, "views": ["L", "ab"]}).name()
    assert re.fullmatch("tiny-metaug-conv-s0-[0-9a-f]{10}", config.name())


def test_the_place_of_an_image_folder_is_in_the_name(tmp_path, monkeypatch):
    one, other = (Config(dataset="folder", data_dir=tmp_path / name) for name in ("a", "b"))
    assert one.name() != other.name()
    monkeypatch.chdir(tmp_path)
    assert one.name() == Config(dataset="folder", data_dir="a").name()


@pytest.mark.parametrize("table", [DATASETS, METHODS, ENCODERS], ids=lambda table: table.kind)
@pytest.mark.parametrize("name", ["uoft-cs/cifar10", "../../outside", "a\\b", "two\nlines", "/absolute", "tab\t"])
def test_no_registered_name_is_a_path(tiny, monkeypatch, table, name):
    usual = tiny()
    monkeypatch.setitem(table, name, table[getattr(usual, table.kind)])
    config = tiny(**{table.kind: name})
    run = request(config)
    assert run.path.parent == config.runs_dir
    assert run.path.name.isprintable()
    run.path.mkdir(parents=True)
    write_json(run.path / "config.json", config.model_dump(mode="json"))
    (listed,) = list_folders(config.runs_dir)
    assert (listed.path, getattr(listed, table.kind, name)) == (run.path, name)


def test_a_name_that_is_no_path_stays_as_it_is(tiny, monkeypatch):
    monkeypatch.setitem(DATASETS, "my data: v1.0 (été)", DATASETS["tiny"])
    assert tiny(dataset="my data: v1.0 (été)").name().startswith("my data: v1.0 (été)-metaug-conv-s0-")


# --- runs


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        begin(request(Config(**{**TINY, "seed": seed, "runs_dir": folder})), 0, "cpu")
        os.utime(folder / Config(**{**TINY, "seed": seed}).name() / "config.json", (seed, seed))
    return folder


def test_a_run_is_opened_by_name_beginning_or_folder(runs_dir):
    name = Config(**{**TINY, "seed": 1}).name()
    for where in (name, "tiny-metaug-conv-s1", runs_dir / name, str(runs_dir / name), f"{runs_dir / name}/"):
        run = open_run(where, runs_dir)
        assert run.path.name == name
        assert run.config.seed == 1
        assert run.config.runs_dir == runs_dir
        assert request(run.config).path == run.path
        assert not run.finished


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("tiny", r"^'tiny' is the beginning of 3 runs: tiny-metaug-conv-s0-\w+, tiny-metaug-conv-s1-\w+, [^\n]+$"),
        ("", r"^'' is the beginning of 3 runs: [^\n]+$"),
        ("tiny-metaug-conv-s7", r"^no run 'tiny-metaug-conv-s7' in \S+; did you mean 'tiny-metaug-conv-s\d-\w+'\?$"),
        ("x" * 5000, r"^no run 'x+' in [^\n]+$"),
        ("no\0thing", r"^no run 'no\\x00thing' in [^\n]+$"),
    ],
)
def test_a_run_that_is_not_there_is_one_sentence(runs_dir, where, said):
    with pytest.raises(StoreError, match=said):
        open_run(where, runs_dir)


def test_list_runs_leaves_out_what_cannot_be_read(runs_dir, tmp_path):
    assert [run.config.seed for run in list_runs(runs_dir)] == [0, 1, 2]
    assert list_runs(tmp_path / "nowhere") == []
    for name, content in (("a", "{"), ("b", "[]"), ("c", '{"method": "gone"}'), ("d", '{"epochs": 0}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
        with pytest.raises(MetaugError, match=rf"^[^\n]*{tmp_path / name / 'config.json'}[^\n]+$"):
            open_run(tmp_path / name, tmp_path)
    assert list_runs(tmp_path) == []


def test_a_run_folder_describes_itself(tiny):
    run = fit(tiny(method="simclr", views=("RGB", "RGB"), epochs=1), lambda progress: None)
    names = {path.name for path in run.path.iterdir() if path.name != ".lock"}  # the system keeps that file
    assert names == {"config.json", "environment.json", "data.json", "metrics.jsonl", "similarities.jsonl", "timing.jsonl",
                     "checkpoint.safetensors", "encoders", "finished.json"}  # fmt: skip
    assert read_json(run.path / "finished.json") == {"epochs": 1, "steps": 5}
    data = read_json(run.path / "data.json")
    assert data == {"pretrain": 90, "train": 90, "val": 10, "test": 60, "classes": 4, "images": data["images"]}
    assert open_run(run.path, Path("/nowhere")).config == run.config
    with safetensors.safe_open(run.checkpoint, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == files.FORMAT
    scalars = json.loads(metadata["scalars"])
    assert scalars == {"epoch": 1, "position": 0, "step": 5, "run": run.path.name, "images": 90}
    assert isinstance(run, Run)


def test_the_lock_is_freed_by_an_error(tiny):
    run = request(tiny())
    with pytest.raises(PermissionError, match="of somebody else"), run.lock():
        raise PermissionError("of somebody else")
    with run.lock():
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_row_that_a_full_disk_refuses_is_one_sentence(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(StoreError) as caught:
        files.append(path, [{"step": 1}])
    assert str(caught.value) == f"cannot write {path}: No space left on device; what was saved before is kept"


# --- runs with lost and damaged files


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    """A run of three epochs that keeps two encoders; its kNN alone is evaluated."""
    folder = tmp_path_factory.mktemp("finished")
    run = fit(Config(**{**TINY, "epochs": 3, "keep_last": 2, "runs_dir": folder}), lambda progress: None)
    evaluate(run, measures=("knn",), representations=("trained",))
    return run


@pytest.fixture
def copied(finished, tmp_path) -> Run:
    """The finished run in a folder of its own."""
    shutil.copytree(finished.path, tmp_path / finished.path.name)
    return Run(tmp_path / finished.path.name, finished.config.replace(runs_dir=tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "state", "epochs"),
    [
        ("evaluation-test.json", None, "finished", 3),
        ("evaluation-test.json", b"3", "damaged", 3),
        ("evaluation-test.json", b'{"trained": {"knn": "0.5", "evaluation_version": 2}}', "damaged", 3),
        ("metrics.jsonl", None, "finished", None),
        ("metrics.jsonl", b"", "finished", 0),
        ("metrics.jsonl", b"[0.1, 0.2]\n", "damaged", None),
        ("metrics.jsonl", b'{"step": 9, "epoch": NaN}\n', "damaged", None),
        ("metrics.jsonl", b'{"step": 9, "epoch": 2.4}\n{"step"', "finished", 2),
        ("finished.json", None, "unfinished", 3),
        ("finished.json", b"", "damaged", 3),
        ("environment.json", b"{}", "damaged", 3),
        ("config.json", None, "damaged", 3),
        ("config.json", b'{"method": ["cmc"]}', "damaged", 3),
        ("config.json", b"\xff", "damaged", 3),
    ],
)
def test_a_run_is_listed_as_what_it_is(copied, name, content, state, epochs):
    (copied.path / name).unlink()
    if content is not None:
        (copied.path / name).write_bytes(content)
    (copied.path.parent / "figures").mkdir()  # not a run
    (listed,) = list_folders(copied.path.parent)
    assert (listed.path, listed.state, listed.epochs_done) == (copied.path, state, epochs)
    assert listed.knn == (
        None if name == "evaluation-test.json" else read_json(copied.evaluation_file())["trained"]["knn"]
    )


def test_the_checkpoint_stands_for_the_last_encoder(copied, finished):
    expected = evaluate(finished, measures=("knn",), representations=("trained",))
    copied.evaluation_file().unlink()
    (copied.path / "encoders" / "epoch-0003.safetensors").unlink()
    assert [file.name for file in copied.encoder_files()] == ["epoch-0002.safetensors", "checkpoint.safetensors"]
    assert evaluate(copied, measures=("knn",), representations=("trained",)).equals(expected)


@pytest.mark.parametrize(
    "lost", [["encoders/epoch-0002.safetensors"], ["encoders/epoch-0003.safetensors", "checkpoint.safetensors"]]
)
def test_an_encoder_that_is_lost_is_one_sentence(copied, lost):
    for name in lost:
        (copied.path / name).unlink()
    copied.evaluation_file().unlink()
    with pytest.raises(StoreError) as error:
        evaluate(copied, measures=("knn",))
    assert str(error.value) == f"{copied.path / lost[0]} is missing: remove {copied.path} to train the run again"


def test_a_flipped_bit_in_a_tensor_is_one_sentence(tmp_path):
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.randn(20, 3)}, {})
    content = bytearray(path.read_bytes())
    content[-7] ^= 16
    path.write_bytes(content)
    with pytest.raises(
        StoreError, match=rf"^cannot read {re.escape(str(path))}: its tensors are damaged \(CRC-32 [^\n]+$"
    ):
        read_tensors(path)


def test_a_run_whose_code_was_in_no_file_is_one_sentence(tiny, monkeypatch):
    monkeypatch.setitem(METHODS, "of-a-script", METHODS["cmc"])
    run = request(tiny(method="of-a-script"))
    begin(run, 0, "cpu")
    assert open_run(run.path, run.path.parent).config.method == "of-a-script"
    monkeypatch.delitem(METHODS, "of-a-script")
    with pytest.raises(
        StoreError, match=r"unknown method 'of-a-script'[^\n]+; its code was in a notebook or a script: [^\n]+$"
    ):
        open_run(run.path, run.path.parent)
    assert read_folder(run.path).needs == " (needs the code that registers its names)"


def test_the_reason_of_a_failure_may_be_damaged(copied):
    (copied.path / "finished.json").rename(copied.path / "failed.json")
    assert read_folder(copied.path).state == "failed"
    assert (
        copied.failure
        == f"run {copied.path.name} failed, but {copied.path / 'failed.json'} is damaged and does not say why"
    )
