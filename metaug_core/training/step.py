# pyright: reportPrivateImportUsage=false
"""One training step: the regular update of theta, the look-ahead, the MAG's update. No disk, no clock, no printing.

`s` is the state of the run, which a step changes in place.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import get_total_norm

from metaug_core.config import Config
from metaug_core.meta.forward_ad import Params, Recorder, frozen_statistics
from metaug_core.meta.meta_gradient import Regular, Rule, detach_leaf, look_ahead, look_ahead_reference, next_step, vjp
from metaug_core.methods.base import Context
from metaug_core.networks.activation_checkpointing import checkpoint_first_block
from metaug_core.networks.rounding import round_weights
from metaug_core.optimisers import set_rate
from metaug_core.runtime import distributed
from metaug_core.training import diagnostics
from metaug_core.training.own_networks import Repeats
from metaug_core.training.state import TrainState


def lr_factor(config: Config, epochs_done: float) -> float:
    """The factor on the learning rates after `epochs_done` epochs (a real number)."""
    if epochs_done < config.warmup_epochs:
        return (epochs_done + 1e-3) / config.warmup_epochs  # not 0: a step that does nothing wastes a minibatch
    if config.lr_schedule == "step":
        return config.lr_decay ** sum(epochs_done >= s for s in config.lr_steps)
    if config.lr_schedule == "cosine":
        done = (epochs_done - config.warmup_epochs) / (config.epochs - config.warmup_epochs)
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0


def set_rates(s: TrainState) -> None:
    """Set the learning rates of the next step. A rate that its group holds constant has no factor, of warm-up either."""
    factor = lr_factor(s.config, s.epochs_done)
    set_rate(s.optimiser, s.config.lr, factor)
    if s.mag_optimiser is not None:
        set_rate(s.mag_optimiser, s.config.mag_lr, factor)


class Inputs(NamedTuple):
    """A minibatch as the networks and the loss take it."""

    views: list[Tensor]
    context: Context


def regular_step(
    s: TrainState, views: list[Tensor], context: Context, log: bool, share: bool
) -> tuple[Regular, dict[str, Tensor], Tensor]:
    """grad_theta of eq. 11, the terms of the loss, and z (V, B, d), detached. Moves nothing.

    Two stages, cut at the features: dL/dz through loss and MAG, then one backward through the encoders. The look-ahead uses
    dL/dz again. log: also the share of the encoders' gradient that comes through pairs with an augmented feature, for one
    more backward. share: keep for the look-ahead what it would otherwise compute again.
    """
    theta, pairs = s.theta, context.pairs(len(s.config.views))
    omega = s.omega if s.trains_by_loss else {}
    context = replace(context, shared=pairs)
    recorded = Recorder() if share else None
    with distributed.whole_batch(), recorded or nullcontext(), repeat(s, "networks"):
        z = call_with(s.networks, round_weights(theta, s.rounded), views) if s.rounded else s.networks(views)
    leaf = detach_leaf(z)
    with repeat(s, "loss"):
        terms = s.method.terms(leaf, context, s.mag)
    log = log and "loss_augmented" in terms
    pull, *of_omega = torch.autograd.grad(
        sum_terms(terms), [leaf, *omega.values()], create_graph=share, retain_graph=share or log
    )
    gradient = vjp(z, theta, pull, retain_graph=log)
    metrics = {name: term.detach() for name, term in terms.items()}
    if log:
        (augmented_pull,) = torch.autograd.grad(terms["loss_augmented"], leaf, retain_graph=True)
        augmented_pull -= pairs.original_gradient(terms["loss_augmented"], leaf)
        augmented = vjp(z, theta, augmented_pull)
        part = get_total_norm(augmented.values())
        rest = get_total_norm(gradient[name] - augmented[name] for name in theta)
        metrics["augmented_gradient_share"] = part / (part + rest)
    shared = Regular(gradient, pull if share else None, recorded, dict(zip(omega, of_omega, strict=True)))
    return shared, metrics, leaf.detach()


def repeat(s: TrainState, kind: str) -> AbstractContextManager[None]:
    """Context manager: a pass over the user's own networks, or their loss, sees what the first of this step saw (`Repeats`)."""
    return s.repeats.repeat(kind) if s.repeats is not None else nullcontext()


def call_with(module: nn.Module, weights: Params, x: Any) -> Tensor:
    """module(x) with these weights in the place of its own. The package's networks share no weights among their parts."""
    return functional_call(module, weights, (x,), tie_weights=False)


def sum_terms(terms: dict[str, Tensor]) -> Tensor:
    """The loss: the sum of its weighted terms."""
    return torch.stack([*terms.values()]).sum()


def look_ahead_update(s: TrainState, theta: Params) -> float | Tensor | Rule:
    """The step of the look-ahead, for `look_ahead`: the rate l of eq. 3, or the rule of the optimiser's next step."""
    lr = s.config.inner_lr
    if s.config.look_ahead_update == "optimiser":
        return next_step(s.optimiser, theta, lr)
    return s.optimiser.param_groups[0]["lr"] if lr is None else lr


