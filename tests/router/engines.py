"""Engines that say what a test tells them to, over real sockets, and remember every request to the byte."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from perilune.http.process import listen, run_until, url_of
from perilune.router.app import create_app
from perilune.router.config import RouterConfig
from perilune.router.route import Router
from perilune.router.run import routing

SECONDS = 20.0
MODEL = "tiny"


@dataclass
class Call:
    method: str
    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.raw)


@dataclass
class Engine:
    """`answer` gets each POST. `status`: what /pd/status says; None for an engine without it. `gone` counts clients
    that left before the answer was whole.
    """

    url: str = ""
    answer: Callable[[Engine, Call], Awaitable[Response]] = None  # type: ignore[assignment]
    status: dict[str, Any] | None = None
    models: tuple[str, ...] = (MODEL,)
    healthy: bool = True
    calls: list[Call] = field(default_factory=list)
    gone: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        call = Call(request.method, request.url.path, dict(request.headers), await request.body())
        if call.method == "GET":
            return await self._get(call)(scope, receive, send)
        self.calls.append(call)
        working = asyncio.create_task(self._send(call, scope, send))
        leaving = asyncio.create_task(_left(receive))
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            self.gone += 1
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
        return None

    async def _send(self, call: Call, scope: Any, send: Any) -> None:
        async def silent() -> Any:
            await asyncio.Event().wait()

        await (await self.answer(self, call))(scope, silent, send)

    def _get(self, call: Call) -> Response:
        if not self.healthy:
            return Response(status_code=503)
        if call.path == "/pd/status" and self.status is not None:
            return JSONResponse(self.status)
        if call.path == "/health":
            return JSONResponse({"status": "ok"})
        if call.path == "/v1/models":
            return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})
        return Response(status_code=404)

    def posts(self, path: str = "/v1/chat/completions") -> list[Call]:
        return [call for call in self.calls if call.path == path]


async def _left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def chunk(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def whole(text: str = "hello", **more: Any) -> JSONResponse:
    return JSONResponse({"id": "x", "choices": [{"index": 0, "message": {"content": text}}], **more})


def refusal(status: int, code: str = "", **headers: str) -> JSONResponse:
    return JSONResponse({"error": {"message": "no", "type": "t", "code": code}}, status, headers)


def stream(*parts: bytes) -> StreamingResponse:
    async def events() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    return StreamingResponse(events(), media_type="text/event-stream")


async def says_hello(engine: Engine, call: Call) -> Response:
    """The engine's own URL, streamed or not, so that a test sees who answered."""
    return stream(chunk(engine.url), DONE) if call.body.get("stream") else whole(engine.url)


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    listener, stop = listen("127.0.0.1", 0), asyncio.Event()
    serving = asyncio.create_task(run_until(app, listener, 0.0, stop, asyncio.Event(), lambda _: None))
    try:
        await asyncio.wait({serving, asyncio.create_task(_listens(listener))}, return_when=asyncio.FIRST_COMPLETED)
        yield url_of(listener)
    finally:
        stop.set()
        await asyncio.wait({serving}, timeout=0.05)
        stop.set()
        await serving
        listener.close()


async def _listens(listener: socket.socket) -> None:
    while not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        await asyncio.sleep(0.001)


@asynccontextmanager
async def engine(answer: Any = says_hello, **more: Any) -> AsyncIterator[Engine]:
    made = Engine(answer=answer, **more)
    async with served(made) as url:
        made.url = url
        yield made


@asynccontextmanager
async def front(config: RouterConfig, up: int | None = None) -> AsyncIterator[tuple[Router, httpx.AsyncClient]]:
    """A router over sockets, with `up` engines (all, if not said) found; and a client of it."""
    async with routing(config, lambda _: None) as router, served(create_app(router)) as url:
        wanted = len(router.pool.workers) if up is None else up
        await until(lambda: sum(worker.up for worker in router.pool.workers.values()) >= wanted)
        async with httpx.AsyncClient(base_url=url, timeout=SECONDS) as client:
            yield router, client


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not true():
            await asyncio.sleep(0.01)


def chat(text: str = "hi", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}
