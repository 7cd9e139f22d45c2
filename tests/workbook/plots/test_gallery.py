"""The gallery: figures that come again from their small tables alone, with the runs and the commits they stand for."""

import json
import shutil
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from tiny import ROOT
from workbooks import git, notebook_text

from metaug_core import MetaugError, fit, preset
from metaug_core.data import datasets
from metaug_core.runs import environment, files
from metaug_core.runs.files import StoreError
from metaug_workbook import notebook
from metaug_workbook.cli import main
from metaug_workbook.plots import gallery, paper_figures
from metaug_workbook.plots.gallery import FIGURES, PublishError
from metaug_workbook.plots.paper_figures import Entry
from metaug_workbook.plots.style import make_panels
from metaug_workbook.results import tables


def draw(table):
    figure, ax = make_panels()
    ax.plot(table["x"], table["mean"])
    return figure


@pytest.fixture
def entry(monkeypatch):
    monkeypatch.setitem(FIGURES, "a-line", Entry("A line that rises, n = 2 seeds.", "metaug run a_line", draw))


TABLE = pd.DataFrame({"x": [1, 2, 3], "mean": [0.1, 0.2, 0.3]})
RUNS = pd.DataFrame(
    {
        "run": [
            "shapes-metaug-conv-s0-0123456789",
            "shapes-metaug-conv-s1-abcdefabcd",
            "shapes-cmc-conv-s0-ffffffffff",
        ],
        "state": ["finished", "finished", "failed"],
        "seed": [0, 1, 0],
        "commit": ["c0ffee", "c0ffee", None],
        "device": ["cpu", "cpu", None],
        "uncommitted_changes": [False, True, None],
    }
)


def test_a_published_figure_has_files_provenance_and_its_place_on_the_page(entry, tmp_path):
    gallery.publish("a-line", TABLE, RUNS, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "a-line.json",
        "a-line.png",
        "a-line.svg",
        "data",
    ]
    commit, changed = environment.tree()
    assert json.loads((tmp_path / "a-line.json").read_text()) == {
        "command": "metaug run a_line",
        "commit": commit,
        "uncommitted_changes": changed,
        "numbers": {
            "runs": ["shapes-metaug-conv-s0-0123456789", "shapes-metaug-conv-s1-abcdefabcd"],
            "config_hashes": ["0123456789", "abcdefabcd"],
            "seeds": [0, 1],
            "n": 2,
            "commits": ["c0ffee"],
            "uncommitted_changes": True,
            "devices": ["cpu"],
        },
    }
    page = (tmp_path / "README.md").read_text()
    assert "![a-line](a-line.png)" in page
    assert (
        "A line that rises, n = 2 seeds. `metaug run a_line` (2 runs, seeds 0, 1, numbers of a tree with uncommitted changes: "
        "[a-line.json](a-line.json))"
    ) in page
    assert "first-run" not in page  # not in this folder


def test_figures_come_again_from_their_tables_alone(entry, tmp_path):
    open_before = plt.get_fignums()
    gallery.publish("a-line", TABLE, RUNS, tmp_path)
    svg = (tmp_path / "a-line.svg").read_bytes()
    for kind in ("png", "svg"):
        (tmp_path / f"a-line.{kind}").unlink()
    (tmp_path / "README.md").unlink()
    told = CliRunner().invoke(main.main, ["figures", "--folder", str(tmp_path)])
    assert told.exit_code == 0, told.output
    assert "drawn: architecture, a-line;" in told.output
    assert (tmp_path / "a-line.svg").read_bytes() == svg
    assert "a-line.png" in (tmp_path / "README.md").read_text()
    assert plt.get_fignums() == open_before


def test_a_figure_of_a_run_says_which_run(entry, tmp_path, tiny):
    run = fit(tiny(epochs=1, seed=4), lambda _: None)
    gallery.publish("a-line", TABLE, [run], run.path / "figures")
    found = origin(run.path / "figures")["numbers"]
    assert found["runs"] == [run.path.name]
    assert found["config_hashes"] == [run.config.name().rpartition("-")[2]]
    assert found["seeds"] == [4]
    assert found["commits"] == tables.read_table([run])["commit"].dropna().tolist()
    assert (run.path / "figures" / "a-line.svg").exists()


def test_an_unknown_figure_is_refused(entry, tmp_path):
    with pytest.raises(MetaugError, match="unknown figure 'a-lin'; did you mean 'a-line'"):
        gallery.publish("a-lin", TABLE, RUNS, tmp_path)
    assert not list(tmp_path.iterdir())
    told = CliRunner().invoke(main.main, ["figures", "b-line", "--folder", str(tmp_path)])
    assert told.exit_code == 2
    assert "unknown figure 'b-line'; did you mean 'a-line'" in told.stderr


def test_every_figure_of_the_workbook_says_what_it_shows():
    for name, entry in FIGURES.items():
        assert entry.sentence.endswith("."), name
        assert entry.command.split()[0] in {"make", "metaug", "python"}, name


