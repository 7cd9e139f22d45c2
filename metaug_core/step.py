"""One training step: the regular update of theta, the look-ahead, the MAG's update. No disk, no clock, no printing."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from metaug_core import meta, monitor
from metaug_core.config import Config
from metaug_core.methods.base import Context
from metaug_core.state import TrainState
from metaug_core.views import make_views


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


def regular_step(
    s: TrainState, views: list[Tensor], context: Context, log: bool, share: bool
) -> tuple[meta.Regular, dict[str, Tensor], Tensor]:
    """grad_theta of eq. 11, the terms of the loss, and z (detached). Nothing is moved yet.

    Two stages, cut at the features: dL/dz through loss and MAG, then one backward through the encoders. So each term's own
    dL/dz is at hand, and with log the share of the encoders' gradient that comes from augmented features is one more backward.
    share: keep for the look-ahead what it would compute again.
    """
    products = meta.Products() if share else None
    with products or nullcontext():
        z = s.networks(views)
    leaf = z.detach().requires_grad_()
    terms = s.method.terms(leaf, context, s.mag)
    # The graph of dL/dz leads to omega through the terms that hold the MAG; the others' would only take memory.
    pulls = {
        name: torch.autograd.grad(term, leaf, retain_graph=True, create_graph=share and name != "loss_original")[0]
        for name, term in terms.items()
    }
    pull, theta, log = torch.stack([*pulls.values()]).sum(0), s.theta, log and "loss_augmented" in pulls
    gradient = meta.gradients(z, theta, grad_outputs=pull.detach(), retain_graph=log)
    terms = {name: term.detach() for name, term in terms.items()}
    if log:
        augmented = meta.gradients(z, theta, grad_outputs=pulls["loss_augmented"].detach())
        part = monitor.norm([*augmented.values()])
        rest = monitor.norm([gradient[name] - augmented[name] for name in theta])
        terms["augmented_gradient_share"] = part / (part + rest)
    return meta.Regular(gradient, pull if share else None, products), terms, z.detach()


def mag_step(
    s: TrainState, views: list[Tensor], context: Context, regular: meta.Regular | None = None
) -> dict[str, Tensor]:
    """omega <- omega - l' grad_omega (eq. 6). regular: of the regular step, where the look-ahead shares it."""
    config, method, mag, optimiser = s.config, s.method, s.mag, s.mag_optimiser
    assert mag is not None
    assert optimiser is not None
    lr = s.optimiser.param_groups[0]["lr"] if config.inner_lr is None else config.inner_lr
    compute = meta.look_ahead if config.meta == "forward" else meta.look_ahead_reference

    def features(theta: meta.Params) -> Tensor:
        return functional_call(s.networks, theta, (views,))

    def total(terms: Callable, z: Tensor, omega: meta.Params) -> Tensor:
        return torch.stack([*terms(z, context, lambda x: functional_call(mag, omega, (x,))).values()]).sum()

    inner, outer = partial(total, method.terms), partial(total, method.outer_terms)
    with meta.frozen_statistics(s.networks, s.mag):
        found = compute(features, inner, s.theta, s.omega, lr, outer, regular)
    descend(optimiser, s.omega, found.gradient)
    if config.bank_writes == "every-pass":
        for z in (found.features, found.features_ahead):
            method.remember(s.memory, s.networks, z, context)
    return {"loss_ahead": found.loss_ahead, "mag_gradient_norm": monitor.norm([*found.gradient.values()])}


def descend(optimiser: torch.optim.Optimizer, parameters: meta.Params, gradient: meta.Params) -> None:
    for name, parameter in parameters.items():
        parameter.grad = gradient[name]
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def train_step(s: TrainState, pixels: Tensor, indices: Tensor, log: bool) -> dict[str, Tensor]:
    """One step of the schedule on uint8 pixels (B, 3, H, W); returns scalar metrics as tensors, not read yet."""
    config = s.config
    with torch.no_grad():
        views = make_views(pixels, config, s.generators["views"])
        context = s.method.context(s.memory, views, indices, s.images.labels[indices], s.generators["draw"])
    if s.mag is not None and config.schedule == "epoch" and s.position >= s.steps_per_epoch // 2:
        return mag_step(s, views, context)
    alternate = s.mag is not None and config.schedule == "alternate"
    share = alternate and config.look_ahead == "shared"
    regular, found, z = regular_step(s, views, context, log, share and config.meta == "forward")
    if share:  # at the theta of the gradient, so before it moves
        found |= mag_step(s, views, context, regular)
    descend(s.optimiser, s.theta, regular.gradient)
    s.method.remember(s.memory, s.networks, z, context)
    if alternate and not share:
        found |= mag_step(s, views, context)
    if log and torch.isfinite(z).all():  # else the loss says so; no singular values could be had
        with torch.no_grad(), meta.frozen_statistics(s.mag):
            found |= monitor.describe(z, s.mag(z) if s.mag is not None else None, context, config)
    return found
