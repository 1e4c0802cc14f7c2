"""What a prefill engine owes others: which caches it keeps for whom, and until when. Pure: time is an argument.

    prefilling -> sealed -> released | expired | abandoned | withdrawn

A lease is claimed by one reader, who renews it. Pages and slot stay pinned until the lease ends, whichever way; then
one Freed says so. A reader that comes back after the end is told Gone or an invalid verdict, never bytes that moved.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal

from perilune.pd.compiler import Place
from perilune.pd.messages import Gone, Manifest, Verdict

Outcome = Literal["released", "expired", "abandoned", "withdrawn"]
REMEMBERED = 4096


@dataclass(frozen=True)
class Freed:
    """The engine may let go of what it pinned for this lease."""

    id: str
    outcome: Outcome


@dataclass(frozen=True)
class Told:
    """A message for the reader that holds the lease."""

    reader: str
    message: Manifest | Gone


Effect = Freed | Told


@dataclass(frozen=True)
class LeaseTimes:
    """Seconds. `ttl` from the last renewal, or from sealing while nobody has claimed; `prefill` from the offer to
    sealing; `longest` from sealing to the end, however often it is renewed."""

    ttl: float = 30.0
    prefill: float = 600.0
    longest: float = 600.0


@dataclass
class _Lease:
    id: str
    tokens: int
    end: float  # hard: of prefilling, then of the sealed lease
    renewed: float
    reader: str | None = None
    sealed: bool = False
    ready: int = 0
    place: Place = field(default_factory=lambda: Place(()))
    payload: bytes = b""


class LeaseBook:
    """All leases of one engine. Unknown ids from the engine raise AssertionError; from readers they are answered."""

    def __init__(self, times: LeaseTimes) -> None:
        self._times = times
        self._open: dict[str, _Lease] = {}
        self._closed: OrderedDict[str, tuple[Outcome, str | None]] = OrderedDict()
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._open)

    @property
    def ids(self) -> list[str]:
        return list(self._open)

    @property
    def claimed(self) -> int:
        return sum(lease.reader is not None for lease in self._open.values())

    def offer(self, id: str, tokens: int, now: float) -> None:
        """Prefill of `tokens` tokens begins, or is done and will be sealed at once."""
        if id in self._open or id in self._closed:
            raise AssertionError(f"lease {id} was offered before")
        lease = self._open[id] = _Lease(id, tokens, now + self._times.prefill, now)
        self._push(lease)

    def progress(self, id: str, ready: int, place: Place, now: float) -> list[Effect]:
        """The first `ready` tokens are in `place`, which lists at least their pages, and will not change."""
        lease = self._open.get(id)
        if lease is None:
            return []  # it expired while the step ran; Freed is on its way
        if lease.sealed or ready < lease.ready:
            raise AssertionError(f"lease {id} goes backwards")
        lease.ready, lease.place = ready, place
        return self._tell(lease)

    def seal(self, id: str, place: Place, payload: bytes, now: float) -> list[Effect]:
        """All tokens are computed; `place` has the slot their state is in now."""
        lease = self._open.get(id)
        if lease is None:
            return []
        if lease.sealed:
            raise AssertionError(f"lease {id} is sealed already")
        lease.sealed, lease.ready, lease.place, lease.payload = True, lease.tokens, place, payload
        lease.end = now + self._times.longest
        if lease.reader is None:
            lease.renewed = now
        self._push(lease)
        return self._tell(lease)

    def withdraw(self, id: str) -> list[Effect]:
        """The engine takes its cache back: the client is gone, or it shuts down. Of what has ended, nothing happens."""
        lease = self._open.get(id)
        return [] if lease is None else self._close(lease, "withdrawn")

    def claim(self, id: str, reader: str, now: float) -> tuple[Manifest | Gone, list[Effect]]:
        """Answers Open."""
        lease, effects = self._alive(id, now)
        if lease is None:
            return Gone(id, self._why(id)), effects
        if lease.reader not in (None, reader):
            return Gone(id, "another engine has claimed it"), effects
        lease.reader, lease.renewed = reader, now
        self._push(lease)
        return self._manifest(lease), effects

    def renew(self, ids: tuple[str, ...], reader: str, now: float) -> tuple[tuple[str, ...], list[Gone], list[Effect]]:
        """(those alive, an answer for each other one, effects). Answers Renew."""
        alive, gone, effects = [], [], list[Effect]()
        for id in ids:
            lease, ended = self._alive(id, now)
            effects += ended
            if lease is not None and lease.reader == reader:
                lease.renewed = now
                alive.append(id)
            else:
                gone.append(Gone(id, self._why(id)))
        return tuple(alive), gone, effects

    def release(self, id: str, reader: str, now: float) -> tuple[Verdict, list[Effect]]:
        """Valid if `reader` held the sealed lease without a break until now, and again for the same reader."""
        lease, effects = self._alive(id, now)
        if lease is None:
            return Verdict(id, self._closed.get(id) == ("released", reader)), effects
        if lease.reader != reader or not lease.sealed:
            return Verdict(id, False), effects
        return Verdict(id, True), effects + self._close(lease, "released")

    def abandon(self, id: str, reader: str, now: float) -> list[Effect]:
        """The reader will not come back, or never came: a ticket that nobody claimed may be abandoned by any reader."""
        lease, effects = self._alive(id, now)
        if lease is None or lease.reader not in (None, reader):
            return effects
        lease.reader = None  # it knows
        return effects + self._close(lease, "abandoned")

    def expire(self, now: float) -> list[Effect]:
        """End every lease whose time is over, whatever happens to the others."""
        effects: list[Effect] = []
        while self._heap and self._heap[0][0] <= now:
            lease = self._open.get(heapq.heappop(self._heap)[1])
            if lease is not None and self._deadline(lease) <= now:
                effects += self._close(lease, "expired")
            elif lease is not None:
                self._push(lease)
        return effects

    @property
    def deadline(self) -> float | None:
        """When to call `expire`, at the latest."""
        return self._heap[0][0] if self._heap else None

    def _deadline(self, lease: _Lease) -> float:
        if lease.reader is None and not lease.sealed:
            return lease.end
        return min(lease.end, lease.renewed + self._times.ttl)

    def _push(self, lease: _Lease) -> None:
        heapq.heappush(self._heap, (self._deadline(lease), lease.id))

    def _alive(self, id: str, now: float) -> tuple[_Lease | None, list[Effect]]:
        """A lease whose time is over is over, even if nobody has called `expire` yet."""
        lease = self._open.get(id)
        if lease is not None and self._deadline(lease) <= now:
            return None, self._close(lease, "expired")
        return lease, []

    def _close(self, lease: _Lease, outcome: Outcome) -> list[Effect]:
        del self._open[lease.id]
        self._closed[lease.id] = (outcome, lease.reader)
        if len(self._closed) > REMEMBERED:
            self._closed.popitem(last=False)
        effects: list[Effect] = [Freed(lease.id, outcome)]
        if lease.reader is not None and outcome in ("expired", "withdrawn"):
            effects.append(Told(lease.reader, Gone(lease.id, f"the lease was {outcome}")))
        return effects

    def _why(self, id: str) -> str:
        if id in self._open:
            return "another engine has claimed it"
        return f"the lease was {self._closed[id][0]}" if id in self._closed else "no such lease is known"

    def _tell(self, lease: _Lease) -> list[Effect]:
        return [] if lease.reader is None else [Told(lease.reader, self._manifest(lease))]

    def _manifest(self, lease: _Lease) -> Manifest:
        return Manifest(lease.id, lease.tokens, lease.ready, lease.sealed, lease.place, lease.payload)
