"""The row rule: in fp32, a row's bits must not depend on which or how many other rows are in the batch.

batched = alone and chunked = whole rest on it. Three habits of torch on a CPU break it, and each has its answer here:
* BLAS picks other kernels for a handful of rows (measured with MKL on AVX2: 1, 2, 3, 5 and 7 rows): `pad_rows`;
* elementwise functions run in vectors, the rest of the array in scalar code that rounds otherwise: `pointwise`;
* a sum over a few values changes its order with the number of rows: `sum_last`.
`tests/ops/test_rows.py` checks the rule on the host it runs on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ROW_MULTIPLE = 8
LANES = 64  # two of the widest vectors in use (AVX-512, fp32): torch's elementwise loops take two at a time


def pad_rows(x: Tensor) -> Tensor:
    """x [..., M, K] -> [..., M', K], M' the next multiple of eight, zeros below; a no-op outside fp32."""
    missing = -x.shape[-2] % ROW_MULTIPLE
    if missing == 0 or x.dtype != torch.float32:
        return x
    return F.pad(x, (0, 0, 0, missing))


def pointwise(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function` applied to every value of x, with no value left over for the scalar tail. Contiguous result."""
    flat = x.reshape(-1)
    missing = -flat.shape[0] % LANES
    if missing == 0:
        return function(flat).view(x.shape)
    return function(F.pad(flat, (0, missing)))[: flat.shape[0]].view(x.shape)


def sum_last(x: Tensor) -> Tensor:
    """Sum over a short last dim, first to last: [..., n] -> [...]."""
    total = x[..., 0]
    for i in range(1, x.shape[-1]):
        total = total + x[..., i]
    return total
