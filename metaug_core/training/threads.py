"""How many threads a run takes on a CPU: one where a second gains little, and costs much as soon as anything else runs.

Sums depend on the number of threads, so the rule knows the run's config and nothing of the moment. `benchmarks/threads.py` measures
what it must know.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from metaug_core.config import Config
from metaug_core.networks.encoders import build_encoder
from metaug_core.registry import ENCODERS, VIEWS

LEAST_FLOPS = 20e6  # of an image in an encoder; below it a second thread gains little (LOG, 29 November)
LARGE_IMAGES = 128  # pixels per side; from here on the views alone are worth two threads


def count_threads(config: Config, device: str) -> int:
    """How many threads the steps of a run take: one on a CPU if its encoders are small, else torch's own number.

    An encoder of the user's own takes torch's own number: what it may be called with is not known here.
    """
    threads = torch.get_num_threads()
    if device != "cpu" or threads == 1 or config.image_size >= LARGE_IMAGES or ENCODERS.added(config.encoder):
        return threads
    return threads if count_flops(config) >= LEAST_FLOPS else 1


def count_flops(config: Config) -> float:
    """Two for each multiplication that an image takes in an encoder of the package, forward; the mean over distinct views."""
    size, flops = config.image_size, []
    for name in set(config.views):
        channels = VIEWS[name].channels
        with torch.device("meta"), torch.no_grad():  # shapes alone: nothing is drawn or computed
            encoder, image = build_encoder(channels, config).eval(), torch.empty(1, channels, size, size)
            with _Count() as count:
                encoder(image)
        flops.append(count.flops)
    return sum(flops) / len(flops)


class _Count(TorchDispatchMode):
    """FLOPs of products and convolutions, by torch's formulas. torch's FlopCounterMode takes a hundred times as long."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out
