"""What the paper reports, as data: Tables 1 to 6 and the two numbers of Figure 3, to stand beside ours.

Source: Li et al., *MetAug: Contrastive Learning via Meta Feature Augmentation*, ICML 2022. Accuracies and 95 % half-widths (20
trials) in percent; in Tables 1 and 3 values without a half-width were quoted by the paper from others. Figures 2 and 4 to 7 are
pictures: their values are not in the text, so they are not here.

The text of the PDF has lost the cells of two tables. Table 3: its 13 values of conv go to the supervised row and the 12 rows whose
methods Table 1 trains as well, in order; those of ResNet-50, in order, to the rows left and to SwAV, SimCLR, MoCo and BYOL.
Table 4: `AUGMENTATION_SETS` says what is stated and what is a reading.
"""

import io
from collections.abc import Mapping
from typing import Any

import pandas as pd

NAMES = {  # a method's name in METHODS -> as the paper prints it
    "supervised": "Fully supervised",
    "bigan": "BiGAN",
    "nat": "NAT",
    "dim": "DIM",
    "splitbrain": "SplitBrain",
    "cpc": "CPC v2",
    "wmse": "W-MSE",
    "swav": "SwAV",
    "simclr": "SimCLR",
    "cmc": "CMC",
    "moco": "MoCo",
    "simsiam": "SimSiam",
    "infomin": "InfoMin Aug.",
    "byol": "BYOL",
    "barlow": "Barlow Twins",
    "nnclr": "NNCLR",
    "dacl": "DACL",
    "looc": "LooC",
    "swav+hard": "SwAV + Hard",
    "simclr+debiased": "SimCLR + Debiased",
    "simclr+hard": "SimCLR + Hard",
    "cmc+debiased": "CMC + Debiased",
    "cmc+hard": "CMC + Hard",
    "cmc+randaugment": "CMC + RandAugment",
    "metaug-only-oucl": "MetAug (only OUCL)",
    "metaug-only-mag": "MetAug (only MAG)",
    "metaug": "MetAug",
    "metaug+randaugment": "MetAug + RandAugment",
    "metaug-nnclr": "MetAug*",
    # Not in the paper; printed as their authors do.
    "dcl": "DCL",
    "ft": "FT",
    "adco": "AdCo",
    "hallucinator": "Hallucinator",
    "mochi": "MoCHi",
    "synco": "SynCo",
    "vicreg": "VICReg",
    "imix": "i-Mix",
}

# Table 1's double dagger, "reduced learnable parameters": a split AlexNet for each view (Appendix B.1). The other rows
# have the whole AlexNet, twice as wide.
SPLIT_ENCODERS = ("splitbrain", "cmc", "cmc+debiased", "cmc+hard", "metaug-only-oucl", "metaug")

FIGURE_3 = {"without": 41.16, 6: 42.02}  # Tiny ImageNet, conv, only OUCL; the other phi_dec are in the picture alone

# Data sets left to right, each conv then fc; "-" where the table is empty.
_TABLE_1 = """
method tiny-imagenet,conv tiny-imagenet,fc stl10,conv stl10,fc cifar10,conv cifar10,fc cifar100,conv cifar100,fc
supervised 36.60 - 68.70 - 75.39 - 42.27 -
bigan 24.38 20.21 71.53 67.18 62.57 62.74 37.59 33.34
nat 13.70 11.62 64.32 61.43 56.19 51.29 29.18 24.57
dim 33.54 36.88 72.86 70.85 73.25 73.62 48.13 45.92
splitbrain 32.95 33.24 71.55 63.05 77.56 76.80 51.74 47.02
swav 39.56±0.2 38.87±0.3 70.32±0.4 71.40±0.3 68.32±0.2 65.20±0.3 44.37±0.3 40.85±0.3
simclr 36.24±0.2 39.83±0.1 75.57±0.3 77.15±0.3 80.58±0.2 80.07±0.2 50.03±0.2 49.82±0.3
cmc 41.58±0.1 40.11±0.2 83.03 85.06 81.31±0.2 83.28±0.2 58.13±0.2 56.72±0.3
moco 35.90±0.2 41.37±0.2 77.50±0.2 79.73±0.3 76.37±0.3 79.30±0.2 51.04±0.2 52.31±0.2
byol 41.59±0.2 41.90±0.1 81.73±0.3 81.57±0.2 77.18±0.2 80.01±0.2 53.64±0.2 53.78±0.2
barlow 39.81±0.3 40.34±0.2 80.97±0.3 81.43±0.3 76.63±0.3 78.49±0.2 52.80±0.2 52.95±0.2
dacl 40.61±0.2 41.26±0.1 80.34±0.2 80.01±0.3 81.92±0.2 80.87±0.2 52.66±0.2 52.08±0.3
looc 42.04±0.1 41.93±0.2 81.92±0.2 82.60±0.2 83.79±0.2 82.05±0.2 54.25±0.2 54.09±0.2
simclr+debiased 38.79±0.2 40.26±0.2 77.09±0.3 78.39±0.2 80.89±0.2 80.93±0.2 51.38±0.2 51.09±0.2
simclr+hard 40.05±0.3 41.23±0.2 79.86±0.2 80.20±0.2 82.13±0.2 82.76±0.1 52.69±0.2 53.13±0.2
cmc+debiased 41.64±0.2 41.36±0.1 83.79±0.3 84.20±0.2 82.17±0.2 83.72±0.2 58.48±0.2 57.16±0.2
cmc+hard 42.89±0.2 42.01±0.2 83.16±0.3 85.15±0.2 83.04±0.2 86.22±0.2 58.97±0.3 59.13±0.2
metaug-only-oucl 42.02±0.1 42.14±0.2 84.09±0.2 84.72±0.3 85.98±0.2 87.13±0.2 59.21±0.2 58.73±0.2
metaug 44.51±0.2 45.36±0.2 85.41±0.3 85.62±0.2 87.87±0.2 88.12±0.2 59.97±0.3 61.06±0.2
"""

