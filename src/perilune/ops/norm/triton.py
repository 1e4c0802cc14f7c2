"""RMSNorm in Triton: `kernels.py`."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from perilune.ops.gpu.launch import Gpu
from perilune.ops.norm import kernels


def rms_norm(gpu: Gpu, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As the reference: x [..., D] and weight [D] bf16 -> bf16."""
    dim = x.shape[-1]
    rows = x.reshape(-1, dim) if x.stride(-1) == 1 else x.contiguous().view(-1, dim)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if rows.shape[0]:
        gpu.launch(
            kernels.rms_norm,
            (rows.shape[0],),
            *(rows, weight, out, rows.stride(0), dim, eps),
            tile=gpu.tile("rms_norm"),
            DIM=triton.next_power_of_2(dim),
        )
    return out


def add_norm(gpu: Gpu, x: Tensor, part: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As the reference, x changed in place."""
    x += part
    return x, rms_norm(gpu, x, weight, eps)
