"""Random weights, made where they are used: nothing of a 25 GB model touches a disk or the host's memory."""

from __future__ import annotations

from typing import Any

import torch
from peers.slices import BYTES, CODES_STD
from torch import Tensor

from perilune.ops.gpu import cases
from perilune.ops.linear.formats import (
    DenseWeight,
    Fp8BlockWeight,
    Int4Weight,
    Int8Weight,
    Mxfp4Weight,
    StoredWeight,
    Weight,
)

AT_ONCE = 1 << 26  # bytes drawn at a time: an index is eight times what it picks
_INT8_STD = 73.6  # of whole numbers drawn evenly from -127 to 127
_MXFP4_STD = 2.9  # of its sixteen values drawn evenly


def weight(form: str, device: torch.device, *shape: int) -> StoredWeight:
    """A random weight [N, K] or [E, N, K] of a format that `ops.gpu.cases` names."""
    empty: Any = cases.weight(form, *shape).map(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device))
    randomise(empty)
    return empty


def randomise(weight: Weight) -> None:
    """Fill a weight so that outputs have about the variance of inputs."""
    even = weight.shape[-1] ** -0.5
    if isinstance(weight, DenseWeight):
        weight.data.normal_(0, even)
    elif isinstance(weight, Int4Weight):
        _codes(weight.packed)
        weight.scale.uniform_(0.75 * even / CODES_STD, 1.25 * even / CODES_STD)
        if weight.zero is not None:
            weight.zero.random_(-1, 2)
    elif isinstance(weight, Mxfp4Weight):
        weight.packed.random_(0, 256)
        weight.scale.fill_(127 + round(torch.tensor(even / _MXFP4_STD).log2().item()))
    elif isinstance(weight, Int8Weight):
        weight.data.random_(-127, 128)
        weight.scale.fill_(even / _INT8_STD)
    else:
        assert isinstance(weight, Fp8BlockWeight), type(weight)
        for part in weight.data.view(-1).split(AT_ONCE):
            part.copy_(torch.randn(part.shape, device=part.device))
        weight.scale_inv.fill_(even)


def _codes(packed: Tensor) -> None:
    """Pairs of 4-bit codes, bell-shaped as those of quantised weights are."""
    table = torch.from_numpy(BYTES).to(packed.device)
    for part in packed.view(-1).view(torch.uint8).split(AT_ONCE):
        part.copy_(table[torch.randint(256, part.shape, device=packed.device)])
