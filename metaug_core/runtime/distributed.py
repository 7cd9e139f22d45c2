"""One run in several processes (`torchrun`): each encodes its own part of every minibatch; everything else is done by all alike.

Features are few and small, so they are gathered. Loss, MAG and memory see the whole minibatch in every process, so their numbers
are exactly those of one process. Only the cost of the encoders is divided. The engine meets this file in three places: `own` part
of a minibatch, `gather` for features (`sum_gradients` on the way back), and BatchNorm over the `whole_batch`.

Without a process group every function here returns what it was given.
"""

import atexit
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad as fwAD
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# --- the processes


def count() -> int:
    """How many processes take part."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process; the first, 0, logs and saves."""
    return dist.get_rank() if count() > 1 else 0


def started() -> int:
    """How many processes `torchrun` started, before they are a group; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def join(device: str) -> None:
    """Make the processes that `torchrun` started one group, until they exit. Does nothing without torchrun.

    On CUDA each process takes the device of its local rank.
    """
    if started() == 1 or dist.is_initialized():
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    atexit.register(dist.destroy_process_group)  # not earlier: a second group would meet the connections of the first


def wait() -> None:
    """Wait until all processes have come this far."""
    if count() > 1:
        dist.barrier()


def any_of(flag: bool, device: str) -> bool:
    """Whether any process has its flag set: an interrupt stops all of them after the same step."""
    if count() == 1:
        return flag
    flags = torch.tensor([int(flag)], device=device)
    dist.all_reduce(flags)
    return bool(flags)


# --- minibatches, features, gradients


def own(x: Tensor, dim: int = 0) -> Tensor:
    """This process's part of x along dim."""
    return x if count() == 1 else x.chunk(count(), dim)[rank()]


def gather(x: Tensor, dim: int = 0) -> Tensor:
    """The parts of all processes, in order, along dim. Has no gradient: pass on the `own` part of the result's gradient."""
    if count() == 1:
        return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(count())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts, dim)


def sum_gradients(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sums of the processes' gradients, in one message."""
    if count() == 1:
        return gradients
    flat = torch.cat([g.reshape(-1) for g in gradients.values()])
    dist.all_reduce(flat)
    parts = flat.split([g.numel() for g in gradients.values()])
    return {name: part.view(g.shape) for (name, g), part in zip(gradients.items(), parts, strict=True)}


# --- BatchNorm over the whole minibatch


def whole_batch() -> AbstractContextManager[Any]:
    """Context manager: BatchNorm takes its statistics from the whole minibatch (`WholeBatch`)."""
    return WholeBatch() if count() > 1 else nullcontext()


def moments(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1/std, (C,) each, of the channels of x (B, C, ...) over the whole minibatch; float32 of bfloat16.

    Two messages: the mean square, in the same message as the mean, would lose the variance of a channel far from 0.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    others = [d for d in range(x.dim()) if d != 1]
    (mean,) = _average(x.mean(others))
    (variance,) = _average((x - per_channel(mean, x)).square().mean(others))
    return mean, variance.add(eps).rsqrt()


def batch_norm_along(g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor) -> Tensor:
    """w r (g - mean(g) - u mean(g u)) for g and x (B, C, ...) and u = (x - mean) r, means over the whole minibatch: the derivative
    of BatchNorm by x along g. It is symmetric, so tangents and gradients are the same."""
    if count() == 1:
        return batch_norm_backward(g, x, weight, mean, r, [True, False, False])[0]
    along, level = _projections(g, x, weight, mean, r)
    return _project(g, x, weight, mean, r, along, level)


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """(C,) in a shape that broadcasts over x (B, C, ...)."""
    return values.view(1, -1, *[1] * (x.dim() - 2)).to(x.dtype)


def batch_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor, wanted: Sequence[bool] = (True, True, True)
) -> tuple[Tensor, ...]:
    """The gradients of x, weight and bias that are wanted, by torch's BatchNorm in training of this process's part alone: with
    u = (x - mean) r, `batch_norm_along` and the sums of g u and of g."""
    return torch.ops.aten.native_batch_norm_backward(g, x, weight, None, None, mean, r, True, 0.0, [*wanted])


def _projections(g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of g u and of g over this process's part, (C,) each, in one pass over memory."""
    sums = batch_norm_backward(g, x, weight, mean, r, [False, True, True])
    return sums[1], sums[2]


def _project(g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, r: Tensor, along: Tensor, level: Tensor) -> Tensor:
    """`batch_norm_along` from this process's `_projections`."""
    size = x.numel() // x.shape[1]
    mean_along, mean_level = _average(along / size, level / size)
    u = (x - per_channel(mean, x)) * per_channel(r, x)
    return (g - per_channel(mean_level, x) - u * per_channel(mean_along, x)) * per_channel(weight * r, x)


def _average(*values: Tensor) -> list[Tensor]:
    """The means over processes of tensors of one shape."""
    if count() == 1:
        return list(values)
    stacked = torch.stack(values)
    dist.all_reduce(stacked)
    return list((stacked / count()).unbind())


class _WholeBatchNorm(torch.autograd.Function):
    """BatchNorm of x (b, C, ...), this process's part of the minibatch, by the `moments` of the whole."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, r: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx._saved_result1, ctx._saved_result2 = mean, r  # torch's own names: `forward_ad` reads them
        return torch.addcmul(per_channel(bias, x), x - per_channel(mean, x), per_channel(weight * r, x))

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (g,) = gradients
        x, weight = ctx.saved_tensors
        mean, r = ctx._saved_result1, ctx._saved_result2
        along, level = _projections(g, x, weight, mean, r)
        return _project(g, x, weight, mean, r, along, level), along, level, None, None


class WholeBatch(TorchFunctionMode):
    """Context manager: BatchNorm in training takes its statistics from the whole minibatch of all processes (as SyncBatchNorm,
    but also on a CPU). It leaves tangent passes alone: `forward_ad` does the same there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        weight, bias = kwargs.get("weight"), kwargs.get("bias")
        plain = func is not F.batch_norm or not kwargs["training"] or weight is None or bias is None
        if plain or fwAD.unpack_dual(weight).tangent is not None:
            return func(*args, **kwargs)
        x, running_mean, running_var = args
        mean, r = moments(x.detach(), kwargs["eps"])
        if running_mean is not None:
            with torch.no_grad():
                size = count() * x.numel() // x.shape[1]
                running_mean.lerp_(mean, kwargs["momentum"])
                running_var.lerp_((r**-2 - kwargs["eps"]) * size / (size - 1), kwargs["momentum"])
        return _WholeBatchNorm.apply(x, weight, bias, mean, r)
