"""One forward-mode pass through a network: z and z_dot = J_z(theta) v, reusing what a pass at the same theta has computed.

Only tangents are new then: for a convolution or linear map two of its kind (product rule), for BatchNorm four passes over
memory, for max-pool one gathering. Any other operation takes torch's own forward mode.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad as fwAD
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from metaug_core.runtime import distributed

with (
    warnings.catch_warnings()
):  # the first jvp loads torch's own scripted decompositions, which warn that scripting is deprecated
    warnings.simplefilter("ignore", FutureWarning)
    import torch._decomp.decompositions_for_jvp

Params = dict[str, Tensor]
RECORDED = (torch.conv2d, F.linear, F.batch_norm)
WORTH_KEEPING = 256  # multiplications per output: a cheaper product is computed again instead of held in memory


class Record(NamedTuple):
    """What one operation of a recorded pass leaves: the output of a product, or mean and 1/std of a BatchNorm (its output is
    cheaper to scale again than to hold)."""

    func: Callable
    kept: tuple[Tensor, ...]
    versions: tuple[int, ...]

    def fits(self, func: Callable, shape: torch.Size) -> bool:
        """Whether it is of this operation, of this shape, and no in-place operation has changed it since."""
        return (
            func is self.func
            and all(t._version == version for t, version in zip(self.kept, self.versions, strict=True))
            and all(t.shape == shape for t in self.kept)
        )


class Recorded(TorchFunctionMode):
    """Within, a pass (with its graph) is recorded for `tangent`."""

    def __init__(self):
        super().__init__()
        self.records: list[Record | None] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in RECORDED:
            kept: tuple[Any, ...] = (out.detach(),)
            if func is F.batch_norm:  # autograd has them; on a device without this kind of node they are computed again
                kept = tuple(getattr(out.grad_fn, name, None) for name in ("_saved_result1", "_saved_result2"))
            worth = None not in kept if func is F.batch_norm else args[1][0].numel() >= WORTH_KEEPING
            self.records.append(Record(func, kept, tuple(t._version for t in kept)) if worth else None)
        return out


class Tangents(TorchFunctionMode):
    """Within a dual level, operations take their primal value from the records; what does not fit is computed again."""

    def __init__(self, recorded: Recorded | None):
        super().__init__()
        self.records = iter(recorded.records if recorded else ())

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        record = next(self.records, None) if func in RECORDED else None
        if func in (torch.conv2d, F.linear) and not kwargs:
            return _product(record, func, *args)
        if func is F.batch_norm and args[1] is None and None not in (kwargs.get("weight"), kwargs.get("bias")):
            return _batch_norm(record, args[0], kwargs["weight"], kwargs["bias"], kwargs["eps"])
        if func is F.max_pool2d and args[0].dim() == 4 and args[0].is_contiguous(memory_format=torch.channels_last):
            return _max_pool(args[0], kwargs, *args[1:])
        return func(*args, **kwargs)


def _product(record: Record | None, func: Callable, x: Tensor, weight: Tensor, bias: Tensor | None = None, *how: Any):
    """A convolution or linear map: f(x, w)_dot = f(x, w_dot) + f(x_dot, w)."""
    (x, x_dot), (weight, weight_dot) = fwAD.unpack_dual(x), fwAD.unpack_dual(weight)
    bias, bias_dot = fwAD.unpack_dual(bias) if bias is not None else (None, None)
    if weight_dot is None:
        return func(x if x_dot is None else fwAD.make_dual(x, x_dot), weight, bias, *how)
    tangent = func(x, weight_dot, bias_dot, *how)
    if x_dot is not None:
        tangent += func(x_dot, weight, None, *how)
    fits = record is not None and record.fits(func, tangent.shape)
    return fwAD.make_dual(record.kept[0] if record and fits else func(x, weight, bias, *how), tangent)


def _batch_norm(record: Record | None, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """BatchNorm by batch statistics of x (B, C, ...), in four passes over memory; torch's own takes over ten.

    With u = (x - m) r, y = w u + b. So y_dot = w r (x_dot - mean(x_dot)) + t u + b_dot with t = w_dot - w r mean(x_dot u): means by
    channel, which the backward of BatchNorm sums in one pass.
    """
    (x, x_dot), (weight, w_dot), (bias, b_dot) = (fwAD.unpack_dual(t) for t in (x, weight, bias))
    if record is not None and record.fits(F.batch_norm, weight.shape):
        mean, r = record.kept
    else:
        mean, r = distributed.moments(x, eps)
    scale, shift = weight * r, torch.zeros_like(r) if b_dot is None else b_dot
    t = torch.zeros_like(r) if w_dot is None else w_dot
    if x_dot is not None:
        along, level = distributed.mean_projections(x_dot, x, weight, mean, r)
        t, shift = t - scale * along, shift - scale * level
    constant, slope = distributed.per_channel(shift - t * r * mean, x), distributed.per_channel(t * r, x)
    y = torch.addcmul(distributed.per_channel(bias - scale * mean, x), x, distributed.per_channel(scale, x))
    if x_dot is None:
        return fwAD.make_dual(y, torch.addcmul(constant, x, slope))
    y_dot = torch.addcmul(constant, x_dot, distributed.per_channel(scale, x))
    return fwAD.make_dual(y, y_dot.addcmul_(x, slope))


def _max_pool(x: Tensor, how: Mapping[str, Any], *window: Any) -> Tensor:
    """Max-pool of x (B, C, H, W) in channels last. torch's own tangent is gathered across the channels, at three times the cost."""
    x, x_dot = fwAD.unpack_dual(x)
    y, places = F.max_pool2d(x, *window, **{**how, "return_indices": True})
    if x_dot is None:
        return y
    rows, places = (t.permute(0, 2, 3, 1).flatten(1, 2) for t in (x_dot, places))  # (B, H W, C), places counted in H W
    batch, channels, *sides = y.shape
    return fwAD.make_dual(y, rows.gather(1, places).view(batch, *sides, channels).permute(0, 3, 1, 2))


def tangent(
    features: Callable[[Params], Tensor], theta: Params, direction: Params, recorded: Recorded | None = None
) -> tuple[Tensor, Tensor]:
    """z and z_dot = J_z(theta) direction; with the record of a pass at theta only the tangents are new.

    features must not write BatchNorm statistics meanwhile (`frozen_statistics`): forward mode fails on a BatchNorm that does.
    """
    with torch.no_grad(), fwAD.dual_level(), Tangents(recorded):
        dual = features({name: fwAD.make_dual(p.detach(), direction[name]) for name, p in theta.items()})
        z, z_dot = fwAD.unpack_dual(dual)
        return z, torch.zeros_like(z) if z_dot is None else z_dot


@contextmanager
def frozen_statistics(*modules: nn.Module | None) -> Iterator[None]:
    """Within, BatchNorm in training mode normalises by batch statistics and leaves its running ones alone, as look-ahead and
    tangent passes must."""
    norms = [m for module in modules if module for m in module.modules() if isinstance(m, _NormBase)]
    before = [norm.track_running_stats for norm in norms]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm, tracked in zip(norms, before, strict=True):
            norm.track_running_stats = tracked
