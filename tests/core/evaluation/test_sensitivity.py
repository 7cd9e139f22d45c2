"""k of kNN and the seed of a probe: beside what `evaluate` stores."""

import pytest

from metaug_core import MetaugError, evaluate, fit
from metaug_core.data import datasets
from metaug_core.evaluation.probes import Labelled, predict
from metaug_core.evaluation.representations import features, load_networks
from metaug_core.evaluation.sensitivity import measure_neighbour_counts, measure_probe_seeds
from metaug_core.runs.predictions import accuracy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from tiny import TINY

    from metaug_core import Config

    return fit(Config(**{**TINY, "epochs": 2, "keep_last": 2, "runs_dir": tmp_path_factory.mktemp("runs")}))


def test_knn_over_k_has_the_stored_accuracy_at_20_and_stops_at_the_training_images(run):
    stored = evaluate(run, measures=("knn",))
    table = measure_neighbour_counts(run).set_index(["representation", "k"])
    assert table.loc["trained"].index.tolist() == [1, 5, 10, 20, 50]  # of 90 training images
    assert set(table["n_eval"]) == {60}
    for name in ("untrained", "trained"):
        assert table.loc[(name, 20), "knn"] == pytest.approx(stored.loc[name, "knn"], abs=1e-12)
    assert table.loc["trained", "knn"].nunique() > 1
    assert set(measure_neighbour_counts(run, "val", counts=(3,))["n_eval"]) == {10}


def test_a_probes_seed_0_is_the_stored_one_and_others_are_other_orders(run):
    stored = evaluate(run, measures=("probe_plain",), representations=("trained",))
    splits = datasets.load(run.config)
    table = measure_probe_seeds(run, 4, splits=splits)
    assert table["probe_seed"].tolist() == [0, 1, 2, 3]
    assert table["accuracy"][0] == pytest.approx(stored.loc["trained", "probe_plain"], abs=1e-12)
    means = [0.0] * 4
    for file in run.encoder_files():
        networks, _ = load_networks(run.config, 4, file)
        train, test = (
            Labelled(features(networks, images, run.config), images.labels) for images in (splits.train, splits.test)
        )
        for seed in range(4):
            predicted = predict(train, test.x, None, 4, ("probe_plain",), seed=seed)["probe_plain"]
            means[seed] += accuracy(predicted, test.y) / 2
    assert table["accuracy"].tolist() == pytest.approx(means, abs=1e-12)


def test_what_has_no_seed_or_name_is_refused(run):
    with pytest.raises(MetaugError, match="^kNN has no seed: name a probe$"):
        measure_probe_seeds(run, 2, "knn")
    with pytest.raises(MetaugError, match="unknown measure 'probe_plan'; did you mean 'probe_plain'"):
        measure_probe_seeds(run, 2, "probe_plan")
