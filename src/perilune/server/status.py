"""GET /health, /ready and /metrics: for whoever watches the server."""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from perilune.errors import EngineDeadError, PeriluneError
from perilune.server.front import FrontDep
from perilune.server.openapi import PLAIN_ERRORS, errors

router = APIRouter(tags=["status"])

STATS_SECONDS = 2.0
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


class StatusBody(BaseModel):
    status: Literal["ok"]


@router.get("/health", responses=errors(503))
async def health(front: FrontDep) -> StatusBody:
    """Whether the engine process lives. If this fails, the server is about to exit."""
    if not front.engine.alive:
        raise EngineDeadError("The engine process ended.", fix="Read the server's log, then restart it.")
    return StatusBody(status="ok")


@router.get("/ready", responses=errors(503))
async def ready(front: FrontDep) -> StatusBody:
    """Whether new requests should come here: alive, and not about to stop."""
    front.require_open()
    return await health(front)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **PLAIN_ERRORS})
async def metrics(front: FrontDep) -> Response:
    """Prometheus metrics. Shows what it has, `perilune_engine_up 0` included, if the engine does not answer."""
    try:
        async with asyncio.timeout(STATS_SECONDS):
            stats = await front.engine.stats()
    except (PeriluneError, TimeoutError):
        stats = None
    return Response(front.metrics.show(stats), headers={"Content-Type": EXPOSITION})
