"""The KDA layer over a batch: chunked for prefill pieces, recurrent for decode rows, state in the slots."""

from __future__ import annotations

import torch
from torch import Tensor

from perilune.models.spec import KdaSpec
from perilune.nn.batch import Batch
from perilune.nn.weights import KdaWeights
from perilune.ops.kda.reference import Parameters, Projections
from perilune.ops.table import Ops


def kda_layer(x: Tensor, w: KdaWeights, spec: KdaSpec, batch: Batch, state: Tensor, conv: Tensor, ops: Ops) -> Tensor:
    """x [T, D] -> [T, D]. Reads and writes, in place, this layer's slots.

    state [S, H, K, V] fp32; conv [S, 3, H, K, taps-1]: the last raw projections of q, k and v.
    """
    return ops.linear(_attend(x, w, spec, batch, state, conv, ops).flatten(1), w.o)


def _attend(x: Tensor, w: KdaWeights, spec: KdaSpec, batch: Batch, state: Tensor, conv: Tensor, ops: Ops) -> Tensor:
    """x [T, D] -> [T, H, V]. The projections, five times as wide, are gone when it returns."""
    linear, heads = ops.linear, (spec.heads, spec.head_dim)
    raw, f, gate, b = ops.linears(x, [[w.q, w.k, w.v], [w.f_a], [w.g_a], [w.b]])
    projected = Projections(
        raw=raw,
        f=linear(f, w.f_b).unflatten(-1, heads),
        b=b,
        out_gate=linear(gate, w.g_b).unflatten(-1, heads),
    )
    parameters = Parameters(w.conv, w.a_log, w.dt_bias, w.norm, spec.norm_eps)
    if not batch.prefill and len(batch.waves) == 1:  # its rows are all there are, in order
        rows, slots = batch.waves[0].rows, batch.waves[0].slots
        return ops.kda_decode(projected, rows, slots, parameters, state, conv)
    if len(batch.prefill) == 1 and not batch.waves:
        [piece] = batch.prefill
        return ops.kda_prefill(projected, piece.rows, piece.slot, parameters, state, conv, piece.exports)
    o = torch.empty(x.shape[0], *heads, dtype=x.dtype, device=x.device)
    for piece in batch.prefill:
        o[piece.rows] = ops.kda_prefill(projected, piece.rows, piece.slot, parameters, state, conv, piece.exports)
    for wave in batch.waves:
        o[wave.rows] = ops.kda_decode(projected, wave.rows, wave.slots, parameters, state, conv)
    return o
