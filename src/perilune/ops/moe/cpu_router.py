"""The router in C++: `csrc/router.h`."""

from __future__ import annotations

import torch
from torch import Tensor

from perilune.ops.native import BF16, Native


def route(
    native: Native,
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
    """As the reference: x [T, D] bf16, router [E, D] fp32 or bf16, bias [E] fp32 -> ids and weights [T, k].

    Of equal experts the first is taken. Raises KernelInputError, and ValueError for groups that do not divide E.
    """
    x = native.dense(x)
    tokens, dim = x.shape
    experts = router.shape[0]
    wide = router.dtype == torch.float32
    ids = native.empty(tokens, top_k, dtype=torch.int64)
    weights = native.empty(tokens, top_k, dtype=torch.float32)
    native.kernels.route(
        native.address(x, BF16, tokens, dim, name="x"),
        tokens,
        dim,
        native.address(router, torch.float32 if wide else BF16, experts, dim, name="router"),
        wide,
        native.address(bias, torch.float32, experts, name="router bias"),
        [experts, groups, top_groups, top_k],
        renormalise,
        scaling,
        ids.data_ptr(),
        weights.data_ptr(),
        native.threads,
    )
    return ids, weights
