"""DACL: SimCLR that needs no knowledge of images, since its two views of an image are two mixtures with other images."""

from metaug_core import settings
from metaug_core.config import Config, ConfigError
from metaug_core.methods.base import Method
from metaug_core.objectives import losses
from metaug_core.recipes import Recipe


class DACL(Method):
    """Domain-agnostic contrastive learning (Verma et al. 2021, section 3): NT-Xent of two draws of mixup noise,

        x+ = l x + (1 - l) x~,   l ~ U(a, 1),   x~ another image of the minibatch, drawn for each view anew

    `mixup` is 1 - a, the largest share of the other image; the paper takes a large a "such as 0.9". DACL alone has no crop, flip
    or jitter, which is its point (crop_scale 1-1, flip 0). The row that MetAug compares with has mixup on top of CMC's crop and
    flip (MetAug, section 4.1; set 7 of its Table 4), and so has this default.
    Defaults: crop 0.2-1, flip 0.5, mixup 0.1, temperature 0.5 and head as SimCLR.
    """

    title = "DACL"
    paper = "Verma et al. 2021"
    objective = "NT-Xent of x+ = l x + (1 - l) x~ and x++, two mixtures with other images, l in (1 - mixup, 1)"
    differs = (
        "No code by the authors. The other image of a mixture can be the image itself, one time in a minibatch's size."
    )
    contrasts = True
    uses = settings.PROJECTION | {"temperature"}
    defaults = {"views": ("RGB", "RGB"), "independent": True, "crop_scale": (0.2, 1.0), "flip": 0.5, "mixup": 0.1,
                "temperature": 0.5, "head": "mlp-bn", "negatives": "batch"}  # fmt: skip
    recipe = Recipe({"crop_scale": (1.0, 1.0), "flip": 0.0})  # mixup alone, the paper's point
    uniform = {"mixup": 0.1}

    def __init__(self, config: Config):
        super().__init__(config)
        if not (config.mixup and config.independent):
            raise ConfigError(
                f"method {config.method!r} contrasts two draws of mixup noise: it needs mixup > 0 and independent True, "
                f"got {config.mixup:g} and {config.independent}"
            )

    def loss(self, z, context):
        return self.contrast(*losses.compare_in_batch(z, context.positives))
