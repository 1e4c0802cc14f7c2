"""Sampling in Triton: `kernels.py`. One row at a time, as the reference; the kernels take any number."""

from __future__ import annotations

import torch
from torch import Tensor

from perilune.ops.gpu.launch import Gpu
from perilune.ops.sample import kernels


def penalise(
    gpu: Gpu, logits: Tensor, seen: Tensor, counts: Tensor, *, repetition: float, presence: float, frequency: float
) -> Tensor:
    """As the reference: logits and counts [V] fp32, seen [V] bool -> [V]."""
    out, tile, (size,) = torch.empty_like(logits), gpu.tile("sample"), logits.shape
    grid = (1, -(-size // tile.blocks["BLOCK"]))
    tensors = (logits, seen.view(torch.uint8), counts, out)
    gpu.launch(kernels.penalise, grid, *tensors, size, float(repetition), float(presence), float(frequency), tile=tile)
    return out


def truncate(gpu: Gpu, logits: Tensor, *, top_k: int, top_p: float, min_p: float) -> Tensor:
    """As the reference: [V] fp32 -> [V], -inf where a token is left out."""
    (size,) = logits.shape
    top_k = top_k if top_k < size else 0
    if top_k <= 0 and top_p >= 1.0 and min_p <= 0.0:
        return logits
    out = torch.empty_like(logits)
    limits = (max(top_k, 0), float(top_p), float(min_p))
    gpu.launch(kernels.truncate, (1,), logits, out, size, *limits, tile=gpu.tile("sample"))
    return out


def draw(gpu: Gpu, logits: Tensor, u: float) -> int:
    """As the reference: [V] fp32, finite or -inf, and u in [0, 1) -> a token. Waits for the GPU."""
    token = torch.empty(1, dtype=torch.int64, device=logits.device)
    uniform = torch.full((1,), u, dtype=torch.float64, device=logits.device)
    gpu.launch(kernels.draw, (1,), logits, uniform, token, logits.shape[0], tile=gpu.tile("sample"))
    return int(token) if token.device.type != "meta" else 0
