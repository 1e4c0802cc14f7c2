"""Which prefixes were here and made way, so that a miss can say so. Pure integers; imports no torch."""

from __future__ import annotations

CAPACITY = 16_384


class Forgotten:
    """The last `capacity` prefixes that made way, by a hash of their tokens; the oldest are forgotten for good.

    Two prefixes with one hash mislabel a miss in the statistics, and nothing else.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._hashes: dict[int, None] = {}  # in the order they made way

    def __contains__(self, trace: int) -> bool:
        return trace in self._hashes

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, trace: int) -> None:
        self._hashes.pop(trace, None)
        self._hashes[trace] = None
        if len(self._hashes) > self._capacity:
            del self._hashes[next(iter(self._hashes))]

    def discard(self, trace: int) -> None:
        """It is here again."""
        self._hashes.pop(trace, None)
