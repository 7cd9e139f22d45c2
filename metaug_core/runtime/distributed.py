"""One run over several processes (`torchrun`): each encodes its own part of every minibatch; all else is done by all alike.

Features are few and small, so they are gathered, and loss, MAG and bank see the whole minibatch in every process: their numbers
are those of one process, with no approximation. What is divided is the cost, the encoders. Gradients are sums over the parts.

Without a group of processes every function here gives back what it was given.
"""

import atexit
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad as fwAD
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def count() -> int:
    """How many processes take part."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is; the first, 0, logs and saves."""
    return dist.get_rank() if count() > 1 else 0


def started() -> int:
    """How many processes `torchrun` started, before they are a group; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def join(device: str) -> None:
    """Make the processes that `torchrun` started one group, for good: a second group would meet the first one's connections.
    Without torchrun nothing happens. On CUDA each process takes the device of its local rank."""
    if started() == 1 or dist.is_initialized():
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    atexit.register(dist.destroy_process_group)


def own(x: Tensor, dim: int = 0) -> Tensor:
    """This process's part of x along dim."""
    return x if count() == 1 else x.chunk(count(), dim)[rank()]


def gather(x: Tensor, dim: int = 0) -> Tensor:
    """The parts of all processes, in order, along dim. No gradient: who needs one takes its `own` part of it."""
    if count() == 1:
        return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(count())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts, dim)


def total(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sums over processes of their gradients, in one message."""
    if count() == 1:
        return values
    flat = torch.cat([value.reshape(-1) for value in values.values()])
    dist.all_reduce(flat)
    parts = flat.split([value.numel() for value in values.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(values.items(), parts, strict=True)}


def mean(*values: Tensor) -> list[Tensor]:
    """The means over processes of tensors of one shape."""
    if count() == 1:
        return list(values)
    stacked = torch.stack(values)
    dist.all_reduce(stacked)
    return list((stacked / count()).unbind())


def agreed(flag: bool, device: str) -> bool:
    """Whether any process has its flag set: an interrupt stops all of them after the same step."""
    if count() == 1:
        return flag
    flags = torch.tensor([int(flag)], device=device)
    dist.all_reduce(flags)
    return bool(flags)


def wait() -> None:
    """Until all processes have come this far."""
    if count() > 1:
        dist.barrier()


def moments(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1/std of each channel of x (B, C, ...) over the whole minibatch; in two messages, since the mean square would lose
    the variance of a channel far from 0."""
    others = [d for d in range(x.dim()) if d != 1]
    (middle,) = mean(x.mean(others))
    (variance,) = mean((x - per_channel(middle, x)).square().mean(others))
    return middle, variance.add(eps).rsqrt()


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """(C,) in a shape that broadcasts over x (B, C, ...)."""
    return values.view(1, -1, *[1] * (x.dim() - 2)).to(x.dtype)


def projections(g: Tensor, x: Tensor, weight: Tensor, middle: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """sum g u and sum g of each channel, u = (x - middle) r, over this process's part: one pass over memory, since BatchNorm's own
    backward sums them for its weight and bias."""
    sums = torch.ops.aten.native_batch_norm_backward(
        g, x, weight, None, None, middle, r, True, 0.0, [False, True, True]
    )
    return sums[1], sums[2]


class _WholeBatchNorm(torch.autograd.Function):
    """BatchNorm of x (b, C, ...), this process's part of the minibatch, by the `moments` of the whole."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, middle: Tensor, r: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx._saved_result1, ctx._saved_result2 = middle, r  # under torch's names, where `tangents` looks for them
        return torch.addcmul(per_channel(bias, x), x - per_channel(middle, x), per_channel(weight * r, x))

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (x, weight), (g,) = ctx.saved_tensors, gradients
        middle, r, size = ctx._saved_result1, ctx._saved_result2, x.numel() // x.shape[1]
        along, level = projections(g, x, weight, middle, r)
        shares = mean(along / size, level / size)
        unit = (x - per_channel(middle, x)) * per_channel(r, x)
        back = g - per_channel(shares[1], x) - unit * per_channel(shares[0], x)
        return back * per_channel(weight * r, x), along, level, None, None


class WholeBatch(TorchFunctionMode):
    """Within, BatchNorm in training takes its statistics from the whole minibatch of all processes (SyncBatchNorm, also on a
    CPU). A tangent pass is left alone: `tangents` does the same there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        weight, bias = kwargs.get("weight"), kwargs.get("bias")
        plain = func is not F.batch_norm or not kwargs["training"] or weight is None or bias is None
        if plain or fwAD.unpack_dual(weight).tangent is not None:
            return func(*args, **kwargs)
        x, running_mean, running_var = args
        middle, r = moments(x.detach(), kwargs["eps"])
        if running_mean is not None:
            with torch.no_grad():
                size = count() * x.numel() // x.shape[1]
                running_mean.lerp_(middle, kwargs["momentum"])
                running_var.lerp_((r**-2 - kwargs["eps"]) * size / (size - 1), kwargs["momentum"])
        return _WholeBatchNorm.apply(x, weight, bias, middle, r)


def whole_batch() -> AbstractContextManager[Any]:
    """`WholeBatch` where several processes take part."""
    return WholeBatch() if count() > 1 else nullcontext()
