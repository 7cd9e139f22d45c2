"""A run's encoder as a module, as files for other programs, and its features of images of one's own."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import TINY
from torch import nn
from torchvision import models

from metaug_core import ENCODERS, Config, MetaugError, evaluate, fit
from metaug_core.data import datasets
from metaug_core.data.images import read_image
from metaug_core.evaluation import export, own_images, representations
from metaug_core.runs.encoder import Encoder
from metaug_core.runs.store import request
from metaug_core.views import color

SIZES = [(1, 16, 16), (5, 33, 20), (3, 8, 64), (2, 200, 100)]  # B, H, W


def pixels(count, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(Config(**{**TINY, "epochs": 1, "runs_dir": tmp_path_factory.mktemp("runs")}))


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """The folder with the exported files of `run`. No constant of the views was made before in this process."""
    folder = tmp_path_factory.mktemp("exported")
    evaluate(run, measures=("knn",), representations=("untrained", "trained"))
    color.constant.cache_clear()
    files = export.export(run, folder / "float32.pt2")
    assert all(what.startswith("not written") != file.exists() for file, what in files.items())
    return folder


# --- the module


@pytest.mark.parametrize(
    "changes", [{}, {"precision": "bf16"}, {"method": "swav", "views": ("RGB", "RGB")}, {"method": "supervised"}],
    ids=["metaug", "bf16", "swav", "supervised"],
)  # fmt: skip
def test_the_encoder_gives_the_features_that_evaluate_measures(changes, tiny):
    """Also where a method has its encoders at another place, or as many outputs as there are classes."""
    run = fit(tiny(epochs=1, **changes))
    images, encoder = datasets.load(run.config).test, run.encoder()
    networks, _ = representations.load_networks(run.config, 4, run.encoder_files()[-1])
    with torch.no_grad():
        h = encoder(images.pixels)
    assert h.dtype == torch.float32
    assert torch.allclose(h, representations.features(networks, images, run.config), 0, 1e-6)
    assert not torch.equal(h, Encoder(run.config)(images.pixels))  # they are the trained weights
    assert not encoder.training
    assert encoder.config == run.config


def test_an_image_is_cut_to_its_central_square(run):
    encoder, wide = run.encoder(), pixels(2, 30, 50)
    assert torch.allclose(encoder(wide), encoder(wide[:, :, :, 10:40]), 0, 1e-6)
    assert torch.allclose(encoder(wide.mT), encoder(wide.mT[:, :, 10:40]), 0, 1e-6)


def test_the_encoder_can_be_fine_tuned(run):
    encoder = run.encoder()
    encoder(pixels(4, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_other_images_and_unfinished_runs_are_refused(run, tiny):
    with pytest.raises(MetaugError, match=r"views need uint8 images \(B, 3, H, W\), got torch.float32"):
        run.encoder()(pixels(1, 16, 16).float())
    with pytest.raises(MetaugError, match="is not finished"):
        request(tiny(seed=5)).encoder()


# --- files for other programs

LOAD = """\
import sys
sys.modules |= {"metaug_core": None, "metaug_workbook": None}  # an import of either fails
import numpy, torch
for precision in ("float32", "bf16"):
    encoder = torch.export.load(f"{precision}.pt2").module()
    for name, images in numpy.load("images.npz").items():
        with torch.no_grad():
            numpy.save(f"{precision}-{name}.npy", encoder(torch.from_numpy(images)).numpy())
"""


@pytest.mark.slow
def test_the_exported_program_needs_no_package_and_gives_the_same_features(run, exported, tiny):
    tmp_path, runs = exported, {"float32": run, "bf16": fit(tiny(epochs=1, precision="bf16"))}
    export.export(runs["bf16"], tmp_path / "bf16.pt2")
    batches = {str(n): pixels(*size, seed=n) for n, size in enumerate(SIZES)}
    np.savez(tmp_path / "images.npz", **{name: images.numpy() for name, images in batches.items()})
    subprocess.run([sys.executable, "-W", "ignore", "-c", LOAD], cwd=tmp_path, check=True)
    for precision, one in runs.items():
        encoder = one.encoder()
        for name, images in batches.items():
            with torch.no_grad():
                assert np.abs(np.load(tmp_path / f"{precision}-{name}.npy") - encoder(images).numpy()).max() < 1e-5


def test_an_export_before_anything_else_leaves_the_views_as_they_were(run, exported):
    """torch.export would leave its tensors without numbers in the cache of the views' constants."""
    assert torch.isfinite(run.encoder()(pixels(2, 16, 16))).all()


