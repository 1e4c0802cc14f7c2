from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perilune.cache.budget import plan_cache
from perilune.cache.geometry import CacheGeometry, LatentBlock, StateBlock, pages_for
from perilune.errors import ConfigError

SLOT, PAGE = 4096, 1280  # bytes of the geometry below
BOTH = CacheGeometry(
    dtype="bfloat16",
    tp=1,
    latents=(LatentBlock(1, 10),),
    states=(StateBlock(0, 4, 16, 3, 0, 4096, 4096, 0),),
    slot_bytes=SLOT,
)
PAGES_ONLY = CacheGeometry(dtype="bfloat16", tp=1, latents=BOTH.latents, states=(), slot_bytes=0)
SLOTS_ONLY = CacheGeometry(dtype="bfloat16", tp=1, latents=(), states=BOTH.states, slot_bytes=SLOT)


def test_without_a_budget_every_sequence_reaches_its_context() -> None:
    plan = plan_cache(BOTH, max_context=130, max_running=4)
    assert (plan.slots, plan.pages, plan.max_context) == (4, 12, 130)
    assert plan.total_bytes == 4 * SLOT + 12 * PAGE == plan.slots_bytes + plan.pages_bytes


def test_a_budget_of_exactly_the_need_changes_nothing() -> None:
    free = plan_cache(BOTH, 130, 4)
    assert plan_cache(BOTH, 130, 4, free.total_bytes).pages == free.pages
    assert plan_cache(BOTH, 130, 4, free.total_bytes - 1).pages == free.pages - 1


def test_slots_come_first_and_pages_take_the_rest() -> None:
    plan = plan_cache(BOTH, 640, 2, cache_bytes=2 * SLOT + 7 * PAGE + 5)
    assert (plan.slots, plan.pages) == (2, 7)
    assert any("not 20" in reason for reason in plan.because)


def test_every_slot_has_a_page_so_slots_are_cut_when_it_is_tight() -> None:
    plan = plan_cache(BOTH, 640, 8, cache_bytes=3 * (SLOT + PAGE) + 10)
    assert (plan.slots, plan.pages) == (3, 3)
    assert any("max_running = 8" in reason for reason in plan.because)


def test_a_context_that_no_longer_fits_is_reported_with_what_it_would_need() -> None:
    plan = plan_cache(BOTH, 640, 1, cache_bytes=SLOT + 9 * PAGE)
    assert plan.max_context == 9 * 64
    assert any("largest context served is 576 tokens, not 640" in reason for reason in plan.because)


def test_one_slot_and_one_page_is_the_smallest_cache() -> None:
    assert plan_cache(BOTH, 640, 8, SLOT + PAGE).max_context == 64
    with pytest.raises(ConfigError, match="cache_bytes"):
        plan_cache(BOTH, 640, 8, SLOT + PAGE - 1)


def test_pages_that_cost_nothing_are_never_cut() -> None:
    plan = plan_cache(SLOTS_ONLY, 6400, 2, cache_bytes=2 * SLOT)
    assert (plan.slots, plan.pages, plan.total_bytes) == (2, 200, 2 * SLOT)


def test_slots_that_cost_nothing_are_bounded_by_their_pages() -> None:
    plan = plan_cache(PAGES_ONLY, 6400, 8, cache_bytes=5 * PAGE)
    assert (plan.slots, plan.pages) == (5, 5)


@pytest.mark.parametrize(("context", "running"), [(0, 1), (1, 0), (-1, 1), (1, -5)])
def test_an_empty_cache_is_refused(context: int, running: int) -> None:
    with pytest.raises(ConfigError):
        plan_cache(BOTH, context, running)


@given(st.integers(1, 5000), st.integers(1, 20), st.integers(0, 10**6), st.sampled_from([BOTH, PAGES_ONLY, SLOTS_ONLY]))
def test_a_budget_is_never_exceeded_and_never_left_unused(
    context: int, running: int, budget: int, geometry: CacheGeometry
) -> None:
    free = plan_cache(geometry, context, running)
    try:
        plan = plan_cache(geometry, context, running, budget)
    except ConfigError:
        assert budget < geometry.slot_bytes + geometry.page_bytes
        return
    assert plan.total_bytes <= budget
    assert 1 <= plan.slots <= running
    assert plan.slots <= plan.pages <= free.pages
    assert plan.because
    if plan.slots < running:
        assert plan.slots_bytes + plan.slots * geometry.page_bytes + geometry.sequence_bytes(1) > budget
    elif plan.pages < free.pages:
        assert plan.total_bytes + geometry.page_bytes > budget
    assert plan.max_context == min(context, plan.pages * 64)
    assert (plan.max_context < context) == (plan.pages < pages_for(context))


def test_snapshots_are_rows_beside_the_slots_two_per_running_sequence() -> None:
    plan = plan_cache(BOTH, 130, 4, snapshots=None)
    assert (plan.slots, plan.snapshots, plan.rows) == (4, 8, 12)
    assert plan.slots_bytes == 12 * SLOT
    assert plan.total_bytes == 12 * SLOT + plan.pages_bytes
    assert any("8 snapshots" in reason for reason in plan.because)
    assert plan_cache(PAGES_ONLY, 130, 4, snapshots=None).snapshots == 0


def test_snapshots_nobody_asked_for_take_what_a_budget_leaves_over() -> None:
    need = plan_cache(BOTH, 130, 4).total_bytes
    plan = plan_cache(BOTH, 130, 4, need + 3 * SLOT + 5, snapshots=None)
    assert (plan.slots, plan.pages, plan.snapshots) == (4, 12, 3)
    assert any("not 8" in reason for reason in plan.because)
    assert plan_cache(BOTH, 130, 4, need, snapshots=None).snapshots == 0


def test_snapshots_asked_for_come_before_pages() -> None:
    need = plan_cache(BOTH, 130, 4).total_bytes
    plan = plan_cache(BOTH, 130, 4, need, snapshots=2)
    assert plan.snapshots == 2
    assert plan.total_bytes <= need
    assert plan.pages < 12
    with pytest.raises(ConfigError, match="snapshot_slots"):
        plan_cache(BOTH, 130, 4, SLOT + PAGE, snapshots=1)
