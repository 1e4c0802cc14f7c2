"""Starting, watching and stopping a server: `serve` holds a process from first check to exit status."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from perilune.engine.client import AsyncEngine
from perilune.engine.config import EngineConfig
from perilune.http.process import LAST_WORDS_SECONDS, Say, listen, run_until, stop_signals, url_of
from perilune.server.app import create_app
from perilune.server.config import ServerConfig
from perilune.server.front import Front

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


async def _serve(engine_config: EngineConfig, server_config: ServerConfig, listener: socket.socket, say: Say) -> int:
    say(f"loading {engine_config.model}")
    with stop_signals() as stop:
        starting = asyncio.create_task(AsyncEngine.start(engine_config))
        if not await _first(starting, stop):
            return 0
        engine = starting.result()
        try:
            app = create_app(engine, server_config)
            front: Front = app.state.front

            def ending(dead: bool) -> None:
                say("the engine process ended; stopping" if dead else "stopping: open requests are finished first")
                front.drain()

            for line in engine.because:
                say(f"  {line}")
            say(f"serving {', '.join(front.names)} at {url_of(listener)}")
            dead = await run_until(app, listener, server_config.drain_seconds, stop, engine.died, ending)
            if not dead:
                await _settle(engine, server_config.drain_seconds, stop)
            return int(dead)
        finally:
            # Whatever state the engine is in, the server exits.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS if engine.alive else LAST_WORDS_SECONDS):
                    await engine.close()


async def _settle(engine: AsyncEngine, seconds: float, stop: asyncio.Event) -> None:
    """What other engines still read here is theirs for `seconds`; another stop does not wait for them."""
    settling, stopping = asyncio.create_task(engine.settle()), asyncio.create_task(stop.wait())
    await asyncio.wait({settling, stopping}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in (settling, stopping):
        task.cancel()
    await asyncio.gather(settling, stopping, return_exceptions=True)


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


def _print(line: str) -> None:
    print(line, flush=True)
