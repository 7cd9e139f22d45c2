"""i-Mix: the image that asks is a mixture of two, and its target is the same mixture of their keys."""

from typing import Any

import torch
from torch import Tensor, nn

from metaug_core import settings
from metaug_core.config import Config
from metaug_core.methods.base import TWO_CROPS, Context, Method, check_queue_size
from metaug_core.networks.memory import Averaged, Queue
from metaug_core.recipes import JITTERED, SGD, Recipe
from metaug_core.runtime import distributed


class IMix(Method):
    """i-Mix on MoCo v2 (Lee et al. 2021, section 3): every image is a class of its own, and classes are mixed as in mixup.

        x = l x_i + (1 - l) x_j,   L = l CE(q, k_i) + (1 - l) CE(q, k_j),   l = max(u, 1 - u), u uniform (Beta(1, 1))

    CE(q, k_i) is -log softmax(q . k_i / t) among the keys of the whole minibatch and of the queue. Keys, of averaged networks, are
    of images that are not mixed. Every view asks in turn, with partners j and weights l of its own. Images are mixed after they
    have become views. Defaults: t 0.2, queue 4096, MLP head.
    """

    title = "i-Mix"
    paper = "Lee et al. 2021"
    objective = "l CE(q, k_i) + (1 - l) CE(q, k_j) among the minibatch's keys and the queue, q of l x_i + (1 - l) x_j"
    remembers = "averaged networks; queue of keys (V, K, d)"
    differs = (
        "Of their code's runs the one on MoCo. Every view asks in turn (their option sym). The MLP head has no BatchNorm; their "
        "last runs have one in the middle. No shuffled BatchNorm. m 0.99 for short runs; theirs 0.999."
    )
    uses = settings.PROJECTION | {"temperature", "queue_size", "ema_momentum", "ema_schedule"}
    defaults = {**TWO_CROPS, "head": "mlp", "temperature": 0.2, "ema_momentum": 0.99, "queue_size": 4096}
    recipe = Recipe({**JITTERED, **SGD, "weight_decay": 1e-4}, lr_at_256=0.125, warmup=0.01)

    def __init__(self, config: Config):
        super().__init__(config)
        check_queue_size(config)

    def views(self, pixels: Tensor, generator: torch.Generator) -> list[Tensor]:
        """The mixed views, then the plain ones, the partners (V, B) and the weights l (V, B) of the whole minibatch."""
        plain = super().views(pixels, generator)
        shape = (len(plain), len(pixels) * distributed.count())
        share = torch.rand(shape, generator=generator, device=pixels.device)
        share = torch.maximum(share, 1 - share)
        partners = torch.rand(shape, generator=generator, device=pixels.device).argsort(-1)
        mixed = [mix_images(x, *draws) for x, *draws in zip(plain, partners, share, strict=True)]
        return [*mixed, *plain, partners, share]

    def memory(self, networks: nn.Module, images: int, generator: torch.Generator) -> nn.Module:
        queue = Queue(len(self.config.views), self.config.queue_size, self.config.feature_dim, generator)
        return nn.ModuleDict({"averaged": Averaged(networks, self.config, images), "queue": queue})

    def context(self, memory: Any, views: list[Tensor], indices, labels, generator) -> Context:
        *images, partners, share = views
        keys = memory["averaged"](images[len(self.config.views) :])
        # A copy: `remember` writes to the queue before this step's features are described.
        given = {"partners": partners, "share": share, "queue": memory["queue"].of_views().clone()}
        return Context(indices, labels, positives=keys, given=given)

    def remember(self, memory: Any, networks: nn.Module, z: Tensor, context: Context) -> None:
        memory["queue"].write(context.positives)
        memory["averaged"].follow(networks)

    def loss(self, z: Tensor, context: Context) -> Tensor:
        assert context.positives is not None
        given, keys = context.given, context.positives
        own = torch.arange(z.shape[1], device=z.device)
        terms = []
        for w, q in enumerate(z):
            v = w % len(keys)
            partners, share = given["partners"][v], given["share"][v]
            for u in range(len(keys)):
                if u != v:
                    among = torch.cat([keys[u], given["queue"][u]])
                    log_shares = (q @ among.T / self.config.temperature).log_softmax(-1)
                    terms.append(-torch.lerp(log_shares[own, partners], log_shares[own, own], share).mean())
        return torch.stack(terms).mean()


def mix_images(images: Tensor, partners: Tensor, share: Tensor) -> Tensor:
    """share x + (1 - share) x_partner of images (B, C, H, W); partners and shares (B,) are of the whole minibatch, of whose images
    this process has a part."""
    others = distributed.gather(images).index_select(0, distributed.own(partners))
    return torch.lerp(others, images, distributed.own(share).view(-1, 1, 1, 1))
