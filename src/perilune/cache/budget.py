"""How many pages and slots to allocate, decided from what is asked for. Imports no torch.

`perilune plan` and the engine call the same function, so that what is printed is what is allocated.
"""

from __future__ import annotations

from dataclasses import dataclass

from perilune.cache.geometry import PAGE_TOKENS, CacheGeometry, pages_for
from perilune.errors import ConfigError
from perilune.units import format_bytes


@dataclass(frozen=True)
class CachePlan:
    """Pages and slots to allocate, their bytes, and a short reason per decision.

    `max_context` is the most tokens one sequence can reach: what was asked for, or less if the budget is tight.
    """

    pages: int
    slots: int
    page_bytes: int
    slot_bytes: int
    pages_bytes: int
    slots_bytes: int
    total_bytes: int
    max_context: int
    because: tuple[str, ...]


def plan_cache(
    geometry: CacheGeometry, max_context: int, max_running: int, cache_bytes: int | None = None
) -> CachePlan:
    """Size both arenas for `max_running` sequences of `max_context` tokens, within `cache_bytes` if it is given.

    Without a budget every running sequence can reach `max_context`. With one, slots come first (as many as can also
    have a page each), the rest becomes pages, and `because` names what was cut.
    Raises ConfigError if the budget holds not even one sequence of one page, or a number is not positive.
    """
    if max_context < 1 or max_running < 1:
        raise ConfigError(
            f"A cache for {max_running} sequences of {max_context} tokens is empty.",
            "Both numbers must be at least 1.",
            "Raise max_running and max_context.",
        )
    slots, pages = max_running, max_running * pages_for(max_context)
    if cache_bytes is not None:
        slots, pages = _within(geometry, slots, pages, cache_bytes)
    reach = min(max_context, pages * PAGE_TOKENS)
    return CachePlan(
        pages=pages,
        slots=slots,
        page_bytes=geometry.page_bytes,
        slot_bytes=geometry.slot_bytes,
        pages_bytes=pages * geometry.page_bytes,
        slots_bytes=slots * geometry.slot_bytes,
        total_bytes=pages * geometry.page_bytes + slots * geometry.slot_bytes,
        max_context=reach,
        because=_reasons(geometry, slots, pages, max_context, max_running, cache_bytes),
    )


def _within(geometry: CacheGeometry, slots: int, pages: int, cache_bytes: int) -> tuple[int, int]:
    """Slots and pages that fit `cache_bytes`: every slot gets a page before any slot gets two."""
    smallest = geometry.slot_bytes + geometry.page_bytes
    if smallest > cache_bytes:
        raise ConfigError(
            f"A cache of {format_bytes(cache_bytes)} holds no request.",
            f"One slot and one page of {PAGE_TOKENS} tokens take {format_bytes(smallest)} ({smallest} bytes).",
            "Raise cache_bytes, or leave it out to size the cache from max_context and max_running.",
        )
    if smallest:
        slots = min(slots, cache_bytes // smallest)
    if geometry.page_bytes:
        pages = min(pages, (cache_bytes - slots * geometry.slot_bytes) // geometry.page_bytes)
    return slots, pages


def _reasons(
    geometry: CacheGeometry, slots: int, pages: int, max_context: int, max_running: int, cache_bytes: int | None
) -> tuple[str, ...]:
    slot, page = format_bytes(geometry.slot_bytes), format_bytes(geometry.page_bytes)
    each, wanted = pages_for(max_context), max_running * pages_for(max_context)
    budget = "" if cache_bytes is None else format_bytes(cache_bytes)
    reasons = []
    if slots < max_running:
        reasons.append(
            f"{slots} slots of {slot}, not max_running = {max_running}: cache_bytes = {budget} holds no more"
        )
    else:
        reasons.append(f"{slots} slots of {slot}: one per running sequence (max_running)")
    if pages < wanted:
        reasons.append(f"{pages} pages of {page}, not {wanted}: what cache_bytes = {budget} leaves beside the slots")
    else:
        reasons.append(f"{pages} pages of {page}: {max_running} x {each} pages reach {max_context} tokens each")
    if pages < each:
        need = geometry.sequence_bytes(max_context)
        reasons.append(
            f"the largest context served is {pages * PAGE_TOKENS} tokens, not {max_context}: "
            f"one such sequence needs {format_bytes(need)}; raise cache_bytes or lower max_context"
        )
    return tuple(reasons)
