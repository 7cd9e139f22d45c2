"""One forward-mode pass through a network: z and z_dot = J_z(theta) v, reusing what a pass at the same theta has computed.

Then only tangents are computed: two operations of its kind for a convolution or linear map (product rule), three for BatchNorm, a
lookup for max-pool. Any other operation uses torch's own forward mode.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad as fwAD
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from metaug_core.errors import MetaugError
from metaug_core.runtime import distributed

with warnings.catch_warnings():  # the first jvp loads torch's scripted decompositions, which warn of their deprecation
    warnings.simplefilter("ignore", FutureWarning)
    import torch._decomp.decompositions_for_jvp

Params = dict[str, Tensor]
RECORDED = (torch.conv2d, F.linear, F.batch_norm, F.max_pool2d)
SAVED = {  # what autograd's node of an operation keeps of its results; on a device with another kind of node: nothing
    F.batch_norm: ("_saved_result1", "_saved_result2"),
    F.max_pool2d: ("_saved_result1",),
}
MIN_MULTIPLICATIONS = 256  # per output: a cheaper product is computed again instead of held in memory


class Record(NamedTuple):
    """The result of one operation of a recorded pass: the output of a product, mean and 1/std of a BatchNorm, whose output is
    cheaper to compute again than to hold, or where the maxima of a pool are."""

    func: Callable
    tensors: tuple[Tensor, ...]
    versions: tuple[int, ...]

    def fits(self, func: Callable, shape: torch.Size) -> bool:
        """Whether the record is of this operation and shape, and no in-place operation has changed it since."""
        return (
            func is self.func
            and all(t._version == version for t, version in zip(self.tensors, self.versions, strict=True))
            and all(t.shape == shape for t in self.tensors)
        )


class Recorder(TorchFunctionMode):
    """Context manager: records a pass (with its graph) for `tangent`."""

    def __init__(self):
        super().__init__()
        self.records: list[Record | None] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in RECORDED:
            tensors: tuple[Any, ...]
            if func in SAVED:
                tensors = tuple(getattr(getattr(out, "grad_fn", None), name, None) for name in SAVED[func])
                keep = None not in tensors
            else:
                tensors = (out.detach(),)
                keep = args[1][0].numel() >= MIN_MULTIPLICATIONS
            self.records.append(Record(func, tensors, tuple(t._version for t in tensors)) if keep else None)
        return out


class Tangents(TorchFunctionMode):
    """Context manager: operations take their primal values from the records; what does not fit is computed again."""

    def __init__(self, recorded: Recorder | None):
        super().__init__()
        self.records = iter(recorded.records if recorded else ())

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        record = next(self.records, None) if func in RECORDED else None
        if func in (torch.conv2d, F.linear) and not kwargs:
            return _product(record, func, *args)
        weight, bias, eps = (kwargs.get(name) for name in ("weight", "bias", "eps"))
        if (
            func is F.batch_norm
            and args[1:] == (None, None)
            and weight is not None
            and bias is not None
            and eps is not None
        ):
            return _batch_norm(record, args[0], weight, bias, eps)
        if func is F.max_pool2d and record is not None and _is_channels_last(record.tensors[0]):
            return _max_pool(record, args[0], func, *args[1:], **kwargs)
        return func(*args, **kwargs)


def _product(record: Record | None, func: Callable, x: Tensor, weight: Tensor, bias: Tensor | None = None, *how: Any):
    """Convolution or linear map: f(x, w)_dot = f(x, w_dot) + f(x_dot, w)."""
    if fwAD.unpack_dual(weight).tangent is None:  # frozen, or not a weight
        return func(x, weight, bias, *how)
    (x, x_dot), (weight, weight_dot) = fwAD.unpack_dual(x), fwAD.unpack_dual(weight)
    bias, bias_dot = fwAD.unpack_dual(bias) if bias is not None else (None, None)
    tangent = func(x, weight_dot, bias_dot, *how)
    if x_dot is not None:
        tangent += func(x_dot, weight, None, *how)
    fits = record is not None and record.fits(func, tangent.shape)
    return fwAD.make_dual(record.tensors[0] if record and fits else func(x, weight, bias, *how), tangent)


def _batch_norm(record: Record | None, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """BatchNorm by batch statistics of x (B, C, ...). torch's own tangent takes over ten passes over memory.

    With u = (x - m) r, y = w u + b. So y_dot = w r (x_dot - mean(x_dot) - u mean(x_dot u)) + w_dot u + b_dot, means per channel.
    The first part is BatchNorm's own backward, applied to x_dot: the derivative by x is symmetric. The rest is a BatchNorm of x
    with other weights.
    """
    (x, x_dot), (weight, w_dot), (bias, b_dot) = (fwAD.unpack_dual(t) for t in (x, weight, bias))
    if record is not None and record.fits(F.batch_norm, weight.shape):
        mean, r = record.tensors
    else:
        mean, r = distributed.moments(x, eps)
    variance = r.pow(-2)  # with eps

    def normalise(w: Tensor, b: Tensor | None) -> Tensor:
        # F.batch_norm of torch 2.11 refuses eps 0.
        return torch.batch_norm(x, w, b, mean, variance, False, 0.0, 0.0, False)

    y_dot = None
    if w_dot is not None or b_dot is not None:
        y_dot = normalise(torch.zeros_like(weight) if w_dot is None else w_dot, b_dot)
    if x_dot is not None:
        along = distributed.batch_norm_along(x_dot, x, weight, mean, r)
        y_dot = along if y_dot is None else along.add_(y_dot)
    y = normalise(weight, bias)
    return y if y_dot is None else fwAD.make_dual(y, y_dot)


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _max_pool(record: Record, x: Tensor, func: Callable, *how: Any, **named: Any) -> Tensor:
    """Max-pool of x (B, C, H, W): values and tangents stand where the recorded pass found the maxima."""
    x, x_dot = fwAD.unpack_dual(x)
    (places,) = record.tensors  # (B, C, h, w), numbers of points of a map (H, W)
    if x_dot is None or not (record.fits(func, places.shape) and _is_channels_last(x) and _is_channels_last(x_dot)):
        return func(x if x_dot is None else fwAD.make_dual(x, x_dot), *how, **named)
    rows = places.permute(0, 2, 3, 1)  # channels last: a view, not a copy

    def take(values: Tensor) -> Tensor:
        points = values.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H W, C)
        return points.gather(1, rows.flatten(1, 2)).view(rows.shape).permute(0, 3, 1, 2)

    return fwAD.make_dual(take(x), take(x_dot))


def tangent(
    features: Callable[[Params], Tensor], theta: Params, direction: Params, recorded: Recorder | None = None
) -> tuple[Tensor, Tensor]:
    """z and z_dot = J_z(theta) direction. With the record of a pass at theta only the tangents are computed.

    features must not write BatchNorm statistics (`frozen_statistics`): forward mode fails on a BatchNorm that does. Raises
    MetaugError if z has no tangent: an operation has dropped it, which is not the same as a derivative of 0.
    """
    with torch.no_grad(), fwAD.dual_level(), Tangents(recorded):
        dual = features({name: fwAD.make_dual(p.detach(), direction[name]) for name, p in theta.items()})
        z, z_dot = fwAD.unpack_dual(dual)
        if z_dot is None:
            raise MetaugError("the features have no tangent: an operation of the networks drops it (detach, no_grad)")
        return z, z_dot


def reverse_tangent(
    features: Callable[[Params], Tensor], theta: Params, direction: Params, recorded: Recorder | None = None
) -> tuple[Tensor, Tensor]:
    """`tangent` by two backward passes, for a network with an operation that has no forward mode.

    The first backward, J^T u, is linear in u, so that its own backward along direction is J direction. recorded is accepted for
    the same signature and not used.
    """
    del recorded
    leaves = {name: p.detach().requires_grad_() for name, p in theta.items()}
    z = features(leaves)
    u = torch.zeros_like(z, requires_grad=True)
    backward = torch.autograd.grad(z, [*leaves.values()], u, create_graph=True, allow_unused=True)
    depends = [
        (g, direction[name]) for name, g in zip(leaves, backward, strict=True) if g is not None and g.requires_grad
    ]
    if not depends:
        return z.detach(), torch.zeros_like(z)
    outputs, directions = zip(*depends, strict=True)
    (z_dot,) = torch.autograd.grad(outputs, u, directions, materialize_grads=True, allow_unused=True)
    return z.detach(), z_dot.detach()


@contextmanager
def frozen_statistics(*modules: nn.Module | None) -> Iterator[None]:
    """Context manager: BatchNorm in training mode normalises by batch statistics and does not update its running ones, as
    look-ahead and tangent passes must. One in evaluation mode (frozen) uses its running ones, here as elsewhere."""
    norms = [m for module in modules if module for m in module.modules() if isinstance(m, _NormBase) and m.training]
    before = [norm.track_running_stats for norm in norms]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm, tracked in zip(norms, before, strict=True):
            norm.track_running_stats = tracked
