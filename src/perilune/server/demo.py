"""The tour: start a real server, send it real requests over HTTP, and say what was measured. Speaks only HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from perilune.errors import PeriluneError

START_SECONDS = 120.0


@dataclass
class Exchange:
    """One question and its streamed answer, as a client saw it."""

    question: str
    answer: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    started: float = field(default_factory=time.perf_counter)
    first: float = 0.0
    last: float = 0.0

    @property
    def first_token_seconds(self) -> float:
        return self.first - self.started

    @property
    def tokens_per_second(self) -> float:
        seconds = self.last - self.first
        return (self.completion_tokens - 1) / seconds if seconds > 0 and self.completion_tokens > 1 else 0.0


@contextlib.asynccontextmanager
async def running_server(model: str, *flags: str) -> AsyncIterator[str]:
    """A `perilune serve` process of its own on a free port; yields its URL once it is ready, stops it at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "perilune", "serve", model, "--port", "0", *flags, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield await asyncio.wait_for(_announced_url(process), START_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _announced_url(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    heard = []
    async for line in process.stdout:
        heard.append(line.decode().rstrip())
        if " at http://" in heard[-1]:
            return heard[-1].rpartition(" at ")[2]
    raise PeriluneError("The server did not start.", heard[-1] if heard else "It said nothing.", "See the lines above.")


async def ask(client: httpx.AsyncClient, question: str, max_tokens: int = 120) -> AsyncIterator[Exchange]:
    """Streams one chat answer; yields the exchange after every piece of text, and once more at the end."""
    exchange = Exchange(question)
    body = {
        "model": "builtin",
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": max_tokens,
    }
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise PeriluneError("The server refused a request.", (await response.aread()).decode())
        async for line in response.aiter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                _take(exchange, json.loads(line[6:]))
                yield exchange
    if not exchange.completion_tokens:
        raise PeriluneError("The server's stream ended without an answer.", f"The question was {question!r}.")


def _take(exchange: Exchange, chunk: dict[str, Any]) -> None:
    if "error" in chunk:
        raise PeriluneError("The server reported an error mid-stream.", str(chunk["error"].get("message")))
    for choice in chunk["choices"]:
        if choice["delta"].get("content"):
            exchange.last = time.perf_counter()
            exchange.first = exchange.first or exchange.last
            exchange.answer += choice["delta"]["content"]
    if chunk.get("usage"):
        exchange.prompt_tokens = chunk["usage"]["prompt_tokens"]
        exchange.completion_tokens = chunk["usage"]["completion_tokens"]


async def engine_numbers(client: httpx.AsyncClient) -> dict[str, float]:
    """The engine's gauges from /metrics, without their prefix."""
    text = (await client.get("/metrics")).raise_for_status().text
    return dict(_gauges(text))


def _gauges(text: str) -> Iterator[tuple[str, float]]:
    prefix = "perilune_engine_"
    for line in text.splitlines():
        if line.startswith(prefix):
            name, _, value = line.removeprefix(prefix).partition(" ")
            with contextlib.suppress(ValueError):
                yield name, float(value)
