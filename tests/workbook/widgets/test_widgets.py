"""Controls move the artists to the right numbers, computed here directly; a run in the background loses nothing. No browser."""

import io
import logging
import os
import signal
import threading
import time
import warnings
from pathlib import Path

import ipywidgets
import numpy as np
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup
from matplotlib import pyplot as plt
from matplotlib import rcParams
from PIL import Image
from torch.nn import functional as F
from workbooks import write_noise_images

from metaug_core import Config, MetaugError, preset
from metaug_core.config import EVALUATION_VERSION
from metaug_core.data import shapes
from metaug_core.meta.meta_gradient import look_ahead_reference
from metaug_core.objectives import losses
from metaug_core.objectives.margins import margins
from metaug_core.objectives.similarity import Pairs
from metaug_core.runs import lock
from metaug_core.runs.files import append, read_json, read_tensors, rows, write, write_json
from metaug_core.runs.store import request
from metaug_core.views import augmentation
from metaug_workbook import widgets
from metaug_workbook.jobs import background
from metaug_workbook.teaching import toys
from metaug_workbook.widgets import live
from metaug_workbook.widgets import margins as margin_room
from metaug_workbook.widgets.base import write_html

WAIT_SECONDS = 300


def wait(happens, seconds=WAIT_SECONDS):
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- OUCL
def gradient(loss, positive, negative):
    p = torch.tensor([[positive]], requires_grad=True)
    n = torch.tensor([[negative]], requires_grad=True)
    value = loss(p, n)
    return (value.item(), *(g.item() for g in torch.autograd.grad(value, (p, n))))


@pytest.mark.parametrize(
    ("values", "loss"),
    [
        ({}, lambda p, n: losses.oucl(p, n, 16, 0.4)),  # eq. 10, written by its own derivatives
        ({"beta": 64, "gamma": 0.2}, lambda p, n: losses.oucl(p, n, 64, 0.2)),
        ({"weights": False}, lambda p, n: losses.oucl_plain(p, n, 16, 0.2)),
        ({"phi_dec": 4}, lambda p, n: losses.oucl_weighted(p, n, 16, (1.4, -0.4), (0.6, 0.4), 4)),
    ],
)
def test_oucl_map_curve_and_sentence_follow_the_controls(values, loss):
    explorer = widgets.oucl_explorer()
    explorer.set(**values, positive=0.7, negative=0.5)
    drawn = explorer.plot.maps[0].image.get_array()
    assert drawn[45, 30] == pytest.approx(gradient(loss, 30 / 60, 45 / 60)[0], rel=1e-5)  # row d-, column d+
    value, on_positive, on_negative = gradient(loss, 0.7, 0.5)
    assert f"loss {value:.3f}, gradient {on_positive:+.3f} on d⁺ and {on_negative:+.3f} on d⁻" in explorer.text
    at = [gradient(loss, 0.7, x)[2] for x in (0.25, 0.5)]
    _, y = explorer.plot.lines[0].get_data()
    assert y[30] / y[15] == pytest.approx(at[1] / at[0], rel=1e-3)
    assert explorer.plot.maps[0].dot.get_data() == ([0.7], [0.5])


def test_oucl_line_stands_where_eq_10_is_halfway():
    explorer = widgets.oucl_explorer(gamma=0.3)
    x, y = explorer.plot.maps[0].line.get_data()
    radius = np.sqrt((1 - x) ** 2 + y**2)
    np.testing.assert_allclose(radius[~np.isnan(radius)], np.sqrt(2) * 0.3, atol=2e-3)


def test_infonce_gives_both_the_same_weight_and_follows_its_temperature():
    explorer = widgets.oucl_explorer(positive=0.5, negative=0.6)
    explorer.set(temperature=0.2)
    value = np.log1p(np.exp(2 * 0.1 / 0.2))  # cosines 0 and 0.2
    assert f"InfoNCE: loss {value:.3f}" in explorer.text
    assert explorer.plot.maps[1].image.get_array()[36, 30] == pytest.approx(value, rel=1e-5)


