"""Protocols that measure a frozen representation: linear probes and kNN, as functions of features and labels.

Nothing is chosen on the split that is reported: a learning rate is chosen on the validation split, and no epoch is.

probe_paper is the probe of the CMC line of work, which the paper's authors use as well: a linear classifier trained on features
of random crops and flips (`crops`) that are encoded anew in every epoch, and tested on plain images. The paper averages "the last
20 epochs" without saying of what; here they are the probe's epochs 41 to 60, because the authors' probe logs its test accuracy
after each of its epochs while their training keeps an encoder of every tenth alone. (Their scripts report the best epoch, and their
weights start from N(0, 0.01); ours start from 0.) probe_plain is the same classifier on features of plain images, computed once,
after its last epoch: much cheaper, and another measure.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metaug_core.runs.predictions import TOP, find_correct

BATCH = 512  # rows at a time, so that scores of a large split fit in memory
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


CMC = Probe((0.1,), 60, (30, 40, 50), standardise=False)  # of the CMC line of work
AVERAGED_EPOCHS = 20  # of probe_paper
PLAIN_PROBES = {  # on features of plain images
    "probe_plain": CMC,
    "probe_fast": Probe((0.001, 0.003, 0.01, 0.03, 0.1, 0.3), 15, (), standardise=True),
}
MEASURES = ("probe_paper", *PLAIN_PROBES, "knn")
DEFAULT_MEASURES = MEASURES[1:]  # the cheap ones: training images are encoded once
LABEL_FREE = ("rankme",)  # what `evaluate` measures beside accuracies; no share, but a number of directions


@dataclass(frozen=True)
class Labelled:
    """Features (N, D) and labels (N,) of one split."""

    x: Tensor
    y: Tensor

    def __getitem__(self, rows: Any) -> "Labelled":
        return Labelled(self.x[rows], self.y[rows])


# --- predictions, as `runs.predictions` says


def rank(scores: Tensor) -> Tensor:
    """The likeliest classes of scores (..., C), (..., R) int32. The first is that of argmax, also among equal ones."""
    first = scores.argmax(-1, keepdim=True)
    others = scores.scatter(-1, first, -torch.inf).topk(min(TOP, scores.shape[-1]) - 1)  # much faster than to sort all
    return torch.cat([first, others.indices], -1).int()


@torch.no_grad()
def predict_knn(
    train: Tensor, labels: Tensor, test: Tensor, classes: int, counts: Sequence[int] = (NEIGHBOURS,)
) -> Tensor:
    """Classes of test features by the weighted vote of the k nearest training features by cosine, for each k of counts (of all, if
    there are fewer): (K, N, R), -1 where no class is left that got a vote. Features (N, D), labels (N,)."""
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    votes = F.one_hot(labels, classes).float()
    predicted = []
    for x in test.split(BATCH):
        cosines, neighbours = (x @ train.T).topk(min(max(counts), len(train)), dim=1)
        weights = (cosines / VOTE_TEMPERATURE).exp()[..., None]
        scores = torch.stack([(votes[neighbours[:, :k]] * weights[:, :k]).sum(1) for k in counts])
        ranked = rank(scores)
        predicted.append(ranked.where(scores.gather(-1, ranked.long()) > 0, -1))
    return torch.cat(predicted, 1)


# --- linear probes


def linear_probe(train: Tensor, labels: Tensor, classes: int, probe: Probe, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights (L, D, C) and biases (L, 1, C) for all L learning rates after the last epoch on features (N, D)."""
    *_, last = train_classifiers(lambda epoch: train, labels, classes, probe, seed)
    return last


