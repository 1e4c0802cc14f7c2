"""Kimi Delta Attention on a GPU. Letters and formulas: `reference.py`; C = 64 tokens in a chunk.

Prefill is five kernels over one sequence: `prepare` (per chunk and head: convolution, norms, decay), `intra` and
`invert` (per chunk and head: what tokens of a chunk are to each other), `chunks` (per head, from chunk to chunk: the
state) and `norm`.
Decoding is one kernel, one program per sequence and head, one pass over the state.

No exponent is ever positive: every exp() here is of a difference of running sums of g <= 0, later minus earlier.
"""

from __future__ import annotations

import triton
import triton.language as tl

from perilune.ops.gpu.language import dot, dot_halves, narrow, rounded, silu, wide

C = tl.constexpr(64)


@triton.jit
def softplus(x):
    """log(1 + exp x), as torch has it: x itself beyond 20."""
    return tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(tl.minimum(x, 20.0))))


@triton.jit
def gate(f, a_log, dt_bias):
    """Log decay g <= 0, fp32."""
    return -tl.exp(a_log) * softplus(f + dt_bias)


@triton.jit
def conv_chunk(raw, window, weight, first, tokens, raw_row, channels, TAPS: tl.constexpr):
    """bf16-rounded SiLU of the causal convolution at tokens first .. first + C of `channels` [K]: fp32 [C, K].

    Raw inputs before the first token are in window [channels, TAPS - 1], oldest first.
    """
    total = tl.zeros((C, channels.shape[0]), tl.float32)
    raw += first.to(tl.int64) * raw_row
    token = tl.arange(0, C)
    for tap in tl.static_range(TAPS):
        source = token + (tap - (TAPS - 1))
        new = (first + source >= 0) & (first + source < tokens)
        x = wide(tl.load(raw + (source[:, None] * raw_row + channels[None, :]), mask=new[:, None], other=0.0))
        kept = (first + source < 0)[:, None] & (channels >= 0)[None, :]
        column = channels[None, :] * (TAPS - 1) + (source + TAPS - 1)[:, None]
        x += wide(tl.load(window + column, mask=kept, other=0.0))
        total += x * wide(tl.load(weight + channels * TAPS + tap))[None, :]
    return tl.where((first + token < tokens)[:, None], rounded(silu(total)), 0.0)


