"""Which request holds which pages and which slot, and what is kept of those that are gone. Imports no torch.

The scheduler asks (`can_admit`, `grow`), the manager answers; who waits and who is preempted is not decided here.

Rows. The slot arena has `slots + snapshots` rows of one size. At most `slots` requests run, each in a row; snapshots
live in all rows no request needs and make way when one does. Likewise the prefix tree keeps pages nobody asked for.
So the cache never costs a request its admission or its next page.

Exactness. Only what prefill wrote is shared: whole pages of the prompt, and states at multiples of 64 tokens. What
decoding wrote differs in the last bit from what prefill of the same tokens gives, and never enters the tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from perilune.cache.audit import audit
from perilune.cache.budget import CachePlan
from perilune.cache.geometry import PAGE_TOKENS, pages_for
from perilune.cache.held import Export, Held
from perilune.cache.pool import Pool
from perilune.cache.prefix import PrefixCounts, PrefixSettings, explain
from perilune.cache.radix import TREE, Match, Node, RadixTree
from perilune.cache.snapshots import Origin, branch, floor_page, positions, reusable
from perilune.cache.stats import CacheStats, Holding

_LOADING = "prefix being loaded"


@dataclass
class Places:
    """Where a prefix that was kept elsewhere is to be written: (index of the page, page), and a row for its state.

    The writer says how far it came: the first `filled` tokens have their pages, and where the row's state came from if
    it has one.
    """

    pages: list[tuple[int, int]]
    row: int | None
    filled: int
    origin: Origin | None = None


class CacheManager:
    """The books over one CachePlan: a page table and a slot per admitted request, and the prefix tree if there is one.

    A prompt has a `salt`: what was kept under one salt is not found under another, whatever the tokens.
    An unknown or doubly admitted request id raises AssertionError: it is a bug in the caller.
    """

    def __init__(self, plan: CachePlan, prefix: PrefixSettings | None = None) -> None:
        self.plan, self.prefix = plan, prefix
        self._pages = Pool(plan.pages)
        self._rows = Pool(plan.slots + plan.snapshots)
        self._held: dict[str, Held] = {}
        self._tree = RadixTree(self._pages, self._rows, stateful=prefix is not None and prefix.stateful)
        self.counts = PrefixCounts()

    def can_admit(
        self,
        tokens: int,
        prompt: tuple[int, ...] = (),
        salt: bytes = b"",
        most: int | None = None,
        pages_only: bool = False,
    ) -> bool:
        """Whether a new request with room for `tokens` tokens, of which `prompt` are known, fits right now.

        `most`: how many of the prompt's tokens may be found in the tree, if the request needs the others computed.
        `pages_only`: its state and the rest come from elsewhere, so every page that is here will do.
        """
        return len(self._held) < self.plan.slots and self._fits(tokens, self._match(prompt, salt, most, pages_only))

    def _match(self, prompt: tuple[int, ...], salt: bytes, most: int | None, pages_only: bool) -> Match:
        if not self.prefix:
            return Match()
        if pages_only:
            nodes = self._tree.match(prompt, floor_page(len(prompt)), salt).nodes
            return Match(nodes, nodes[-1] if nodes else None)
        return self.known(prompt, salt, most)

    def _fits(self, tokens: int, match: Match) -> bool:
        if not self._rows.free and self._tree.spare_snapshot() is None:
            return False  # every row that is not a slot is read by a request admitted a moment ago
        need = pages_for(tokens) - len(match.reused)
        return need <= self._pages.free or need <= self._pages.free + self._tree.spare_pages(match.reused)

    def admit(
        self,
        request_id: str,
        tokens: int,
        prompt: tuple[int, ...] = (),
        salt: bytes = b"",
        marks: tuple[int, ...] = (),
        most: int | None = None,
        pages_only: bool = False,
    ) -> int:
        """Gives `request_id` a slot and pages for `tokens` tokens; returns the slot.

        `marks`: after how many tokens of the prompt the client wants a state kept, rounded down to whole pages.
        The first `cached(request_id)` tokens of `prompt` are in its pages already, shared and never to be written, and
        their state is in the row `source(request_id)`, to be copied into the slot; without a source the slot still
        holds its former owner's state and is to be cleared. Call only after `can_admit` with the same arguments.
        """
        if request_id in self._held:
            raise AssertionError(f"{request_id!r} is admitted already")
        match = self._match(prompt, salt, most, pages_only)
        if len(self._held) >= self.plan.slots or not self._fits(tokens, match):
            raise AssertionError(
                f"{request_id!r} needs a slot and {pages_for(tokens)} pages; "
                f"{self.plan.slots - len(self._held)} slots and {self._pages.free} pages are free"
            )
        lost = self._tree.lost(prompt, reusable(len(prompt)), match, salt)
        held = Held(-1, tokens, [node.page for node in match.reused], prompt, salt, marks, cached=match.tokens)
        self._pages.retain(held.pages, request_id)
        self._take_slot(request_id, held, match.node if self._tree.stateful and not pages_only else None)
        more = self._take_pages(pages_for(tokens) - len(held.pages), request_id)
        assert more is not None, "can_admit said that it fits"
        held.pages += more
        self._held[request_id] = held
        if self.prefix:
            self._tree.use(match)
            held.branch = branch(match.kv_tokens, match.tokens)
            if pages_only:
                held.explanation = f"the pages of {match.tokens} of {len(prompt)} prompt tokens are here"
            elif most is None:
                self.counts.look_up(len(prompt), match, lost)
                held.explanation = explain(len(prompt), match, lost)
            else:  # what was found says nothing about the cache
                held.explanation = f"{match.tokens} of {len(prompt)} prompt tokens reused: the rest was not to be"
        return held.slot

    def _take_slot(self, request_id: str, held: Held, node: Node | None) -> None:
        """A row for the request to run in. Where the only row left is the snapshot itself, the request takes that."""
        if node is not None:
            node.reads += 1
        row = self._take_row(request_id)
        if node is None:
            assert row is not None, "can_admit said that there is a row"
            held.slot = row
            return
        assert node.snapshot is not None
        held.source = node.snapshot
        if row is not None:
            held.slot, held.restoring = row, node
            return
        assert node.reads == 1, "can_admit said that there is a row"
        held.slot = node.snapshot
        node.reads = 0
        self._rows.retain([held.slot], request_id)
        self._tree.evict_snapshot(node)
        self.counts.snapshots_evicted += 1

    def _take_row(self, owner: str) -> int | None:
        """A free row, or that of the snapshot least worth keeping; None if requests need them all."""
        if not self._rows.free:
            node = self._tree.spare_snapshot()
            if node is None:
                return None
            self._tree.evict_snapshot(node)
            self.counts.snapshots_evicted += 1
        rows = self._rows.allocate(1, owner)
        assert rows is not None
        return rows[0]

    def _take_pages(self, count: int, owner: str) -> list[int] | None:
        """`count` pages, from the prefix tree if need be; None, and nothing changed, if requests hold too many."""
        missing = count - self._pages.free
        if missing > 0:
            if self._tree.spare_pages() < missing:
                return None
            pages, snapshots = self._tree.evict(missing)
            self.counts.pages_evicted += pages
            self.counts.snapshots_evicted += snapshots
        return self._pages.allocate(count, owner)

    def grow(self, request_id: str, tokens: int) -> bool:
        """Makes the request's pages cover `tokens` tokens. False, and nothing changed, if too few pages can be had."""
        held = self._find(request_id)
        more = self._take_pages(max(0, pages_for(tokens) - len(held.pages)), request_id)
        if more is None:
            return False
        held.pages += more
        held.tokens = max(held.tokens, tokens)
        return True

    def exports(self, request_id: str, start: int, count: int) -> tuple[tuple[int, int], ...]:
        """Rows to write states to while prefilling [start, start + count): (tokens from start, row), ascending.

        Ask last of all in a step: a snapshot takes a row only after everybody who could be admitted has been.
        """
        held = self._find(request_id)
        if not self.prefix or not self._tree.stateful or not held.prompt:
            return ()
        end, every = start + count, self.prefix.interval
        for length, origin in positions(len(held.prompt), held.branch, every, start, end, held.marks):
            node = self._tree.find(held.prompt, length, held.salt)
            if node is not None and node.snapshot is not None:
                continue
            row = self._take_row(request_id)
            if row is None:
                self.counts.snapshots_skipped += 1
                break
            held.exports.append(Export(length, row, origin))
        return tuple(sorted((export.length - start, export.row) for export in held.exports))

    def commit(self, request_id: str, computed: int) -> None:
        """The step ran: prefill of the request stands at `computed` tokens, and the rows it exports to are filled."""
        held = self._find(request_id)
        if not self.prefix or not held.prompt:
            return
        self._release_restored(held)
        written = floor_page(min(computed, len(held.prompt)))
        self._tree.insert(held.prompt, held.pages[: written // PAGE_TOKENS], held.salt)
        for export in held.exports:
            if self._tree.attach(held.prompt, export.length, export.row, export.origin, held.salt):
                self.counts.snapshots[export.origin] += 1
                if export.origin == "interval":
                    held.intervals.append(export.length)
            self._rows.release([export.row], request_id)
        held.exports.clear()
        if computed >= len(held.prompt):
            self._drop_intervals(held)

    def _release_restored(self, held: Held) -> None:
        if held.restoring is not None:
            held.restoring.reads -= 1
            held.restoring = None

    def _drop_intervals(self, held: Held) -> None:
        """They were for a preemption before the prompt's end. Without a snapshot there they are the best there is."""
        end = self._tree.find(held.prompt, floor_page(len(held.prompt)), held.salt)
        if end is None or end.snapshot is None:
            return
        for length in held.intervals:
            node = self._tree.find(held.prompt, length, held.salt)
            if node is not None and node.snapshot is not None and node.origin == "interval" and not node.reads:
                self._tree.drop(node)
        held.intervals.clear()

    @property
    def stateful(self) -> bool:
        """Whether reuse needs a state."""
        return self._tree.stateful

    def known(self, prompt: Sequence[int], salt: bytes = b"", most: int | None = None) -> Match:
        """What a request with this prompt would find now, of at most `most` tokens."""
        limit = reusable(len(prompt))
        return self._tree.match(prompt, limit if most is None else min(limit, most), salt)

    def kept(self) -> list[Node]:
        """The prefixes worth keeping elsewhere."""
        return self._tree.reusable_nodes()

    def tell_before_eviction(self, listener: Callable[[Node], None]) -> None:
        """`listener` is called with every prefix that is about to make way, its page and row still as they were."""
        self._tree.on_evict = listener

    @contextmanager
    def loading(self, prompt: Sequence[int], length: int, salt: bytes = b"") -> Iterator[Places | None]:
        """Room for what the tree lacks of the first `length` tokens; what was filled is in the tree afterwards.

        None if running requests need the room.
        """
        match = self._tree.match(prompt, length, salt)
        pages, rows = [node.page for node in match.nodes], list[int]()
        self._pages.retain(pages, _LOADING)  # or they would make room for what follows them
        try:
            more = self._take_pages(length // PAGE_TOKENS - len(pages), _LOADING)
            row = self._take_row(_LOADING) if more is not None and self.stateful else None
            rows += [row] if row is not None else []
            if more is None or (row is None and self.stateful):
                pages += more or []
                yield None
                return
            first, pages = len(pages), pages + more
            places = Places(list(enumerate(more, first)), row, match.kv_tokens)
            yield places
            self._tree.insert(prompt, pages[: places.filled // PAGE_TOKENS], salt)
            origin = places.origin
            if origin and row is not None and self._tree.attach(prompt, length, row, origin, salt):
                self.counts.snapshots[origin] += 1
        finally:
            self._pages.release(pages, _LOADING)
            self._rows.release(rows, _LOADING)

    def pages(self, request_id: str) -> list[int]:
        """The page table, a copy: entry i holds tokens 64 i to 64 i + 63."""
        return list(self._find(request_id).pages)

    def slot(self, request_id: str) -> int:
        return self._find(request_id).slot

    def cached(self, request_id: str) -> int:
        """How many of the prompt's tokens need not be computed: a multiple of 64, less than the prompt."""
        return self._find(request_id).cached

    def source(self, request_id: str) -> int | None:
        """The row to copy into the slot before the first step; None to clear it. May be the slot itself."""
        return self._find(request_id).source

    def explanation(self, request_id: str) -> str:
        """What was reused and why not more, in words; empty without a prefix cache."""
        return self._find(request_id).explanation

    def rename(self, request_id: str, name: str) -> None:
        """What the request holds is held under `name` from now on; the request can be admitted anew beside it."""
        held = self._find(request_id)
        if name in self._held:
            raise AssertionError(f"{name!r} is admitted already")
        self._release_restored(held)
        for pool, places in ((self._pages, held.pages), (self._rows, held.rows)):
            pool.retain(places, name)
            pool.release(places, request_id)
        self._held[name] = self._held.pop(request_id)

    def free(self, request_id: str, computed: int = 0) -> None:
        """Returns everything the request holds. `computed`: how many tokens its slot has seen, 0 if that is unsure.

        A state that prefill left on a 64-token boundary is not lost: the row goes to the tree instead of being copied.
        """
        held = self._find(request_id)
        self._release_restored(held)
        on_boundary = 0 < computed <= len(held.prompt) and computed % PAGE_TOKENS == 0
        if self._tree.stateful and on_boundary:
            donated = self._tree.attach(held.prompt, computed, held.slot, "donated", held.salt)
            self.counts.snapshots["donated"] += donated
        self._pages.release(held.pages, request_id)
        self._rows.release(held.rows, request_id)
        del self._held[request_id]

    def holding(self, request_id: str) -> Holding:
        """What one request holds."""
        held = self._find(request_id)
        shared = held.cached // PAGE_TOKENS
        return Holding(len(held.pages) - shared, shared)

    @property
    def holders(self) -> int:
        """How many hold pages and a slot: those who run, and those whose places another engine reads or writes."""
        return len(self._held)

    @property
    def pages_at_hand(self) -> int:
        """Pages a new request could get: the free ones, and those that only the prefix tree holds."""
        return self._pages.free + self._tree.spare_pages()

    def stats(self) -> CacheStats:
        pages_cached = self._pages.sole(TREE)
        pages_used = self._pages.used - pages_cached
        rows_used, snapshots = len(self._held), len(self._tree.snapshots)
        unfilled = sum(len(held.pages) * PAGE_TOKENS - held.tokens for held in self._held.values())
        return CacheStats(
            requests=len(self._held),
            tokens=sum(held.tokens for held in self._held.values()),
            pages_used=pages_used,
            pages_free=self._pages.free,
            pages_total=self._pages.total,
            slots_used=rows_used,
            slots_free=self.plan.slots - rows_used,
            slots_total=self.plan.slots,
            bytes_used=pages_used * self.plan.page_bytes + rows_used * self.plan.slot_bytes,
            bytes_total=self.plan.total_bytes,
            pages_cached=pages_cached,
            snapshots=snapshots,
            bytes_cached=pages_cached * self.plan.page_bytes + snapshots * self.plan.slot_bytes,
            bytes_padding=self._rows.used * self.plan.slot_padding_bytes
            + unfilled * self.plan.page_bytes // PAGE_TOKENS,
        )

    def check(self) -> None:
        """Proves the books (`cache/audit.py`): raises AssertionError, naming what broke."""
        audit(self._held, self._pages, self._rows, self._tree)

    def _find(self, request_id: str) -> Held:
        held = self._held.get(request_id)
        if held is None:
            raise AssertionError(f"{request_id!r} holds no cache")
        return held
