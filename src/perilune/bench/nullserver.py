"""A server that computes nothing and answers by the clock: the truth that measurements are checked against.

Times are exact by schedule: token i of an answer is written `ttft + i·itl` seconds after its request was read, or as
soon after as this process is awake; `written` has when, by the monotonic clock, for each answer. It counts no text: a
prompt of ids has as many tokens as ids, any other one as many as words. With `slots`, requests beyond so many wait, as
in an engine.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import h11


@dataclass(frozen=True)
class Model:
    """Seconds to the first token, seconds between tokens, seconds of an outage every so many seconds."""

    ttft: float = 0.02
    itl: float = 0.005
    slots: int | None = None
    stall_at: float | None = None
    stall: float = 0.0
    reasoning: int = 0


class NullServer:
    """`async with NullServer(Model()) as server`: listens on a free port of the loopback, or on `port`."""

    def __init__(self, model: Model, port: int = 0) -> None:
        self._model, self._port = model, port
        self._slots = asyncio.Semaphore(model.slots or 1_000_000)
        self._began = 0.0
        self.requests = 0
        self.written: list[list[float]] = []
        self.url = ""

    async def __aenter__(self) -> NullServer:
        self._began = time.monotonic()
        self._server = await asyncio.start_server(
            self._connection, "127.0.0.1", self._port, limit=1 << 22, backlog=4096
        )
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        machine, target, body = h11.Connection(h11.SERVER), b"", bytearray()
        try:
            while True:
                event = machine.next_event()
                if event is h11.NEED_DATA:
                    machine.receive_data(await reader.read(1 << 18))
                elif isinstance(event, h11.Request):
                    target = event.target
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    await self._answer(machine, writer, target, bytes(body))
                    body.clear()
                    machine.start_next_cycle()
                else:
                    return
        except (OSError, h11.ProtocolError):
            return
        finally:
            writer.close()

    async def _answer(self, machine: h11.Connection, writer: asyncio.StreamWriter, target: bytes, body: bytes) -> None:
        read = time.monotonic()
        if target.endswith(b"/models"):
            listed = {"object": "list", "data": [{"id": "null", "object": "model"}]}
            return _whole(machine, writer, 200, json.dumps(listed).encode())
        if target.endswith(b"/metrics"):
            return _whole(machine, writer, 200, b"")
        self.requests += 1
        asked = json.loads(body)
        async with self._slots:
            begin = time.monotonic() if self._model.slots else read
            await self._stream(machine, writer, asked, begin, b"chat" in target)

    async def _stream(
        self, machine: h11.Connection, writer: asyncio.StreamWriter, asked: dict[str, Any], begin: float, chat: bool
    ) -> None:
        model, count = self._model, int(asked.get("max_tokens", 16))
        head = h11.Response(
            status_code=200, headers=[("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")]
        )
        writer.write(machine.send(head) or b"")
        if chat:
            _event(machine, writer, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        times: list[float] = []
        self.written.append(times)
        for i in range(count):
            due = self._unstalled(begin + model.ttft + i * model.itl)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            finish = "length" if i == count - 1 else None
            key = "reasoning_content" if i < model.reasoning else "content"
            said: dict[str, Any] = {"delta": {key: " x"}} if chat else {"text": " x"}
            times.append(time.monotonic())
            _event(machine, writer, {"choices": [{"index": 0, **said, "finish_reason": finish}]})
            await writer.drain()
        tokens = _tokens(asked)
        usage = {"prompt_tokens": tokens, "completion_tokens": count, "total_tokens": tokens + count}
        _event(machine, writer, {"choices": [], "usage": usage})
        writer.write(machine.send(h11.Data(data=b"data: [DONE]\n\n")) or b"")
        writer.write(machine.send(h11.EndOfMessage()) or b"")
        await writer.drain()

    def _unstalled(self, due: float) -> float:
        """`due`, or the end of the outage it falls into."""
        if self._model.stall_at is None:
            return due
        begin = self._began + self._model.stall_at
        return begin + self._model.stall if begin <= due < begin + self._model.stall else due


def _tokens(asked: dict[str, Any]) -> int:
    prompt = asked.get("prompt")
    if isinstance(prompt, list):
        return len(prompt)
    text = prompt if isinstance(prompt, str) else " ".join(str(m.get("content")) for m in asked.get("messages", []))
    return len(text.split())


def _event(machine: h11.Connection, writer: asyncio.StreamWriter, value: dict[str, Any]) -> None:
    writer.write(machine.send(h11.Data(data=b"data: " + json.dumps(value).encode() + b"\n\n")) or b"")


def _whole(machine: h11.Connection, writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    writer.write(machine.send(h11.Response(status_code=status, headers=headers)) or b"")
    writer.write((machine.send(h11.Data(data=body)) or b"") + (machine.send(h11.EndOfMessage()) or b""))
