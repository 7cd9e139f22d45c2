"""The widgets as a reader meets them: JupyterLab in headless Chromium, moved by keyboard, seen to show the right thing.

One JupyterLab and one browser for the file. What a widget must show is made here by the same function without a browser, and the
picture in the page must equal it byte for byte. Screenshots go to METAUG_SCREENSHOTS, or a temporary folder. Skipped where no
Chromium or Chrome is found (METAUG_CHROME names one).
"""

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import nbformat
import pytest
from chromium import NEEDS_CHROME, open_page
from workbooks import write_noise_images

from metaug_core.presets import preset
from metaug_core.runs.files import append, rows, write, write_json
from metaug_core.runs.store import request
from metaug_workbook import widgets
from metaug_workbook.jobs import background

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    NEEDS_CHROME,
]
TOKEN, SECONDS = "metaug-tests", 180
BYTES = """async image => {
  const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
  return btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(""));
}"""
READY = """async () => {
  const context = window.jupyterapp.shell.currentWidget.sessionContext;
  await context.ready;
  await context.session.kernel.info;
}"""
RAN = """() => {
  const prompts = [...window.jupyterapp.shell.currentWidget.node.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
  return prompts.length && prompts.every(prompt => /\\[\\d+\\]/.test(prompt.textContent));
}"""


