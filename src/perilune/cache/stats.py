"""What a cache holds at one moment. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CacheStats:
    """What is held right now. `used` is held by requests, `cached` by the prefix tree alone, and can be had back.

    `tokens` is what requests asked room for; `bytes_used` and `bytes_cached` are whole pages and rows. `snapshots`
    counts rows, shared or not. `bytes_padding` is the part of used and cached bytes that holds nothing: alignment
    inside rows, and places of tokens in pages that are not full.
    """

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
    pages_cached: int = 0
    snapshots: int = 0
    bytes_cached: int = 0
    bytes_padding: int = 0


@dataclass(frozen=True)
class Holding:
    """What one request holds: `pages` it was given, after `shared` ones that were found in the prefix tree."""

    pages: int
    shared: int