def mag_step(
    s: TrainState,
    views: list[Tensor],
    context: Context,
    log: bool,
    regular: Regular | None = None,
    outer: Inputs | None = None,
) -> dict[str, Tensor]:
    """omega <- omega - l' grad_omega (eq. 6); returns the step's metrics.

    regular: results of the regular step that the look-ahead shares. outer: the minibatch of the loss at theta', if it is
    another one.
    """
    config, method, mag, optimiser = s.config, s.method, s.mag, s.mag_optimiser
    assert mag is not None
    assert optimiser is not None
    compute = partial(look_ahead, jvp=s.tangent) if config.meta == "forward" else look_ahead_reference
    call = s.repeats.call if s.repeats is not None else call_with
    theta, omega = s.theta, s.omega  # named once: to walk through the modules takes time
    outer_views, outer_context = outer or (views, context)

    def features(views: list[Tensor], theta: Params) -> Tensor:
        lean = checkpoint_first_block(config.meta == "forward" and distributed.count() == 1)
        with distributed.whole_batch(), lean, repeat(s, "networks"):
            return call(s.networks, round_weights(theta, s.rounded), views)

    def loss(terms: Callable, context: Context, z: Tensor, omega: Params) -> Tensor:
        with repeat(s, "loss"):
            return sum_terms(terms(z, context, lambda x: call(mag, omega, x)))

    outer_loss = partial(loss, method.outer_terms, outer_context)
    outer_features = partial(features, outer_views) if outer else None
    with frozen_statistics(s.networks, s.mag):
        result = compute(
            partial(features, views), partial(loss, method.terms, context), theta, omega, look_ahead_update(s, theta),
            outer_loss, regular, outer_features=outer_features, mixed=config.mag_gradient == "whole", measure=log,
        )  # fmt: skip
        before = loss_before(s, outer_features, outer_loss, result.features) if log else {}
    if config.mag_objective == "scaled":
        torch._foreach_mul_([*result.gradient.values()], 1 / config.delta)
    descend(optimiser, omega, result.gradient)
    if config.bank_writes == "every-pass":
        for z in (result.features, result.features_ahead):
            method.remember(s.memory, s.networks, z, context)
    metrics = {"loss_ahead": result.loss_ahead.detach()} | before
    if log:  # costs a pass over the gradient, 14 million numbers for the paper's MAG
        metrics["mag_gradient_norm"] = get_total_norm(result.gradient.values())
    if result.mixed_share is not None:
        metrics["mixed_gradient_share"] = result.mixed_share
    return metrics


@torch.no_grad()
def loss_before(s: TrainState, outer_features: Callable | None, outer_loss: Callable, z: Tensor) -> dict[str, Tensor]:
    """The MAG's loss at theta; `loss_ahead` is the same loss at theta'. z: the features at theta."""
    if outer_features is not None:
        z = distributed.gather(outer_features(s.theta), 1)
    return {"loss_before": outer_loss(z, s.omega)}


def descend(optimiser: torch.optim.Optimizer, parameters: Params, gradient: Params) -> None:
    """One step of the optimiser along the gradient, a tensor for each parameter."""
    for name, parameter in parameters.items():
        g = gradient[name]  # in the parameter's layout: fused optimisers go by memory, not by index
        parameter.grad = g if g.stride() == parameter.stride() else torch.empty_like(parameter).copy_(g)
    optimiser.step()
    torch.autograd.graph.increment_version([*parameters.values()])  # which torch's fused optimisers leave as it was
    optimiser.zero_grad(set_to_none=True)


class Update(NamedTuple):
    """The result of a step: its scalar metrics (tensors not read yet), and the features they describe (None for a MAG pass)."""

    metrics: dict[str, Tensor]
    z: Tensor | None
    context: Context


def update(s: TrainState, pixels: Tensor, indices: Tensor, log: bool) -> Update:
    """One step of the schedule on uint8 pixels (B, 3, H, W), without a wait for the device, so that it can be captured.

    Each of several processes passes its own part of the pixels, and all indices.
    """
    config = s.config
    views, context = draw(s, pixels, indices)
    s.repeats = Repeats(s) if s.own and s.trains_mag else None
    outer = None
    if s.trains_mag and config.look_ahead_batch == "previous":
        outer = draw(s, *s.swap_previous(pixels, indices))
    if s.mag_pass:
        return Update(mag_step(s, views, context, log, outer=outer), None, context)
    alternate = s.trains_mag and config.schedule == "alternate"
    share = alternate and config.look_ahead == "shared"
    regular, metrics, z = regular_step(s, views, context, log, share and config.meta == "forward")
    if share:  # before theta moves: the shared results hold at the theta of the gradient
        metrics |= mag_step(s, views, context, log, regular, outer)
    descend(s.optimiser, s.theta, regular.gradient)
    if regular.of_omega and s.mag_optimiser is not None:
        descend(s.mag_optimiser, s.omega, regular.of_omega)
    s.method.remember(s.memory, s.networks, z, context)
    if alternate and not share:
        metrics |= mag_step(s, views, context, log, outer=outer)
    return Update(metrics, z, context)


@torch.no_grad()
def draw(s: TrainState, pixels: Tensor, indices: Tensor) -> Inputs:
    """Draw the views of uint8 pixels (B, 3, H, W), and from memory what the loss of these images needs."""
    views = s.method.views(pixels, s.generators["views"])
    return Inputs(views, s.method.context(s.memory, views, indices, s.images.labels[indices], s.generators["draw"]))


def train_step(s: TrainState, pixels: Tensor, indices: Tensor, log: bool) -> dict[str, Tensor]:
    """`update`: the metrics of one step, and with log the readings of its features (`diagnostics.describe`)."""
    metrics, z, context = update(s, pixels, indices, log)
    if not log:
        return metrics
    with repeat(s, "loss"):
        return metrics | diagnostics.describe(s, z, context)
