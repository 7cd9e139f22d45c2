"""The number format of products: torch's switches set for a run's `precision`, and what that format rounds away."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# torch's newer switches, one for each library and operation. The older ones (`allow_tf32`) are neither read nor written: torch
# refuses to read them wherever the newer ones say what they cannot express.
backends: Any = torch.backends
CUDA = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
CPU = (backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul)

# Half the distance from 1 to the next number: 24, 11 and 8 bits of significand, the leading one included.
UNIT_ROUNDOFF = {"float32": 2.0**-24, "tf32": 2.0**-11, "bf16": 2.0**-8}


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Within, products of float32 tensors are computed as the setting `precision` says, whatever the user's own switches are; these
    stand again afterwards. tf32 is another format than float32 on CUDA only. bf16 is an autocast in the encoders; all else is then
    float32."""
    wanted = {switch: "tf32" if precision == "tf32" else "ieee" for switch in CUDA} | dict.fromkeys(CPU, "ieee")
    before = {switch: switch.fp32_precision for switch in wanted}
    try:
        for switch, value in wanted.items():
            switch.fp32_precision = value
        yield
    finally:
        for switch, value in before.items():
            switch.fp32_precision = value


def computed_in(precision: str, device: str) -> str:
    """The format of the encoders' products in a run with this setting on this kind of device."""
    return "float32" if precision == "tf32" and device != "cuda" else precision


def unit_roundoff(precision: str, device: str) -> float:
    """The relative error of rounding an operand of the encoders' products: a part of their gradient that is a smaller share than
    this is mostly lost when the sum goes into the next product."""
    return UNIT_ROUNDOFF[computed_in(precision, device)]
