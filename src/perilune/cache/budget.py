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
    """Pages and rows to allocate, their bytes, and a short reason per decision.

    `slots` is how many sequences can run at once, `snapshots` how many rows of the same size the slot arena has beyond
    them, for states kept between requests. `slot_padding_bytes` is what alignment adds to each row. `max_context` is
    the most tokens one sequence can reach: what was asked for, or less if the budget is tight.
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
    snapshots: int = 0
    slot_padding_bytes: int = 0

    @property
    def rows(self) -> int:
        """Rows of the slot arena: running sequences and snapshots."""
        return self.slots + self.snapshots


SNAPSHOTS_PER_SLOT = 2


def default_snapshots(geometry: CacheGeometry, max_running: int) -> int:
    """Snapshot rows when nobody says otherwise: a prompt's end and a place before it for every running sequence."""
    return SNAPSHOTS_PER_SLOT * max_running if geometry.states else 0


def plan_cache(
    geometry: CacheGeometry,
    max_context: int,
    max_running: int,
    cache_bytes: int | None = None,
    snapshots: int | None = 0,
) -> CachePlan:
    """Size both arenas for `max_running` sequences of `max_context` tokens, within `cache_bytes` if it is given.

    Without a budget every running sequence can reach `max_context`. With one, slots come first (as many as can also
    have a page each), the rest becomes pages, and `because` names what was cut. `snapshots` rows are taken off the
    budget before all else; None asks for `default_snapshots`, or as many of them as the budget leaves over.
    Raises ConfigError if the budget holds not even one sequence of one page, or a number is not positive.
    """
    if max_context < 1 or max_running < 1:
        raise ConfigError(
            f"A cache for {max_running} sequences of {max_context} tokens is empty.",
            "Both numbers must be at least 1.",
            "Raise max_running and max_context.",
        )
    slots, pages = max_running, max_running * pages_for(max_context)
    rows = default_snapshots(geometry, max_running) if snapshots is None else snapshots
    if cache_bytes is not None:
        reserved = 0 if snapshots is None else rows * geometry.slot_bytes
        slots, pages = _within(geometry, slots, pages, cache_bytes, reserved)
        left = cache_bytes - pages * geometry.page_bytes - slots * geometry.slot_bytes
        if snapshots is None and geometry.slot_bytes:
            rows = min(rows, left // geometry.slot_bytes)
    reach = min(max_context, pages * PAGE_TOKENS)
    return CachePlan(
        pages=pages,
        slots=slots,
        page_bytes=geometry.page_bytes,
        slot_bytes=geometry.slot_bytes,
        pages_bytes=pages * geometry.page_bytes,
        slots_bytes=(slots + rows) * geometry.slot_bytes,
        total_bytes=pages * geometry.page_bytes + (slots + rows) * geometry.slot_bytes,
        max_context=reach,
        because=_reasons(geometry, slots, pages, max_context, max_running, cache_bytes)
        + _snapshot_reasons(geometry, rows, snapshots, max_running),
        snapshots=rows,
        slot_padding_bytes=geometry.padding_bytes,
    )


def _within(geometry: CacheGeometry, slots: int, pages: int, cache_bytes: int, reserved: int) -> tuple[int, int]:
    """Slots and pages that fit `cache_bytes` beside `reserved`: every slot gets a page before any slot gets two."""
    smallest = geometry.slot_bytes + geometry.page_bytes
    if reserved and smallest + reserved > cache_bytes:
        raise ConfigError(
            f"A cache of {format_bytes(cache_bytes)} holds no request beside its snapshots.",
            f"They take {format_bytes(reserved)}, one slot and one page {format_bytes(smallest)}.",
            "Lower snapshot_slots, or raise cache_bytes.",
        )
    cache_bytes -= reserved
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


def _snapshot_reasons(geometry: CacheGeometry, rows: int, asked: int | None, max_running: int) -> tuple[str, ...]:
    slot, wanted = format_bytes(geometry.slot_bytes), default_snapshots(geometry, max_running)
    if not geometry.states:
        return () if asked is not None else ("no snapshots: without KDA layers, every cached page can be reused",)
    if asked is not None:
        return (f"{rows} snapshots of {slot}: as set",) if asked else ()
    if rows < wanted:
        return (f"{rows} snapshots of {slot}, not {wanted}: what cache_bytes leaves beside pages and slots",)
    return (f"{rows} snapshots of {slot}: {SNAPSHOTS_PER_SLOT} per running sequence",)
