"""SimCLR: two random crops of an image attract, all other images of the minibatch repel."""

from metaug_core import losses
from metaug_core.methods.base import Method


class SimCLR(Method):
    """NT-Xent (Chen et al. 2020, eq. 1) on one encoder: views RGB, RGB with independent augmentation, no bank.

    Defaults as in the paper's CIFAR-10 set-up: temperature 0.5, crop scale 0.08-1, jitter 0.5, grey 0.2, MLP head.
    """

    defaults = {
        "views": ("RGB", "RGB"),
        "independent": True,
        "crop_scale": (0.08, 1.0),
        "jitter": 0.5,
        "grey": 0.2,
        "temperature": 0.5,
        "head": "mlp",
        "negatives": "batch",
    }

    def loss(self, z, context):
        return losses.nt_xent(z, self.config.temperature)