@torch.no_grad()
def train_classifiers(
    features: Callable[[int], Tensor], labels: Tensor, classes: int, probe: Probe, seed: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Weights (L, D, C) and biases (L, 1, C) after each epoch, for all L learning rates, trained side by side.

    features: the number of an epoch, from 0 on -> the features (N, D) that it trains on. What one epoch yields the next one writes
    over. The gradient is written out (softmax minus one-hot). All classifiers are rows of one matrix (LC, D), so that a step is two
    plain matmuls, much faster on a CPU than L batched ones.
    """
    train = features(0)
    count, dim = len(probe.lrs), train.shape[1]
    lr = torch.tensor(probe.lrs, device=train.device, dtype=train.dtype).repeat_interleave(classes)[:, None]
    weight, bias = train.new_zeros(count * classes, dim), train.new_zeros(count * classes, 1)
    weight_momentum, bias_momentum = torch.zeros_like(weight), torch.zeros_like(bias)
    target = F.one_hot(labels, classes).to(train.dtype)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(probe.epochs):
        train = features(epoch) if epoch else train
        batches = torch.randperm(len(train), generator=generator).to(train.device).split(256)
        for number, rows in enumerate(batches):
            x, ones = train.index_select(0, rows), train.new_ones(len(rows), 1)
            score = torch.addmm(bias.T, x, weight.T).view(len(rows), count, classes)
            error = score.softmax(-1).sub_(target[rows][:, None]).div_(len(rows)).flatten(1)  # (B, LC)
            rate = lr * probe.rate((epoch + number / len(batches)) / probe.epochs)
            for parameter, momentum, inputs in ((weight, weight_momentum, x), (bias, bias_momentum, ones)):
                momentum.addmm_(error.T, inputs, beta=0.9)
                parameter.addcmul_(rate, momentum, value=-1)
        yield weight.view(count, classes, dim).mT, bias.view(count, 1, classes)


def predict_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Classes of features (N, D) by each of the L classifiers, (L, N, R)."""
    return torch.cat([rank(part @ weight + bias) for part in x.split(BATCH)], 1)


def probe_linear(
    probe: Probe, train: Labelled, test: Tensor, val: Labelled | None, classes: int, seed: int = 0
) -> Tensor:
    """Classes of test features (N, D) by the learning rate that is best on val (None: on every tenth training image, then held
    out), (1, N, R). seed: of the order of minibatches."""
    if val is None and len(probe.lrs) > 1:
        held_out = torch.arange(len(train.y), device=train.y.device) % 10 == 0
        train, val = train[~held_out], train[held_out]
    mean, std = train.x.mean(0), train.x.std(0).clamp(min=1e-5)

    def standardise(x: Tensor) -> Tensor:
        return (x - mean) / std if probe.standardise else x

    classifiers = linear_probe(standardise(train.x), train.y, classes, probe, seed)
    best = 0
    if val is not None and len(probe.lrs) > 1:
        best = int(find_correct(predict_linear(standardise(val.x), *classifiers), val.y).sum(1).argmax())
    return predict_linear(standardise(test), *classifiers)[best : best + 1]


def predict_late_epochs(
    probe: Probe, features: Callable[[int], Tensor], labels: Tensor, test: Tensor, classes: int, seed: int = 0
) -> Tensor:
    """Classes of test features (N, D) by the one learning rate of a probe after each of its last `AVERAGED_EPOCHS` epochs,
    (20, N, R). features, labels and seed: as of `train_classifiers`."""
    epochs = enumerate(train_classifiers(features, labels, classes, probe, seed))
    late = [predict_linear(test, *pair) for epoch, pair in epochs if epoch >= probe.epochs - AVERAGED_EPOCHS]
    return torch.cat(late)


def predict(
    train: Labelled, test: Tensor, val: Labelled | None, classes: int,
    measures: Sequence[str] = DEFAULT_MEASURES, crops: Callable[[int], Tensor] | None = None, seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    """Predictions (P, N, R) for test features (N, D), by measure (`MEASURES`).

    crops: the number of an epoch -> features (N, D) of random crops and flips of the training images; probe_paper needs it.
    seed: of the order of the probes' minibatches.
    """
    predicted = {}
    for name in measures:
        if name == "knn":
            predicted[name] = predict_knn(train.x, train.y, test, classes)
        elif name == "probe_paper":
            assert crops is not None
            predicted[name] = predict_late_epochs(CMC, crops, train.y, test, classes, seed)
        else:
            predicted[name] = probe_linear(PLAIN_PROBES[name], train, test, val, classes, seed)
    return predicted
