"""KDA in C++: the decode step in one pass over the state (`csrc/kda.h`), prefill in chunks (`csrc/kda_prefill.h`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from perilune.ops.kda.reference import Parameters, Projections
from perilune.ops.native import BF16, Native


def refuses_dim(dim: int) -> str | None:
    """None if heads of this size can be served, else the reason."""
    return None if dim % 16 == 0 and dim <= 256 else f"a head dim of {dim} (needs a multiple of 16 up to 256)"


def prefill(
    native: Native,
    x: Projections,
    rows: slice,
    slot: int,
    w: Parameters,
    state: Tensor,
    conv: Tensor,
    exports: Sequence[tuple[int, int]] = (),
) -> Tensor:
    """As the reference: [n, H, V] bf16, the slot advanced in place and copied where `exports` says.

    Raises KernelInputError, and IndexError for rows or a slot there are not.
    """
    total, heads, dim = x.f.shape
    tokens = rows.stop - rows.start
    if not 0 <= rows.start < rows.stop <= total:
        raise IndexError(f"rows {rows.start}..{rows.stop} are not in 0..{total}")
    part = Projections(x.raw[rows], x.f[rows], x.b[rows], x.out_gate[rows])
    out = native.empty(tokens, heads, dim)
    memory, sizes = _slots(native, state, conv, heads, dim, w.conv.shape[-1])
    tensors = [*_addresses(native, part, w), *memory, out.data_ptr()]
    after, to = [tokens for tokens, _ in exports], [row for _, row in exports]
    native.kernels.kda_prefill(tensors, [tokens, *sizes], slot, after, to, w.eps, native.threads)
    return out


def decode(
    native: Native, x: Projections, rows: Tensor, slots: Tensor, w: Parameters, state: Tensor, conv: Tensor
) -> Tensor:
    """As the reference: [n, H, V] bf16, slots advanced in place.

    Raises KernelInputError, and IndexError for a row or slot there is not.
    """
    tokens, heads, dim = x.f.shape
    memory, sizes = _slots(native, state, conv, heads, dim, w.conv.shape[-1])
    (count,) = rows.shape
    out = native.empty(count, heads, dim)
    native.kernels.kda_decode(
        [*_addresses(native, x, w), *memory, out.data_ptr()],
        native.address(rows, torch.int64, count, name="rows"),
        native.address(slots, torch.int64, count, name="slots"),
        count,
        [tokens, *sizes],
        w.eps,
        native.threads,
    )
    return out


def _slots(native: Native, state: Tensor, conv: Tensor, heads: int, dim: int, taps: int) -> tuple[list[int], list[int]]:
    """Addresses of both arenas, and (slots, heads, dim, taps, elements between states, between windows)."""
    state_at, state_step = native.rows_address(state, torch.float32, heads, dim, dim, name="state")
    conv_at, conv_step = native.rows_address(conv, BF16, 3, heads, dim, taps - 1, name="conv")
    if conv.shape[0] != state.shape[0]:
        raise IndexError(f"{state.shape[0]} states but {conv.shape[0]} windows")
    return [state_at, conv_at], [state.shape[0], heads, dim, taps, state_step, conv_step]


def _addresses(native: Native, x: Projections, w: Parameters) -> list[int]:
    tokens, heads, dim = x.f.shape
    return [
        native.address(x.raw, BF16, tokens, 3 * heads * dim, name="raw"),
        native.address(x.f, BF16, tokens, heads, dim, name="f"),
        native.address(x.b, BF16, tokens, heads, name="b"),
        native.address(x.out_gate, BF16, tokens, heads, dim, name="out_gate"),
        native.address(w.conv, BF16, 3 * heads * dim, w.conv.shape[-1], name="conv weight"),
        native.address(w.a_log, torch.float32, heads, name="a_log"),
        native.address(w.dt_bias, torch.float32, heads, dim, name="dt_bias"),
        native.address(w.norm, BF16, dim, name="norm"),
    ]
