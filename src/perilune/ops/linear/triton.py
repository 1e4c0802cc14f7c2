"""Matrix products in Triton: `kernels.py`. Weights stay as the files have them; nothing is laid out again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from perilune.ops.gpu.launch import Gpu
from perilune.ops.linear import kernels
from perilune.ops.linear.formats import (
    FP8_BLOCK,
    MXFP4_BLOCK,
    DenseWeight,
    Fp8BlockWeight,
    Int4Weight,
    Int8Weight,
    Mxfp4Weight,
    TiledWeight,
    Weight,
)

FEW = 16  # rows up to which a product only streams its weight


class Stored(NamedTuple):
    """A weight as kernels take it: its tensors, what they hold, how many inputs share a scale, and scales per row."""

    data: Tensor
    scale: Tensor
    zero: Tensor
    form: str
    group: int
    groups: int

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.data, self.scale, self.zero


def stored(weight: Weight) -> Stored:
    """Tensors that a format does not have are the data once more: a kernel takes a pointer for each and reads none."""
    if isinstance(weight, DenseWeight):
        form = "fp32" if weight.data.dtype == torch.float32 else "bf16"
        return Stored(weight.data, weight.data, weight.data, form, 1, 1)
    if isinstance(weight, Int4Weight):
        zero = weight.packed if weight.zero is None else weight.zero
        form = "int4" if weight.zero is None else "int4z"
        return Stored(weight.packed, weight.scale, zero, form, weight.group, weight.scale.shape[-1])
    if isinstance(weight, Mxfp4Weight):
        return Stored(weight.packed, weight.scale, weight.packed, "mxfp4", MXFP4_BLOCK, weight.scale.shape[-1])
    if isinstance(weight, Int8Weight):
        return Stored(weight.data, weight.scale, weight.data, "int8", weight.group, weight.scale.shape[-1])
    assert isinstance(weight, Fp8BlockWeight), "strips are for processors: select refuses them"
    data = weight.data.view(torch.uint8)
    return Stored(data, weight.scale_inv, data, "fp8", FP8_BLOCK, weight.scale_inv.shape[-1])


def refuses(weight: Weight) -> str | None:
    """None if the kernels can read the weight, else the reason."""
    if isinstance(weight, TiledWeight):
        return "a weight lies in strips, for a processor"
    if any(not tensor.is_contiguous() for tensor in weight.tensors.values()):
        return "a weight is not contiguous"
    if isinstance(weight, DenseWeight) and weight.data.dtype not in (torch.bfloat16, torch.float32):
        return f"dense weights are {weight.data.dtype}"
    if isinstance(weight, Int4Weight | Int8Weight) and weight.group not in (32, 64, 128):
        return f"groups of {weight.group}"
    if isinstance(weight, Int4Weight | Int8Weight) and weight.scale.dtype != torch.bfloat16:
        return f"the scales of groups are {weight.scale.dtype}"
    return None


def linear(gpu: Gpu, x: Tensor, weight: Weight) -> Tensor:
    """As the reference: x [T, K] -> [T, N] bf16."""
    return linears(gpu, x, [[weight]])[0]


def linears(gpu: Gpu, x: Tensor, groups: Sequence[Sequence[Weight]]) -> list[Tensor]:
    """As the reference: x [T, K] -> [T, sum of N] bf16 per group; each product is stored where it belongs."""
    x = rows(x)
    outs = []
    for group in groups:
        widths = [weight.shape[-2] for weight in group]
        out = torch.empty(x.shape[0], sum(widths), dtype=x.dtype, device=x.device)
        for weight, place in zip(group, out.split(widths, dim=-1), strict=True):
            product(gpu, x, weight, place)
        outs.append(out)
    return outs


def product(gpu: Gpu, x: Tensor, weight: Weight, out: Tensor) -> None:
    """x [T, K] times the weight into `out` [T, N] (bf16 or fp32), whose rows may lie apart.

    Where one program per tile of `out` would leave units idle, the inputs are shared out among several and their
    sums added by a second kernel, always in one order.
    """
    m, (n, k), w = x.shape[0], weight.shape, stored(weight)
    if not m:
        return
    tile = gpu.tile("linear_few" if m <= FEW else "linear_many", w.form)
    blocks = tile.blocks
    columns, bands, steps = (-(-a // blocks[b]) for a, b in ((n, "BN"), (m, "BM"), (k, "BK")))
    parts = min(steps, max(1, gpu.arch.units // (columns * bands)), 8)
    each = -(-steps // parts)
    parts = -(-steps // each)
    target = out if parts == 1 else torch.empty(parts, m, n, dtype=torch.float32, device=x.device)
    gpu.launch(
        kernels.linear,
        (columns, bands, parts),
        *(x, *w.tensors, target, m, n, k, w.groups, x.stride(0), target.stride(-2), m * n, each),
        tile=tile,
        form=w.form,
        FORM=w.form,
        GROUP=w.group,
    )
    if parts > 1:
        tile = gpu.tile("reduce")
        grid = (m, -(-n // tile.blocks["BLOCK"]))
        gpu.launch(kernels.reduce, grid, target, out, m, n, parts, out.stride(0), tile=tile)


def rows(x: Tensor) -> Tensor:
    """x [T, K] with values of a row side by side; rows may lie apart."""
    return x if x.stride(-1) == 1 else x.contiguous()
