"""Latent attention in C++: `csrc/mla_store.h`, `csrc/mla_prefill.h`, `csrc/mla_decode.h`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from perilune.ops.linear.formats import Weight
from perilune.ops.mla.reference import PAGE, Rotation, Shape
from perilune.ops.native import BF16, Native, address, rows_address


def store(
    native: Native,
    q: Tensor,
    kv: Tensor,
    norm: Tensor,
    eps: float,
    rotation: Rotation | None,
    pages: Tensor,
    page_ids: Tensor,
    offsets: Tensor,
) -> Tensor:
    """As the reference, q changed in place. Raises KernelInputError, and IndexError for a place there is not."""
    tokens, heads, width = q.shape
    rank = norm.shape[0]
    rope = kv.shape[1] - rank
    angles = [0, 0]
    if rotation is not None:
        angles = [address(angle, torch.float32, tokens, rope // 2, name="angles") for angle in rotation]
    pages_at, step = rows_address(pages, BF16, PAGE, rank + rope, name="pages")
    native.kernels.mla_store(
        address(q, BF16, tokens, heads, width, name="q"),
        address(kv, BF16, tokens, rank + rope, name="kv"),
        address(norm, BF16, rank, name="latent norm"),
        eps,
        *angles,
        [tokens, heads, width - rope, rope, rank],
        pages_at,
        pages.shape[0],
        step,
        address(page_ids, torch.int64, tokens, name="page ids"),
        address(offsets, torch.int64, tokens, name="offsets"),
        native.threads,
    )
    return q


def prefill(
    native: Native, q: Tensor, pages: Tensor, table: Tensor, start: int, kv_b: Weight, **shape: Unpack[Shape]
) -> Tensor:
    """As the reference: q [T, H, nope + rope] bf16 -> [T, H, v] fp32.

    Raises KernelInputError, and IndexError for a page there is not.
    """
    q = q.contiguous()
    tokens, heads, width = q.shape
    sizes = _sizes(heads, width, shape)
    out = torch.empty(tokens, heads, shape["v_dim"])
    pages_at, step = _pages(pages, sizes)
    native.kernels.mla_prefill(
        address(q, BF16, *q.shape, name="q"),
        tokens,
        start,
        sizes,
        pages_at,
        pages.shape[0],
        step,
        address(table, torch.int64, table.shape[0], name="table"),
        table.shape[0],
        native.weight(kv_b),
        shape["scale"],
        out.data_ptr(),
        native.threads,
    )
    return out


def decode_rows(
    native: Native,
    q: Tensor,
    pages: Tensor,
    tables: Sequence[Tensor],
    lengths: Sequence[int],
    kv_b: Weight,
    **shape: Unpack[Shape],
) -> Tensor:
    """As the reference: q [n, H, nope + rope] bf16 -> [n, H, v] fp32. Raises as `prefill`."""
    q = q.contiguous()
    n, heads, width = q.shape
    sizes = _sizes(heads, width, shape)
    out = torch.empty(n, heads, shape["v_dim"])
    pages_at, step = _pages(pages, sizes)
    native.kernels.mla_decode(
        address(q, BF16, len(tables), heads, width, name="q"),
        sizes,
        pages_at,
        pages.shape[0],
        step,
        [address(table, torch.int64, table.shape[0], name="table") for table in tables],
        [table.shape[0] for table in tables],
        list(lengths),
        native.weight(kv_b),
        shape["scale"],
        out.data_ptr(),
        native.threads,
    )
    return out


def _sizes(heads: int, width: int, shape: Shape) -> list[int]:
    return [heads, shape["nope"], width - shape["nope"], shape["v_dim"], shape["rank"]]


def _pages(pages: Tensor, sizes: list[int]) -> tuple[int, int]:
    return rows_address(pages, BF16, PAGE, sizes[4] + sizes[2], name="pages")
