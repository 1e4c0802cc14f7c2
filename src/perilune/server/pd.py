"""/pd/status and /pd/withdraw: what a router asks of engines beside requests (docs/pd.md)."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from perilune.errors import OverloadedError
from perilune.http.json import JsonRoute
from perilune.server.body import StrictBody
from perilune.server.front import FrontDep
from perilune.server.handover import require_handovers
from perilune.server.openapi import BODY_ERRORS, errors
from perilune.server.stamp import require_stamp

router = APIRouter(route_class=JsonRoute, tags=["hand-overs"])
STATUS_SECONDS = 5.0


class Slots(BaseModel):
    total: int
    free: int


class Pages(Slots):
    tokens: int


class Queue(BaseModel):
    running: int
    waiting: int
    uncached_tokens: int
    receiving: int
    lending: int


class Cost(BaseModel):
    token_bytes: int
    state_bytes: int


class Rates(BaseModel):
    prefill_tokens_per_second: float
    link_bytes_per_second: float


class Prefix(BaseModel):
    tokens: int
    digest: str


class PdStatus(BaseModel):
    """One engine as a router sees it."""

    engine: str
    incarnation: str
    role: str
    accepting: bool
    models: list[str]
    model_digest: str
    tp: int
    context: int
    key: str
    control: str
    transports: list[str]
    slots: Slots
    pages: Pages
    queue: Queue
    cost: Cost
    rates: Rates
    prefixes: list[Prefix]
    totals: dict[str, float]


class WithdrawBody(StrictBody):
    ticket: str


@router.get("/pd/status", responses=errors(400, 401, 403, 503))
async def pd_status(front: FrontDep) -> PdStatus:
    """What this engine is, what is free, what waits, and how fast it is."""
    require_handovers(front)
    try:
        async with asyncio.timeout(STATUS_SECONDS):
            values = await front.engine.status()
    except TimeoutError:
        raise OverloadedError("The engine is busy.", f"It did not answer for {STATUS_SECONDS:g} s.") from None
    assert values is not None
    return PdStatus(accepting=not front.draining, models=list(front.names), **values)


@router.post("/pd/withdraw", status_code=204, responses={**BODY_ERRORS, **errors(403, 503)})
async def withdraw(body: WithdrawBody, request: Request, front: FrontDep) -> Response:
    """Nobody will use this ticket: the cache it stands for need not wait. For the cluster's router."""
    require_handovers(front)
    require_stamp(request)
    front.engine.withdraw(body.ticket, "the router withdrew it")
    return Response(status_code=204)
