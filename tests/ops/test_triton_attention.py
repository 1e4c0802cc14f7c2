"""KDA and latent attention in Triton's interpreter, against their references at chunk and page boundaries."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cpu_cases import difference, random, weight

from perilune.ops.gpu.arch import ARCHES
from perilune.ops.gpu.launch import Gpu
from perilune.ops.kda import reference as kda
from perilune.ops.kda import triton as kda_triton
from perilune.ops.linear.formats import DenseWeight, Weight
from perilune.ops.mla import reference as mla
from perilune.ops.mla import triton as mla_triton

GPU = Gpu(ARCHES["gfx1151"])


def kda_inputs(tokens: int, heads: int, dim: int, rate: float) -> tuple[kda.Projections, kda.Parameters]:
    g = torch.Generator().manual_seed(tokens)
    x = kda.Projections(
        random(tokens, 3 * heads * dim, seed=1),
        random(tokens, heads, dim, seed=2),
        random(tokens, heads, seed=3),
        random(tokens, heads, dim, seed=4),
    )
    bias = torch.randn(heads, dim, generator=g)
    w = kda.Parameters(random(3 * heads * dim, 4, seed=5), torch.full((heads,), rate), bias, random(dim, seed=6), 1e-5)
    return x, w


def slots(heads: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(9)
    return torch.randn(4, heads, dim, dim, generator=g), torch.randn(4, 3, heads, dim, 3, generator=g).bfloat16()


# at rate 2.7 the decays of a chunk sum to less than -1000, where exp(-G) is far beyond fp32
@pytest.mark.parametrize(("tokens", "dim", "rate"), [(1, 16, 0.0), (65, 32, 0.0), (130, 16, 2.7), (66, 64, -4.0)])
def test_prefill_leaves_output_state_window_and_exports_as_the_reference(tokens: int, dim: int, rate: float) -> None:
    x, w = kda_inputs(tokens, 2, dim, rate)
    (state, conv), (expected_state, expected_conv) = slots(2, dim), slots(2, dim)
    exports = [(64 * (i + 1), i) for i in range(tokens // 64)]
    out = kda_triton.prefill(GPU, x, slice(0, tokens), 3, w, state, conv, exports)
    expected = kda.prefill(x, slice(0, tokens), 3, w, expected_state, expected_conv, exports)
    assert difference(out, expected) < 8e-3
    assert difference(state, expected_state) < 2e-3
    assert torch.equal(conv, expected_conv)


@pytest.mark.parametrize("tokens", [64, 128])
def test_repeated_keys_without_decay_lose_only_what_bf16_rounds(tokens: int) -> None:
    """Powers of A then hold binomials, and a series for its inverse would lose everything. Nor may the inverse be one
    bf16 value, which would round all tokens the same way: 4 % of the state."""
    x, w = kda_inputs(tokens, 1, 16, -20.0)
    x = dataclasses.replace(x, raw=x.raw[:1].expand(tokens, -1).contiguous(), b=torch.full_like(x.b, 4.0))
    (state, conv), (expected_state, expected_conv) = slots(1, 16), slots(1, 16)
    out = kda_triton.prefill(GPU, x, slice(0, tokens), 0, w, state, conv)
    assert difference(out, kda.prefill(x, slice(0, tokens), 0, w, expected_state, expected_conv)) < 8e-3
    assert difference(state[:1], expected_state[:1]) < 2e-3


def test_decode_advances_its_slots_and_no_other() -> None:
    x, w = kda_inputs(5, 3, 32, 0.5)
    (state, conv), (expected_state, expected_conv) = slots(3, 32), slots(3, 32)
    rows, to = torch.tensor([4, 1]), torch.tensor([2, 0])
    out = kda_triton.decode(GPU, x, rows, to, w, state, conv)
    assert difference(out, kda.decode(x, rows, to, w, expected_state, expected_conv)) < 2e-3
    assert difference(state, expected_state) < 1e-6
    assert torch.equal(conv, expected_conv)


def test_prefill_then_decode_is_the_reference_all_the_way() -> None:
    x, w = kda_inputs(70, 1, 16, 0.0)
    (state, conv), (expected_state, expected_conv) = slots(1, 16), slots(1, 16)
    kda_triton.prefill(GPU, x, slice(0, 69), 1, w, state, conv)
    kda.prefill(x, slice(0, 69), 1, w, expected_state, expected_conv)
    last, slot = torch.tensor([69]), torch.tensor([1])
    out = kda_triton.decode(GPU, x, last, slot, w, state, conv)
    assert difference(out, kda.decode(x, last, slot, w, expected_state, expected_conv)) < 8e-3


@pytest.mark.parametrize(("dim", "taps"), [(24, 4), (8, 4), (512, 4), (128, 3)])
def test_sizes_no_kernel_serves_are_refused_with_the_size(dim: int, taps: int) -> None:
    assert str(dim if taps == 4 else taps) in str(kda_triton.refuses(dim, taps))


# (heads, nope, shared, v, rank, format): sides that are and are not powers of two, and a packed kv_b
MLA = [(5, 24, 8, 32, 32, "bf16"), (2, 16, 16, 16, 128, "fp8"), (2, 32, 16, 32, 64, "int4-32")]
PACKED = [(2, 32, 16, 32, 128, form) for form in ("int4-128", "int4-32-zero", "mxfp4", "int8-32")]


def mla_inputs(
    heads: int, nope: int, shared: int, v_dim: int, rank: int, form: str
) -> tuple[torch.Tensor, Weight, mla.Shape]:
    pages = random(8, 2, 64, rank + shared, seed=1)[:, 1]  # a layer's share of pages of two layers
    kv_b = weight(form, heads * (nope + v_dim), rank, seed=2)
    if isinstance(kv_b, DenseWeight):
        kv_b = DenseWeight(kv_b.data / rank**0.5)
    return pages, kv_b, {"nope": nope, "v_dim": v_dim, "rank": rank, "scale": (nope + shared) ** -0.5}


@pytest.mark.parametrize("turns", [True, False])
@pytest.mark.parametrize(("heads", "nope", "rope", "rank"), [(11, 24, 8, 48), (2, 16, 64, 32), (3, 8, 12, 64)])
def test_latents_and_keys_land_in_their_pages_and_queries_turn(
    heads: int, nope: int, rope: int, rank: int, turns: bool
) -> None:
    q, kv, norm = (
        random(5, heads, nope + rope, seed=1),
        random(5, rank + rope + 3, seed=2)[:, :-3],
        random(rank, seed=3),
    )
    angle = torch.arange(5.0)[:, None] * torch.rand(rope // 2, generator=torch.Generator().manual_seed(4))
    rotation = (angle.cos(), angle.sin()) if turns else None
    pages = random(4, 2, 64, rank + rope, seed=5)
    where = torch.tensor([3, 3, 0, 2, 1]), torch.tensor([62, 63, 0, 17, 5])
    ours, theirs = pages.clone(), pages.clone()
    expected = mla.store(q.clone(), kv, norm, 1e-5, rotation, theirs[:, 1], *where)
    out = mla_triton.store(GPU, q.clone(), kv, norm, 1e-5, rotation, ours[:, 1], *where)
    assert difference(out, expected) < 1e-3
    assert difference(ours, theirs) < 1e-3
    assert torch.equal(out[..., :nope], q[..., :nope])
    theirs[:, 1][where] = ours[:, 1][where]
    assert torch.equal(ours, theirs), "a place was written that is nobody's"


@pytest.mark.parametrize("sizes", MLA, ids=lambda sizes: sizes[-1])
@pytest.mark.parametrize(("start", "tokens"), [(0, 1), (64, 65)])
def test_prefill_attends_to_what_is_before_and_nothing_after(
    sizes: tuple[int, int, int, int, int, str], start: int, tokens: int
) -> None:
    pages, kv_b, shape = mla_inputs(*sizes)
    q, table = random(tokens, sizes[0], sizes[1] + sizes[2], seed=3), torch.tensor([5, 2, 7])
    out = mla_triton.prefill(GPU, q, pages, table, start, kv_b, **shape)
    assert difference(out, mla.prefill(q, pages, table, start, kv_b, **shape)) < 5e-3


def test_prefill_over_several_stretches_is_one_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mla_triton, "STRETCH", 64)
    pages, kv_b, shape = mla_inputs(*MLA[0])
    q, table = random(40, 5, 32, seed=3), torch.tensor([5, 2, 7])
    out = mla_triton.prefill(GPU, q, pages, table, 128, kv_b, **shape)
    assert difference(out, mla.prefill(q, pages, table, 128, kv_b, **shape)) < 5e-3


@pytest.mark.parametrize("sizes", MLA + PACKED, ids=lambda sizes: sizes[-1])
def test_decode_splits_the_context_and_takes_tables_as_a_list_or_a_tensor(
    sizes: tuple[int, int, int, int, int, str],
) -> None:
    pages, kv_b, shape = mla_inputs(*sizes)
    q, lengths = random(4, sizes[0], sizes[1] + sizes[2], seed=4), [1, 65, 192, 64]
    tables = [torch.tensor(ids) for ids in ([3], [1, 2], [0, 4, 5], [6])]
    expected = mla.decode_rows(q, pages, tables, torch.tensor(lengths), kv_b, **shape)
    assert difference(mla_triton.decode_rows(GPU, q, pages, tables, lengths, kv_b, **shape), expected) < 1e-2
    packed = torch.nn.utils.rnn.pad_sequence(tables, batch_first=True)
    again = mla_triton.decode_rows(GPU, q, pages, packed, torch.tensor(lengths), kv_b, **shape)
    assert difference(again, expected) < 1e-2
