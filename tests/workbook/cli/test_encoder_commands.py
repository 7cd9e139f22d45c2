"""The commands features, export and evaluate: what they write and print, and one sentence for what they cannot do."""

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from workbooks import sentence

from metaug_core import fit
from metaug_workbook.cli import main


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
