"""What a method remembers of the past: a bank with an entry for each image, a queue of the last features, averaged networks.

Each is a module without gradients; its `state_dict` is the whole state. Reading changes nothing; `write` and `follow` do.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaug_core.config import Config
from metaug_core.meta.forward_ad import frozen_statistics
from metaug_core.runtime import distributed


class Bank(nn.Module):
    """Memory bank of past features (Wu et al. 2018; CMC): entries (V, N, d) of unit norm, one per training image and view. They
    are random before the first write, as in CMC."""

    entries: Tensor

    def __init__(self, views: int, images: int, dim: int, generator: torch.Generator):
        super().__init__()
        entries = torch.randn(views, images, dim, generator=generator, device=generator.device)
        self.register_buffer("entries", F.normalize(entries, dim=-1))

    def draw(self, indices: Tensor, count: int, generator: torch.Generator, per_anchor: bool = False) -> Tensor:
        """Image numbers (count,), or (B, count) with per_anchor, uniform with replacement over all images that are not
        in the minibatch. indices (B, distinct): the whole minibatch's, of all processes.

        A number is drawn from N - B and shifted past those left out, so nothing is drawn twice to be thrown away.
        """
        left_out = indices.sort().values
        shape = (len(indices), count) if per_anchor else (count,)
        room = self.entries.shape[1] - len(indices)
        drawn = torch.randint(room, shape, generator=generator, device=self.entries.device)
        gaps = left_out - torch.arange(len(indices), device=left_out.device)  # how many numbers may be drawn below each
        return drawn + torch.searchsorted(gaps, drawn, right=True)

    def write(self, indices: Tensor, z: Tensor, momentum: float) -> None:
        """Mix z (V, B, d) into the entries of images `indices` (B,) and renormalise: m old + (1 - m) z."""
        mixed = torch.lerp(z.detach().to(self.entries.dtype), self.entries[:, indices], momentum)
        self.entries[:, indices] = F.normalize(mixed, dim=-1)


class Queue(nn.Module):
    """The last K features of each view (MoCo, NNCLR, SwAV): entries (V, K, d) of unit norm, random before they are written.

    shared: one queue for all views, whose features are written one view after the other; entries are then (1, K, d).
    """

    entries: Tensor
    place: Tensor

    def __init__(self, views: int, size: int, dim: int, generator: torch.Generator, shared: bool = False):
        super().__init__()
        self.views = views
        entries = torch.randn(1 if shared else views, size, dim, generator=generator, device=generator.device)
        self.register_buffer("entries", F.normalize(entries, dim=-1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64, device=generator.device))  # of the next write

    def of_views(self) -> Tensor:
        """The entries for each view, (V, K, d)."""
        return self.entries.expand(self.views, -1, -1)

    def write(self, z: Tensor) -> None:
        """Replace the oldest entries by z (V, B, d), B <= K (V B <= K if shared), without a wait for the device."""
        if len(self.entries) == 1:
            z = z.flatten(0, 1)[None]
        rows = (self.place + torch.arange(z.shape[1], device=z.device)) % self.entries.shape[1]
        self.entries[:, rows] = z.detach().to(self.entries.dtype)
        self.place.copy_((rows[-1] + 1) % self.entries.shape[1])


def copy_module(module: nn.Module) -> nn.Module:
    """A copy of a module with the hooks on its weights, which torch leaves behind. What a module's hook computes anew in every pass
    (the weight of `torch.nn.utils.weight_norm`) is cut from its graph, because torch copies no tensor with one."""
    for part in module.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, Tensor) and value.grad_fn is not None:
                vars(part)[name] = value.detach()
    with torch.no_grad():  # a scripted module's weights would be results of the copy
        copied = deepcopy(module)
    for old, new in zip(module.parameters(), copied.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
        for hook in (old._backward_hooks or {}).values():
            new.register_hook(hook)
    return copied


class Averaged(nn.Module):
    """The exponential moving average of a method's networks: MoCo's key encoder, BYOL's target."""

    steps: Tensor

    def __init__(self, networks: nn.Module, config: Config, images: int):
        super().__init__()
        self.networks = copy_module(networks).requires_grad_(False)
        self.momentum = config.ema_momentum
        self.total_steps = config.epochs * (images // config.batch_size) if config.ema_schedule == "cosine" else None
        device = next(networks.parameters()).device
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))

    def forward(self, views: list[Tensor]) -> Tensor:
        """z (V, B, d) of the whole minibatch by these networks and by batch statistics, as in training; no buffer changes."""
        with torch.no_grad(), frozen_statistics(self), distributed.whole_batch():
            return distributed.gather(self.networks(views), 1)

    def follow(self, networks: nn.Module) -> None:
        """Update every weight that both have to m own + (1 - m) theirs; a target has no predictor. m is constant, or rises from
        the setting to 1 at the end of the run by half a cosine (BYOL), without a wait for the device."""
        theirs = dict(networks.named_parameters())
        dtype = next(self.networks.parameters()).dtype
        share = torch.full((), 1 - self.momentum, dtype=dtype, device=self.steps.device)
        if self.total_steps is not None:
            share = share * (1 + torch.cos(torch.pi * self.steps / self.total_steps)) / 2
        with torch.no_grad():
            for name, own in self.networks.named_parameters():
                own.lerp_(theirs[name], share.to(own.dtype))
        self.steps += 1
