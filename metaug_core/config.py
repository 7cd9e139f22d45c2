"""Every setting of a run, in one frozen object that refuses what it does not know.

Symbols and equation numbers are those of the paper (Li et al., ICML 2022). The defaults are the paper's where it states them.
A named set of settings (`quick`, `paper`, `authors`) comes from `presets.preset`.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator
from pydantic_core import to_jsonable_python

from metaug_core import registry, sources
from metaug_core.contradictions import contradictions, one_sentence, surprise
from metaug_core.errors import MetaugError
from metaug_core.recipes import uniform
from metaug_core.settings import (
    ONLY_WITH,
    OPTIONAL,
    BankSettings,
    MagSettings,
    OuclSettings,
    Positive,
    ProjectionSettings,
    Rate,
    Share,
    SingleSettings,
    Size,
)

ROOT = Path(__file__).resolve().parent.parent
ALL = "all"  # of train_images, as a text; None among a notebook's parameters means the preset's
HOME = ROOT if (ROOT / "pyproject.toml").exists() else Path.cwd()  # the checkout, or where the user works

# Raised when the same settings give other numbers, or when a default is another (tests/core/test_identity.py).
ENGINE_VERSION = 4
# Raised when the same features would get other accuracies; those of another version are measured again.
EVALUATION_VERSION = 2
# Where and how fast a run is computed and how often one looks, not what it computes: these do not enter a run's name. Of a
# protocol, the settings that it brings do.
NOT_IDENTITY = {"device", "graphs", "runs_dir", "data_dir", "workers", "storage", "checkpoint_minutes", "tensorboard", "log_every",
                "monitor_every", "protocol", "fewer_images"}  # fmt: skip
RECIPE_NEEDS = ("epochs", "batch_size", "image_size")  # to scale a recipe
IN_EVERY_NAME = {"dataset", "method", "encoder", "seed"}


class ConfigError(MetaugError):
    """A setting is unknown, ill-typed, out of range or contradicts another."""


def find_folder(variable: str, default: Path) -> Path:
    """The folder that a variable of the environment names; the default if it is not set, or empty."""
    return Path(os.environ.get(variable) or default).expanduser()


class Config(SingleSettings, MagSettings, BankSettings, OuclSettings, ProjectionSettings):
    """A run's settings. Raises `ConfigError` (one sentence) for anything it does not accept."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, use_attribute_docstrings=True)

    # --- data
    dataset: str = "shapes"
    """shapes, cifar10, cifar100, stl10, tiny-imagenet, imagenet, or folder (then data_dir is the image folder)."""
    data_dir: Path = find_folder("METAUG_DATA", HOME / "data")
    """Where downloaded data sets are; for `folder`, the image folder itself, with train/CLASS/* and test/CLASS/*."""
    image_size: Annotated[int, Field(ge=8, le=1024)] = 32
    """Side of the views that the encoders see, in pixels."""
    stored_size: Annotated[int, Field(ge=8, le=2048)] | None = None
    """Side to which images of any size (folder, imagenet) are resized when read; None: image_size."""
    train_images: Positive | None = None
    """How many training images to use, the same share of each class; all or None: all."""
    fewer_images: bool = False
    """If a data set has fewer images than train_images, take all of them instead of refusing. Presets do; a number that you give
    yourself is taken exactly."""
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the labelled training images held out for the kNN monitor and for choosing settings; 0: none, no monitor."""
    storage: Literal["auto", "device", "stream"] = "auto"
    """device: the whole data set as uint8 on the device; stream: workers decode images as needed; auto: device up to 8 GB."""
    workers: Annotated[int, Field(ge=0, le=1024)] = 2
    """Threads or processes that decode images."""

    # --- views
    views: Annotated[tuple[str, ...], Field(min_length=1)] = ("L", "ab", "RGB")
    """The channels that each view sees; views with the same name share one encoder (SimCLR: RGB, RGB)."""
    independent: bool = False
    """True: each view has its own random augmentation (SimCLR); False: all are colour splits of one augmented image (CMC)."""
    crop_scale: tuple[Share, Share] = (0.2, 1.0)
    """Area of the random resized crop as a share of the image; (1, 1): no crop."""
    crop_ratio: Annotated[float, Field(ge=1, le=4)] = 4 / 3
    """Largest ratio of the crop's sides, in either direction, as far as the image allows; 1: that of the image."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Random rotation, uniform between minus and plus this many degrees."""
    jitter: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Strength of colour jitter, which multiplies jitter_ranges; 0: none."""
    jitter_ranges: tuple[Rate, Rate, Rate, Rate] = (0.8, 0.8, 0.8, 0.2)
    """Largest change of brightness, contrast, saturation and hue (in turns) at jitter 1 (SimCLR); applied in random order."""
    jitter_probability: Share = 0.8
    """Probability that an image's colours are jittered."""
    grey: Share = 0.0
    """Probability of turning an image grey."""
    blur: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.0,)
    """Probability of a Gaussian blur: one number for all views, or with `independent` one per view (BYOL 1.0, 0.1)."""
    solarise: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.0,)
    """Probability of inverting the bright half of each channel; one number or one per view, as for `blur` (BYOL 0, 0.2)."""
    mixup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Mixup noise (DACL): adds a share of another image, uniform in [0, this); 0: none."""
    randaugment: Annotated[float, Field(ge=0, le=30)] = 0.0
    """Magnitude of RandAugment (0 to 30, two operations per image); 0: none."""
    randaugment_probability: Share = 0.5
    """Probability of each of the two operations (InfoMin Aug.)."""

    # --- networks
    encoder: str = "conv"
    """conv, fc (split AlexNet, Appendix B.1), resnet18, resnet50, or a registered one."""
    stem: Literal["auto", "paper", "small"] = "auto"
    """First layer. paper: 11x11, stride 4 (needs at least 64 px); small: for small images; auto: paper from 128 px on."""
    width: Annotated[float, Field(gt=0, le=8)] = 1.0
    """Multiplies the channels of every encoder layer; 1: the half-width AlexNet of the paper, 2: the full one."""
    encoder_norm: Literal["joint", "apart"] = "joint"
    """BatchNorm statistics where two crops share an encoder. joint: of both crops together; apart: of each crop alone."""
    head_norm: Literal["joint", "apart"] = "apart"
    """The same for projection and prediction heads."""
    zero_init_residual: bool = False
    """In ResNets the last BatchNorm of each residual block starts with weight 0."""

    # --- objective: settings that only some methods use are in the groups of `settings`
    method: str = "metaug"
    """A name in METHODS: metaug, metaug-only-oucl, metaug-only-mag, cmc, simclr, supervised, or a registered one."""
    protocol: Literal["own", "uniform"] | None = None
    """Everything around the method's loss (`recipes`). own: its authors' augmentation, optimiser and BatchNorm; uniform: the same
    for every method, as in section 4.1 of the paper; None: the method's own views and augmentation, the preset's optimiser."""
    loss_scale: Size = 1.0
    """The loss is multiplied by this constant (the authors' code has one)."""

    # --- optimisation
    epochs: Positive = 200
    """Passes over the training images."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Images per step."""
    optimiser: Literal["adam", "sgd", "lars"] = "adam"
    """For encoders and heads."""
    lr: Size = 1e-3
    """l, learning rate of encoders and heads."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD and LARS."""
    weight_decay: Rate = 0.0
    """L2 penalty on encoders and heads."""
    decay_norm_and_bias: bool = True
    """Whether weight decay and LARS' adaptive rate also apply to biases and BatchNorm weights."""
    lr_schedule: Literal["constant", "step", "cosine"] = "constant"
    """How the learning rates change over the epochs; the MAG's follows unless mag_lr_schedule says otherwise."""
    lr_steps: tuple[Positive, ...] = ()
    """Epochs after which `step` multiplies the rates by lr_decay."""
    lr_decay: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Factor of `step`."""
    warmup_epochs: Rate = 0.0
    """Epochs over which the learning rates rise linearly from 0."""
    precision: Literal["auto", "float32", "tf32", "bf16"] = "float32"
    """Precision of matrix products and convolutions, in training and evaluation. tf32: TF32 on CUDA, float32 elsewhere; bf16: for
    encoders, heads and, on a CPU, the MAG, with TF32 for the rest on CUDA; auto: bf16 where it is faster, else float32 (the run
    records which). Weights, statistics, features, loss and optimisers stay float32. torch's own switches are set while it
    computes and restored afterwards."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of initial weights, order, augmentation and draws. The data set and its splits do not depend on it."""

    # --- the run
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: cuda, else mps, else cpu."""
    graphs: Literal["auto", "forked", "off"] = "auto"
    """auto: on CUDA a step is captured once as a graph and replayed; forked: the same, with the views' encoders side by side; off:
    every kernel is launched by itself."""
    runs_dir: Path = find_folder("METAUG_RUNS", HOME / "runs")
    """Folder of all runs."""
    log_every: Positive = 20
    """Steps between two rows of metrics."""
    monitor_every: Positive = 1
    """Epochs between two kNN readings on the validation split."""
    keep_last: Positive = 1
    """Number of last epochs whose encoders are kept; every measure is the mean over them. 20 is another reading of the paper's
    "last 20 epochs" and costs twenty times as much: `evaluation.probes` takes them to be those of the probe."""
    checkpoint_minutes: Size = 5.0
    """Minutes between two checkpoints; one more is made when a run is stopped, and one at its end."""
    tensorboard: bool = False
    """Also write the metrics as TensorBoard events (needs the tensorboard package)."""

    _preset: Mapping[str, Any] = PrivateAttr(default_factory=dict)  # the method's defaults go over these
    _given: Mapping[str, Any] = PrivateAttr(default_factory=dict)  # these go over the method's defaults

    def __init__(self, /, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(one_sentence(error.errors(), type(self).model_fields)) from None
        self._given = values

    @classmethod
    def over(cls, preset: Mapping[str, Any], given: Mapping[str, Any]) -> "Config":
        """What is given on top of what method and protocol bring, and these on top of a preset's values."""
        given = demand_images(given)
        brought = settings_brought({**preset, **given}, preset.get("width", cls.model_fields["width"].default))
        config = cls(**{**preset, **brought, **given})
        config._preset, config._given = preset, given
        return config

    def __eq__(self, other: object) -> bool:
        """Whether all settings are equal, however they came to be so."""
        return isinstance(other, Config) and self.model_dump() == other.model_dump()

    @model_validator(mode="before")
    @classmethod
    def _brought(cls, values: dict[str, Any]) -> dict[str, Any]:
        """What method and protocol bring stands where the user said nothing (SimCLR: two independent RGB crops). No config holds
        precision `auto`: a run is named after what it took."""
        values = {**settings_brought(values, cls.model_fields["width"].default), **values}
        if values.get("precision") == "auto":
            from metaug_core.hardware import choose_precision  # torch

            values["precision"] = choose_precision(values.get("device", "auto"))
        return values

    @field_validator("*", mode="before")
    @classmethod
    def _no_surprise(cls, value: Any, info) -> Any:
        if fault := surprise(value, switch=cls.model_fields[info.field_name].annotation is bool):
            raise ValueError(f"{info.field_name}: {fault}")
        return value

    @field_validator("train_images", mode="before")
    @classmethod
    def _all(cls, value: Any) -> Any:
        return None if value == ALL else value

    @field_validator("dataset", "encoder", "method", "views")
    @classmethod
    def _known(cls, value: Any, info) -> Any:
        table = {"dataset": "DATASETS", "encoder": "ENCODERS", "method": "METHODS", "views": "VIEWS"}[info.field_name]
        for name in (value,) if isinstance(value, str) else value:
            if refusal := getattr(registry, table).refusal(name):
                raise ValueError(refusal)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        if fault := next(contradictions(self), None):
            raise ValueError(fault)
        return self

    def replace(self, /, **changes: Any) -> "Config":
        """A copy with these settings changed and everything checked again. Another method comes with its own defaults: those of the
        old one go, and what was given or is a preset's stays as `preset` would have it."""
        return type(self).over(self._preset, {**self._given, **demand_images(changes)})

    def idle(self, name: str) -> str | None:
        """Why this setting changes nothing in the run, in a sentence; None: it can."""
        unused = OPTIONAL - registry.METHODS[self.method].description.uses
        if name in unused:
            return f"{name} changes nothing: method {self.method!r} does not use it"
        others = {one: values for one, values in ONLY_WITH.get(name, {}).items() if one not in unused}
        if not others or any(getattr(self, one) in values for one, values in others.items()):
            return None
        needed = " or ".join(f"{one} {value!r}" for one, values in others.items() for value in sorted(values))
        return f"{name} changes nothing without {needed}"

    def chosen(self) -> dict[str, Any]:
        """The settings that differ from the method's defaults, and the method. With a protocol also all that it brings or takes
        away, so that the run stays what it is when a recipe is mended."""
        kept = (
            settings_brought(dict(self), 1.0).keys() | method_defaults(self.method).keys() if self.protocol else set()
        )
        return self._unusual({"method"} | kept)

    def _unusual(self, kept: Set[str]) -> dict[str, Any]:
        """The settings that differ from the method's defaults, and those to be kept in any case, JSON-ready."""
        usual = {name: field.default for name, field in type(self).model_fields.items()}
        usual = to_jsonable_python(usual | dict(method_defaults(self.method)))
        values = self.model_dump(mode="json")
        return {name: value for name, value in values.items() if name in kept or value != usual[name]}

    def identity(self) -> dict[str, Any]:
        """What decides the result, JSON-ready: the version of the engine, the revision of a method that has one, the settings that
        can change it and are not as the method has them by default, and a hash of the source of a data set, views, encoder or
        method of the user's own."""
        unusual = self._unusual({"method"}).items()
        settings = {name: value for name, value in unusual if name not in NOT_IDENTITY and not self.idle(name)}
        settings |= {name: getattr(self, name) for name in IN_EVERY_NAME}
        if self.dataset == "folder":
            settings["data_dir"] = str(self.data_dir.resolve())
        own = self.own_entries()
        revision = registry.METHODS[self.method].description.revision
        settings |= {"revision": revision} if revision else {}
        return {"engine": ENGINE_VERSION} | settings | ({"source": sources.digest(own)} if own else {})

    def own_entries(self) -> list[object]:
        """What the user has registered of the data set, encoder, method and views that it names."""
        return [*registry.DATASETS.added(self.dataset), *(entry for own in self.own_code().values() for entry in own)]

    def own_code(self) -> dict[str, list[object]]:
        """Encoder, method and views of the user's own, each with what was entered for it: {"encoder 'mine'": [build]}."""
        named = [(registry.ENCODERS, self.encoder), (registry.METHODS, self.method)]
        named += [(registry.VIEWS, view) for view in self.views]
        added = {f"{table.kind} {name!r}": table.added(name) for table, name in named}
        return {name: entries for name, entries in added.items() if entries}

    def name(self) -> str:
        """The run's name: readable, and a hash of `identity`, so that the same request finds the same run."""
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:10]
        return as_file_name(f"{self.dataset}-{self.method}-{self.encoder}-s{self.seed}-{digest}")


