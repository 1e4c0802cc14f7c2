"""One request from its intended start to its last byte, as a Record. Never raises for what a server does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

import h11
import msgspec

from perilune.bench.load.events import BadStreamError, Delta, EventParser
from perilune.bench.load.http import Address, Connection
from perilune.bench.load.record import Record, compact


class Goal(msgspec.Struct, frozen=True):
    """Where requests go, and what all of them have in common."""

    url: str
    model: str
    endpoint: str = "completions"
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    body: dict[str, Any] = msgspec.field(default_factory=dict)
    timeout: float = 600.0
    keep_text: bool = False


class Client:
    """Keeps connections open between requests, so that setting one up is not measured as the server's time."""

    def __init__(self, goal: Goal, origin: float) -> None:
        self._goal, self._origin = goal, origin
        self._address = Address.of(goal.url)
        self._idle: list[Connection] = []

    def now(self) -> float:
        """Seconds from the start of the run."""
        return time.monotonic() - self._origin

    async def ask(self, record: Record, what: Mapping[str, Any], max_tokens: int) -> Record:
        """Sends `what` (`prompt` or `messages`) and fills `record` with what came and when."""
        body = {
            "model": self._goal.model, **what, "max_tokens": max_tokens, **self._goal.body,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        path = "/v1/chat/completions" if self._goal.endpoint == "chat" else "/v1/completions"
        data = compact(body)
        connection = self._connection()
        try:
            async with asyncio.timeout(self._goal.timeout):
                for attempt in (1, 2):
                    try:
                        await self._exchange(connection, path, data, record)
                        break
                    except (OSError, h11.RemoteProtocolError):
                        # A kept connection may have been closed by the server while idle: that is no failure of it.
                        if attempt == 2 or record.connected is not None or record.status is not None:
                            raise
                        connection.close()
        except TimeoutError:
            record.error = f"timeout: no end after {self._goal.timeout:g} s"
        except BadStreamError as error:
            record.error = f"stream: {error}"
        except h11.ProtocolError as error:
            record.error = f"cut: {error}"
        except OSError as error:
            record.error = f"connection: {error or type(error).__name__}"
        finally:
            if connection.open and record.error is None:
                self._idle.append(connection)
            else:
                connection.close()
        record.end = self.now() if record.end is None else record.end
        return record

    def close(self) -> None:
        """Closes every connection."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
            connection.close()
        return Connection(self._address, self._goal.headers)

    async def _exchange(self, connection: Connection, path: str, data: bytes, record: Record) -> None:
        if not connection.open:
            record.sent = self.now()
            record.connected = await connection.connect() - self._origin
        record.sent = await connection.send("POST", path, data) - self._origin
        parser, whole, said, done = EventParser(), bytearray(), list[str](), False
        async for at, piece in connection.receive():
            at -= self._origin
            if isinstance(piece, int):
                record.status = piece
                continue
            if record.first_byte is None:
                record.first_byte = at
            if record.status != 200:
                whole += piece
                continue
            for delta in parser.feed(piece):
                done = done or delta.done
                note(record, delta, at)
                said += [delta.answer] if self._goal.keep_text else []
                record.end = at
        if record.status != 200:
            record.error = f"status {record.status}: {_reason(bytes(whole))}"
        elif record.finish is None and not done:
            record.error = "cut: the stream ended without a finish reason"
        elif record.first_token is None and record.output_tokens is None:
            record.error = "empty: no token came"
        if self._goal.keep_text:
            record.text = "".join(said)


def note(record: Record, delta: Delta, at: float) -> None:
    """Adds what `delta` says, seen at `at`."""
    if delta.tokens:
        record.arrivals.append(round(at, 6))
        if record.first_token is None:
            record.first_token = at
        if delta.reasoning and record.first_reasoning is None:
            record.first_reasoning = at
        if (delta.answer or delta.calls) and record.first_answer is None:
            record.first_answer = at
    record.finish = delta.finish or record.finish
    if delta.usage is not None:
        record.input_tokens = _count(delta.usage, "prompt_tokens", record.input_tokens)
        record.output_tokens = _count(delta.usage, "completion_tokens", record.output_tokens)
        record.cached_tokens = _count(delta.usage.get("prompt_tokens_details"), "cached_tokens", record.cached_tokens)
        details = delta.usage.get("completion_tokens_details")
        record.reasoning_tokens = _count(details, "reasoning_tokens", record.reasoning_tokens)


def _count(usage: Any, key: str, otherwise: int | None) -> int | None:
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else otherwise


def _reason(body: bytes) -> str:
    try:
        found = json.loads(body)
        error = found.get("error", found) if isinstance(found, dict) else found
        return str(error.get("message", error) if isinstance(error, dict) else error)[:200]
    except ValueError:
        return body[:200].decode(errors="replace")
