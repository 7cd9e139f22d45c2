# pyright: reportPrivateImportUsage=false
"""Optimisers of encoders, heads and MAG: torch's Adam and SGD, and LARS, whose parameters stand in groups by what a recipe asks of
them: biases and BatchNorm weights without decay, a predictor at a constant rate."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from metaug_core.config import Config
from metaug_core.errors import MetaugError

Tensors = list[Tensor] | tuple[Tensor, ...]  # as torch's list operations take and give them
TRUST = 0.001  # LARS' coefficient in the code of SimCLR, BYOL and Barlow Twins


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rates (You et al. 2017), as BYOL's and Barlow Twins' authors have it:

        g = gradient + weight_decay p,   v <- momentum v + r g,   p <- p - lr v,   r = 0.001 |p| / |g| (1 where either is 0)

    Groups with `adapted` False have r = 1. No step waits for the device.
    """

    def __init__(self, groups: Iterable[Any], lr: float | Tensor, momentum: float, weight_decay: float):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "adapted": True})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in parameters]
            whole = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
            update = [g * r for g, r in zip(whole, trust_ratios(group, parameters, whole), strict=True)]
            for p in parameters:
                self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
            buffers = [self.state[p]["momentum_buffer"] for p in parameters]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, update)
            torch._foreach_sub_(parameters, torch._foreach_mul(buffers, group["lr"]))


def trust_ratios(group: dict[str, Any], parameters: Tensors, gradients: Tensors) -> list[Tensor]:
    """r of `LARS` for each parameter, a scalar."""
    lengths = zip(torch._foreach_norm(parameters), torch._foreach_norm(gradients), strict=True)
    if not group["adapted"]:
        return [torch.ones_like(length) for length, _ in lengths]
    return [torch.where((p > 0) & (g > 0), TRUST * p / g, 1.0) for p, g in lengths]


def make_optimiser(kind: str, groups: list[dict[str, Any]], lr: float, momentum: float,
                   betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.Optimizer:  # fmt: skip
    """Adam, SGD or LARS of parameter groups that name their weight decay, all at the rate lr.

    Fused on CPU and CUDA; on CUDA each group's rate is a tensor of its own, so that steps can be captured.
    """
    device = groups[0]["params"][0].device.type
    fused = device in ("cpu", "cuda")
    if device == "cuda":
        groups = [group | {"lr": torch.tensor(lr, device="cuda")} for group in groups]
    if kind == "adam":
        return torch.optim.Adam(groups, lr=lr, betas=betas, fused=fused, capturable=device == "cuda")
    if kind == "lars":
        return LARS(groups, lr, momentum, 0.0)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=fused)


def group_parameters(networks: nn.Module, config: Config) -> list[dict[str, Any]]:
    """The parameters of encoders and heads in the groups that config asks for: one, unless biases and BatchNorm weights are left
    out of weight decay, or the predictor's rate is constant. Frozen ones are left out. MetaugError for complex ones, and if all are
    frozen."""
    predictors = getattr(networks, "predictors", None)
    of_predictor = {id(p) for p in predictors.parameters()} if predictors is not None else set()
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, p in networks.named_parameters():
        if p.is_complex():
            raise MetaugError(
                f"the optimisers take real weights, and {name} is complex: keep it as torch.view_as_real gives it"
            )
        if not p.requires_grad:
            continue
        constant = id(p) in of_predictor and config.predictor_lr_schedule == "constant"
        left_out = not config.decay_norm_and_bias and p.dim() < 2  # biases and the weights of BatchNorm are vectors
        groups.setdefault((constant, left_out), []).append(p)
    if not groups:
        raise MetaugError("the networks have no weight to train: all are frozen (requires_grad False)")
    return [
        {"params": parameters, "weight_decay": 0.0 if left_out else config.weight_decay, "constant_rate": constant}
        | ({"adapted": not left_out} if config.optimiser == "lars" else {})
        for (constant, left_out), parameters in groups.items()
    ]


def set_rate(optimiser: torch.optim.Optimizer, lr: float, factor: float) -> None:
    """Set the learning rate of the next step to lr times the schedule's factor, and to lr in groups of constant rate.

    A captured step reads it from its tensor."""
    for group in optimiser.param_groups:
        rate = lr if group.get("constant_rate") else lr * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
