"""The KDA layer over a batch: chunked for prefill pieces, recurrent for decode rows, state in the slots."""

from __future__ import annotations

import torch
from torch import Tensor

from perilune.models.spec import KdaSpec
from perilune.nn.batch import Batch, PrefillPiece, Wave
from perilune.nn.weights import KdaWeights
from perilune.ops.kda import reference as kda
from perilune.ops.linear.reference import linear
from perilune.ops.rows import pointwise


def kda_layer(x: Tensor, w: KdaWeights, spec: KdaSpec, batch: Batch, state: Tensor, conv: Tensor) -> Tensor:
    """x [T, D] -> [T, D]. Reads and writes, in place, this layer's slots.

    state [S, H, K, V] fp32; conv [S, 3, H, K, taps-1]: the last raw projections of q, k and v.
    """
    raw = torch.cat([linear(x, w.q), linear(x, w.k), linear(x, w.v)], dim=-1)
    heads = (spec.heads, spec.head_dim)
    g = kda.gate(linear(linear(x, w.f_a), w.f_b).unflatten(-1, heads), w.a_log, w.dt_bias)
    beta = pointwise(torch.sigmoid, linear(x, w.b).float())
    out_gate = linear(linear(x, w.g_a), w.g_b).unflatten(-1, heads)

    o = torch.empty(x.shape[0], *heads, dtype=torch.float32, device=x.device)
    for piece in batch.prefill:
        o[piece.rows] = _prefill(piece, raw, g, beta, w, spec, state, conv)
    for wave in batch.waves:
        o[wave.rows] = _decode(wave, raw, g, beta, w, spec, state, conv)

    gated = kda.gated_norm(o.to(x.dtype), out_gate, w.norm, spec.norm_eps).to(x.dtype)
    return linear(gated.flatten(1), w.o)


def _prefill(
    piece: PrefillPiece,
    raw: Tensor,
    g: Tensor,
    beta: Tensor,
    w: KdaWeights,
    spec: KdaSpec,
    state: Tensor,
    conv: Tensor,
) -> Tensor:
    """One sequence's new tokens -> o [n, H, V]; leaves the state after the last of them in the slot.

    Each (tokens, row) of `piece.exports` gets the state and window after that many of them.
    """
    rows, slot = piece.rows, piece.slot
    window = conv[slot].flatten(0, 2)
    mixed = kda.short_conv(raw[rows], w.conv, window)
    exports = dict(piece.exports)
    for after, row in exports.items():
        conv[row] = kda.next_window(raw[rows][:after], window).view_as(conv[row])
    conv[slot] = kda.next_window(raw[rows], window).view_as(conv[slot])
    q, k, v = mixed.unflatten(-1, (3, spec.heads, spec.head_dim)).permute(1, 2, 0, 3).unbind(0)  # each [H, n, K]
    q, k = kda.normalise_qk(q, k)
    inputs = (q, k, v.float(), g[rows].transpose(0, 1), beta[rows].transpose(0, 1))
    current, outputs = state[slot].clone(), []
    for first in range(0, piece.count, kda.CHUNK):
        # One chunk a call: BLAS may round a small product differently by how many it is given at once, and the
        # same chunk must give the same bits however the prompt was cut.
        cq, ck, cv, cg, cbeta = (x[:, first : first + kda.CHUNK].contiguous() for x in inputs)
        o, states = kda.chunk_kda(cq, ck, cv, cg, cbeta, current)
        current = states[-1]
        outputs.append(o)
        if first + kda.CHUNK in exports:
            state[exports[first + kda.CHUNK]] = current
    state[slot] = current
    return torch.cat(outputs, dim=1).transpose(0, 1)


def _decode(
    wave: Wave, raw: Tensor, g: Tensor, beta: Tensor, w: KdaWeights, spec: KdaSpec, state: Tensor, conv: Tensor
) -> Tensor:
    """One token of each sequence in the wave -> o [n, H, V]."""
    rows, slots = wave.rows, wave.slots
    new = raw[rows][:, None]  # [n, 1, 3 H K]
    windows = conv[slots].flatten(1, 3)
    mixed = kda.short_conv(new, w.conv, windows)
    conv[slots] = kda.next_window(new, windows).view(-1, *conv.shape[1:])
    q, k, v = mixed.unflatten(-1, (3, spec.heads, spec.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)  # [n, H, 1, K]
    q, k = kda.normalise_qk(q, k)
    # contiguous: torch walks a dim of size one in an order of its own, and would sum differently for one sequence
    q, k, v = q.contiguous(), k.contiguous(), v.float().contiguous()
    o, after = kda.recurrent_kda(q, k, v, g[rows][:, :, None], beta[rows][..., None], state[slots])
    state[slots] = after
    return o.squeeze(-2)
