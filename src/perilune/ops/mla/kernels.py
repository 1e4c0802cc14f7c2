"""Latent attention over pages on a GPU. Letters: R latent rank, PE shared key dims; pages of 64 tokens.

Decoding reads latents only (`absorb`, `decode` split over the context, `combine`, `expand`). Prefill attends to keys
and values that were expanded for a stretch of the context, and carries its softmax from one stretch to the next.
Sizes that are no powers of two are padded with zeros up to one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from perilune.ops.gpu.language import dot, narrow, rounded, store, wide
from perilune.ops.linear.kernels import weight_tile

PAGE = tl.constexpr(64)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def turned(even, odd, cos, sin):
    """A pair (even, odd) of bf16 values rotated, in fp32."""
    even, odd = wide(even), wide(odd)
    return narrow(even * cos - odd * sin), narrow(even * sin + odd * cos)


@triton.jit
def store_latents(
    q, kv, norm, cos, sin, pages, page_ids, offsets, heads, rank, pe, nope, q_row, kv_row, page_row, eps,
    ROTATED: tl.constexpr, R: tl.constexpr, PE: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Token t: program (t, 0) stores its normed latent and rotated key in its page, program (t, i + 1) rotates the
    last pe values of q [T, H, nope + pe] in BH heads, in place.

    kv [T, rank + pe]; cos and sin [T, pe / 2] fp32, not read unless ROTATED; pages [P, 64, rank + pe]. PE is pe / 2 up
    to a power of two: keys are rotated in pairs (x0, x1), (x2, x3), ... A page below 0 is padding: it is not written.
    """
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half = pe // 2
    pair = tl.arange(0, PE)
    real = pair < half
    c = tl.load(cos + token * half + pair, mask=real & ROTATED, other=0.0)
    s = tl.load(sin + token * half + pair, mask=real & ROTATED, other=0.0)
    if part == 0:
        dims = tl.arange(0, R)
        row = kv + token * kv_row
        place = tl.load(page_ids + token)
        inside = dims < tl.where(place < 0, 0, rank)
        real = pair < tl.where(place < 0, 0, half)
        page = pages + place * page_row + tl.load(offsets + token) * (rank + pe)
        x = wide(tl.load(row + dims, mask=inside, other=0.0))
        x = rounded(x * tl.rsqrt(tl.sum(x * x, axis=0) / rank + eps))
        tl.store(page + dims, narrow(x * wide(tl.load(norm + dims, mask=inside, other=0.0))), mask=inside)
        key = row + rank + 2 * pair
        even, odd = tl.load(key, mask=real, other=0.0), tl.load(key + 1, mask=real, other=0.0)
        if ROTATED:
            even, odd = turned(even, odd, c, s)
        tl.store(page + rank + 2 * pair, even, mask=real)
        tl.store(page + rank + 2 * pair + 1, odd, mask=real)
    else:
        head = (part - 1) * BH + tl.arange(0, BH)
        known = (head < heads)[:, None] & real[None, :]
        query = q + token * q_row + nope + (head[:, None] * (nope + pe) + 2 * pair[None, :])
        first, second = tl.load(query, mask=known, other=0.0), tl.load(query + 1, mask=known, other=0.0)
        first, second = turned(first, second, c[None, :], s[None, :])
        # lanes may hold the same value twice: none may still be reading what another overwrites
        tl.debug_barrier()
        tl.store(query, first, mask=known)
        tl.store(query + 1, second, mask=known)


