"""RMSNorm on a GPU: one program per row."""

from __future__ import annotations

import triton
import triton.language as tl

from perilune.ops.gpu.language import rounded, store, wide


@triton.jit(do_not_specialize=["x_row"])
def rms_norm(x, weight, out, x_row, dim, eps, DIM: tl.constexpr):
    """out[row] = bf16(x * rsqrt(mean x^2 + eps)) * weight; DIM is `dim` up to a power of two."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, DIM)
    inside = at < dim
    values = wide(tl.load(x + row * x_row + at, mask=inside, other=0.0))
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / dim + eps)
    normed = rounded(values * scale) * wide(tl.load(weight + at, mask=inside, other=0.0))
    store(out + row * dim + at, normed, inside)
