"""What one moment of the engine looks like, for whoever watches it. Integers only; imports no torch.

Costs one pass over the requests that run and a few that wait: never one over pages.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Literal

import msgspec

from perilune.engine.scheduler import Scheduler, Sequence

SHOWN = 64
"""Requests that a view names; the others are in the counts."""

Phase = Literal["waiting", "prefill", "decode"]


class RequestView(msgspec.Struct, frozen=True):
    """One sequence. `computed` of its `prompt` tokens are in the cache, of them `cached` were found there.

    `pages` are its own; the `shared` ones before them came from the prefix cache. `because`: what was reused of the
    prompt, and why not more.
    """

    id: str
    phase: Phase
    prompt: int
    computed: int
    output: int
    cached: int = 0
    pages: int = 0
    shared: int = 0
    preemptions: int = 0
    because: str = ""


class View(msgspec.Struct, tag=True, frozen=True):
    """`stats` as `EngineCore.stats`; `requests` the oldest first, running before waiting, at most SHOWN of each."""

    stats: dict[str, int | float | str]
    page_bytes: int
    slot_bytes: int
    requests: tuple[RequestView, ...]


def requests_of(scheduler: Scheduler) -> tuple[RequestView, ...]:
    running = (_running(scheduler, sequence) for sequence in scheduler.running[:SHOWN])
    return (*running, *_waiting(islice(scheduler.waiting, SHOWN)))


def _running(scheduler: Scheduler, sequence: Sequence) -> RequestView:
    holding = scheduler.cache.holding(sequence.id)
    return RequestView(
        sequence.id,
        "prefill" if sequence.prefilling else "decode",
        len(sequence.prompt),
        min(sequence.computed, len(sequence.prompt)),
        len(sequence.outputs),
        sequence.cached,
        holding.pages,
        holding.shared,
        sequence.preemptions,
        scheduler.cache.explanation(sequence.id),
    )


def _waiting(sequences: Iterable[Sequence]) -> Iterable[RequestView]:
    for sequence in sequences:
        yield RequestView(
            sequence.id, "waiting", len(sequence.prompt), 0, len(sequence.outputs), preemptions=sequence.preemptions
        )