def test_the_onnx_file_gives_the_same_features(run, exported):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    session = onnxruntime.InferenceSession(exported / "float32.onnx")
    for number, size in enumerate(SIZES):
        images = pixels(*size, seed=number)
        (h,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad():
            assert np.abs(h - run.encoder()(images).numpy()).max() < 1e-5


def test_the_model_card_says_what_is_known(run, exported):
    card = (exported / "float32.md").read_text()
    assert f"| trained | {100 * run.evaluation()['trained']['knn']:.1f} |" in card
    assert run.sessions[-1]["commit"] in card
    assert "without labels on 90 images of `tiny` at 16 px, 1 epochs, seed 0" in card
    assert "| delta | 0.1 |" in card
    assert "MIT" in card
    assert str(run.config.runs_dir) not in card


def test_torchvision_and_timm_load_a_resnets_weights(tiny, tmp_path):
    config = tiny(encoder="resnet18", width=1.0, stem="paper", image_size=64, views=("RGB", "L"), method="cmc")
    encoder, images = Encoder(config), torch.rand(2, 3, 64, 64) * 2 - 1
    nets = encoder.encoders.nets
    with torch.no_grad():
        encoder.train()(pixels(8, 64, 64))  # BatchNorm's statistics are weights too
    encoder.eval()
    assert [file.name for file in export.write_backbones(encoder, tmp_path / "e.pt2")] == [
        "e-RGB.safetensors",
        "e-L.safetensors",
    ]
    net = models.resnet18()
    net.fc = nn.Identity()
    net.load_state_dict(load_file(tmp_path / "e-RGB.safetensors"))
    with torch.no_grad():
        assert torch.allclose(net.eval()(images), nets["RGB"](images), 1e-5, 1e-5)
    assert 'in_chans=1, checkpoint_path="e-L.safetensors")' in export.describe_backbone(config, "L", tmp_path / "e.pt2")
    timm = pytest.importorskip("timm")
    for view, channels in (("RGB", 3), ("L", 1)):
        file = str(tmp_path / f"e-{view}.safetensors")
        net = timm.create_model("resnet18", num_classes=0, in_chans=channels, checkpoint_path=file)
        with torch.no_grad():
            assert torch.allclose(net.eval()(images[:, :channels]), nets[view](images[:, :channels]), 1e-5, 1e-5)


def test_the_card_of_small_images_has_code_that_loads_a_resnets_weights(tiny, tmp_path, monkeypatch):
    config = tiny(encoder="resnet18", width=1.0, views=("L", "ab"), method="cmc")
    encoder, images = Encoder(config), torch.rand(2, 2, 16, 16)
    export.write_backbones(encoder, tmp_path / "e.pt2")
    code = re.search(r"```python\n(.*?)```", export.describe_backbone(config, "ab", tmp_path / "e.pt2"), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    with torch.no_grad():
        assert torch.allclose(names["net"].eval()(images), encoder.encoders.nets["ab"](images), 1e-5, 1e-5)


def test_an_encoder_of_ones_own_is_exported_too(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(
        ENCODERS,
        "mine",
        lambda channels, config: nn.Sequential(
            nn.Conv2d(channels, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ),
    )
    encoder = Encoder(tiny(encoder="mine"))
    program = export.trace(encoder, pixels(2, 40, 48)).module()
    for size in SIZES:
        assert torch.allclose(program(pixels(*size)), encoder(pixels(*size)), 1e-5, 1e-6)


# --- images of one's own


def write_images(folder, names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(1, 20, 30, seed=number)[0].permute(1, 2, 0).numpy()).save(folder / name)


def test_features_of_a_folder_with_classes(run, tmp_path):
    names = ["cat/a.png", "cat/deep/b.png", "dog/c.png"]
    write_images(tmp_path / "photos", names)
    assert own_images.write_features(run, tmp_path / "photos", tmp_path / "out.npz") == (3, 12)
    table = np.load(tmp_path / "out.npz")
    assert sorted(table["names"]) == names
    assert [str(table["classes"][label]) for label in table["labels"]] == [n.split("/")[0] for n in table["names"]]
    images = np.stack([read_image(tmp_path / "photos" / name, 16) for name in table["names"]])
    with torch.no_grad():
        assert np.array_equal(table["features"], run.encoder()(torch.from_numpy(images)).numpy())


def test_features_of_a_folder_without_classes(run, tmp_path):
    write_images(tmp_path, ["a.png", "below/b.png"])
    arrays = own_images.extract(run, tmp_path)
    assert sorted(arrays["names"]) == ["a.png", "below/b.png"]
    assert arrays["labels"].tolist() == [-1, -1]
    assert arrays["classes"].tolist() == []


def test_features_of_arrays(run, tmp_path):
    images, labels = pixels(5, 16, 24).numpy(), np.arange(5)
    np.save(tmp_path / "rows.npy", images)
    np.savez(tmp_path / "pixels.npz", images=images.transpose(0, 2, 3, 1), labels=labels)
    first, second = (own_images.extract(run, tmp_path / name) for name in ("rows.npy", "pixels.npz"))
    assert np.array_equal(first["features"], second["features"])
    with torch.no_grad():
        assert np.array_equal(first["features"], run.encoder()(torch.from_numpy(images)).numpy())
    assert second["labels"].tolist() == labels.tolist()
    assert first["names"].tolist() == ["0", "1", "2", "3", "4"]


def test_what_holds_no_images_is_refused_in_one_sentence(run, tmp_path):
    write_images(tmp_path / "split", ["train/cat/a.png", "test/cat/b.png"])
    np.save(tmp_path / "floats.npy", np.zeros((2, 3, 8, 8)))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    (tmp_path / "torn.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:60])
    (tmp_path / "empty").mkdir()
    for name, sentence in {
        "split": "holds test and train, which are not classes",
        "floats.npy": r"images must be uint8 .*, not float64 \(2, 3, 8, 8\)",
        "objects.npy": "cannot be read",
        "other.npz": "has no array `images`, only x",
        "torn.npz": "is damaged",
        "empty": "has no images",
        "none": "is missing",
    }.items():
        with pytest.raises(MetaugError, match=sentence):
            own_images.write_features(run, tmp_path / name, tmp_path / "out.npz")
    with pytest.raises(MetaugError, match="is the images: name a file"):
        own_images.write_features(run, tmp_path / "floats.npy", tmp_path / "floats.npy")
    assert not (tmp_path / "out.npz").exists()
