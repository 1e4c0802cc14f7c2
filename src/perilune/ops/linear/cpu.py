"""y = x W^T in C++, for bf16 activations and every format, in strips or as stored: `csrc/linear.h`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from perilune.ops.linear.formats import TiledWeight, Weight, tile
from perilune.ops.native import BF16, Native, address


def prepare(native: Native, weight: Weight) -> Weight:
    """`weight` in strips if it can be, rearranged in place, with its handle: what the kernels are fastest with."""
    tiled = tile(weight)
    return replace(tiled, handle=native.weight(tiled)) if isinstance(tiled, TiledWeight) else tiled


def linear(native: Native, x: Tensor, weight: Weight) -> Tensor:
    """As the reference: x [T, K] -> [T, N] bf16. Raises KernelInputError."""
    n, k = weight.shape
    x = x.contiguous()
    tokens = x.shape[0]
    out = torch.empty(tokens, n, dtype=BF16)
    native.kernels.linear(
        address(x, BF16, tokens, k, name="x"), tokens, native.weight(weight), out.data_ptr(), native.threads
    )
    return out
