"""Recorded calls: run again they compute what fresh calls would, prove indices afresh, and keep what they point to."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from cpu_cases import FORMATS, random, variants, weight
from torch import Tensor

from perilune.ops.kda import cpu as kda_cpu
from perilune.ops.kda.reference import Parameters, Projections
from perilune.ops.linear import cpu as linear_cpu
from perilune.ops.linear.formats import Weight, tile
from perilune.ops.mla import cpu as mla_cpu
from perilune.ops.moe import cpu as moe_cpu
from perilune.ops.moe import cpu_router
from perilune.ops.native import KernelInputError, Native
from perilune.ops.norm import cpu as norm_cpu
from perilune.ops.tape import Results, Tape

VARIANTS = variants()
each_variant = pytest.mark.parametrize("native", VARIANTS, ids=lambda native: native.name)
once = pytest.mark.parametrize("native", VARIANTS[:1], ids=lambda native: native.name)


@each_variant
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("strips", [True, False], ids=["strips", "as stored"])
def test_a_feed_forward_run_again_has_the_bits_of_a_fresh_one(native: Native, name: str, strips: bool) -> None:
    parts = [weight(name, 4, 64, 128, seed=1), weight(name, 4, 64, 128, seed=2), weight(name, 4, 128, 64, seed=3)]
    shared = [weight(name, 32, 128, seed=4), weight(name, 32, 128, seed=5), weight(name, 128, 32, seed=6)]
    first = weight(name, 128, 128, seed=7)
    if strips:
        parts, shared, first = [tile(part) for part in parts], [tile(part) for part in shared], tile(first)
    together = (shared[0], shared[1], shared[2])
    router, bias, norm = random(4, 128, seed=8), torch.zeros(4), random(128, seed=9)

    def step(h: Tensor, part: Tensor) -> Tensor:
        h, x = norm_cpu.add_norm(native, h, part, norm, 1e-5)
        ids, weights = cpu_router.route(native, x, router, bias, top_k=2)
        y = moe_cpu.experts(native, linear_cpu.linear(native, x, first), ids, weights, *parts, together)
        return norm_cpu.rms_norm(native, y, norm, 1e-5)

    for rows in (1, 2, 3, 8, 17):
        h, part = random(rows, 128, seed=10), random(rows, 128, seed=11)
        given = h.clone()
        out, tape = native.record(lambda given=given, part=part: step(given, part), Results())
        assert torch.equal(out, step(h, part))
        assert len(tape) == 6
        for seed in (12, 13):
            given.copy_(fresh := random(rows, 128, seed=seed))
            tape.run()
            assert torch.equal(out, step(fresh, part))


def attention(native: Native, rows: int) -> tuple[list[Tensor], Callable[[], Tensor]]:
    """Inputs of the two kinds of attention over six slots and pages, and a step over them."""
    heads, dim, nope, rope, rank = 2, 32, 16, 8, 32
    w = Parameters(random(3 * heads * dim, 4, seed=1), random(heads, seed=2).float(),
                   random(heads, dim, seed=3).float(), random(dim, seed=4), 1e-5)  # fmt: skip
    x = Projections(random(rows, 3 * heads * dim, seed=5), random(rows, heads, dim, seed=6),
                    random(rows, heads, seed=7), random(rows, heads, dim, seed=8))  # fmt: skip
    state, conv = random(6, heads, dim, dim, seed=9).float(), random(6, 3, heads, dim, 3, seed=10)
    pages, kv_b, norm = (
        random(6, 64, rank + rope, seed=11),
        weight("bf16", heads * 48, rank, seed=12),
        random(32, seed=13),
    )
    given, kv = random(rows, heads, nope + rope, seed=14), random(rows, rank + rope, seed=15)
    slots, page_ids, lengths = torch.arange(rows), torch.arange(rows), torch.full((rows,), 100)
    last = random(heads * dim, seed=16)
    tables = torch.stack([torch.arange(6).roll(-row) for row in range(rows)])
    offsets, order = torch.full((rows,), 3), torch.arange(rows)

    def step() -> Tensor:
        o = kda_cpu.decode(native, x, order, slots, w, state, conv)
        q = mla_cpu.store(native, given, kv, norm, 1e-5, None, pages, page_ids, offsets)
        a = mla_cpu.decode_rows(native, q, pages, tables, lengths, kv_b, nope=nope, v_dim=32, rank=rank, scale=0.1)
        return norm_cpu.add_norm(native, o.flatten(1), a.flatten(1), last, 1e-5)[1]

    return [slots, page_ids, offsets, tables, lengths, state, conv, pages], step


@each_variant
@pytest.mark.parametrize("rows", [1, 3])
def test_attention_run_again_reads_slots_pages_tables_and_lengths_afresh(native: Native, rows: int) -> None:
    memory, step = attention(native, rows)
    out, tape = native.record(step, Results())
    twin, plain = attention(native, rows)
    assert torch.equal(plain(), out)
    for change in (1, 2):
        for slots, page_ids, offsets, tables, lengths, *_ in (memory, twin):
            slots += 1
            page_ids += 1
            offsets += 20 * change
            tables.copy_(tables.roll(1, dims=-1))
            lengths += 64 * change
        tape.run()
        assert torch.equal(plain(), out)
    for ours, expected in zip(memory, twin, strict=True):
        assert torch.equal(ours, expected)


@once
@pytest.mark.parametrize(
    ("which", "value", "error"),
    [
        (0, 6, "slot 6"), (0, -1, "slot -1"), (0, 1, "two sequences"), (1, 6, "page 6"), (1, -1, "page -1"),
        (2, 64, "offset 64"), (3, 6, "page 6"), (3, -1, "page -1"), (4, 0, "no tokens"), (4, 385, "more tokens"),
    ],
)  # fmt: skip
def test_an_index_that_has_gone_wrong_is_refused_at_every_run(
    native: Native, which: int, value: int, error: str
) -> None:
    memory, step = attention(native, 2)
    out, tape = native.record(step, Results())
    place = memory[which].view(-1)
    right, place[0] = int(place[0]), value
    for _ in range(2):
        with pytest.raises((IndexError, ValueError), match=error):
            tape.run()
    place[0] = right
    tape.run()
    assert bool(out.isfinite().all())


@once
def test_an_expert_there_is_not_is_refused_at_every_run(native: Native) -> None:
    stack = [weight("bf16", 2, 32, 32, seed=seed) for seed in (1, 2, 3)]
    x, ids = random(1, 32, seed=4), torch.tensor([[0, 1]])
    _, tape = native.record(lambda: moe_cpu.experts(native, x, ids, torch.ones(1, 2), *stack), Results())
    ids[0, 1] = 2
    with pytest.raises(IndexError, match="expert 2"):
        tape.run()


@once
def test_what_a_tape_points_to_outlives_everyone_else(native: Native) -> None:
    def product(x: Tensor, w: Weight) -> tuple[Tensor, Tape, Tensor, list[weakref.ref[object]]]:
        out, tape = native.record(lambda: linear_cpu.linear(native, x, w), Results())
        return out, tape, out.clone(), [weakref.ref(x), weakref.ref(w)]

    out, tape, expected, alive = product(random(1, 256, seed=1), weight("int4-32", 256, 256, seed=2))
    gc.collect()
    assert all(each() is not None for each in alive)
    out.zero_()
    tape.run()
    assert torch.equal(out, expected)
    del tape
    gc.collect()
    assert all(each() is None for each in alive)


@once
def test_memory_of_results_nobody_reads_any_more_is_used_again_and_by_other_tapes(native: Native) -> None:
    results, norm = Results(), random(64, seed=1)

    def chain(x: Tensor) -> Tensor:
        for _ in range(50):
            x = norm_cpu.rms_norm(native, x, norm, 1e-5)
        return x

    inputs = [random(4, 64, seed=2), random(3, 64, seed=3)]
    recorded = [native.record(lambda x=x: chain(x), results) for x in inputs]
    assert results.nbytes <= 5 * 4 * 64 * 2
    for x, (out, tape) in zip(inputs, recorded, strict=True):
        x.copy_(x.flip(-1))
        tape.run()
        assert torch.equal(out, chain(x))


@once
def test_a_step_that_fails_leaves_no_tape_and_another_can_be_recorded(native: Native) -> None:
    norm, apart = random(8, seed=1), random(8, 2, seed=2).t()
    with pytest.raises(KernelInputError, match="not contiguous"):  # a copy would not be made again
        native.record(lambda: norm_cpu.rms_norm(native, apart, norm, 1e-5), Results())
    assert norm_cpu.rms_norm(native, apart, norm, 1e-5).shape == (2, 8)
    _, tape = native.record(lambda: norm_cpu.rms_norm(native, random(2, 8, seed=3), norm, 1e-5), Results())
    assert len(tape) == 1
