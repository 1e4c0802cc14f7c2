"""One cache on its way into a decode engine, from ticket to first use. Pure: events and time in, actions out.

    opening -> pulling -> validating -> ready
       any of these, on any trouble -> draining -> failed

Every state has a deadline. There is exactly one End. Until it has come, pages and slot belong to the transfer; with
`fenced` false they still do, since somebody may still write to them, and a Fenced follows when nobody can any more.
Events that are late, repeated or unknown change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from perilune.pd.commands import FailureKind
from perilune.pd.compiler import Place
from perilune.pd.messages import Manifest


class State(StrEnum):
    opening = "opening"
    pulling = "pulling"
    validating = "validating"
    ready = "ready"
    draining = "draining"
    failed = "failed"


@dataclass(frozen=True)
class AskOpen:
    """Send Open."""


@dataclass(frozen=True)
class AskRenew:
    """Send Renew."""


@dataclass(frozen=True)
class AskRelease:
    """Send Release."""


@dataclass(frozen=True)
class TellAbandon:
    reason: str


@dataclass(frozen=True)
class StartFetch:
    """Rank `rank` copies tokens [first, end), and the state if `source` has a slot; last of all if `last`."""

    rank: int
    job: str
    transport: str
    source: Place
    first: int
    end: int
    last: bool


@dataclass(frozen=True)
class CancelFetch:
    rank: int
    job: str


@dataclass(frozen=True)
class End:
    """`ok`: all bytes are there and valid, and `payload` is the prefill engine's. Otherwise `reason`.

    `fenced` false: pages and slot must not be touched before Fenced.
    """

    ok: bool
    reason: str = ""
    payload: bytes = b""
    fenced: bool = True


@dataclass(frozen=True)
class Fenced:
    """Nothing writes to pages and slot any more, after an End that could not promise it."""


Action = AskOpen | AskRenew | AskRelease | TellAbandon | StartFetch | CancelFetch | End | Fenced


@dataclass(frozen=True)
class ReceptionTimes:
    """Seconds, and bytes per second.

    `ttl` is the prefill engine's; `reply` bounds opening and validating, with the question repeated every `repeat`; a
    fetch may take `patience` and its bytes at `minimum_rate`; `drain` bounds draining, transport reset included;
    `longest` the whole. `retries` is how often a fetch of one rank is repeated.
    """

    ttl: float = 30.0
    reply: float = 5.0
    repeat: float = 1.0
    patience: float = 5.0
    minimum_rate: float = 50e6
    drain: float = 15.0
    longest: float = 900.0
    retries: int = 2


@dataclass
class _Fetch:
    action: StartFetch
    number: int
    deadline: float
    attempts: int = 1


@dataclass
class Reception:
    """`cached` tokens of `tokens` are here already, in whole pages. `transports` are to be tried in this order.

    `token_bytes` and `state_bytes` are what one rank needs, for deadlines.
    """

    id: str
    ranks: int
    tokens: int
    cached: int
    stateful: bool
    transports: Sequence[str]
    times: ReceptionTimes
    started: float
    token_bytes: int = 0
    state_bytes: int = 0
    state: State = State.opening
    repeats: int = 0
    _deadline: float = 0.0
    _next_question: float = 0.0
    _next_renewal: float = 0.0
    _heard: float = 0.0
    _asked: int = 0
    _sealed: bool = False
    _payload: bytes = b""
    _fetches: dict[str, _Fetch] = field(default_factory=dict)
    _jobs: int = 0
    _way: list[int] = field(default_factory=list)
    _reason: str = ""
    _ended: bool = False

    def begin(self, now: float) -> list[Action]:
        self._way = [0] * self.ranks
        self._asked = self.cached
        self._heard = now
        self._deadline, self._next_question = now + self.times.reply, now + self.times.repeat
        self._next_renewal = now + self.times.ttl / 3
        if not self.transports:
            return self._drain("the engines have no transport in common", now)
        return [AskOpen()]

    def manifest(self, message: Manifest, now: float) -> list[Action]:
        """More can be read; all there is, when it is sealed."""
        if self.state not in (State.opening, State.pulling) or self._sealed:
            return []
        self._heard = now
        if message.tokens != self.tokens:
            return self._drain(f"the manifest is of {message.tokens} tokens, the ticket of {self.tokens}", now)
        if message.sealed and self.stateful and message.place.slot is None:
            return self._drain("the manifest names no slot", now)
        self.state = State.pulling
        self._sealed, self._payload = message.sealed, message.payload
        actions: list[Action] = []
        if message.ready > self._asked or message.sealed:
            place = message.place if message.sealed else Place(message.place.pages)
            end = max(message.ready, self._asked)
            for rank in range(self.ranks):
                job = StartFetch(rank, "", "", place, self._asked, end, message.sealed)
                actions.append(self._start(_Fetch(job, 0, 0.0), now))
            self._asked = end
        return actions

    def _start(self, fetch: _Fetch, now: float) -> StartFetch:
        self._jobs += 1
        size = (fetch.action.end - fetch.action.first) * self.token_bytes + fetch.action.last * self.state_bytes
        old = fetch.action
        fetch.action = StartFetch(
            old.rank, f"{self.id}/{self._jobs}", self.transports[self._way[old.rank]], old.source, old.first, old.end,
            old.last,
        )  # fmt: skip
        fetch.deadline = now + self.times.patience + size / self.times.minimum_rate
        self._fetches[fetch.action.job] = fetch
        return fetch.action

    def fetched(self, job: str, now: float) -> list[Action]:
        if self._fetches.pop(job, None) is None:
            return []
        if self.state is State.draining:
            return self._drained()
        if self.state is State.failed:
            return self._fence()
        if self._fetches or not self._sealed:
            return []
        self.state = State.validating
        self._deadline, self._next_question = now + self.times.reply, now + self.times.repeat
        return [AskRelease()]

    def fetch_failed(self, job: str, reason: str, kind: FailureKind, now: float) -> list[Action]:
        """That job is over. Tried again, over the next transport if this one leads nowhere, or the end of it all."""
        fetch = self._fetches.pop(job, None)
        if fetch is None:
            return []
        if self.state is State.draining:
            return self._drained()
        if self.state is State.failed:
            return self._fence()
        rank = fetch.action.rank
        if kind == "unreachable" and self.transports[self._way[rank]] == fetch.action.transport:
            self._way[rank] += 1
            if self._way[rank] == len(self.transports):
                return self._drain(f"rank {rank} has no way to the prefill engine: {reason}", now)
        elif kind == "final" or fetch.attempts > self.times.retries:
            return self._drain(reason, now)
        else:
            fetch.attempts += kind == "transient"
        self.repeats += 1
        return [self._start(fetch, now)]

    def verdict(self, valid: bool, now: float) -> list[Action]:
        if self.state is not State.validating:
            return []
        if not valid:
            return self._drain("the lease ended before everything was read", now)
        self.state = State.ready
        return [self._end(End(True, payload=self._payload))]

    def gone(self, reason: str, now: float) -> list[Action]:
        """The prefill engine says that there is no lease any more, or is another process by now."""
        return self._drain(reason, now)

    def renewed(self, now: float) -> list[Action]:
        self._heard = now
        return []

    def abort(self, reason: str, now: float) -> list[Action]:
        """From this side: the client is gone, or the engine stops."""
        return self._drain(reason, now)

    def tick(self, now: float) -> list[Action]:
        """What time alone brings. Call it when `deadline` has come."""
        if self.state in (State.ready, State.failed):
            return []
        if self.state is State.draining:
            if now < self._deadline:
                return []
            self.state = State.failed
            return [self._end(End(False, self._reason, fenced=False))]
        if late := self._late(now):
            return self._drain(late, now)
        actions: list[Action] = []
        if now >= self._next_renewal and self.state is not State.opening:
            self._next_renewal = now + self.times.ttl / 3
            actions.append(AskRenew())
        if now >= self._next_question and self.state is not State.pulling:
            self._next_question = now + self.times.repeat
            actions.append(AskOpen() if self.state is State.opening else AskRelease())
        return actions

    def _late(self, now: float) -> str:
        if now >= self.started + self.times.longest:
            return "it took too long altogether"
        if self.state is not State.pulling:
            return f"the prefill engine did not answer while {self.state}" if now >= self._deadline else ""
        if now >= self._heard + self.times.ttl:
            return "the prefill engine is silent"
        slow = [fetch for fetch in self._fetches.values() if now >= fetch.deadline]
        return f"rank {slow[0].action.rank} did not get its bytes in time" if slow else ""

    @property
    def deadline(self) -> float | None:
        """When to call `tick` next; None once everything is over."""
        if self.state in (State.ready, State.failed):
            return None
        if self.state is State.draining:
            return self._deadline
        times = [self.started + self.times.longest]
        if self.state is State.pulling:
            times += [self._next_renewal, self._heard + self.times.ttl]
            times += [fetch.deadline for fetch in self._fetches.values()]
        else:
            times += [self._deadline, self._next_question]
            times += [self._next_renewal] if self.state is State.validating else []
        return min(times)

    @property
    def sealed(self) -> bool:
        """Whether the prefill engine has said that it is done."""
        return self._sealed

    @property
    def over(self) -> bool:
        """Ended, and fenced."""
        return self._ended and not self._fetches

    def _drain(self, reason: str, now: float) -> list[Action]:
        if self.state in (State.draining, State.ready, State.failed):
            return []
        self.state, self._reason, self._deadline = State.draining, reason, now + self.times.drain
        cancels = [CancelFetch(fetch.action.rank, job) for job, fetch in self._fetches.items()]
        return [TellAbandon(reason), *cancels, *self._drained()]

    def _drained(self) -> list[Action]:
        if self._fetches:
            return []
        self.state = State.failed
        return [self._end(End(False, self._reason))]

    def _fence(self) -> list[Action]:
        return [] if self._fetches else [Fenced()]

    def _end(self, end: End) -> End:
        assert not self._ended
        self._ended = True
        return end
