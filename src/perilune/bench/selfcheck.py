"""What this client can do by itself: it plays a load against the null server and compares with what that wrote down.

A run in which the client alone would already have been late measured the client. The null server has a process and,
where there is one, a core of its own; its own lateness is known and taken out of the errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from perilune.bench.load.client import Goal
from perilune.bench.load.prompts import generator
from perilune.bench.load.record import Ask, Record
from perilune.bench.load.workers import send
from perilune.bench.measure.verdict import BUSY, LATE
from perilune.bench.nullserver import Model, apart

QUIET = 256.0
"""Chunks per second so few that nothing has to be tried: lateness and processor are watched in the run itself."""
_LONGEST = 32
_MODEL = Model(ttft=0.02, itl=0.005)


class Alone(msgspec.Struct, frozen=True):
    """One load against the null server. Times in seconds; errors are beyond what the server itself wrote down.

    `ttft_*` is the time to the first token as the client saw it, less as the server wrote it: two ways over the
    loopback and two wake-ups. `tpot_p99` is the largest error of a time per token, in either direction.
    """

    rate: float
    chunks_per_s: float
    sent_per_s: float
    ttft_p50: float
    ttft_p99: float
    tpot_p99: float
    server_p99: float
    wait_p99: float
    lag_p99: float
    cpu: float

    @property
    def bound(self) -> str | None:
        """Why nothing measured at this load is the server's; None if the client can take it."""
        if self.lag_p99 > LATE or self.wait_p99 > LATE:
            late = max(self.lag_p99, self.wait_p99) * 1000
            return f"client-bound: alone, at {self.chunks_per_s:.0f} chunks/s, it is {late:.0f} ms late (p99)"
        if self.cpu > BUSY:
            return f"client-bound: alone, {self.chunks_per_s:.0f} chunks/s take {self.cpu:.0%} of a core"
        return None


def alone(rate: float, tokens: int, *, processes: int = 1, seconds: float = 1.0, model: Model = _MODEL) -> Alone:
    """Sends `rate` requests/s with answers of `tokens` chunks for `seconds`, at Poisson's times. Raises ClientError."""
    count = max(100, round(rate * seconds))
    at = np.cumsum(generator("self-check", rate, tokens).exponential(1 / rate, count))
    with apart(model) as server:
        goal = Goal(url=server.url, model="null")
        send(goal, [Ask(-i, [0] * 16, 2) for i in range(min(count, 64))], places=32)  # connections, and warm code
        driven = send(goal, [Ask(i, [i + 1] * 16, tokens, float(t)) for i, t in enumerate(at)], processes=processes)
        told = {each.first: each for each in server.told()}
    pairs = [(r, told[r.id + 1]) for r in driven.records if r.ok and r.id + 1 in told]
    path = [_ttft(r) - (t.written[0] - t.read) for r, t in pairs]
    steps = [abs(_tpot(r) - (t.written[-1] - t.written[0]) / (tokens - 1)) for r, t in pairs if tokens > 1]
    waits = [r.sent - r.intended for r, _ in pairs if r.sent is not None]
    span = max((r.sent or 0.0) for r, _ in pairs) - min((r.sent or 0.0) for r, _ in pairs)
    return Alone(
        rate, rate * (tokens + 1), (len(pairs) - 1) / span if span else rate, _q(path, 0.5), _q(path), _q(steps),
        _q([t.written[0] - t.read - model.ttft for _, t in pairs]), _q(waits), _q(driven.lags), driven.cpu,
    )  # fmt: skip


@dataclass
class SelfCheck:
    """Remembers what was tried, so that a sweep tries each load once."""

    tried: dict[tuple[int, int, int], Alone] = field(default_factory=dict)

    def of(self, records: Sequence[Record], processes: int) -> Alone | None:
        """The client at no less than the load of a run that is over; None where it was next to nothing.

        First at the next power of two, which serves several runs; if that is too much, at the run's own.
        """
        done = [r for r in records if r.ok and r.sent is not None and r.end is not None]
        if not done:
            return None
        span = max(r.end or 0.0 for r in done) - min(r.sent or 0.0 for r in done)
        chunks = sum(len(r.arrivals) + 1 for r in done) / max(span, 0.1)
        if chunks < QUIET:
            return None
        tokens = min(_LONGEST, max(1, round(sum(len(r.arrivals) for r in done) / len(done))))
        key = (2 ** math.ceil(math.log2(chunks)), tokens, processes)
        if key not in self.tried:
            self.tried[key] = settled(key[0] / (tokens + 1), tokens, processes)
        found = self.tried[key]
        return found if found.bound is None else settled(chunks / (tokens + 1), tokens, processes)


def settled(rate: float, tokens: int, processes: int) -> Alone:
    """As `alone`; tried again if it was too much, since a machine may be held up for a moment."""
    found = alone(rate, tokens, processes=processes)
    return found if found.bound is None else alone(rate, tokens, processes=processes)


def ceiling(tokens: int, processes: int, least: float = 64.0, most: float = 65536.0) -> list[Alone]:
    """The load doubled until the client is bound or `most` requests/s are reached; all that was tried, in order."""
    found, rate = list[Alone](), least
    while rate <= most:
        found.append(settled(rate, tokens, processes))
        if found[-1].bound is not None:
            break
        rate *= 2
    return found


def lines(tried: Sequence[Alone]) -> list[str]:
    """A table, milliseconds, and what follows."""
    found = ["requests/s  chunks/s  TTFT error p50, p99  TPOT error p99  left late p99  loop late p99  of a core"]
    for a in tried:
        ms = [f"{1000 * v:.2f}" for v in (a.ttft_p50, a.ttft_p99, a.tpot_p99, a.wait_p99, a.lag_p99)]
        found.append(
            f"{a.rate:10.0f}  {a.chunks_per_s:8.0f}  {ms[0]:>14}, {ms[1]:>4}  {ms[2]:>14}  {ms[3]:>13}  {ms[4]:>13}"
            f"  {a.cpu:9.2f}"
        )
    fine = [a for a in tried if a.bound is None]
    found += [tried[-1].bound] if tried[-1].bound else []
    if len(tried) > 1 and fine:
        found.append(f"the client can take {fine[-1].rate:.0f} requests/s, {fine[-1].chunks_per_s:.0f} chunks/s")
    return [*found, "Milliseconds; errors are beyond what the null server wrote down itself."]


def _ttft(record: Record) -> float:
    return (record.first_token or 0.0) - (record.sent or 0.0)


def _tpot(record: Record) -> float:
    return (record.arrivals[-1] - record.arrivals[0]) / max(1, (record.output_tokens or 2) - 1)


def _q(values: Sequence[float], share: float = 0.99) -> float:
    return float(np.quantile(values, share)) if values else 0.0
