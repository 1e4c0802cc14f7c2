"""Files behind a queue: the engine's step hands over bytes and goes on, a thread writes them. Imports no torch.

The thread lives as long as there is something to write. Files and hashes are written outside the interpreter's lock.
"""

from __future__ import annotations

import logging
import threading

from perilune.cache.store import Store
from perilune.cache.tier import Kind, Payload, Rate, TierName
from perilune.units import MIB

log = logging.getLogger(__name__)

QUEUE_BYTES = 256 * MIB
"""Enough for a handful of states; an engine with larger arenas allows more."""


class DiskTier:
    """One model's `store`. At most `queue_bytes` wait to be written; what would exceed them is refused."""

    def __init__(self, store: Store, queue_bytes: int = QUEUE_BYTES) -> None:
        self._store, self._limit = store, queue_bytes
        self._queue: dict[tuple[Kind, bytes], Payload] = {}  # the first is being written; it stays until it is a file
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._queued_bytes = 0
        self.refused_bytes = 0
        self.reading = Rate()

    @property
    def name(self) -> TierName:
        return "disk"

    @property
    def store(self) -> Store:
        return self._store

    def has(self, kind: Kind, key: bytes) -> bool:
        return (kind, key) in self._queue or self._store.has(kind, key)

    def takes(self, size: int) -> bool:
        return not self._store.full and size <= self._store.largest and self._queued_bytes + size <= self._limit

    def read(self, kind: Kind, key: bytes, length: int) -> Payload | None:
        waiting = self._queue.get((kind, key))
        if waiting is not None and len(waiting) == length:
            return waiting
        return self._store.read(kind, key, length)

    def write(self, kind: Kind, key: bytes, payload: Payload) -> bool:
        """Queue `payload`; False if the queue is full, or the disk has refused before."""
        if self.has(kind, key):
            self.touch(kind, key)
            return True
        with self._changed:
            if not self.takes(len(payload)):
                self.refused_bytes += len(payload)
                return False
            self._queue[kind, key] = payload
            self._queued_bytes += len(payload)
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_queue, name="perilune cache writer")
                self._thread.start()
        return True

    def touch(self, kind: Kind, key: bytes) -> None:
        self._store.touch(kind, key)

    def _write_queue(self) -> None:
        while True:
            with self._changed:
                if not self._queue:
                    self._thread = None
                    return
                (kind, key), payload = next(iter(self._queue.items()))
            try:
                self._store.write(kind, key, payload)
            except Exception:
                log.exception("a cache entry could not be written")
            with self._changed:
                del self._queue[kind, key]
                self._queued_bytes -= len(payload)
                self._changed.notify_all()

    def drain(self) -> bool:
        """Wait until all that was handed over is written; False if there was nothing to wait for."""
        with self._changed:
            waited = bool(self._queue)
            self._changed.wait_for(lambda: not self._queue)
        return waited

    def named(self) -> dict[str, int | float]:
        return {
            "disk_bytes": self._store.held_bytes,
            "disk_queued_bytes": self._queued_bytes,
            "disk_refused_bytes_total": self.refused_bytes,
            "disk_written_bytes_total": self._store.written_bytes,
            "disk_read_bytes_total": self._store.read_bytes,
            "disk_corrupt_files_total": self._store.corrupt,
            "disk_off": int(self._store.full),
            "disk_read_bytes_per_second": self.reading.per_second,
        }
