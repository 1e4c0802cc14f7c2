"""Prefixes that outlive the process: what the tree holds goes to files when the engine is idle, and comes back.

A prefix's key is a hash chain over its pages of tokens that begins with the model's identity, so an entry never
crosses models, dtypes, layouts or builds.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from perilune.cache.arena import CacheArenas
from perilune.cache.geometry import PAGE_TOKENS
from perilune.cache.manager import CacheManager
from perilune.cache.radix import path_to
from perilune.cache.snapshots import reusable
from perilune.cache.store import Kind, Store
from perilune.units import format_bytes

log = logging.getLogger(__name__)


class Rate:
    """Units per second, from what was last seen; 0 until then."""

    def __init__(self) -> None:
        self.per_second = 0.0

    def note(self, amount: float, seconds: float) -> None:
        if amount > 0 and seconds > 0:
            seen = amount / seconds
            self.per_second = seen if not self.per_second else (self.per_second + seen) / 2


class DiskTier:
    """Between one engine's prefix tree and its store. The store's model identity is the start of every key."""

    def __init__(self, store: Store, model: bytes, manager: CacheManager, arenas: CacheArenas) -> None:
        self._store, self._model, self._manager, self._arenas = store, model, manager, arenas
        self._pages, self._rows = arenas.page_arena.tensor, arenas.slot_arena.buffer
        self.reading, self.computing = Rate(), Rate()  # bytes/s from files, prompt tokens/s computed
        self.loaded_tokens = self.loads = self.loads_declined = 0

    def _chain(self, tokens: Sequence[int], limit: int) -> list[bytes]:
        """The key of every prefix of whole pages, up to `limit` tokens."""
        keys, key = [], self._model
        for start in range(0, limit // PAGE_TOKENS * PAGE_TOKENS, PAGE_TOKENS):
            key = _next(key, tokens[start : start + PAGE_TOKENS])
            keys.append(key)
        return keys

    def load(self, prompt: Sequence[int]) -> int:
        """Bring the longest prefix of `prompt` that files hold into the tree, if that is cheaper than computing it.

        Returns how many more tokens can be reused now.
        """
        known = self._manager.known(prompt)
        keys = self._chain(prompt, reusable(len(prompt)))
        length = self._longest(keys, known.kv_tokens)
        if length <= known.tokens:
            return 0
        started, before = time.perf_counter(), self._store.read_bytes
        if not self._worth(length - known.tokens, length - min(known.kv_tokens, length)):
            self.loads_declined += 1
            return 0
        with self._manager.loading(prompt, length) as places:
            if places is None:
                return 0
            for index, page in places.pages:
                # the files after a broken one are looked at too: what broke one may have broken them
                whole = self._fill("page", keys[index], self._pages[page])
                if whole and places.filled == index * PAGE_TOKENS:
                    places.filled += PAGE_TOKENS
            if places.row is not None and places.filled == length:
                if self._fill("state", keys[length // PAGE_TOKENS - 1], self._rows[places.row]):
                    places.origin = "disk"
        self.reading.note(self._store.read_bytes - before, time.perf_counter() - started)
        gained = self._manager.known(prompt).tokens - known.tokens
        self.loads += gained > 0
        self.loaded_tokens += max(0, gained)
        return max(0, gained)

    def _longest(self, keys: list[bytes], in_memory: int) -> int:
        """The longest prefix with every page in memory or on disk, and its state on disk if the model has one."""
        best = 0
        for index, key in enumerate(keys):
            length = (index + 1) * PAGE_TOKENS
            if length > in_memory and self._pages.numel() and not self._store.has("page", key):
                break
            if not self._manager.stateful or self._store.has("state", key):
                best = length
        return best

    def _worth(self, tokens: int, tokens_read: int) -> bool:
        """Cheaper to read than to compute, by the rates seen so far; unknown rates are taken to be good."""
        plan = self._manager.plan
        size = tokens_read // PAGE_TOKENS * plan.page_bytes + plan.slot_bytes
        if not self.reading.per_second or not self.computing.per_second:
            return True
        return size / self.reading.per_second < tokens / self.computing.per_second

    def _fill(self, kind: Kind, key: bytes, place: Tensor) -> bool:
        target = place.reshape(-1).view(torch.uint8)
        if not target.numel():
            return True
        payload = self._store.read(kind, key, target.numel())
        if payload is None:
            return False
        target.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
        return True

    def save_one(self) -> bool:
        """Write one prefix that no file holds yet; False if there is none, or the store takes no more."""
        if self._store.full:
            return False
        node = next((node for node in self._manager.kept() if not node.saved), None)
        if node is None:
            return False
        node.saved = True  # tried once: a folder that is too small must not be written round and round
        path, key = path_to(node), self._model
        for step in path:
            key = step.digest = step.digest or _next(key, step.key)
            if not self._write("page", key, self._pages[step.page]):
                return False
        return node.snapshot is None or self._write("state", key, self._rows[node.snapshot])

    def _write(self, kind: Kind, key: bytes, place: Tensor) -> bool:
        if not place.numel() or self._store.has(kind, key):
            return True
        return self._store.write(kind, key, place.reshape(-1).view(torch.uint8).numpy().tobytes())

    def save_all(self) -> None:
        """Before the engine ends."""
        while self.save_one():
            pass
        log.info("cache folder: %s in files", format_bytes(self._store.held_bytes))

    def named(self) -> dict[str, int | float]:
        """Under the names that `/metrics` shows."""
        return {
            "disk_bytes": self._store.held_bytes,
            "disk_written_bytes_total": self._store.written_bytes,
            "disk_read_bytes_total": self._store.read_bytes,
            "disk_corrupt_files_total": self._store.corrupt,
            "disk_off": int(self._store.full),
            "disk_loads_total": self.loads,
            "disk_loads_declined_total": self.loads_declined,
            "disk_loaded_tokens_total": self.loaded_tokens,
            "disk_read_bytes_per_second": self.reading.per_second,
            "disk_prefill_tokens_per_second": self.computing.per_second,
        }


def _next(key: bytes, page: Sequence[int]) -> bytes:
    return hashlib.sha256(key + struct.pack(f"<{PAGE_TOKENS}I", *page)).digest()
