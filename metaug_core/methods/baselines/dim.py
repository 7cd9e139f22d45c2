"""DIM: from what a place of an image shows, tell this image as a whole from other images."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core.config import Config
from metaug_core.errors import MetaugError
from metaug_core.methods.base import Context, Method
from metaug_core.networks.encoders import Encoders, output_dim
from metaug_core.recipes import ADAM, Recipe
from metaug_core.registry import VIEWS

LEAST = 4  # places per side of the map that the local features come from; the paper has 8 x 8 at 32 px


class Embedding(nn.Module):
    """phi and psi (the authors' MI1x1ConvNet), (n, inputs) -> (n, units): one hidden layer with BatchNorm and a linear shortcut,
    which starts as the identity where there are no more inputs than units, and LayerNorm on the sum."""

    def __init__(self, inputs: int, units: int):
        super().__init__()
        self.bent = nn.Sequential(
            nn.Linear(inputs, units, bias=False), nn.BatchNorm1d(units), nn.ReLU(), nn.Linear(units, units)
        )
        self.straight = nn.Linear(inputs, units, bias=False)
        self.norm = nn.LayerNorm(units)
        if inputs <= units:
            with torch.no_grad():
                self.straight.weight.uniform_(-0.01, 0.01).fill_diagonal_(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.bent(x) + self.straight(x))


class LocalAndGlobal(nn.Module):
    """theta: the encoders and for each view name phi of the M places of its last map and psi of its h."""

    def __init__(self, config: Config):
        super().__init__()
        self.encoders = Encoders(config)
        units = config.dim_units
        nets = self.encoders.nets.items()
        maps = {name: find_last_map(net, VIEWS[name].channels, config, LEAST) for name, net in nets}
        self.places = {name: place for name, (place, _, _) in maps.items()}
        self.phi = nn.ModuleDict({name: Embedding(channels, units) for name, (_, channels, _) in maps.items()})
        self.psi = nn.ModuleDict({name: Embedding(dim, units) for name, dim in self.encoders.dims.items()})

    def forward(self, images: list[Tensor]) -> Tensor:
        """One (B, C_j, H, W) per view -> (V (M + 1), B, dim_units): of each view its local features, then the global one."""
        names = self.encoders.views
        with capture_outputs(
            {name: net.get_submodule(self.places[name]) for name, net in self.encoders.nets.items()}
        ) as captured:
            wholes = self.encoders(images)
        maps = {name: self.split_crops(captured[name], names.count(name)) for name in self.places}
        rows = []
        for name, h in zip(names, wholes, strict=True):
            local = maps[name].pop(0).to(h.dtype).flatten(2).permute(2, 0, 1)  # (M, B, C)
            rows += [self.phi[name](local.flatten(0, 1)).unflatten(0, local.shape[:2]), self.psi[name](h)[None]]
        return torch.cat(rows)

    def split_crops(self, outputs: list[Tensor], crops: int) -> list[Tensor]:
        """The map of each crop through one encoder. The crops were one minibatch, or one each (encoder_norm); of a module that runs
        several times in a pass it is the last output."""
        passes = 1 if self.encoders.joint else crops
        each = len(outputs) // passes
        return list(torch.cat(outputs[each - 1 :: each]).chunk(crops))


class DIM(Method):
    """Deep InfoMax with the local objective alone, DIM(L) (Hjelm et al. 2019, eq. 4 and 8).

        L = mean_neg [sp(-u) + u - log 2] - mean_pos [log 2 - sp(-u)],   u = <phi(local map at a place), psi(h)>

    sp is softplus; positive: place and whole of one image, negative: of two images of the minibatch. dim_bound infonce: InfoNCE
    of u (eq. 5), of each place of an image among all places of all other images, for the one whole. Defaults: RGB, phi and psi of
    2048 units (dim_units), hidden and output; the paper's lr 1e-4 is for hundreds of epochs. Its other terms (global, prior) are
    left out.

    Of several views place and whole are of two different ones, as in AMDIM (Bachman et al. 2019): within a view its hue or light
    alone identifies an image. The authors' code has one view, place and whole of the same picture, which is the default.
    """

    title = "DIM"
    paper = "Hjelm et al. 2019"
    objective = (
        "bound on the information in u = phi(map at a place) . psi(h of another view): same image against other images"
    )
    differs = (
        "InfoNCE leaves the image's own places out of the negatives; theirs count e^-10 each. Several views are an extension "
        "(AMDIM's pairs); with one it is theirs."
    )
    minimum_views = 1
    unit_features = False
    augmentable = False
    uses = {"dim_units", "dim_bound"}
    defaults = {"views": ("RGB",), "negatives": "batch"}
    recipe = Recipe({**ADAM, "lr": 1e-4, "crop_scale": (1.0, 1.0), "flip": 0.0})  # theirs for CIFAR

    def networks(self, classes: int) -> nn.Module:
        return LocalAndGlobal(self.config)

    def loss(self, z: Tensor, context: Context) -> Tensor:
        views = z.unflatten(0, (len(self.config.views), -1))
        pairs = [(a[:-1], b[-1]) for i, a in enumerate(views) for j, b in enumerate(views) if i != j or len(views) == 1]
        scores = [local @ whole.T for local, whole in pairs]
        infonce = self.config.dim_bound == "infonce"
        bounds = [info_nce(u) if infonce else jensen_shannon(u) for u in scores]
        return torch.stack(bounds).mean()


def jensen_shannon(u: Tensor) -> Tensor:
    """u (M, B, B), place m of image i with the whole of image j -> scalar; 0 for u = 0, least -2 log 2."""
    same = torch.eye(u.shape[-1], dtype=torch.bool, device=u.device)
    attract = math.log(2) - F.softplus(-u.diagonal(dim1=1, dim2=2))
    repel = (F.softplus(u) - math.log(2)).masked_fill(same, 0)  # sp(-u) + u = sp(u)
    return repel.mean() * (len(same) / (len(same) - 1)) - attract.mean()


def info_nce(u: Tensor) -> Tensor:
    """u as above -> scalar: for the whole of each image, each of its own places among all places of all other images."""
    same = torch.eye(u.shape[-1], dtype=torch.bool, device=u.device)
    others = u.masked_fill(same, -torch.inf).logsumexp((0, 1))  # (B,), of each whole
    own = u.diagonal(dim1=1, dim2=2)  # (M, B)
    return (torch.logaddexp(own, others) - own).mean()


@contextmanager
def capture_outputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Context manager: the outputs of each of these modules by its name, one for each time that it runs."""
    captured: dict[str, list[Tensor]] = {}

    def register(name: str, module: nn.Module):
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            captured.setdefault(name, []).append(output)

        return module.register_forward_hook(hook)

    handles = [register(name, module) for name, module in modules.items()]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def find_last_map(encoder: nn.Module, channels: int, config: Config, least: int) -> tuple[str, int, int]:
    """The last feature map of an encoder with at least `least` places per side: the name of the submodule that computes it, its
    channels and its number of places. By a trial run as in `output_dim`. Raises MetaugError if there is none."""
    with capture_outputs(dict(encoder.named_modules())) as captured:
        output_dim(encoder, channels, config)
    for name, (*_, out) in reversed(captured.items()):
        if isinstance(out, Tensor) and out.dim() == 4 and min(out.shape[2:]) >= least:
            return name, out.shape[1], out.shape[2] * out.shape[3]
    raise MetaugError(
        f"encoder {config.encoder!r} has no feature map of {least} x {least} places at {config.image_size} px images"
    )
