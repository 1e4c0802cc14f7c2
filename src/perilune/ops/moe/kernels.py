"""Router and experts on a GPU.

A pair is one token at one of its experts: token t's j-th is pair t * k + j. Pairs are counted per expert (`count`),
experts get blocks of BM pairs in their order (`blocks`), pairs go to their places (`place`); then each block is a small
matrix product with its expert's weight. Which of an expert's pairs comes first is a matter of chance, and changes no
bit: rows of a product do not meet, and a token's experts are summed in the token's order (`combine`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from perilune.ops.gpu.language import dot, narrow, rounded, store
from perilune.ops.linear.kernels import of_expert, swish_product, weight_tile


@triton.jit(do_not_specialize=["experts", "per_group", "groups", "top_groups", "top_k", "scaling"])
def top_k(
    logits, bias, ids, weights, experts, per_group, groups, top_groups, top_k, scaling,
    GROUPS: tl.constexpr, SIZE: tl.constexpr, RENORMALISE: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """logits [T, E] fp32 -> ids [T, k] int64 and weights [T, k]; one program per token. Of equals the first is taken.

    GROUPS, SIZE and K are groups, experts per group and k, each up to a power of two.
    """
    token = tl.program_id(0).to(tl.int64)
    group, member = tl.arange(0, GROUPS), tl.arange(0, SIZE)
    real = (group < groups)[:, None] & (member < per_group)[None, :]
    expert = tl.where(real, group[:, None] * per_group + member[None, :], experts)
    scores = tl.sigmoid(tl.load(logits + token * experts + expert, mask=real, other=0.0))
    choice = tl.where(real, scores + tl.load(bias + expert, mask=real, other=0.0), float("-inf"))
    if GROUPS > 1:
        highest = tl.max(choice, axis=1)
        first = tl.min(tl.where(choice == highest[:, None], member[None, :], SIZE), axis=1)
        second = tl.max(tl.where(member[None, :] == first[:, None], float("-inf"), choice), axis=1)
        standing = tl.where(group < groups, highest + second, float("-inf"))
        kept = group < 0
        for _ in range(top_groups):
            lead = tl.min(tl.where(standing == tl.max(standing, axis=0), group, GROUPS), axis=0)
            kept = kept | (group == lead)
            standing = tl.where(group == lead, float("-inf"), standing)
        choice = tl.where(kept[:, None], choice, float("-inf"))
    place = tl.arange(0, K)
    picked = tl.zeros((K,), tl.int32)
    share = tl.zeros((K,), tl.float32)
    for i in range(top_k):
        best = tl.max(tl.max(choice, axis=1), axis=0)
        found = tl.min(tl.min(tl.where(choice == best, expert, experts - 1), axis=1), axis=0)  # also for NaN
        score = tl.sum(tl.sum(tl.where(expert == found, scores, 0.0), axis=1), axis=0)
        picked = tl.where(place == i, found, picked)
        share = tl.where(place == i, score, share)
        choice = tl.where(expert == found, float("-inf"), choice)
    if RENORMALISE:
        share = share / (tl.sum(share, axis=0) + 1e-20)
    tl.store(ids + token * top_k + place, picked.to(tl.int64), mask=place < top_k)
    tl.store(weights + token * top_k + place, share * scaling, mask=place < top_k)


@triton.jit(do_not_specialize=["pairs"])
def count(ids, counts, rank, pairs, BLOCK: tl.constexpr):
    """counts [E] (zero before): how many pairs each expert has; rank [pairs]: which of its expert's pairs each is.

    A pair whose id is -1 is another rank's.
    """
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(ids + pair, mask=pair < pairs, other=-1)
    before = tl.atomic_add(counts + expert, 1, mask=expert >= 0)
    tl.store(rank + pair, before, mask=expert >= 0)


@triton.jit(do_not_specialize=["experts", "most"])
def blocks(counts, begin, owner, start, experts, most, SIZE: tl.constexpr, BM: tl.constexpr):
    """begin [E + 1]: place of each expert's first pair. owner, start [most]: expert and first place of each block, -1
    where there is none. One program per expert, and one for what is left over; SIZE is E up to a power of two."""
    expert = tl.program_id(0)
    other = tl.arange(0, SIZE)
    has = tl.load(counts + other, mask=other < experts, other=0)
    earlier = other < expert
    place = tl.sum(tl.where(earlier, has, 0), axis=0)
    block = tl.sum(tl.where(earlier, (has + BM - 1) // BM, 0), axis=0)
    tl.store(begin + expert, place)
    mine = tl.sum(tl.where(other == expert, (has + BM - 1) // BM, 0), axis=0)
    if expert == experts:
        for i in range(block, most):
            tl.store(owner + i, -1)
    else:
        for i in range(mine):
            tl.store(owner + block + i, expert)
            tl.store(start + block + i, place + i * BM)


@triton.jit(do_not_specialize=["pairs"])
def place(ids, rank, begin, order, pairs, BLOCK: tl.constexpr):
    """order [pairs]: the pair at each place."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(ids + pair, mask=pair < pairs, other=-1)
    at = tl.load(begin + expert, mask=expert >= 0, other=0) + tl.load(rank + pair, mask=expert >= 0, other=0)
    tl.store(order + at, pair, mask=expert >= 0)


