"""Over sockets, anywhere: one reads by sending a list of (address, length), the other answers with the bytes.

Both sides prove that they know the cluster's key before a list is accepted; the bytes are not encrypted. A CRC-32
follows every answer. Everything is non-blocking and belongs to the one thread that calls `poll`. Bytes land only inside
`poll`, so closing a connection ends its reads for certain.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import selectors
import socket
import struct
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from perilune.pd.checksum import Checksum
from perilune.pd.compiler import Runs
from perilune.pd.errors import PlanError, TransportError
from perilune.pd.keys import MAC_BYTES, ClusterKey
from perilune.pd.memory import Memory
from perilune.pd.transport import Operation, Peer, Transport

IOV_MAX = 1024
MAX_RUNS = 1 << 22
_MAGIC = b"plnpd\x00\x00\x01"
_NONCE = 16
_REQUEST = struct.Struct("<QI")  # number of the operation, runs
_REPLY = struct.Struct("<QBI")  # number of the operation, 0 or 1 for an error, length of its text
_CRC = struct.Struct("<I")
_READS_PER_STEP = 32

Program = Generator[list[memoryview], None, None]


class Closed(Exception):
    """The other side went away or misbehaved: the connection ends."""


class Connection:
    """A socket, what is to be sent, and a program that yields the buffers it wants filled next."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self._program: Program | None = None
        self._out: deque[memoryview] = deque()
        self._in: deque[memoryview] = deque()

    def start(self, program: Program) -> None:
        self._program = program
        self._in.extend(next(program))

    def send(self, *parts: bytes | memoryview) -> None:
        """Queue parts; `step` writes them."""
        self._out.extend(memoryview(part) for part in parts if len(part))

    @property
    def events(self) -> int:
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)

    def step(self, readable: bool) -> None:
        """Read and write what is possible now. Raises OSError or Closed when the connection is over."""
        if readable:
            self._read()
        while self._out:
            try:
                sent = self.sock.sendmsg(list(islice(self._out, IOV_MAX)))
            except BlockingIOError:
                return
            _advance(self._out, sent)

    def _read(self) -> None:
        """Fills what the program wants and lets it go on, until there is something to send."""
        assert self._program is not None
        for _ in range(_READS_PER_STEP):
            try:
                count = self.sock.recvmsg_into(list(islice(self._in, IOV_MAX)))[0]
            except BlockingIOError:
                return
            if not count:
                raise Closed("the peer closed the connection")
            _advance(self._in, count)
            while not self._in:
                self._in.extend(part for part in next(self._program) if len(part))
            if self._out:
                return

    def close(self) -> None:
        if self._program is not None:
            self._program.close()
        self.sock.close()


def _advance(parts: deque[memoryview], count: int) -> None:
    while count:
        if count < len(parts[0]):
            parts[0] = parts[0][count:]
            return
        count -= len(parts.popleft())


def _hasten(sock: socket.socket) -> None:
    """Between two processes of one host nothing is ever congested. Where BBR is the system's choice its pacing still
    puts packets off to timers, the loopback device then hands them over out of order, and they are sent again."""
    with contextlib.suppress(OSError, AttributeError):  # gone already, or not Linux: then as it is
        if sock.getsockname()[0] == sock.getpeername()[0]:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def _buffer(size: int) -> tuple[bytearray, list[memoryview]]:
    buffer = bytearray(size)
    return buffer, [memoryview(buffer)]


class Address(msgspec.Struct, frozen=True):
    host: str
    port: int


@dataclass(eq=False)
class TcpPeer(Peer):
    connection: Connection = field(kw_only=True)
    ready: bool = False
    requests: int = 0


