"""One client request from choice to answer: attempts, each elsewhere or with a new ticket, until a first token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from perilune.router.ask import Ask
from perilune.router.choose import Choice, choose
from perilune.router.config import RouterConfig
from perilune.router.contracts import HAND_OVER
from perilune.router.contracts.pair import Pair
from perilune.router.errors import LegError, NoWorkerError, RefusedError, RouterFullError, WorkerFailedError
from perilune.router.events import prompt_tokens
from perilune.router.legs import Legs, Opened
from perilune.router.metrics import RouterMetrics
from perilune.router.pool import Pool
from perilune.router.worker import Worker

HEADER = "X-Perilune-Route"
_PREFILL_TRIES = 2
_SAME_TRIES = 1


@dataclass
class Tried:
    """What has failed for one request. A ticket is never used twice: every attempt asks for its own."""

    decode: set[str] = field(default_factory=set)
    prefill: set[str] = field(default_factory=set)
    tickets: int = 0
    stay: str = ""
    last: LegError | None = None

    def note(self, failure: LegError, choice: Choice) -> None:
        """Where not to go again. After two prefill engines, or two tickets that were not taken, decode reads alone."""
        self.last = failure
        if failure.reason == "pd_local":
            self.stay = "whole"
        elif failure.leg == "prefill":
            self.prefill.add(failure.worker)
            if len(self.prefill) >= _PREFILL_TRIES:
                self.stay = "fallback"
        elif failure.reason in ("pd_ticket", "pd_lost") and choice.prefill is not None:
            self.tickets += 1
            if self.tickets > _SAME_TRIES:
                self.stay = "fallback"
        else:
            self.decode.add(failure.worker)


class Router:
    def __init__(self, config: RouterConfig, legs: Legs, pool: Pool, metrics: RouterMetrics) -> None:
        self.config, self.legs, self.pool, self.metrics = config, legs, pool, metrics
        self._open = 0

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place among the open requests. Raises RouterFullError."""
        if self._open >= self.config.max_open:
            raise RouterFullError(
                f"The router has {self._open} requests open.", "It holds no more.", "Try again, or raise --max-open."
            )
        self._open += 1
        self.metrics.open.inc()
        try:
            yield
        finally:
            self._open -= 1
            self.metrics.open.dec()

    async def open(self, ask: Ask) -> Opened:
        """The answer, up to its first event. Raises RefusedError with an engine's own words, and PeriluneError.

        Closing what it returns ends the work on both engines; so does cancelling this.
        """
        loop, tried, start = asyncio.get_running_loop(), Tried(), time.monotonic()
        seconds = self.config.first_token_seconds if ask.stream else self.config.request_seconds
        deadline, outcome, choice = loop.time() + seconds, "cancelled", None
        self.metrics.stripped.inc(len(ask.stripped))
        try:
            while True:
                choice = await self._choose(ask, tried)
                try:
                    opened = await self._attempt(ask, choice, deadline)
                    break
                except LegError as failure:
                    self.metrics.retries.labels(failure.leg, failure.reason).inc()
                    tried.note(failure, choice)
                    if len(tried.decode) > self.config.retries or loop.time() >= deadline:
                        raise _final(tried) from failure
            outcome = "opened"
        except Exception as error:
            outcome = "refused" if isinstance(error, RefusedError) else "failed"
            raise
        finally:
            if outcome != "opened":
                self._count(ask, choice, outcome)
        self._opened(ask, choice, opened, time.monotonic() - start)
        return opened

    async def _choose(self, ask: Ask, tried: Tried) -> Choice:
        """Waits for an engine if there is none. Raises NoWorkerError, UnknownModelError, or what failed last."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.config.wait_seconds):
                while not (decode := self._left(ask, tried, decodes=True)):
                    if tried.last is not None:
                        raise _final(tried)
                    await self.pool.wait()
        if not decode:
            raise NoWorkerError(
                "No engine is there to answer.",
                f"None was healthy within {self.config.wait_seconds:g} s.",
                "Try again; /workers shows what the router sees.",
            )
        ratio = self.pool.bytes_per_token(ask.model)
        stay = ask.stay or tried.stay or ("contract" if self.config.contract == "openai-plain" else "")
        prefill = [] if stay else self._left(ask, tried, decodes=False)
        choice = choose(
            ask.tokens(ratio),
            [worker.seen(ask, ratio) for worker in decode],
            [worker.seen(ask, ratio) for worker in prefill],
            stay=stay if any(worker.place.role == "prefill" for worker in self.pool.workers.values()) else "",
            least=self.config.remote_from,
            disturbance=self.config.disturbance,
        )
        self.metrics.choices.labels(choice.why).inc()
        return choice

    def _left(self, ask: Ask, tried: Tried, *, decodes: bool) -> list[Worker]:
        out = tried.decode if decodes else tried.prefill
        left = [worker for worker in self.pool.of(ask.model, decodes=decodes) if worker.name not in out]
        # Of equals the first is chosen: the one with the fewest requests, then by turns.
        return sorted(left, key=lambda worker: (worker.open, worker.served))

    async def _attempt(self, ask: Ask, choice: Choice, deadline: float) -> Opened:
        decode, start = self.pool.workers[choice.decode], time.monotonic()
        reader = self.pool.workers[choice.prefill] if choice.prefill is not None else decode
        ratio = self.pool.bytes_per_token(ask.model)
        unread = max(1, ask.tokens(ratio) - reader.cached(ask, ratio))
        decode.served += 1
        with reader.reading(unread):
            if choice.prefill is None:
                opened = await self.legs.open(decode, ask, ask.body, deadline)
            else:
                reader.served += 1
                pair = Pair(ask, reader, decode, deadline, self.config.early)
                opened = await HAND_OVER[self.config.contract](self.legs, pair)
        if ask.stream:
            reader.learn_rate(unread, time.monotonic() - start)
        for worker in {reader.name: reader, decode.name: decode}.values():
            worker.prefixes.learn(ask.chain)
        return opened

    def _opened(self, ask: Ask, choice: Choice, opened: Opened, seconds: float) -> None:
        way = "local" if choice.prefill is None else "remote"
        if choice.prefill is not None and opened.headers.pop("x-perilune-prefill", "") == "local":
            way = "fallback"
            self.metrics.fallbacks.inc()
        self.metrics.first.labels(way).observe(seconds)
        opened.headers[HEADER] = choice.header() + (" fell_back" if way == "fallback" else "")
        opened.stack.callback(lambda: self._closed(ask, choice, opened))

    def _closed(self, ask: Ask, choice: Choice, opened: Opened) -> None:
        said = opened.first if opened.events is None else opened.events.latest
        if ask.ids is None and (tokens := prompt_tokens(said)) is not None:
            self.pool.learn_tokens(ask.model, ask.length, tokens)
        self._count(ask, choice, opened.outcome)

    def _count(self, ask: Ask, choice: Choice | None, outcome: str) -> None:
        decode, prefill = ("", "") if choice is None else (choice.decode, choice.prefill or "")
        self.metrics.requests.labels(ask.path, decode, prefill, outcome).inc()
        if outcome == "cancelled":
            self.metrics.cancels.inc()


def _final(tried: Tried) -> Exception:
    """What the client is told: the last engine's own words, if it had any."""
    failure = tried.last
    assert failure is not None
    if failure.answer is not None and not failure.reason.startswith("pd_"):
        return RefusedError(failure.answer)
    return WorkerFailedError(
        "No engine answered.",
        f"The last that was tried, {failure.worker}: {failure.reason}.",
        "Send the request again.",
    )
