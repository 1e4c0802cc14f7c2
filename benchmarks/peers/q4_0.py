"""Q4_0, llama.cpp's plain 4-bit form, from codes and factors. numpy alone.

A block is 18 bytes for 32 weights: an fp16 factor, and 16 bytes of which byte j holds code j low and code j + 16 high
(ggml-common.h); weight = (code - 8) * factor, as in compressed-tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
GROUP = 32
BLOCK_BYTES = 18


def unpack(packed: Array) -> Array:
    """uint8 [..., K / 2], the low nibble first -> codes uint8 [..., K]."""
    codes = np.empty((*packed.shape, 2), np.uint8)
    np.bitwise_and(packed, 15, out=codes[..., 0])
    np.right_shift(packed, 4, out=codes[..., 1])
    return codes.reshape(*packed.shape[:-1], -1)


def pack_q4_0(codes: Array, scales: Array) -> Array:
    """Codes uint8 [..., K] and factors fp16 [..., K / 32] -> Q4_0 blocks, uint8 [..., K / 32 * 18]."""
    blocks = codes.reshape(*scales.shape, 2, GROUP // 2)
    out = np.empty((*scales.shape, BLOCK_BYTES), np.uint8)
    out[..., :2] = scales[..., None].view(np.uint8)
    out[..., 2:] = blocks[..., 0, :] | blocks[..., 1, :] << 4
    return out.reshape(*scales.shape[:-1], -1)


def from_bf16(bits: Array) -> Array:
    """uint16 -> fp32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
