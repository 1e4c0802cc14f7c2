"""How much of a text's end must wait, because it may be the start of a string that is looked for."""

from __future__ import annotations

from collections.abc import Sequence


def held_back(text: str, wanted: Sequence[str]) -> int:
    """Length of the longest end of `text` that is a proper start of one of `wanted`."""
    longest = max(map(len, wanted), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        if any(len(string) > length and string.startswith(end) for string in wanted):
            return length
    return 0
