"""The commands features, export and evaluate: what they write and print, and one sentence for what they cannot do."""

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from workbooks import sentence

from metaug_core import DATASETS, fit
from metaug_core.evaluation import confusion, representations
from metaug_core.runs.files import write_json
from metaug_workbook.cli import encoders, main, runs


def test_features_and_evaluate(tiny, tmp_path):
    run = fit(tiny(epochs=1))
    place = ["--runs-dir", str(run.config.runs_dir)]

    def metaug(*words):
        result = CliRunner().invoke(main.main, [*map(str, words), *place])
        assert result.exit_code == 0, result.output
        return result.output

    np.save(tmp_path / "images.npy", np.zeros((3, 3, 9, 9), np.uint8))
    assert "3 x 12 features" in metaug("features", "tiny-metaug", tmp_path / "images.npy", tmp_path / "out.npz")
    assert np.load(tmp_path / "out.npz")["features"].shape == (3, 12)
    own = metaug("evaluate", "tiny-metaug")
    assert f"{100 * run.evaluation()['trained']['knn']:.1f}" in own
    assert "linear probe, 10 labels" in own
    assert "RankMe (higher is better)" in own
    other = metaug("evaluate", "tiny-metaug", "-p", "train_images", "40", "--csv", tmp_path / "table.csv")
    table = pd.read_csv(tmp_path / "table.csv").set_index(["representation", "measure", "labels"])
    assert f"{100 * table['mean']['trained', 'probe_fast', 40]:.1f}" in other


def test_evaluate_by_class_over_probe_seeds_and_as_json(tiny):
    run = fit(tiny(epochs=1))

    def evaluate(*words):
        result = CliRunner().invoke(main.main, ["evaluate", "tiny", *words, "--runs-dir", str(run.config.runs_dir)])
        assert result.exit_code == 0, result.output
        return result.stdout

    text = evaluate("--classes", "--probe-seeds", "2")
    assert "top-5 needs at least 6 classes, and here are 4" in text
    counts = confusion.count_confusions(run)
    worst = confusion.tabulate_classes(counts).iloc[0]
    (row,) = [line.split() for line in text.splitlines() if line.startswith(f"{worst.name} ")]
    assert row[:3] == [str(worst.name), "15", f"{100 * worst.accuracy:.1f}"]
    assert confusion.describe_confusions(counts) in text
    assert (run.path / "figures" / "confusions.png").exists()
    assert "seed of the probe" in text
    results = json.loads(evaluate("--classes", "--probe-seeds", "2", "--json"))
    assert results["run"] == run.path.name
    assert results["evaluation"] == run.evaluation()
    assert results["classes"]["confusions"] == {"classes": ["0", "1", "2", "3"], "counts": counts.to_numpy().tolist()}
    assert results["classes"]["accuracies"][0]["accuracy"] == worst.accuracy
    stored = run.evaluation()["trained"]["probe_plain"]
    assert results["probe_seeds"][0] == {"probe_seed": 0, "accuracy": pytest.approx(stored)}
    assert [(row["n"], row["low"] is None) for row in results["spread"]] == [(2, False), (1, True), (1, True)]
    few = {(row["representation"], row["measure"], row["labels"]) for row in results["transfer"]}
    assert ("trained", "probe_fast", 10) in few
    refusal = CliRunner().invoke(main.main, ["evaluate", run.path.name, "--classes", "-p", "train_images", "40",
                                             "--runs-dir", str(run.config.runs_dir)])  # fmt: skip
    assert "leave -p away" in sentence(refusal)


def test_top_5_and_how_an_older_evaluation_gets_it(tiny, monkeypatch):
    images, labels = np.random.RandomState(0).randint(0, 256, (140, 3, 16, 16), np.uint8), np.arange(140) % 7
    monkeypatch.setitem(DATASETS, "seven", lambda config: (images, labels, images[:70], labels[:70]))
    run = fit(tiny(epochs=1, dataset="seven"))
    stored = representations.evaluate(run).loc["trained"]
    text = runs.format_accuracies(run)
    assert f"{100 * stored['knn_top5']:.1f}" in text.partition("top-5 (%)")[2]
    old = {name: {k: v for k, v in row.items() if "top5" not in k} for name, row in run.evaluation().items()}
    write_json(run.evaluation_file(), old)
    run.predictions_file().unlink()
    assert encoders.format_evaluation(run).endswith("an older version evaluated this run; --classes measures it")
    representations.evaluate(run, predictions=True)
    assert f"{100 * stored['knn_top5']:.1f}" in encoders.format_evaluation(run).partition("top-5 (%)")[2]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["features", "none", "here", "out.npz"], "no run 'none'"),
        (["export", "none", "encoder.pt2"], "no run 'none'"),
        (["evaluate", "none"], "no run 'none'"),
        (["evaluate", "none", "-p", "dataset", "a", "-p", "dataset", "b"], "-p dataset is given twice"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(words, expected, tmp_path):
    result = CliRunner().invoke(main.main, [*words, "--runs-dir", str(tmp_path)])
    assert expected in sentence(result)
    assert result.exit_code == 2
