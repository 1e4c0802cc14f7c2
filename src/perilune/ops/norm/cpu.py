"""RMSNorm in C++: `csrc/norm.h`."""

from __future__ import annotations

import torch
from torch import Tensor

from perilune.ops.native import BF16, Native, address


def rms_norm(native: Native, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As the reference: x [..., D] and weight [D] bf16 -> bf16. Raises KernelInputError."""
    x = x.contiguous()
    dim = x.shape[-1]
    out = torch.empty_like(x)
    native.kernels.rms_norm(
        address(x, BF16, *x.shape, name="x"),
        address(weight, BF16, dim, name="weight"),
        x.numel() // dim,
        dim,
        eps,
        out.data_ptr(),
        native.threads,
    )
    return out
