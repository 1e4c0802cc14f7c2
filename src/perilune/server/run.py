"""Starting, watching and stopping a server: `serve` holds a process from first check to exit status."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from perilune.engine.client import AsyncEngine
from perilune.engine.config import EngineConfig
from perilune.errors import ConfigError
from perilune.server.app import create_app
from perilune.server.config import ServerConfig
from perilune.server.front import Front

Say = Callable[[str], None]

LAST_WORDS_SECONDS = 2.0
"""After the engine's death: how long open requests have to receive their error."""

CLOSE_SECONDS = 10.0
"""More than a living engine takes to stop, gently or by force."""


def serve(engine_config: EngineConfig, server_config: ServerConfig, say: Say | None = None) -> int:
    """Serves until SIGINT or SIGTERM (returns 0) or until the engine process ends (returns 1).

    Takes the port before it loads the model, so that a taken port is known at once. `say` gets the lines meant for
    the terminal. Raises PeriluneError if the server cannot start.
    """
    listener = listen(server_config.host, server_config.port)
    with contextlib.closing(listener):
        return asyncio.run(_serve(engine_config, server_config, listener, say or _print))


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, not listening yet: until the model is loaded, connections are refused. Raises ConfigError."""
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


async def _serve(engine_config: EngineConfig, server_config: ServerConfig, listener: socket.socket, say: Say) -> int:
    say(f"loading {engine_config.model}")
    with _stop_signals() as stop:
        starting = asyncio.create_task(AsyncEngine.start(engine_config))
        if not await _first(starting, stop):
            return 0
        engine = starting.result()
        try:
            app = create_app(engine, server_config)
            front: Front = app.state.front
            for line in engine.because:
                say(f"  {line}")
            say(f"serving {', '.join(front.names)} at {_url(listener)}")
            return await _run(_Uvicorn(_uvicorn_config(app, server_config)), front, listener, stop, say)
        finally:
            # Whatever state the engine is in, the server exits.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS if engine.alive else LAST_WORDS_SECONDS):
                    await engine.close()


async def _run(server: _Uvicorn, front: Front, listener: socket.socket, stop: asyncio.Event, say: Say) -> int:
    """Runs until asked to stop or the engine ends; a second signal does not wait for open requests."""
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    died = asyncio.create_task(front.engine.died.wait())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, died, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if died.done():
            say("the engine process ended; stopping")
            server.config.timeout_graceful_shutdown = int(LAST_WORDS_SECONDS)
            status = 1
        else:
            say("stopping: open requests are finished first")
            status = 0
        front.drain()
        server.should_exit = True
        stop.clear()
        again = asyncio.create_task(stop.wait())
        await asyncio.wait({serving, again}, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        server.force_exit = not serving.done()
        await serving
        return 1 if died.done() else status
    finally:
        for task in (died, stopping):
            task.cancel()


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own signal handling, which would end the process before the engine is closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _uvicorn_config(app: Any, config: ServerConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_level=logging.WARNING,
        access_log=False,
        # A client must not be able to say where it comes from.
        proxy_headers=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=max(1, int(config.drain_seconds)),
    )


@contextlib.contextmanager
def _stop_signals() -> Iterator[asyncio.Event]:
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


async def _first(task: asyncio.Task[AsyncEngine], stop: asyncio.Event) -> bool:
    """Whether `task` ended before `stop` was set; if not, it is cancelled."""
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        stopping.cancel()
        return True
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return False


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _print(line: str) -> None:
    print(line, flush=True)
