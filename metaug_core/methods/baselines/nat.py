"""NAT: each image is given a random point of the unit sphere, and images swap their points until the points fit."""

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core.methods.base import Context, Method
from metaug_core.networks.encoders import Joined
from metaug_core.recipes import SGD, Recipe


class NAT(Method):
    """Noise as targets (Bojanowski and Joulin 2017, eq. 5 and Algorithm 1).

        min over theta and permutations pi of  mean_i || f(x_i) - c_pi(i) ||^2,   c_1..c_N fixed on the unit sphere

    pi changes within each minibatch by the Hungarian algorithm, with the features of that very step, in every third pass (the
    1st, 4th, ... as in the authors' code [from memory]). Defaults: Sobel-filtered images as theirs, one layer on the encoder's h,
    feature_dim; the paper's 2048 dimensions are for a million images. The authors use SGD at 0.01.
    """

    title = "NAT"
    paper = "Bojanowski and Joulin 2017"
    objective = "|| f(x_i) - c_pi(i) ||^2 to fixed noise c; pi by the Hungarian algorithm within the minibatch"
    remembers = "noise (N, d); assignment (N,); steps done"
    minimum_views = 1
    unit_features = False  # one row of z for all views together
    augmentable = False
    captured = False  # scipy's assignment problem is solved on the host
    uses = {"feature_dim", "nat_every"}
    defaults = {"views": ("Sobel",), "negatives": "batch"}
    recipe = Recipe({**SGD, "momentum": 0.0, "weight_decay": 0.0, "lr_schedule": "constant"}, lr_at_256=2.56)

    def networks(self, classes: int) -> nn.Module:
        return Joined(self.config, self.config.feature_dim, unit=True)

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
    similar = (features.detach() @ targets.T).double().cpu().numpy()
    return torch.as_tensor(linear_sum_assignment(similar, maximize=True)[1], device=features.device)
