"""C++ KDA decode and latent attention against their references in fp32 on the same bf16 inputs.

The references run on widened inputs, so only the kernel rounds: its outputs are bf16 (KDA) or fp32 with, on the bf16
variant, bf16 operands. Memory a kernel may not read is NaN.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
from cpu_cases import difference, random, variants, weight
from torch import Tensor

from perilune.ops.kda import cpu as kda_cpu
from perilune.ops.kda import reference as kda
from perilune.ops.linear.formats import DenseWeight
from perilune.ops.mla import cpu as mla_cpu
from perilune.ops.mla import reference as mla
from perilune.ops.native import Native

VARIANTS = variants()
LIMIT = 0.01

each_variant = pytest.mark.parametrize("native", VARIANTS, ids=lambda native: native.name)


def kda_inputs(tokens: int, heads: int, dim: int, taps: int) -> tuple[kda.Projections, kda.Parameters]:
    x = kda.Projections(
        raw=random(tokens, 3 * heads * dim, seed=1),
        f=random(tokens, heads, dim, seed=2) * 3,
        b=random(tokens, heads, seed=3),
        out_gate=random(tokens, heads, dim, seed=4),
    )
    w = kda.Parameters(
        conv=random(3 * heads * dim, taps, seed=5),
        a_log=random(heads, seed=6).float(),
        dt_bias=random(heads, dim, seed=7).float() * 4,
        norm=random(dim, seed=8),
        eps=1e-5,
    )
    return x, w


def widened(values: kda.Projections | kda.Parameters) -> kda.Projections | kda.Parameters:
    return dataclasses.replace(values, **{k: v.float() for k, v in vars(values).items() if isinstance(v, Tensor)})


@each_variant
@pytest.mark.parametrize(("heads", "dim", "taps"), [(1, 16, 4), (3, 32, 4), (2, 48, 2), (4, 64, 4), (2, 128, 4)])
@pytest.mark.parametrize("sequences", [1, 3])
def test_kda_decode_of_some_rows_in_slots_that_lie_apart(
    native: Native, heads: int, dim: int, taps: int, sequences: int
) -> None:
    tokens, slots = 5, 6
    x, w = kda_inputs(tokens, heads, dim, taps)
    arena = torch.full((slots, 2, heads, dim, dim), float("nan"))  # two layers, so that slots lie apart
    windows = torch.full((slots, 2, 3, heads, dim, taps - 1), float("nan")).bfloat16()
    state, conv = arena[:, 1], windows[:, 1]
    rows, picked = torch.tensor([4, 0, 2])[:sequences], torch.tensor([1, 5, 3])[:sequences]
    state[picked] = torch.randn(sequences, heads, dim, dim, generator=torch.Generator().manual_seed(9))
    conv[picked] = random(sequences, 3, heads, dim, taps - 1, seed=10)
    expected_state, expected_conv = state.clone(), conv.float()
    expected = kda.decode(widened(x), rows, picked, widened(w), expected_state, expected_conv)

    ours = kda_cpu.decode(native, x, rows, picked, w, state, conv)
    assert difference(ours, expected) < 0.004
    assert difference(state[picked], expected_state[picked]) < 1e-5
    assert torch.equal(conv[picked].float(), expected_conv[picked])
    untouched = [s for s in range(slots) if s not in picked.tolist()]
    assert torch.isnan(state[untouched]).all()
    assert torch.isnan(arena[:, 0]).all()


@each_variant
@pytest.mark.parametrize(("heads", "dim", "taps"), [(1, 16, 4), (2, 48, 2), (3, 64, 4), (2, 128, 4)])
@pytest.mark.parametrize("tokens", [1, 2, 3, 15, 16, 17, 63, 64, 65, 130, 200])
def test_kda_prefill_of_one_piece(native: Native, heads: int, dim: int, taps: int, tokens: int) -> None:
    x, w = kda_inputs(tokens + 5, heads, dim, taps)
    rows, slot = slice(3, 3 + tokens), 1
    state, conv = torch.full((3, heads, dim, dim), float("nan")), torch.full((3, 3, heads, dim, taps - 1), float("nan"))
    conv = conv.bfloat16()
    state[slot] = torch.randn(heads, dim, dim, generator=torch.Generator().manual_seed(9))
    conv[slot] = random(3, heads, dim, taps - 1, seed=10)
    expected_state, expected_conv = state.clone(), conv.float()
    expected = kda.prefill(widened(x), rows, slot, widened(w), expected_state, expected_conv)
    ours = kda_cpu.prefill(native, x, rows, slot, w, state, conv)
    assert difference(ours, expected) < 0.004
    assert difference(state[slot], expected_state[slot]) < 1e-4
    assert torch.equal(conv[slot].float(), expected_conv[slot])
    assert torch.isnan(state[[0, 2]]).all()
    assert torch.isnan(conv[[0, 2]]).all()


@each_variant
@pytest.mark.parametrize("rate", [0.0, 3.0, 6.0])
def test_kda_prefill_with_decays_that_overflow_when_inverted(native: Native, rate: float) -> None:
    """exp(a_log) up to 400 per unit: sums over a chunk reach thousands, and decode token by token agrees."""
    tokens, heads, dim = 100, 2, 32
    x, w = kda_inputs(tokens, heads, dim, 4)
    w = dataclasses.replace(w, a_log=torch.full((heads,), rate))
    state, conv = torch.zeros(1, heads, dim, dim), torch.zeros(1, 3, heads, dim, 3).bfloat16()
    chunked = kda_cpu.prefill(native, x, slice(0, tokens), 0, w, state, conv)
    one, window = torch.zeros_like(state), torch.zeros_like(conv)
    step = [kda_cpu.decode(native, x, torch.tensor([t]), torch.tensor([0]), w, one, window) for t in range(tokens)]
    assert torch.isfinite(chunked).all()
    assert difference(chunked, torch.cat(step)) < 0.004
    assert difference(state, one) < 1e-3
    assert torch.equal(conv, window)


@each_variant
def test_kda_prefill_in_pieces_of_whole_chunks_gives_the_same_bits(native: Native) -> None:
    x, w = kda_inputs(200, 2, 32, 4)
    results = []
    before = torch.get_num_threads()
    try:
        for threads, cuts in ((1, (0, 200)), (3, (0, 64, 192, 200))):
            torch.set_num_threads(threads)
            state, conv = torch.ones(1, 2, 32, 32), random(1, 3, 2, 32, 3, seed=1)
            parts = [kda_cpu.prefill(native, x, slice(a, b), 0, w, state, conv) for a, b in pairwise(cuts)]
            results.append((torch.cat(parts), state, conv))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@each_variant
def test_kda_prefill_exports_what_a_shorter_run_leaves_behind(native: Native) -> None:
    x, w = kda_inputs(200, 2, 32, 4)
    start, window = torch.randn(4, 2, 32, 32), random(4, 3, 2, 32, 3, seed=1)
    state, conv = start.clone(), window.clone()
    kda_cpu.prefill(native, x, slice(0, 200), 0, w, state, conv, ((64, 2), (192, 1)))
    for tokens, row in ((64, 2), (192, 1), (200, 0)):
        shorter, its_window = start.clone(), window.clone()
        kda_cpu.prefill(native, x, slice(0, tokens), 0, w, shorter, its_window)
        assert torch.equal(state[row], shorter[0])
        assert torch.equal(conv[row], its_window[0])
    assert torch.equal(state[3], start[3])
    for exports in (((64, 0),), ((64, 4),), ((63, 1),), ((256, 1),)):
        with pytest.raises((IndexError, ValueError)):
            kda_cpu.prefill(native, x, slice(0, 200), 0, w, state, conv, exports)


@each_variant
def test_kda_prefill_refuses_rows_and_slots_there_are_not(native: Native) -> None:
    x, w = kda_inputs(3, 2, 32, 4)
    state, conv = torch.zeros(2, 2, 32, 32), torch.zeros(2, 3, 2, 32, 3).bfloat16()
    for rows, slot in ((slice(0, 4), 0), (slice(2, 2), 0), (slice(0, 1), 2), (slice(0, 1), -1)):
        with pytest.raises(IndexError):
            kda_cpu.prefill(native, x, rows, slot, w, state, conv)


@each_variant
def test_kda_decode_is_the_same_on_any_number_of_threads(native: Native) -> None:
    x, w = kda_inputs(3, 5, 32, 4)
    rows = slots = torch.arange(3)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            state, conv = torch.ones(3, 5, 32, 32), random(3, 3, 5, 32, 3, seed=1)
            results.append((kda_cpu.decode(native, x, rows, slots, w, state, conv), state))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@each_variant
@pytest.mark.parametrize(
    ("rows", "slots", "error"),
    [([3], [0], "row 3"), ([0], [2], "slot 2"), ([0], [-1], "slot -1"), ([0, 1], [1, 1], "one slot")],
)
def test_kda_decode_refuses_rows_and_slots_there_are_not(
    native: Native, rows: list[int], slots: list[int], error: str
) -> None:
    x, w = kda_inputs(3, 2, 32, 4)
    state, conv = torch.zeros(2, 2, 32, 32), torch.zeros(2, 3, 2, 32, 3).bfloat16()
    with pytest.raises((IndexError, ValueError), match=error):
        kda_cpu.decode(native, x, torch.tensor(rows), torch.tensor(slots), w, state, conv)


def pages_for(lengths: list[int], width: int) -> tuple[Tensor, list[Tensor]]:
    """Pages of one layer of two, in reverse order, NaN wherever no sequence has written."""
    count = sum(-(-n // mla.PAGE) for n in lengths) + 2
    arena = torch.full((count, 2, mla.PAGE, width), float("nan")).bfloat16()
    pages, tables, free = arena[:, 1], [], list(range(count))
    for i, length in enumerate(lengths):
        table = torch.tensor([free.pop() for _ in range(-(-length // mla.PAGE))])
        values = random(length, width, seed=100 + i)
        for t in range(length):
            pages[table[t // mla.PAGE], t % mla.PAGE] = values[t]
        tables.append(table)
    return pages, tables


SHAPES = [  # heads, nope, rope, v, rank
    (2, 32, 16, 32, 64),
    (3, 24, 8, 20, 40),
    (5, 128, 64, 128, 512),
    (3, 30, 8, 21, 128),
    (1, 64, 32, 96, 32),
]


@each_variant
@pytest.mark.parametrize(("heads", "nope", "rope", "v_dim", "rank"), SHAPES)
@pytest.mark.parametrize("name", ["bf16", "fp8", "int4-32", "int4-128", "int4-32-zero"])
def test_mla_decode_over_pages(
    native: Native, heads: int, nope: int, rope: int, v_dim: int, rank: int, name: str
) -> None:
    lengths = [1, 63, 64, 65, 700]
    pages, tables = pages_for(lengths, rank + rope)
    kv_b = weight(name, heads * (nope + v_dim), rank, seed=3)
    q = random(len(lengths), heads, nope + rope, seed=4)
    shape: mla.Shape = {"nope": nope, "v_dim": v_dim, "rank": rank, "scale": 0.3 / (rank * nope) ** 0.5}
    wide = DenseWeight(kv_b.dequantise(torch.float32))
    clean = pages.float().nan_to_num()
    expected = mla.decode_rows(q.float(), clean, tables, torch.tensor(lengths), wide, **shape)
    ours = mla_cpu.decode_rows(native, q, pages, tables, torch.tensor(lengths), kv_b, **shape)
    for row in range(len(lengths)):
        assert difference(ours[row], expected[row]) < LIMIT, lengths[row]
    alone = mla_cpu.decode_rows(native, q[4:], pages, tables[4:], torch.tensor(lengths[4:]), kv_b, **shape)
    assert torch.equal(alone[0], ours[4])


@each_variant
@pytest.mark.parametrize(("heads", "nope", "rope", "v_dim", "rank"), SHAPES)
@pytest.mark.parametrize(("start", "tokens"), [(0, 1), (0, 63), (0, 65), (64, 17), (256, 130), (320, 64)])
def test_mla_prefill_over_pages(
    native: Native, heads: int, nope: int, rope: int, v_dim: int, rank: int, start: int, tokens: int
) -> None:
    pages, [table] = pages_for([start + tokens], rank + rope)
    kv_b = weight("bf16", heads * (nope + v_dim), rank, seed=3)
    q = random(tokens, heads, nope + rope, seed=4)
    shape: mla.Shape = {"nope": nope, "v_dim": v_dim, "rank": rank, "scale": 0.3 / (rank * nope) ** 0.5}
    wide = DenseWeight(kv_b.dequantise(torch.float32))
    expected = mla.prefill(q.float(), pages.float().nan_to_num(), table, start, wide, **shape)
    assert difference(mla_cpu.prefill(native, q, pages, table, start, kv_b, **shape), expected) < LIMIT


@each_variant
def test_mla_prefill_in_pieces_gives_the_same_bits(native: Native) -> None:
    heads, nope, rope, v_dim, rank = 2, 32, 16, 32, 64
    pages, [table] = pages_for([200], rank + rope)
    kv_b, q = weight("bf16", heads * (nope + v_dim), rank, seed=3), random(200, heads, nope + rope, seed=4)
    shape: mla.Shape = {"nope": nope, "v_dim": v_dim, "rank": rank, "scale": 0.02}
    whole = mla_cpu.prefill(native, q, pages, table, 0, kv_b, **shape)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        pieces = [mla_cpu.prefill(native, q[a:b], pages, table, a, kv_b, **shape) for a, b in ((0, 64), (64, 200))]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.cat(pieces), whole)


@each_variant
def test_latent_attention_is_the_same_on_any_number_of_threads(native: Native) -> None:
    """More threads than heads, too: then a head's queries are shared out."""
    heads, nope, rope, v_dim, rank = 2, 32, 16, 32, 64
    pages, tables = pages_for([1, 700, 300], rank + rope)
    kv_b, q = weight("bf16", heads * (nope + v_dim), rank, seed=3), random(236, heads, nope + rope, seed=4)
    shape: mla.Shape = {"nope": nope, "v_dim": v_dim, "rank": rank, "scale": 0.02}
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            decoded = mla_cpu.decode_rows(native, q[:3], pages, tables, torch.tensor([1, 700, 300]), kv_b, **shape)
            results.append((decoded, mla_cpu.prefill(native, q, pages, tables[1], 448, kv_b, **shape)))
    finally:
        torch.set_num_threads(before)
    for decoded, prefilled in results[1:]:
        assert torch.equal(decoded, results[0][0])
        assert torch.equal(prefilled, results[0][1])


