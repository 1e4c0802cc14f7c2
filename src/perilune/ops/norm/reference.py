"""RMSNorm in plain torch, and the sum it follows."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x * rsqrt(mean x^2 + eps) in fp32, cast to x's dtype, then times weight. x [..., D], weight [D]."""
    wide = x.float()
    return (wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def add_norm(x: Tensor, part: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + part, which may be where x was, and its RMSNorm. x and part [..., D], weight [D]."""
    total = x + part
    return total, rms_norm(total, weight, eps)
