"""Which engine has read the beginning of a prompt before: chains of hashes over about 64 tokens, learned by routing.

The router has no tokenizer. A prompt given as token ids is cut every 64 ids; text is cut every `BLOCK_BYTES`, which is
about as much. A hash covers everything before it, so equal hashes mean equal beginnings. What an engine has evicted
since is not known: a wrong guess costs time, never an answer.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Sequence

BLOCK_TOKENS = 64
BLOCK_BYTES = 256
_KEPT = 1 << 16


def chain_of_text(text: bytes) -> tuple[bytes, ...]:
    """One hash of 8 bytes for every whole block."""
    return _chain([text[i : i + BLOCK_BYTES] for i in range(0, len(text) - BLOCK_BYTES + 1, BLOCK_BYTES)])


def chain_of_ids(ids: Sequence[int]) -> tuple[bytes, ...]:
    """The same for token ids."""
    whole = range(0, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS)
    return _chain([struct.pack(f"<{BLOCK_TOKENS}q", *ids[i : i + BLOCK_TOKENS]) for i in whole])


def _chain(blocks: Sequence[bytes]) -> tuple[bytes, ...]:
    found, before = [], b""
    for block in blocks:
        before = hashlib.blake2b(block, digest_size=8, key=before).digest()
        found.append(before)
    return tuple(found)


class PrefixMap:
    """The chains one engine was given, the longest unused forgotten first: `kept` hashes, a chain's end before its
    beginning."""

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept = kept
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def match(self, chain: Sequence[bytes]) -> int:
        """How many blocks of `chain` the engine has seen, from its beginning."""
        for number, block in enumerate(chain):
            if block not in self._seen:
                return number
        return len(chain)

    def learn(self, chain: Sequence[bytes]) -> None:
        for block in reversed(chain[: self._kept]):
            self._seen[block] = None
            self._seen.move_to_end(block)
        while len(self._seen) > self._kept:
            self._seen.popitem(last=False)

    def clear(self) -> None:
        self._seen.clear()
