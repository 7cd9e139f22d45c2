"""Parts of a captured step side by side: each on a CUDA stream of its own, forked from the current one and joined to it again."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
_forked: list["torch.cuda.Stream"] = []  # where the fork began that we are in


def side_by_side(branches: Sequence[Callable[[], T]], forked: bool) -> list[T]:
    """What each of these gives. forked: on streams of their own, for use while a CUDA graph is captured; else one after another.

    Their backward is forked as well: autograd runs an operation's backward on the stream of its forward, and orders streams where a
    gradient passes between them. A branch of a branch is not forked: streams come from a pool of 32, so that branches of two trials
    could get one stream, and with it each other's freed memory too early.
    """
    if not forked or _forked or len(branches) == 1:
        return [branch() for branch in branches]
    here, found = torch.cuda.current_stream(), []
    streams = [torch.cuda.Stream() for _ in branches]
    _forked.append(here)
    try:
        for stream, branch in zip(streams, branches, strict=True):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                found.append(branch())
    finally:
        _forked.remove(here)
    for stream, out in zip(streams, found, strict=True):
        here.wait_stream(stream)
        if isinstance(out, Tensor):  # its memory is the branch's, which may not have it back before `here` has read it
            out.record_stream(here)
    return found
