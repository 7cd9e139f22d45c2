"""How good a frozen encoder is: linear probe and kNN on features that are computed once.

Each result states its protocol. Nothing is chosen on the test split: a learning rate is chosen on the validation split, and an
epoch is never chosen at all (the last, or the mean of the last `keep_last`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core import data, methods
from metaug_core.config import Config
from metaug_core.methods.base import initial_networks
from metaug_core.registry import MetaugError
from metaug_core.store import Run, load_module, read_json, read_tensors, write_json
from metaug_core.views import evaluation_views, plain

BATCH = 512
NEIGHBOURS, VOTE_TEMPERATURE = 20, 0.07  # weighted kNN of Wu et al. 2018


@dataclass(frozen=True)
class Probe:
    """A linear classifier on frozen features by SGD with momentum 0.9, batch 256; several learning rates at once."""

    lrs: tuple[float, ...]
    epochs: int
    milestones: tuple[int, ...]  # epochs after which the rate is multiplied by 0.2; (): cosine to 0
    standardise: bool  # features to zero mean and unit variance by the training set's statistics

    def rate(self, progress: float) -> float:
        """Factor on the learning rate after `progress` in [0, 1] of the epochs."""
        if not self.milestones:
            return 0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item())
        return 0.2 ** sum(progress * self.epochs >= m for m in self.milestones)


PROBES = {
    "paper": Probe((0.1,), 60, (30, 40, 50), standardise=False),  # of the CMC line of work, which the paper follows
    "fast": Probe((0.001, 0.003, 0.01, 0.03, 0.1, 0.3), 15, (), standardise=True),
}


@torch.no_grad()
def features(networks: nn.Module, images: data.Images, config: Config) -> Tensor:
    """h of all distinct views, concatenated, (N, sum D_j) float32: what downstream tasks use; the heads are discarded."""
    names = tuple(dict.fromkeys(config.views))
    with evaluating(networks):
        found = [
            torch.cat(networks.encoders(evaluation_views(pixels, config), names), dim=1)
            for pixels in images.batches(torch.arange(len(images)).split(BATCH))
        ]
    return torch.cat(found)


@torch.no_grad()
def embeddings(networks: nn.Module, images: data.Images, config: Config, mag: nn.Module | None = None) -> Tensor:
    """z of all views, (V, N, d); with a MAG z and z~, (2V, N, d) (Table 5, "with augmented features"; Figure 2)."""
    found = []
    with evaluating(networks, mag):
        for pixels in images.batches(torch.arange(len(images)).split(BATCH)):
            seen = dict(zip(dict.fromkeys(config.views), evaluation_views(pixels, config), strict=True))
            z = networks([seen[name] for name in config.views])
            found.append(z if mag is None else torch.cat([z, mag(z)]))
    return torch.cat(found, dim=1)


@contextmanager
def evaluating(*modules: nn.Module | None) -> Iterator[None]:
    """Within, the modules are in evaluation mode (BatchNorm uses its running statistics)."""
    training = [(module, module.training) for module in modules if module is not None]
    try:
        for module, _ in training:
            module.eval()
        yield
    finally:
        for module, mode in training:
            module.train(mode)


@torch.no_grad()
def raw_pixels(images: data.Images, config: Config) -> Tensor:
    """The floor: the pixels themselves, (N, 3 S S)."""
    rows = torch.arange(len(images)).split(BATCH)
    return torch.cat([plain(pixels, config.image_size).flatten(1) for pixels in images.batches(rows)])


@torch.no_grad()
def knn(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, classes: int) -> float:
    """Accuracy of the weighted vote of the 20 nearest by cosine: one matmul and a topk. Features (N, D), labels (N,)."""
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    votes = F.one_hot(train_labels, classes).float()
    correct = 0
    for x, y in zip(test.split(BATCH), test_labels.split(BATCH), strict=True):
        near, who = (x @ train.T).topk(min(NEIGHBOURS, len(train)), dim=1)
        score = (votes[who] * (near / VOTE_TEMPERATURE).exp()[..., None]).sum(1)
        correct += int((score.argmax(1) == y).sum())
    return correct / len(test)


@torch.no_grad()
def linear_probe(train: Tensor, labels: Tensor, classes: int, probe: Probe, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights (L, D, C) and biases (L, 1, C) for all L learning rates, trained side by side as one batched matmul.

    Their gradient is written out (softmax minus one-hot), so a step is two matmuls whatever L is.
    """
    lr = torch.tensor(probe.lrs, device=train.device)[:, None, None]
    weight = train.new_zeros(len(lr), train.shape[1], classes)
    bias = train.new_zeros(len(lr), 1, classes)
    speed = [torch.zeros_like(weight), torch.zeros_like(bias)]
    target = F.one_hot(labels, classes).to(train.dtype)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(probe.epochs):
        batches = torch.randperm(len(train), generator=generator).to(train.device).split(256)
        for number, rows in enumerate(batches):
            x = train[rows]
            error = (torch.matmul(x, weight) + bias).softmax(-1).sub_(target[rows]).div_(len(rows))  # (L, B, C)
            rate = lr * probe.rate((epoch + number / len(batches)) / probe.epochs)
            for parameter, moved, gradient in (
                (weight, speed[0], torch.matmul(x.T, error)),
                (bias, speed[1], error.sum(1, keepdim=True)),
            ):
                moved.mul_(0.9).add_(gradient)
                parameter.sub_(rate * moved)
    return weight, bias


