"""Kimi Delta Attention in plain, differentiable torch. Leading dims are free (usually [B, H] or [H]).

The layer, per head (facts: arXiv 2510.26692 and the hub's modeling code):

    g_t = -exp(A_log) * softplus(f_t + dt_bias)          log decay, one per channel, (-inf, 0]
    S  <- diag(exp g_t) S
    u   = beta_t (v_t - S^T k_t)
    S  <- S + k_t u^T
    o_t = S^T q_t                                        read after write

`recurrent_kda` is that loop. `chunk_kda` is its exact rearrangement over chunks of 64 tokens. `prefill` and `decode`
are the whole layer between its projections, over slots: what a kernel replaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from perilune.ops.rows import pointwise

CHUNK = 64


@dataclass(frozen=True)
class Projections:
    """What the layer projects from T tokens.

    raw [T, 3 H K]: q, k and v before the convolution; f [T, H, K]; b [T, H]; out_gate [T, H, V].
    """

    raw: Tensor
    f: Tensor
    b: Tensor
    out_gate: Tensor


@dataclass(frozen=True)
class Parameters:
    """conv [3 H K, taps] with q, k and v rows in that order; a_log [H], dt_bias [H, K] fp32; norm [V]."""

    conv: Tensor
    a_log: Tensor
    dt_bias: Tensor
    norm: Tensor
    eps: float


def gate(f: Tensor, a_log: Tensor, dt_bias: Tensor) -> Tensor:
    """Log decay g [..., T, H, K] fp32 from f [..., T, H, K], a_log [H], dt_bias [H, K]."""
    return -a_log.float().exp()[:, None] * pointwise(F.softplus, f.float() + dt_bias.float())


def short_conv(x: Tensor, weight: Tensor, window: Tensor) -> Tensor:
    """Depthwise causal convolution, then SiLU.

    x [..., T, D], weight [D, taps] (last tap on the current token), window [..., D, taps-1]: the raw inputs
    before x, oldest first. Returns [..., T, D] in x's dtype; sums in fp32.
    """
    taps = weight.shape[-1]
    tokens = x.shape[-2]
    padded = torch.cat([window.transpose(-1, -2).to(x.dtype), x], dim=-2).float()
    w = weight.float()
    y = padded[..., :tokens, :] * w[:, 0]
    for tap in range(1, taps):
        y = y + padded[..., tap : tap + tokens, :] * w[:, tap]
    return pointwise(F.silu, y).to(x.dtype)


def next_window(x: Tensor, window: Tensor) -> Tensor:
    """The window [..., D, taps-1] that follows after inputs x [..., T, D]."""
    joined = torch.cat([window.to(x.dtype), x.transpose(-1, -2)], dim=-1)
    return joined[..., -window.shape[-1] :]


def normalise_qk(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Unit length per head (1e-6 inside the root), q also divided by sqrt(K). fp32."""
    q, k = q.float(), k.float()
    q = q * torch.rsqrt((q * q).sum(-1, keepdim=True) + 1e-6)
    k = k * torch.rsqrt((k * k).sum(-1, keepdim=True) + 1e-6)
    return q * q.shape[-1] ** -0.5, k