class TcpTransport(Transport):
    """Listens on `host` (port 0: any free one) and tells peers to come to `advertise`."""

    name: ClassVar[str] = "tcp"
    batch_bytes: ClassVar[int] = 4 << 20
    window: ClassVar[int] = 4

    def __init__(
        self, memory: Memory, key: ClusterKey, host: str = "127.0.0.1", advertise: str = "", port: int = 0
    ) -> None:
        super().__init__(memory)
        self._key, self._checksum = key, Checksum()
        try:
            self._listener = socket.create_server((host, port), backlog=64)
        except OSError as error:
            raise TransportError(
                f"Nothing can listen on {host}:{port}.", f"The system says: {error}.", "Choose another address or port."
            ) from error
        self._listener.setblocking(False)
        self._address = Address(advertise or host, self._listener.getsockname()[1])
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._peers: dict[Connection, TcpPeer | None] = {}
        self._closed = False

    @property
    def address(self) -> bytes:
        return msgspec.msgpack.encode(self._address)

    def connect(self, address: bytes) -> Peer:
        try:
            there = msgspec.msgpack.decode(address, type=Address)
            family, kind, proto, _, where = socket.getaddrinfo(there.host, there.port, type=socket.SOCK_STREAM)[0]
            connection = Connection(socket.socket(family, kind, proto))
        except (msgspec.MsgspecError, OSError) as error:
            raise TransportError("A tcp address cannot be used.", str(error)) from error
        code = connection.sock.connect_ex(where)
        if code not in (0, errno.EINPROGRESS):
            connection.close()
            raise TransportError(f"{there.host}:{there.port} cannot be reached.", os.strerror(code))
        peer = TcpPeer(connection=connection)
        self._add(connection, self._pull(peer, connection), peer)
        return peer

    def read(self, peer: Peer, runs: Runs) -> Operation:
        assert isinstance(peer, TcpPeer)
        self.memory.pointers(runs.target, runs.length)
        operation = Operation(peer, runs)
        if peer.connection not in self._peers:
            operation.fail("the connection was closed")
            return operation
        peer.operations.append(operation)
        if peer.ready:
            self._request(peer, operation)
            self._step(peer.connection, readable=False)
        return operation

    def _request(self, peer: TcpPeer, operation: Operation) -> None:
        table = np.stack([operation.runs.source, operation.runs.length], axis=1)
        peer.connection.send(_REQUEST.pack(peer.requests, len(table)), table.data.cast("B"))
        peer.requests += 1

    def poll(self, timeout: float) -> None:
        for key, mask in self._selector.select(timeout):
            if key.fileobj is self._woken:
                self._woken.recv(4096)
            elif key.fileobj is self._listener:
                self._accept()
            elif key.data in self._peers:
                self._step(key.data, bool(mask & selectors.EVENT_READ))

    def _accept(self) -> None:
        try:
            connection = Connection(self._listener.accept()[0])
        except OSError:
            return  # it went away before we looked
        _hasten(connection.sock)
        self._add(connection, self._serve(connection), None)

    def _add(self, connection: Connection, program: Program, peer: TcpPeer | None) -> None:
        connection.start(program)
        self._peers[connection] = peer
        self._selector.register(connection.sock, connection.events, connection)

    def _step(self, connection: Connection, readable: bool) -> None:
        try:
            connection.step(readable)
        except (OSError, Closed) as error:
            self._drop(connection, str(error))
        else:
            if self._selector.get_key(connection.sock).events != connection.events:
                self._selector.modify(connection.sock, connection.events, connection)

    def _drop(self, connection: Connection, reason: str) -> None:
        peer = self._peers.pop(connection)
        self._selector.unregister(connection.sock)
        connection.close()
        if peer is not None:
            for operation in peer.operations:
                operation.fail(reason)
            peer.settle()

    def _serve(self, connection: Connection) -> Program:
        """The side that is read from."""
        hello, want = _buffer(len(_MAGIC) + _NONCE)
        yield want
        theirs, mine = bytes(hello[len(_MAGIC) :]), secrets.token_bytes(_NONCE)
        if hello[: len(_MAGIC)] != _MAGIC:
            raise Closed("the peer speaks something else")
        connection.send(mine, self._key.sign("data", b"served" + theirs + mine))
        proof, want = _buffer(MAC_BYTES)
        yield want
        if not self._key.verify("data", b"reader" + mine + theirs, bytes(proof)):
            raise Closed("the peer does not know the cluster's key")
        while True:
            head, want = _buffer(_REQUEST.size)
            yield want
            number, count = _REQUEST.unpack(head)
            if count > MAX_RUNS:
                raise Closed(f"{count} runs in one request")
            table = np.empty((count, 2), np.int64)
            yield [table.data.cast("B")]
            connection.send(*self._answer(number, table))

    def _answer(self, number: int, table: NDArray[np.int64]) -> list[bytes | memoryview]:
        try:
            parts = self.memory.slices(table[:, 0], table[:, 1])
        except PlanError as error:
            text = error.what.encode()
            return [_REPLY.pack(number, 1, len(text)), text]
        return [_REPLY.pack(number, 0, 0), *parts, _CRC.pack(self._checksum(self.memory, table[:, 0], table[:, 1]))]

    def _pull(self, peer: TcpPeer, connection: Connection) -> Program:
        """The side that reads. Answers come in the order of the requests."""
        mine = secrets.token_bytes(_NONCE)
        connection.send(_MAGIC, mine)
        answer, want = _buffer(_NONCE + MAC_BYTES)
        yield want
        theirs = bytes(answer[:_NONCE])
        if not self._key.verify("data", b"served" + mine + theirs, bytes(answer[_NONCE:])):
            raise Closed("the peer does not know the cluster's key")
        connection.send(self._key.sign("data", b"reader" + theirs + mine))
        peer.ready = True
        for operation in peer.operations:
            self._request(peer, operation)
        answers = 0
        while True:
            head, want = _buffer(_REPLY.size)
            yield want
            number, failed, size = _REPLY.unpack(head)
            if number != answers or not peer.operations:
                raise Closed("the peer answers what nobody asked")
            operation, answers = peer.operations[0], answers + 1
            if failed:
                text, want = _buffer(size)
                yield want
                operation.fail(text.decode(errors="replace"))
            else:
                yield from self._receive(operation)
            peer.operations.remove(operation)

    def _receive(self, operation: Operation) -> Iterator[list[memoryview]]:
        runs, (trailer, want) = operation.runs, _buffer(_CRC.size)
        yield self.memory.slices(runs.target, runs.length)
        yield want
        if _CRC.unpack(trailer)[0] == self._checksum(self.memory, runs.target, runs.length):
            operation.state = "done"
        else:
            operation.fail("the checksum of what arrived is wrong")

    def wake(self) -> None:
        try:
            self._waker.send(b"\0")
        except (BlockingIOError, OSError):
            return  # full: it will wake; closed: nobody sleeps

    def disconnect(self, peer: Peer) -> bool:
        assert isinstance(peer, TcpPeer)
        if peer.connection in self._peers:
            self._drop(peer.connection, "given up")
        return True

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for connection in list(self._peers):
            self._drop(connection, "the transport was closed")
        for sock in (self._listener, self._woken, self._waker):
            sock.close()
        self._selector.close()
