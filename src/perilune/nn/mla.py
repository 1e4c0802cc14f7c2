"""The MLA layer over a batch: latents into the pages, expanded attention for prefill, absorbed for decode."""

from __future__ import annotations

import torch
from torch import Tensor

from perilune.models.spec import MlaSpec
from perilune.nn.batch import Batch
from perilune.nn.weights import MlaWeights
from perilune.ops.mla.reference import Rotation, Shape
from perilune.ops.table import Ops


def mla_layer(
    x: Tensor, w: MlaWeights, spec: MlaSpec, batch: Batch, pages: Tensor, rotation: Rotation | None, ops: Ops
) -> Tensor:
    """x [T, D] -> [T, D]. Writes the new latents into this layer's pages [P, 64, R + rope], then attends.

    `rotation` is cos and sin of the batch's positions, or None where keys are not rotated.
    """
    query, kv = _query_and_latent(x, w, spec, ops)
    q = query.unflatten(-1, (spec.heads, spec.qk_dim))
    q = ops.mla_store(q, kv, w.kv_norm, spec.latent_norm_eps, rotation, pages, batch.page_ids, batch.offsets)

    shape: Shape = {"nope": spec.nope_dim, "v_dim": spec.v_dim, "rank": spec.latent_rank, "scale": spec.softmax_scale}
    parts = [
        ops.mla_prefill(q[piece.rows], pages, piece.pages, piece.start, w.kv_b, **shape) for piece in batch.prefill
    ]
    if len(batch.lengths):
        parts.append(ops.mla_decode(q[batch.decode_start :], pages, batch.tables, batch.lengths, w.kv_b, **shape))
    o = parts[0] if len(parts) == 1 else torch.cat(parts)
    return ops.linear(o.to(x.dtype).flatten(1), w.o)


def _query_and_latent(x: Tensor, w: MlaWeights, spec: MlaSpec, ops: Ops) -> tuple[Tensor, Tensor]:
    """q [T, H * (nope + rope)] and the latent with its shared key [T, R + rope], not normed."""
    if w.q is not None:
        q, kv = ops.linears(x, [[w.q], [w.kv_a]])
        return q, kv
    assert w.q_a is not None
    assert w.q_b is not None
    assert w.q_norm is not None
    low, kv = ops.linears(x, [[w.q_a], [w.kv_a]])
    return ops.linear(ops.rms_norm(low, w.q_norm, spec.latent_norm_eps), w.q_b), kv
