"""y = x W^T in C++, for bf16 activations and every packed format: `csrc/linear.h`."""

from __future__ import annotations

import torch
from torch import Tensor

from perilune.ops.linear.formats import DenseWeight, Weight
from perilune.ops.native import BF16, Native, address

# Dense products of this many rows go to torch where its bf16 product runs on bf16 instructions (measured: log.md).
DENSE_ROWS_FOR_TORCH = 32


def linear(native: Native, x: Tensor, weight: Weight) -> Tensor:
    """As the reference: x [T, K] -> [T, N] bf16. Raises KernelInputError."""
    n, k = weight.shape
    if isinstance(weight, DenseWeight) and x.shape[0] >= DENSE_ROWS_FOR_TORCH and native.torch_has_fast_bf16:
        return torch.nn.functional.linear(x, weight.data)
    x = x.contiguous()
    tokens = x.shape[0]
    out = torch.empty(tokens, n, dtype=BF16)
    native.kernels.linear(
        address(x, BF16, tokens, k, name="x"), tokens, native.weight(weight), out.data_ptr(), native.threads
    )
    return out
