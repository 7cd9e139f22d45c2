"""Encoders, one per view: split AlexNet (conv, fc) and ResNets; and theta, the encoders of all views with their heads.

An encoder is any module (B, C, H, W) -> (B, D); a user's own takes one line, ``ENCODERS["mine"] = lambda channels, config: net``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from metaug_core.config import Config
from metaug_core.errors import MetaugError, shown
from metaug_core.extensions import name_error, name_failures, place
from metaug_core.networks.activation_checkpointing import FirstBlock
from metaug_core.networks.heads import alexnet_units, head
from metaug_core.networks.second_order import unit
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


def _resnet(name: str) -> Callable[[int, Config], nn.Module]:
    def make(channels: int, config: Config) -> nn.Module:
        """torchvision's network for `channels` input channels; up to 64 px a 3x3 stem without max-pool, the usual
        change for small images (SimCLR, Appendix B.9)."""
        if config.width != 1:
            raise MetaugError(
                f"width is of conv and fc; encoder {config.encoder!r} has only width 1, got {config.width:g}"
            )
        from torchvision import models  # slow to import: it brings torch.compile

        network = getattr(models, name)(weights=None, zero_init_residual=config.zero_init_residual)
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
        "resnet18": _resnet("resnet18"),
        "resnet50": _resnet("resnet50"),
    }
)


def build_encoder(channels: int, config: Config) -> nn.Module:
    """The encoder that config names. Raises MetaugError if what the table holds for it makes no module."""
    with name_failures(config, "creating it"):
        encoder = ENCODERS[config.encoder](channels, config)
    if not isinstance(encoder, nn.Module):
        raise MetaugError(
            f"encoder {config.encoder!r}: its function must return a torch.nn.Module, got {shown(encoder)}"
        )
    return encoder


def output_dim(encoder: nn.Module, channels: int, config: Config) -> int:
    """D, by trial runs in evaluation mode, which change no statistics. Raises MetaugError if the output is not (B, D)."""
    dims = set()
    for count in (2, 1):
        images = torch.zeros(count, channels, config.image_size, config.image_size)
        with torch.no_grad(), evaluating(encoder):
            try:
                h = encoder(images)
            except Exception as error:
                raise MetaugError(
                    f"encoder {config.encoder!r} does not take {channels} x {config.image_size} px images "
                    f"(float32, on the CPU){place(error)}: {name_error(error)}"
                ) from error
        refuse_other_output(h, count, config.encoder)
        dims.add(h.shape[1])
    if len(dims) > 1:
        raise MetaugError(
            f"encoder {config.encoder!r} gives {sorted(dims)} features: their number depends on that of images"
        )
    return dims.pop()


def refuse_other_output(h: object, count: int, name: str, dim: int | None = None) -> None:
    """MetaugError if h is not a tensor (count, D) of real numbers, or D is not dim."""
    needed = f"({count}, {'D' if dim is None else dim})"
    if not isinstance(h, Tensor):
        raise MetaugError(
            f"encoder {name!r} gives a {type(h).__name__}, needs one tensor {needed}: return the features alone"
        )
    if h.dim() != 2 or h.shape[0] != count or 0 in h.shape or dim not in (None, h.shape[1]):
        raise MetaugError(
            f"encoder {name!r} gives shape {tuple(h.shape)} from {count} image{'s' * (count > 1)}, needs {needed}: flatten it, "
            "or average over the rest"
        )
    if not h.is_floating_point():
        raise MetaugError(f"encoder {name!r} gives {h.dtype}, needs real numbers of floating point")


@contextmanager
def evaluating(*modules: nn.Module | None) -> Iterator[None]:
    """Context manager: the modules are in evaluation mode (BatchNorm uses its running statistics). Afterwards each part is in the
    mode that it was in: a frozen BatchNorm of a user's may be in evaluation mode for good."""
    trained = [(module, module.training) for module in modules if module is not None]
    modes = [(part, part.training) for module, _ in trained for part in module.modules()]
    try:
        for module, _ in trained:
            module.eval()
        yield
    finally:
        for module, mode in trained:
            module.train(mode)
        for part, mode in modes:
            part.training = mode


def channels_last(images: Tensor) -> Tensor:
    """(B, C, H, W) in the layout in which convolutions and pools are fast. The strides are set as well: images of one channel
    count as either layout, and torch would then choose that of the weights, in which a pool can cost twelve times as much."""
    _, c, h, w = images.shape
    images = images.contiguous(memory_format=torch.channels_last)
    if torch.compiler.is_exporting():  # ONNX has no strides, and its exporter takes those for other numbers
        return images
    return images.as_strided(images.shape, (c * h * w, 1, c * w, c))


