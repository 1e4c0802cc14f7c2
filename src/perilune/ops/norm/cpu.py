"""RMSNorm in C++: `csrc/norm.h`."""

from __future__ import annotations

from torch import Tensor

from perilune.ops.native import BF16, Native


def rms_norm(native: Native, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As the reference: x [..., D] and weight [D] bf16 -> bf16. Raises KernelInputError."""
    return _norm(native, native.dense(x), None, weight, eps)


def add_norm(native: Native, x: Tensor, part: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As the reference, x changed in place. Raises KernelInputError."""
    x = native.dense(x)
    return x, _norm(native, x, native.dense(part), weight, eps)


def _norm(native: Native, x: Tensor, part: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    dim = x.shape[-1]
    out = native.empty(*x.shape)
    native.kernels.rms_norm(
        native.address(x, BF16, *x.shape, name="x"),
        0 if part is None else native.address(part, BF16, *x.shape, name="part"),
        native.address(weight, BF16, dim, name="weight"),
        x.numel() // dim,
        dim,
        eps,
        out.data_ptr(),
        native.threads,
    )
    return out
