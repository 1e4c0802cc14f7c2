"""The server's end of the engine: starts the process, sends requests, hands out deltas. Imports no torch.

Every open request ends with a finish reason or an error, whatever happens to the engine process.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import shutil
import sys
import tempfile
import uuid
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from perilune.engine.config import EngineConfig, plan_engine
from perilune.engine.limits import Limits
from perilune.engine.messages import (
    Abort,
    AskStats,
    AskStatus,
    AskView,
    Fatal,
    FromEngine,
    Ready,
    Shutdown,
    Stats,
    Status,
    Submit,
    ToEngine,
    TokenEvent,
    Tokens,
    WireError,
    Withdraw,
)
from perilune.engine.output import AnswerStream
from perilune.engine.request import Handover, SamplingParams, TextDelta
from perilune.engine.view import View
from perilune.errors import EngineDeadError, OverloadedError, PeriluneError, RequestError
from perilune.host.cores import WAITING
from perilune.models.checkpoint import Checkpoint
from perilune.models.hub import resolve
from perilune.text.tokenizer import load_tokenizer

CLOSE_SECONDS = 5.0
SETTLE_SECONDS = 0.1


class AsyncEngine:
    """Use `await AsyncEngine.start(config)`. One event loop owns it."""

    worker = "perilune.engine.worker"  # the module that runs as the process

    def __init__(self, config: EngineConfig, path: Path) -> None:
        """Reads what the front needs (spec, tokenizer, limits); the process is started by `start`."""
        checkpoint = Checkpoint.open(path)
        checkpoint.check()
        self.config, self.path, self.spec = config, path, checkpoint.spec
        self.plan = plan_engine(config, self.spec)
        self.limits = Limits.of(self.spec, self.plan)
        self.tokenizer = load_tokenizer(path)
        self.because = self.plan.because
        self.died = asyncio.Event()
        self.death: PeriluneError | None = None
        self._encode = msgspec.msgpack.Encoder().encode
        self._names: set[str] = set()
        self._serials = itertools.count()
        self._queues: dict[str, asyncio.Queue[TokenEvent]] = {}
        self._stats: list[asyncio.Future[dict[str, int | float | str]]] = []
        self._views: list[asyncio.Future[View]] = []
        self._status: list[asyncio.Future[dict[str, Any] | None]] = []
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._closing = False

    @classmethod
    async def start(cls, config: EngineConfig) -> AsyncEngine:
        """Resolve the model, start the process, wait until it is loaded. Raises PeriluneError with the reason."""
        path = await asyncio.to_thread(resolve, config.model)
        engine = cls(config, path)
        await engine._spawn()
        try:
            engine.because = (await engine._ready).because
        except BaseException:
            await engine.close()
            raise
        return engine

    async def _spawn(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="perilune-")  # 0700: the socket in it is private
        endpoint = f"ipc://{self._folder}/engine"
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(endpoint)
        environment = {**WAITING, **os.environ}
        if self.config.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.config.threads)
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", self.worker, endpoint, str(os.getpid())), env=environment
        )
        self._socket.send(self._encode({"config": self.config, "path": str(self.path)}))
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._watch())]

    @property
    def alive(self) -> bool:
        return self.death is None and not self._closing

    async def generate(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        request_id: str | None = None,
        *,
        salt: bytes = b"",
        marks: tuple[int, ...] = (),
        handover: Handover | None = None,
    ) -> AsyncGenerator[TextDelta, None]:
        """Deltas of all `params.n` sequences, told apart by `index`; each ends with one that has a finish reason.

        The prefix cache is shared with requests of the same `salt` only; `marks` are places in the prompt that others
        will go on from, in tokens. With `handover` the prompt is read here for another engine, or was read by one.
        Closing the iterator aborts what is still open. Raises before the first delta RequestError (also for a
        `request_id` that is open), ContextLengthError, OverloadedError, or what `Handover.check` does; EngineDeadError
        at any time.
        """
        self._require_alive()
        self.limits.check(prompt_ids, params)
        if len(self._queues) + params.n > self.config.max_waiting + self.config.max_running:
            raise OverloadedError(
                "The queue is full.", f"{len(self._queues)} sequences are open.", "Retry later, or raise --max-waiting."
            )
        name = request_id or uuid.uuid4().hex
        if name in self._names:
            raise RequestError(f"The request id {name!r} is in use.", "", "Choose another.", param="request_id")
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        queue: asyncio.Queue[TokenEvent] = asyncio.Queue()
        answers: dict[str, AnswerStream] = {}
        self._names.add(name)
        # a name may come back while the engine still sends tokens of the request that had it
        serial = next(self._serials)
        try:
            for index in range(params.n):
                sequence = f"{name}/{serial}/{index}"
                answers[sequence] = AnswerStream(self.tokenizer, params, len(prompt_ids), index)
                self._queues[sequence] = queue
                self._send(Submit(sequence, tuple(prompt_ids), params, seed, index, salt, marks, handover))
            while answers:
                event = await queue.get()
                if event.error is not None:
                    answers.pop(event.id, None)
                    raise event.error.error()
                answer = answers.get(event.id)
                if answer is None:
                    continue  # it met a stop string; the engine had one more token under way
                delta = answer.push(event)
                if delta.finish_reason is not None:
                    del answers[event.id]
                    self._queues.pop(event.id, None)
                    if event.finish_reason is None:
                        self._send(Abort(event.id))
                yield delta
        finally:
            self._names.discard(name)
            for sequence in answers:
                self._queues.pop(sequence, None)
                if self.alive:
                    self._send(Abort(sequence))

    async def stats(self) -> dict[str, int | float | str]:
        """The engine's counters, as `EngineCore.stats` names them. Raises EngineDeadError."""
        self._require_alive()
        answer: asyncio.Future[dict[str, int | float | str]] = asyncio.get_running_loop().create_future()
        self._stats.append(answer)
        self._send(AskStats())
        return await answer

    async def view(self) -> View:
        """The engine at this moment, request by request. Raises EngineDeadError."""
        self._require_alive()
        answer: asyncio.Future[View] = asyncio.get_running_loop().create_future()
        self._views.append(answer)
        self._send(AskView())
        return await answer

    async def status(self) -> dict[str, Any] | None:
        """What a router wants to know, as `EngineCore.status`. Raises EngineDeadError."""
        self._require_alive()
        answer: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()
        self._status.append(answer)
        self._send(AskStatus())
        return await answer

    def withdraw(self, ticket: str, reason: str) -> None:
        """Nobody will use `ticket`: the engine that gave it, this or another, is told, and can free what it keeps."""
        if self.alive:
            self._send(Withdraw(ticket, reason))

    async def settle(self) -> None:
        """Until no other engine reads or writes this one's cache. Returns at once if the engine is dead."""
        with contextlib.suppress(PeriluneError):
            while (status := await self.status()) and (status["queue"]["lending"] or status["queue"]["receiving"]):
                await asyncio.sleep(SETTLE_SECONDS)

    async def close(self) -> None:
        """Stop the process, kindly and then firmly; open requests get an error."""
        if self._closing:
            return
        self._closing = True
        self._fail(EngineDeadError("The server is shutting down."))
        with contextlib.suppress(zmq.ZMQError):
            self._send(Shutdown())
        try:
            await asyncio.wait_for(self.process.wait(), CLOSE_SECONDS)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        for task in self._tasks:
            task.cancel()
        self._socket.close()
        self._context.term()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _send(self, message: ToEngine) -> None:
        """Queued at once and in order, never awaited: with nobody at the other end, a send would wait for ever."""
        self._socket.send(self._encode(message))

    async def _read(self) -> None:
        decode = msgspec.msgpack.Decoder(FromEngine).decode
        while True:
            message = decode(await self._socket.recv())
            if isinstance(message, Tokens):
                for event in message.events:
                    if (queue := self._queues.get(event.id)) is not None:
                        queue.put_nowait(event)
            elif isinstance(message, Stats):
                if self._stats and not (answer := self._stats.pop(0)).done():
                    answer.set_result(message.values)
            elif isinstance(message, View):
                if self._views and not (view := self._views.pop(0)).done():
                    view.set_result(message)
            elif isinstance(message, Status):
                if self._status and not (asked := self._status.pop(0)).done():
                    asked.set_result(message.values)
            elif isinstance(message, Ready):
                self._ready.set_result(message)
            else:
                assert isinstance(message, Fatal)
                self._fail(message.error.error())

    async def _watch(self) -> None:
        """The process ended: whoever waits is told, nothing waits for ever."""
        status = await self.process.wait()
        await asyncio.sleep(0.05)  # a last message with the reason may still be in the socket
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        self._fail(
            EngineDeadError(
                "The engine process ended.",
                f"It stopped with {how}; its last words are in the server's log.",
                "Out of memory is the usual reason: see `perilune plan`, then lower --max-context or --max-running.",
            )
        )

    def _fail(self, error: PeriluneError) -> None:
        if self.death is None:
            self.death = error
        self.died.set()
        if not self._ready.done():
            self._ready.set_exception(self.death)
        waiting: list[asyncio.Future[Any]] = [*self._stats, *self._views, *self._status]
        for answer in waiting:
            if not answer.done():
                answer.set_exception(self._dead())
        self._stats.clear()
        self._views.clear()
        self._status.clear()
        for sequence, queue in self._queues.items():
            queue.put_nowait(TokenEvent(sequence, finish_reason="error", error=WireError.of(self._dead())))
        self._queues.clear()

    def _require_alive(self) -> None:
        if not self.alive:
            raise self._dead()

    def _dead(self) -> PeriluneError:
        if isinstance(self.death, EngineDeadError):
            return self.death
        return EngineDeadError("The engine is not running.", str(self.death or "It was closed."), "Restart the server.")
