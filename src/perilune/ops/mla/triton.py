"""Latent attention in Triton: `kernels.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
import triton
from torch import Tensor

from perilune.ops.gpu.launch import Gpu
from perilune.ops.linear.formats import Weight
from perilune.ops.linear.triton import product, rows, stored
from perilune.ops.mla import kernels
from perilune.ops.mla.reference import PAGE, Rotation, Shape

STRETCH = 64 * PAGE  # tokens of context whose keys and values are expanded at a time
LEAST = 16  # the smallest side of a matrix product


def store(
    gpu: Gpu,
    q: Tensor,
    kv: Tensor,
    norm: Tensor,
    eps: float,
    rotation: Rotation | None,
    pages: Tensor,
    page_ids: Tensor,
    offsets: Tensor,
) -> Tensor:
    """As the reference: q [T, H, nope + rope] bf16, rotated in place; latents and keys are in the pages."""
    (tokens, heads, width), rank = q.shape, norm.shape[0]
    pe = kv.shape[-1] - rank
    if not tokens:
        return q
    q, kv, tile = _dense(q), rows(kv), gpu.tile("mla_store")
    cos, sin = (q, q) if rotation is None else (part.contiguous() for part in rotation)
    bands = 0 if rotation is None else -(-heads // tile.blocks["BH"])
    gpu.launch(
        kernels.store_latents,
        (tokens, 1 + bands),
        *(q, kv, norm, cos, sin, pages, page_ids, offsets, heads, rank, pe, width - pe),
        *(q.stride(0), kv.stride(0), pages.stride(0), eps),
        tile=tile,
        ROTATED=rotation is not None,
        R=triton.next_power_of_2(rank),
        PE=triton.next_power_of_2(-(-pe // 2)),
    )
    return q


def prefill(
    gpu: Gpu, q: Tensor, pages: Tensor, table: Tensor, start: int, kv_b: Weight, **shape: Unpack[Shape]
) -> Tensor:
    """As the reference: q [T, H, nope + rope] bf16 -> [T, H, v] fp32.

    Keys and values of STRETCH tokens at a time are expanded into workspace: 2 H (nope + v) STRETCH bytes.
    """
    tokens, heads, width = q.shape
    nope, v_dim, rank = shape["nope"], shape["v_dim"], shape["rank"]
    pe, end, device = width - nope, start + tokens, q.device
    q = _dense(q)
    out = torch.empty(tokens, heads, v_dim, dtype=torch.float32, device=device)
    peaks = torch.empty(tokens, heads, dtype=torch.float32, device=device)
    totals = torch.empty_like(peaks)
    # always the same size: which sizes there were must not decide what is allocated later
    c = torch.empty(STRETCH, rank, dtype=q.dtype, device=device)
    shared = torch.empty(STRETCH, pe, dtype=q.dtype, device=device)
    keys = torch.empty(STRETCH, heads * (nope + v_dim), dtype=q.dtype, device=device)
    tile = gpu.tile("mla_prefill").at_most(BP=_padded(nope))
    for first in range(0, end, STRETCH):
        count = min(STRETCH, end - first)
        gpu.launch(
            kernels.gather,
            (count,),
            *(pages, table, c, shared, first, count, rank, pe, pages.stride(0)),
            tile=gpu.tile("mla_gather"),
            R=triton.next_power_of_2(rank),
            PE=triton.next_power_of_2(pe),
        )
        product(gpu, c[:count], kv_b, keys[:count])
        gpu.launch(
            kernels.prefill,
            (-(-tokens // tile.blocks["BM"]), heads),
            *(q, keys, shared, out, peaks, totals, tokens, start, first, count, heads, nope, pe, v_dim, q.stride(0)),
            shape["scale"],
            tile=tile,
            NOPE=_padded(nope),
            PE=_padded(pe),
            V=_padded(v_dim),
        )
    return out.div_(totals[..., None])


def decode_rows(
    gpu: Gpu,
    q: Tensor,
    pages: Tensor,
    tables: Sequence[Tensor],
    lengths: Sequence[int],
    kv_b: Weight,
    **shape: Unpack[Shape],
) -> Tensor:
    """As the reference: q [n, H, nope + rope] bf16 -> [n, H, v] fp32.

    `tables` may be one tensor [n, pages] int64, and `lengths` one [n]: nothing then comes from the host, and the step
    can be captured in a graph.
    """
    count, heads, width = q.shape
    nope, v_dim, rank = shape["nope"], shape["v_dim"], shape["rank"]
    pe, device, w = width - nope, q.device, stored(kv_b)
    q = _dense(q)
    table, length = _packed(tables, lengths, device)
    query = torch.empty(count, heads, rank + pe, dtype=q.dtype, device=device)
    query[..., rank:] = q[..., nope:]
    tile = gpu.tile("mla_heads", w.form)
    constants = {"NOPE": nope, "V": v_dim, "FORM": w.form, "GROUP": w.group}
    bands = -(-count // tile.blocks["BM"])
    gpu.launch(
        kernels.absorb,
        (-(-rank // tile.blocks["BN"]), heads, bands),
        *(q, *w.tensors, query, count, heads, rank, w.groups, q.stride(0), query.stride(0)),
        tile=tile,
        form=w.form,
        **constants,
    )
    split = gpu.tile("mla_decode").at_most(BR=_padded(rank))
    bands_of_heads = -(-heads // split.blocks["BH"])
    splits = min(32, max(1, -(-2 * gpu.arch.units // (count * bands_of_heads))))
    sums = torch.empty(count, splits, heads, rank, dtype=torch.float32, device=device)
    peaks = torch.empty(count, splits, heads, dtype=torch.float32, device=device)
    gpu.launch(
        kernels.decode,
        (count, bands_of_heads, splits),
        *(query, pages, table, length, sums, peaks, heads, rank, pe, table.stride(0), pages.stride(0), splits),
        shape["scale"],
        tile=split,
        R=_padded(rank),
        PE=_padded(pe),
    )
    latent = torch.empty(count, heads, rank, dtype=q.dtype, device=device)
    gpu.launch(
        kernels.combine,
        (count, heads),
        *(sums, peaks, latent, heads, rank, splits),
        tile=gpu.tile("mla_combine"),
        R=triton.next_power_of_2(rank),
    )
    out = torch.empty(count, heads, v_dim, dtype=torch.float32, device=device)
    gpu.launch(
        kernels.expand,
        (-(-v_dim // tile.blocks["BN"]), heads, bands),
        *(latent, *w.tensors, out, count, heads, rank, w.groups),
        tile=tile,
        form=w.form,
        **constants,
    )
    return out


def _packed(tables: Sequence[Tensor], lengths: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Page tables [n, most] and lengths [n] as tensors; a table's row beyond its length is never read."""
    table = tables if isinstance(tables, Tensor) else torch.nn.utils.rnn.pad_sequence(list(tables), batch_first=True)
    length = lengths if isinstance(lengths, Tensor) else torch.tensor(lengths, dtype=torch.int64)
    return table, length.to(device, non_blocking=True)


def _dense(q: Tensor) -> Tensor:
    """q [T, H, D] with the values of a token side by side; tokens may lie apart."""
    return q if q.stride(-1) == 1 and q.stride(-2) == q.shape[-1] else q.contiguous()


def _padded(size: int) -> int:
    return max(LEAST, int(triton.next_power_of_2(size)))
