"""The memory bank of past features (Wu et al. 2018; CMC): one entry per training image and view. Draw and write are apart."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Bank(nn.Module):
    """entries (V, N, d), unit norm; random before the first write, as in CMC. It has no gradient; `state_dict` is all of it."""

    entries: Tensor

    def __init__(self, views: int, images: int, dim: int, generator: torch.Generator):
        super().__init__()
        entries = torch.randn(views, images, dim, generator=generator, device=generator.device)
        self.register_buffer("entries", F.normalize(entries, dim=-1))

    def draw(self, indices: Tensor, count: int, generator: torch.Generator, per_anchor: bool = False) -> Tensor:
        """Image numbers (count,), or (B, count) with per_anchor, uniform with replacement over all images that are not
        in the minibatch `indices` (B, distinct). No rejection: a draw from N - B numbers is shifted past those left out.
        """
        left_out = indices.sort().values
        shape = (len(indices), count) if per_anchor else (count,)
        room = self.entries.shape[1] - len(indices)
        drawn = torch.randint(room, shape, generator=generator, device=self.entries.device)
        gaps = left_out - torch.arange(len(indices), device=left_out.device)  # how many may be drawn below each
        return drawn + torch.searchsorted(gaps, drawn, right=True)

    def write(self, indices: Tensor, z: Tensor, momentum: float) -> None:
        """Mix z (V, B, d) into the entries of images `indices` (B,) and renormalise: m old + (1 - m) z."""
        mixed = torch.lerp(z.detach().to(self.entries.dtype), self.entries[:, indices], momentum)
        self.entries[:, indices] = F.normalize(mixed, dim=-1)
