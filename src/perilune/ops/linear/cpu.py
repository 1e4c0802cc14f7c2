"""y = x W^T in C++, for bf16 activations and every format, in strips or as stored: `csrc/linear.h`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from perilune.ops.linear.formats import TiledWeight, Weight, tile
from perilune.ops.native import BF16, Native, address

_SWAPS = {None: 0, (1, 1): 0, (2, 2): 1, (4, 2): 2}  # `Swap` in csrc/kernels.h


def prepare(native: Native, weight: Weight) -> Weight:
    """`weight` in strips if it can be, rearranged in place, with its handle: what the kernels are fastest with."""
    tiled = tile(weight, partial(interleave, native))
    return replace(tiled, handle=native.weight(tiled)) if isinstance(tiled, TiledWeight) else tiled


def interleave(native: Native, tensor: Tensor, swap: tuple[int, int] | None) -> None:
    """As `strips.interleave`. Raises KernelInputError."""
    *rows, columns = tensor.shape
    native.kernels.strips(
        address(tensor, tensor.dtype, *tensor.shape, name="a part of a weight"),
        math.prod(rows),
        columns * tensor.itemsize,
        4 if swap else tensor.itemsize,
        _SWAPS[swap],
        native.threads,
    )


def linear(native: Native, x: Tensor, weight: Weight) -> Tensor:
    """As the reference: x [T, K] -> [T, N] bf16. Raises KernelInputError."""
    return linears(native, x, [[weight]])[0]


def linears(native: Native, x: Tensor, groups: Sequence[Sequence[Weight]]) -> list[Tensor]:
    """As the reference: x [T, K] -> [T, sum of N] bf16 per group. Reads x once. Raises KernelInputError."""
    x = native.dense(x)
    tokens, inputs = x.shape[0], groups[0][0].shape[-1]
    outs, handles, places, steps = [], [], [], []
    for group in groups:
        width = sum(weight.shape[-2] for weight in group)
        out = native.empty(tokens, width)
        place = out.data_ptr()
        for weight in group:
            handles.append(native.weight(weight))
            places.append(place)
            steps.append(width)
            place += weight.shape[-2] * BF16.itemsize
        outs.append(out)
    native.kernels.linear(
        native.address(x, BF16, tokens, inputs, name="x"), tokens, inputs, handles, places, steps, native.threads
    )
    return outs
