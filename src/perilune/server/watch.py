"""The engine's present, told to everybody who listens.

However many they are, the engine is asked once per tick, and not at all while nobody does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

import msgspec

from perilune.engine.client import AsyncEngine
from perilune.errors import PeriluneError

TICK_SECONDS = 0.5
LEAST_SECONDS = 0.1
"""Between an answer and the next question, where the engine's steps take longer than a tick."""


class Watch:
    """One task asks the engine while there is anybody to tell."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._encode = msgspec.json.Encoder().encode
        self._next: asyncio.Future[str | None] | None = None
        self._why: PeriluneError | None = None
        self._listeners = 0
        self._task: asyncio.Task[None] | None = None

    async def frames(self) -> AsyncGenerator[str, None]:
        """A view per tick, as JSON, without those that a slow listener had no time for.

        Raises EngineDeadError when the engine ends, or what `stop` was given.
        """
        if self._next is None:
            self._next, self._why = asyncio.get_running_loop().create_future(), None
            self._task = asyncio.create_task(self._ask())
        self._listeners += 1
        try:
            while self._next is not None and (frame := await asyncio.shield(self._next)) is not None:
                yield frame
            if self._why is not None:
                raise self._why
        finally:
            self._listeners -= 1
            if not self._listeners:
                self.stop()

    def stop(self, error: PeriluneError | None = None) -> None:
        """Asks no more. Whoever listens gets the error."""
        if self._task is not None:
            self._task.cancel()
        if self._next is not None:
            self._next.set_result(None)
        self._task, self._next, self._why = None, None, error

    async def _ask(self) -> None:
        try:
            while True:
                due = time.monotonic() + TICK_SECONDS
                frame = self._encode(await self._engine.view()).decode()
                assert self._next is not None, "whoever ends the watch ends this task first"
                told, self._next = self._next, asyncio.get_running_loop().create_future()
                told.set_result(frame)
                await asyncio.sleep(max(LEAST_SECONDS, due - time.monotonic()))
        except PeriluneError as error:
            self.stop(error)
