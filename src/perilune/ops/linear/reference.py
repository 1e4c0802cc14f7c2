"""y = x W^T with dense or packed weights, in plain torch.

Row rule: a row's bits must not depend on how many rows are in the batch, or batched = alone would not hold. BLAS
libraries switch kernels for a handful of rows (measured with MKL on AVX2: 1, 2, 3, 5 and 7 rows differ from the
rest), so in fp32 the rows are padded to a multiple of eight. `tests/ops` checks the rule on the host it runs on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from perilune.ops.linear.formats import Weight

ROW_MULTIPLE = 8


def pad_rows(x: Tensor) -> Tensor:
    """x [..., M, K] -> [..., M', K], M' the next multiple of eight, zeros below; a no-op outside fp32."""
    missing = -x.shape[-2] % ROW_MULTIPLE
    if missing == 0 or x.dtype != torch.float32:
        return x
    return F.pad(x, (0, 0, 0, missing))


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x [T, K] times weight [N, K] transposed -> [T, N] in x's dtype. Packed weights are unpacked for the call."""
    return F.linear(pad_rows(x), weight.dequantise(x.dtype))[: x.shape[0]]


def linear_fp32(x: Tensor, weight: Tensor) -> Tensor:
    """The same in fp32 whatever the inputs are: routers and gates whose precision decides the result."""
    return F.linear(pad_rows(x.float()), weight.float())[: x.shape[0]]