@each_variant
def test_latent_attention_refuses_pages_there_are_not(native: Native) -> None:
    pages, kv_b = torch.zeros(4, 64, 48).bfloat16(), weight("bf16", 2 * 64, 32, seed=1)
    shape: mla.Shape = {"nope": 32, "v_dim": 32, "rank": 32, "scale": 0.1}
    q = random(1, 2, 48, seed=1)
    for table, length, error in (
        ([4], 1, "page 4"),
        ([-1], 3, "page -1"),
        ([0], 65, "more tokens"),
        ([0], 0, "no tokens"),
    ):
        with pytest.raises((IndexError, ValueError), match=error):
            mla_cpu.decode_rows(native, q, pages, [torch.tensor(table)], torch.tensor([length]), kv_b, **shape)
    with pytest.raises(ValueError, match="wrong arguments"):  # prefill starts on a page
        mla_cpu.prefill(native, q, pages, torch.tensor([0, 1]), 63, kv_b, **shape)
    with pytest.raises(IndexError, match="page 9"):
        mla_cpu.prefill(native, q, pages, torch.tensor([0, 9]), 64, kv_b, **shape)


@each_variant
@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize(
    ("tokens", "heads", "nope", "rope", "rank"), [(1, 1, 8, 2, 8), (5, 3, 24, 6, 40), (17, 2, 128, 64, 512)]
)
def test_store_writes_latents_and_rotates_queries_and_touches_nothing_else(
    native: Native, tokens: int, heads: int, nope: int, rope: int, rank: int, rotated: bool
) -> None:
    arena = torch.full((4, 2, mla.PAGE, rank + rope), float("nan")).bfloat16()  # two layers, so that pages lie apart
    q, kv, norm = random(tokens, heads, nope + rope, seed=1), random(tokens, rank + rope, seed=2), random(rank, seed=3)
    angle = torch.rand(tokens, rope // 2, generator=torch.Generator().manual_seed(4)) * 6
    rotation = (angle.cos(), angle.sin()) if rotated else None
    page_ids, offsets = torch.arange(tokens) % 3, torch.arange(tokens) * 3 % mla.PAGE
    expected = arena.float()
    expected_q = mla.store(q.float(), kv.float(), norm.float(), 1e-5, rotation, expected[:, 1], page_ids, offsets)

    ours = mla_cpu.store(native, q.clone(), kv, norm, 1e-5, rotation, arena[:, 1], page_ids, offsets)
    assert difference(ours, expected_q) < 0.004
    written = arena[page_ids, 1, offsets]
    assert difference(written, expected[page_ids, 1, offsets]) < 0.006
    assert torch.equal(arena.isnan(), expected.isnan())


@each_variant
@pytest.mark.parametrize(("page", "offset"), [(4, 0), (-1, 0), (0, 64), (0, -1)])
def test_store_to_a_place_there_is_not_is_refused(native: Native, page: int, offset: int) -> None:
    pages, q, kv = torch.zeros(4, mla.PAGE, 12).bfloat16(), random(1, 2, 12, seed=1), random(1, 12, seed=2)
    with pytest.raises(IndexError):
        mla_cpu.store(native, q, kv, random(8, seed=3), 1e-5, None, pages, torch.tensor([page]), torch.tensor([offset]))
