"""Prefixes in host memory, for engines whose arenas lie on a device; what it has no room for goes one tier down.

Plain pageable memory, taken as entries come, up to a limit. Imports no torch.
"""

from __future__ import annotations

from perilune.cache.tier import Kind, Payload, Rate, Tier, TierName


class HostTier:
    """Up to `limit` bytes, the longest unused first to leave, for `below` if there is one."""

    def __init__(self, limit: int, below: Tier | None = None) -> None:
        self._limit, self._below = limit, below
        self._entries: dict[tuple[Kind, bytes], Payload] = {}  # the longest unused first
        self._unsaved: dict[tuple[Kind, bytes], None] = {}  # not yet offered to `below`
        self.held_bytes = self.written_bytes = self.read_bytes = self.dropped_bytes = 0
        self.reading = Rate()

    @property
    def name(self) -> TierName:
        return "host"

    def has(self, kind: Kind, key: bytes) -> bool:
        return (kind, key) in self._entries

    def takes(self, size: int) -> bool:
        return size <= self._limit

    def read(self, kind: Kind, key: bytes, length: int) -> Payload | None:
        payload = self._entries.get((kind, key))
        if payload is None or len(payload) != length:
            return None
        self.touch(kind, key)
        self.read_bytes += length
        return payload

    def write(self, kind: Kind, key: bytes, payload: Payload) -> bool:
        if self.has(kind, key):
            self.touch(kind, key)
            return True
        if not self.takes(len(payload)):
            return False
        while self.held_bytes + len(payload) > self._limit:
            self._drop_oldest()
        self._entries[kind, key] = payload
        self._unsaved[kind, key] = None
        self.held_bytes += len(payload)
        self.written_bytes += len(payload)
        return True

    def touch(self, kind: Kind, key: bytes) -> None:
        if (payload := self._entries.pop((kind, key), None)) is not None:
            self._entries[kind, key] = payload

    def _drop_oldest(self) -> None:
        (kind, key), payload = next(iter(self._entries.items()))
        saved = self._save(kind, key)
        del self._entries[kind, key]
        self._unsaved.pop((kind, key), None)
        self.held_bytes -= len(payload)
        self.dropped_bytes += 0 if saved else len(payload)

    def _save(self, kind: Kind, key: bytes) -> bool:
        below = self._below
        return below is not None and (below.has(kind, key) or below.write(kind, key, self._entries[kind, key]))

    def save_one(self) -> bool:
        """Offer one entry to the tier below, which keeps what this process forgets; False if there is none to offer."""
        entry = next(iter(self._unsaved), None)
        if entry is None or not self._save(*entry):
            return False
        del self._unsaved[entry]
        return True

    def named(self) -> dict[str, int | float]:
        return {
            "host_bytes": self.held_bytes,
            "host_written_bytes_total": self.written_bytes,
            "host_read_bytes_total": self.read_bytes,
            "host_dropped_bytes_total": self.dropped_bytes,
            "host_read_bytes_per_second": self.reading.per_second,
        }

    def check(self) -> None:
        """Raises AssertionError unless the bytes add up and nothing waits to be saved that is not here."""
        held = sum(len(payload) for payload in self._entries.values())
        if held != self.held_bytes or held > self._limit:
            raise AssertionError(f"host memory holds {held} bytes, counted {self.held_bytes}, allowed {self._limit}")
        if stray := self._unsaved.keys() - self._entries.keys():
            raise AssertionError(f"{len(stray)} entries of host memory wait to be saved and are gone")
