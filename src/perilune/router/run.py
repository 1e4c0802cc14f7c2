"""`perilune route` as a process: first look at the engines, the lines on the terminal, serving, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
from pydantic import Field

from perilune.errors import ConfigError
from perilune.files.checked import checked
from perilune.files.strict import Strict
from perilune.files.yamlfile import read_yaml
from perilune.http.process import Say, listen, run_until, stop_signals, url_of
from perilune.pd.keys import ClusterKey
from perilune.router.app import create_app
from perilune.router.config import Place, RouterConfig, places
from perilune.router.legs import Legs
from perilune.router.metrics import RouterMetrics
from perilune.router.pool import Pool
from perilune.router.route import Router
from perilune.router.worker import Worker
from perilune.units import format_bytes

FIRST_LOOK_SECONDS = 3.0
_FILE_SECONDS = 0.5
_CONNECT_SECONDS = 5.0


class WorkersFile(Strict):
    """Engines by role; written by whoever starts and stops them."""

    prefill: list[str] = Field(default_factory=list)
    decode: list[str] = Field(default_factory=list)
    workers: list[str] = Field(default_factory=list)

    @classmethod
    def read(cls, path: str) -> tuple[Place, ...]:
        """Raises ConfigError."""
        file = checked(cls, read_yaml(Path(path)))
        return places(file.prefill, file.decode, file.workers)


def serve(config: RouterConfig, say: Say | None = None) -> int:
    """Serves until SIGINT or SIGTERM; returns 0. Raises ConfigError if it cannot start."""
    listener = listen(config.host, config.port)
    with contextlib.closing(listener):
        return asyncio.run(_serve(config, listener, say or _print))


async def _serve(config: RouterConfig, listener: socket.socket, say: Say) -> int:
    async with routing(config, say) as router:
        pool, app = router.pool, create_app(router)

        def ending(_: bool) -> None:
            say("stopping: open requests are finished first")
            app.state.draining = True

        await pool.first_look(FIRST_LOOK_SECONDS)
        for worker in pool.workers.values():
            if not worker.up:
                say(f"  {line(worker)}")
        names = ", ".join(str(entry.get("id")) for entry in pool.models()) or "no model yet"
        say(f"serving {names} from {counted(pool)} at {url_of(listener)}")
        with stop_signals() as stop:
            await run_until(app, listener, config.drain_seconds, stop, asyncio.Event(), ending)
    return 0


@contextlib.asynccontextmanager
async def routing(config: RouterConfig, say: Say) -> AsyncIterator[Router]:
    """A router whose engines are watched, for the length of the block."""
    key = ClusterKey.load(config.pd_key_file) if config.contract == "perilune" else None
    first = config.places if config.workers_file is None else WorkersFile.read(config.workers_file)
    needs_key = config.contract == "perilune" and any(place.role == "prefill" for place in first)
    if needs_key and key is None:
        raise ConfigError(
            "The router has no cluster key.", "Engines hand over only to those who have theirs.",
            "Set --pd-key-file or PERILUNE_PD_KEY to the engines' key.",
        )  # fmt: skip
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)
    async with httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=False) as client:
        legs = Legs(client, config, key)
        pool = Pool(legs, config, lambda worker: say(f"  {line(worker)}"))
        pool.set_places(first)
        following = asyncio.create_task(_follow(config.workers_file, pool, say))
        try:
            yield Router(config, legs, pool, RouterMetrics())
        finally:
            following.cancel()
            await pool.close()


async def _follow(path: str | None, pool: Pool, say: Say) -> None:
    """Takes every change of the file over; one that cannot be read is said, and the engines stay as they are."""
    seen = None
    while path is not None:
        with contextlib.suppress(OSError):
            found = os.stat(path)
            if seen not in (None, (found.st_mtime_ns, found.st_ino, found.st_size)):
                try:
                    pool.set_places(WorkersFile.read(path))
                except ConfigError as error:
                    say(str(error))
            seen = (found.st_mtime_ns, found.st_ino, found.st_size)
        await asyncio.sleep(_FILE_SECONDS)


def line(worker: Worker) -> str:
    """What the terminal says of an engine when it comes or goes."""
    head = f"{worker.name:<4} {worker.place.role:<8} {worker.place.url}"
    if not worker.up:
        return f"{head}  does not answer"
    says = worker.model_names or ["up"]
    if (status := worker.status) is not None:
        says.append(f"{status.slots.total} slots")
        if worker.place.role != "prefill" and status.cost.state_bytes:
            says.append(f"{format_bytes(status.cost.state_bytes)} of state a request")
        if status.rates.link_bytes_per_second:
            says.append(f"link {format_bytes(status.rates.link_bytes_per_second)}/s")
    return f"{head}  {', '.join(says)}"


def counted(pool: Pool) -> str:
    """`2 prefill and 1 decode engines`."""
    roles = [worker.place.role for worker in pool.workers.values()]
    split = [f"{roles.count(role)} {role}" for role in ("prefill", "decode") if role in roles]
    whole = roles.count("both")
    words = split + ([str(whole)] if whole else [])
    return f"{' and '.join(words)} engine{'' if len(roles) == 1 else 's'}"


def _print(text: str) -> None:
    print(text, flush=True)
