"""The engines there are: found healthy or not, listed, and told apart by the models they serve."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable
from typing import Any

import httpx

from perilune.errors import nearest
from perilune.http.errors import UnknownModelError
from perilune.router.config import Place, RouterConfig
from perilune.router.legs import Legs
from perilune.router.status import Status, read_status
from perilune.router.worker import Worker

BYTES_PER_TOKEN = 4.0
_WEIGHT = 0.1
_DOWN_AFTER = 3
_MODELS_EVERY = 30
_PROBE_SECONDS = 5.0

Note = Callable[[Worker], None]


class Pool:
    """`note` is called when an engine rises or falls. Start and close inside one event loop."""

    def __init__(self, legs: Legs, config: RouterConfig, note: Note) -> None:
        self._legs, self._config, self._note = legs, config, note
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._bytes_per_token: dict[str | None, float] = {}
        self.workers: dict[str, Worker] = {}
        self.changed = asyncio.Event()

    def set_places(self, places: Iterable[Place]) -> None:
        """Takes on new engines and drops those not named: open requests there end as they may."""
        wanted = {place.url: place for place in places}
        for name, worker in list(self.workers.items()):
            if wanted.pop(worker.place.url, None) is None:
                self._watching.pop(name).cancel()
                del self.workers[name]
        for place in wanted.values():
            worker = Worker(_renamed(place, self.workers))
            worker.lost.set()
            self.workers[worker.name] = worker
            self._watching[worker.name] = asyncio.create_task(self._watch(worker))
        self._change()

    async def first_look(self, seconds: float) -> None:
        """Until every engine is up, or `seconds` have passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not all(worker.up for worker in self.workers.values()):
                    await self.wait()

    async def wait(self) -> None:
        """Until some engine rises, falls, comes or goes."""
        await self.changed.wait()

    async def close(self) -> None:
        for task in self._watching.values():
            task.cancel()
        await asyncio.gather(*self._watching.values(), return_exceptions=True)

    def of(self, model: str | None, *, decodes: bool) -> list[Worker]:
        """Engines that accept requests now. Raises UnknownModelError if engines are there and none serves `model`."""
        there = [worker for worker in self.workers.values() if worker.accepting]
        if there and not any(worker.serves(model) for worker in there):
            names = {name for worker in there for name in worker.model_names}
            raise UnknownModelError(
                f"No engine here serves the model {str(model)[:200]!r}.",
                nearest(str(model)[:200], names),
                param="model",
            )
        return [
            worker
            for worker in there
            if worker.serves(model) and (worker.decodes if decodes else worker.place.role == "prefill")
        ]

    def models(self) -> list[dict[str, Any]]:
        """Entries of /v1/models, each name once."""
        found: dict[str, dict[str, Any]] = {}
        for worker in self.workers.values():
            for entry in (worker.models or ()) if worker.up else ():
                found.setdefault(str(entry.get("id")), entry)
        return list(found.values())

    def bytes_per_token(self, model: str | None) -> float:
        """What answers have shown; until then a common value for English text."""
        return self._bytes_per_token.get(model, BYTES_PER_TOKEN)

    def learn_tokens(self, model: str | None, length: int, tokens: int) -> None:
        if length >= 64 and 0 < tokens <= length:
            before = self.bytes_per_token(model)
            self._bytes_per_token[model] = before + _WEIGHT * (length / tokens - before)

    def _change(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def _watch(self, worker: Worker) -> None:
        paths, turn = _probes(self._config), 0
        while True:
            worker.look.clear()
            alive, status, paths = await self._probe(worker, paths)
            if alive:
                worker.told(status)
                if not worker.up or turn % _MODELS_EVERY == 0:
                    with contextlib.suppress(httpx.HTTPError, TimeoutError, ValueError):
                        worker.models = await self._models(worker)
            else:
                paths = _probes(self._config)
            self._judge(worker, alive)
            turn += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.health_seconds):
                    await worker.look.wait()

    def _judge(self, worker: Worker, alive: bool | None) -> None:
        """`alive` is None for silence, which counts only if it repeats: a busy engine may be slow to say how it is."""
        if alive:
            rose = not worker.up
            worker.rises()
            if rose:
                self._note(worker)
                self._change()
            return
        worker.failures = _DOWN_AFTER if alive is False else worker.failures + 1
        if worker.up and worker.failures >= _DOWN_AFTER:
            worker.falls()
            self._note(worker)
            self._change()

    async def _probe(
        self, worker: Worker, paths: tuple[str, ...]
    ) -> tuple[bool | None, Status | None, tuple[str, ...]]:
        """Whether it answers, what it says, and the probes that are left: the first it knows is asked from then on."""
        try:
            response = await self._legs.get(worker, paths[0], min(_PROBE_SECONDS, 5 * self._config.health_seconds))
        except httpx.ConnectError:
            return False, None, paths
        except (httpx.HTTPError, TimeoutError):
            return None, None, paths
        if response.status_code == 200:
            status = read_status(response.content) if paths[0] == "/pd/status" else None
            return True, status, paths
        if response.status_code < 500 and len(paths) > 1:
            return await self._probe(worker, paths[1:])
        return False, None, paths

    async def _models(self, worker: Worker) -> tuple[dict[str, Any], ...] | None:
        response = await self._legs.get(worker, "/v1/models", _PROBE_SECONDS)
        if response.status_code != 200:
            return None
        listed = json.loads(response.content)
        entries = listed.get("data") if isinstance(listed, dict) else None
        return tuple(entry for entry in entries or () if isinstance(entry, dict))


def _probes(config: RouterConfig) -> tuple[str, ...]:
    """What to ask, the most telling first; one that an engine does not have is skipped."""
    own = ("/pd/status", "/ready") if config.contract == "perilune" else ()
    return (*own, "/health", "/v1/models")


def _renamed(place: Place, taken: dict[str, Worker]) -> Place:
    """A name no engine has, since a list that changed counts anew."""
    letter, number = place.name[0], int(place.name[1:])
    while f"{letter}{number}" in taken:
        number += 1
    return Place(f"{letter}{number}", place.url, place.role, place.port)
