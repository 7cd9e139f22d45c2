"""Projection and prediction heads: a linear layer, or a multilayer perceptron with or without BatchNorm."""

from itertools import pairwise

from torch import nn

from metaug_core.config import Config

HIDDEN = 2048  # units of the two fully connected layers of the half-width AlexNet (Appendix B.1)


def alexnet_units(config: Config) -> int:
    """Units of fc6 and of fc7 at config's width."""
    return max(1, round(HIDDEN * config.width))


def mlp(*sizes: int, norm_last: bool = False) -> nn.Sequential:
    """Linear layers from each size to the next, (B, sizes[0]) -> (B, sizes[-1]), with BatchNorm and ReLU after each but the last,
    which has BatchNorm alone if norm_last. A layer before a BatchNorm has no bias, because the norm subtracts it again."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes[:-1]):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
    layers.append(nn.Linear(*sizes[-2:], bias=not norm_last))
    if norm_last:
        layers.append(nn.BatchNorm1d(sizes[-1]))
    return nn.Sequential(*layers)


def head(inputs: int, config: Config) -> nn.Module:
    """Projection head g: (B, D) -> (B, d), by config.head.

    linear: one layer (CMC). mlp: one hidden layer (MoCo v2). mlp-bn: that with BatchNorm after both layers (SimCLR's code), here
    with the statistics of each view, there of both crops together. Its last BatchNorm centres each view: without it SimCLR on L
    and ab stays at chance, since its negatives are features of one view, which lie close together (LOG.md). alexnet: fc6, fc7 and
    fc8 on conv, fc8 on any other encoder (Appendix B.1).
    """
    if config.head == "alexnet" and config.encoder == "conv":
        return mlp(inputs, alexnet_units(config), alexnet_units(config), config.feature_dim)
    if config.head in ("linear", "alexnet"):
        return nn.Linear(inputs, config.feature_dim)
    hidden = min(inputs, HIDDEN)
    if config.head == "mlp-bn":
        return mlp(inputs, hidden, config.feature_dim, norm_last=True)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, config.feature_dim))


def add_projector_norm(projector: nn.Module, config: Config) -> nn.Module:
    """A projector, followed by BatchNorm if config.projector_norm."""
    return nn.Sequential(projector, nn.BatchNorm1d(config.feature_dim)) if config.projector_norm else projector


def predictor(config: Config) -> nn.Module:
    """Prediction head q: (B, d) -> (B, d), with one hidden layer (BYOL, NNCLR, SimSiam)."""
    return mlp(config.feature_dim, config.predictor_hidden, config.feature_dim)
