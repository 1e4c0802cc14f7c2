"""Which samples are held out: a property of the sample's text, so that no seed can move one over."""

from __future__ import annotations

import hashlib


def held_out(key: str, one_in: int) -> bool:
    """True for about one in `one_in` keys, always the same ones."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % one_in == 0
