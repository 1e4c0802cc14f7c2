"""Device helpers that read the same compiled and interpreted.

Triton 3.9's interpreter keeps bfloat16 as bit patterns: it multiplies them as integers, and it truncates where a GPU
rounds to nearest even. `wide`, `narrow` and `dot` say what is meant in both worlds. Compiled, each is one operation.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def wide(x):
    """bf16 -> fp32; fp32 as it is."""
    if x.dtype == tl.float32:
        return x
    elif INTERPRETED:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def narrow(x):
    """fp32 -> bf16, to nearest even."""
    if INTERPRETED:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(tl.bfloat16)


@triton.jit
def rounded(x):
    """fp32 -> bf16 -> fp32: what a tensor of bf16 in between would have kept."""
    return wide(narrow(x))


@triton.jit
def store(at, x, mask):
    """Store fp32 values as the pointer's type."""
    if at.dtype.element_ty == tl.bfloat16:
        tl.store(at, narrow(x), mask=mask)
    else:
        tl.store(at, x, mask=mask)


@triton.jit
def dot(a, b, acc):
    """acc + a b: bf16 products, fp32 sums."""
    if INTERPRETED:
        return tl.dot(wide(a), wide(b), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc)


@triton.jit
def dot_halves(a, b, acc):
    """acc + a b for bf16 a and fp32 b: b enters as the sum of two bf16 values, which keep 16 of its 24 bits."""
    high = narrow(b)
    return dot(a, narrow(b - wide(high)), dot(a, high, acc))


@triton.jit
def silu(x):
    return x * tl.sigmoid(x)
