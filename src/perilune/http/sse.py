"""Server-sent events, and noticing that nobody listens any more.

Every way out of a stream, the client's leaving included, closes the iterator behind it: that is what aborts a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Generic, Protocol, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from perilune.errors import PeriluneError
from perilune.http.race import StoppedError, end, unless

T = TypeVar("T")


class ClientGoneError(PeriluneError):
    """The client closed its connection; nobody reads this error."""

    http_status = 499
    code = "client_gone"


class Source(Protocol):
    """Where events come from; closing it ends the work behind them."""

    async def aclose(self) -> None: ...


class EventStream(StreamingResponse):
    """Sends events as they come. Closes `events` and the `source` they are made of at the end, or as soon as the
    client is gone.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], source: Source, headers: Mapping[str, str] | None = None
    ) -> None:
        # A buffering proxy would turn a stream into one late answer.
        own = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers={**own, **(headers or {})})
        self._events, self._source = events, source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self.stream_response(send))
        leaving = asyncio.create_task(self.listen_for_disconnect(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        except OSError:
            return
        finally:
            await end(sending, leaving)
            await self._events.aclose()
            await self._source.aclose()


def data_event(content: BaseModel | str) -> bytes:
    """One unnamed event, as chat and completion streams use."""
    return b"data: " + _text(content) + b"\n\n"


def named_event(name: str, content: BaseModel | str) -> bytes:
    """One event with a name, as the Responses API uses."""
    return b"event: " + name.encode() + b"\ndata: " + _text(content) + b"\n\n"


async def unless_gone(request: Request, work: Coroutine[object, object, T]) -> T:
    """`work`'s result. If the client leaves first, `work` is cancelled and ClientGoneError raised."""
    try:
        return await unless(work, _left(request))
    except StoppedError as stopped:
        raise ClientGoneError("The client closed its connection.") from stopped


class Begun(Generic[T]):
    """A stream whose first item has been read already.

    A class, since closing an async generator that never started would run none of its code and close nothing.
    """

    def __init__(self, first: T, rest: AsyncGenerator[T, None]) -> None:
        self.first = first
        self._first: list[T] = [first]
        self._rest = rest

    def __aiter__(self) -> Begun[T]:
        return self

    async def __anext__(self) -> T:
        return self._first.pop() if self._first else await anext(self._rest)

    async def aclose(self) -> None:
        await self._rest.aclose()


async def begin(request: Request, stream: AsyncGenerator[T, None]) -> Begun[T]:
    """The same stream, once its first item is there: until then a failure can still be an HTTP status."""
    try:
        return Begun(await unless_gone(request, _first(stream)), stream)
    except BaseException:
        await stream.aclose()
        raise


async def _first(stream: AsyncGenerator[T, None]) -> T:
    return await anext(stream)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _text(content: BaseModel | str) -> bytes:
    return (content if isinstance(content, str) else content.model_dump_json(exclude_unset=True)).encode()
