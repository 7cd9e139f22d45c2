"""The first block computed again in the backward: the same gradients, to the bit, and fewer numbers held."""

import pytest
import torch
from torch.func import functional_call

from metaug_core import Config
from metaug_core.meta.forward_ad import frozen_statistics
from metaug_core.networks.activation_checkpointing import checkpoint_first_block
from metaug_core.networks.encoders import Networks


@pytest.mark.parametrize("encoder", ["conv", "fc"])
def test_a_checkpointed_pass_has_the_same_gradients_and_holds_less(encoder):
    config = Config(encoder=encoder, width=0.1, feature_dim=8, views=("L", "ab"), image_size=32)
    networks = Networks(config).double()
    images = [torch.randn(6, channels, 32, 32, dtype=torch.float64) for channels in (1, 2)]
    # Weights that are not the module's own any more when the backward comes.
    theta = {n: (p.detach() + 0.1 * torch.randn_like(p)).requires_grad_() for n, p in networks.named_parameters()}
    before = {n: b.clone() for n, b in networks.named_buffers()}
    gradients, held = [], []
    for enabled in (False, True):
        sizes: list[int] = []
        counted = torch.autograd.graph.saved_tensors_hooks(lambda t, to=sizes: to.append(t.numel()) or t, lambda t: t)
        with frozen_statistics(networks):
            with checkpoint_first_block(enabled), counted:
                z = functional_call(networks, theta, (images,))
            gradients.append(torch.autograd.grad(z.square().sum() + z.sum(), list(theta.values())))
        held.append(sum(sizes))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert held[1] < held[0]
    assert all(torch.equal(b, before[n]) for n, b in networks.named_buffers())
