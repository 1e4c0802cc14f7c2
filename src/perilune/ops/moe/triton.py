"""Router, SwiGLU and experts in Triton: `kernels.py`."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from perilune.ops.gpu.launch import Gpu
from perilune.ops.linear.formats import DenseWeight, Weight
from perilune.ops.linear.triton import FEW, linear, product, rows, stored
from perilune.ops.moe import kernels
from perilune.ops.moe.reference import Swiglu


def route(
    gpu: Gpu,
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

    The product keeps every bit of an fp32 router; of equal experts the first is taken.
    """
    tokens, experts = x.shape[0], router.shape[0]
    logits = torch.empty(tokens, experts, dtype=torch.float32, device=x.device)
    ids = torch.empty(tokens, top_k, dtype=torch.int64, device=x.device)
    weights = torch.empty(tokens, top_k, dtype=torch.float32, device=x.device)
    product(gpu, rows(x), DenseWeight(router), logits)
    size = experts // groups
    if tokens:
        gpu.launch(
            kernels.top_k,
            (tokens,),
            *(logits, bias, ids, weights, experts, size, groups, top_groups, top_k, scaling),
            tile=gpu.tile("top_k"),
            GROUPS=triton.next_power_of_2(groups),
            SIZE=triton.next_power_of_2(size),
            RENORMALISE=renormalise,
            K=triton.next_power_of_2(top_k),
        )
    return ids, weights


def swiglu(gpu: Gpu, x: Tensor, gate: Weight, up: Weight, down: Weight) -> Tensor:
    """As the reference: x [T, D] -> [T, D] bf16."""
    x = rows(x)
    hidden = torch.empty(x.shape[0], gate.shape[-2], dtype=x.dtype, device=x.device)
    if x.shape[0]:
        _gated(gpu, x, gate, up, hidden, None, 1, "few" if x.shape[0] <= FEW else "many")
    return linear(gpu, hidden, down)


def experts(
    gpu: Gpu,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate: Weight,
    up: Weight,
    down: Weight,
    shared: Swiglu | None = None,
) -> Tensor:
    """As the reference: x [T, D], ids and weights [T, k], stacks [E, ...] -> [T, D] bf16.

    An id of -1 is another rank's expert and adds nothing; one of E or more is the caller's bug and not looked for.
    """
    out = _routed(gpu, x, ids, weights, gate, up, down)
    return (out if shared is None else out + swiglu(gpu, x, *shared).float()).to(x.dtype)


def _routed(gpu: Gpu, x: Tensor, ids: Tensor, weights: Tensor, gate: Weight, up: Weight, down: Weight) -> Tensor:
    """The sum over routed experts, [T, D] fp32."""
    x, (tokens, top_k), (count, width, hidden) = rows(x), ids.shape, gate.shape
    out = torch.empty(tokens, hidden, dtype=torch.float32, device=x.device)
    if not tokens:
        return out
    # an expert's share of the pairs decides: its rows are what a weight is read for
    size = "few" if tokens * top_k <= FEW * count else "many"
    w = stored(down)
    tile = gpu.tile(f"down_{size}", w.form)
    ids = ids.contiguous()
    groups = _group(gpu, ids, count, tile.blocks["BM"])
    middle = torch.empty(tokens * top_k, width, dtype=x.dtype, device=x.device)
    _gated(gpu, x, gate, up, middle, groups, top_k, size)
    parts = torch.empty(tokens * top_k, hidden, dtype=torch.float32, device=x.device)
    order, begin, owner, start = groups
    gpu.launch(
        kernels.down,
        (-(-hidden // tile.blocks["BN"]), owner.shape[0]),
        *(middle, *w.tensors, weights.contiguous(), parts, order, begin, owner, start, hidden, width, w.groups),
        tile=tile,
        form=w.form,
        FORM=w.form,
        GROUP=w.group,
    )
    tile = gpu.tile("combine")
    gpu.launch(kernels.combine, (tokens, -(-hidden // tile.blocks["BLOCK"])), parts, ids, out, hidden, top_k, tile=tile)
    return out


Groups = tuple[Tensor, Tensor, Tensor, Tensor]


def _group(gpu: Gpu, ids: Tensor, experts: int, block: int) -> Groups:
    """(order, begin, owner, start) of `kernels.blocks` and `kernels.place`, for as many blocks as there could be."""
    pairs = ids.numel()
    most = min(pairs, experts) + pairs // block

    def ints(size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int32, device=ids.device)

    counts = torch.zeros(experts, dtype=torch.int32, device=ids.device)
    rank, order, begin, owner, start = ints(pairs), ints(pairs), ints(experts + 1), ints(most), ints(most)
    tile = gpu.tile("pairs")
    grid = (-(-pairs // tile.blocks["BLOCK"]),)
    gpu.launch(kernels.count, grid, ids, counts, rank, pairs, tile=tile)
    gpu.launch(
        kernels.blocks,
        (experts + 1,),
        *(counts, begin, owner, start, experts, most),
        tile=gpu.tile("blocks"),
        SIZE=triton.next_power_of_2(experts),
        BM=block,
    )
    gpu.launch(kernels.place, grid, ids, rank, begin, order, pairs, tile=tile)
    return order, begin, owner, start


def _gated(
    gpu: Gpu, x: Tensor, gate: Weight, up: Weight, out: Tensor, groups: Groups | None, top_k: int, size: str
) -> None:
    g, u, (*_, n, k) = stored(gate), stored(up), gate.shape
    tile = gpu.tile(f"gated_{size}", g.form)
    if groups is None:
        blocks, table = -(-x.shape[0] // tile.blocks["BM"]), (out, out, out, out)
    else:
        blocks, table = groups[2].shape[0], groups
    gpu.launch(
        kernels.gated,
        (-(-n // tile.blocks["BN"]), blocks),
        *(x, *g.tensors, *u.tensors, out, *table, x.shape[0], n, k, g.groups, x.stride(0), top_k),
        tile=tile,
        form=g.form,
        FORM=g.form,
        GROUP=g.group,
        SORTED=groups is not None,
    )
