"""A rank that is another process: the same commands and reports over a ZeroMQ socket of this host.

The socket lies in a folder that only this user can enter; what comes over it is trusted as the rest of the engine is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec
import zmq

from perilune.pd.bell import Bell
from perilune.pd.commands import Command, Report
from perilune.pd.errors import TransportError
from perilune.pd.rank import LocalRank
from perilune.pd.regions import RegionTable

POLL_MS = 200
STOP_SECONDS = 15.0


class Introduction(msgspec.Struct, tag=True, frozen=True):
    """The rank's first message."""

    table: RegionTable
    beacon: bytes
    transports: tuple[str, ...]


class Ended(msgspec.Struct, tag=True, frozen=True):
    """The rank's last message; `whole`: nothing writes to its memory any more."""

    whole: bool


class Begin(msgspec.Struct, tag=True, frozen=True):
    pass


class Quit(msgspec.Struct, tag=True, frozen=True):
    pass


class Order(msgspec.Struct, tag=True, frozen=True):
    transport: str
    command: Command


FromRank = Introduction | Report | Ended
ToRank = Begin | Order | Quit


class RemoteRank:
    """On the first rank: stands for a process that runs `serve_rank` with the same endpoint, like ipc:///…/rank1.

    Waits for it. Raises TransportError if it has not come after `patience` seconds.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, patience: float = 60.0) -> None:
        self._socket = _pair(context)
        self._socket.bind(endpoint)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(FromRank).decode
        if not self._socket.poll(int(patience * 1000)):
            self._socket.close(linger=0)
            raise TransportError(f"No rank came to {endpoint}.", f"{patience:g} s have passed.", "See the rank's log.")
        hello = self._decode(self._socket.recv())
        assert isinstance(hello, Introduction)
        self.table, self.beacon, self.transports = hello.table, hello.beacon, hello.transports
        self._lock = threading.Lock()  # commands come from the control thread, reports are awaited in another
        self._whole = False
        self._thread: threading.Thread | None = None
        self._orders: list[bytes] = []
        self._over = threading.Event()
        self._bell = Bell()

    def start(self, report: Callable[[Report], None]) -> None:
        self._thread = threading.Thread(target=self._run, args=(report,), name="pd-remote-rank", daemon=True)
        self._queue(Begin())
        self._thread.start()

    def send(self, transport: str, command: Command) -> None:
        self._queue(Order(transport, command))

    def _queue(self, message: ToRank) -> None:
        with self._lock:
            self._orders.append(self._encode(message))
        self._bell.ring()

    def _run(self, report: Callable[[Report], None]) -> None:
        """The only thread that touches the socket."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._bell.fileno(), zmq.POLLIN)
        while not self._over.is_set():
            poller.poll(POLL_MS)
            self._bell.silence()
            with self._lock:
                orders, self._orders = self._orders, []
            for order in orders:
                self._socket.send(order)
            while self._socket.poll(0):
                message = self._decode(self._socket.recv())
                if isinstance(message, Ended):
                    self._whole = message.whole
                    self._over.set()
                elif not isinstance(message, Introduction):
                    report(message)
        self._socket.close(linger=0)

    def stop(self) -> bool:
        if self._thread is None:
            self._socket.close(linger=0)
            return True
        self._queue(Quit())
        self._thread.join(STOP_SECONDS)
        self._over.set()
        self._bell.ring()
        return self._whole


def serve_rank(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, rank: LocalRank, alive: Callable[[], bool]
) -> None:
    """In the rank's process: obey the first rank until it says Quit, or until `alive` says that it is gone."""
    socket = _pair(context)
    socket.connect(endpoint)
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(ToRank).decode
    inbox: zmq.Socket[bytes] = context.socket(zmq.PULL)
    name = f"inproc://{id(rank)}"
    inbox.bind(name)
    local = threading.local()

    def report(message: Report) -> None:
        if not hasattr(local, "socket"):  # a socket per mover: sockets stay in the thread that made them
            local.socket = context.socket(zmq.PUSH)
            local.socket.setsockopt(zmq.LINGER, 0)
            local.socket.connect(name)
        local.socket.send(encode(message))

    socket.send(encode(Introduction(rank.table, rank.beacon, rank.transports)))
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(inbox, zmq.POLLIN)
    quit_asked = False
    while not quit_asked and alive():
        ready = dict(poller.poll(POLL_MS))
        if inbox in ready:
            socket.send(inbox.recv())
        if socket in ready:
            message = decode(socket.recv())
            if isinstance(message, Order):
                rank.send(message.transport, message.command)
            elif isinstance(message, Begin):
                rank.start(report)
            else:
                quit_asked = True
    whole = rank.stop()
    socket.send(encode(Ended(whole)))
    inbox.close(linger=0)
    socket.close(linger=1000)


def _pair(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = context.socket(zmq.PAIR)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    return socket
