"""Mixture of experts: sigmoid router with a correction bias and groups, then SwiGLU experts. Plain torch.

    a = sigmoid(W_g x)   b = a + bias           fp32
    group score = sum of the two largest b in the group; keep `top_groups` groups
    experts = top-k of b;  w = a at those, / (sum + 1e-20) if renormalised, * scaling
    y = sum_e w_e down_e(SiLU(gate_e x) * up_e x)

Weights come from the unbiased scores (facts: the hub's own Kimi-Linear code aliases the two; every engine and the
later K3 code use the unbiased ones).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from perilune.ops.linear.formats import Weight
from perilune.ops.linear.reference import linear, linear_fp32
from perilune.ops.rows import pointwise, sum_last

Swiglu = tuple[Weight, Weight, Weight]
"""Gate, up and down."""


def route(
    x: Tensor,
    router: Tensor,
    bias: Tensor,
    *,
    top_k: int,
    groups: int = 1,
    top_groups: int = 1,
    renormalise: bool = True,
    scaling: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """x [T, D], router [E, D], bias [E] -> expert ids [T, k] int64 and weights [T, k] fp32."""
    scores = pointwise(torch.sigmoid, linear_fp32(x, router))
    choice = scores + bias.float()
    if groups > 1:
        grouped = choice.view(x.shape[0], groups, -1)
        group_scores = sum_last(grouped.topk(2, dim=-1).values)
        kept = torch.zeros_like(group_scores, dtype=torch.bool)
        kept.scatter_(1, group_scores.topk(top_groups, dim=-1).indices, True)
        # -inf and not 0: a biased score may be negative
        choice = grouped.masked_fill(~kept[..., None], float("-inf")).flatten(1)
    ids = choice.topk(top_k, dim=-1).indices
    weights = scores.gather(1, ids)
    if renormalise:
        weights = weights / (sum_last(weights)[:, None] + 1e-20)
    return ids, weights * scaling


def swiglu(x: Tensor, gate: Weight, up: Weight, down: Weight) -> Tensor:
    """down(SiLU(gate x) * up x): x [T, D] -> [T, D]."""
    return linear(pointwise(F.silu, linear(x, gate)) * linear(x, up), down)


def experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate: Weight,
    up: Weight,
    down: Weight,
    shared: Swiglu | None = None,
) -> Tensor:
    """x [T, D], ids and weights [T, k], stacked weights [E, ...] -> [T, D] in x's dtype. The id -1 is no expert's.

    Sums are taken in fp32; the shared expert, rounded to x's dtype, joins last. Each expert in use is visited once, in
    ascending order: a token's sum is then taken in the same order whatever else is in the batch.
    """
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    flat = ids.flatten()
    order = flat.argsort(stable=True)
    start, *counts = torch.bincount(flat + 1, minlength=gate.shape[0] + 1).tolist()
    for expert, count in enumerate(counts):
        if count == 0:
            continue
        picked = order[start : start + count]
        start += count
        rows = picked // ids.shape[1]
        y = swiglu(x[rows], gate.expert(expert), up.expert(expert), down.expert(expert))
        out.index_add_(0, rows, y.float() * weights.flatten()[picked, None])
    return (out if shared is None else out + swiglu(x, *shared).float()).to(x.dtype)
