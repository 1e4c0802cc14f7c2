"""What every request passes first: the API key, then the limit on its body. Plain ASGI, so streams stay streams."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import Callable, Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from perilune.errors import PeriluneError
from perilune.http.errors import SlowBodyError, TooLargeError, UnauthorizedError, error_response
from perilune.units import MIB, format_bytes

OPEN_PATHS = frozenset({"/health", "/ready"})
"""Probes carry no secret and tell none."""

_DISCARD_SECONDS = 2.0
_DISCARD_BYTES = 64 * MIB


class ApiKeys:
    """Answers 401 unless the request carries one of `keys` as a bearer token, which becomes `state.api_key`.

    Whom somebody before vouched for (`state.vouched`) needs none; a token it carries still says for whom it asks.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str], is_open: Callable[[str], bool] = lambda _: False) -> None:
        """`is_open`: further paths, besides the probes, that anybody may ask for."""
        self._app, self._is_open = app, is_open
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._keys or scope["path"] in OPEN_PATHS or self._is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        given = _bearer(scope)
        if self._knows(given) or "vouched" in scope.get("state", {}):
            scope.setdefault("state", {})["api_key"] = given
            await self._app(scope, receive, send)
            return
        error = UnauthorizedError(
            "The API key is missing or wrong.",
            "This server was started with --api-key.",
            "Send the header Authorization: Bearer KEY.",
        )
        await error_response(error)(scope, receive, send)

    def _knows(self, given: bytes) -> bool:
        # Every key is compared, each in constant time, so that timing tells nothing about any of them.
        return sum(hmac.compare_digest(given, key) for key in self._keys) > 0


class BodyLimit:
    """Reads the whole body before the app sees the request: at most `limit` bytes, within `seconds`.

    Counts what arrives, since a chunked body announces no length.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self._app, self._limit, self._seconds = app, limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._read(scope, receive)
        except TimeoutError:
            late = SlowBodyError("The request's body did not arrive in time.", f"{self._seconds:g} s are allowed.")
            await error_response(late)(scope, receive, send)
        except PeriluneError as error:
            await error_response(error)(scope, receive, send)
        else:
            if body is not None:
                await self._app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body, or None if the client went away while sending it."""
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced[:18]) > self._limit:
            await _discard(receive)
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > self._limit:
                if more:
                    await _discard(receive)
                raise self._too_large()
            if not more:
                return b"".join(parts)

    def _too_large(self) -> TooLargeError:
        return TooLargeError(
            "The request's body is too large.",
            f"This server reads at most {format_bytes(self._limit)}.",
            "Send less, or start the server with a larger --max-body-bytes.",
        )


def _bearer(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, token = bytes(value).partition(b" ")
            return token.strip() if kind.lower() == b"bearer" else b""
    return b""


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once, then what the connection says: its end."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _discard(receive: Receive) -> None:
    """Reads on for a while: a connection closed while the client still writes would lose the answer."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_SECONDS):
            while size < _DISCARD_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
