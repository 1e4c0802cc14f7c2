"""One request to one engine: sent, judged, and read until its first event. What fails before may be tried again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from perilune.http.race import StoppedError, unless
from perilune.pd.keys import STAMP_HEADER, ClusterKey
from perilune.router.ask import Ask, encode
from perilune.router.config import RouterConfig
from perilune.router.errors import Answer, Leg, LegError, RefusedError, StreamBrokenError
from perilune.router.events import Events, error_in
from perilune.router.worker import Worker

T = TypeVar("T")

ELSEWHERE = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses that say more about the engine than about the request."""
_TELL_SECONDS = 5.0
_AFTER_SECONDS = 2.0
PASSED = ("content-type", "retry-after", "x-request-id", "x-perilune-prefill")


@dataclass
class Opened:
    """An answer whose first event, or whole body, is there. Close it, whatever happens: that ends the work behind it.

    `outcome` is "cancelled" until the answer was whole: "ok", "error" if the engine said so itself, or "broken".
    """

    worker: Worker
    status: int
    headers: dict[str, str]
    first: bytes
    events: Events | None
    rest: AsyncIterator[bytes] | None
    stall: float
    stack: AsyncExitStack
    outcome: str = "cancelled"

    async def relay(self) -> AsyncGenerator[bytes, None]:
        """Whole events as they come. Raises StreamBrokenError if the stream ends before it said so."""
        assert self.events is not None
        assert self.rest is not None
        whole = self.first
        try:
            while True:
                self.outcome = self.events.ended or self.outcome
                if whole:
                    yield whole
                # What follows the end is passed on too (`response.failed` after an error), if it comes soon.
                async with asyncio.timeout(_AFTER_SECONDS if self.events.ended else self.stall):
                    data = await anext(self.rest)
                whole = self.events.feed(data)
        except (httpx.HTTPError, StopAsyncIteration, TimeoutError) as error:
            if not self.events.ended:
                silent = isinstance(error, TimeoutError)
                why = f"Its engine said nothing for {self.stall:g} s." if silent else "Its engine was lost."
                raise self._broken(why) from error

    def _broken(self, why: str) -> StreamBrokenError:
        self.outcome = "broken"
        self.worker.suspect()
        return StreamBrokenError("The answer was cut off.", why, "Send the request again.")

    async def aclose(self) -> None:
        await self.stack.aclose()


