"""Sends a run from one process: open loops by the clock, closed loops as places become free."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Sequence
from itertools import groupby
from typing import Any

import msgspec

from perilune.bench.load.client import Client, Goal
from perilune.bench.load.record import Ask, Record

_LAG_STEP = 0.01


class Driven(msgspec.Struct):
    """Records in the order of their end. `lags` are seconds the event loop was late, sampled every 10 ms.

    `cpu` is processor seconds per second this process used.
    """

    records: list[Record]
    lags: list[float]
    cpu: float


def units(asks: Sequence[Ask]) -> list[list[Ask]]:
    """Requests that depend on each other, together: a session is one unit, any other request its own."""
    keyed = groupby(asks, key=lambda ask: ("session", ask.session) if ask.session is not None else ("ask", ask.id))
    return [list(group) for _, group in keyed]


async def drive(
    goal: Goal, asks: Sequence[Ask], origin: float, *, places: int | None, worker: int = 0, limit: int | None = None
) -> Driven:
    """Sends `asks`. `origin` is the run's start on the monotonic clock.

    With `places` (a closed loop) so many units are open at once and each request is intended for when its place is
    free. Without, each unit starts at its own time, whatever has not been answered; `limit` bounds how many are on
    the wire at once, and waiting for it counts into the response time, since the intended start stays.
    """
    client, records = Client(goal, origin), list[Record]()
    room = asyncio.Semaphore(limit) if limit is not None else contextlib.nullcontext()
    await asyncio.sleep(max(0.0, origin - time.monotonic()))
    began, used = time.monotonic(), time.process_time()
    gc.disable()  # a collection in the middle would be measured as the server's time; whoever calls collects before
    try:
        async with _lags() as lags:
            if places is not None:
                await _closed(client, goal, units(asks), places, worker, records)
            else:
                await _open(client, goal, units(asks), room, worker, records)
    finally:
        gc.enable()
        client.close()
    wall = max(1e-9, time.monotonic() - began)
    return Driven(records, lags, (time.process_time() - used) / wall)


async def _closed(
    client: Client, goal: Goal, waiting: list[list[Ask]], places: int, worker: int, records: list[Record]
) -> None:
    queue = iter(waiting)

    async def place() -> None:
        for unit in queue:
            await _unit(client, goal, unit, client.now(), contextlib.nullcontext(), worker, records)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(places):
            tasks.create_task(place())


async def _open(
    client: Client, goal: Goal, waiting: list[list[Ask]], room: Any, worker: int, records: list[Record]
) -> None:
    async with asyncio.TaskGroup() as tasks:
        for unit in sorted(waiting, key=lambda unit: unit[0].at or 0.0):
            at = unit[0].at or 0.0
            if (pause := at - client.now()) > 0:
                await asyncio.sleep(pause)
            tasks.create_task(_unit(client, goal, unit, at, room, worker, records))


async def _unit(
    client: Client, goal: Goal, unit: list[Ask], at: float, room: Any, worker: int, records: list[Record]
) -> None:
    """One request, or a session's turns: each carries the ones before it, with the answers they got."""
    history = _History(goal.endpoint)
    for ask in unit:
        intended = at + ask.pause
        if ask.pause:
            await asyncio.sleep(max(0.0, intended - client.now()))
        record = Record(
            id=ask.id, session=ask.session, worker=worker, intended=intended,
            planned_input=history.tokens(ask), planned_output=ask.output_tokens,
        )  # fmt: skip
        async with room:
            await client.ask(record, history.add(ask), ask.output_tokens)
        records.append(record)
        at = record.end if record.end is not None else client.now()
        if not record.ok:
            return
        history.answered(record, ask)
        if not goal.keep_text:
            record.text = None


class _History:
    """What a session has said so far. Answers to token prompts come as text; their place is held by as many tokens."""

    def __init__(self, endpoint: str) -> None:
        self._chat = endpoint == "chat"
        self._ids: list[int] = []
        self._messages: list[dict[str, str]] = []

    def tokens(self, ask: Ask) -> int | None:
        return len(self._ids) + len(ask.prompt) if not isinstance(ask.prompt, str) else None

    def add(self, ask: Ask) -> dict[str, Any]:
        """The request's own part of the body."""
        if isinstance(ask.prompt, str):
            if not self._chat:
                return {"prompt": ask.prompt}
            self._messages.append({"role": "user", "content": ask.prompt})
            return {"messages": list(self._messages)}
        self._ids += ask.prompt
        return {"prompt": list(self._ids)}

    def answered(self, record: Record, ask: Ask) -> None:
        if self._chat:
            self._messages.append({"role": "assistant", "content": record.text or ""})
        elif self._ids:
            self._ids += (self._ids * (1 + ask.output_tokens // len(self._ids)))[: ask.output_tokens]


@contextlib.asynccontextmanager
async def _lags() -> AsyncIterator[list[float]]:
    found: list[float] = []

    async def watch() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(_LAG_STEP)
            found.append(time.monotonic() - before - _LAG_STEP)

    task = asyncio.create_task(watch())
    try:
        yield found
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