def recurrent_kda(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Token by token: q, k, g [..., T, K], v [..., T, V], beta [..., T], state [..., K, V] -> (o [..., T, V], state).

    Products are written out and summed over K: a batched matrix product may round by how many it is given at once.
    """
    outputs = []
    decay = pointwise(torch.exp, g)
    for t in range(q.shape[-2]):
        state = state * decay[..., t, :, None]
        read = (k[..., t, :, None] * state).sum(-2)
        u = beta[..., t, None] * (v[..., t, :] - read)
        state = state + k[..., t, :, None] * u[..., None, :]
        outputs.append((q[..., t, :, None] * state).sum(-2))
    return torch.stack(outputs, dim=-2), state


def _decayed_products(k: Tensor, q: Tensor, running: Tensor) -> tuple[Tensor, Tensor]:
    """For x = k and x = q: M_ij = sum_d x_id k_jd exp(G_id - G_jd) for j < i, zero elsewhere. [..., C, C].

    exp(-G) overflows fp32 (sums of -195 over a chunk occur), so M is never formed as one product. The lower
    triangle is covered by log2(C) levels of square blocks. In each, rows (later half) and columns (earlier half)
    are scaled relative to the boundary between them, so both exponents are <= 0 whatever the gate is.
    """
    chunk, width = k.shape[-2:]
    lead = k.shape[:-2]
    kk = qk = k.new_zeros(*lead, chunk, 1, 1)  # the diagonal: C blocks of one token
    half = 1
    while half < chunk:
        shape = (*lead, chunk // (2 * half), 2, half, width)
        early, late = running.reshape(shape).unbind(-3)
        boundary = early[..., -1:, :]
        columns = k.reshape(shape).select(-3, 0) * (boundary - early).exp()
        scale = (late - boundary).exp()
        rows = torch.cat([k.reshape(shape).select(-3, 1) * scale, q.reshape(shape).select(-3, 1) * scale], dim=-2)
        block_kk, block_qk = (rows @ columns.transpose(-1, -2)).split(half, dim=-2)
        kk, qk = _join(kk, block_kk), _join(qk, block_qk)
        half *= 2
    return kk.squeeze(-3), qk.squeeze(-3)


def _join(halves: Tensor, block: Tensor) -> Tensor:
    """[..., 2n, h, h] diagonal blocks and [..., n, h, h] blocks below them -> [..., n, 2h, 2h]."""
    upper, lower = halves.unflatten(-3, (-1, 2)).unbind(-3)
    top = torch.cat([upper, torch.zeros_like(block)], dim=-1)
    return torch.cat([top, torch.cat([block, lower], dim=-1)], dim=-2)


def chunk_kda(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Chunked delta rule. Shapes as `recurrent_kda`; q and k already normalised; all fp32.

    Returns o [..., T, V] and states [N, ..., K, V]: the state after each 64-token chunk counted from the first
    token (the last may be partial). With G the running sum of g inside a chunk and S the state before it:

        A_ij = beta_i sum_d k_id k_jd exp(G_id - G_jd), j < i         T = (I + A)^-1
        R = T diag(beta) (V - (K exp G) S)
        O = (Q exp G) S + M R,  M_ij = sum_d q_id k_jd exp(G_id - G_jd), j <= i
        S <- diag(exp G_C) S + (K exp(G_C - G))^T R

    A partial chunk is padded with k = v = beta = g = 0, which leaves S unchanged, so every chunk has the same shapes.
    """
    tokens = q.shape[-2]
    count = -(-tokens // CHUNK)
    pad = count * CHUNK - tokens
    q, k, v, g = (_chunked(F.pad(x, (0, 0, 0, pad))) for x in (q, k, v, g))
    beta = F.pad(beta, (0, pad)).unflatten(-1, (count, CHUNK))

    ones = torch.ones(CHUNK, CHUNK, dtype=g.dtype, device=g.device).tril()
    running = ones @ g
    kk, qk = _decayed_products(k, q, running)
    system = kk * beta[..., None]
    mix = qk + torch.diag_embed((q * k).sum(-1))
    k_in, q_in = k * running.exp(), q * running.exp()
    k_out = k * (running[..., -1:, :] - running).exp()
    decay = running[..., -1, :].exp()
    solved = torch.linalg.solve_triangular(
        system, torch.cat([v, k_in], dim=-1) * beta[..., None], upper=False, unitriangular=True
    )
    u, w = solved.split([v.shape[-1], k.shape[-1]], dim=-1)

    outputs, states = [], []
    for n in range(count):
        r = u[..., n, :, :] - w[..., n, :, :] @ state
        outputs.append(q_in[..., n, :, :] @ state + mix[..., n, :, :] @ r)
        state = decay[..., n, :, None] * state + k_out[..., n, :, :].transpose(-1, -2) @ r
        states.append(state)
    return torch.cat(outputs, dim=-2)[..., :tokens, :], torch.stack(states)


def _chunked(x: Tensor) -> Tensor:
    chunked: Tensor = x.unflatten(-2, (x.shape[-2] // CHUNK, CHUNK))
    return chunked


def gated_norm(o: Tensor, gate_logits: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over V of o [..., V], times weight [V], times sigmoid(gate_logits [..., V]); all fp32."""
    o = o.float()
    normed = o * torch.rsqrt((o * o).mean(-1, keepdim=True) + eps) * weight.float()
    return normed * pointwise(torch.sigmoid, gate_logits.float())


def prefill(
    x: Projections,
    rows: slice,
    slot: int,
    w: Parameters,
    state: Tensor,
    conv: Tensor,
    exports: Sequence[tuple[int, int]] = (),
) -> Tensor:
    """One sequence's new tokens, `rows` of the batch -> gated and normed [n, H, V] in raw's dtype.

    Reads and writes slot `slot` of state [S, H, K, V] fp32 and conv [S, 3, H, K, taps-1] in place; afterwards they
    are those after the last token. Each (tokens, row) of `exports`, tokens a multiple of 64, gets the state and
    window after that many of them, in the same pass.
    """
    heads, dim = x.f.shape[-2:]
    window = conv[slot].flatten(0, 2)
    mixed = short_conv(x.raw[rows], w.conv, window)
    wanted = dict(exports)
    for after, row in wanted.items():
        conv[row] = next_window(x.raw[rows][:after], window).view_as(conv[row])
    conv[slot] = next_window(x.raw[rows], window).view_as(conv[slot])
    q, k, v = mixed.unflatten(-1, (3, heads, dim)).permute(1, 2, 0, 3).unbind(0)  # each [H, n, K]
    q, k = normalise_qk(q, k)
    g, beta = gate(x.f[rows], w.a_log, w.dt_bias), pointwise(torch.sigmoid, x.b[rows].float())
    inputs = (q, k, v.float(), g.transpose(0, 1), beta.transpose(0, 1))
    current, outputs = state[slot].clone(), []
    for first in range(0, q.shape[1], CHUNK):
        # One chunk a call: BLAS may round a small product differently by how many it is given at once, and the
        # same chunk must give the same bits however the prompt was cut.
        cq, ck, cv, cg, cbeta = (part[:, first : first + CHUNK].contiguous() for part in inputs)
        o, states = chunk_kda(cq, ck, cv, cg, cbeta, current)
        current = states[-1]
        outputs.append(o)
        if first + CHUNK in wanted:
            state[wanted[first + CHUNK]] = current
    state[slot] = current
    o = torch.cat(outputs, dim=1).transpose(0, 1).contiguous()
    return gated_norm(o.to(x.raw.dtype), x.out_gate[rows], w.norm, w.eps).to(x.raw.dtype)


def decode(x: Projections, rows: Tensor, slots: Tensor, w: Parameters, state: Tensor, conv: Tensor) -> Tensor:
    """One token of each of n sequences: rows and slots [n] int64 -> gated and normed [n, H, V]. Else as `prefill`."""
    heads, dim = x.f.shape[-2:]
    new = x.raw[rows][:, None]  # [n, 1, 3 H K]
    windows = conv[slots].flatten(1, 3)
    mixed = short_conv(new, w.conv, windows)
    conv[slots] = next_window(new, windows).view(-1, *conv.shape[1:])
    q, k, v = mixed.unflatten(-1, (3, heads, dim)).permute(2, 0, 3, 1, 4).unbind(0)  # [n, H, 1, K]
    q, k = normalise_qk(q, k)
    # contiguous: torch walks a dim of size one in an order of its own, and would sum differently for one sequence
    q, k, v = q.contiguous(), k.contiguous(), v.float().contiguous()
    g, beta = gate(x.f[rows], w.a_log, w.dt_bias), pointwise(torch.sigmoid, x.b[rows].float())
    o, after = recurrent_kda(q, k, v, g[:, :, None], beta[..., None], state[slots])
    state[slots] = after
    return gated_norm(o.squeeze(-2).to(x.raw.dtype), x.out_gate[rows], w.norm, w.eps).to(x.raw.dtype)