def test_oucl_presets_set_their_values_and_reset_sets_those_of_the_beginning():
    explorer = widgets.oucl_explorer(beta=64, positive=0.7)
    before = explorer.png
    explorer.presets["Paper"].click()
    paper = preset("paper")
    wanted = {"beta": paper.beta, "gamma": paper.gamma, "phi_dec": paper.phi_dec, "weights": True, "positive": 0.7}
    assert wanted.items() <= explorer.values.items()
    assert explorer.png == widgets.oucl_explorer(**explorer.values).png != before
    explorer.presets["Authors"].click()  # eq. 8 with lambda 0
    assert {"beta": 16, "gamma": 0.5, "weights": False}.items() <= explorer.values.items()
    explorer.presets["Hardest negative"].click()
    assert explorer.plot.maps[0].dot.get_data() == ([0.6], [0.95])
    explorer.presets["Reset"].click()
    assert explorer.png == before


# --- every explorer
EXPLORERS = {
    "oucl": (widgets.oucl_explorer, widgets.oucl_figure, {"beta": 64}),
    "margin": (widgets.margin_explorer, widgets.margin_figure, {"margin": "small"}),
    "augmentation": (widgets.augmentation_viewer, widgets.augmentation_figure, {"seed": 3}),
    "meta step": (widgets.meta_step_stepper, widgets.meta_step_figure, {"stage": 6}),
}
EACH = pytest.mark.parametrize("name", EXPLORERS)


def pixels(figure):
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="png")
        return np.asarray(Image.open(buffer).convert("RGB")).astype(int)


@EACH
def test_a_moved_control_changes_the_picture_and_not_without_its_observer(name):
    make, _, change = EXPLORERS[name]
    explorer, (control, value) = make(), next(iter(change.items()))
    before = explorer.png
    explorer.set(**change)
    after = explorer.png
    assert after != before
    assert explorer.image.value == after
    explorer.controls[control].unobserve(explorer.redraw, "value")  # the negative control
    explorer.set(**{control: make().values[control]})
    assert explorer.png == after
    assert explorer.values[control] != value


@EACH
def test_the_plain_twin_draws_the_same(name):
    make, draw, change = EXPLORERS[name]
    explorer = make()
    explorer.set(**change)
    assert np.abs(pixels(explorer.figure) - pixels(draw(**change))).mean() < 0.5


@EACH
def test_labels_tooltips_and_columns_that_fit(name):
    explorer = EXPLORERS[name][0]()
    for control in explorer.controls.values():
        assert control.description
        assert control.tooltip
    with Image.open(io.BytesIO(explorer.png)) as image:
        assert 1200 <= image.width <= 1800  # two pixels for each of a notebook 900 wide


def outputs(shown, monkeypatch):
    found = []
    for room in ("metaug_workbook.widgets.base",):
        monkeypatch.setattr(f"{room}.display", lambda data, **options: found.append(data))
    shown._ipython_display_()
    return found


@EACH
def test_what_is_displayed_first_is_a_png_and_the_live_box_hides_it(name, monkeypatch):
    explorer = EXPLORERS[name][0]()
    static, live = outputs(explorer, monkeypatch)
    assert set(static) == {"image/png", "text/plain"}
    assert static["text/plain"] == explorer.text
    assert "application/vnd.jupyter.widget-view+json" in live
    assert "JupyterLab" in live["text/plain"]
    assert "metaug-live" in explorer.box._dom_classes
    assert "display: none" in explorer.box.children[0].value


