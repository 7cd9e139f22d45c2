"""Fully supervised: the same encoders, trained end to end with labels; the ceiling that contrast is measured against."""

from torch import nn
from torch.nn import functional as F

from metaug_core.methods.base import Method
from metaug_core.networks.encoders import Joined


class Supervised(Method):
    """Cross entropy on the labels of the training images."""

    title = "fully supervised"
    paper = "-"
    objective = "cross entropy of a linear layer on all views' h"
    augmentable = False
    uses = frozenset()
    defaults = {"negatives": "batch"}
    uniform = {"views": ("RGB",)}  # the whole AlexNet of the paper sees the whole image
    labelled = True
    minimum_views = 1
    unit_features = False

    def networks(self, classes: int) -> nn.Module:
        return Joined(self.config, classes)

    def loss(self, z, context):
        return F.cross_entropy(z[0], context.labels)