@triton.jit(do_not_specialize=["tokens", "slot"], do_not_specialize_on_alignment=["b"])  # b's rows are a few bytes
def prepare(
    raw, f, b, conv, a_log, dt_bias, window, qkv, inverse, running, beta,
    tokens, slot, heads, raw_row, f_row, b_row, window_row,
    K: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Chunk i of head h: q, k, v or the decay, as the third index is 0, 1, 2 or 3.

    qkv [3, tokens, H, K] bf16 after the convolution; inverse [2, tokens, H] the factors that normalise q and k;
    running [chunks * C, H, K] the sum of g since the chunk's beginning; beta [tokens, H]. All but qkv fp32.
    """
    head, part = tl.program_id(1), tl.program_id(2)
    first = tl.program_id(0) * C
    token = tl.arange(0, C)
    inside = first + token < tokens
    dims = tl.arange(0, K)
    row = first.to(tl.int64) * heads + head
    in_row = token[:, None] * (heads * K) + dims[None, :]
    if part < 3:
        channels = (part * heads + head) * K + dims
        x = conv_chunk(raw, window + slot.to(tl.int64) * window_row, conv, first, tokens, raw_row, channels, TAPS)
        place = part * tokens.to(tl.int64) * heads + row
        tl.store(qkv + place * K + in_row, narrow(x), mask=inside[:, None])
        if part < 2:
            factor = tl.rsqrt(tl.sum(x * x, axis=1) + 1e-6) * tl.where(part == 0, 1.0 / tl.sqrt(K * 1.0), 1.0)
            tl.store(inverse + place + token * heads, factor, mask=inside)
    else:
        f += first.to(tl.int64) * f_row + head * K
        x = wide(tl.load(f + (token[:, None] * f_row + dims[None, :]), mask=inside[:, None], other=0.0))
        g = gate(x, tl.load(a_log + head), tl.load(dt_bias + head * K + dims)[None, :])
        tl.store(running + row * K + in_row, tl.cumsum(tl.where(inside[:, None], g, 0.0), axis=0))
        share = tl.load(b + first.to(tl.int64) * b_row + head + token * b_row, mask=inside, other=0.0)
        tl.store(beta + row + token * heads, tl.sigmoid(wide(share)), mask=inside)


@triton.jit(do_not_specialize=["slot"])
def windows(raw, conv, after, rows, slot, channels, raw_row, conv_row, TAPS: tl.constexpr, BLOCK: tl.constexpr):
    """conv[rows[i]] becomes the last TAPS - 1 raw inputs after after[i] tokens, slot's own window being before them.

    The last row may be the slot itself: a program reads its channels before it writes them, for all i in turn.
    """
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    i = tl.program_id(1)
    tokens, row = tl.load(after + i), tl.load(rows + i)
    column = tl.arange(0, 4)
    source = tokens - (TAPS - 1) + column
    real = inside[:, None] & (column < TAPS - 1)[None, :]
    x = tl.load(
        raw + source.to(tl.int64)[None, :] * raw_row + channel[:, None], mask=real & (source >= 0)[None, :], other=0.0
    )
    old = conv + slot.to(tl.int64) * conv_row + channel[:, None] * (TAPS - 1) + (source + TAPS - 1)[None, :]
    kept = tl.load(old, mask=real & (source < 0)[None, :], other=0.0)
    x = tl.where((source < 0)[None, :], kept, x)
    tl.store(conv + row.to(tl.int64) * conv_row + channel[:, None] * (TAPS - 1) + column[None, :], x, mask=real)


@triton.jit(do_not_specialize=["tokens"])
def intra(
    qkv, inverse, running, beta, system, mix, scaled, decay, tokens, heads, K: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    """Chunk i of head h: system = A fp32 and mix = M bf16, [chunks, H, C, C].

    Also what the state meets: scaled [3, chunks * C, H, K] bf16, q exp G, k exp G and k exp(G_C - G), and decay
    [chunks, H, K] fp32, exp G_C.

    A and M are covered by six levels of square blocks below the diagonal, as in the reference: in each, rows (later
    half) and columns (earlier half) are scaled relative to the boundary between them. A level is one product of all
    rows with all columns; what belongs to other blocks is finite, and masked out.
    """
    chunk, head = tl.program_id(0), tl.program_id(1)
    token = tl.arange(0, C)
    inside = token + chunk * C < tokens
    row = chunk.to(tl.int64) * (C * heads) + head
    part = tokens.to(tl.int64) * heads
    size = tl.num_programs(0).to(tl.int64) * (C * heads)
    q_at, k_at = qkv + row * K, qkv + (part + row) * K
    running += row * K
    scaled += row * K
    decay += (chunk.to(tl.int64) * heads + head) * K
    q_scale = tl.load(inverse + row + token * heads, mask=inside, other=0.0)[:, None]
    k_scale = tl.load(inverse + part + row + token * heads, mask=inside, other=0.0)[:, None]
    share = tl.load(beta + row + token * heads, mask=inside, other=0.0)
    step = heads * K
    own = token[:, None] == token[None, :]
    mixed = tl.zeros((C, C), tl.float32)
    for first in range(0, K, BK):
        dims = first + tl.arange(0, BK)
        in_row = token[:, None] * step + dims[None, :]
        q = wide(tl.load(q_at + in_row, mask=inside[:, None], other=0.0)) * q_scale
        k = wide(tl.load(k_at + in_row, mask=inside[:, None], other=0.0)) * k_scale
        mixed += tl.where(own, tl.sum(q * k, axis=1)[:, None], 0.0)
        now = tl.load(running + in_row)
        last = tl.load(running + (C - 1) * step + dims)
        tl.store(scaled + in_row, narrow(q * tl.exp(now)))
        tl.store(scaled + size * K + in_row, narrow(k * tl.exp(now)))
        tl.store(scaled + 2 * size * K + in_row, narrow(k * tl.exp(last[None, :] - now)))
        tl.store(decay + dims, tl.exp(last))

    products = tl.zeros((C, C), tl.float32)
    for level in range(6):
        half = 1 << level
        block = token // (2 * half)
        late = ((token // half) % 2 == 1)[:, None]
        border = block * (2 * half) + half - 1  # the end of the earlier half
        kk = tl.zeros((C, C), tl.float32)
        qk = tl.zeros((C, C), tl.float32)
        for first in range(0, K, BK):
            dims = first + tl.arange(0, BK)
            in_row = token[:, None] * step + dims[None, :]
            q = wide(tl.load(q_at + in_row, mask=inside[:, None], other=0.0)) * q_scale
            k = wide(tl.load(k_at + in_row, mask=inside[:, None], other=0.0)) * k_scale
            fall = tl.load(running + in_row) - tl.load(running + (border[:, None] * step + dims[None, :]))
            fall = tl.exp(tl.where(late, fall, -fall))
            columns = tl.trans(narrow(tl.where(late, 0.0, k * fall)))
            kk = dot(narrow(tl.where(late, k * fall, 0.0)), columns, kk)
            qk = dot(narrow(tl.where(late, q * fall, 0.0)), columns, qk)
        same = block[:, None] == block[None, :]
        mixed += tl.where(same, qk, 0.0)
        products += tl.where(same, kk, 0.0)
    place = (chunk.to(tl.int64) * heads + head) * (C * C)
    in_chunk = token[:, None] * C + token[None, :]
    tl.store(mix + place + in_chunk, narrow(mixed))
    tl.store(system + place + in_chunk, products * share[:, None])


@triton.jit(do_not_specialize=["tokens"])
def invert(system, beta, solve, tokens, heads):
    """Chunk i of head h: solve = (I + A)^-1 diag(beta) from system = A fp32, [chunks, H, C, C].

    solve [2, chunks, H, C, C] holds bf16 values and what they leave of fp32, in bf16 again: where keys repeat, one
    rounding would put all tokens of a chunk off the same way.

    By forward substitution in fp32: row i of the inverse is e_i - a_i (the rows before). A series in powers of A would
    be all matrix products, but its terms grow like binomials where keys repeat.
    """
    chunk, head = tl.program_id(0), tl.program_id(1)
    token = tl.arange(0, C)
    place = (chunk.to(tl.int64) * heads + head) * (C * C)
    inverted = tl.where(token[:, None] == token[None, :], 1.0, 0.0)
    for i in range(1, C):
        factors = tl.load(system + place + i * C + token)
        row = tl.where(token == i, 1.0, 0.0) - tl.sum(factors[:, None] * inverted, axis=0)
        inverted = tl.where(token[:, None] == i, row[None, :], inverted)
    share = beta + chunk.to(tl.int64) * (C * heads) + head + token * heads
    share = tl.load(share, mask=token + chunk * C < tokens, other=0.0)
    inverted *= share[None, :]
    high = narrow(inverted)
    solve += place + token[:, None] * C + token[None, :]
    tl.store(solve, high)
    tl.store(solve + tl.num_programs(0).to(tl.int64) * (heads * C * C), narrow(inverted - wide(high)))


@triton.jit(do_not_specialize=["tokens", "slot"])
def chunks(
    qkv, scaled, decay, solve, mix, state, exports, out, tokens, slot, heads, state_row,
    K: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Columns of one head's state [K, V], chunk after chunk. out [tokens, H, V] bf16.

        R = solve (V - (K exp G) S)      O = (Q exp G) S + mix R      S <- diag(exp G_C) S + (K exp(G_C - G))^T R

    S and R stay fp32. They enter what becomes state as two bf16 values, what is only output as one. S is kept in two
    parts along K, so that no product needs all of it at once. Row state[slot] is where S starts and ends; after chunk i
    it is also stored in state[exports[i]], unless that is negative.
    """
    H: tl.constexpr = K // 2 if K > 32 else 16
    head = tl.program_id(0)
    dims = tl.arange(0, H)
    more = dims < K - H
    values = tl.program_id(1) * BV + tl.arange(0, BV)
    token = tl.arange(0, C)
    count = (tokens + C - 1) // C
    step = heads * K
    size = count.to(tl.int64) * (C * step)
    rest = count.to(tl.int64) * (heads * C * C)
    in_row = head * K + (token[:, None] * step + dims[None, :])
    in_value = head * K + (token[:, None] * step + values[None, :])
    in_chunk = head * (C * C) + (token[:, None] * C + token[None, :])
    in_state = head * (K * K) + (dims[:, None] * K + values[None, :])
    start = state + slot.to(tl.int64) * state_row
    low = tl.load(start + in_state)
    high = tl.load(start + H * K + in_state, mask=more[:, None], other=0.0)
    v_at = qkv + 2 * tokens.to(tl.int64) * step
    for chunk in range(count):
        inside = (token + chunk * C < tokens)[:, None]
        read = dot_halves(tl.load(scaled + size + in_row), low, tl.zeros((C, BV), tl.float32))
        k = tl.load(scaled + size + H + in_row, mask=more[None, :], other=0.0)
        read = dot_halves(k, high, read)
        v = wide(tl.load(v_at + in_value, mask=inside, other=0.0))
        v -= read
        r = dot(tl.load(solve + rest + in_chunk), narrow(v), tl.zeros((C, BV), tl.float32))
        r = dot_halves(tl.load(solve + in_chunk), v, r)
        o = dot(tl.load(scaled + in_row), narrow(low), tl.zeros((C, BV), tl.float32))
        o = dot(tl.load(scaled + H + in_row, mask=more[None, :], other=0.0), narrow(high), o)
        o = dot(tl.load(mix + in_chunk), narrow(r), o)
        tl.store(out + in_value, narrow(o), mask=inside)
        low = low * tl.load(decay + head * K + dims)[:, None]
        low = dot_halves(tl.trans(tl.load(scaled + 2 * size + in_row)), r, low)
        high = high * tl.load(decay + head * K + H + dims, mask=more, other=0.0)[:, None]
        k = tl.load(scaled + 2 * size + H + in_row, mask=more[None, :], other=0.0)
        high = dot_halves(tl.trans(k), r, high)
        export = tl.load(exports + chunk)
        if export >= 0:
            there = state + export.to(tl.int64) * state_row
            tl.store(there + in_state, low)
            tl.store(there + H * K + in_state, high, mask=more[:, None])
        scaled += C * step
        v_at += C * step
        out += C * step
        solve += heads * (C * C)
        mix += heads * (C * C)
        decay += step
    tl.store(start + in_state, low)
    tl.store(start + H * K + in_state, high, mask=more[:, None])


@triton.jit
def normed(o, gates, weight, eps, V: tl.constexpr):
    """RMSNorm over the last axis of o [T, V], times weight, times sigmoid(gates)."""
    scale = tl.rsqrt(tl.sum(o * o, axis=1) / V + eps)
    return o * scale[:, None] * weight[None, :] * tl.sigmoid(gates)


@triton.jit(do_not_specialize=["tokens"])
def norm(o, gates, weight, out, tokens, heads, gate_row, eps, V: tl.constexpr, BT: tl.constexpr):
    """out [tokens, H, V] = gated norm of o, bf16."""
    row = tl.program_id(0) * BT + tl.arange(0, BT)
    inside = (row < tokens * heads)[:, None]
    dims = tl.arange(0, V)
    at = row.to(tl.int64)[:, None] * V + dims[None, :]
    in_gate = (row // heads).to(tl.int64)[:, None] * gate_row + (row % heads)[:, None] * V + dims[None, :]
    x = wide(tl.load(o + at, mask=inside, other=0.0))
    y = normed(x, wide(tl.load(gates + in_gate, mask=inside, other=0.0)), wide(tl.load(weight + dims)), eps, V)
    tl.store(out + at, narrow(y), mask=inside)


@triton.jit
def conv_step(raw, window, weight, channels):
    """One token's convolution of four taps and SiLU of `channels` [K], as bf16 rounds it, and the next window."""
    x0 = tl.load(window + channels * 3)
    x1 = tl.load(window + channels * 3 + 1)
    x2 = tl.load(window + channels * 3 + 2)
    x3 = tl.load(raw + channels)
    w = weight + channels * 4
    total = wide(x0) * wide(tl.load(w)) + wide(x1) * wide(tl.load(w + 1))
    total = total + wide(x2) * wide(tl.load(w + 2)) + wide(x3) * wide(tl.load(w + 3))
    return rounded(silu(total)), x1, x2, x3


@triton.jit
def keep(window, channels, x1, x2, x3):
    tl.store(window + channels * 3, x1)
    tl.store(window + channels * 3 + 1, x2)
    tl.store(window + channels * 3 + 2, x3)


@triton.jit
def decode(
    raw, f, b, gates, conv, a_log, dt_bias, weight, state, window, rows, slots, out,
    heads, raw_row, f_row, b_row, gate_row, state_row, window_row, eps,
    K: tl.constexpr,
):  # fmt: skip
    """Sequence i, head h: one token, from its raw projections to its gated norm; out [n, H, V] bf16.

    A slot below 0 is padding: nothing is read or written.
    """
    sequence, head = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows + sequence)
    slot = tl.load(slots + sequence)
    if slot < 0:
        return
    dims = tl.arange(0, K)
    in_q, in_k, in_v = head * K + dims, (heads + head) * K + dims, (2 * heads + head) * K + dims
    raw += row * raw_row
    window += slot * window_row
    q, q1, q2, q3 = conv_step(raw, window, conv, in_q)
    k, k1, k2, k3 = conv_step(raw, window, conv, in_k)
    v, v1, v2, v3 = conv_step(raw, window, conv, in_v)
    q = q * tl.rsqrt(tl.sum(q * q, axis=0) + 1e-6) * (1.0 / tl.sqrt(K * 1.0))
    k = k * tl.rsqrt(tl.sum(k * k, axis=0) + 1e-6)
    g = gate(wide(tl.load(f + row * f_row + in_q)), tl.load(a_log + head), tl.load(dt_bias + in_q))
    share = tl.sigmoid(wide(tl.load(b + row * b_row + head)))

    in_state = slot * state_row + in_q[:, None] * K + dims[None, :]
    s = tl.load(state + in_state) * tl.exp(g)[:, None]
    u = share * (v - tl.sum(k[:, None] * s, axis=0))
    s += k[:, None] * u[None, :]
    o = rounded(tl.sum(q[:, None] * s, axis=0))[None, :]
    gating = wide(tl.load(gates + row * gate_row + in_q))[None, :]
    y = normed(o, gating, wide(tl.load(weight + dims)), eps, K)
    # lanes may hold the same value twice: none may still be reading what another overwrites
    tl.debug_barrier()
    tl.store(state + in_state, s)
    keep(window, in_q, q1, q2, q3)
    keep(window, in_k, k1, k2, k3)
    keep(window, in_v, v1, v2, v3)
    tl.store(out + (sequence.to(tl.int64) * heads + head) * K + dims[None, :], narrow(y))