# --- margins
def look_at_session():
    """What belongs to the user's session: matplotlib's settings, warnings, logging, signals, environment, folder."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    process = logging.root.level, handlers, dict(os.environ), Path.cwd()
    return rcParams.copy(), list(warnings.filters), pd.get_option("display.max_rows"), *process


SHOWN = {
    "explorer": lambda root: widgets.oucl_explorer(beta=64).png,
    "explorer's twin": lambda root: pixels(widgets.margin_figure()).tobytes(),
    "monitor": lambda root: widgets.run_monitor(written(root, "cmc", 0, finished=False).config).png,
    "browser": lambda root: (written(root, "cmc", 0, finished=True), widgets.run_browser(root).png)[-1],
    "plain monitor": lambda root: pixels(widgets.monitor_figure(written(root, "cmc", 0, finished=True))).tobytes(),
    "live curves": lambda root: live.draw_curves(written(root, "cmc", 0, finished=True)),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_widget_is_the_same_in_every_session_and_leaves_it(name, tmp_path):
    SHOWN[name](tmp_path / "first")  # libraries add filters of warnings when they are first imported
    before = look_at_session()
    wanted = SHOWN[name](tmp_path / "plain")
    assert look_at_session() == before
    with plt.style.context(["dark_background", {"font.size": 20, "savefig.facecolor": "auto", "savefig.dpi": 100}]):
        hostile = look_at_session()
        assert SHOWN[name](tmp_path / "dark") == wanted
        assert look_at_session() == hostile


def test_a_text_from_outside_is_no_tag_and_no_formula_in_a_browser(tmp_path):
    text = "<b>$a_b$</b> caf\udce9"
    html = live.format_line(text)
    assert '<span class="tex2jax_ignore mathjax_ignore">&lt;b&gt;$a_b$&lt;/b&gt; caf\\udce9</span>' in html
    explorer = widgets.oucl_explorer()
    explorer.say(text)
    assert write_html(text) in explorer.sentence.value
    run = written(tmp_path, "cmc", 0, finished=True)
    write(run.path / "<b>$a_b$.ipynb", b"{}")
    shown = widgets.run_browser(tmp_path).links.outputs[0]["data"]["text/html"]
    assert "<b>" not in shown
    assert write_html("<b>$a_b$") in shown


@pytest.mark.parametrize("kind", ["large", "medium", "small", "none"])
def test_margin_lines_and_pushed_pairs(kind):
    explorer = widgets.margin_explorer()
    explorer.set(margin=kind, strength=0.5)
    z, far = margin_room.make_sample()
    augmented = F.normalize((z + far) / 2, dim=-1)
    sigma = margins(*Pairs(2)(z, z), kind)
    positives, negatives = Pairs(2)(augmented, z)
    histogram = explorer.plot.mixed
    filled = histogram.pushed[0].get_data().values.sum(), histogram.pushed[1].get_data().values.sum()
    assert filled[0] == pytest.approx(float((positives > sigma[0]).float().mean()))
    assert filled[1] == pytest.approx(float((negatives < sigma[1]).float().mean()))
    visible = [line.get_visible() for line in histogram.lines]
    assert visible == [kind != "none"] * 2
    if kind != "none":
        assert [line.get_xdata()[0] for line in histogram.lines] == pytest.approx([float(s) for s in sigma])
        assert f"R_σ = {float(losses.margin_regularisation(positives, negatives, *sigma)):.4f}" in explorer.text


def test_margins_of_a_run(tiny):
    from metaug_core import fit

    run = fit(tiny(epochs=1), lambda at: None)
    explorer = widgets.margin_explorer(run)
    assert explorer.plot.z.shape == explorer.plot.augmented.shape == (2, 64, 8)
    assert not torch.equal(explorer.plot.z, explorer.plot.augmented)
    with pytest.raises(MetaugError, match="kept no encoder"):
        widgets.margin_explorer(request(tiny(seed=5)))
    with pytest.raises(MetaugError, match="no MAG"):
        widgets.margin_explorer(fit(tiny(method="cmc", epochs=1), lambda at: None))


# --- augmentation
def test_stages_and_views_are_those_of_the_package():
    viewer = widgets.augmentation_viewer(number=2, seed=7, rotation=30.0, jitter=0.5, grey=0.0, crop=0.3, flip=0.5)
    image = shapes.make(20, 7, 64)[0][2:3]
    draws = augmentation.draw(1, torch.Generator().manual_seed(7))
    config = Config(image_size=64, crop_scale=(0.3, 1), flip=0.5, rotation=30, jitter=0.5)
    shown = viewer.plot.pictures["view RGB"].get_array()
    np.testing.assert_allclose(shown, augmentation.transform(image, config, draws)[0].permute(1, 2, 0), atol=1e-6)
    np.testing.assert_allclose(viewer.plot.pictures["image"].get_array(), image[0].permute(1, 2, 0) / 255, atol=1e-6)
    viewer.set(grey=1.0)
    grey = viewer.plot.pictures["view RGB"].get_array()
    np.testing.assert_allclose(grey[..., 0], grey[..., 2], atol=1e-6)
    assert "made grey" in viewer.text


def test_one_image_and_wrong_images():
    viewer = widgets.augmentation_viewer(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    viewer.set(number=1)
    assert viewer.plot.pictures["image"].get_array().shape == (16, 16, 3)
    with pytest.raises(MetaugError, match="uint8"):
        widgets.augmentation_viewer(torch.zeros(1, 3, 16, 16))


# --- the meta-step
@pytest.mark.parametrize(("rate", "margin"), [(1.0, True), (0.25, False)])
def test_direct_and_mixed_part_add_up_to_the_reference(rate, margin):
    theta, omega = toys.start(0)
    one = toys.make_toy(toys.map_linearly, rate, alpha=float(margin))
    wanted = look_ahead_reference(toys.encode, one.inner, theta, omega, rate, one.outer)
    frame = toys.run_algorithm(rate, float(margin), 0)[0]
    for name, gradient in wanted.gradient.items():
        torch.testing.assert_close(frame.now.gradient[name], gradient)
    torch.testing.assert_close(frame.z_ahead, wanted.features_ahead)
    still = look_ahead_reference(toys.encode, one.inner, theta, omega, 0.0, one.outer)
    assert all(
        float(part.abs().max()) < 1e-12 for part in toys.run_algorithm(0.0, float(margin), 0)[0].now.mixed.values()
    )
    assert still.gradient.keys() == frame.now.direct.keys()


def test_arrows_of_the_stage_and_buttons_forward_and_back():
    stepper = widgets.meta_step_stepper(stage=1)
    circle = stepper.plot.circle
    assert not circle.mixed.get_visible()
    _, back, forward = stepper.box.children[1].children[-2].children
    forward.click()
    assert stepper.values["stage"] == 2
    assert circle.mixed.get_visible()
    frame, frames = toys.run_algorithm(1.0, 1.0, 0)[0], toys.run_algorithm(1.0, 1.0, 0)
    longest = max(float(a.norm(dim=-1).max()) for f in frames for a in (f.along_direct, f.along_mixed))
    drawn = np.stack([circle.mixed.U, circle.mixed.V], -1)
    np.testing.assert_allclose(drawn, 0.8 / longest * frame.along_mixed.flatten(0, 1).numpy(), rtol=1e-6)
    for _ in range(3):
        back.click()
    assert stepper.values["stage"] == 0  # and not below


# --- runs
@pytest.fixture
def background_config(tmp_path):
    """A run on image files, which another process can load: the tiny data set is known to this one only."""
    write_noise_images(tmp_path / "images")
    return preset(
        "quick", dataset="folder", data_dir=tmp_path / "images", runs_dir=tmp_path / "runs", image_size=16, width=0.05,
        feature_dim=8, mag_hidden=16, batch_size=8, epochs=400, train_images=None, log_every=2, workers=0, device="cpu",
    )  # fmt: skip


@pytest.mark.slow
def test_paused_and_resumed_in_the_background_is_bit_identical(background_config, tmp_path):
    from metaug_core import fit

    config = background_config.replace(epochs=16)
    whole = fit(config.replace(runs_dir=tmp_path / "whole"), lambda at: None)
    monitor = widgets.run_monitor(config)
    assert (monitor.state, monitor.buttons["pause"].disabled) == ("new", True)
    monitor.press("start")
    run = monitor.run
    wait(lambda: rows(run.path / "timing.jsonl"))
    assert monitor.state in ("starting", "training")
    monitor.press("pause")
    wait(lambda: not background.is_alive(run))
    monitor.look()
    assert monitor.state == "paused"
    assert monitor.buttons["start"].description == "Resume"
    stopped_at = rows(run.path / "metrics.jsonl")[-1]["step"]
    assert 0 < stopped_at < 80
    monitor.press("start")
    wait(lambda: run.finished)
    wait(lambda: not background.is_alive(run))
    monitor.look()
    assert monitor.state == "finished"
    for name in ("metrics.jsonl", "similarities.jsonl"):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes()
    # By tensor: safetensors writes the two entries of its header in any order.
    (ours, _), (theirs, _) = (read_tensors(one.encoder_files()[-1]) for one in (run, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.skipif(os.name == "nt", reason="kills by SIGKILL")
@pytest.mark.slow
def test_a_killed_process_is_seen_and_a_failed_one_says_why(background_config):
    run = background.start(background_config)
    assert background.start(background_config).path == run.path  # starts nothing twice
    wait(lambda: run.busy)
    children = dict(background.children)
    background.children.clear()  # as another kernel sees it
    wait(lambda: background.is_alive(run))
    children[run.path].send_signal(signal.SIGKILL)
    children[run.path].wait()
    assert not background.is_alive(run)
    assert background.state(run) in ("new", "paused")
    missing = background_config.replace(data_dir=background_config.data_dir / "nowhere")
    failed = background.start(missing)
    wait(lambda: not background.is_alive(failed))
    monitor = widgets.run_monitor(missing)
    assert monitor.state == "failed"
    assert "nowhere" in monitor.text
    assert not monitor.buttons["start"].disabled


def test_histograms_of_a_run_are_shares_of_its_last_minibatch(tiny):
    from metaug_core import fit

    run = fit(tiny(epochs=1), lambda at: None)
    last = rows(run.path / "similarities.jsonl")[-1]
    assert last["step"] == 5
    assert sum(last["positive_histogram"]) == pytest.approx(1, abs=5e-3)
    middle = (np.arange(50) + 0.5) / 50
    mean = float(np.dot(middle, last["positive_histogram"]))
    assert mean == pytest.approx(run.metrics["positive_similarity"].dropna().iloc[-1], abs=0.011)
    figure = widgets.monitor_figure(run)
    outline = figure.axes[4].collections[1].get_paths()[0].vertices[:, 1]
    assert outline.max() == pytest.approx(max(last["positive_histogram"]), rel=5e-3)  # shares have four digits


def written(root: Path, method: str, seed: int, finished: bool):
    run = request(preset("quick", method=method, seed=seed, runs_dir=root))
    write_json(run.path / "config.json", run.config.model_dump(mode="json"))
    append(run.path / "metrics.jsonl", [{"step": k, "epoch": k, "knn_val": 0.1 * k + 0.01 * seed} for k in range(4)])
    if finished:
        write_json(run.path / "finished.json", {})
        write(run.path / "01_pretrain.ipynb", b"{}")
    return run


def test_run_browser_filters_and_overlays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for method in ("cmc", "simclr"):
        for seed in (0, 1):
            written(tmp_path / "runs", method, seed, finished=seed == 1)
    browser = widgets.run_browser(tmp_path / "runs")
    assert len(browser.listed) == 4
    browser.filters["method"].value = "cmc"
    browser.filters["state"].value = "finished"
    (run,) = browser.shown
    assert (run.method, run.name.split("-")[3]) == ("cmc", "s1")
    (line,) = browser.figure.axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), [0.01, 0.11, 0.21, 0.31])
    html = browser.links.outputs[0]["data"]["text/html"]
    assert f'href="runs/{run.path.name}/01_pretrain.ipynb"' in html
    before = browser.png
    browser.ticks[run.path.name].value = False
    assert browser.png != before
    browser.ticks[run.path.name].unobserve(browser.redraw, "value")  # the negative control
    before = browser.png
    browser.ticks[run.path.name].value = True
    assert browser.png == before
    assert isinstance(browser.links, ipywidgets.Output)


def test_run_browser_tabulates_what_tells_the_listed_runs_apart(tmp_path):
    runs = [written(tmp_path, "cmc", seed, finished=True) for seed in (0, 1)]
    accuracies = {"trained": {"knn": 0.8125, "evaluation_version": EVALUATION_VERSION}}
    write_json(runs[1].path / "evaluation-test.json", accuracies)
    browser = widgets.run_browser(tmp_path)

    def read():
        rows = BeautifulSoup(browser.links.outputs[0]["data"]["text/html"], "html.parser").find_all("tr")
        return [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in rows]

    head, *table = read()
    assert head == ["run", "seed", "epochs", "state", "kNN %", "notebooks"]
    assert [runs[1].path.name, "1", "3/4", "finished", "81.2", "01_pretrain"] in table
    assert [runs[0].path.name, "0", "3/4", "finished", "-", "01_pretrain"] in table
    written(tmp_path, "simclr", 0, finished=False)
    browser = widgets.run_browser(tmp_path)
    assert "method" in read()[0]
    browser.filters["method"].value = "simclr"
    assert len(read()) == 2
    assert "method" not in read()[0]


def test_run_browser_deletes_what_is_ticked_when_it_is_confirmed_and_nothing_of_a_run_in_use(tmp_path):
    runs = [written(tmp_path, "cmc", seed, finished=True) for seed in range(3)]
    browser = widgets.run_browser(tmp_path)
    browser.choose([runs[0].path.name, runs[1].path.name])
    browser.buttons["Delete ticked"].click()
    assert all(run.path.exists() for run in runs)
    assert runs[0].path.name in browser.text
    browser.buttons["Keep"].click()
    browser.buttons["Delete for good"].click()  # nothing is asked
    assert all(run.path.exists() for run in runs)
    browser.buttons["Delete ticked"].click()
    holding = threading.Event(), threading.Event()

    def hold():
        with lock.hold(runs[1].path):
            holding[0].set()
            holding[1].wait()

    holder = threading.Thread(target=hold)
    holder.start()
    holding[0].wait()
    browser.buttons["Delete for good"].click()
    holding[1].set()
    holder.join()
    assert "in use" in browser.text
    assert all(run.path.exists() for run in runs)
    browser.buttons["Delete ticked"].click()
    browser.buttons["Delete for good"].click()
    assert [run.path.exists() for run in runs] == [False, False, True]
    assert browser.listed == [runs[2].path.name]
    assert [tick.description for tick in browser.list.children] == browser.listed


def test_run_browser_lists_what_cannot_be_opened(tmp_path):
    other, damaged = (written(tmp_path, "cmc", seed, finished=True) for seed in (0, 1))
    write_json(other.path / "config.json", read_json(other.path / "config.json") | {"method": "of-another-notebook"})
    write(damaged.path / "metrics.jsonl", b"3\n")
    browser = widgets.run_browser(tmp_path)
    assert {run.name for run in browser.shown} == set(browser.runs)
    assert browser.filters["method"].options == ("all", "cmc", "of-another-notebook")
    assert browser.filters["state"].options == ("all", "damaged", "finished")
    assert len(browser.figure.axes[0].lines) == 1
    cells = browser.links.outputs[0]["data"]["text/html"].split("<tr")
    (row,) = (row for row in cells if damaged.path.name in row)
    assert write_html("damaged") in row


def test_a_finished_run_is_shown_whose_metrics_are_lost(tmp_path, monkeypatch):
    run, shown = written(tmp_path, "cmc", 0, finished=True), []
    monkeypatch.setattr("metaug_workbook.widgets.live.display", lambda data, **_: shown.append(data))
    for said in (
        f"finished, {run.config.epochs} epochs, 3 steps",
        f"finished, {run.config.epochs} epochs; its metrics are lost",
    ):
        live.LiveView(run.config).finish(run)
        assert f"{run.path.name}: {said}" in [data.get("text/plain") for data in shown]
        (run.path / "metrics.jsonl").unlink(missing_ok=True)


def test_run_browser_of_an_empty_folder(tmp_path):
    browser = widgets.run_browser(tmp_path)
    assert browser.shown == []
    assert browser.png
