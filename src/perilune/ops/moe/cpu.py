"""SwiGLU and experts in C++: `csrc/experts.h`."""

from __future__ import annotations

import torch
from torch import Tensor

from perilune.ops.linear.formats import Weight
from perilune.ops.moe.reference import Swiglu
from perilune.ops.native import BF16, Native


def swiglu(native: Native, x: Tensor, gate: Weight, up: Weight, down: Weight) -> Tensor:
    """As the reference: x [T, D] -> [T, D] bf16, as one expert that every token goes to. Raises KernelInputError."""
    return _experts(native, x, 1, 0, 0, gate, up, down, None)


def experts(
    native: Native,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate: Weight,
    up: Weight,
    down: Weight,
    shared: Swiglu | None = None,
) -> Tensor:
    """As the reference: x [T, D], ids and weights [T, k] -> [T, D] bf16. The id -1 is no expert's.

    Raises KernelInputError, and IndexError for an expert there is not.
    """
    plus = None if shared is None else swiglu(native, x, *shared)
    ids, weights = native.dense(ids), native.dense(weights)
    return _experts(
        native,
        x,
        ids.shape[1],
        native.address(ids, torch.int64, *ids.shape, name="ids"),
        native.address(weights, torch.float32, *ids.shape, name="weights"),
        gate,
        up,
        down,
        plus,
    )


def _experts(
    native: Native,
    x: Tensor,
    top_k: int,
    ids: int,
    weights: int,
    gate: Weight,
    up: Weight,
    down: Weight,
    plus: Tensor | None,
) -> Tensor:
    x = native.dense(x)
    tokens, hidden = x.shape[0], gate.shape[-1]
    out = native.empty(tokens, hidden)
    native.kernels.experts(
        native.address(x, BF16, tokens, hidden, name="x"),
        tokens,
        top_k,
        ids,
        weights,
        native.weight(gate),
        native.weight(up),
        native.weight(down),
        0 if plus is None else native.address(plus, BF16, tokens, hidden, name="what is added"),
        out.data_ptr(),
        native.threads,
    )
    return out
