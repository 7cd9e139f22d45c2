"""SimCLR: two random crops of an image attract, all other images of the minibatch repel."""

from metaug_core import settings
from metaug_core.methods.base import Method
from metaug_core.objectives import losses
from metaug_core.recipes import JITTERED, JOINT, LARS, Recipe


class SimCLR(Method):
    """NT-Xent (Chen et al. 2020, eq. 1) on one encoder: views RGB, RGB with independent augmentation, no bank.

    Defaults as in the paper's CIFAR-10 set-up: temperature 0.5, crop scale 0.08-1, jitter 0.5, grey 0.2. The head has
    the paper's two layers, with BatchNorm after each as in their code, which by default has three.
    """

    title = "SimCLR"
    paper = "Chen et al. 2020"
    objective = "-log e^(z1.z2/t) / (e^(z1.z2/t) + sum over other images of e^(z1.z/t)), both ways"
    differs = (
        "The head has the paper's two layers; their code's default is three. Its last BatchNorm has a shift, which "
        "theirs has not. The mean of both directions; theirs sums them (loss_scale 2)."
    )
    contrasts = True
    uses = settings.PROJECTION | {"temperature"}
    defaults = {
        "views": ("RGB", "RGB"),
        "independent": True,
        "crop_scale": (0.08, 1.0),
        "jitter": 0.5,
        "grey": 0.2,
        "temperature": 0.5,
        "head": "mlp-bn",
        "negatives": "batch",
    }
    recipe = Recipe(  # their CIFAR-10 command
        {**JITTERED, **LARS, **JOINT, "crop_scale": (0.08, 1.0), "weight_decay": 1e-4, "loss_scale": 2.0},
        lr_at_256=1.0,
        warmup=0.01,
    )

    def loss(self, z, context):
        return self.contrast(*losses.compare_in_batch(z, context.positives))
