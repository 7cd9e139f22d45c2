"""Named sets of settings: what one asks for in a word, and changes setting by setting.

`quick` finishes in about a minute and a half on two CPU cores and shows the method learn; `sketch` is a tenth of that, for sweeps.
`paper` follows the paper where it speaks (section 4.1, Appendix A and B). `authors` follows the authors' published code where
that differs; what it does otherwise all the same is in the table of docs/paper.md.
"""

from typing import Any

from metaug_core.config import Config, ConfigError
from metaug_core.errors import suggestion

QUICK: dict[str, Any] = {
    # Without RGB: on `shapes` L and ab share the object and nothing else, while RGB holds the nuisances of both, so that
    # pairs with it reward learning them (tried: 85 with two views, 44 with three; LOG.md).
    "views": ("L", "ab"),
    "width": 0.25,
    "mag_hidden": 256,
    "train_images": 5000,
    "fewer_images": True,
    "epochs": 4,
    "batch_size": 64,
    # A bank entry is a whole pass old, here a quarter of the training: at this rate the encoders learn to leave their own past
    # behind instead of telling images apart (kNN 13 %, with the minibatch 78 %; the bank works at a tenth of the rate: LOG.md).
    "negatives": "batch",
    "lr": 3e-3,
    "weight_decay": 1e-4,
    "lr_schedule": "cosine",
    "warmup_epochs": 0.4,
    "log_every": 10,
    "precision": "auto",
    # A MAG that trains: its gradient of a size that Adam sees, a look-ahead that is the step to come, augmented features that the
    # encoders feel, and R_sigma as heavy as L_aug, below which z~ copies z. Chosen on validation images (LOG.md).
    "mag_objective": "scaled",
    "look_ahead_update": "optimiser",
    "delta": 0.1,
    "alpha": 0.1,
}

PAPER: dict[str, Any] = {
    "protocol": "uniform",
    "views": ("L", "ab", "RGB"),
    "batch_size": 64,
    "bank_negatives": 4096,
    "optimiser": "adam",
    "lr": 3e-4,  # not stated in the paper; ten times more and a short run escapes its own bank (LOG.md)
    # Weight decay is one for all methods in the paper (section 4.1), of unstated size: none here, 1e-4 in the authors' code.
    "mag_optimiser": "adam",
    "mag_lr": 3e-4,  # not stated in the paper
    "head": "alexnet",  # conv and fc are layers of one network (Appendix B.1)
    # Figure 3's best, phi_dec 6, reads 42.02 on Tiny ImageNet, and 42.02 is Table 1's number of MetAug (only OUCL) there.
    "oucl": "eq9",
    "phi_dec": 6.0,
    "gamma": 0.4,
    "delta": 1e-5,  # Table 5's row 1e-5 reads 87.87, and 87.87 is Table 1's number of MetAug on CIFAR-10
    "alpha": 1e-13,  # Figure 6 holds alpha there; that the tables use it is nowhere said
    "margin": "large",
    "schedule": "epoch",  # Algorithm 1 has two loops inside a repeat, of unstated length: a pass of each is the usual reading
    "epochs": 200,  # not stated in the paper
    "val_fraction": 0.0,
    # A trial's result is its mean over "the last 20 epochs". That can be 20 encoders (keep_last 20), or the last 20 of the probe's
    # 60 epochs with one encoder: the authors' code saves every 10th encoder and reads the probe after each of its epochs.
    "keep_last": 1,
}

AUTHORS: dict[str, Any] = {
    "views": ("L", "ab", "Lab"),
    "image_size": 224,
    "head": "alexnet",
    "optimiser": "sgd",
    "lr": 0.03,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "lr_schedule": "step",
    "lr_steps": (120, 160, 200),
    "lr_decay": 0.1,
    "epochs": 300,
    "inner_lr": 1e-3,
    "mag_optimiser": "sgd",
    "mag_lr": 0.03,
    "mag_lr_schedule": "constant",
    "mag_weight_decay": 1e-4,
    "bank_negatives": 1024,
    "bank_draw": "per-anchor",
    "positives": "bank",
    "bank_writes": "every-pass",
    "oucl": "eq8",
    "beta": 16.0,
    "oucl_lambda": 0.0,
    "scope": "image",
    "loss_scale": 16.0,  # their criterion divides by beta 16 and multiplies by 16
    "augmented_sets": "swapped",
    "margin_everywhere": True,
    "margin_positive_weight": 1e-4,
    "margin_scope": "image",
    "margin_features": "all",
    "alpha": 1e-11,
    "delta": 1e-5,
    "schedule": "alternate",
    "look_ahead": "fresh",
    "val_fraction": 0.0,
    "keep_last": 1,  # the other reading of "the last 20 epochs": see PAPER
}

# A run in ten seconds on one CPU core: enough to see a sweep work, too little to tell methods apart.
SKETCH = QUICK | {
    "width": 0.125,
    "mag_hidden": 64,
    "train_images": 1600,
    "val_fraction": 0.25,
    "batch_size": 32,
    "epochs": 3,
    "monitor_every": 100,
}

# What the evidence trains: real images, as few and small as training is worth its name on one CPU core. Chosen on validation images
# with only OUCL (LOG.md).
STANDARD = QUICK | {
    "dataset": "cifar10",
    "image_size": 24,
    "train_images": 10_000,
    "epochs": 14,
    "monitor_every": 2,
    "precision": "float32",  # of all machines alike: arms are compared within a precision
}

PRESETS = {"quick": QUICK, "sketch": SKETCH, "standard": STANDARD, "paper": PAPER, "authors": AUTHORS}

# Side of the views: the data set's own, halved or so where the small stem would else cost four times as much.
IMAGE_SIZE = {
    "shapes": 32,
    "cifar10": 32,
    "cifar100": 32,
    "stl10": 64,
    "tiny-imagenet": 64,
    "imagenet": 224,
    "folder": 32,
}
STORED_SIZE = {"imagenet": 256}


def preset(name: str = "quick", **changes: Any) -> Config:
    """The Config of a preset, with `changes` (any setting of Config; dataset and method among them) on top.

    A data set brings its image size and a method its defaults, unless `changes` says otherwise. Raises ConfigError for an unknown
    preset or setting.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}{suggestion(name, PRESETS)}")
    # As a text: Config says what is wrong with a name that is none.
    dataset = str(changes.get("dataset", PRESETS[name].get("dataset", "shapes")))
    values = {"image_size": IMAGE_SIZE.get(dataset, 32), **PRESETS[name]}
    if stored := STORED_SIZE.get(dataset):
        values["stored_size"] = stored
    return Config.over(values, changes)