class Legs:
    """Sends legs. `key` stamps what goes to perilune's engines."""

    def __init__(self, client: httpx.AsyncClient, config: RouterConfig, key: ClusterKey | None) -> None:
        self._client, self._config, self._key = client, config, key
        self._telling: set[asyncio.Task[None]] = set()

    async def read(self, leg: Leg, worker: Worker, ask: Ask, body: Mapping[str, Any], deadline: float) -> Answer:
        """A whole answer with status 200. Raises LegError, RefusedError."""

        async def exchange() -> Answer:
            with worker.holding():
                return _whole(await self._post(worker, ask.path, encode(body), ask))

        answer = await self._unless_lost(leg, worker, exchange(), deadline)
        judge(leg, worker, answer, self._config.worker_key is not None)
        return answer

    async def open(self, worker: Worker, ask: Ask, body: Mapping[str, Any], deadline: float) -> Opened:
        """The client's answer, up to its first event or, not streamed, whole. Raises LegError, RefusedError."""
        async with AsyncExitStack() as stack:
            stack.enter_context(worker.holding())
            opened = await self._unless_lost("decode", worker, self._open(worker, ask, encode(body), stack), deadline)
            opened.stack = stack.pop_all()
            return opened

    def tell_later(self, worker: Worker, path: str, body: Mapping[str, Any]) -> None:
        """Says something nobody waits for an answer to."""
        task = asyncio.create_task(self._tell(worker, path, encode(body)))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self, worker: Worker, path: str, content: bytes) -> None:
        try:
            async with asyncio.timeout(_TELL_SECONDS):
                await self._post(worker, path, content, None)
        except (httpx.HTTPError, TimeoutError):
            worker.suspect()

    async def get(self, worker: Worker, path: str, seconds: float) -> httpx.Response:
        """Raises httpx.HTTPError, TimeoutError."""
        async with asyncio.timeout(seconds):
            return await self._client.get(worker.place.url + path, headers=self._headers("GET", path, b"", None))

    async def _open(self, worker: Worker, ask: Ask, content: bytes, stack: AsyncExitStack) -> Opened:
        headers = self._headers("POST", ask.path, content, ask)
        request = self._client.build_request("POST", worker.place.url + ask.path, content=content, headers=headers)
        response = await self._client.send(request, stream=True)
        stack.push_async_callback(response.aclose)
        streamed = response.headers.get("content-type", "").startswith("text/event-stream")
        if response.status_code != 200 or not streamed:
            await response.aread()
            answer = _whole(response)
            judge("decode", worker, answer, self._config.worker_key is not None)
            return Opened(worker, 200, answer.headers, answer.body, None, None, 0.0, stack, outcome="ok")
        events, rest = Events(), response.aiter_raw()
        first = await _first(events, rest)
        if (detail := error_in(first)) is not None:
            code = detail.code or ""
            status = int(code) if len(code) == 3 and code.isdigit() and code[0] in "45" else 500
            body = json.dumps({"error": detail.model_dump()}).encode()
            judge("decode", worker, Answer(status, {"content-type": "application/json"}, body), False)
        headers_out = {name: value for name in PASSED if (value := response.headers.get(name)) is not None}
        return Opened(worker, 200, headers_out, first, events, rest, self._config.stall_seconds, stack)

    async def _post(self, worker: Worker, path: str, content: bytes, ask: Ask | None) -> httpx.Response:
        headers = self._headers("POST", path, content, ask)
        return await self._client.post(worker.place.url + path, content=content, headers=headers)

    def _headers(self, method: str, path: str, content: bytes, ask: Ask | None) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity"}
        if content:
            headers["Content-Type"] = "application/json"
        if self._config.worker_key is not None:
            headers["Authorization"] = f"Bearer {self._config.worker_key}"
        elif ask is not None and ask.authorization is not None:
            headers["Authorization"] = ask.authorization
        if ask is not None and ask.request_id:
            headers["X-Request-Id"] = ask.request_id
        if self._key is not None and self._config.contract == "perilune":
            headers[STAMP_HEADER] = self._key.stamp(method, path, content)
        return headers

    async def _unless_lost(self, leg: Leg, worker: Worker, work: Coroutine[Any, Any, T], deadline: float) -> T:
        """`work`'s result, unless the engine is found to be gone meanwhile, or the deadline passes."""
        seconds = max(0.0, deadline - asyncio.get_running_loop().time())
        try:
            return await unless(work, worker.lost.wait(), seconds)
        except StoppedError as error:
            raise LegError(leg, worker.name, "lost") from error
        except TimeoutError as error:
            worker.suspect()
            raise LegError(leg, worker.name, "timeout") from error
        except (httpx.HTTPError, StopAsyncIteration) as error:
            worker.suspect()
            raise LegError(leg, worker.name, "refused" if isinstance(error, httpx.ConnectError) else "cut") from error


async def _first(events: Events, rest: AsyncIterator[bytes]) -> bytes:
    """Up to and with the first event that says anything; comments that keep connections open do not."""
    first = b""
    async for data in rest:
        first += events.feed(data)
        if first.startswith(b"data:") or b"\ndata:" in first:
            return first
    raise httpx.RemoteProtocolError("The stream ended before its first event.")


def _whole(response: httpx.Response) -> Answer:
    headers = {name: value for name in PASSED if (value := response.headers.get(name)) is not None}
    return Answer(response.status_code, headers, response.content)


def judge(leg: Leg, worker: Worker, answer: Answer, own_key: bool) -> None:
    """Raises LegError for what another engine might do better, RefusedError for what is the client's.

    `own_key`: the router authenticates itself, so that a refusal of the key is not the client's.
    """
    if answer.status == 200:
        return
    code = error_code(answer.body)
    if answer.status in ELSEWHERE or code.startswith("pd_") or (own_key and answer.status in (401, 403)):
        raise LegError(leg, worker.name, code if code.startswith("pd_") else str(answer.status), answer)
    raise RefusedError(answer)


def error_code(body: bytes) -> str:
    """`error.code` of an error's envelope, or nothing."""
    try:
        found = json.loads(body)
        return str(found["error"].get("code") or "")
    except (ValueError, TypeError, KeyError, AttributeError):
        return ""
