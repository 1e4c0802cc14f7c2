"""Waiting for one of several things, without leaving the others behind."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")


class StoppedError(Exception):
    """What was waited for had not ended when something else did."""


async def unless(
    work: Coroutine[object, object, T], stop: Coroutine[object, object, object], seconds: float | None = None
) -> T:
    """`work`'s result; `work` is cancelled if `stop` ends first (StoppedError) or after `seconds` (TimeoutError)."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop)
    try:
        done, _ = await asyncio.wait({working, stopping}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if working in done:
            return working.result()
        raise StoppedError if done else TimeoutError
    finally:
        await end(working, stopping)


async def end(*tasks: asyncio.Task[T] | asyncio.Task[None] | asyncio.Task[object]) -> None:
    """Cancels what still runs and waits until all have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
