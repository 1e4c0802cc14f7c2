"""A plan copies every byte that is needed to where it belongs, and none besides: against an oracle, byte by byte."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from conftest import engine, hybrid, pools
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from perilune.models.spec import ModelSpec
from perilune.pd.compiler import POOL_SHIFT, Place, Runs, compile_pull, tail
from perilune.pd.errors import PlanError
from perilune.pd.regions import POOLS, RegionTable

Pools = list[NDArray[np.uint8]]


def where(table: RegionTable, place: Place, first: int, end: int) -> dict[tuple[object, ...], tuple[int, int]]:
    """Written without the compiler: meaning of a byte -> (pool, offset), for all that this rank has of the sequence."""
    found: dict[tuple[object, ...], tuple[int, int]] = {}
    for region in table.regions:
        pool = POOLS.index(region.pool)
        if region.pool == "pages":
            for token in range(first, end):
                start = place.pages[token // region.tokens] * region.stride + region.offset
                start += token % region.tokens * region.item_bytes
                for byte in range(region.item_bytes):
                    found[(region.key, token, byte)] = (pool, start + byte)
        elif place.slot is not None:
            for plane in range(region.planes):
                for head in range(region.heads):
                    start = place.slot * region.stride + region.offset
                    start += (plane * region.heads + head) * region.item_bytes
                    for byte in range(region.item_bytes):
                        found[(region.key, plane, region.head_start + head, byte)] = (pool, start + byte)
    return found


def copy(runs: Runs, source: Pools, target: Pools) -> None:
    mask = (1 << POOL_SHIFT) - 1
    for a, b, length in zip(runs.source.tolist(), runs.target.tolist(), runs.length.tolist(), strict=True):
        part = source[a >> POOL_SHIFT][a & mask : (a & mask) + length]
        target[b >> POOL_SHIFT][b & mask : (b & mask) + length] = part


def wrong_bytes(
    targets: Sequence[RegionTable], at: Place, sources: Sequence[RegionTable], source_at: Place, first: int, end: int,
) -> list[object]:  # fmt: skip
    """What is not as the oracle says after all target ranks ran their plans, bytes that should not change included."""
    memory = [pools(table, 1) for table in sources]
    truth = {}
    for table, data in zip(sources, memory, strict=True):
        for meaning, (pool, offset) in where(table, source_at, first, end).items():
            if meaning[0][0] == "mla_latent" and table.rank:  # type: ignore[index]
                data[pool][offset] = truth[meaning]  # latents are replicated
            truth[meaning] = data[pool][offset]
    wrong: list[object] = []
    for table in targets:
        before = pools(table, 2)
        after = [pool.copy() for pool in before]
        for plan, source in zip(compile_pull(table, at, sources, source_at, (first, end)), memory, strict=True):
            copy(plan, source, after)
        for meaning, (pool, offset) in where(table, at, first, end).items():
            before[pool][offset] = truth[meaning]
        wrong += [(table.rank, pool) for pool in range(2) if not np.array_equal(before[pool], after[pool])]
    return wrong


def placed(random: np.random.Generator, tables: Sequence[RegionTable], tokens: int, fragmented: bool) -> Place:
    table = tables[0]
    size = table.page_tokens
    count, need = (table.regions[0].count if size else 0), -(-tokens // size) if size else 0
    pages = random.permutation(count)[:need] if fragmented else np.arange(need)
    slots = [region.count for region in table.regions if region.pool == "slots"]
    return Place(tuple(pages.tolist()), int(random.integers(slots[0])) if slots else None)


@settings(max_examples=60)
@given(data=st.data())
def test_cases_1_12_13_25_every_byte_for_any_degrees_page_sizes_lengths_and_hits(data: st.DataObject) -> None:
    p, d = (data.draw(st.sampled_from([1, 2, 4, 8]), label) for label in ("P", "D"))
    a, b = (data.draw(st.sampled_from([16, 64, 96, 128]), label) for label in ("page of P", "page of D"))
    spec = hybrid(data.draw(st.sampled_from(["kkmkm", "mk", "k", "mm", "kkk"]), "layers"), head_dim=2)
    tokens = data.draw(st.one_of(st.integers(1, 300), st.sampled_from([1, 63, 64, 65, 127, 128, 300])), "tokens")
    first = data.draw(st.integers(0, tokens), "cached")
    random = np.random.default_rng(data.draw(st.integers(0, 9), "seed"))
    sources, targets = engine(p, a, pages=20, spec=spec), engine(d, b, pages=20, spec=spec)
    places = [placed(random, tables, tokens, data.draw(st.booleans(), "fragmented")) for tables in (targets, sources)]
    assert wrong_bytes(targets, places[0], sources, places[1], first, tokens) == []


def test_chunks_together_are_the_whole() -> None:
    sources, target = engine(2, pages=10), engine(1, 96, pages=10)[0]
    at, source_at = Place((3, 1, 2), 1), Place((7, 5, 6, 0), 2)
    memory = [pools(table, 1) for table in sources]
    whole, parts = pools(target, 2), pools(target, 2)
    for plan, source in zip(compile_pull(target, at, sources, source_at, (0, 250)), memory, strict=True):
        copy(plan, source, whole)
    for first, end, slot in ((0, 64, None), (64, 192, None), (192, 250, 2)):
        step = compile_pull(target, Place(at.pages, 1), sources, Place(source_at.pages, slot), (first, end))
        for plan, source in zip(step, memory, strict=True):
            copy(plan, source, parts)
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("layers", ["km", "mk", "kkm", "mkk"])
def test_case_2_latents_are_whole_on_every_rank_wherever_their_layer_stands(layers: str) -> None:
    sources, targets = engine(1, spec=hybrid(layers)), engine(2, spec=hybrid(layers))
    assert wrong_bytes(targets, Place((4, 2), 0), sources, Place((1, 3), 1), 0, 100) == []


def test_case_26_a_full_hit_moves_the_state_alone() -> None:
    tables = engine()
    (runs,) = compile_pull(tables[0], Place((1, 2), 0), tables, Place((3, 4), 1), (128, 128))
    assert runs.nbytes == sum(region.place_bytes for region in tables[0].regions if region.pool == "slots")


@pytest.mark.parametrize(
    ("at", "source_at", "end", "said"),
    [
        (Place((0, 99), 0), Place((0, 1), 0), 128, "no page 99"),
        (Place((0, 1), 0), Place((0, -1), 0), 128, "no page -1"),
        (Place((0, 1), 0), Place((0, 1), 7), 128, "no slot 7"),
        (Place((0, 1), -1), Place((0, 1), 0), 128, "no slot -1"),
        (Place((0, 1), 0), Place((0,), 0), 65, "do not hold token 64"),
        (Place((0, 1), 0), Place((0, 1), 0), -1, "no range"),
    ],
)
def test_case_14_what_does_not_exist_is_refused(at: Place, source_at: Place, end: int, said: str) -> None:
    tables = engine()
    with pytest.raises(PlanError, match=said):
        compile_pull(tables[0], at, tables, source_at, (0, end))


def test_case_3_a_layer_without_a_source_is_an_error_not_a_gap() -> None:
    target, source = engine()[0], engine()[0]
    short = RegionTable(source.model, 1, 0, source.pool_bytes, source.regions[:-1])
    with pytest.raises(PlanError, match="have a source"):
        compile_pull(target, Place((0,), 0), [short], Place((1,), 0), (0, 64))
    with pytest.raises(PlanError, match="same bytes"):
        compile_pull(target, Place((0,), 0), [source, source], Place((1,), 0), (0, 64))


@given(end=st.integers(1, 200), size=st.sampled_from([16, 64, 96, 128]))
def test_case_11_the_tail_is_the_rest_of_the_last_page(end: int, size: int) -> None:
    table = engine(page_tokens=size, pages=20)[0]
    pages = tuple(range(19, -1, -1))
    address, length = tail(table, Place(pages), end)
    stop = -(-end // size) * size
    touched = {(a >> POOL_SHIFT, (a & ((1 << POOL_SHIFT) - 1)) + n) for a, l in zip(address, length, strict=True)
               for n in range(l)}  # fmt: skip
    assert touched == set(where(table, Place(pages), end, stop).values())


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 60))
def test_batches_hold_the_same_bytes_and_no_more_than_asked(lengths: list[int], limit: int) -> None:
    length = np.array(lengths, np.int64)
    ends = np.cumsum(length + 3)
    runs = Runs(ends * 7, ends, length)

    def listed(some: Runs) -> list[tuple[int, int]]:
        rows = zip(some.source.tolist(), some.target.tolist(), some.length.tolist(), strict=True)
        return [(a + n, b + n) for a, b, size in rows for n in range(size)]

    batches = runs.batches(limit)
    assert [pair for batch in batches for pair in listed(batch)] == listed(runs)
    assert all(batch.nbytes == limit for batch in batches[:-1])
    assert all(batch.length.min() > 0 for batch in batches)


def kimi(layers: int = 27) -> ModelSpec:
    return hybrid("kkkm" * 6 + "kkm", heads=32, head_dim=128)


@pytest.mark.parametrize(
    ("p", "d", "runs"), [(1, 1, [1]), (1, 2, [80]), (2, 1, [80, 80]), (4, 8, [0, 0, 0, 80]), (8, 4, [0] * 6 + [80, 80])]
)
def test_state_takes_as_few_runs_as_its_layout_allows(p: int, d: int, runs: list[int]) -> None:
    sources, target = engine(p, spec=kimi()), engine(d, spec=kimi())[-1]
    plan = compile_pull(target, Place((), 0), sources, Place((), 0), (0, 0))
    assert [len(part) for part in plan] == runs


def test_case_42_a_fragmented_table_of_256k_tokens_takes_one_run_per_page_and_contiguous_ones_one() -> None:
    tokens = 1 << 18
    tables = engine(pages=4100, spec=kimi())
    shuffled = tuple(np.random.default_rng(1).permutation(4100)[:4096].tolist())
    (runs,) = compile_pull(tables[0], Place(shuffled, 0), tables, Place(tuple(range(4096)), 0), (0, tokens))
    assert len(runs) <= 4097
    (runs,) = compile_pull(
        tables[0], Place(tuple(range(4, 4100)), 0), tables, Place(tuple(range(4096)), 0), (0, tokens)
    )
    assert len(runs) == 2
