"""DIM: an image's whole is told from wholes of other images by what its places show."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core.config import Config
from metaug_core.encoders import Encoders, last_map, outputs
from metaug_core.methods.base import Context, Method
from metaug_core.registry import VIEWS

LEAST = 4  # places a side of the map that the local features come from; the paper has 8 x 8 at 32 px


class Embedding(nn.Module):
    """phi and psi of the paper (Appendix A.2): one hidden layer and a linear shortcut, (n, inputs) -> (n, d)."""

    def __init__(self, inputs: int, hidden: int, dim: int):
        super().__init__()
        self.bent = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.straight = nn.Linear(inputs, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.bent(x) + self.straight(x)


class LocalAndGlobal(nn.Module):
    """theta: the encoders, phi of the M places of their last maps and psi of their h, views side by side."""

    def __init__(self, config: Config):
        super().__init__()
        self.encoders, hidden, dim = Encoders(config), config.dim_units, config.feature_dim
        nets = self.encoders.nets.items()
        maps = {name: last_map(net, VIEWS[name].channels, config, LEAST) for name, net in nets}
        self.places = {name: place for name, (place, _, _) in maps.items()}
        self.phi = Embedding(sum(channels for _, channels, _ in maps.values()), hidden, dim)
        self.psi = Embedding(sum(self.encoders.dims.values()), hidden, dim)

    def forward(self, images: list[Tensor]) -> Tensor:
        """One (B, C_j, H, W) per view -> (M + 1, B, d): the local features, then the global one."""
        with outputs({name: net.get_submodule(self.places[name]) for name, net in self.encoders.nets.items()}) as maps:
            h = torch.cat(self.encoders(images), dim=1)
        local = torch.cat([maps[name] for name in self.places], dim=1).to(h.dtype).flatten(2)  # (B, C, M)
        return torch.cat([self.phi(local.permute(2, 0, 1)), self.psi(h)[None]])


class DIM(Method):
    """Deep InfoMax with the local objective alone, DIM(L) (Hjelm et al. 2019, eq. 4 and 8).

        L = mean_neg [sp(-u) + u - log 2] - mean_pos [log 2 - sp(-u)],   u = <phi(local map at a place), psi(h)>

    sp is softplus; positive: place and whole of one image, negative: of two images of the minibatch. Defaults: RGB, phi and psi
    of 2048 units (dim_units); the paper's lr 1e-4 is for hundreds of epochs. Its other terms (global, prior) are left out, and
    so is the batch norm in phi [from memory].
    """

    title = "DIM"
    paper = "Hjelm et al. 2019"
    objective = "Jensen-Shannon bound of u = phi(map at a place) . psi(h): same image against other images"
    minimum_views = 1
    unit_features = False
    augmentable = False
    defaults = {"views": ("RGB",), "negatives": "batch"}

    def networks(self, classes: int) -> nn.Module:
        return LocalAndGlobal(self.config)

    def loss(self, z: Tensor, context: Context) -> Tensor:
        return jensen_shannon(z[:-1] @ z[-1].T)


def jensen_shannon(u: Tensor) -> Tensor:
    """u (M, B, B), place m of image i with the whole of image j -> scalar; 0 for u = 0, least -2 log 2."""
    same = torch.eye(u.shape[-1], dtype=torch.bool, device=u.device)
    attract = math.log(2) - F.softplus(-u.diagonal(dim1=1, dim2=2))
    repel = (F.softplus(u) - math.log(2)).masked_fill(same, 0)  # sp(-u) + u = sp(u)
    return repel.mean() * (len(same) / (len(same) - 1)) - attract.mean()
