"""Sampling on a GPU: one program per row of logits [n, V], which it reads a few times from cache.

A threshold is found by its bits, three at a pass: a float's order as an integer is its order as a number. That needs no
sort and no memory, and takes 11 passes for any vocabulary.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def ordered(x):
    """fp32 as uint32 in the same order; both zeros alike; -inf and every NaN as 0, below all numbers."""
    bits = tl.where(x == 0, 0.0, x).to(tl.uint32, bitcast=True)
    keys = tl.where(bits >= 0x80000000, ~bits, bits | 0x80000000)
    return tl.where(x > float("-inf"), keys, 0)


@triton.jit
def read(row, at, size):
    return tl.load(row + at, mask=at < size, other=float("-inf"))


@triton.jit(do_not_specialize=["repetition", "presence", "frequency"])
def penalise(logits, seen, counts, out, size, repetition, presence, frequency, BLOCK: tl.constexpr):
    """As the reference, for BLOCK tokens of row i of logits, counts and seen [n, size]."""
    row = tl.program_id(0).to(tl.int64) * size
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    x = tl.load(logits + row + at, mask=inside, other=0.0)
    times = tl.load(counts + row + at, mask=inside, other=0.0)
    before = tl.load(seen + row + at, mask=inside, other=0) != 0
    x = tl.where(before, tl.where(x > 0, x / repetition, x * repetition), x)
    x -= tl.where(times > 0, presence, 0.0) + frequency * times
    tl.store(out + row + at, x, mask=inside)


@triton.jit
def threshold(row, size, wanted, peak, floor, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest key for which the tokens at or above it, and at or above key `floor`, reach what is wanted: a number
    of them, or a share of their MASS, the sum of exp(x - peak). And the number or mass of all from `floor` on."""
    key = tl.zeros((), tl.uint32)
    total = tl.zeros((), tl.float32)
    for step in range(11):
        shift = tl.maximum(29 - 3 * step, 0).to(tl.uint32)  # the last pass looks at one bit again
        tried = key + (tl.arange(0, 8).to(tl.uint32) << shift)
        sums = tl.zeros((8, BLOCK), tl.float32)  # lanes meet once a pass, not once a block
        for first in range(0, size, BLOCK):
            x = read(row, first + tl.arange(0, BLOCK), size)
            keys = ordered(x)
            weight = tl.where(keys >= floor, tl.exp(x - peak) if MASS else 1.0, 0.0)
            sums += tl.where(keys[None, :] >= tried[:, None], weight[None, :], 0.0)
        reached = tl.sum(sums, axis=1)  # never more for a larger key
        if step == 0:
            total = tl.max(reached, axis=0)
        goal = wanted * total if MASS else wanted
        digit = tl.maximum(tl.sum(tl.where(reached >= goal, 1, 0), axis=0) - 1, 0)
        key += digit.to(tl.uint32) << shift
    return key, total


@triton.jit
def truncate(logits, settings, out, size, BLOCK: tl.constexpr):
    """As the reference, with top_k, top_p and min_p in columns 0 to 2 of settings [n, 4] fp64. Of tokens equal to the
    last that top-p keeps, those with the lowest ids stay."""
    row = logits + tl.program_id(0).to(tl.int64) * size
    settings += tl.program_id(0) * 4
    top_k = tl.load(settings).to(tl.float32)
    top_p = tl.load(settings + 1).to(tl.float32)
    min_p = tl.load(settings + 2).to(tl.float32)
    peak = float("-inf")
    for first in range(0, size, BLOCK):
        peak = tl.maximum(peak, tl.max(read(row, first + tl.arange(0, BLOCK), size), axis=0))
    floor = tl.full((), 1, tl.uint32)
    if (top_k > 0) & (top_k < size):
        kth, _ = threshold(row, size, top_k, peak, floor, False, BLOCK)
        floor = tl.maximum(floor, kth)
    last = tl.zeros((), tl.uint32)  # the key some of whose tokens may have to go
    room = tl.full((), 1.0, tl.float32) * size  # how many of them stay
    if top_p < 1.0:
        last, total = threshold(row, size, top_p, peak, floor, True, BLOCK)
        above = tl.zeros((), tl.float32)
        each = tl.zeros((), tl.float32)
        for first in range(0, size, BLOCK):
            x = read(row, first + tl.arange(0, BLOCK), size)
            keys = ordered(x)
            above += tl.sum(tl.where((keys > last) & (keys >= floor), tl.exp(x - peak), 0.0), axis=0)
            each = tl.maximum(each, tl.max(tl.where(keys == last, tl.exp(x - peak), 0.0), axis=0))
        floor = tl.maximum(floor, last)
        room = tl.maximum(tl.ceil((top_p * total - above) / tl.maximum(each, 1e-30)), 1.0)
    least = tl.where(min_p > 0.0, peak + tl.log(tl.maximum(min_p, 1e-30)), float("-inf"))
    met = tl.zeros((), tl.float32)
    for first in range(0, size, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = read(row, at, size)
        keys = ordered(x)
        same = tl.where(keys == last, 1.0, 0.0)
        rank = met + tl.cumsum(same, axis=0)
        met += tl.sum(same, axis=0)
        kept = (keys >= floor) & (x >= least) & ((keys != last) | (rank <= room))
        tl.store(out + tl.program_id(0).to(tl.int64) * size + at, tl.where(kept, x, float("-inf")), mask=at < size)


@triton.jit
def draw(logits, settings, out, size, BLOCK: tl.constexpr):
    """out [n] int64: the token whose share of the cumulative probability holds column 3 of settings [n, 4] fp64, -1
    where no token has one. Sums are fp64."""
    i = tl.program_id(0)
    row = logits + i.to(tl.int64) * size
    peak = float("-inf")
    for first in range(0, size, BLOCK):
        peak = tl.maximum(peak, tl.max(read(row, first + tl.arange(0, BLOCK), size), axis=0))
    total = tl.zeros((), tl.float64)
    for first in range(0, size, BLOCK):
        total += tl.sum(tl.exp(read(row, first + tl.arange(0, BLOCK), size) - peak).to(tl.float64), axis=0)
    target = tl.load(settings + i * 4 + 3) * total
    reached = tl.zeros((), tl.float64)
    token = tl.full((), 1 << 30, tl.int32)
    possible = tl.zeros((), tl.int32)  # rounding may leave none above the target: then the last with any share
    for first in range(0, size, BLOCK):
        at = first + tl.arange(0, BLOCK)
        share = tl.exp(read(row, at, size) - peak).to(tl.float64)
        above = reached + tl.cumsum(share, axis=0) > target
        token = tl.minimum(token, tl.min(tl.where(above & (share > 0), at, 1 << 30), axis=0))
        possible = tl.maximum(possible, tl.max(tl.where(share > 0, at, 0), axis=0))
        reached += tl.sum(share, axis=0)
    token = tl.where(token < (1 << 30), token, possible)
    tl.store(out + i, tl.where(total > 0, token, -1).to(tl.int64))
