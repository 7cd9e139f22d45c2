"""Encoders, one per view: split AlexNet (conv, fc) and ResNets; and theta, the encoders of all views with their heads.

An encoder is any module (B, C, H, W) -> (B, D); a user's own takes one line, ``ENCODERS["mine"] = lambda channels, config: net``.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core.config import Config
from metaug_core.errors import MetaugError
from metaug_core.networks.activation_checkpointing import FirstBlock
from metaug_core.networks.heads import alexnet_units, head
from metaug_core.registry import ENCODERS, VIEWS
from metaug_core.runtime.device import side_by_side

ALEXNET = (48, 128, 192, 192, 128)  # channels of the half-width AlexNet (Appendix B.1)


def _stem(config: Config, channels: int, width: int) -> nn.Conv2d:
    """11x11 stride 4 at the paper's 224 px. Small images keep their pixels: stride 2 from 48 px, else stride 1."""
    if config.stem == "paper" or (config.stem == "auto" and config.image_size >= 128):
        return nn.Conv2d(channels, width, 11, stride=4, padding=2, bias=False)
    return nn.Conv2d(channels, width, 3, stride=2 if config.image_size >= 48 else 1, padding=1, bias=False)


def conv(channels: int, config: Config) -> nn.Sequential:
    """The five convolutional layers of the split AlexNet; BatchNorm and ReLU after each, max-pool 3/2 after 1, 2 and 5."""
    widths = [max(1, round(w * config.width)) for w in ALEXNET]
    layers: list[nn.Module] = []
    for number, width in enumerate(widths):
        # The pool comes before the ReLU: the two commute, and the ReLU then has a quarter of the numbers.
        pool = [nn.MaxPool2d(3, 2)] if number in (0, 1, 4) else []
        if number == 0:
            layers += [_stem(config, channels, width), FirstBlock(nn.BatchNorm2d(width), *pool, nn.ReLU())]
        else:
            kernel = 5 if number == 1 else 3
            layers.append(nn.Conv2d(widths[number - 1], width, kernel, padding=kernel // 2, bias=False))
            layers += [nn.BatchNorm2d(width), *pool, nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten())


def fc(channels: int, config: Config) -> nn.Sequential:
    """`conv` and the two fully connected layers of the split AlexNet."""
    layers = conv(channels, config)
    hidden = alexnet_units(config)
    for inputs in (output_dim(layers, channels, config), hidden):
        layers.extend([nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()])
    return layers


def _resnet(build: Callable[..., nn.Module]) -> Callable[[int, Config], nn.Module]:
    def make(channels: int, config: Config) -> nn.Module:
        """torchvision's network for `channels` input channels; up to 64 px a 3x3 stem without max-pool, the usual
        change for small images (SimCLR, Appendix B.9)."""
        if config.width != 1:
            raise MetaugError(
                f"width is of conv and fc; encoder {config.encoder!r} has only width 1, got {config.width:g}"
            )
        network = build(weights=None, zero_init_residual=config.zero_init_residual)
        if config.stem == "small" or (config.stem == "auto" and config.image_size <= 64):
            network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
            network.maxpool = nn.Identity()
        else:
            network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        network.fc = nn.Identity()
        return network

    return make


ENCODERS.register_own(
    {
        "conv": conv,
        "fc": fc,
        "resnet18": _resnet(torchvision.models.resnet18),
        "resnet50": _resnet(torchvision.models.resnet50),
    }
)


def output_dim(encoder: nn.Module, channels: int, config: Config) -> int:
    """D, by a trial run in evaluation mode, which changes no statistics. Raises MetaugError if the output is not (B, D)."""
    training = encoder.training
    with torch.no_grad():
        try:
            shape = encoder.eval()(torch.zeros(2, channels, config.image_size, config.image_size)).shape
        except RuntimeError as error:
            raise MetaugError(
                f"encoder {config.encoder!r} does not take {channels} x {config.image_size} px images: {error}"
            ) from None
    encoder.train(training)
    if len(shape) != 2 or 0 in shape:
        raise MetaugError(f"encoder {config.encoder!r} gives shape {tuple(shape)} from 2 images, needs (2, D)")
    return shape[1]


def channels_last(images: Tensor) -> Tensor:
    """(B, C, H, W) in the layout in which convolutions and pools are fast. The strides are set as well: images of one channel
    count as either layout, and torch would then choose that of the weights, in which a pool can cost twelve times as much."""
    _, c, h, w = images.shape
    images = images.contiguous(memory_format=torch.channels_last)
    return images.as_strided(images.shape, (c * h * w, 1, c * w, c))


class Encoders(nn.Module):
    """One encoder per distinct view name; views of one name (two crops) share a network."""

    def __init__(self, config: Config):
        super().__init__()
        self.views = config.views
        self.joint = config.encoder_norm == "joint"
        self.bf16 = config.precision == "bf16"
        self.forked = config.graphs == "forked"
        self.nets = nn.ModuleDict()
        self.dims: dict[str, int] = {}
        for name in dict.fromkeys(config.views):
            channels = VIEWS[name].channels
            self.nets[name] = ENCODERS[config.encoder](channels, config)
            self.dims[name] = output_dim(self.nets[name], channels, config)

    def forward(self, images: list[Tensor], names: tuple[str, ...] | None = None) -> list[Tensor]:
        """images, one (B, C_j, H, W) per view -> h, one (B, D_j) each, float32. names: of the views (default: all)."""
        names = names or self.views
        forked = self.forked and images[0].is_cuda and torch.cuda.is_current_stream_capturing()
        encode = {name: partial(self._encode, name) for name in self.nets}
        return apply_by_name(encode, images, names, self.joint, forked)

    def _encode(self, name: str, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            h = self.nets[name](channels_last(images))
        # Head and loss are float32 under bf16; a float64 network (in tests) stays float64.
        return h.float() if self.bf16 else h


def apply_by_name(networks: Mapping[str, Callable[[Tensor], Tensor]], inputs: Sequence[Tensor], names: Sequence[str],
                  joint: bool, forked: bool = False) -> list[Tensor]:  # fmt: skip
    """networks[name] of each input (B, ...), in the order of the inputs.

    joint: inputs of one name (two crops) are one minibatch, so that BatchNorm takes its statistics over both; else each is one.
    forked: networks of different names run side by side (`side_by_side`).
    """

    of_name = {name: [x for x, of in zip(inputs, names, strict=True) if of == name] for name in dict.fromkeys(names)}

    def apply(name: str, own: list[Tensor]) -> Tensor:
        if len(own) == 1:
            return networks[name](own[0])
        return networks[name](torch.cat(own)) if joint else torch.cat([networks[name](x) for x in own])

    results = side_by_side([partial(apply, *item) for item in of_name.items()], forked)
    rows = {name: list(out.chunk(len(own))) for (name, own), out in zip(of_name.items(), results, strict=True)}
    return [rows[name].pop(0) for name in names]


class Networks(nn.Module):
    """theta: per view name an encoder f, a projection head g and, for a method that predicts, a predictor q."""

    def __init__(self, config: Config, head: Callable[[int, Config], nn.Module] = head,
                 predictor: Callable[[Config], nn.Module] | None = None, unit: bool = True):  # fmt: skip
        super().__init__()
        self.encoders, self.unit = Encoders(config), unit
        self.joint = config.head_norm == "joint"
        self.heads = nn.ModuleDict({name: head(dim, config) for name, dim in self.encoders.dims.items()})
        self.predictors = nn.ModuleDict({name: predictor(config) for name in self.heads}) if predictor else None

    def forward(self, images: list[Tensor]) -> Tensor:
        """One (B, C_j, H, W) per view -> z (V, B, d), unit norm if `unit`; with predictors (2V, B, d): z, then q of z."""
        names = self.encoders.views
        z = apply_by_name(dict(self.heads.items()), self.encoders(images), names, self.joint)
        if self.predictors is not None:
            z = z + apply_by_name(dict(self.predictors.items()), z, names, self.joint)
        return F.normalize(torch.stack(z), dim=-1) if self.unit else torch.stack(z)


class Joined(nn.Module):
    """theta of a method of whole images: the encoders of all views, their h concatenated, and one linear layer."""

    def __init__(self, config: Config, outputs: int):
        super().__init__()
        self.encoders = Encoders(config)
        self.head = nn.Linear(sum(self.encoders.dims[name] for name in config.views), outputs)

    def forward(self, images: list[Tensor]) -> Tensor:
        """One (B, C_j, H, W) per view -> (1, B, outputs)."""
        return self.head(torch.cat(self.encoders(images), dim=1))[None]
