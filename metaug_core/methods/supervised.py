"""Fully supervised: the same encoders, trained end to end with labels; the ceiling that contrast is measured against."""

import torch
from torch import Tensor, nn

from metaug_core import losses
from metaug_core.config import Config
from metaug_core.encoders import Encoders
from metaug_core.methods.base import Method


class Classifier(nn.Module):
    """theta: the encoders of all views, concatenated, and one linear layer. Its 'features' are logits (1, B, classes)."""

    def __init__(self, config: Config, classes: int):
        super().__init__()
        self.encoders = Encoders(config)
        self.head = nn.Linear(sum(self.encoders.dims[name] for name in config.views), classes)

    def forward(self, images: list[Tensor]) -> Tensor:
        return self.head(torch.cat(self.encoders(images), dim=1))[None]


class Supervised(Method):
    """Cross entropy on the labels of the training images."""

    title = "fully supervised"
    paper = "-"
    objective = "cross entropy of a linear layer on all views' h"
    augmentable = False
    defaults = {"negatives": "batch"}
    labelled = True
    minimum_views = 1
    unit_features = False

    def networks(self, classes: int) -> nn.Module:
        return Classifier(self.config, classes)

    def loss(self, z, context):
        return losses.cross_entropy(z[0], context.labels)