@triton.jit(do_not_specialize=["m"])
def absorb(
    q, data, scale, zero, out, m, heads, k, groups, q_row, out_row,
    NOPE: tl.constexpr, V: tl.constexpr, FORM: tl.constexpr, GROUP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """q~ = W_UK^T q: columns BN.. of head h, out [m, H, R (and more)] bf16 from q [m, H, nope (and more)].

    W_UK is the first NOPE of head h's NOPE + V rows of the matrix [H (NOPE + V), k = R].
    """
    head = tl.program_id(1)
    first, token = tl.program_id(0) * BN, tl.program_id(2) * BM
    columns, tokens = tl.arange(0, BN), tl.arange(0, BM)
    present = (token + tokens < m)[None, :]
    acc = tl.zeros((BN, BM), tl.float32)
    q += token.to(tl.int64) * q_row + head * (q_row // heads)
    mine = head * (NOPE + V)
    for at in range(0, NOPE, BK):
        inner = at + tl.arange(0, BK)
        tile = weight_tile(data, scale, zero, mine + at, mine + NOPE, first, k, groups, FORM, GROUP, BK, BN)
        inside = (inner < NOPE)[:, None] & present
        acc = dot(tl.trans(tile), tl.load(q + (tokens[None, :] * q_row + inner[:, None]), mask=inside, other=0.0), acc)
    out += token.to(tl.int64) * out_row + head * (out_row // heads) + first
    store(out + (tokens[None, :] * out_row + columns[:, None]), acc, (first + columns < k)[:, None] & present)


@triton.jit(do_not_specialize=["m"])
def expand(
    latent, data, scale, zero, out, m, heads, k, groups,
    NOPE: tl.constexpr, V: tl.constexpr, FORM: tl.constexpr, GROUP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """o = W_UV c: columns BN.. of head h, out [m, H, V] fp32 from latent sums [m, H, R] bf16."""
    head = tl.program_id(1)
    row, token = tl.program_id(0) * BN, tl.program_id(2) * BM
    columns, tokens = tl.arange(0, BN), tl.arange(0, BM)
    present = (token + tokens < m)[None, :]
    acc = tl.zeros((BN, BM), tl.float32)
    mine = head * (NOPE + V) + NOPE
    place = token.to(tl.int64) * heads + head
    latent += place * k
    for at in range(0, k, BK):
        inner = at + tl.arange(0, BK)
        tile = weight_tile(data, scale, zero, mine + row, mine + V, at, k, groups, FORM, GROUP, BN, BK)
        inside = (inner < k)[:, None] & present
        values = tl.load(latent + (tokens[None, :] * (heads * k) + inner[:, None]), mask=inside, other=0.0)
        acc = dot(tile, values, acc)
    out += place * V + row
    store(out + (tokens[None, :] * (heads * V) + columns[:, None]), acc, (row + columns < V)[:, None] & present)


@triton.jit(do_not_specialize=["table_row", "splits"])
def decode(
    q, pages, tables, lengths, sums, peaks, heads, rank, pe, table_row, page_row, splits, scale,
    R: tl.constexpr, PE: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """One split of one sequence's context for BH heads; scores are summed over BR values of the latent at a time.

    q [n, H, rank + pe] bf16 -> sums [n, splits, H, rank] fp32, softmax-weighted latents of this split, and peaks
    [n, splits, H]: log2 of the sum of their weights, -inf for a split that has no tokens.
    """
    sequence, split = tl.program_id(0), tl.program_id(2)
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    length = tl.load(lengths + sequence).to(tl.int32)
    each = ((length + PAGE - 1) // PAGE + splits - 1) // splits * PAGE
    first = split * each
    last = tl.minimum(first + each, length)
    table = tables + sequence.to(tl.int64) * table_row
    size = rank + pe
    dims, dims_pe = tl.arange(0, R), tl.arange(0, PE)
    q += sequence.to(tl.int64) * heads * size
    known = (head < heads)[:, None]
    parts = tl.arange(0, BR)
    in_q = head[:, None] * size
    query_pe = tl.load(q + rank + (in_q + dims_pe[None, :]), mask=known & (dims_pe < pe)[None, :], other=0.0)
    peak = tl.full((BH,), float("-inf"), tl.float32)
    total = tl.zeros((BH,), tl.float32)
    acc = tl.zeros((BH, R), tl.float32)
    row = tl.arange(0, BC)
    for at in range(first, last, BC):  # BC divides PAGE: one page a tile
        inside = row + at < last
        begin = tl.zeros((), tl.int32) + at
        page = pages + tl.load(table + begin // PAGE) * page_row + begin % PAGE * size
        in_row = row[:, None] * size
        shared = tl.load(
            page + rank + (in_row + dims_pe[None, :]), mask=inside[:, None] & (dims_pe < pe)[None, :], other=0.0
        )
        scores = dot(query_pe, tl.trans(shared), tl.zeros((BH, BC), tl.float32))
        for part in range(0, R, BR):
            present = (parts + part < rank)[None, :]
            query = tl.load(q + part + (in_q + parts[None, :]), mask=known & present, other=0.0)
            c = tl.load(page + part + (in_row + parts[None, :]), mask=inside[:, None] & present, other=0.0)
            scores = dot(query, tl.trans(c), scores)
        scores *= scale * LOG2E
        scores = tl.where(inside[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        kept = tl.exp2(peak - higher)
        p = tl.exp2(scores - higher[:, None])
        total = total * kept + tl.sum(p, axis=1)
        c = tl.load(page + (in_row + dims[None, :]), mask=inside[:, None] & (dims < rank)[None, :], other=0.0)
        acc = dot(narrow(p), c, acc * kept[:, None])
        peak = higher
    place = (sequence.to(tl.int64) * splits + split) * heads
    some = total > 0
    total = tl.where(some, total, 1.0)
    tl.store(peaks + place + head, tl.where(some, peak + tl.log2(total), float("-inf")), mask=head < heads)
    at_sums = sums + place * rank + (head[:, None] * rank + dims[None, :])
    tl.store(at_sums, acc / total[:, None], mask=known & (dims < rank)[None, :])


@triton.jit(do_not_specialize=["splits"])
def combine(sums, peaks, out, heads, rank, splits, R: tl.constexpr):
    """sums [n, splits, H, rank] and peaks -> out [n, H, rank] bf16: the splits as one softmax."""
    sequence, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dims = tl.arange(0, R)
    peak = float("-inf")
    for split in range(splits):
        peak = tl.maximum(peak, tl.load(peaks + (sequence * splits + split) * heads + head))
    total = 0.0
    acc = tl.zeros((R,), tl.float32)
    for split in range(splits):
        place = (sequence * splits + split) * heads + head
        share = tl.exp2(tl.load(peaks + place) - peak)
        acc += share * tl.load(sums + place * rank + dims, mask=dims < rank, other=0.0)
        total += share
    store(out + (sequence * heads + head) * rank + dims, acc / total, dims < rank)


@triton.jit(do_not_specialize=["count"])
def gather(pages, table, c, shared, first, count, rank, pe, page_row, R: tl.constexpr, PE: tl.constexpr):
    """Token first + i of a sequence: its latent to c [count, rank], its shared key to shared [count, pe]."""
    at = tl.program_id(0)
    token = first + at
    row = pages + tl.load(table + token // PAGE) * page_row + (token % PAGE) * (rank + pe)
    dims, dims_pe = tl.arange(0, R), tl.arange(0, PE)
    tl.store(c + at.to(tl.int64) * rank + dims, tl.load(row + dims, mask=dims < rank, other=0.0), mask=dims < rank)
    tl.store(
        shared + at.to(tl.int64) * pe + dims_pe,
        tl.load(row + rank + dims_pe, mask=dims_pe < pe, other=0.0),
        mask=dims_pe < pe,
    )


@triton.jit(do_not_specialize=["tokens", "start", "first", "count"])
def prefill(
    q, keys, shared, sums, peaks, totals, tokens, start, first, count, heads, nope, pe, v_dim, q_row, scale,
    NOPE: tl.constexpr, PE: tl.constexpr, V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """BM queries of head h over one stretch of the context: tokens first .. first + count. Scores are summed over BP
    dims at a time.

    q [tokens, H, nope + pe] at positions start ..; keys [count, H, nope + v] expanded; shared [count, pe]. The running
    softmax is read and written: sums [tokens, H, v], peaks and totals [tokens, H], all fp32. The first stretch, which
    begins at 0, starts it; divide sums by totals after the last.
    """
    head = tl.program_id(1)
    block = tl.program_id(0) * BM
    at = tl.arange(0, BM)
    inside = block + at < tokens
    parts, dims_pe, dims_v = tl.arange(0, BP), tl.arange(0, PE), tl.arange(0, V)
    q += block.to(tl.int64) * q_row + head * (nope + pe)
    in_q = at[:, None] * q_row
    query_pe = tl.load(q + (in_q + nope + dims_pe[None, :]), mask=inside[:, None] & (dims_pe < pe)[None, :], other=0.0)
    old = block + at < tl.where(first > 0, tokens, 0)
    place = block.to(tl.int64) * heads + head
    peaks += place
    totals += place
    peak = tl.load(peaks + at * heads, mask=old, other=float("-inf"))
    total = tl.load(totals + at * heads, mask=old, other=0.0)
    sums_at = sums + place * v_dim + (at[:, None] * (heads * v_dim) + dims_v[None, :])
    acc = tl.load(sums_at, mask=old[:, None] & (dims_v < v_dim)[None, :], other=0.0)
    last = tl.minimum(count, start + block + BM - first)
    row = tl.arange(0, BN)
    width = nope + v_dim
    for key in range(0, last, BN):
        real = key + row < count
        here = keys + (tl.zeros((), tl.int64) + key) * (heads * width) + head * width
        in_row = row[:, None] * (heads * width)
        in_pe = row[:, None] * pe + dims_pe[None, :]
        k_pe = tl.load(shared + key * pe + in_pe, mask=real[:, None] & (dims_pe < pe)[None, :], other=0.0)
        scores = dot(query_pe, tl.trans(k_pe), tl.zeros((BM, BN), tl.float32))
        for part in range(0, NOPE, BP):
            present = (parts + part < nope)[None, :]
            query = tl.load(q + part + (in_q + parts[None, :]), mask=inside[:, None] & present, other=0.0)
            k = tl.load(here + part + (in_row + parts[None, :]), mask=real[:, None] & present, other=0.0)
            scores = dot(query, tl.trans(k), scores)
        scores *= scale * LOG2E
        seen = real[None, :] & ((first + key + row)[None, :] <= (start + block + at)[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        kept = tl.exp2(peak - higher)
        p = tl.exp2(scores - higher[:, None])
        total = total * kept + tl.sum(p, axis=1)
        v = tl.load(here + (in_row + nope + dims_v[None, :]), mask=real[:, None] & (dims_v < v_dim)[None, :], other=0.0)
        acc = dot(narrow(p), v, acc * kept[:, None])
        peak = higher
    tl.store(peaks + at * heads, peak, mask=inside)
    tl.store(totals + at * heads, total, mask=inside)
    tl.store(sums_at, acc, mask=inside[:, None] & (dims_v < v_dim)[None, :])
