"""Prefixes below the arenas: what makes way moves to host memory or to disk, and comes back when that is cheaper than
computing it again.

A prefix's key is a hash chain over its pages of tokens. It begins with the model's identity and the prompt's salt, so
an entry never crosses models, dtypes, layouts, builds, or API keys where those are kept apart. Imports no torch.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import time
from collections.abc import Sequence

from perilune.cache.disk import DiskTier
from perilune.cache.geometry import PAGE_TOKENS
from perilune.cache.host import HostTier
from perilune.cache.manager import CacheManager
from perilune.cache.radix import Node, path_to
from perilune.cache.snapshots import reusable
from perilune.cache.tier import Kept, Kind, Rate, Tier
from perilune.units import format_bytes

log = logging.getLogger(__name__)


class Tiers:
    """Between one engine's prefix tree and the tiers below it. `model` is the start of every key."""

    def __init__(
        self, model: bytes, manager: CacheManager, kept: Kept, host: HostTier | None, disk: DiskTier | None
    ) -> None:
        self._model, self._manager, self._kept, self._host, self._disk = model, manager, kept, host, disk
        self._tiers: list[Tier] = [tier for tier in (host, disk) if tier is not None]  # the fastest first
        self._page_bytes, self._state_bytes = kept.size("page"), kept.size("state")
        self.computing = Rate()  # prompt tokens per second
        self.loaded_tokens = self.loads = self.declined = self.demoted = self.skipped = 0
        manager.tell_before_eviction(self._demote)

    def _first_key(self, salt: bytes) -> bytes:
        return hashlib.sha256(self._model + salt).digest() if salt else self._model

    def _chain(self, tokens: Sequence[int], limit: int, salt: bytes) -> list[bytes]:
        """The key of every prefix of whole pages, up to `limit` tokens."""
        keys, key = [], self._first_key(salt)
        for start in range(0, limit // PAGE_TOKENS * PAGE_TOKENS, PAGE_TOKENS):
            key = _next(key, tokens[start : start + PAGE_TOKENS])
            keys.append(key)
        return keys

    def load(self, prompt: Sequence[int], salt: bytes = b"") -> int:
        """Bring the longest prefix of `prompt` that lower tiers hold into the tree, if that beats computing it.

        Returns how many more tokens can be reused now.
        """
        known = self._manager.known(prompt, salt)
        keys = self._chain(prompt, reusable(len(prompt)), salt)
        length = self._longest(keys, known.kv_tokens)
        if length <= known.tokens:
            return 0
        pieces = self._pieces(keys[: length // PAGE_TOKENS], known.kv_tokens)
        if not self._worth(length - known.tokens, pieces):
            self.declined += 1
            return 0
        for tier, kind, key, _ in reversed(pieces):  # making room must not push out what the room is for
            tier.touch(kind, key)
        with self._manager.loading(prompt, length, salt) as places:
            if places is None:
                return 0
            for index, page in places.pages:
                # what follows a broken entry is looked at too: what broke one may have broken the others
                whole = self._fill("page", keys[index], page)
                if whole and places.filled == index * PAGE_TOKENS:
                    places.filled += PAGE_TOKENS
            if places.row is not None and places.filled == length:
                tier_used = self._fill("state", keys[length // PAGE_TOKENS - 1], places.row)
                places.origin = tier_used.name if tier_used else None
        gained = max(0, self._manager.known(prompt, salt).tokens - known.tokens)
        self.loads += gained > 0
        self.loaded_tokens += gained
        log.debug("%d tokens came back; %s", gained, self._rates())
        return gained

    def _longest(self, keys: list[bytes], in_memory: int) -> int:
        """The longest prefix with every page in memory or below, and its state below if the model has one."""
        best = 0
        for index, key in enumerate(keys):
            length = (index + 1) * PAGE_TOKENS
            if length > in_memory and self._page_bytes and not self._holder("page", key):
                break
            if not self._manager.stateful or self._holder("state", key):
                best = length
        return best

    def _holder(self, kind: Kind, key: bytes) -> Tier | None:
        return next((tier for tier in self._tiers if tier.has(kind, key)), None)

    def _pieces(self, keys: list[bytes], in_memory: int) -> list[tuple[Tier, Kind, bytes, int]]:
        """(tier, kind, key, bytes) of what has to be read for the prefix of all `keys`."""
        wanted: list[tuple[Kind, bytes, int]] = [
            ("page", key, self._page_bytes) for key in keys[in_memory // PAGE_TOKENS :] if self._page_bytes
        ]
        if self._manager.stateful:
            wanted.append(("state", keys[-1], self._state_bytes))
        return [(tier, kind, key, size) for kind, key, size in wanted if (tier := self._holder(kind, key))]

    def _worth(self, tokens: int, pieces: list[tuple[Tier, Kind, bytes, int]]) -> bool:
        """Cheaper to read than to compute, by the rates seen so far; unknown rates are taken to be good."""
        if not self.computing.per_second:
            return True
        seconds = sum(size / tier.reading.per_second for tier, _, _, size in pieces if tier.reading.per_second)
        worth = seconds < tokens / self.computing.per_second
        if not worth:
            log.debug("%d tokens are computed, not read: %s", tokens, self._rates())
        return worth

    def _rates(self) -> str:
        known = [tier for tier in self._tiers if tier.reading.per_second]
        read = [f"{tier.name} {format_bytes(tier.reading.per_second)}/s" for tier in known]
        return ", ".join([*read, f"prefill {self.computing.per_second:.0f} tokens/s"])

    def _size(self, kind: Kind) -> int:
        return self._page_bytes if kind == "page" else self._state_bytes

    def _fill(self, kind: Kind, key: bytes, index: int) -> Tier | None:
        """Read one entry into its place; the tier it came from. Without bytes to read, any will do."""
        size = self._size(kind)
        if not size:
            return self._tiers[0]
        for tier in self._tiers:
            started = time.perf_counter()
            payload = tier.read(kind, key, size)
            if payload is not None:
                self._kept.write(kind, index, payload)
                tier.reading.note(len(payload), time.perf_counter() - started)
                return tier
        return None

    def _demote(self, node: Node) -> None:
        """A prefix is about to leave memory: the first tier that can take all of it gets it."""
        if node.handed and not self._manager.stateful:
            return  # a longer prefix took its page along
        places = self._places(node)
        for tier in self._tiers:
            for kind, key, _ in reversed(places):  # the beginning stays the youngest: without it the rest is no use
                tier.touch(kind, key)
            new = [place for place in places if not tier.has(place[0], place[1])]
            if tier.takes(sum(self._size(kind) for kind, _, _ in new)):
                for kind, key, index in new:
                    tier.write(kind, key, self._kept.read(kind, index))
                self.demoted += 1
                return
        self.skipped += 1

    def _places(self, node: Node) -> list[tuple[Kind, bytes, int]]:
        """(kind, key, index) of the pages down to `node`, then of its state; all count as handed down."""
        path, key = path_to(node), self._first_key(node.salt)
        for step in path:
            key = step.digest = step.digest or _next(key, step.key)
            step.handed = True
        places: list[tuple[Kind, bytes, int]] = [("page", step.digest, step.page) for step in path]
        if node.snapshot is not None:
            places.append(("state", node.digest, node.snapshot))
        return [place for place in places if self._size(place[0])]

    def save_one(self) -> bool:
        """Hand one prefix that no file holds yet to the disk tier. False: there is none, or the queue is full."""
        disk = self._disk
        if disk is None or disk.store.full:
            return False
        node = next((node for node in self._manager.kept() if not node.saved), None)
        if node is None:
            return self._host is not None and self._host.save_one()
        places = self._places(node)
        if sum(self._size(kind) for kind, _, _ in places) <= disk.store.largest:
            for kind, key, index in places:
                if disk.has(kind, key):
                    disk.touch(kind, key)
                elif not disk.takes(self._size(kind)):
                    return False  # the rest follows when the queue is shorter
                else:
                    disk.write(kind, key, self._kept.read(kind, index))
        node.saved = True
        return True

    def save_all(self) -> None:
        """Before the engine ends."""
        if self._disk is None:
            return
        while self.save_one() or self._disk.drain():
            pass
        log.info("cache folder: %s in files; %s", format_bytes(self._disk.store.held_bytes), self._rates())

    def named(self) -> dict[str, int | float]:
        """Under the names that `/metrics` shows."""
        numbers: dict[str, int | float] = {
            "tier_loads_total": self.loads,
            "tier_loads_declined_total": self.declined,
            "tier_loaded_tokens_total": self.loaded_tokens,
            "tier_demoted_prefixes_total": self.demoted,
            "tier_skipped_prefixes_total": self.skipped,
            "tier_prefill_tokens_per_second": self.computing.per_second,
        }
        for tier in self._tiers:
            numbers |= tier.named()
        return numbers

    def check(self) -> None:
        """Raises AssertionError if host memory's books are wrong."""
        if self._host is not None:
            self._host.check()


def _next(key: bytes, page: Sequence[int]) -> bytes:
    return hashlib.sha256(key + struct.pack(f"<{PAGE_TOKENS}I", *page)).digest()
