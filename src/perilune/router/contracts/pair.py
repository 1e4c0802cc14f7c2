"""What every contract works with: the two engines of one attempt, and legs that run at the same time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from perilune.http.race import end
from perilune.router.ask import Ask
from perilune.router.errors import Answer, LegError
from perilune.router.legs import Legs, Opened
from perilune.router.worker import Worker


@dataclass(frozen=True)
class Pair:
    """One attempt. `deadline` for the first token, on the loop's clock."""

    ask: Ask
    prefill: Worker
    decode: Worker
    deadline: float
    early: bool = False


HandOver = Callable[[Legs, Pair], Awaitable[Opened]]
"""Opens the decode engine's answer, with a ticket of this attempt's own. Raises LegError, RefusedError."""


def transfer_params(pair: Pair, answer: Answer) -> dict[str, Any]:
    """`kv_transfer_params` of leg 1's answer, whatever is in it. Raises LegError if there is none: a decode engine
    that got the request without would answer all the same, from nothing.
    """
    try:
        found = json.loads(answer.body)["kv_transfer_params"]
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, dict) or not found:
        raise LegError("prefill", pair.prefill.name, "no_ticket")
    return found


async def both(legs: Legs, pair: Pair, first: Mapping[str, Any], second: Mapping[str, Any]) -> Opened:
    """Both legs at once: the decode engine's answer, while the prefill engine's is read and dropped.

    If prefill fails before decode has begun, decode is ended too. Raises LegError, RefusedError.
    """
    reading = asyncio.create_task(legs.read("prefill", pair.prefill, pair.ask, first, pair.deadline))
    opening = asyncio.create_task(legs.open(pair.decode, pair.ask, second, pair.deadline))
    try:
        await asyncio.wait({reading, opening}, return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():
            await reading
        opened = await opening
    except BaseException:
        await end(reading, opening)
        if not opening.cancelled() and opening.exception() is None:
            await opening.result().aclose()
        raise
    opened.stack.push_async_callback(end, reading)
    return opened