# --- what figures/ takes
CLEAN = RUNS.assign(uncommitted_changes=False)


def origin(folder: Path, name: str = "a-line") -> dict:
    return json.loads((folder / f"{name}.json").read_text())


def test_figures_refuses_changed_code_in_a_sentence_and_other_folders_take_it(entry, checkout, tmp_path, monkeypatch):
    (checkout / "code.py").write_text("a = 2\n")
    with pytest.raises(
        PublishError, match=r"publish: figures/ names the commit .*\(code\.py\): commit them first, or draw elsewhere"
    ):
        gallery.publish("a-line", TABLE, CLEAN)
    monkeypatch.chdir(checkout)
    with pytest.raises(PublishError):
        gallery.publish("a-line", TABLE, CLEAN, Path("figures"))  # by another name
    assert [path.name for path in gallery.FOLDER.iterdir()] == ["README.md"]
    gallery.publish("a-line", TABLE, RUNS, tmp_path / "runs" / "figures")
    assert origin(tmp_path / "runs" / "figures")["uncommitted_changes"] is True
    git(checkout, "commit", "-qam", "second")
    gallery.publish("a-line", TABLE, CLEAN)
    found = origin(gallery.FOLDER)
    assert (found["commit"], found["uncommitted_changes"]) == (git(checkout, "rev-parse", "HEAD"), False)


def test_a_figure_follows_another_that_is_not_committed_yet(entry, checkout, monkeypatch):
    monkeypatch.setitem(FIGURES, "b-line", Entry("Another.", "metaug run b_line", draw))
    gallery.publish("a-line", TABLE, CLEAN)
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "a figure")
    gallery.publish("a-line", TABLE * 2, CLEAN)  # its table and its page now differ from the commit
    gallery.publish("b-line", TABLE, CLEAN)
    assert environment.tree() == (git(checkout, "rev-parse", "HEAD"), False)


def test_outputs_of_notebooks_and_results_of_benchmarks_are_products_and_cells_are_code(checkout):
    file = checkout / "notebooks" / "a.ipynb"
    file.write_text(notebook_text("a = 1", output="1"))
    assert environment.differing() == []
    file.write_text(notebook_text("a = 2"))
    assert environment.differing() == ["notebooks/a.ipynb"]
    assert environment.tree()[1] is True
    file.write_text("{")
    assert environment.differing() == ["notebooks/a.ipynb"]
    file.unlink()
    assert environment.differing() == ["notebooks/a.ipynb"]
    git(checkout, "checkout", "-q", ".")
    (checkout / "figures" / "README.md").write_text("changed")
    assert environment.differing() == ["figures/README.md"]
    assert environment.tree()[1] is False
    (checkout / "new.py").write_text("not tracked")
    assert environment.tree()[1] is False


def test_a_run_from_changed_code_is_not_published_and_one_session_of_it_is_enough(entry, checkout, tiny):
    with pytest.raises(
        PublishError, match="publish: some of the 2 runs of a-line were trained from uncommitted changes"
    ):
        gallery.publish("a-line", TABLE, RUNS)
    run = fit(tiny(epochs=1), lambda _: None)
    (session,) = files.read_json(run.path / "environment.json")
    assert session["uncommitted_changes"] is False
    files.write_json(run.path / "environment.json", [session | {"uncommitted_changes": True}, session])
    with pytest.raises(PublishError, match="some of the 1 runs"):
        gallery.publish("a-line", TABLE, [run])
    assert [path.name for path in gallery.FOLDER.iterdir()] == ["README.md"]


def test_figures_refuses_where_no_commit_can_be_named(entry, checkout):
    shutil.rmtree(checkout / ".git")
    assert environment.tree() == (None, None)
    with pytest.raises(
        PublishError, match=r"publish: figures/ names the commit of each figure, and .* is no git checkout"
    ):
        gallery.publish("a-line", TABLE, CLEAN)


def test_a_table_that_differs_from_the_commit_is_not_drawn_again_and_a_drawing_keeps_its_numbers(
    entry, checkout, tmp_path
):
    gallery.publish("a-line", TABLE, CLEAN)
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "a figure")
    numbers = origin(gallery.FOLDER)["numbers"]
    (checkout / "code.py").write_text("a = 3\n")
    git(checkout, "commit", "-qam", "other looks")
    assert "a-line" in gallery.rebuild()
    assert origin(gallery.FOLDER)["numbers"] == numbers
    assert origin(gallery.FOLDER)["commit"] == git(checkout, "rev-parse", "HEAD")
    (gallery.FOLDER / "data" / "a-line.csv").write_text("x,mean\n1,0.9\n")
    with pytest.raises(PublishError, match=r"\(figures/data/a-line\.csv\)"):
        gallery.rebuild()
    told = CliRunner().invoke(main.main, ["figures", "a-line", "--out", str(tmp_path / "look")])
    assert told.exit_code == 0, told.output
    assert origin(tmp_path / "look")["numbers"] == numbers
    assert "a-line.png" in (tmp_path / "look" / "README.md").read_text()


