# pyright: reportPrivateImportUsage=false
"""One training step: the regular update of theta, the look-ahead, the MAG's update. No disk, no clock, no printing."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils import get_total_norm

from metaug_core.config import Config
from metaug_core.meta.forward_ad import Params, Recorder, frozen_statistics
from metaug_core.meta.meta_gradient import Regular, Rule, detach_leaf, look_ahead, look_ahead_reference, next_step, vjp
from metaug_core.methods.base import Context
from metaug_core.networks.activation_checkpointing import checkpoint_first_block
from metaug_core.runtime import distributed
from metaug_core.training import diagnostics
from metaug_core.training.state import TrainState


def lr_factor(config: Config, epochs_done: float) -> float:
    """What both learning rates are multiplied by after so many epochs (a real number)."""
    if epochs_done < config.warmup_epochs:
        return (epochs_done + 1e-3) / config.warmup_epochs  # not 0: a step that does nothing wastes a minibatch
    if config.lr_schedule == "step":
        return config.lr_decay ** sum(epochs_done >= s for s in config.lr_steps)
    if config.lr_schedule == "cosine":
        done = (epochs_done - config.warmup_epochs) / (config.epochs - config.warmup_epochs)
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0


class Seen(NamedTuple):
    """A minibatch as the networks and the loss are given it."""

    views: list[Tensor]
    context: Context


def regular_step(
    s: TrainState, views: list[Tensor], context: Context, log: bool, share: bool
) -> tuple[Regular, dict[str, Tensor], Tensor]:
    """grad_theta of eq. 11, the terms of the loss, and z (detached). Nothing is moved yet.

    Two stages, cut at the features: dL/dz through loss and MAG, then one backward through the encoders. So dL/dz is at hand
    for the look-ahead, and with log the share of the encoders' gradient that comes through pairs that hold an augmented feature is
    one more backward. share: keep for the look-ahead what it would compute again.
    """
    pairs = context.pairs(len(s.config.views))
    context = replace(context, shared=pairs)
    recorded = Recorder() if share else None
    with distributed.whole_batch(), recorded or nullcontext():
        z = s.networks(views)
    leaf = detach_leaf(z)
    terms, theta = s.method.terms(leaf, context, s.mag), s.theta
    log = log and "loss_augmented" in terms
    (pull,) = torch.autograd.grad(total(terms), leaf, create_graph=share, retain_graph=share or log)
    gradient = vjp(z, theta, pull, retain_graph=log)
    found = {name: term.detach() for name, term in terms.items()}
    if log:
        (augmented_pull,) = torch.autograd.grad(terms["loss_augmented"], leaf, retain_graph=True)
        augmented_pull -= pairs.original_gradient(terms["loss_augmented"], leaf)
        augmented = vjp(z, theta, augmented_pull)
        part = get_total_norm(augmented.values())
        rest = get_total_norm(gradient[name] - augmented[name] for name in theta)
        found["augmented_gradient_share"] = part / (part + rest)
    return Regular(gradient, pull if share else None, recorded), found, leaf.detach()


def total(terms: dict[str, Tensor]) -> Tensor:
    """The loss whose weighted terms these are."""
    return torch.stack([*terms.values()]).sum()


def look_ahead_update(s: TrainState) -> float | Tensor | Rule:
    """The look-ahead's step, as `meta.look_ahead` takes it: the rate l of eq. 3, or the rule of the optimiser's next step."""
    lr = s.optimiser.param_groups[0]["lr"] if s.config.inner_lr is None else s.config.inner_lr
    return next_step(s.optimiser, s.theta, lr) if s.config.look_ahead_update == "optimiser" else lr


def mag_step(
    s: TrainState,
    views: list[Tensor],
    context: Context,
    log: bool,
    regular: Regular | None = None,
    outer: Seen | None = None,
) -> dict[str, Tensor]:
    """omega <- omega - l' grad_omega (eq. 6). regular: of the regular step, where the look-ahead shares it. outer: the minibatch of
    the loss at theta', where it is another."""
    config, method, mag, optimiser = s.config, s.method, s.mag, s.mag_optimiser
    assert mag is not None
    assert optimiser is not None
    compute = look_ahead if config.meta == "forward" else look_ahead_reference

    outer_views, outer_context = outer or (views, context)

    def features(views: list[Tensor], theta: Params) -> Tensor:
        with distributed.whole_batch(), checkpoint_first_block(config.meta == "forward" and distributed.count() == 1):
            return functional_call(s.networks, theta, (views,))

    def loss(terms: Callable, context: Context, z: Tensor, omega: Params) -> Tensor:
        return total(terms(z, context, lambda x: functional_call(mag, omega, (x,))))

    outer_loss = partial(loss, method.outer_terms, outer_context)
    outer_features = partial(features, outer_views) if outer else None
    with frozen_statistics(s.networks, s.mag):
        found = compute(
            partial(features, views), partial(loss, method.terms, context), s.theta, s.omega, look_ahead_update(s),
            outer_loss, regular, outer_features=outer_features, mixed=config.mag_gradient == "whole", measure=log,
        )  # fmt: skip
        before = log_before(s, outer_features, outer_loss, found.features) if log else {}
    if config.mag_objective == "scaled":
        torch._foreach_mul_([*found.gradient.values()], 1 / config.delta)
    descend(optimiser, s.omega, found.gradient)
    if config.bank_writes == "every-pass":
        for z in (found.features, found.features_ahead):
            method.remember(s.memory, s.networks, z, context)
    metrics = {"loss_ahead": found.loss_ahead.detach()} | before
    if log:  # reads all of the gradient, 14 million numbers of the paper's MAG
        metrics["mag_gradient_norm"] = get_total_norm(found.gradient.values())
    if found.mixed_share is not None:
        metrics["mixed_gradient_share"] = found.mixed_share
    return metrics


