"""What a run is worth: valid, degraded with reasons, or failed. Every number travels with one of these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from perilune.bench.load.drive import Driven
from perilune.bench.load.record import Record
from perilune.bench.measure.metrics import ENOUGH_FOR_P99, in_one_piece
from perilune.bench.measure.steady import Window
from perilune.bench.plan.point import Point
from perilune.bench.spec.workload import Closed, Random

LATE = 0.010
"""Seconds of the event loop's lag, p99, above which the client is measured instead of the server."""
BUNCHED = 0.1
"""Share of answers read in one piece above which times per token are those of the others only."""
LONG = 8
"""Chunks that do not come together by chance, as two may."""
BUSY = 0.9
"""Share of one core above which a client process has no room left."""


class Verdict(msgspec.Struct, frozen=True):
    """`reasons` are why it is not valid; `notes` what to know about one that is."""

    status: Literal["valid", "degraded", "failed"]
    reasons: list[str] = msgspec.field(default_factory=list)
    notes: list[str] = msgspec.field(default_factory=list)


def failed(reason: str) -> Verdict:
    """Nothing of the run counts."""
    return Verdict("failed", [reason])


def judge_run(
    point: Point,
    driven: Driven,
    metrics: Mapping[str, float],
    window: Window | None,
    ideal: float,
    asked: int,
    bound: str | None = None,
) -> Verdict:
    """The verdict on a run that went to its end. `asked` is how many requests were planned; `bound` says why the client
    could not take this load by itself, if it could not."""
    records = driven.records
    broken = [record.error for record in records if record.error is not None]
    share = len(broken) / max(1, len(records))
    if share > point.sweep.max_failed or len(broken) == len(records):
        kinds = Counter(broken).most_common(1)
        return failed(
            f"{len(broken)} of {len(records)} requests failed, most often: {kinds[0][0] if kinds else 'none sent'}"
        )
    reasons = [*([bound] if bound else []), *_client(point, driven, metrics), *_answers(point, records)]
    notes = [f"{len(broken)} of {len(records)} requests failed"] if broken else []
    state, said = _cache(point, metrics.get("hit_rate"), ideal)
    (reasons if state else notes).extend(said)
    if window is not None and not window.steady:
        reasons.append(f"no steady state: times per token drift by {window.drift:+.0%} (p = {window.trend:.1g})")
    if len(records) < ENOUGH_FOR_P99:
        notes.append(f"p99 from {len(records)} requests; {ENOUGH_FOR_P99} are wanted")
    if len(records) < asked and point.workload.kind != "sessions":
        reasons.append(f"{asked - len(records)} of {asked} requests were never sent")
    return Verdict("degraded" if reasons else "valid", reasons, notes)


def _client(point: Point, driven: Driven, metrics: Mapping[str, float]) -> list[str]:
    found = []
    lag = float(np.quantile(driven.lags, 0.99)) if driven.lags else 0.0
    if lag > LATE:
        found.append(f"client-bound: its event loop was {lag * 1000:.0f} ms late (p99)")
    if driven.cpu > BUSY:
        found.append(f"client-bound: a client process used {driven.cpu:.0%} of a core; take more processes")
    bounded = isinstance(point.load, Closed) or point.load.max_open is not None
    wait = metrics.get("wait_p99", 0.0)
    if not bounded and wait > max(LATE, 0.05 * metrics.get("e2e_p50", 0.0)):
        found.append(f"the load was not delivered: requests left {wait * 1000:.0f} ms late (p99)")
    return found


def _answers(point: Point, records: Sequence[Record]) -> list[str]:
    done = [record for record in records if record.ok]
    uncounted = sum(record.output_tokens is None for record in done)
    found = [f"the server counted no tokens for {uncounted} answers"] if uncounted else []
    whole = sum(in_one_piece(r) and len(r.arrivals) >= LONG for r in done)
    if whole > BUNCHED * len(done):
        found.append(f"{whole} answers came in one piece: their time per token was not seen")
    chunks = sum(r.output_tokens is not None and len(r.arrivals) > r.output_tokens for r in done)
    if chunks:
        found.append(f"the server's usage is wrong: {chunks} answers have more chunks than tokens")
    if point.workload.ignore_eos:
        short = [r for r in done if r.output_tokens is not None and r.planned_output != r.output_tokens]
        if short:
            found.append(f"{len(short)} answers have another length than asked for")
    lost = [r for r in done if None not in (r.planned_input, r.input_tokens) and r.planned_input != r.input_tokens]
    if lost:
        found.append(f"the server counts {lost[0].input_tokens} prompt tokens where {lost[0].planned_input} were sent")
    return found


def _cache(point: Point, rate: float | None, ideal: float) -> tuple[bool, list[str]]:
    """Whether something is wrong, and the words for it."""
    state = point.workload.cache
    if state == "any":
        return False, []
    if rate is None:
        # A server that says nothing about its cache may still have one.
        return False, [f"cache declared {state}, not verified: the server reports no cached tokens"]
    if state == "defeated" and rate > 0.01:
        return True, [f"cache declared defeated, but {rate:.1%} of prompt tokens were cached"]
    if state == "cold" and rate > ideal + 0.02:
        return True, [f"cache declared cold, but {rate:.1%} of prompt tokens were cached where {ideal:.1%} is possible"]
    if state == "warm" and isinstance(point.workload, Random) and rate < ideal / 2:
        return True, [f"cache declared warm, but only {rate:.1%} of prompt tokens were cached; ideal is {ideal:.1%}"]
    return False, [f"{rate:.1%} of prompt tokens cached, ideal {ideal:.1%}"]


def builtins(value: Verdict) -> dict[str, Any]:
    """For the store."""
    found: dict[str, Any] = msgspec.to_builtins(value)
    return found
