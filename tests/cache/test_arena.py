from __future__ import annotations

import dataclasses

import pytest
import torch

from perilune.cache.arena import CacheArenas, PageArena, SlotArena
from perilune.cache.budget import CachePlan, plan_cache
from perilune.cache.geometry import ALIGNMENT, CacheGeometry, LatentBlock
from perilune.errors import ConfigError, UnsupportedError
from perilune.models.spec import KdaSpec, MlaSpec, ModelSpec

DTYPES = ("bfloat16", "float16", "float32")


def sized(spec: ModelSpec, dtype: str, tp: int = 1) -> tuple[CacheGeometry, CachePlan]:
    geometry = CacheGeometry.of(spec, dtype, tp)
    return geometry, plan_cache(geometry, max_context=300, max_running=3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_allocated_bytes_equal_planned_bytes(golden_spec: ModelSpec, dtype: str) -> None:
    geometry, plan = sized(golden_spec, dtype)
    pages, slots = PageArena(geometry, plan), SlotArena(geometry, plan)
    assert pages.allocated_bytes == plan.pages_bytes == pages.tensor.numel() * pages.tensor.element_size()
    assert slots.allocated_bytes == plan.slots_bytes == slots.buffer.numel()
    assert CacheArenas(geometry, plan).allocated_bytes == plan.total_bytes > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_have_the_shapes_the_layers_expect(golden_spec: ModelSpec, dtype: str) -> None:
    geometry, plan = sized(golden_spec, dtype)
    arenas = CacheArenas(geometry, plan)
    for index, layer in enumerate(golden_spec.layers):
        if isinstance(layer.mixer, MlaSpec):
            assert arenas.pages(index).shape == (plan.pages, 64, layer.mixer.cache_dim)
            assert arenas.pages(index).dtype == getattr(torch, dtype)
        else:
            assert isinstance(layer.mixer, KdaSpec)
            heads, dim = layer.mixer.heads, layer.mixer.head_dim
            assert arenas.state(index).shape == (3, heads, dim, dim)
            assert arenas.state(index).dtype == torch.float32
            assert arenas.conv(index).shape == (3, 3, heads, dim, layer.mixer.taps - 1)
            assert arenas.conv(index).dtype == getattr(torch, dtype)


def test_a_slot_share_of_one_rank_is_a_byte_range_of_the_whole(hybrid_spec: ModelSpec) -> None:
    layer = hybrid_spec.kda_layers[0]
    whole, share = SlotArena(*sized(hybrid_spec, "float32")), SlotArena(*sized(hybrid_spec, "float32", tp=2))
    heads = share.state(layer).shape[1]
    whole.state(layer).copy_(torch.randn(whole.state(layer).shape))
    share.state(layer).copy_(whole.state(layer)[:, :heads])
    size = share.state(layer)[0].numel() * 4  # layer 0's state is the first block of a slot
    assert layer == 0
    assert torch.equal(share.buffer[:, :size], whole.buffer[:, :size])


def test_every_view_writes_its_own_bytes_only(golden_spec: ModelSpec) -> None:
    geometry, plan = sized(golden_spec, "bfloat16")
    arenas = CacheArenas(geometry, plan)
    views = [arenas.pages(i) for i in golden_spec.mla_layers]
    views += [view(i) for i in golden_spec.kda_layers for view in (arenas.state, arenas.conv)]
    for value, view in enumerate(views, start=1):
        view.fill_(value)
    for value, view in enumerate(views, start=1):
        assert bool((view == value).all())


def test_clearing_a_slot_zeroes_it_and_leaves_its_neighbours(golden_spec: ModelSpec) -> None:
    geometry, plan = sized(golden_spec, "float32")
    arenas = CacheArenas(geometry, plan)
    arenas.slot_arena.buffer.fill_(7)
    arenas.clear(1)
    assert not arenas.slot_arena.buffer[1].any()
    assert bool((arenas.slot_arena.buffer[[0, 2]] == 7).all())


def test_memory_starts_at_zero_and_rows_are_aligned(golden_spec: ModelSpec) -> None:
    geometry, plan = sized(golden_spec, "bfloat16")
    arenas = CacheArenas(geometry, plan)
    assert not arenas.page_arena.tensor.any()
    assert not arenas.slot_arena.buffer.any()
    for slot in range(plan.slots):
        assert arenas.slot_arena.buffer[slot].data_ptr() % ALIGNMENT == 0
    for layer in golden_spec.kda_layers:
        assert arenas.state(layer).data_ptr() % ALIGNMENT == 0
        assert arenas.conv(layer).data_ptr() % ALIGNMENT == 0


def test_pages_are_page_major_so_one_page_is_one_byte_range(golden_spec: ModelSpec) -> None:
    geometry, plan = sized(golden_spec, "bfloat16")
    arena = PageArena(geometry, plan)
    assert arena.tensor[1].is_contiguous()
    assert arena.tensor[1].data_ptr() - arena.tensor[0].data_ptr() == geometry.page_bytes


def test_asking_the_wrong_layer_is_an_internal_error(golden_spec: ModelSpec) -> None:
    arenas = CacheArenas(*sized(golden_spec, "bfloat16"))
    with pytest.raises(AssertionError, match="KDA layers are"):
        arenas.state(golden_spec.mla_layers[0])
    with pytest.raises(AssertionError, match="MLA layers are"):
        arenas.pages(len(golden_spec.layers))


def test_memory_that_cannot_be_had_names_the_setting() -> None:
    geometry = CacheGeometry("bfloat16", 1, (LatentBlock(0, 64),), (), 0)
    plan = plan_cache(geometry, max_context=2**30, max_running=2**20)
    with pytest.raises(ConfigError, match="max_running") as caught:
        PageArena(geometry, plan)
    assert str(plan.pages_bytes) in str(caught.value)


def test_layers_of_different_latent_widths_are_refused() -> None:
    geometry = CacheGeometry("bfloat16", 1, (LatentBlock(0, 64), LatentBlock(1, 32)), (), 0)
    with pytest.raises(UnsupportedError, match=r"\[32, 64\]"):
        PageArena(geometry, plan_cache(geometry, 64, 1))


def test_a_model_without_mla_has_pages_of_no_bytes(hybrid_spec: ModelSpec) -> None:
    spec = dataclasses.replace(hybrid_spec, layers=(hybrid_spec.layers[0],))
    geometry, plan = sized(spec, "bfloat16")
    arenas = CacheArenas(geometry, plan)
    assert plan.pages == 15
    assert arenas.page_arena.allocated_bytes == 0
    assert arenas.allocated_bytes == plan.total_bytes == plan.slots_bytes > 0
