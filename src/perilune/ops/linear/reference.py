"""y = x W^T with dense or packed weights, in plain torch. Keeps the row rule of `ops/rows.py`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from perilune.ops.linear.formats import Weight
from perilune.ops.rows import pad_rows


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x [T, K] times weight [N, K] transposed -> [T, N] in x's dtype. Packed weights are unpacked for the call."""
    return F.linear(pad_rows(x), weight.dequantise(x.dtype))[: x.shape[0]]


def linears(x: Tensor, groups: Sequence[Sequence[Weight]]) -> list[Tensor]:
    """x [T, K] times several matrices: for each group [T, sum of N], the products of its matrices side by side."""
    return [torch.cat([linear(x, weight) for weight in group], dim=-1) for group in groups]


def linear_fp32(x: Tensor, weight: Tensor) -> Tensor:
    """The same in fp32 whatever the inputs are: routers and gates whose precision decides the result."""
    return F.linear(pad_rows(x.float()), weight.float())[: x.shape[0]]
