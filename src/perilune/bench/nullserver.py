"""A server that computes nothing and answers by the clock: the truth that measurements are checked against.

Times are exact by schedule: token i of an answer is written `ttft + i·itl` seconds after its request was read, or as
soon after as this process is awake; `told` has when that was, by the monotonic clock, for each answer. It counts no
text: a prompt of ids has as many tokens as ids, any other one as many as words. With `slots`, requests beyond so many
wait, as in an engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import h11

from perilune.bench.load.clock import run


@dataclass(frozen=True)
class Model:
    """Seconds to the first token and between tokens. With `stall_at`, nothing is written for `stall` seconds from when
    that request, counted from 0, was read."""

    ttft: float = 0.02
    itl: float = 0.005
    slots: int | None = None
    stall_at: int | None = None
    stall: float = 0.0
    reasoning: int = 0


@dataclass(frozen=True)
class Told:
    """One answer: the first token id of its prompt, when the request was read, when each token was written."""

    first: int | None
    read: float
    written: list[float] = field(default_factory=list)


class NullServer:
    """`async with NullServer(Model()) as server`: listens on a free port of the loopback, or on `port`."""

    def __init__(self, model: Model, port: int = 0) -> None:
        self._model, self._port = model, port
        self._slots = asyncio.Semaphore(model.slots or 1_000_000)
        self._silent_until = 0.0
        self.requests = 0
        self.told: list[Told] = []
        self.url = ""

    async def __aenter__(self) -> NullServer:
        self._server = await asyncio.start_server(
            self._connection, "127.0.0.1", self._port, limit=1 << 22, backlog=4096
        )
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        machine, target, body, read = h11.Connection(h11.SERVER), b"", bytearray(), 0.0
        try:
            while True:
                event = machine.next_event()
                if event is h11.NEED_DATA:
                    data = await reader.read(1 << 18)
                    read = time.monotonic()
                    machine.receive_data(data)
                elif isinstance(event, h11.Request):
                    target = event.target
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    await self._answer(machine, writer, target, bytes(body), read)
                    body.clear()
                    machine.start_next_cycle()
                else:
                    return
        except (OSError, h11.ProtocolError):
            return
        finally:
            writer.close()

    async def _answer(
        self, machine: h11.Connection, writer: asyncio.StreamWriter, target: bytes, body: bytes, read: float
    ) -> None:
        if target.endswith(b"/models"):
            listed = {"object": "list", "data": [{"id": "null", "object": "model"}]}
            return _whole(machine, writer, 200, json.dumps(listed).encode())
        if target.endswith(b"/metrics"):
            return _whole(machine, writer, 200, b"")
        if self.requests == self._model.stall_at:
            self._silent_until = read + self._model.stall
        self.requests += 1
        asked = json.loads(body)
        async with self._slots:
            begin = time.monotonic() if self._model.slots else read
            prompt = asked.get("prompt")
            told = Told(prompt[0] if prompt and isinstance(prompt, list) else None, begin)
            self.told.append(told)
            await self._stream(machine, writer, asked, told, b"chat" in target)

    async def _stream(
        self, machine: h11.Connection, writer: asyncio.StreamWriter, asked: dict[str, Any], told: Told, chat: bool
    ) -> None:
        model, count = self._model, int(asked.get("max_tokens", 16))
        head = h11.Response(
            status_code=200, headers=[("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")]
        )
        writer.write(machine.send(head) or b"")
        if chat:
            writer.write(_chunk({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}))
        for i in range(count):
            key = "reasoning_content" if i < model.reasoning else "content"
            said: dict[str, Any] = {"delta": {key: " x"}} if chat else {"text": " x"}
            event = _chunk({"choices": [{"index": 0, **said, "finish_reason": "length" if i == count - 1 else None}]})
            due = max(self._silent_until, told.read + model.ttft + i * model.itl)
            if (pause := due - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            told.written.append(time.monotonic())
            writer.write(event)
            await writer.drain()
        tokens = _tokens(asked)
        usage = {"prompt_tokens": tokens, "completion_tokens": count, "total_tokens": tokens + count}
        writer.write(_chunk({"choices": [], "usage": usage}) + b"e\r\ndata: [DONE]\n\n\r\n")
        writer.write(machine.send(h11.EndOfMessage()) or b"")
        await writer.drain()


@dataclass
class Remote:
    """A null server in a process of its own. `told` asks it what it has answered so far."""

    url: str
    pipe: Connection

    def told(self) -> list[Told]:
        self.pipe.send("told")
        found: list[Told] = self.pipe.recv()
        return found


@contextlib.contextmanager
def apart(model: Model) -> Iterator[Remote]:
    """A null server in another process, so that it takes no turn from the client's."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_serve, args=(theirs, model), daemon=True)
    child.start()
    theirs.close()
    try:
        yield Remote(ours.recv(), ours)
    finally:
        ours.close()  # which it takes as the end
        child.join(5)
        if child.is_alive():
            child.kill()


def _serve(pipe: Connection, model: Model) -> None:
    async def serve() -> None:
        loop, end = asyncio.get_running_loop(), asyncio.Event()
        async with NullServer(model) as server:

            def asked() -> None:
                try:
                    pipe.recv()
                    pipe.send(server.told)
                except (EOFError, OSError):
                    loop.remove_reader(pipe.fileno())
                    end.set()

            pipe.send(server.url)
            loop.add_reader(pipe.fileno(), asked)
            await end.wait()

    gc.disable()  # it lives for seconds, and a collection would be lateness
    run(serve())


def _tokens(asked: dict[str, Any]) -> int:
    prompt = asked.get("prompt")
    if isinstance(prompt, list):
        return len(prompt)
    text = prompt if isinstance(prompt, str) else " ".join(str(m.get("content")) for m in asked.get("messages", []))
    return len(text.split())


def _chunk(value: dict[str, Any]) -> bytes:
    """An event as a chunk of the body. Not by h11: many tokens fall due at one moment, and the last would be late."""
    data = b"data: " + json.dumps(value).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def _whole(machine: h11.Connection, writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    writer.write(machine.send(h11.Response(status_code=status, headers=headers)) or b"")
    writer.write((machine.send(h11.Data(data=body)) or b"") + (machine.send(h11.EndOfMessage()) or b""))
