"""Which engines serve a request: pure arithmetic over what is known of them, in seconds.

On decode engine D alone a request costs     wait(D) + uncached(D)/rate(D) · (1 + disturbance)
with its prompt read by prefill engine P     queue(P)/rate(P) + uncached(P)/rate(P) + moved(D)/link(D) + room(D)

where wait(D) = queue(D)/rate(D) + room(D), and moved(D) = state bytes + bytes of the latents D does not have. A prefill
on D delays every sequence that decodes there; a disturbance of 1/2 makes moving pay, between two idle engines, once the
prefill takes twice as long as the transfer (the rule of docs/routing.md). The state does not shrink with the prompt
(41.4 MiB for Kimi-Linear), so short prompts stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DISTURBANCE = 0.5
BUSY_SECONDS = 0.5
"""What a full decode engine is worse than an empty one: each sequence slows the others."""
FULL_SECONDS = 5.0
"""What waiting for a slot costs, for each request that already waits."""


@dataclass(frozen=True)
class Seen:
    """What is known of one engine, for one request. Tokens, tokens per second, bytes, bytes per second.

    `slots` and `free` are None for an engine that does not tell; `open` counts the router's own requests there.
    """

    name: str
    cached: int = 0
    queue_tokens: int = 0
    open: int = 0
    waiting: int = 0
    slots: int | None = None
    free: int | None = None
    rate: float = 1000.0
    link: float = 1e9
    state_bytes: int = 0
    token_bytes: int = 0
    digest: str = ""

    def room(self) -> float:
        """Seconds until, or for want of, a free slot."""
        if self.slots is None or self.free is None:
            return BUSY_SECONDS * self.open / 8
        if self.free <= 0:
            return FULL_SECONDS * (1 + self.waiting)
        return BUSY_SECONDS * (1 - self.free / max(1, self.slots))


@dataclass(frozen=True)
class Choice:
    """`prefill` is None if `decode` reads the prompt itself. `why` is a word; the seconds are estimates, `remote` None
    if there was no prefill engine to compare with.
    """

    decode: str
    prefill: str | None
    why: str
    uncached: int
    local: float
    remote: float | None = None

    def header(self) -> str:
        """What clients may see: names, the reason and the terms it was made of; no addresses."""
        words = [f"decode={self.decode}", f"prefill={self.prefill or self.decode}", f"why={self.why}"]
        words += [f"uncached={self.uncached}", f"local={self.local:.3f}s"]
        return " ".join(words + ([] if self.remote is None else [f"remote={self.remote:.3f}s"]))


def choose(
    tokens: int, decode: Sequence[Seen], prefill: Sequence[Seen], *, stay: str = "", least: int = 1024,
    disturbance: float = DISTURBANCE,
) -> Choice:  # fmt: skip
    """The cheapest choice for a prompt of `tokens`. `stay` is why it must not be moved; `least` the fewest uncached
    tokens worth moving; `disturbance` what reading on D costs others, as a share of the reading. `decode` is not
    empty; of equals the first is taken.
    """
    options = [_on(tokens, engine, prefill, stay, least, disturbance) for engine in decode]
    return min(options, key=lambda choice: choice.local if choice.prefill is None else choice.remote or 0.0)


def _on(tokens: int, engine: Seen, prefill: Sequence[Seen], stay: str, least: int, disturbance: float) -> Choice:
    uncached = max(1, tokens - engine.cached)
    reading = uncached / engine.rate
    local = engine.queue_tokens / engine.rate + engine.room() + reading * (1 + disturbance)
    if stay:
        return Choice(engine.name, None, stay, uncached, local)
    fitting = [each for each in prefill if not (each.digest and engine.digest) or each.digest == engine.digest]
    if not fitting:
        return Choice(engine.name, None, "alone", uncached, local)
    read = {each.name: (each.queue_tokens + max(1, tokens - each.cached)) / each.rate for each in fitting}
    best = min(fitting, key=lambda each: read[each.name])
    moved = engine.state_bytes + uncached * engine.token_bytes
    remote = read[best.name] + moved / engine.link + engine.room()
    if uncached < least:
        return Choice(engine.name, None, "cached" if engine.cached else "short", uncached, local, remote)
    if remote > local:
        return Choice(engine.name, None, "dear", uncached, local, remote)
    return Choice(engine.name, best.name, "remote", uncached, local, remote)