def wait(happens, what, seconds=SECONDS):
    deadline = time.monotonic() + seconds
    while not (found := happens()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return found


# --- one server, one browser
@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder that JupyterLab shows, with notebooks and runs in it."""
    return tmp_path_factory.mktemp("lab") / "root"


def settings(folder):
    """User settings apart from those of whoever runs the tests: no news, no update checks, every cell in the page."""
    for name, values in {
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "notebook-extension/tracker": {"windowingMode": "none"},
    }.items():
        path = folder / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    return folder


class Lab:
    """A JupyterLab on a free port of this machine."""

    def __init__(self, root, home):
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        names = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "JUPYTER_DATA_DIR": "data"}
        names |= {"JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython"}
        own = {name: str(home / folder) for name, folder in names.items()}
        own["JUPYTERLAB_SETTINGS_DIR"] = str(settings(home / "settings"))
        own |= {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "MPLBACKEND": ""}
        own["METAUG_RUNS"] = str(root / "runs")
        options = [
            "--no-browser",
            "--allow-root",
            "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={self.url.rpartition(':')[2]}",
        ]
        options += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={root}", "--ServerApp.port_retries=0"]
        options += ["--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]
        options += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
        self.log = home / "lab.log"
        with self.log.open("w") as log:
            command = [sys.executable, "-m", "jupyterlab", *options]
            environment = {name: value for name, value in {**os.environ, **own}.items() if value}
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=root)
        wait(self.answers, "JupyterLab did not start")

    def ask(self, path, method="GET"):
        request = urllib.request.Request(f"{self.url}/{path}?token={TOKEN}", method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read() or b"null")

    def answers(self):
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.ask("api/status")
        except OSError:
            return None

    def kill_kernels(self):
        for kernel in self.ask("api/kernels"):
            self.ask(f"api/kernels/{kernel['id']}", "DELETE")

    def close(self):
        try:
            self.kill_kernels()
        finally:
            self.process.terminate()
            self.process.wait(30)


@pytest.fixture(scope="module")
def lab(place, tmp_path_factory):
    place.mkdir(exist_ok=True)
    found = Lab(place, tmp_path_factory.mktemp("home"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def page(lab):
    with open_page(1280, 800) as found:
        found.set_default_timeout(1000 * SECONDS)
        yield found


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory):
    folder = os.environ.get("METAUG_SCREENSHOTS")
    path = Path(folder) if folder else tmp_path_factory.mktemp("screenshots")
    path.mkdir(parents=True, exist_ok=True)
    return path


def notebook(path, *sources):
    found = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    found.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(found, path)


def start_all(page, lab, name):
    """Open a notebook and begin to run it."""
    page.goto(f"{lab.url}/lab/tree/{name}?token={TOKEN}&reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.evaluate(READY)  # before that, Run All would ask for a kernel in a dialog
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")


def run_all(page, lab, name):
    """Open a notebook and run it; nothing may be written to stderr."""
    start_all(page, lab, name)
    page.wait_for_function(RAN)
    warnings = page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]')
    assert warnings.count() == 0, warnings.all_inner_texts()


# --- the explorers
SET_UP = "from metaug_workbook import widgets"
CALLS = {
    "OUCL explorer": "widgets.oucl_explorer()",
    "Margin explorer": "widgets.margin_explorer()",
    "Augmentation viewer": "widgets.augmentation_viewer()",
    "Meta-step stepper": "widgets.meta_step_stepper()",
}
MOVES = {  # which control by its label, the keys that move it, and what it then holds
    "OUCL explorer": ("β, temperature", ["ArrowRight"] * 2, {"beta": 64}),
    "Margin explorer": ("margins", ["Small"], {"margin": "small"}),
    "Augmentation viewer": ("seed", ["ArrowRight"] * 3, {"seed": 3}),
    "Meta-step stepper": ("R_σ", ["Space"], {"margin": False}),
}
BROKEN = "broken = {call}\nfor name, control in broken.controls.items():\n    control.unobserve(broken.redraw, 'value')\nbroken"


@pytest.fixture(scope="module")
def explorers(place, lab, page, screenshots):
    """A notebook with every explorer, and below it each once more with its observers removed."""
    for method in ("cmc", "simclr"):
        run = request(preset("quick", method=method, runs_dir=place / "runs"))
        write_json(run.path / "config.json", run.config.model_dump(mode="json"))
        append(run.path / "metrics.jsonl", [{"step": k, "epoch": k, "knn_val": 0.1 * k} for k in range(4)])
        notebook(run.path / "01_pretrain.ipynb", "'the executed notebook'")
    broken = [BROKEN.format(call=call) for call in CALLS.values()]
    broken += [
        "broken = widgets.run_browser()\nfor tick in broken.ticks.values():\n    tick.unobserve(broken.redraw, 'value')\nbroken"
    ]
    notebook(place / "explorers.ipynb", SET_UP, *CALLS.values(), "widgets.run_browser()", *broken)
    run_all(page, lab, "explorers.ipynb")
    return page


def box(page, title, number=0):
    found = page.locator(".jp-MainAreaWidget:not(.lm-mod-hidden) .metaug-live", has_text=title).nth(number)
    found.wait_for()
    return found


def control(where, label):
    """What is moved: the handle, box or list inside a control of this label."""
    row = where.locator(".widget-inline-hbox, .widget-checkbox", has_text=label).first
    return row.locator(".noUi-handle, input[type=checkbox], select").first


def press(where, label, keys):
    element = control(where, label)
    element.scroll_into_view_if_needed()
    element.focus()
    for key in keys:
        if element.evaluate("element => element.tagName") == "SELECT":
            element.select_option(key)
        else:
            element.press(key)


def shows(where, png, text, seconds=60):
    """The picture is this one and the sentence stands in the box; AssertionError if that does not come to pass."""

    def right():
        pictures = where.locator("img.widget-image")
        return base64.b64decode(pictures.first.evaluate(BYTES)) == png and text in where.inner_text()

    wait(right, f"the picture of {text!r} does not appear", seconds)


@pytest.mark.slow
@pytest.mark.parametrize("title", CALLS)
def test_a_key_moves_the_explorer_to_the_right_picture(explorers, title, screenshots):
    label, keys, values = MOVES[title]
    wanted = getattr(widgets, CALLS[title].removeprefix("widgets.").removesuffix("()"))()
    where, broken = box(explorers, title), box(explorers, title, 1)
    shows(where, wanted.png, wanted.text)
    before = wanted.png
    press(where, label, keys)
    press(broken, label, keys)
    wanted.set(**values)
    assert wanted.png != before
    shows(where, wanted.png, wanted.text)
    with pytest.raises(AssertionError, match="does not appear"):  # the negative control: its observers are gone
        shows(broken, wanted.png, wanted.text, seconds=1)
    where.evaluate("box => box.scrollIntoView({block: 'center'})")
    explorers.screenshot(path=screenshots / f"{title.replace(' ', '-').lower()}.png")


def test_the_stepper_steps_by_its_buttons(explorers):
    where = box(explorers, "Meta-step stepper")
    wanted = widgets.meta_step_stepper(stage=3, margin=False)
    button = where.get_by_role("button", name="Forward")
    button.focus()
    button.press("Space")
    shows(where, wanted.png, wanted.text)


def test_the_stepper_plays(explorers):
    where = box(explorers, "Meta-step stepper")
    where.locator(".widget-play button").first.click()
    wait(lambda: "Update: the encoder steps" not in where.inner_text(), "it does not play")
    where.locator(".widget-play button").first.click()


def test_a_button_of_the_oucl_explorer_sets_its_preset(explorers):
    where = box(explorers, "OUCL explorer")
    wanted = widgets.oucl_explorer(positive=0.6, negative=0.95)
    for name in ("Reset", "Hardest negative"):
        where.get_by_role("button", name=name).click()
    shows(where, wanted.png, wanted.text)


def test_the_run_browser_overlays_what_is_chosen_and_opens_its_notebook(explorers, place, screenshots):
    where, broken = box(explorers, "Run browser"), box(explorers, "Run browser", 1)
    wanted = widgets.run_browser(place / "runs")
    shows(where, wanted.png, "2 are drawn")
    for each in (where, broken):
        press(each, wanted.listed[1], ["Space"])
    wanted.choose(wanted.listed[:1])
    shows(where, wanted.png, "1 are drawn")
    with pytest.raises(AssertionError, match="does not appear"):
        shows(broken, wanted.png, "1 are drawn", seconds=1)
    where.evaluate("box => box.scrollIntoView({block: 'center'})")
    explorers.screenshot(path=screenshots / "run-browser.png")
    where.get_by_role("link", name="01_pretrain").first.click()
    explorers.locator(".lm-TabBar-tabLabel", has_text="01_pretrain.ipynb").first.wait_for()
    explorers.locator(".lm-TabBar-tabLabel", has_text="explorers.ipynb").first.click()
    box(explorers, "OUCL explorer")


def test_the_run_browser_filters_and_deletes_after_a_question(explorers, place):
    where = box(explorers, "Run browser")
    doomed = widgets.run_browser(place / "runs").runs
    name = next(name for name, run in doomed.items() if run.method == "cmc")
    control(where, "method").select_option("cmc")
    wait(lambda: "1 of 2 runs pass" in where.inner_text(), "it does not filter")
    where.get_by_role("button", name="Delete ticked").click()
    wait(lambda: f"Delete {name} for good" in where.inner_text(), "it does not ask")
    assert (place / "runs" / name).exists()
    where.get_by_role("button", name="Delete for good").click()
    wait(lambda: not (place / "runs" / name).exists(), "the run is not deleted")
    wait(lambda: "0 of 1 runs pass" in where.inner_text(), "it still lists the run")


def test_nothing_is_shown_twice_nor_wider_than_the_page(explorers):
    live = explorers.locator(".metaug-live")
    assert live.count() == 2 * (len(CALLS) + 1)
    plain = explorers.locator(".jp-OutputArea-child > .jp-RenderedImage img")
    assert plain.count() == live.count()  # each static picture is there, for the saved notebook,
    assert not any(image.is_visible() for image in plain.all())  # and hidden by the live one
    wide = """found => found.filter(box => box.scrollWidth > box.clientWidth + 1)
        .map(box => [box.textContent.slice(0, 80), box.scrollWidth, box.clientWidth])"""
    assert explorers.locator(".metaug-live, .jp-Notebook, .jp-WindowedPanel-outer").evaluate_all(wide) == []


def test_the_saved_notebook_holds_static_pictures(explorers, place):
    explorers.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    cells = nbformat.read(place / "explorers.ipynb", 4).cells[1:]
    for cell in cells:
        static, live = cell.outputs
        assert base64.b64decode(static.data["image/png"]).startswith(b"\x89PNG")
        assert live.data["text/plain"] == "Controls: run this cell in JupyterLab."


# --- a run in the background
@pytest.fixture(scope="module")
def config(place):
    """A run of a minute and more, on image files."""
    write_noise_images(place / "images")
    found = preset(
        "quick", dataset="folder", data_dir=place / "images", runs_dir=place / "runs", image_size=16, width=0.05,
        feature_dim=8, mag_hidden=16, batch_size=8, epochs=5000, train_images=None, log_every=2, workers=0, device="cpu",
    )  # fmt: skip
    yield found
    background.stop(run := request(found))
    wait(lambda: not background.is_alive(run), "the run does not stop")


def monitors(config):
    """The cells of a notebook that watches a run: a monitor, and one that never looks."""
    write(config.runs_dir / "asked.json", json.dumps(config.model_dump(mode="json")).encode())
    imports = "import json\nfrom metaug_core import Config\nfrom metaug_workbook import widgets"
    made = f"{imports}\nconfig = Config(**json.load(open('runs/asked.json')))"
    broken = "broken = widgets.run_monitor(config)\nbroken.look = broken.follow = lambda: None\nbroken"
    return made, broken, "widgets.run_monitor(config)"


def click(where, name):
    button = where.get_by_role("button", name=name)
    wait(button.is_enabled, f"{name} cannot be pressed")
    button.focus()
    button.press("Space")


def steps(run):
    found = rows(run.path / "timing.jsonl")
    return found[-1]["step"] if found else 0


@pytest.mark.slow
def test_a_run_is_started_watched_paused_resumed_outlives_its_kernel_and_is_stopped(
    page, lab, config, place, screenshots
):
    run = request(config)
    notebook(place / "monitor.ipynb", *monitors(config))
    run_all(page, lab, "monitor.ipynb")
    broken, where = box(page, "Run monitor"), box(page, "Run monitor", 1)
    assert "not started" in where.inner_text()
    click(where, "Start")
    wait(lambda: "training: step" in where.inner_text(), "the monitor does not follow the run")
    empty = where.locator("img.widget-image").evaluate(BYTES)
    wait(lambda: where.locator("img.widget-image").evaluate(BYTES) != empty, "the curves do not grow")
    assert "not started" in broken.inner_text()  # the negative control: it does not look
    page.screenshot(path=screenshots / "run-monitor.png")

    click(where, "Pause")
    wait(lambda: "paused: everything is saved" in where.inner_text(), "the run does not pause")
    assert not background.is_alive(run)
    paused_at = rows(run.path / "timing.jsonl")[-1]["step"]
    click(where, "Resume")
    wait(lambda: background.is_alive(run) and steps(run) > paused_at, "the run does not resume")

    lab.kill_kernels()
    killed_at = steps(run)
    wait(lambda: steps(run) > killed_at + 2, "the run died with its kernel")
    notebook(place / "again.ipynb", *monitors(config))
    run_all(page, lab, "again.ipynb")
    where = box(page, "Run monitor", 1)
    wait(lambda: "training: step" in where.inner_text(), "another kernel does not see the run")
    click(where, "Stop")
    wait(lambda: "stopped and saved" in where.inner_text(), "the run does not stop")
    stopped_at = steps(run)
    click(where, "Resume")
    wait(lambda: steps(run) > stopped_at, "another kernel cannot go on with the run")
    logged = [row["step"] for row in rows(run.path / "metrics.jsonl") if "lr" in row]
    assert logged == [2 * k + 2 for k in range(len(logged))]  # no step twice, none left out


@pytest.mark.slow
def test_the_cell_that_trains_is_steered_by_its_monitor_and_interrupted_without_a_traceback(
    page, lab, config, place, screenshots
):
    config = config.replace(seed=1)
    run = request(config)
    made, *_ = monitors(config)
    train = "from metaug_workbook import notebook\nrun = await notebook.train_watched(config)"
    notebook(place / "train.ipynb", made, train, "print('the next cell')")
    start_all(page, lab, "train.ipynb")
    where = box(page, "Run monitor")
    wait(lambda: "training: step" in where.inner_text(), "the run does not start")
    click(where, "Pause")
    wait(lambda: "paused: everything is saved" in where.inner_text(), "a button is not heard", 40)
    paused_at = steps(run)
    click(where, "Resume")
    wait(lambda: steps(run) > paused_at, "the run does not resume")
    page.screenshot(path=screenshots / "train.png")
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:interrupt-kernel') }")
    error = page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]')
    error.wait_for()
    assert error.inner_text().strip() == f"{run.path.name}: saved; run the cell again to go on"
    assert not background.is_alive(run)
    assert run.checkpoints
    assert "the next cell" not in page.locator(".jp-OutputArea-output").all_inner_texts()
    page.screenshot(path=screenshots / "train-stopped.png")
