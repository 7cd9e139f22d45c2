"""Every notebook keeps the rules: a question, tagged parameters, short cells, executed in order, clean outputs."""

import ast
import re
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from IPython.core.interactiveshell import InteractiveShell
from tiny import ROOT
from workbooks import write_notebook

from metaug_core.config import Config, ConfigError
from metaug_core.presets import preset
from metaug_workbook import notebook
from metaug_workbook.jobs import grid, papermill_runner, parameters

FOLDER = ROOT / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
MACHINE = re.compile(r"(?<![\w.])/(?:home|Users|root|work|tmp|mnt|opt|var|private)/|[A-Z]:\\\\|\bfile://")
ALL = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
# These open with what the committed evidence says.
WITH_EVIDENCE = ("03", "04", "05", "06", "07", "08", "09", "11", "12", "13")


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def parameters_cell(path: Path) -> nbformat.NotebookNode:
    (cell,) = [cell for cell in code(path) if "parameters" in cell.metadata.get("tags", [])]
    return cell


def test_the_notebooks_are_there():
    of_the_paper = {"03_similarity_histograms", "04_gamma_attenuation", "05_batch_size", "06_margins", "07_hyperparameters",
                    "08_augmentations", "09_benchmarks", "10_meta_gradient", "11_delta"}  # fmt: skip
    assert {"01_pretrain", "02_evaluate"} | of_the_paper <= {path.stem for path in PATHS}


@ALL
def test_it_is_valid_and_small_with_the_plain_kernel(path):
    found = read(path)
    nbformat.validate(found)
    assert path.stat().st_size < 2_000_000  # explorers are kept in double resolution, with and without their controls
    assert found.metadata.kernelspec.name == "python3"
    assert found.metadata.language_info.name == "python"
    assert all(cell.get("id") for cell in found.cells)


@ALL
def test_it_opens_with_a_question_and_an_answer_of_few_sentences(path):
    first, second = read(path).cells[:2]
    assert first.cell_type == "markdown"
    title, _, answer = first.source.partition("\n")
    assert re.fullmatch(r"# .+\?", title)
    assert 1 <= len(re.findall(r"[.!](?:\s|$)", answer)) <= 3
    if path.stem.startswith(WITH_EVIDENCE):
        assert "notebook.show_evidence(" in second.source


@ALL
def test_its_code_fits_beside_the_file_browser(path):
    cells = [cell for cell in code(path) if cell.id != parameters_cell(path).id]
    lines = [line for cell in cells for line in cell.source.splitlines() if not line.startswith("from ")]
    assert [line for line in lines if len(line) > 95] == []