def as_file_name(text: str) -> str:
    """The text with `-` in place of what would make it a path or no name at all: slashes, backslashes, control characters."""
    return re.sub(r"[/\\\x00-\x1f\x7f\ud800-\udfff]", "-", text)


def demand_images(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is given, where a number of training images is one that must be there."""
    return {"fewer_images": False, **given} if "train_images" in given else given


def method_defaults(name: object) -> Mapping[str, Any]:
    """The settings that a method brings without a protocol; none for a name that is not known."""
    description = find_description(name)
    return description.defaults if description else {}


def find_description(name: object) -> Any:
    """What the method of this name says of itself (`methods.base.Description`); None for a name that is not known."""
    method = registry.METHODS.get(name) if isinstance(name, str) else None
    return method.description if method else None


def settings_brought(values: Mapping[str, Any], width: float) -> Mapping[str, Any]:
    """The settings that method and protocol bring to a run of these values, some of which may be missing or wrong.

    width: the preset's, on which the protocol `uniform` builds.
    """
    fields = Config.model_fields
    name, protocol, *rest = (values.get(one, fields[one].default) for one in ("method", "protocol", *RECIPE_NEEDS))
    description = find_description(name)
    if description is None:
        return {}
    if protocol == "uniform":
        encoder = values.get("encoder", fields["encoder"].default)
        return uniform(description.defaults, description.uniform, description.split, encoder, width)
    if protocol != "own" or description.recipe is None:
        return description.defaults
    try:
        sizes = [int(size) for size in rest]
    except (TypeError, ValueError):  # Config says what is wrong with it
        return description.defaults
    return {**description.defaults, **description.recipe.scaled(*sizes)}