def test_numbers_of_rows_that_stay_and_of_new_ones_are_told_together(entry, checkout):
    kept = gallery.trace_numbers(CLEAN[:1]) | {"commits": ["decade"], "uncommitted_changes": True}
    gallery.publish("a-line", TABLE, CLEAN[1:], earlier=kept)
    assert origin(gallery.FOLDER)["numbers"] == {
        "runs": ["shapes-metaug-conv-s0-0123456789", "shapes-metaug-conv-s1-abcdefabcd"],
        "config_hashes": ["0123456789", "abcdefabcd"],
        "seeds": [0, 1],
        "n": 2,
        "commits": ["c0ffee", "decade"],
        "uncommitted_changes": True,
        "devices": ["cpu"],
    }
    page = (gallery.FOLDER / "README.md").read_text()
    assert "(2 runs, seeds 0, 1, of 2 commits, numbers of a tree with uncommitted changes: " in page


def test_a_notebook_that_publishes_refuses_before_it_trains(checkout):
    (checkout / "code.py").write_text("a = 2\n")
    with pytest.raises(PublishError, match=r"code\.py"):
        notebook.configure({"publish": True}, preset="sketch")
    assert notebook.configure({"publish": False}, preset="sketch").train_images == 1600


def test_a_figure_that_is_asked_for_without_its_table_is_refused(checkout):
    with pytest.raises(MetaugError, match=r"^figure '\.\./outside': must be the name of a file, not a path$"):
        gallery.publish("../outside", pd.DataFrame(), [])
    with pytest.raises(StoreError, match=r"^there is no table \S+09-benchmarks\.parquet or [^\n]+$"):
        gallery.rebuild(names=["09-benchmarks"])


def test_the_architecture_is_drawn_without_a_table(checkout):
    assert gallery.rebuild(names=["architecture"]) == ["architecture"]
    assert origin(gallery.FOLDER, "architecture")["numbers"] is None
    assert "[architecture.json]" in (gallery.FOLDER / "README.md").read_text()


def test_what_the_default_run_learns_is_drawn_from_its_table():
    bars = pd.DataFrame({"panel": "accuracy", "representation": ["raw pixels", "untrained", "trained"] * 2,
                         "seed": [0] * 3 + [1] * 3,
                         "probe_plain": [0.1, 0.4, 0.9, 0.1, 0.4, 0.8], "probe_fast": 0.5, "knn": 0.3})  # fmt: skip
    splits = datasets.load(preset("quick"))
    query = 3
    same = (splits.train.labels == splits.test.labels[query]).nonzero()[0].item()
    other = (splits.train.labels != splits.test.labels[query]).nonzero()[0].item()
    near = pd.DataFrame({"panel": ["before"] * 2 + ["after"] * 2, "query": query, "rank": [1, 2] * 2,
                         "neighbour": [other, same, same, same]})  # fmt: skip
    figure = paper_figures.draw_first_run(pd.concat([bars, near]))
    above, below = figure.axes
    heights = [bar.get_height() for bar in below.containers[-1]]
    assert heights == pytest.approx([85, 50, 30])
    texts = [text.get_text() for text in above.texts]
    assert [text for text in texts if len(text) == 1] == ["\N{BALLOT X}", *["\N{CHECK MARK}"] * 3]
    assert [patch.get_linestyle() for patch in above.patches] == ["--", "-", "-", "-"]
    assert {"Before training: kNN 30.0 %", "After training: kNN 30.0 %"} < set(texts)
    pictures = [image.get_array() for image in above.images]
    np.testing.assert_allclose(pictures[0], splits.test.pixels[query].permute(1, 2, 0) / 255, atol=1e-6)
    np.testing.assert_allclose(pictures[1], splits.train.pixels[other].permute(1, 2, 0) / 255, atol=1e-6)
    plt.close(figure)


# --- what is committed
def test_every_committed_figure_names_commits_of_this_history_and_is_of_a_clean_tree():
    """Of each picture in figures/: who drew it, and from whose numbers."""
    asked = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--is-shallow-repository"], capture_output=True, text=True, check=False
    )
    if asked.returncode or asked.stdout.strip() == "true":
        pytest.skip("no git history here: a clone has it, an archive or a shallow clone does not")
    history = set(git(ROOT, "rev-list", "HEAD").split())
    wrong = {}
    for picture in sorted((ROOT / "figures").glob("*.png")):
        file = picture.with_suffix(".json")
        found = json.loads(file.read_text()) if file.exists() else {}
        commits = [found.get("commit"), *((found.get("numbers") or {}).get("commits", []))]
        if found.get("uncommitted_changes") is not False or not set(commits) <= history:
            wrong[picture.stem] = [commit for commit in commits if commit not in history]
    assert wrong == {}
