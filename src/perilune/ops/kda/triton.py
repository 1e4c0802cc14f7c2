"""KDA in Triton: `kernels.py`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from perilune.ops.gpu.launch import Gpu
from perilune.ops.kda import kernels
from perilune.ops.kda.reference import CHUNK, Parameters, Projections

TAPS = 4


def refuses(dim: int, taps: int = TAPS) -> str | None:
    """None if heads of this size can be served, else the reason."""
    if dim & (dim - 1) or not 16 <= dim <= 256:
        return f"a head dim of {dim} (needs a power of two from 16 to 256)"
    return None if taps == TAPS else f"a convolution of {taps} taps (needs {TAPS})"


def prefill(
    gpu: Gpu,
    x: Projections,
    rows: slice,
    slot: int,
    w: Parameters,
    state: Tensor,
    conv: Tensor,
    exports: Sequence[tuple[int, int]] = (),
) -> Tensor:
    """As the reference: [n, H, V] bf16, the slot advanced in place and copied where `exports` says.

    Between its kernels it keeps about 20 bytes per token, head and channel.
    """
    raw, f, b, gates = (part[rows] for part in (x.raw, x.f, x.b, x.out_gate))
    tokens, heads, dim = f.shape
    chunks, device = -(-tokens // CHUNK), raw.device
    fp32 = torch.float32
    qkv = torch.empty(3, tokens, heads, dim, dtype=raw.dtype, device=device)
    inverse = torch.empty(2, tokens, heads, dtype=fp32, device=device)
    running = torch.empty(chunks * CHUNK, heads, dim, dtype=fp32, device=device)
    beta = torch.empty(tokens, heads, dtype=fp32, device=device)
    gpu.launch(
        kernels.prepare,
        (chunks, heads, 4),
        *(raw, f, b, w.conv, w.a_log, w.dt_bias, conv, qkv, inverse, running, beta, tokens, slot, heads),
        *(raw.stride(0), f.stride(0), b.stride(0), conv.stride(0)),
        tile=gpu.tile("kda_prepare"),
        K=dim,
        TAPS=TAPS,
    )
    _windows(gpu, raw, conv, slot, (*exports, (tokens, slot)))
    system = torch.empty(chunks, heads, CHUNK, CHUNK, dtype=fp32, device=device)
    solve = torch.empty(2, *system.shape, dtype=raw.dtype, device=device)
    mix = torch.empty(system.shape, dtype=raw.dtype, device=device)
    scaled = torch.empty(3, chunks * CHUNK, heads, dim, dtype=raw.dtype, device=device)
    decay = torch.empty(chunks, heads, dim, dtype=fp32, device=device)
    gpu.launch(
        kernels.intra,
        (chunks, heads),
        *(qkv, inverse, running, beta, system, mix, scaled, decay, tokens, heads),
        tile=gpu.tile("kda_intra").at_most(BK=dim),
        K=dim,
    )
    gpu.launch(kernels.invert, (chunks, heads), system, beta, solve, tokens, heads, tile=gpu.tile("kda_invert"))
    wanted = [-1] * chunks
    for after, row in exports:
        wanted[after // CHUNK - 1] = row
    out = torch.empty(tokens, heads, dim, dtype=raw.dtype, device=device)
    tile = gpu.tile("kda_chunks").at_most(BV=dim)
    gpu.launch(
        kernels.chunks,
        (heads, dim // tile.blocks["BV"]),
        *(qkv, scaled, decay, solve, mix, state, ints(wanted, device), out, tokens, slot, heads, state.stride(0)),
        tile=tile,
        K=dim,
    )
    tile = gpu.tile("kda_norm")
    gpu.launch(
        kernels.norm,
        (-(-tokens * heads // tile.blocks["BT"]),),
        *(out, gates, w.norm, out, tokens, heads, gates.stride(0), w.eps),
        tile=tile,
        V=dim,
    )
    return out


def decode(gpu: Gpu, x: Projections, rows: Tensor, slots: Tensor, w: Parameters, state: Tensor, conv: Tensor) -> Tensor:
    """As the reference: rows and slots [n] int64, distinct slots -> [n, H, V] bf16, slots advanced in place."""
    (count,), (heads, dim) = rows.shape, x.f.shape[1:]
    out = torch.empty(count, heads, dim, dtype=x.raw.dtype, device=x.raw.device)
    if count:
        gpu.launch(
            kernels.decode,
            (count, heads),
            *(x.raw, x.f, x.b, x.out_gate, w.conv, w.a_log, w.dt_bias, w.norm, state, conv, rows, slots, out, heads),
            *(x.raw.stride(0), x.f.stride(0), x.b.stride(0), x.out_gate.stride(0), state.stride(0), conv.stride(0)),
            w.eps,
            tile=gpu.tile("kda_decode"),
            K=dim,
        )
    return out


def _windows(gpu: Gpu, raw: Tensor, conv: Tensor, slot: int, wanted: Sequence[tuple[int, int]]) -> None:
    """Each (tokens, row) of `wanted` gets the window after that many of the raw inputs [n, 3 H K]."""
    tile, channels = gpu.tile("kda_windows"), raw.shape[-1]
    after, to = (ints(column, raw.device) for column in zip(*wanted, strict=True))
    gpu.launch(
        kernels.windows,
        (-(-channels // tile.blocks["BLOCK"]), len(wanted)),
        *(raw, conv, after, to, slot, channels, raw.stride(0), conv.stride(0)),
        tile=tile,
        TAPS=TAPS,
    )


def ints(values: Sequence[int], device: torch.device) -> Tensor:
    """A short list as int32 on the device, copied without waiting for what runs there."""
    host = torch.tensor(values, dtype=torch.int32, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)
