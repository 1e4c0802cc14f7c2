"""Servers that misbehave in one way each, on real sockets, and a thread to run any of them in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from perilune.bench.nullserver import Model, NullServer
from perilune.bench.progress import Plain


class Quiet(Plain):
    """A meter that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


@contextlib.contextmanager
def null(model: Model) -> Iterator[NullServer]:
    """The null server, with a loop and a thread of its own."""
    ready, stop, found = threading.Event(), asyncio.Event(), []
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with NullServer(model) as server:
            found.append(server)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


@contextlib.contextmanager
def fake(answer: Answer, metrics: Callable[[], str] = lambda: "") -> Iterator[str]:
    """A server whose POSTs `answer` handles. Yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            whole(self, 200, metrics() if self.path == "/metrics" else json.dumps({"data": [{"id": "m"}]}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with contextlib.suppress(OSError):
                answer(self, body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def whole(handler: BaseHTTPRequestHandler, status: int, text: str) -> None:
    data = text.encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json" if text.startswith("{") else "text/plain")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def begin(handler: BaseHTTPRequestHandler) -> None:
    """A stream that ends with the connection."""
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.close_connection = True


def say(handler: BaseHTTPRequestHandler, value: object) -> None:
    handler.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
    handler.wfile.flush()


def text(said: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": said, "finish_reason": finish}]}


def stream(handler: BaseHTTPRequestHandler, count: int, usage: dict[str, Any] | None, pause: float = 0.0) -> None:
    begin(handler)
    for i in range(count):
        time.sleep(pause)
        say(handler, text("x", "length" if i == count - 1 else None))
    if usage is not None:
        say(handler, {"choices": [], "usage": usage})
    handler.wfile.write(b"data: [DONE]\n\n")


def usage(body: dict[str, Any], out: int, cached: int = 0) -> dict[str, Any]:
    details = {"cached_tokens": cached}
    return {"prompt_tokens": len(body["prompt"]), "completion_tokens": out, "prompt_tokens_details": details}
