"""Where in a prompt a state is worth keeping. Pure arithmetic; imports no torch.

All positions are multiples of 64 tokens from the start of the sequence, so that a warm run is cut into the same
chunks as a cold one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from perilune.cache.geometry import PAGE_TOKENS

Origin = Literal["prompt_end", "mark", "branch", "head", "interval", "donated", "host", "disk"]
ORIGINS: tuple[Origin, ...] = ("prompt_end", "mark", "branch", "head", "interval", "donated", "host", "disk")

BRANCH_TOKENS = 128
SHORTEST_TAIL, LONGEST_TAIL = 64, 512


def floor_page(tokens: int) -> int:
    """The last multiple of 64 at or before `tokens`."""
    return tokens // PAGE_TOKENS * PAGE_TOKENS


def reusable(prompt_tokens: int) -> int:
    """How much of a prompt may come from the cache: whole pages, and at least one token left to compute logits from."""
    return floor_page(max(0, prompt_tokens - 1))


def head(prompt_tokens: int) -> int:
    """A place a little before the prompt's end: the same head with another tail hits there at its second request.

    The tail left out is the power of two at or below an eighth of the prompt, from 64 to 512 tokens: recomputing it
    costs the second request an eighth at most, and from the third on the branch point serves.
    """
    eighth = max(1, prompt_tokens // 8)
    tail = min(LONGEST_TAIL, max(SHORTEST_TAIL, 1 << (eighth.bit_length() - 1)))
    return floor_page(max(0, prompt_tokens - tail))


def branch(kv_tokens: int, tokens: int) -> int:
    """Where a known prompt's text left the state behind: the divergence, if at least 128 tokens are recomputed, or 0.

    Pages say that somebody had this prefix before, so this is its second sighting.
    """
    return kv_tokens if kv_tokens - tokens >= BRANCH_TOKENS else 0


def positions(
    prompt_tokens: int, branch_at: int, interval: int, start: int, end: int, marks: Sequence[int] = ()
) -> list[tuple[int, Origin]]:
    """Snapshots to take in prefill of [start, end): (tokens, origin) with start < tokens <= end, the best first.

    `marks` are where the client said that others will go on from, each rounded down to whole pages. Interval snapshots
    only as long as the prompt's end is not reached: they are for whoever is preempted before.
    """
    last = floor_page(prompt_tokens)
    wanted: dict[int, Origin] = {last: "prompt_end"}
    for mark in marks:
        wanted.setdefault(min(floor_page(mark), last), "mark")
    wanted.setdefault(branch_at, "branch")
    wanted.setdefault(head(prompt_tokens), "head")
    if end < last:
        for position in range(end // interval * interval, start, -interval):
            wanted.setdefault(position, "interval")
    return [(position, origin) for position, origin in wanted.items() if start < position <= end]
