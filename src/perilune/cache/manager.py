"""Which request holds which pages and which slot. Pure integers; imports no torch.

The scheduler asks (`can_admit`, `grow`), the manager answers; who waits and who is preempted is not decided here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from perilune.cache.budget import CachePlan
from perilune.cache.geometry import PAGE_TOKENS, pages_for
from perilune.cache.pool import Pool


@dataclass(frozen=True)
class CacheStats:
    """What is held right now. `tokens` is what requests asked room for, `bytes_used` whole pages and slots."""

    requests: int
    tokens: int
    pages_used: int
    pages_free: int
    pages_total: int
    slots_used: int
    slots_free: int
    slots_total: int
    bytes_used: int
    bytes_total: int


@dataclass
class _Held:
    slot: int
    tokens: int
    pages: list[int] = field(default_factory=list)


class CacheManager:
    """The books over one CachePlan: a page table and a slot per admitted request.

    An unknown or doubly admitted request id raises AssertionError: it is a bug in the caller.
    """

    def __init__(self, plan: CachePlan) -> None:
        self.plan = plan
        self._pages = Pool(plan.pages)
        self._slots = Pool(plan.slots)
        self._held: dict[str, _Held] = {}

    def can_admit(self, tokens: int) -> bool:
        """Whether a new request with room for `tokens` tokens fits right now."""
        return self._slots.free > 0 and self._pages.free >= pages_for(tokens)

    def admit(self, request_id: str, tokens: int) -> int:
        """Gives `request_id` a slot and pages for `tokens` tokens; returns the slot.

        The slot still holds its former owner's state: the runner clears it. Call only after `can_admit(tokens)`.
        """
        if request_id in self._held:
            raise AssertionError(f"{request_id!r} is admitted already")
        if not self.can_admit(tokens):
            raise AssertionError(
                f"{request_id!r} needs a slot and {pages_for(tokens)} pages; "
                f"{self._slots.free} slots and {self._pages.free} pages are free"
            )
        slots, pages = self._slots.allocate(1, request_id), self._pages.allocate(pages_for(tokens), request_id)
        assert slots is not None
        assert pages is not None
        self._held[request_id] = _Held(slots[0], tokens, pages)
        return slots[0]

    def grow(self, request_id: str, tokens: int) -> bool:
        """Makes the request's pages cover `tokens` tokens. False, and nothing changed, if too few pages are free."""
        held = self._find(request_id)
        more = self._pages.allocate(max(0, pages_for(tokens) - len(held.pages)), request_id)
        if more is None:
            return False
        held.pages += more
        held.tokens = max(held.tokens, tokens)
        return True

    def pages(self, request_id: str) -> list[int]:
        """The page table, a copy: entry i holds tokens 64 i to 64 i + 63."""
        return list(self._find(request_id).pages)

    def slot(self, request_id: str) -> int:
        return self._find(request_id).slot

    def free(self, request_id: str) -> None:
        """Returns everything the request holds."""
        held = self._find(request_id)
        self._pages.release(held.pages, request_id)
        self._slots.release([held.slot], request_id)
        del self._held[request_id]

    def stats(self) -> CacheStats:
        return CacheStats(
            requests=len(self._held),
            tokens=sum(held.tokens for held in self._held.values()),
            pages_used=self._pages.used,
            pages_free=self._pages.free,
            pages_total=self._pages.total,
            slots_used=self._slots.used,
            slots_free=self._slots.free,
            slots_total=self._slots.total,
            bytes_used=self._pages.used * self.plan.page_bytes + self._slots.used * self.plan.slot_bytes,
            bytes_total=self.plan.total_bytes,
        )

    def check(self) -> None:
        """Proves the books: raises AssertionError, naming what broke. Tests call it after every step.

        In each pool free + used = total; what a table lists is what the pool says its request holds, each page in one
        table only; every table covers its tokens; nothing is held for a request that is gone.
        """
        self._pages.check("pages")
        self._slots.check("slots")
        seen_pages: dict[int, str] = {}
        seen_slots: dict[int, str] = {}
        for name, held in self._held.items():
            for page in held.pages:
                if page in seen_pages:
                    raise AssertionError(f"page {page} is in the tables of {seen_pages[page]!r} and {name!r}")
                seen_pages[page] = name
            if held.slot in seen_slots:
                raise AssertionError(f"slot {held.slot} belongs to {seen_slots[held.slot]!r} and {name!r}")
            seen_slots[held.slot] = name
            if len(held.pages) * PAGE_TOKENS < held.tokens:
                raise AssertionError(f"{name!r} has {len(held.pages)} pages for {held.tokens} tokens")
        self._compare("page", self._pages, seen_pages)
        self._compare("slot", self._slots, seen_slots)

    @staticmethod
    def _compare(kind: str, pool: Pool, seen: dict[int, str]) -> None:
        for place in range(pool.total):
            wanted = {seen[place]} if place in seen else set()
            if pool.holders(place) != wanted:
                raise AssertionError(f"{kind} {place} is held by {set(pool.holders(place))}, the tables say {wanted}")

    def _find(self, request_id: str) -> _Held:
        held = self._held.get(request_id)
        if held is None:
            raise AssertionError(f"{request_id!r} holds no cache")
        return held
