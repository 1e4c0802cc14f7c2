"""Declared regions: what arenas allocate is what is declared, and every difference is found and said."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
import torch
from msgspec.structs import replace
from pd_world import engine, hybrid, sized

from perilune.cache.arena import CacheArenas
from perilune.cache.geometry import CacheGeometry
from perilune.errors import UnsupportedError
from perilune.models.spec import ModelSpec
from perilune.pd.memory import Memory
from perilune.pd.regions import Region, RegionTable, differences, digest, flaws, model_name, table_of

Change = Callable[[RegionTable], RegionTable]


def test_case_35_a_cache_that_is_not_in_the_cpus_memory_is_refused() -> None:
    geometry = CacheGeometry.of(hybrid(), "bfloat16")
    with pytest.raises(UnsupportedError, match="Caches on meta cannot be handed over"):
        Memory.of(CacheArenas(geometry, sized(geometry, 8, 3), "meta"))


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_table_says_where_arenas_have_their_bytes(tp: int) -> None:
    spec = hybrid()
    for rank in range(tp):
        geometry = CacheGeometry.of(spec, "bfloat16", tp)
        plan = sized(geometry, 8, 3)
        arenas, table = CacheArenas(geometry, plan), table_of(geometry, plan, "m", rank)
        memory = Memory.of(arenas)
        assert memory.sizes[:2] == list(table.pool_bytes.values()) == [plan.pages_bytes, plan.slots_bytes]
        for n, region in enumerate(table.regions):
            pool = memory.pools[0 if region.pool == "pages" else 1]
            start = 2 * region.stride + region.offset
            pool[start : start + region.place_bytes] = n + 1
            view = {"mla_latent": arenas.pages, "kda_state": arenas.state, "kda_conv": arenas.conv}[region.kind]
            seen = view(region.layer).view(torch.uint8)
            assert (seen[2] == n + 1).all()
            assert not (seen[[0, 1]] == n + 1).any()
            assert seen[2].numel() == region.place_bytes


def changed(table: RegionTable, at: int, **fields: object) -> RegionTable:
    regions = list(table.regions)
    regions[at] = replace(regions[at], **fields)
    return replace(table, regions=tuple(regions))


def without(table: RegionTable, at: int) -> RegionTable:
    return replace(table, regions=table.regions[:at] + table.regions[at + 1 :])


def test_equal_engines_and_those_that_may_differ_fit() -> None:
    mine = engine(2)
    for theirs in (engine(2), engine(1), engine(8), engine(4, page_tokens=128), engine(pages=40, slots=9)):
        assert differences(mine, theirs) == []


def test_order_does_not_matter_since_regions_pair_by_kind_and_layer() -> None:
    (mine,) = engine()
    assert differences([mine], [replace(mine, regions=mine.regions[::-1])]) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: replace(t, model="another"), "the weights or cache formats are others"),
        (lambda t: without(t, 0), "mla_latent of layer 2 is missing there"),
        (lambda t: without(t, 3), "kda_conv of layer 0 is missing there"),
        (lambda t: changed(t, 0, layer=7), "mla_latent of layer 7 is missing here"),
        (lambda t: changed(t, 2, dtype="bfloat16"), "kda_state of layer 0: dtype is float32 here, bfloat16 there"),
        (lambda t: changed(t, 3, planes=1, item_bytes=72), "kda_conv of layer 0: planes is 3 here, 1 there"),
        (lambda t: changed(t, 2, offset=64), "overlap"),
        (lambda t: changed(t, 2, count=400), "do not lie inside a pool"),
        (lambda t: changed(t, 0, offset=1 << 20), "do not lie inside a pool"),
        (lambda t: changed(t, 2, heads=4), "ranks hold heads up to 4 of 8"),
        (lambda t: changed(t, 2, head_start=4, heads=4), "heads 0 to 4 are missing"),
        (lambda t: changed(t, 0, tokens=0), "holds nothing"),
        (lambda t: changed(t, 2, item_bytes=62), "no whole values"),
        (lambda t: replace(t, regions=(*t.regions, t.regions[0])), "declared 2 times"),
        (lambda t: replace(t, rank=1), "tables are needed for each rank once"),
        (lambda t: replace(t, tp=2), "tables are needed for each rank once"),
    ],
)
def test_case_3_every_difference_is_refused_and_named(change: Change, said: str) -> None:
    (mine,) = engine()
    found = differences([mine], [change(mine)])
    assert any(said in sentence for sentence in found), found


def test_all_differences_are_listed_not_the_first() -> None:
    (mine,) = engine()
    found = differences([mine], [without(changed(replace(mine, model="x"), 2, dtype="bfloat16"), 0)])
    assert len(found) == 3


def test_heads_on_two_ranks_are_found() -> None:
    first, second = engine(2)
    wrong = replace(second, regions=tuple(replace(r, head_start=0) for r in second.regions))
    assert any("on two ranks" in flaw for flaw in flaws([first, wrong]))


@pytest.mark.parametrize("other", [hybrid("kkmk"), hybrid("kmkkm"), hybrid(heads=4), hybrid(head_dim=8)])
def test_another_model_never_fits(other: ModelSpec) -> None:
    assert differences(engine(), engine(spec=other))


def test_a_digest_changes_with_anything() -> None:
    (mine,) = engine()
    seen = {digest([mine]), digest(engine(2)), digest([changed(mine, 0, layer=9)]), digest([replace(mine, model="x")])}
    assert len(seen) == 4
    assert digest([mine]) == digest(engine())


def test_the_models_name_depends_on_weights_and_formats_alone() -> None:
    geometry = CacheGeometry.of(hybrid(), "bfloat16")
    assert model_name(b"w", geometry) == model_name(b"w", CacheGeometry.of(hybrid(), "bfloat16", 4))
    assert model_name(b"w", geometry) != model_name(b"v", geometry)
    assert model_name(b"w", geometry) != model_name(b"w", CacheGeometry.of(hybrid(), "float32"))


def test_tables_survive_the_wire() -> None:
    tables = engine(2)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(tables), type=tuple[RegionTable, ...]) == tables
    assert msgspec.json.decode(msgspec.json.encode(tables[0].regions[0]), type=Region) == tables[0].regions[0]
