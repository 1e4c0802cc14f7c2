"""Multi-head latent attention over 64-token pages of latents, in plain torch.

A page holds, per token, the latent c (R values, after its norm) and the shared key part k_pe. Prefill expands
k = [W_UK c, k_pe], v = W_UV c one context block at a time; decode absorbs W_UK into the query and reads latents only.
Both keep a running softmax over fixed blocks, so no intermediate grows with context x heads x rank, and a row's bits
do not depend on how the prompt was cut: blocks start at absolute positions and always have the same shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from perilune.ops.linear.formats import Weight
from perilune.ops.linear.reference import linear
from perilune.ops.norm.reference import rms_norm
from perilune.ops.rows import pad_rows

PAGE = 64
PREFILL_BLOCK = 4 * PAGE
DECODE_BLOCK = 64 * PAGE

Rotation = tuple[Tensor, Tensor]


class Shape(TypedDict):
    """Sizes of a head, the latent rank, and the softmax scale."""

    nope: int
    v_dim: int
    rank: int
    scale: float


def read_latents(pages: Tensor, table: Tensor, first: int, last: int, block: int) -> Tensor:
    """Tokens [first, last) of one sequence as [block, R + rope], zero-padded; `first` is a multiple of 64.

    pages [P, 64, R + rope] of one layer; table [n] the sequence's page ids in order.
    """
    ids = table[first // PAGE : -(-last // PAGE)]
    tokens = pages[ids].flatten(0, 1)[: last - first]
    return F.pad(tokens, (0, 0, 0, block - tokens.shape[0]))


def store(
    q: Tensor,
    kv: Tensor,
    norm: Tensor,
    eps: float,
    rotation: Rotation | None,
    pages: Tensor,
    page_ids: Tensor,
    offsets: Tensor,
) -> Tensor:
    """What precedes attention: latents are normed, keys and queries rotated, latents and keys stored.

    q [T, H, nope + rope] and kv [T, R + rope] as projected; norm [R]. `rotation` is cos and sin [T, rope / 2] fp32 of
    the tokens' positions, or None where nothing is rotated. Token t goes to pages[page_ids[t], offsets[t]]. Returns q,
    which may have been changed in place.
    """
    rank = norm.shape[0]
    latent, key = rms_norm(kv[:, :rank], norm, eps), kv[:, rank:]
    if rotation is not None:
        nope = q.shape[-1] - key.shape[-1]
        q = torch.cat([q[..., :nope], rotate(q[..., nope:], *rotation)], dim=-1)
        key = rotate(key, *rotation)
    write_latents(pages, page_ids, offsets, torch.cat([latent, key], dim=-1))
    return q


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, ..., dim] with pairs (x0, x1), (x2, x3), ... rotated, in x's dtype; cos and sin [T, dim / 2]."""
    extra = (1,) * (x.dim() - 2)
    cos, sin = cos.view(cos.shape[0], *extra, -1), sin.view(sin.shape[0], *extra, -1)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


def write_latents(pages: Tensor, page_ids: Tensor, offsets: Tensor, values: Tensor) -> None:
    """Store values [T, R + rope] at (page, offset) in pages [P, 64, R + rope], in place."""
    pages[page_ids, offsets] = values.to(pages.dtype)


def prefill(
    q: Tensor, pages: Tensor, table: Tensor, start: int, kv_b: Weight, *, nope: int, v_dim: int, rank: int, scale: float
) -> Tensor:
    """Causal attention of one sequence's new tokens over its whole context.

    q [T, H, nope + rope] at positions start .. start + T (start a multiple of 64), whose latents are already in the
    pages; kv_b [H * (nope + v), R]. Returns [T, H, v] fp32.
    """
    tokens, heads, _ = q.shape
    end = start + tokens
    queries = F.pad(q.float(), (0, 0, 0, 0, 0, -tokens % PAGE)).transpose(0, 1)
    rows = queries.shape[1]
    positions = torch.arange(start, start + rows, device=q.device)
    running = _RunningSoftmax((heads, rows), v_dim, q.device)
    for first in range(0, end, PREFILL_BLOCK):
        last = min(first + PREFILL_BLOCK, end)
        latents = read_latents(pages, table, first, last, PREFILL_BLOCK)
        expanded = linear(latents[:, :rank].contiguous().to(q.dtype), kv_b).float()
        expanded = expanded.view(PREFILL_BLOCK, heads, nope + v_dim)
        shared = latents[:, None, rank:].float().expand(-1, heads, -1)
        k = torch.cat([expanded[..., :nope], shared], dim=-1).permute(1, 2, 0)
        scores = (queries @ k) * scale
        keys = torch.arange(first, first + PREFILL_BLOCK, device=q.device)
        scores = scores.masked_fill(keys > positions[:, None], float("-inf"))
        running.add(scores, expanded[..., nope:].transpose(0, 1))
    return running.result()[:, :tokens].transpose(0, 1)