_TABLE_2 = """
method cifar10,resnet50 stl10,resnet50
swav 83.15 82.93
simclr 84.63 83.75
cmc 86.10 86.83
byol 87.14 87.56
barlow 85.84 86.02
dacl 86.93 88.11
looc 87.80 88.62
swav+hard 83.99 84.51
simclr+hard 86.91 85.48
cmc+hard 88.25 87.79
metaug-only-oucl 88.79 88.31
metaug 91.09 90.26
"""

_TABLE_3 = """
method imagenet,conv imagenet,resnet50 imagenet,resnet50,top5
supervised 50.5 - -
splitbrain 32.8 - -
cpc - 63.8 85.3
swav 38.0±0.3 71.8 -
simclr 37.7±0.2 71.7 -
cmc 42.6 - -
moco 39.4±0.2 71.1 -
simsiam - 71.3 -
infomin - 73.0 91.1
byol 41.1±0.2 74.3 91.6
barlow 39.6±0.2 - -
nnclr - 75.4 92.3
dacl 41.8±0.2 - -
looc 43.2±0.2 - -
simclr+debiased 38.9±0.3 - -
simclr+hard 41.5±0.2 - -
metaug 45.1±0.2 - -
metaug-nnclr - 76.0 93.2
"""

# Accuracy by augmentation set (1 to 8), CIFAR-10, fc. DACL's two values are of the sets with mixup: 80.87 is its number in Table 1.
TABLE_4 = pd.DataFrame(
    {
        "dacl": [None] * 6 + [80.87, 82.09],
        "looc": [80.73, 81.16, 80.70, 81.64, 82.05, 82.16, 82.21, 83.17],
        "metaug": [87.05, 87.53, 86.81, 87.79, 88.12, 88.01, 88.22, 88.65],
    },
    index=pd.RangeIndex(1, 9, name="set"),
)


# Stated: 1 (flip and rotate together), 5 (CMC's: crop and flip), 6 (LooC's), and that mixup is DACL's. The ticks of the others lost
# their columns in the text; read in the order of the columns: 2 crop, 3 grey, 4 jitter, 7 the fifth with mixup, 8 everything.
def _held(*names: str) -> dict[str, Any]:
    """What LooC holds, one head each: its authors' colour and rotation where the set varies both, else what the set varies."""
    return {"looc_held": names}


_OFF: dict[str, Any] = {"crop_scale": (1.0, 1.0)} | dict.fromkeys(("flip", "rotation", "grey", "jitter", "mixup"), 0.0)
_CROP, _FLIP, _ROTATE = {"crop_scale": (0.2, 1.0)}, {"flip": 0.5}, {"rotation": 15.0}
_GREY, _JITTER, _MIXUP = {"grey": 0.2}, {"jitter": 0.5}, {"mixup": 0.1}
AUGMENTATION_SETS: dict[int, dict[str, Any]] = {  # strengths are ours: the paper states none but CMC's crop
    1: _OFF | _FLIP | _ROTATE | _held("flip", "rotation"),
    2: _OFF | _CROP | _held("crop"),
    3: _OFF | _GREY | _held("colour"),
    4: _OFF | _JITTER | _held("colour"),
    5: _OFF | _CROP | _FLIP | _held("crop", "flip"),
    6: _OFF | _CROP | _FLIP | _ROTATE | _GREY | _JITTER | _held("colour", "rotation"),
    7: _OFF | _CROP | _FLIP | _MIXUP | _held("crop", "flip"),
    8: _OFF | _CROP | _FLIP | _ROTATE | _GREY | _JITTER | _MIXUP | _held("colour", "rotation"),
}
SET_NAMES = {1: "flip, rotate", 2: "crop", 3: "grey", 4: "jitter", 5: "crop, flip", 6: "5 + rotate, grey, jitter",
             7: "5 + mixup", 8: "6 + mixup"}  # fmt: skip

