"""Angles of the rotary embedding over pairs, with optional YaRN. fp32. What turns by them is in `ops/mla/reference.py`.

YaRN (arXiv 2309.00071), for pair i of dim/2: theta_i = base^(-2i/dim);
    low  = floor(dim ln(original / (beta_fast 2 pi)) / (2 ln base)), high = ceil(same with beta_slow)
    r = clamp((i - low) / (high - low), 0, 1);  inv_freq = theta_i (1 - r) + theta_i / factor * r
and cos and sin are scaled by mscale(mscale) / mscale(mscale_all_dim).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from perilune.models.spec import RopeSpec, YarnSpec
from perilune.ops.rows import pointwise


def inverse_frequencies(rope: RopeSpec) -> Tensor:
    """[dim / 2] fp32, radians per position, on the CPU."""
    theta = 1.0 / rope.theta ** (torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim)
    yarn = rope.yarn
    if yarn is None:
        return theta
    low, high = (_yarn_bound(rope, yarn, beta) for beta in (yarn.beta_fast, yarn.beta_slow))
    low, high = max(math.floor(low), 0), min(math.ceil(high), rope.dim - 1)
    span = max(high - low, 0.001)
    ramp = ((torch.arange(rope.dim // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
    return theta * (1 - ramp) + theta / yarn.factor * ramp


def _yarn_bound(rope: RopeSpec, yarn: YarnSpec, beta: float) -> float:
    return rope.dim * math.log(yarn.original_context / (beta * 2 * math.pi)) / (2 * math.log(rope.theta))


def rotation(rope: RopeSpec, inv_freq: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [T, dim / 2] for positions [T]."""
    angle = positions.float()[:, None] * inv_freq
    scale = 1.0
    if rope.yarn is not None and rope.yarn.factor > 1:
        scale = _mscale(rope.yarn, rope.yarn.mscale) / _mscale(rope.yarn, rope.yarn.mscale_all_dim)
    return pointwise(torch.cos, angle) * scale, pointwise(torch.sin, angle) * scale


def _mscale(yarn: YarnSpec, mscale: float) -> float:
    return 0.1 * mscale * math.log(yarn.factor) + 1.0 if mscale else 1.0
