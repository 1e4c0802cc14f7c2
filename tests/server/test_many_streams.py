"""Two hundred streams at once on the real engine, some of which leave early: afterwards nothing is in use."""

from __future__ import annotations

import asyncio
import json
import random

import httpx
from live import KEY, MODEL, LiveServer

STREAMS = 200
TOKENS = 8


async def one_stream(client: httpx.AsyncClient, number: int) -> str:
    """Streams one answer; every third leaves after a few chunks. Returns how it ended."""
    dice = random.Random(number)
    asked = {
        "model": MODEL,
        "prompt": [dice.randrange(100) for _ in range(dice.randrange(1, 100))],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "seed": number,
        "n": 1 + (number % 10 == 0),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    leave_after = dice.randrange(4) if number % 3 == 0 else None
    seen, usage, last = 0, None, ""
    async with client.stream("POST", "/v1/completions", json=asked) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if leave_after is not None and seen >= leave_after:
                return "left"
            if line.startswith("data: {"):
                seen += 1
                usage = json.loads(line.removeprefix("data: ")).get("usage") or usage
            last = line or last
    assert last == "data: [DONE]"
    assert usage["completion_tokens"] == TOKENS * asked["n"]
    assert usage["prompt_tokens"] == len(asked["prompt"])
    return "finished"


async def test_two_hundred_streams_with_aborts_leave_nothing_in_use(server: LiveServer) -> None:
    limits = httpx.Limits(max_connections=STREAMS)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=240, limits=limits) as client:
        ends = await asyncio.gather(*(one_stream(client, number) for number in range(STREAMS)))
    assert ends.count("left") == len(range(0, STREAMS, 3))
    assert ends.count("finished") == STREAMS - ends.count("left")
    await asyncio.to_thread(server.wait_idle)
