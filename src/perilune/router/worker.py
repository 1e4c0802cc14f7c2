"""One engine as the router knows it: what it says of itself, what the router gave it, and whether it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from perilune.pd.ticket import prompt_digest
from perilune.router.ask import Ask, cached_tokens, reported_tokens
from perilune.router.choose import Seen
from perilune.router.config import Place
from perilune.router.prefixes import PrefixMap
from perilune.router.status import Status

DEFAULT_RATE = 1000.0
"""Prompt tokens per second of an engine that has not shown its own yet."""
DEFAULT_LINK = 1e9
_RATE_TOKENS = 256
_WEIGHT = 0.2


@dataclass
class Worker:
    """`open` counts the router's requests there, `served` all there were, `pending` prompt tokens before a first token.

    `models` are its entries of /v1/models, None if it does not list them to the router. `lost` is set while it is not
    up. `push`: what vLLM in push mode said of itself.
    """

    place: Place
    up: bool = False
    status: Status | None = None
    models: tuple[dict[str, Any], ...] | None = None
    open: int = 0
    pending: int = 0
    failures: int = 0
    served: int = 0
    rate: float = DEFAULT_RATE
    push: dict[str, Any] | None = None
    prefixes: PrefixMap = field(default_factory=PrefixMap)
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    look: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def accepting(self) -> bool:
        return self.up and (self.status is None or self.status.accepting)

    @property
    def decodes(self) -> bool:
        return self.place.role != "prefill"

    def serves(self, model: str | None) -> bool:
        return model is None or self.models is None or any(each.get("id") == model for each in self.models)

    @property
    def model_names(self) -> list[str]:
        return [str(each.get("id")) for each in self.models or ()]

    def rises(self) -> None:
        self.up, self.failures = True, 0
        self.lost.clear()

    def falls(self) -> None:
        """What it had in its caches is gone with it, as far as anybody knows."""
        self.up, self.status, self.push = False, None, None
        self.prefixes.clear()
        self.lost.set()

    def suspect(self) -> None:
        """A request failed there: look now, not at the next turn."""
        self.look.set()

    def told(self, status: Status | None) -> None:
        before = self.status
        if before is not None and status is not None and before.incarnation != status.incarnation:
            self.prefixes.clear()
        self.status = status

    def cached(self, ask: Ask, bytes_per_token: float) -> int:
        """About how many of the prompt's tokens it has: what was routed here, or what it reports."""
        routed = cached_tokens(ask, self.prefixes.match(ask.chain), bytes_per_token)
        if self.status is None or not self.status.prefixes:
            return routed
        listed = [(each.tokens, each.digest) for each in self.status.prefixes]
        return max(routed, reported_tokens(ask, listed, prompt_digest))

    def seen(self, ask: Ask, bytes_per_token: float) -> Seen:
        """For the arithmetic of choosing. Own requests count at once, what the engine says from its next report on."""
        cached = self.cached(ask, bytes_per_token)
        if (status := self.status) is None:
            return Seen(self.name, cached, self.pending, self.open, rate=self.rate, link=DEFAULT_LINK)
        slots = status.slots.total or None
        return Seen(
            name=self.name,
            cached=cached,
            queue_tokens=max(self.pending, status.queue.uncached_tokens),
            open=self.open,
            waiting=status.queue.waiting,
            slots=slots,
            free=None if slots is None else min(status.slots.free, slots - self.open),
            rate=status.rates.prefill_tokens_per_second or self.rate,
            link=status.rates.link_bytes_per_second or DEFAULT_LINK,
            state_bytes=status.cost.state_bytes,
            token_bytes=status.cost.token_bytes,
            digest=status.model_digest,
        )

    @contextmanager
    def reading(self, tokens: int) -> Iterator[None]:
        """While it has this many prompt tokens of a request still to read."""
        self.pending += tokens
        try:
            yield
        finally:
            self.pending -= tokens

    @contextmanager
    def holding(self) -> Iterator[None]:
        """While a request of the router's is open there."""
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    def learn_rate(self, tokens: int, seconds: float) -> None:
        """From a prompt it read, for engines that do not report a rate; short ones say little."""
        if tokens >= _RATE_TOKENS and seconds > 0:
            self.rate += _WEIGHT * (tokens / seconds - self.rate)
