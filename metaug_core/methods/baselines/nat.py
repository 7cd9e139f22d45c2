"""NAT: each image is given a random point of the unit sphere, and images swap their points until the points fit."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core.config import Config
from metaug_core.methods.base import Context, Method
from metaug_core.networks.encoders import Encoders
from metaug_core.recipes import SGD, Recipe
from metaug_core.runtime import distributed


class Regressor(nn.Module):
    """theta: the encoders of all views, their h concatenated, and the fully connected layers of the authors' AlexNet: two hidden
    ones with BatchNorm and ReLU, dropout after the first, and a linear one to the targets' dimension."""

    def __init__(self, config: Config):
        super().__init__()
        self.encoders = Encoders(config)
        inputs, hidden = sum(self.encoders.dims[name] for name in config.views), config.head_hidden
        self.head = nn.Sequential(
            nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), Dropout(),
            nn.Linear(hidden, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(),
            nn.Linear(hidden, config.feature_dim),
        )  # fmt: skip

    def forward(self, images: list[Tensor]) -> Tensor:
        """One (B, C_j, H, W) per view -> (1, B, d), unit norm."""
        return F.normalize(self.head(torch.cat(self.encoders(images), dim=1)), dim=-1)[None]


class Dropout(nn.Module):
    """Dropout with probability 1/2 of (B, units). Each of several processes draws for the whole minibatch and uses its own part."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.rand(len(x) * distributed.count(), x.shape[1], device=x.device) < 0.5
        return 2 * x * distributed.own(kept)


class NAT(Method):
    """Noise as targets (Bojanowski and Joulin 2017, eq. 5 and Algorithm 1).

        min over theta and permutations pi of  mean_i || f(x_i) - c_pi(i) ||^2,   c_1..c_N fixed on the unit sphere

    pi changes within each minibatch by the Hungarian algorithm, with the features of that very step, in every third pass (the
    1st, 4th, ... as in the authors' code). Defaults: Sobel-filtered images as theirs; a crop of 0.766 of the area, their 224 of
    256, and a flip; their head, 4096-4096 (head_hidden) with BatchNorm, ReLU and dropout, and a linear layer to feature_dim,
    whose 2048 in the paper is for a million images. The authors use SGD without momentum at 0.01 on the SUM over a minibatch of
    256; that is 2.56 on the mean here.
    """

    title = "NAT"
    paper = "Bojanowski and Joulin 2017"
    objective = "|| f(x_i) - c_pi(i) ||^2 to fixed noise c; pi by the Hungarian algorithm within the minibatch"
    remembers = "noise (N, d); assignment (N,); steps done"
    differs = (
        "feature_dim 128 for fewer images than their 2048 dimensions. The edges are of luma; theirs are summed over standardised "
        "R, G and B."
    )
    minimum_views = 1
    unit_features = False  # one row of z for all views together
    augmentable = False
    captured = False  # scipy's assignment problem is solved on the host
    uses = {"feature_dim", "head_hidden", "nat_every"}
    defaults = {
        "views": ("Sobel",),
        "crop_scale": (0.766, 0.766),
        "crop_ratio": 1.0,
        "flip": 0.5,
        "head_hidden": 4096,
        "negatives": "batch",
    }
    recipe = Recipe({**SGD, "momentum": 0.0, "weight_decay": 0.0, "lr_schedule": "constant"}, lr_at_256=2.56)

    def networks(self, classes: int) -> nn.Module:
        return Regressor(self.config)

    def memory(self, networks: nn.Module, images: int, generator: torch.Generator) -> nn.Module:
        memory, device = nn.Module(), generator.device
        noise = torch.randn(images, self.config.feature_dim, generator=generator, device=device)
        memory.register_buffer("noise", F.normalize(noise, dim=-1))
        memory.register_buffer("assignment", torch.arange(images, device=device))
        memory.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))
        return memory

    def context(self, memory: Any, views, indices: Tensor, labels: Tensor, generator) -> Context:
        passes = memory.steps // (len(memory.noise) // self.config.batch_size)
        due = passes % self.config.nat_every == 0
        return Context(indices, labels, given={"due": due, "targets": memory.noise[memory.assignment[indices]]})

    def remember(self, memory: Any, networks, z: Tensor, context: Context) -> None:
        memory.steps += 1
        if context.given["due"]:
            own = memory.assignment[context.indices]
            memory.assignment[context.indices] = own[best_match(z[0], context.given["targets"])]

    def loss(self, z: Tensor, context: Context) -> Tensor:
        targets = context.given["targets"]
        if context.given["due"]:
            targets = targets[best_match(z[0], targets)]
        return (z[0] - targets).square().sum(-1).mean()


def best_match(features: Tensor, targets: Tensor) -> Tensor:
    """The permutation p (B,) with the least sum_i || features_i - targets_p(i) ||^2, unit vectors (B, d) both."""
    from scipy.optimize import linear_sum_assignment  # slow to import, and only this needs it

    similar = (features.detach() @ targets.T).double().cpu().numpy()
    return torch.as_tensor(linear_sum_assignment(similar, maximize=True)[1], device=features.device)
