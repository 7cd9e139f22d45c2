"""MoCHi and SynCo: to a method's past negatives come synthetic ones, made of those that are nearest to the query.

For each query q the N nearest past features n are found, without a gradient. Every kind draws of them for itself, and what it makes
is brought to unit norm and counts as one more negative. Only q itself, where it is compared, has a gradient.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from metaug_core.config import Config, ConfigError
from metaug_core.errors import MetaugError
from metaug_core.methods.base import Composition, Context, Method
from metaug_core.methods.modifiers import Base, extend_context, require_pairs
from metaug_core.objectives.similarity import similarity

MOCHI = (
    "MoCHi: no code by the authors. From the first step, theirs after a warm-up. N 256 for a queue of 4096, theirs 1024 for 16384 "
    "or 65536; N of the first kind and N / 8 of the second, as in their best run."
)
SYNCO = (
    "SynCo: from the first step, theirs from the 11th epoch of 200. N 256 for a queue of 4096, theirs 1024 for 65536, and as many "
    "of each kind in proportion. Kinds 5 and 6 are the paper's, n + 0.01 q and n + 0.01 sign q; in their code a finite difference "
    "along a random direction of length 1e-5 moves n by about 1e-7. All queries share the noise of kind 4."
)


class Kind(NamedTuple):
    """One kind of synthetic negatives: how many, as a share of N, and how they are made.

    make(q (..., 1, d), n, other n (..., C, d), u (..., C, 1) uniform in [0, 1), noise (C, d) normal) -> (..., C, d).
    """

    share: float
    make: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


MIXED = Kind(1, lambda q, n, other, u, noise: torch.lerp(other, n, u))
TOWARDS_QUERY = Kind(1 / 8, lambda q, n, other, u, noise: torch.lerp(n, q, u / 2))
SIX = (  # of SynCo, in the order of its paper
    TOWARDS_QUERY._replace(share=1 / 4),
    Kind(1 / 4, lambda q, n, other, u, noise: torch.lerp(q, n, 1 + u / 2)),  # away from the query
    MIXED._replace(share=1 / 4),
    Kind(1 / 16, lambda q, n, other, u, noise: n + 0.01 * noise),
    Kind(1 / 16, lambda q, n, other, u, noise: n + 0.01 * q),  # q is the gradient of q . n
    Kind(1 / 16, lambda q, n, other, u, noise: n + 0.01 * q.sign()),
)


def with_mochi(base: Base) -> Composition:
    """MoCHi (Kalantidis et al. 2020, section 4): N mixtures of two hard negatives, a n + (1 - a) n', a uniform in (0, 1), and N / 8
    of one with the query, b q + (1 - b) n, b uniform in (0, 1/2)."""
    return compose(base, "mochi", "MoCHi", "Kalantidis et al. 2020", (MIXED, TOWARDS_QUERY), MOCHI)


def with_synco(base: Base) -> Composition:
    """SynCo (Giakoumoglou and Stathaki 2024, section 3): six kinds, N / 4 each of the first three and N / 16 each of the others:
    a q + (1 - a) n, q + b (n - q) with b in (1, 1.5), mixtures of two, n + 0.01 noise, n + 0.01 q, n + 0.01 sign q."""
    return compose(base, "synco", "SynCo", "Giakoumoglou and Stathaki 2024", SIX, SYNCO)


def compose(base: Base, name: str, title: str, paper: str, kinds: tuple[Kind, ...], differs: str) -> Composition:
    """A method with these kinds of synthetic negatives. Raises MetaugError if it remembers no negatives."""

    def modify(method: Method) -> Method:
        extend_context(method, partial(draw, config=method.config, kinds=kinds))
        return method

    require_pairs(base, name)
    if base.description.remembers == "nothing":
        raise MetaugError(f"modifier {name!r} needs past negatives, and {base.description.title} has none")
    return Composition(base, modify, title, paper, "and synthetic negatives of the nearest past ones", differs=differs,
                       uses=base.description.uses | {"hardest_negatives"})  # fmt: skip


def draw(context: Context, generator: torch.Generator, config: Config, kinds: tuple[Kind, ...]) -> Context:
    """The context with synthetic negatives, whose random numbers are drawn here: for each view, image and other view of V, B and T
    two of the N nearest and a number in [0, 1) for each negative that is made."""
    if context.negatives is None:
        raise ConfigError(f"method {config.method!r} makes negatives of past ones, and has none: give negatives 'bank'")
    views, others, known, dim = context.negatives.shape
    known = known if context.drawn is None else context.drawn.shape[1]
    nearest = min(config.hardest_negatives, known)
    counts = [max(1, round(kind.share * nearest)) for kind in kinds]
    shape, options = (
        (views, 1, len(context.indices), others, sum(counts)),
        {"generator": generator, "device": generator.device},
    )
    ranks = torch.randint(nearest, (2, *shape), **options)
    uniform, noise = torch.rand(shape, **options), torch.randn(sum(counts), dim, **options)
    return replace(context, synthesise=partial(synthesise, kinds, counts, nearest, ranks, uniform, noise))


@torch.no_grad()
def make_negatives(kinds: tuple[Kind, ...], counts: list[int], nearest: int, ranks: Tensor, uniform: Tensor, noise: Tensor,
                   anchors: Tensor, past: Tensor, drawn: Tensor | None, table: Tensor) -> Tensor:  # fmt: skip
    """Synthetic negatives (V, S, B, T, C, d) at unit norm: the anchors' of `synthesise`."""
    columns = table.topk(nearest).indices  # (V, S, B, T, N)
    if drawn is not None:
        columns = drawn[None, None, :, None].expand(*table.shape[:-1], -1).gather(-1, columns)
    views = torch.arange(len(past), device=past.device).view(-1, 1, 1, 1, 1)
    others = torch.arange(past.shape[1], device=past.device).view(1, 1, 1, -1, 1)
    chosen = (columns.gather(-1, rank.expand(-1, table.shape[1], -1, -1, -1)) for rank in ranks)
    first, second = (past[views, others, column].split(counts, -2) for column in chosen)
    q = anchors[..., None, None, :]  # (V, S, B, 1, 1, d)
    parts = zip(kinds, first, second, uniform.unsqueeze(-1).split(counts, -2), noise.split(counts), strict=True)
    return F.normalize(torch.cat([kind.make(q, *part) for kind, *part in parts], -2), dim=-1)


def synthesise(kinds: tuple[Kind, ...], counts: list[int], nearest: int, ranks: Tensor, uniform: Tensor, noise: Tensor,
               anchors: Tensor, past: Tensor, drawn: Tensor | None, table: Tensor) -> Tensor:  # fmt: skip
    """Similarities (V, S, B, T, C) of anchors (V, S, B, d) with negatives made of past ones, as `similarity.Synthesise` has it."""
    made = make_negatives(kinds, counts, nearest, ranks, uniform, noise, anchors, past, drawn, table)
    return similarity((made @ anchors[..., None, :, None]).squeeze(-1))
