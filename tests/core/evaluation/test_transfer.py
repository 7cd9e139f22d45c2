"""Few labels and other data sets: the labelled images that are drawn, and the accuracies beside those of `evaluate`."""

import numpy as np
import pytest
import torch

from metaug_core import MetaugError, evaluate, fit
from metaug_core.evaluation.probes import Labelled, predict
from metaug_core.evaluation.transfer import choose_images, draw_labelled, probe_few, transfer


def clusters(count, seed, spread=0.3):
    """Features (N, 4) around one corner for each of 4 classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    return Labelled(torch.eye(4)[labels] + spread * torch.randn(count, 4, generator=generator), labels)


def test_draws_of_labelled_images_have_each_class_and_differ():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    first, second = draw_labelled(labels, 20, 0), draw_labelled(labels, 20, 1)
    assert np.bincount(labels[first]).tolist() == np.bincount(labels[second]).tolist() == [12, 6, 2]
    assert (np.diff(first) > 0).all()
    assert len({*first} & {*second}) < 20
    assert (draw_labelled(labels, 100, 3) == np.arange(100)).all()


def test_all_labels_are_a_probe_whose_rate_is_chosen_on_a_tenth_of_them():
    train, test = clusters(200, 0, 0.6), clusters(300, 1, 0.6)
    held_out = torch.arange(200) % 10 == 0
    known = predict(train[~held_out], test.x, train[held_out], 4, ("probe_fast",)) | predict(
        train, test.x, None, 4, ("knn",)
    )
    accuracies = {name: (ranked[0, :, 0] == test.y).double().mean().item() for name, ranked in known.items()}
    assert probe_few(train, test, 4, 1.0, 0) == accuracies | {"labels": 200}


def test_a_few_labels_are_enough_where_classes_lie_apart():
    train, test = clusters(1000, 0, 0.05), clusters(300, 1, 0.05)
    assert probe_few(train, test, 4, 0.02, 0) == {"probe_fast": 1, "knn": 1, "labels": 20}
    assert probe_few(train, test, 4, 0.001, 0)["labels"] == 4  # at least one per class


def test_a_run_on_its_own_images_reads_as_evaluate_does(tiny):
    run = fit(tiny(val_fraction=0, epochs=1))
    stored = evaluate(run, measures=("knn", "rankme"))
    table = transfer(run, choose_images(run), (0.2, 1.0)).set_index(["representation", "measure", "labels"])
    for name in ("untrained", "trained"):
        assert table["mean"][name, "knn", 100] == stored["knn"][name]
        assert table["n"][name, "knn", 20] == 5
        assert 0 < table["half_width"][name, "knn", 20] < 1
        assert table["n"][name, "rankme", 0] == 1
        assert table["mean"][name, "rankme", 0] == pytest.approx(stored["rankme"][name])
    again = transfer(run, choose_images(run, storage="stream"), (0.2, 1.0))
    assert again.set_index(["representation", "measure", "labels"])["mean"].to_dict() == pytest.approx(
        table["mean"].to_dict(), nan_ok=True
    )


def test_another_data_set_brings_its_own_settings_of_images(tiny, tmp_path):
    run = fit(tiny(epochs=1, train_images=50))
    assert choose_images(run).train_images == 50
    other = choose_images(run, dataset="shapes")
    assert (other.dataset, other.train_images, other.val_fraction) == ("shapes", None, 0)
    assert (other.image_size, other.views, other.seed) == (run.config.image_size, run.config.views, run.config.seed)
    with pytest.raises(MetaugError, match="'epochs' is not a setting of images"):
        choose_images(run, epochs=3)
    with pytest.raises(MetaugError, match="is missing"):
        transfer(run, choose_images(run, dataset="folder", data_dir=tmp_path / "none"))