class Encoders(nn.Module):
    """One encoder per distinct view name; views of one name (two crops) share a network."""

    def __init__(self, config: Config):
        super().__init__()
        self.views = config.views
        self.joint = config.encoder_norm == "joint"
        self.bf16 = config.precision == "bf16"
        self.forked = config.graphs == "forked"
        self.own = config.encoder if ENCODERS.added(config.encoder) else None  # the name of a user's encoder
        self.nets = nn.ModuleDict()
        self.dims: dict[str, int] = {}
        for name in dict.fromkeys(config.views):
            channels = VIEWS[name].channels
            self.nets[name] = build_encoder(channels, config)
            self.dims[name] = output_dim(self.nets[name], channels, config)

    def forward(self, images: list[Tensor], names: tuple[str, ...] | None = None) -> list[Tensor]:
        """images, one (B, C_j, H, W) per view -> h, one (B, D_j) each, of the images' type. names: of the views (default: all).

        So it is under bf16, and after a user's encoder of another type."""
        return [h.to(x.dtype) for h, x in zip(self.encode(images, names), images, strict=True)]

    def encode(self, images: list[Tensor], names: tuple[str, ...] | None = None) -> list[Tensor]:
        """h of `forward` in the type that the encoders have left it in."""
        names = names or self.views
        forked = self.forked and images[0].is_cuda and torch.cuda.is_current_stream_capturing()
        encode = {name: partial(self._encode, name) for name in self.nets}
        return apply_by_name(encode, images, names, self.joint, forked)

    def _encode(self, name: str, images: Tensor) -> Tensor:
        net, x = self.nets[name], channels_last(images)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            return net(x) if self.own is None else self._encode_by_own(net, x, self.own, self.dims[name])

    @staticmethod
    def _encode_by_own(net: nn.Module, images: Tensor, name: str, dim: int) -> Tensor:
        """h (B, D) by a user's encoder, which may change its input in place. MetaugError if it is no such h, or has no gradient."""
        h = net(images.clone())
        refuse_other_output(h, images.shape[0], name, dim)
        if torch.is_grad_enabled() and not h.requires_grad and any(p.requires_grad for p in net.parameters()):
            raise MetaugError(
                f"encoder {name!r} has weights to train, but its output has no gradient (detach, no_grad, a reentrant checkpoint); "
                "freeze them by requires_grad_(False) if that is meant"
            )
        return h


def apply_by_name(networks: Mapping[str, Callable[[Tensor], Tensor]], inputs: Sequence[Tensor], names: Sequence[str],
                  joint: bool, forked: bool = False) -> list[Tensor]:  # fmt: skip
    """networks[name] of each input (B, ...), in the order of the inputs.

    joint: inputs of one name (two crops) are one minibatch, so that BatchNorm takes its statistics over both; else each is one.
    forked: networks of different names run side by side (`side_by_side`).
    """

    of_name = {name: [x for x, of in zip(inputs, names, strict=True) if of == name] for name in dict.fromkeys(names)}

    def apply(name: str, own: list[Tensor]) -> list[Tensor]:
        if joint and len(own) > 1:
            return list(networks[name](torch.cat(own)).chunk(len(own)))
        return [networks[name](x) for x in own]

    rows = dict(zip(of_name, side_by_side([partial(apply, *item) for item in of_name.items()], forked), strict=True))
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
        names, encoders = self.encoders.views, self.encoders
        images = images[: len(names)]  # what follows is for the method's `context`
        h = encoders.encode(images) if encoders.own is None else encoders(images)
        with torch.autocast(images[0].device.type, torch.bfloat16, enabled=encoders.bf16):
            z = apply_by_name(dict(self.heads.items()), h, names, self.joint)
            if self.predictors is not None:
                z = z + apply_by_name(dict(self.predictors.items()), z, names, self.joint)
        stacked = torch.stack(z).to(images[0].dtype)
        return unit(stacked) if self.unit else stacked

    def product_weights(self) -> list[str]:
        """The names of the weights that under bf16 are operands of products alone, all in bfloat16."""
        if not self.encoders.bf16 or self.encoders.own is not None:
            return []
        products = [(name, m) for name, m in self.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        return [f"{name}.{own}" for name, module in products for own, _ in module.named_parameters(recurse=False)]


class Joined(nn.Module):
    """theta of a method of whole images: the encoders of all views, their h concatenated, and one linear layer."""

    def __init__(self, config: Config, outputs: int):
        super().__init__()
        self.encoders = Encoders(config)
        self.head = nn.Linear(sum(self.encoders.dims[name] for name in config.views), outputs)

    def forward(self, images: list[Tensor]) -> Tensor:
        """One (B, C_j, H, W) per view -> (1, B, outputs)."""
        return self.head(torch.cat(self.encoders(images), dim=1))[None]