# Accuracy by delta, CIFAR-10, conv: the classifier sees z and z~ (with), or h (without).
TABLE_5 = pd.DataFrame(
    {
        "with": [85.85, 85.91, 86.57, 87.42, 87.72, 87.26, 86.90, 86.12],
        "without": [85.48, 85.99, 86.65, 87.41, 87.87, 87.47, 87.19, 86.35],
    },
    index=pd.Index([1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8], name="delta"),
)

# ImageNet, ResNet-50; "again" is the paper's own reimplementation (its dagger).
TABLE_6 = pd.DataFrame(
    [
        ("L,ab", "cmc", "quoted", 64.0, 85.5),
        ("L,ab", "cmc", "again", 63.3, 84.8),
        ("L,ab", "metaug-only-oucl", "own", 63.9, 85.7),
        ("L,ab", "metaug-only-mag", "own", 64.4, 86.0),
        ("L,ab", "metaug", "own", 65.1, 86.2),
        ("Y,DbDr", "cmc", "quoted", 64.8, 86.1),
        ("Y,DbDr", "cmc", "again", 64.5, 86.2),
        ("Y,DbDr", "cmc+randaugment", "quoted", 66.2, 87.0),
        ("Y,DbDr", "cmc+randaugment", "again", 65.7, 86.8),
        ("Y,DbDr", "metaug-only-oucl", "own", 65.0, 86.3),
        ("Y,DbDr", "metaug-only-mag", "own", 65.9, 86.8),
        ("Y,DbDr", "metaug", "own", 66.4, 87.1),
        ("Y,DbDr", "metaug+randaugment", "own", 66.7, 87.5),
    ],
    columns=pd.Index(["views", "method", "source", "top1", "top5"]),
)


def print_name(method: str, names: Mapping[str, str] = NAMES) -> str:
    """A method as the paper prints it; its own name if the paper has none. names: others than the paper's.

    A composition that has no name is written by its parts, `CMC + Hallucinator`. `cmc at t = 0.125` (`experiments.name_matched`)
    keeps what follows the name."""
    name, at, temperature = method.partition(" at ")
    parts = " + ".join(names.get(part, part) for part in name.split("+"))
    return names.get(name, parts) + at + temperature


def _parse(text: str) -> pd.DataFrame:
    """A row for each value of a table above: method, dataset, encoder, top (1 or 5), accuracy, half_width (NaN: quoted)."""
    wide = pd.read_csv(io.StringIO(text), sep=" ", na_values="-", dtype=str).set_index("method")
    rows = []
    for method, cells in wide.iterrows():
        for column, cell in cells.dropna().items():
            dataset, encoder, *top = str(column).split(",")
            value, _, half = cell.partition("±")
            rows.append((method, dataset, encoder, 5 if top else 1, float(value), float(half or "nan")))
    return pd.DataFrame(rows, columns=pd.Index(["method", "dataset", "encoder", "top", "accuracy", "half_width"]))


TABLES = {1: _parse(_TABLE_1), 2: _parse(_TABLE_2), 3: _parse(_TABLE_3)}


def select(dataset: str, encoder: str) -> Any:
    """The rows of Tables 1 to 3 for this data set and encoder, in order."""
    rows = pd.concat(TABLES.values())
    return rows[(rows["dataset"] == dataset) & (rows["encoder"] == encoder)]


def read_accuracy(method: str, dataset: str, encoder: str) -> float:
    """Top-1 accuracy of Tables 1 to 3 in percent; nan where they have none."""
    values = select(dataset, encoder).query("method == @method and top == 1")["accuracy"]
    return float(values.iloc[0]) if len(values) else float("nan")


def list_methods(dataset: str, encoder: str) -> list[str]:
    """The methods with a value for this data set and encoder in Tables 1 to 3, in order; those of Table 1 if there is none."""
    rows = select(dataset, encoder)
    return list((rows if len(rows) else TABLES[1])["method"].unique())
