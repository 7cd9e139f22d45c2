"""The gallery: figures that come again from their small tables alone, with the runs they stand for."""

import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from click.testing import CliRunner

from metaug_core import MetaugError, cli, fit, gallery, results
from metaug_core.gallery import FIGURES, Entry
from metaug_core.style import panels


def draw(table):
    figure, ax = panels()
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
    assert json.loads((tmp_path / "a-line.json").read_text()) == {
        "command": "metaug run a_line",
        "runs": ["shapes-metaug-conv-s0-0123456789", "shapes-metaug-conv-s1-abcdefabcd"],
        "config_hashes": ["0123456789", "abcdefabcd"],
        "seeds": [0, 1],
        "n": 2,
        "commits": ["c0ffee"],
        "uncommitted_changes": True,
        "devices": ["cpu"],
    }
    page = (tmp_path / "README.md").read_text()
    assert "![a-line](a-line.png)" in page
    assert (
        "A line that rises, n = 2 seeds. `metaug run a_line` (2 runs, seeds 0, 1: [a-line.json](a-line.json))" in page
    )
    assert "first-run" not in page  # not in this folder


def test_figures_come_again_from_their_tables_alone(entry, tmp_path):
    gallery.publish("a-line", TABLE, RUNS, tmp_path)
    svg = (tmp_path / "a-line.svg").read_bytes()
    for kind in ("png", "svg"):
        (tmp_path / f"a-line.{kind}").unlink()
    (tmp_path / "README.md").unlink()
    told = CliRunner().invoke(cli.main, ["figures", "--folder", str(tmp_path)])
    assert told.exit_code == 0, told.output
    assert "drawn: a-line" in told.output
    assert (tmp_path / "a-line.svg").read_bytes() == svg
    assert "a-line.png" in (tmp_path / "README.md").read_text()
    assert not plt.get_fignums()


def test_a_figure_beside_a_run_says_which_run(entry, tmp_path, tiny):
    run = fit(tiny(epochs=1, seed=4), lambda _: None)
    gallery.save(draw(TABLE), run.path / "figures" / "line", [run], "metaug run x")
    found = json.loads((run.path / "figures" / "line.json").read_text())
    assert found["runs"] == [run.path.name]
    assert found["config_hashes"] == [run.config.name().rpartition("-")[2]]
    assert found["seeds"] == [4]
    assert found["commits"] == results.table([run])["commit"].dropna().tolist()
    assert (run.path / "figures" / "line.svg").exists()


def test_an_unknown_figure_is_refused(entry, tmp_path):
    with pytest.raises(MetaugError, match="unknown figure 'a-lin'; did you mean 'a-line'"):
        gallery.publish("a-lin", TABLE, RUNS, tmp_path)
    assert not list(tmp_path.iterdir())
    told = CliRunner().invoke(cli.main, ["figures", "b-line", "--folder", str(tmp_path)])
    assert told.exit_code == 2
    assert "unknown figure 'b-line'; did you mean 'a-line'" in told.stderr


def test_every_figure_of_the_workbook_says_what_it_shows():
    for name, entry in FIGURES.items():
        assert entry.sentence.endswith("."), name
        assert entry.command.split()[0] in {"make", "metaug", "python"}, name
