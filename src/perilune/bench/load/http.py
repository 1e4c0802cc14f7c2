"""One HTTP/1.1 connection that says when things happened. h11 parses; times are taken as bytes leave and arrive.

A general client would hide what is measured: when the connection stood, when the request was out, when the body began.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import h11

from perilune.errors import ConfigError

_READ = 1 << 18


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


class Connection:
    """Use with one request at a time; `open` again after an error or when `reusable` is false."""

    def __init__(self, address: Address, headers: Mapping[str, str]) -> None:
        host = f"[{address.host}]" if ":" in address.host else address.host
        self._address = address
        self._headers = [("Host", f"{host}:{address.port}"), ("Accept", "*/*"), *headers.items()]
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._machine = h11.Connection(h11.CLIENT)

    @property
    def open(self) -> bool:
        """Whether the next request can use the connection that stands. A server may have closed it meanwhile."""
        return (
            self._streams is not None
            and not self._streams[0].at_eof()
            and self._machine.our_state is h11.IDLE
            and self._machine.their_state is h11.IDLE
        )

    async def connect(self) -> float:
        """Opens; returns when it stood. Raises OSError."""
        self.close()
        context = ssl.create_default_context() if self._address.tls else None
        self._streams = await asyncio.open_connection(self._address.host, self._address.port, ssl=context, limit=_READ)
        self._machine = h11.Connection(h11.CLIENT)
        return time.monotonic()

    async def send(self, method: str, path: str, body: bytes) -> float:
        """Sends a whole request; returns when its first byte was handed to the system. Raises OSError."""
        assert self._streams is not None
        headers = [*self._headers, ("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        data = self._machine.send(h11.Request(method=method, target=self._address.path + path, headers=headers))
        data = (data or b"") + (self._machine.send(h11.Data(data=body)) or b"")
        data += self._machine.send(h11.EndOfMessage()) or b""
        sent = time.monotonic()
        self._streams[1].write(data)
        await self._streams[1].drain()
        return sent

    async def receive(self) -> AsyncIterator[tuple[float, int | bytes]]:
        """The status, then the body in pieces, each with the time at which it was read.

        Raises OSError for a connection that breaks, h11.RemoteProtocolError for one that ends too early.
        """
        assert self._streams is not None
        at = time.monotonic()
        while True:
            event = self._machine.next_event()
            if event is h11.NEED_DATA:
                data = await self._streams[0].read(_READ)
                at = time.monotonic()
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
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
