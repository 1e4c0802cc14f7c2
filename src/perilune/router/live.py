"""GET /live of a router: its engines and what goes between them, as server-sent events for the page.

Nothing is asked of an engine for it: everything is known from the looks that routing takes anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from perilune import __version__
from perilune.http.errors import detail_of
from perilune.http.sse import EventStream, named_event
from perilune.router.errors import NoWorkerError
from perilune.router.route import Router
from perilune.router.worker import Worker

TICK_SECONDS = 1.0


def live_router(router: Router, is_draining: Callable[[], bool]) -> APIRouter:
    """The one route. `is_draining`: the router stops, and nobody is kept listening."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/live")
    async def live() -> Response:
        """`hello` once, then `cluster` once a second; `end` with a reason if there are no more."""
        events = _events(router, is_draining)
        return EventStream(events, events)

    return routes


async def _events(router: Router, is_draining: Callable[[], bool]) -> AsyncGenerator[bytes, None]:
    models = router.pool.models()
    lengths = [length for entry in models if isinstance(length := entry.get("max_model_len"), int)]
    yield _event(
        "hello",
        {
            "version": __version__,
            "models": [entry.get("id") for entry in models],
            "context": min(lengths, default=0),
            "family": "",
            "because": [],
        },
    )
    while not is_draining():
        yield _event("cluster", cluster(router))
        await asyncio.sleep(TICK_SECONDS)
    yield _event("end", {"error": detail_of(NoWorkerError("The router is stopping.")).model_dump()})


def cluster(router: Router) -> dict[str, Any]:
    """Engines, and how many requests went which way: `prefill` is empty where the decode engine read the prompt."""
    ways = router.metrics.ways()
    return {
        "engines": [_engine(worker) for worker in router.pool.workers.values()],
        "ways": [
            {"prefill": prefill, "decode": decode, "requests": count}
            for (prefill, decode), count in ways.items()
            if decode
        ],
    }


def _engine(worker: Worker) -> dict[str, Any]:
    status = worker.status
    return {
        "name": worker.name,
        "url": worker.place.url,
        "role": worker.place.role,
        "up": worker.up,
        "accepting": worker.accepting,
        "open": worker.open,
        "pending_tokens": worker.pending,
        "models": worker.model_names,
        "slots": msgspec.to_builtins(status.slots) if status else None,
        "pages": msgspec.to_builtins(status.pages) if status else None,
        "queue": msgspec.to_builtins(status.queue) if status else None,
        "rates": msgspec.to_builtins(status.rates) if status else None,
        "totals": status.totals if status else {},
    }


def _event(name: str, content: Any) -> bytes:
    return named_event(name, msgspec.json.encode(content).decode())