@triton.jit(do_not_specialize=["m", "x_row", "top_k"])
def gated(
    x, gate, gate_scale, gate_zero, up, up_scale, up_zero, out, order, begin, owner, start,
    m, n, k, groups, x_row, top_k,
    FORM: tl.constexpr, GROUP: tl.constexpr, SORTED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out [places, n] bf16 = SiLU(gate x) * up x, a block of BM places a program; x has less than 2^31 elements.

    SORTED: places are pairs of experts, and gate and up are stacks [E, n, k]. Else places are the m tokens themselves.
    """
    row, block = tl.program_id(0) * BN, tl.program_id(1)
    columns, members = tl.arange(0, BN), tl.arange(0, BM)
    if SORTED:
        expert = tl.load(owner + block)
        if expert < 0:
            return
        place = tl.load(start + block)
        inside = place + members < tl.load(begin + expert + 1)
        tokens = tl.load(order + place + members, mask=inside, other=0) // top_k
        gate, gate_scale, gate_zero = of_expert(gate, gate_scale, gate_zero, expert, n, k, groups, FORM)
        up, up_scale, up_zero = of_expert(up, up_scale, up_zero, expert, n, k, groups, FORM)
    else:
        place = block * BM
        tokens = place + members
        inside = tokens < m
    gates = tl.zeros((BN, BM), tl.float32)
    ups = tl.zeros((BN, BM), tl.float32)
    inputs = tl.arange(0, BK)
    for at in range(0, k, BK):
        present = (at + inputs < k)[:, None] & inside[None, :]
        values = tl.load(x + at + (tokens[None, :] * x_row + inputs[:, None]), mask=present, other=0.0)
        tile = weight_tile(gate, gate_scale, gate_zero, row, n, at, k, groups, FORM, GROUP, BN, BK)
        gates = dot(tile, values, gates)
        tile = weight_tile(up, up_scale, up_zero, row, n, at, k, groups, FORM, GROUP, BN, BK)
        ups = dot(tile, values, ups)
    out += place.to(tl.int64) * n + row
    present = (row + columns < n)[:, None] & inside[None, :]
    tl.store(out + (members[None, :] * n + columns[:, None]), narrow(swish_product(gates, ups)), mask=present)


@triton.jit
def down(
    hidden, data, scale, zero, shares, out, order, begin, owner, start, n, k, groups,
    FORM: tl.constexpr, GROUP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """hidden [places, k] through each place's expert of the stack [E, n, k], times the pair's share.

    out [pairs, n] fp32, in the order of pairs.
    """
    row, block = tl.program_id(0) * BN, tl.program_id(1)
    columns, members = tl.arange(0, BN), tl.arange(0, BM)
    expert = tl.load(owner + block)
    if expert < 0:
        return
    place = tl.load(start + block)
    inside = place + members < tl.load(begin + expert + 1)
    pairs = tl.load(order + place + members, mask=inside, other=0)
    data, scale, zero = of_expert(data, scale, zero, expert, n, k, groups, FORM)
    acc = tl.zeros((BN, BM), tl.float32)
    inputs = tl.arange(0, BK)
    hidden += place.to(tl.int64) * k
    for at in range(0, k, BK):
        present = (at + inputs < k)[:, None] & inside[None, :]
        values = tl.load(hidden + at + (members[None, :] * k + inputs[:, None]), mask=present, other=0.0)
        acc = dot(weight_tile(data, scale, zero, row, n, at, k, groups, FORM, GROUP, BN, BK), values, acc)
    result = rounded(acc) * tl.load(shares + pairs, mask=inside, other=0.0)[None, :]
    out_at = out + row + (pairs.to(tl.int64)[None, :] * n + columns[:, None])
    store(out_at, result, (row + columns < n)[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["top_k"])
def combine(parts, ids, out, n, top_k, BLOCK: tl.constexpr):
    """parts [T, k, n] fp32 -> out [T, n]: the sum over a token's experts, first to last, but those of other ranks."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(top_k):
        end = tl.where(tl.load(ids + token * top_k + i) >= 0, n, 0)
        total += tl.load(parts + (token * top_k + i) * n + at, mask=at < end, other=0.0)
    tl.store(out + token * n + at, total, mask=at < n)
