"""One HTTP/1.1 connection that says when things happened. h11 parses; times are taken as bytes leave and arrive.

A general client would hide what is measured: when the connection stood, when the request was out, when the body began.
A time is that of the loop's read: what other streams' events cost to understand comes after it.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import h11

from perilune.errors import ConfigError


@dataclass(frozen=True)
class Address:
    """Where a server is. `path` is what its URL has before /v1."""

    host: str
    port: int
    tls: bool
    path: str

    @classmethod
    def of(cls, url: str) -> Address:
        """From a URL with or without /v1. Raises ConfigError."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{url!r} is no URL.", f"{error}.", "Write http://host:port.") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is no URL.", fix="Write http://host:port.")
        if parts.username or parts.password:
            raise ConfigError("The URL holds a password.", "It would be stored with the results.", "Use api_key_env.")
        tls = parts.scheme == "https"
        return cls(parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/").removesuffix("/v1"))


class _Wire(asyncio.Protocol):
    """What came in, and when; waited for by at most one task."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._wanted: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self.ended = False

    def data_received(self, data: bytes) -> None:
        self._pieces.append((time.monotonic(), data))
        self._wake()

    def eof_received(self) -> None:
        self.ended = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended, self._error = True, exc
        self._wake()

    async def piece(self) -> tuple[float, bytes]:
        """The next bytes and when they came; none at the end. Raises OSError for a connection that broke."""
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self.ended:
                return time.monotonic(), b""
            self._wanted = asyncio.get_running_loop().create_future()
            await self._wanted
        return self._pieces.popleft()

    def _wake(self) -> None:
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)


class Connection:
    """Use with one request at a time; `open` again after an error or when `reusable` is false."""

    def __init__(self, address: Address, headers: Mapping[str, str]) -> None:
        host = f"[{address.host}]" if ":" in address.host else address.host
        self._address = address
        self._headers = [("Host", f"{host}:{address.port}"), ("Accept", "*/*"), *headers.items()]
        self._wire: tuple[asyncio.Transport, _Wire] | None = None
        self._machine = h11.Connection(h11.CLIENT)

    @property
    def open(self) -> bool:
        """Whether the next request can use the connection that stands. A server may have closed it meanwhile."""
        return (
            self._wire is not None
            and not self._wire[1].ended
            and self._machine.our_state is h11.IDLE
            and self._machine.their_state is h11.IDLE
        )

    async def connect(self) -> float:
        """Opens; returns when it stood. Raises OSError."""
        self.close()
        context = ssl.create_default_context() if self._address.tls else None
        self._wire = await asyncio.get_running_loop().create_connection(
            _Wire, self._address.host, self._address.port, ssl=context
        )
        self._machine = h11.Connection(h11.CLIENT)
        return time.monotonic()

    async def send(self, method: str, path: str, body: bytes) -> float:
        """Sends a whole request; returns when its first byte was handed to the system. Raises OSError."""
        assert self._wire is not None
        headers = [*self._headers, ("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        data = self._machine.send(h11.Request(method=method, target=self._address.path + path, headers=headers))
        data = (data or b"") + (self._machine.send(h11.Data(data=body)) or b"")
        data += self._machine.send(h11.EndOfMessage()) or b""
        if self._wire[1].ended:
            raise ConnectionResetError("the connection was closed")
        sent = time.monotonic()
        self._wire[0].write(data)
        return sent

    async def receive(self) -> AsyncIterator[tuple[float, int | bytes]]:
        """The status, then the body in pieces, each with the time at which it was read.

        Raises OSError for a connection that breaks, h11.RemoteProtocolError for one that ends too early.
        """
        assert self._wire is not None
        at = time.monotonic()
        while True:
            event = self._machine.next_event()
            if event is h11.NEED_DATA:
                at, data = await self._wire[1].piece()
                self._machine.receive_data(data)
            elif isinstance(event, h11.Response):
                yield at, event.status_code
            elif isinstance(event, h11.Data):
                yield at, bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                if self._machine.our_state is h11.DONE and self._machine.their_state is h11.DONE:
                    self._machine.start_next_cycle()
                return
            elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                raise ConnectionResetError("the connection was closed")

    def close(self) -> None:
        """Lets go of the connection; the server sees its end."""
        if self._wire is not None:
            self._wire[0].close()
            self._wire = None
