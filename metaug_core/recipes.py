"""What surrounds a method's loss, by protocol: the crops, the optimiser and BatchNorm of its authors, or the same for all methods.

    own      each method's own recipe, scaled to the run's length and minibatch by its authors' rules: what one would use
    uniform  section 4.1 of the MetAug paper: CMC's crop and flip, one optimiser and one batch size for all (those of the preset),
             and the whole AlexNet for every method whose networks are not split by views (the paper's Table 1)

Without a protocol a method brings its own views and augmentation, and the preset the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SMALL_IMAGES = 64  # px: below it SimCLR's and MoCo's authors leave blur out, as they do on CIFAR

AUGMENTATION = {"crop_scale", "crop_ratio", "flip", "rotation", "jitter", "jitter_ranges", "jitter_probability", "grey", "blur",
                "solarise", "mixup", "randaugment", "randaugment_probability"}  # fmt: skip
OPTIMISATION = {"optimiser", "lr", "momentum", "weight_decay", "decay_norm_and_bias", "lr_schedule", "lr_steps", "lr_decay",
                "warmup_epochs", "predictor_lr_schedule"}  # fmt: skip

# The crops of most authors beside crop_scale: SimCLR's colour distortion at strength s with probability 0.8, grey with 0.2.
JITTERED = {"flip": 0.5, "jitter": 0.5, "jitter_probability": 0.8, "grey": 0.2, "blur": (0.5,)}
# Those of BYOL, which Barlow Twins took over: less saturation, blur and solarisation that differ between the two crops.
BYOL_CROPS = JITTERED | {
    "crop_scale": (0.08, 1.0),
    "jitter_ranges": (0.8, 0.8, 0.4, 0.2),
    "blur": (1.0, 0.1),
    "solarise": (0.0, 0.2),
}
SGD = {"optimiser": "sgd", "momentum": 0.9, "lr_schedule": "cosine"}
ADAM = {"optimiser": "adam", "lr_schedule": "constant"}
LARS = {"optimiser": "lars", "momentum": 0.9, "decay_norm_and_bias": False, "lr_schedule": "cosine"}
# BatchNorm statistics of each crop, where each is a pass of its own, or of both crops together.
APART = {"encoder_norm": "apart", "head_norm": "apart"}
JOINT = {"encoder_norm": "joint", "head_norm": "joint"}
ByLength = float | Mapping[int, float]  # one value, or one for runs of up to so many epochs


@dataclass(frozen=True)
class Recipe:
    """A method's surroundings in its authors' runs; where they have a set-up for CIFAR, that one.

    loss_scale is 2 where their loss is the sum of both directions, of which ours is the mean: it counts beside weight decay.
    """

    settings: Mapping[str, Any]
    lr_at_256: ByLength | None = None  # learning rate at a minibatch of 256, and in proportion; None: lr as in settings
    warmup: float = 0.0  # share of the run
    lr_steps: tuple[float, ...] = ()  # of the schedule `step`, as shares of the run
    ema_momentum: ByLength | None = None  # at the start

    def scaled(self, epochs: int, batch_size: int, image_size: int) -> dict[str, Any]:
        """The settings for a run of this length, minibatch and side of images (px)."""
        values = dict(self.settings)
        if "optimiser" in values:  # then nothing of the preset's schedule stays
            steps = tuple(sorted({round(share * epochs) for share in self.lr_steps} & set(range(1, epochs))))
            values |= {"lr_steps": steps, "warmup_epochs": self.warmup * epochs}
            values["lr_schedule"] = "step" if steps else values.get("lr_schedule", "constant")
        if self.lr_at_256 is not None:
            values["lr"] = at_length(self.lr_at_256, epochs) * batch_size / 256
        if self.ema_momentum is not None:
            values["ema_momentum"] = at_length(self.ema_momentum, epochs)
        if image_size < SMALL_IMAGES:
            values.pop("blur", None)
        return values


def at_length(value: ByLength, epochs: int) -> float:
    """The value for a run of so many epochs; beyond the longest, that of the longest."""
    if not isinstance(value, Mapping):
        return value
    return value[min((most for most in value if most >= epochs), default=max(value))]


UNIFORM = {"crop_scale": (0.2, 1.0), "crop_ratio": 4 / 3, "flip": 0.5}  # CMC's augmentation; all else off


def uniform(
    defaults: Mapping[str, Any], exceptions: Mapping[str, Any], split: bool, encoder: str, width: float
) -> dict[str, Any]:
    """What a method brings under the protocol `uniform`: its defaults without augmentation and optimiser, and CMC's crop and flip.

    exceptions: the augmentation that the paper adds for this method alone (mixup for DACL). split: its encoders are halves of the
    AlexNet, one for each view; all others are the whole one, of twice the width.
    """
    values = {name: value for name, value in defaults.items() if name not in AUGMENTATION | OPTIMISATION}
    values |= {**UNIFORM, **exceptions}
    return values if split or encoder not in ("conv", "fc") else values | {"width": 2 * width}
