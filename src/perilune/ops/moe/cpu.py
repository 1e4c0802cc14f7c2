"""SwiGLU and experts in C++: `csrc/experts.h`."""

from __future__ import annotations

import torch
from torch import Tensor

from perilune.ops.linear.formats import Weight
from perilune.ops.native import BF16, Native, address


def swiglu(native: Native, x: Tensor, gate: Weight, up: Weight, down: Weight) -> Tensor:
    """As the reference: x [T, D] -> [T, D] bf16, as one expert that every token goes to. Raises KernelInputError."""
    every = torch.zeros(x.shape[0], 1, dtype=torch.int64)
    return experts(native, x, every, torch.ones(x.shape[0], 1), gate, up, down).bfloat16()


def experts(native: Native, x: Tensor, ids: Tensor, weights: Tensor, gate: Weight, up: Weight, down: Weight) -> Tensor:
    """As the reference: x [T, D], ids and weights [T, k] -> fp32 [T, D]. The id -1 is no expert's.

    Raises KernelInputError, and IndexError for an expert there is not.
    """
    x, ids, weights = x.contiguous(), ids.contiguous(), weights.contiguous()
    tokens, top_k = ids.shape
    hidden = gate.shape[-1]
    out = torch.empty(tokens, hidden, dtype=torch.float32)
    native.kernels.experts(
        address(x, BF16, tokens, hidden, name="x"),
        tokens,
        top_k,
        address(ids, torch.int64, tokens, top_k, name="ids"),
        address(weights, torch.float32, tokens, top_k, name="weights"),
        native.weight(gate),
        native.weight(up),
        native.weight(down),
        out.data_ptr(),
        native.threads,
    )
    return out
