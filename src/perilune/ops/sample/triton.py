"""Sampling in Triton: `kernels.py`. All rows of a step at once, a program each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from perilune.ops.gpu.launch import Gpu
from perilune.ops.sample import kernels
from perilune.ops.sample.reference import Choice, Sampling


def sampling(gpu: Gpu) -> Sampling:
    """Every function of the reference, on `gpu`."""
    return Sampling(partial(penalise, gpu), greedy, partial(choose, gpu))


def penalise(
    gpu: Gpu, logits: Tensor, seen: Tensor, counts: Tensor, *, repetition: float, presence: float, frequency: float
) -> Tensor:
    """As the reference: logits and counts [V] fp32, seen [V] bool -> [V]."""
    out, tile, (size,) = torch.empty_like(logits), gpu.tile("sample"), logits.shape
    grid = (1, -(-size // tile.blocks["BLOCK"]))
    tensors = (logits, seen.view(torch.uint8), counts, out)
    gpu.launch(kernels.penalise, grid, *tensors, size, float(repetition), float(presence), float(frequency), tile=tile)
    return out


def greedy(rows: Sequence[Tensor]) -> list[int]:
    """As the reference. Waits for the GPU."""
    found: list[int] = torch.stack(list(rows)).argmax(-1).tolist()
    return found


def choose(gpu: Gpu, rows: Sequence[Tensor], choices: Sequence[Choice]) -> list[int]:
    """As the reference. Waits for the GPU."""
    logits = torch.stack(list(rows))
    settings = asked(choices, logits.device)
    if any(choice.truncates for choice in choices):
        logits = truncate(gpu, logits, settings)
    found: list[int] = draw(gpu, logits, settings).tolist()
    return found


def truncate(gpu: Gpu, logits: Tensor, settings: Tensor) -> Tensor:
    """As the reference, row by row: [n, V] fp32 -> [n, V], -inf where a token is left out."""
    out, (count, size) = torch.empty_like(logits), logits.shape
    gpu.launch(kernels.truncate, (count,), logits, settings, out, size, tile=gpu.tile("truncate"))
    return out


def draw(gpu: Gpu, logits: Tensor, settings: Tensor) -> Tensor:
    """As the reference, row by row: [n, V] fp32 -> [n] int64."""
    count, size = logits.shape
    out = torch.empty(count, dtype=torch.int64, device=logits.device)
    gpu.launch(kernels.draw, (count,), logits, settings, out, size, tile=gpu.tile("sample"))
    return out


def asked(choices: Sequence[Choice], device: torch.device) -> Tensor:
    """One row [top_k, top_p, min_p, u] per choice, fp64."""
    host = torch.tensor([tuple(choice) for choice in choices], dtype=torch.float64, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)