@torch.no_grad()
def log_before(s: TrainState, outer_features: Callable | None, outer_loss: Callable, z: Tensor) -> dict[str, Tensor]:
    """What omega descends on at theta, beside `loss_ahead`, which is the same at theta'. z: the features at theta."""
    if outer_features is not None:
        z = distributed.gather(outer_features(s.theta), 1)
    return {"loss_before": outer_loss(z, s.omega)}


def descend(optimiser: torch.optim.Optimizer, parameters: Params, gradient: Params) -> None:
    for name, parameter in parameters.items():
        g = gradient[name]  # autograd's contract for .grad: fused optimisers go by memory, not by index
        parameter.grad = g if g.stride() == parameter.stride() else torch.empty_like(parameter).copy_(g)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


class Update(NamedTuple):
    """What a step did: its scalar metrics, tensors not read yet, and the features they are of (None for a MAG pass)."""

    metrics: dict[str, Tensor]
    z: Tensor | None
    context: Context


def update(s: TrainState, pixels: Tensor, indices: Tensor, log: bool) -> Update:
    """One step of the schedule on uint8 pixels (B, 3, H, W), without a wait for the device: it can be captured.

    Of several processes each has its own part of the pixels, and all indices.
    """
    config = s.config
    views, context = draw(s, pixels, indices)
    outer = None
    if s.trains_mag and config.look_ahead_batch == "previous":
        outer = draw(s, *s.swap_previous(pixels, indices))
    if s.mag_pass:
        return Update(mag_step(s, views, context, log, outer=outer), None, context)
    alternate = s.trains_mag and config.schedule == "alternate"
    share = alternate and config.look_ahead == "shared"
    regular, found, z = regular_step(s, views, context, log, share and config.meta == "forward")
    if share:  # at the theta of the gradient, so before it moves
        found |= mag_step(s, views, context, log, regular, outer)
    descend(s.optimiser, s.theta, regular.gradient)
    s.method.remember(s.memory, s.networks, z, context)
    if alternate and not share:
        found |= mag_step(s, views, context, log, outer=outer)
    return Update(found, z, context)


@torch.no_grad()
def draw(s: TrainState, pixels: Tensor, indices: Tensor) -> Seen:
    """Views of uint8 pixels (B, 3, H, W), and what the loss of these images takes from memory."""
    views = s.method.views(pixels, s.generators["views"])
    return Seen(views, s.method.context(s.memory, views, indices, s.images.labels[indices], s.generators["draw"]))


@torch.no_grad()
def describe(s: TrainState, seen: Update) -> dict[str, Tensor]:
    """What `monitor` says of unit features of a step; nothing if they are not finite (then the loss says so)."""
    if seen.z is None or not s.method.description.unit_features or not torch.isfinite(seen.z).all():
        return {}
    views = len(s.config.views)  # what follows the features of the views are predictions
    with frozen_statistics(s.mag):
        augmented = s.mag(seen.z)[:views] if s.mag is not None else None
        return diagnostics.describe(seen.z[:views], augmented, seen.context, s.config)


def train_step(s: TrainState, pixels: Tensor, indices: Tensor, log: bool) -> dict[str, Tensor]:
    """`update`, and with log `describe`: the metrics of one step."""
    seen = update(s, pixels, indices, log)
    return seen.metrics | describe(s, seen) if log else seen.metrics
