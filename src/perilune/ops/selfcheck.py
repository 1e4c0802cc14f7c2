"""Whether compiled kernels agree with the reference on this processor: asked once before they serve a model.

Each instruction-set variant is another program, and not every one could be run where it was written. A variant whose
results are wrong here is refused with its numbers, and the next is tried. Small inputs; a few hundredths of a second.
References multiply in fp32: torch's products in bf16, which nothing else here needs, stay resident with 8 MB of code.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from perilune.ops.kda import cpu as kda_cpu
from perilune.ops.kda import reference as kda
from perilune.ops.linear import cpu as linear_cpu
from perilune.ops.linear.formats import (
    DenseWeight,
    Fp8BlockWeight,
    Int4Weight,
    Mxfp4Weight,
    Weight,
    pack_int4,
    quantise_int8,
    tile,
)
from perilune.ops.linear.reference import linear
from perilune.ops.mla import cpu as mla_cpu
from perilune.ops.mla import reference as mla
from perilune.ops.moe import cpu as moe_cpu
from perilune.ops.moe import cpu_router
from perilune.ops.moe import reference as moe
from perilune.ops.native import Native
from perilune.ops.norm import cpu as norm_cpu
from perilune.ops.norm.reference import rms_norm

LIMIT = 0.05  # relative error of a whole result; bf16 rounding and byte products stay below 0.02
Pair = tuple[str, Tensor, Tensor]


def disagreement(native: Native) -> str | None:
    """None if every kernel of the variant agrees with its reference, else which does not and by how much."""
    with torch.inference_mode():
        random = torch.Generator().manual_seed(0)
        for cases in (_linear, _experts, _router, _kda, _mla):
            for name, ours, expected in cases(native, random):
                error = float((ours.float() - expected.float()).norm() / expected.float().norm())
                if not error <= LIMIT:
                    return f"its {name} differs from the reference by {error:.2g}, more than {LIMIT}"
    return None


def _bf16(random: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=random).bfloat16()


def _weights(random: torch.Generator, *shape: int) -> Iterator[tuple[str, Weight]]:
    """One weight of each format, [N, K] or a stack of them."""
    *lead, k = shape
    yield "bf16", DenseWeight(_bf16(random, *shape) / k**0.5)
    codes = torch.randint(-8, 8, shape, dtype=torch.int8, generator=random)
    scale = (torch.rand(*lead, k // 32, generator=random) / 64 + 0.01).bfloat16()
    yield "int4", Int4Weight(pack_int4(codes), scale, None, 32)
    pairs = torch.randint(0, 256, (*lead, k // 2), dtype=torch.uint8, generator=random)
    yield "MXFP4", Mxfp4Weight(pairs, torch.randint(118, 124, (*lead, k // 32), dtype=torch.uint8, generator=random))
    blocks = torch.rand(*lead[:-1], -(-lead[-1] // 128), -(-k // 128), generator=random) / 64 + 0.01
    yield "FP8", Fp8BlockWeight(torch.randn(*shape, generator=random).to(torch.float8_e4m3fn), blocks)
    yield "int8", quantise_int8(torch.randn(*shape, generator=random) / k**0.5, 32)


def _linear(native: Native, random: torch.Generator) -> Iterator[Pair]:
    for rows in (3, 19):
        x = _bf16(random, rows, 256)
        for name, weight in _weights(random, 64, 256):
            expected = linear(x.float(), weight)
            yield f"{name} product of {rows} rows", linear_cpu.linear(native, x, weight), expected
            yield f"{name} product of {rows} rows in strips", linear_cpu.linear(native, x, tile(weight)), expected
        norm = _bf16(random, 256)
        yield "RMSNorm", norm_cpu.rms_norm(native, x, norm, 1e-5), rms_norm(x, norm, 1e-5)


def _experts(native: Native, random: torch.Generator) -> Iterator[Pair]:
    x = _bf16(random, 5, 64)
    ids = torch.tensor([[0, 2], [2, 1], [0, 1], [2, 0], [1, 2]])
    share = torch.rand(5, 2, generator=random)
    into = zip(_weights(random, 3, 32, 64), _weights(random, 3, 32, 64), _weights(random, 3, 64, 32), strict=True)
    for (name, gate), (_, up), (_, down) in into:
        expected = moe.experts(x.float(), ids, share, gate, up, down)
        yield f"{name} experts", moe_cpu.experts(native, x, ids, share, gate, up, down), expected
        gate, up, down = tile(gate), tile(up), tile(down)
        yield f"{name} experts in strips", moe_cpu.experts(native, x, ids, share, gate, up, down), expected


def _router(native: Native, random: torch.Generator) -> Iterator[Pair]:
    x, router, bias = _bf16(random, 5, 64), _bf16(random, 24, 64) / 8, torch.rand(24, generator=random)
    ids, weights = cpu_router.route(native, x, router, bias, top_k=4, groups=4, top_groups=2)
    expected_ids, expected = moe.route(x, router, bias, top_k=4, groups=4, top_groups=2)
    spread = torch.zeros(5, 24)
    yield "router", spread.scatter(1, ids, weights), spread.scatter(1, expected_ids, expected)


def _kda(native: Native, random: torch.Generator) -> Iterator[Pair]:
    tokens, heads, dim = 70, 2, 32
    x = kda.Projections(
        raw=_bf16(random, tokens, 3 * heads * dim),
        f=_bf16(random, tokens, heads, dim),
        b=_bf16(random, tokens, heads),
        out_gate=_bf16(random, tokens, heads, dim),
    )
    w = kda.Parameters(
        conv=_bf16(random, 3 * heads * dim, 4),
        a_log=torch.randn(heads, generator=random),
        dt_bias=torch.randn(heads, dim, generator=random),
        norm=_bf16(random, dim),
        eps=1e-5,
    )
    states = [torch.zeros(1, heads, dim, dim) for _ in range(2)]
    windows = [torch.zeros(1, 3, heads, dim, 3).bfloat16() for _ in range(2)]
    prompt, last, slot = slice(0, tokens - 1), torch.tensor([tokens - 1]), torch.tensor([0])
    yield (
        "KDA prefill",
        kda_cpu.prefill(native, x, prompt, 0, w, states[0], windows[0]),
        kda.prefill(x, prompt, 0, w, states[1], windows[1]),
    )
    yield (
        "KDA decoding",
        kda_cpu.decode(native, x, last, slot, w, states[0], windows[0]),
        kda.decode(x, last, slot, w, states[1], windows[1]),
    )
    yield "KDA state", states[0], states[1]


def _mla(native: Native, random: torch.Generator) -> Iterator[Pair]:
    tokens, heads, nope, rope, v_dim, rank = 70, 2, 32, 16, 32, 64
    shape: mla.Shape = {"nope": nope, "v_dim": v_dim, "rank": rank, "scale": (nope + rope) ** -0.5}
    pages, table = _bf16(random, 3, mla.PAGE, rank + rope), torch.tensor([2, 0])
    kv_b = DenseWeight(_bf16(random, heads * (nope + v_dim), rank) / rank**0.5)
    q = _bf16(random, tokens, heads, nope + rope)
    kv, norm, angles = _bf16(random, tokens, rank + rope), _bf16(random, rank), torch.rand(tokens, rope // 2)
    place = (torch.full((tokens,), 1), torch.arange(tokens) % mla.PAGE)
    stored = [torch.zeros(3, mla.PAGE, rank + rope).bfloat16() for _ in range(2)]
    yield (
        "rotated queries",
        mla_cpu.store(native, q.clone(), kv, norm, 1e-5, (angles.cos(), angles.sin()), stored[0], *place),
        mla.store(q, kv, norm, 1e-5, (angles.cos(), angles.sin()), stored[1], *place),
    )
    yield "stored latents", stored[0], stored[1]
    yield (
        "attention in prefill",
        mla_cpu.prefill(native, q, pages, table, 0, kv_b, **shape),
        mla.prefill(q.float(), pages.float(), table, 0, kv_b, **shape),
    )
    yield (
        "attention in decoding",
        mla_cpu.decode_rows(native, q[-1:], pages, [table], torch.tensor([tokens]), kv_b, **shape),
        mla.decode_rows(q[-1:], pages, [table], torch.tensor([tokens]), kv_b, **shape),
    )