def absorb_query(q_nope: Tensor, kv_b: Weight, v_dim: int) -> Tensor:
    """q~ = W_UK^T q_nope: q_nope [T, H, nope] -> [T, H, R] fp32."""
    tokens, heads, nope = q_nope.shape
    w_uk = _per_head(kv_b, heads, nope, v_dim)[:, :nope]
    return (pad_rows(q_nope.float().transpose(0, 1)) @ w_uk)[:, :tokens].transpose(0, 1)


def expand_value(latent: Tensor, kv_b: Weight, v_dim: int) -> Tensor:
    """o = W_UV (sum p c): latent [T, H, R] -> [T, H, v] fp32."""
    tokens, heads, _ = latent.shape
    nope = kv_b.shape[0] // heads - v_dim
    w_uv = _per_head(kv_b, heads, nope, v_dim)[:, nope:]
    return (pad_rows(latent.transpose(0, 1)) @ w_uv.transpose(1, 2))[:, :tokens].transpose(0, 1)


def _per_head(kv_b: Weight, heads: int, nope: int, v_dim: int) -> Tensor:
    return kv_b.dequantise(torch.float32).view(heads, nope + v_dim, -1)


def decode_rows(
    q: Tensor,
    pages: Tensor,
    tables: Sequence[Tensor] | Tensor,
    lengths: Tensor,
    kv_b: Weight,
    *,
    nope: int,
    v_dim: int,
    rank: int,
    scale: float,
) -> Tensor:
    """One token of each of n sequences, absorbed: q [n, H, nope + rope] -> [n, H, v] fp32.

    Row i sees the first lengths[i] tokens, its own included, of the pages in tables[i]. lengths [n] int64; tables: one
    per row, or as one tensor [n, most pages].
    """
    absorbed = absorb_query(q[..., :nope], kv_b, v_dim)
    queries = torch.cat([absorbed, q[..., nope:].float()], dim=-1)
    sums = [
        decode(query, pages, table, length, rank=rank, scale=scale)
        for query, table, length in zip(queries, tables, lengths.tolist(), strict=True)
    ]
    return expand_value(torch.stack(sums), kv_b, v_dim)


def decode(q: Tensor, pages: Tensor, table: Tensor, length: int, *, rank: int, scale: float) -> Tensor:
    """One token, absorbed, over the first `length` tokens: q [H, R + rope] fp32 -> latent sums [H, R] fp32."""
    running = _RunningSoftmax((q.shape[0],), rank, q.device)
    for first in range(0, length, DECODE_BLOCK):
        last = min(first + DECODE_BLOCK, length)
        latents = read_latents(pages, table, first, last, last - first).float()
        running.add((q @ latents.transpose(0, 1)) * scale, latents[:, :rank])
    return running.result()


class _RunningSoftmax:
    """softmax(scores) @ values over blocks: keeps the maximum, the sum and the weighted values so far, in fp32."""

    def __init__(self, shape: tuple[int, ...], width: int, device: torch.device) -> None:
        self.maximum = torch.full((*shape, 1), float("-inf"), device=device)
        self.total = torch.zeros(*shape, 1, device=device)
        self.values = torch.zeros(*shape, width, device=device)

    def add(self, scores: Tensor, values: Tensor) -> None:
        """scores [..., block], values [..., block, width]. The first block must hold a finite score in every row."""
        maximum = torch.maximum(self.maximum, scores.amax(-1, keepdim=True))
        kept = (self.maximum - maximum).exp()
        p = (scores - maximum).exp()
        self.total = self.total * kept + p.sum(-1, keepdim=True)
        self.values = self.values * kept + p @ values
        self.maximum = maximum

    def result(self) -> Tensor:
        return self.values / self.total