@ALL
def test_it_keeps_the_order_and_says_its_limits(path):
    headings = [line for cell in read(path).cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    headings = [line for line in headings if line.startswith("## ")]
    assert headings[0] == ("## Try it yourself" if path.stem.startswith(WITH_EVIDENCE) else "## Parameters")
    assert headings[-2:] == ["## Limits", "## Where next"]


@ALL
def test_parameters_are_annotated_commented_literals(path):
    source = parameters_cell(path).source
    assert len(source.splitlines()) <= 12
    tree = ast.parse(source)
    assert all(isinstance(node, ast.AnnAssign) for node in tree.body)
    for node in tree.body:
        assert isinstance(node, ast.AnnAssign)
        assert node.value is not None
        ast.literal_eval(node.value)
    assert all(re.search(r"\S  # \S", line) for line in source.splitlines())
    seen = papermill.inspect_notebook(path)  # what a user of papermill and `metaug run` is offered
    assert list(seen) == [node.target.id for node in tree.body if isinstance(node.target, ast.Name)]  # type: ignore[union-attr]
    assert all(entry["help"] and entry["inferred_type_name"] != "None" for entry in seen.values())


@ALL
def test_the_next_cell_builds_the_config_from_every_parameter(path):
    cells = code(path)
    following = cells[cells.index(parameters_cell(path)) + 1].source
    assert re.search(r"notebook\.configure\(|notebook\.plan_runs\(", following)
    for name in papermill.inspect_notebook(path):
        assert re.search(rf"\b{name}\b", following), name


@ALL
def test_the_defaults_are_those_of_a_preset(path):
    """One run: the quick preset. Many runs: the sketch preset, but for what the notebook itself must set to show its question."""
    found = {name: ast.literal_eval(entry["default"]) for name, entry in papermill.inspect_notebook(path).items()}
    settings = {name: value for name, value in found.items() if name == "preset" or name in Config.model_fields}
    if "seed" in found:
        assert grid.build_config(settings) == preset("quick")
        return
    asked = {"03_similarity_histograms": {"delta": 1.0, "alpha": 1.0}, "06_margins": {"delta": 1.0, "alpha": 1.0},
             "10_meta_gradient": {"width": 0.25, "inner_lr": 0.1}}  # fmt: skip
    assert grid.build_config(settings) == preset("sketch", **asked.get(path.stem, {}))


@pytest.mark.parametrize("name", ["04_gamma_attenuation", "11_delta"])
def test_a_notebook_of_many_runs_is_checked_but_belongs_to_no_run(name):
    path = FOLDER / f"{name}.ipynb"
    values, config = papermill_runner.check_parameters(path, {"seeds": "3", "dataset": "cifar10", "max_hours": "2"})
    assert (values, config) == ({"seeds": 3, "dataset": "cifar10", "max_hours": 2.0}, None)
    assert papermill_runner.check_parameters(FOLDER / "01_pretrain.ipynb", {"seed": "3"})[1] == preset("quick", seed=3)
    values, config = papermill_runner.check_parameters(FOLDER / "01_pretrain.ipynb", {"train_images": "all"})
    assert values == {"train_images": "all"}
    assert config == preset("quick", train_images=None)
    values, _ = papermill_runner.check_parameters(FOLDER / "07_hyperparameters.ipynb", {"train_images": "all"})
    assert values == {"settings": {"train_images": "all"}}  # not a parameter of its own
    for given, refusal in (({"encoder": "conf"}, "unknown encoder 'conf'"), ({"epochs": "0"}, "epochs")):
        with pytest.raises(ConfigError, match=refusal):
            papermill_runner.check_parameters(path, given)


@pytest.mark.parametrize(
    ("name", "given", "values"),
    [
        ("05_batch_size", {"methods": "simclr,cmc+hard"}, {"methods": ["simclr", "cmc+hard"]}),
        ("05_batch_size", {"methods": "[simclr, 'cmc']"}, {"methods": ["simclr", "cmc"]}),
        ("05_batch_size", {"batch_sizes": "16"}, {"batch_sizes": [16]}),
        ("09_benchmarks", {"methods": "[]"}, {"methods": []}),
        ("11_delta", {"deltas": "1e-7"}, {"deltas": [1e-7]}),
        ("04_gamma_attenuation", {"phi_decs": "1, 2"}, {"phi_decs": [1.0, 2.0]}),
        ("06_margins", {"preset": "paper", "split": "test"}, {"preset": "paper", "split": "test"}),
        ("00_walkthrough", {"images": "50000", "passes": "1"}, {"images": 50000, "passes": 1}),
    ],
)
def test_a_text_is_what_the_type_of_its_parameter_takes(name, given, values):
    assert papermill_runner.check_parameters(FOLDER / f"{name}.ipynb", given)[0] == values


@pytest.mark.parametrize(
    ("name", "given", "refusal"),
    [
        ("04_gamma_attenuation", {"measure": "KNN"}, "measure: must be 'probe_paper', .* or 'knn', got 'KNN'"),
        ("06_margins", {"split": "train"}, "split: must be 'val' or 'test', got 'train'"),
        ("06_margins", {"preset": "paper"}, "split: 'val' needs val_fraction > 0"),
        ("11_delta", {"seeds": "0"}, "seeds: must be greater than or equal to 1"),
        ("11_delta", {"deltas": "1,-1"}, "deltas: delta: must be greater than or equal to 0, got -1"),
        ("11_delta", {"deltas": "1,a"}, r"deltas\[1\]: must be a number, got 'a'"),
        ("11_delta", {"deltas": "1,1.0"}, "deltas: 1.0 is listed twice"),
        ("11_delta", {"delta": "1"}, "delta: this notebook has many runs; its parameter `deltas` says of which"),
        ("11_delta", {"max_hours": "nan"}, "max_hours"),
        ("07_hyperparameters", {"betas": "True"}, r"betas\[0\]: must be a number"),
        ("05_batch_size", {"methods": "simclr,cmcc"}, "methods: unknown method 'cmcc'; did you mean 'cmc'?"),
        ("05_batch_size", {"methods": "[]"}, "methods: needs at least 1 in its list"),
        ("05_batch_size", {"train_images": "100"}, "batch_sizes: train_images 100 .* gives no batch of 128"),
        ("08_augmentations", {"sets": "[0,9]"}, r"sets\[0\]: must be greater than or equal to 1, got 0"),
        ("09_benchmarks", {"full_seeds": "0"}, "full_seeds"),
        ("10_meta_gradient", {"rounds": "0"}, "rounds"),
        ("03_similarity_histograms", {"images": "1"}, "images"),
        ("00_walkthrough", {"images": "20"}, "images: train_images 20 less val_fraction 0.1 gives no batch of 32"),
    ],
)
def test_a_value_that_a_notebook_does_not_accept_is_refused_before_it_starts(name, given, refusal):
    with pytest.raises(ConfigError, match=refusal):
        papermill_runner.check_parameters(FOLDER / f"{name}.ipynb", given)


@ALL
def test_every_parameter_that_is_no_setting_has_a_type_that_bounds_it(path):
    seen = {name: entry["inferred_type_name"] for name, entry in papermill.inspect_notebook(path).items()}
    own = [text for name, text in seen.items() if name not in {"preset", *Config.model_fields}]
    assert all(text == "bool" or text.split("[")[-1].strip("]") in vars(parameters) for text in own)
    for text in seen.values():
        assert parameters.find_type(text) is not Any, text


def test_a_default_that_is_an_expression_is_left_to_the_kernel(tmp_path):
    path = write_notebook(tmp_path / "mine.ipynb", parameters="count: int = 2 * 3\nmine: Mine = None\nhidden = [1]")
    values = {"count": "4", "mine": "x", "hidden": "[2, 'b']"}
    assert papermill_runner.check_parameters(path, {})[0] == {}
    assert papermill_runner.check_parameters(path, values)[0] == {"count": 4, "mine": "x", "hidden": [2, "b"]}


def test_what_07_holds_fixed_is_the_papers_in_the_defaults_and_in_the_full_grid():
    """The first value of each list is held fixed; the command began with alpha 1e-3, beta 2 and delta 1e-1."""
    path = FOLDER / "07_hyperparameters.ipynb"
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    defaults = {name: ast.literal_eval(entry["default"]) for name, entry in papermill.inspect_notebook(path).items()}
    for name, fixed in {"alphas": 1e-13, "betas": 16, "deltas": 1e-5}.items():
        (full,) = re.findall(rf'-p {name} "(\[.*?\])"', text)
        values = ast.literal_eval(full)
        assert values[0] == defaults[name][0] == fixed
        assert len(set(values)) == 8
        assert set(values) >= {value for value in defaults[name] if value < 1}  # 1 is of the sketch alone


@ALL
def test_cells_are_short_and_stand_between_prose(path):
    for cell in code(path):
        assert len(cell.source.splitlines()) <= 15, cell.source
        assert not re.search(r"^\s*(class |while )", cell.source, re.MULTILINE)
    kinds = [cell.cell_type for cell in read(path).cells]
    assert all(kinds[k : k + 4].count("code") < 4 for k in range(len(kinds)))


@ALL
def test_it_is_executed_in_order_from_a_clean_kernel(path):
    assert [cell.execution_count for cell in code(path)] == list(range(1, len(code(path)) + 1))


@ALL
def test_outputs_are_clean(path):
    for cell in code(path):
        for output in cell.outputs:
            assert output.output_type != "error", output
            assert output.get("name") != "stderr", output
            assert "execution" not in cell.metadata
    pictures = [any("image/png" in output.get("data", {}) for output in cell.outputs) for cell in code(path)]
    assert any(pictures)
    assert all(shown or "make_panels(" not in cell.source for shown, cell in zip(pictures, code(path), strict=True))


@pytest.mark.slow
def test_a_kernel_shows_every_figure_and_not_the_first_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)
    cell = "from metaug_workbook.plots import style\nfigure, ax = style.make_panels()"
    path = write_notebook(tmp_path / "figures.ipynb", cell, cell)
    papermill.execute_notebook(path, path, progress_bar=False)
    assert ["image/png" in output.data for cell in code(path) for output in cell.outputs] == [True, True]


