"""The router's routes: the OpenAI API as its engines have it, and what watches the router."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from perilune import __version__
from perilune.errors import PeriluneError
from perilune.http import errors
from perilune.http.errors import UnknownModelError, detail_of, log_unexpected
from perilune.http.json import JsonRequest
from perilune.http.middleware import ApiKeys, BodyLimit
from perilune.http.origins import guard, is_loopback
from perilune.http.page import is_page, page_router
from perilune.http.sse import EventStream, unless_gone
from perilune.router.ask import public, read_ask
from perilune.router.errors import NoWorkerError, RefusedError
from perilune.router.events import error_event
from perilune.router.legs import Opened
from perilune.router.live import live_router
from perilune.router.route import Router

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/detokenize")
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


def create_app(router: Router) -> FastAPI:
    """The app over engines that are watched already."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    config = router.config
    app = FastAPI(title="perilune route", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.draining = False

    async def generate(request: Request) -> Response:
        body = await JsonRequest(request.scope, request.receive).json()
        sent = request.headers.get("authorization")
        name = request.headers.get("x-request-id") or uuid.uuid4().hex
        ask = read_ask(request.url.path, body, None if config.api_keys else sent, name)
        async with AsyncExitStack() as held:
            held.enter_context(router.admitted())
            try:
                opened = await unless_gone(request, router.open(ask))
            except RefusedError as refused:
                return Response(refused.answer.body, refused.answer.status, refused.answer.headers)
            opened.stack.push_async_callback(held.pop_all().aclose)
        if opened.events is None:
            await opened.aclose()
            return Response(public(opened.first), opened.status, opened.headers)
        return EventStream(_events(ask.path, opened), opened, opened.headers)

    for path in PATHS:
        app.add_api_route(path, generate, methods=["POST"], response_model=None)

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": router.pool.models()})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> JSONResponse:
        for entry in router.pool.models():
            if entry.get("id") == name:
                return JSONResponse(entry)
        raise UnknownModelError(f"No engine here serves the model {name[:200]!r}.", param="model")

    @app.get("/health")
    async def health() -> dict[str, str]:
        """The router lives; whether engines do, /ready says."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        if app.state.draining:
            raise NoWorkerError("The router is stopping.", "It finishes what is open.", "Use another one.")
        if not any(worker.accepting and worker.decodes for worker in router.pool.workers.values()):
            raise NoWorkerError("No engine is there to answer.", fix="/workers shows what the router sees.")
        return {"status": "ok"}

    @app.get("/workers")
    async def workers() -> list[dict[str, Any]]:
        return [
            {
                "name": worker.name, "url": worker.place.url, "role": worker.place.role, "up": worker.up,
                "accepting": worker.accepting, "open": worker.open, "pending_tokens": worker.pending,
                "models": worker.model_names,
            }
            for worker in router.pool.workers.values()
        ]  # fmt: skip

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(router.metrics.show(router.pool.workers.values()), headers={"Content-Type": EXPOSITION})

    app.include_router(live_router(router, lambda: bool(app.state.draining)))
    if config.page:
        app.include_router(page_router())
    errors.install(app)
    app.add_middleware(BodyLimit, limit=config.max_body_bytes, seconds=config.body_seconds)
    app.add_middleware(ApiKeys, keys=config.api_keys, is_open=is_page if config.page else lambda _: False)
    guard(app, config.allowed_origins, loopback_only=not config.api_keys and is_loopback(config.host))
    return app


async def _events(path: str, opened: Opened) -> AsyncGenerator[bytes, None]:
    """The engine's events; if it is lost, one that says so, and nothing after it."""
    try:
        async with aclosing(opened.relay()) as events:
            async for event in events:
                yield event
    except Exception as error:
        yield error_event(path, detail_of(error))
        if not isinstance(error, PeriluneError):
            log_unexpected(error)
