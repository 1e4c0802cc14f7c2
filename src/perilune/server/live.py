"""GET /live, the engine's present as server-sent events, and GET /doctor: what the page draws."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from perilune import __version__
from perilune.errors import PeriluneError
from perilune.http.errors import ErrorBody, detail_of
from perilune.http.sse import Begun, EventStream, begin, named_event
from perilune.server.front import Front, FrontDep

_OPEN = ("fail", "warn", "unknown")

router = APIRouter(include_in_schema=False)


class Hello(BaseModel):
    """The first event: what does not change while the server runs."""

    version: str
    models: list[str]
    context: int
    family: str
    because: list[str]
    role: str | None = None


@router.get("/live")
async def live(request: Request, front: FrontDep) -> Response:
    """`hello` once, then a `view` (see `engine/view.py`) twice a second; `end` with a reason if there are no more."""
    front.require_open()
    begun = await begin(request, front.watch.frames())
    return EventStream(_events(front, begun), begun)


async def _events(front: Front, frames: Begun[str]) -> AsyncGenerator[bytes, None]:
    engine = front.engine
    yield named_event(
        "hello",
        Hello(
            version=__version__,
            models=list(front.names),
            context=front.context,
            family=engine.spec.family,
            because=list(engine.because),
            role=engine.config.pd.role if engine.config.pd else None,
        ),
    )
    try:
        async for frame in frames:
            yield named_event("view", frame)
    except PeriluneError as error:
        yield named_event("end", ErrorBody(error=detail_of(error)))


@router.get("/doctor")
async def doctor(front: FrontDep) -> Response:
    """What `perilune doctor` finds on this host: target, verdict, and the checks that did not pass."""
    report = await front.checkup.report()
    return JSONResponse({**report, "checks": [check for check in report["checks"] if check["status"] in _OPEN]})
