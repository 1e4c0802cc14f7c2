"""A front as a process: its socket, its signals, and uvicorn, run until a stop is asked for or what it needs ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from perilune.errors import ConfigError

Say = Callable[[str], None]

LAST_WORDS_SECONDS = 2.0
"""After the death of what a front stands for: how long open requests have to receive their error."""


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, not listening yet: until the front is ready, connections are refused. Raises ConfigError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"{host!r} is no address of this machine.", f"{error}.", "Choose another --host.") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigError(f"Cannot listen on {host}:{port}.", f"{error}.", "Choose another --port.") from error
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextlib.contextmanager
def stop_signals() -> Iterator[asyncio.Event]:
    """Set by SIGINT and SIGTERM."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    handled = (signal.SIGINT, signal.SIGTERM)
    for number in handled:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


async def run_until(
    app: Any, listener: socket.socket, drain_seconds: float, stop: asyncio.Event, dead: asyncio.Event,
    ending: Callable[[bool], None],
) -> bool:  # fmt: skip
    """Serves `app` until `stop` or `dead` is set; returns whether it was `dead`.

    `ending(dead)` is called when the end begins. Open requests get `drain_seconds`, after a death the time of last
    words; a second stop does not wait for them.
    """
    server = _Uvicorn(_config(app, drain_seconds))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    died = asyncio.create_task(dead.wait())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, died, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if died.done():
            server.config.timeout_graceful_shutdown = int(LAST_WORDS_SECONDS)
        ending(died.done())
        server.should_exit = True
        stop.clear()
        again = asyncio.create_task(stop.wait())
        await asyncio.wait({serving, again}, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        server.force_exit = not serving.done()
        await serving
        return died.done()
    finally:
        for task in (died, stopping):
            task.cancel()


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own signal handling, which would end the process before what it serves is closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: Any, drain_seconds: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_level=logging.WARNING,
        access_log=False,
        # A client must not be able to say where it comes from.
        proxy_headers=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=max(1, int(drain_seconds)),
    )