def accuracy(x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Share of right answers of each of the L classifiers, (L,)."""
    right = [
        ((part @ weight + bias).argmax(-1) == y).sum(1)
        for part, y in zip(x.split(BATCH), labels.split(BATCH), strict=True)
    ]
    return torch.stack(right).sum(0) / len(x)


@dataclass(frozen=True)
class Labelled:
    """Features (N, D) and labels (N,) of one split."""

    x: Tensor
    y: Tensor

    def __getitem__(self, rows: Any) -> "Labelled":
        return Labelled(self.x[rows], self.y[rows])


def probe_accuracy(probe: Probe, train: Labelled, test: Labelled, val: Labelled | None, classes: int) -> float:
    """Test accuracy of the learning rate that is best on val (None: on every tenth training image, then held out)."""
    if val is None and len(probe.lrs) > 1:
        held_out = torch.arange(len(train.y), device=train.y.device) % 10 == 0
        train, val = train[~held_out], train[held_out]
    mean, std = train.x.mean(0), train.x.std(0).clamp(min=1e-5)

    def prepared(x: Tensor) -> Tensor:
        return (x - mean) / std if probe.standardise else x

    fitted = linear_probe(prepared(train.x), train.y, classes, probe)
    best = int(accuracy(prepared(val.x), val.y, *fitted).argmax()) if val and len(probe.lrs) > 1 else 0
    return float(accuracy(prepared(test.x), test.y, *fitted)[best])


def measure(train: Labelled, test: Labelled, val: Labelled | None, classes: int) -> dict[str, float]:
    """Every protocol on one representation: probe_paper, probe_fast and knn, accuracies in [0, 1]."""
    found = {f"probe_{name}": probe_accuracy(probe, train, test, val, classes) for name, probe in PROBES.items()}
    return found | {"knn": knn(train.x, train.y, test.x, test.y, classes)}


def load_networks(config: Config, classes: int, file: Any = None) -> tuple[nn.Module, nn.Module | None]:
    """Encoders and MAG, untrained as the seed makes them, or with the weights of one of `Run.encoder_files`."""
    method = methods.build(config)
    networks, mag = initial_networks(method, classes, config.seed)
    if file is not None:
        tensors, _ = read_tensors(file)
        for prefix, module in (("networks.", networks), ("mag.", mag)):
            if module is not None:
                load_module(module, tensors, prefix, file)
    return networks, mag


def evaluate(
    run: Run, split: str = "test", augmented: bool = False, splits: data.Splits | None = None, device: str = "cpu"
) -> pd.DataFrame:
    """Raw pixels, the untrained and the trained encoder of a finished run, under every protocol; a row each.

    split: test, or val (for choosing settings). augmented: also a row for z and z~ with the heads kept (Table 5, left column).
    The trained row is the mean over the kept epochs. The result is stored in the run's folder and found there by the same call.
    Raises MetaugError if the run is not finished or the split is empty.
    """
    if not run.encoder_files():
        raise MetaugError(f"run {run.path.name} has no trained encoder yet: finish it with `metaug resume {run.path.name}`")
    file = run.path / f"evaluation-{split}.json"
    stored = read_json(file) if file.exists() else {}
    wanted = ["raw pixels", "untrained", "trained"] + ["trained, z and z~"] * augmented
    if missing := [name for name in wanted if name not in stored]:
        splits = splits or data.load(run.config, device)
        for name in missing:
            stored[name] = _representation(name, run, split, splits, device)
        write_json(file, stored)
    return pd.DataFrame([stored[name] | {"representation": name} for name in wanted]).set_index("representation")


def _representation(name: str, run: Run, split: str, splits: data.Splits, device: str) -> dict[str, Any]:
    config, classes = run.config, len(splits.train.classes)
    test = {"test": splits.test, "val": splits.val}.get(split)
    if test is None:
        raise MetaugError(f"split must be test, or val with val_fraction > 0, got {split!r}")
    files = run.encoder_files() if name.startswith("trained") else [None]
    found = []
    for file in files:
        networks, mag = load_networks(config, classes, file)
        networks, mag = networks.to(device), mag.to(device) if mag and "z~" in name else None
        if "z~" in name and mag is None:
            raise MetaugError(f"method {config.method!r} has no MAG, so there are no augmented features to evaluate")

        def labelled(images: data.Images, networks=networks, mag=mag) -> Labelled:
            if name == "raw pixels":
                return Labelled(raw_pixels(images, config), images.labels)
            if mag is not None:
                return Labelled(embeddings(networks, images, config, mag).transpose(0, 1).flatten(1), images.labels)
            return Labelled(features(networks, images, config), images.labels)

        val = labelled(splits.val) if splits.val is not None and split != "val" else None
        found.append(measure(labelled(splits.train), labelled(test), val, classes))
    mean = {key: sum(f[key] for f in found) / len(found) for key in found[0]}
    counts = {"epochs": len(found), "n_train": len(splits.train), "n_eval": len(test), "split": split}
    return mean | counts | {"method": config.method, "dataset": config.dataset, "seed": config.seed}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % t-interval over independent trials; the half-width is nan for one trial."""
    x = torch.tensor(values, dtype=torch.float64)
    if len(x) < 2:
        return float(x.mean()), float("nan")
    return float(x.mean()), float(stats.t.ppf(0.975, len(x) - 1) * x.std() / len(x) ** 0.5)


def over_seeds(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """`evaluate` tables of the same settings with different seeds -> mean, 95 % half-width and n by representation."""
    long = pd.concat(tables).reset_index()
    found = []
    for name, group in long.groupby("representation", sort=False):
        for measured in ("probe_paper", "probe_fast", "knn"):
            mean, half = interval(group[measured].tolist())
            found.append({"representation": name, "measure": measured, "mean": mean, "half_width": half, "n": len(group)})
    return pd.DataFrame(found)