@ALL
def test_no_path_of_a_machine_is_in_it(path):
    found = read(path)
    for cell in found.cells:
        assert not MACHINE.search(cell.source)
        for output in cell.get("outputs", []):
            texts = [output.get("text", "")] + [v for k, v in output.get("data", {}).items() if k.startswith("text/")]
            assert not any(MACHINE.search(str(text)) for text in texts), output
    assert "papermill" not in found.metadata


def test_names_that_a_cell_assigns_are_found():
    assert notebook.list_assigned("# Parameters\na = 1\nb: int = 2\nif True:\n    c = 3\n") == ["a", "b"]


def test_build_leaves_none_to_the_preset():
    assert grid.build_config({"preset": "quick", "epochs": None, "seed": 3}) == preset("quick", seed=3)
    with pytest.raises(ConfigError, match="contrasts at least 2 views"):
        grid.build_config({"preset": "quick", "views": ("L",)})


@pytest.fixture
def shell():
    """A real IPython shell, as a kernel has one."""
    InteractiveShell.clear_instance()
    yield InteractiveShell.instance(history_manager=None)
    InteractiveShell.clear_instance()


def test_a_notebook_checks_its_parameters_by_the_same_types_in_the_kernel(shell):
    cell = "from metaug_workbook.jobs.parameters import *\nseeds: Count = 0\ndeltas: Several[Delta] = [1e-5]"
    assert shell.run_cell(cell, store_history=True).success
    for own, refusal in (
        ({"seeds": 0}, "seeds: must be greater"), ({"seeds": True}, "seeds"), ({"deltas": 1e-5}, "deltas: must be a valid list"),
        ({"deltas": [-1.0]}, "deltas: delta: must be greater"), ({"deltas": ["1"]}, r"deltas\[0\]: must be a number"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=refusal):
            notebook.plan_runs(own, preset="sketch")
    assert notebook.plan_runs({"seeds": 2, "deltas": [1, 0.5]}, preset="sketch") == {"preset": "sketch"}


def test_configure_refuses_what_papermill_injects_and_nothing_else(shell):
    def after(cell: str, **own: object) -> Config:
        assert shell.run_cell(cell, store_history=True).success
        return notebook.configure({"augmented": True, **own}, preset="quick", seed=1)

    assert after("augmented: bool = True\nmine = 3") == preset("quick", seed=1)
    assert after("# Parameters\nseed = 1\naugmented = False\n") == preset("quick", seed=1)
    with pytest.raises(ConfigError, match=r"'sede' is not a parameter of this notebook; did you mean 'seed'\?"):
        after("# Parameters\nsede = 1\n")
    assert after("# Parameters\nseed = 1\n")  # mended, and run again
    assert after("sede = 1")  # a variable of the user's own
    with pytest.raises(ConfigError, match="augmented: must be true or false, got 'maybe'"):
        after("1", augmented="maybe")
