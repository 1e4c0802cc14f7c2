"""The engine process: `python -m perilune.engine.worker ENDPOINT PARENT`. The first message it gets is its config.

PARENT is the process id of the server. It is given and not asked for, since the server may be gone before this starts.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

import msgspec
import zmq

from perilune.engine.config import EngineConfig
from perilune.engine.core import EngineCore
from perilune.engine.messages import (
    Abort,
    AskStats,
    AskStatus,
    AskView,
    Fatal,
    FromEngine,
    Ready,
    Shutdown,
    Stats,
    Status,
    Submit,
    ToEngine,
    TokenEvent,
    Tokens,
    WireError,
    Withdraw,
)
from perilune.errors import PeriluneError

IDLE_POLL_MS = 500


class Start(msgspec.Struct, frozen=True):
    """The first message: how to set up, and the resolved folder of the checkpoint."""

    config: EngineConfig
    path: str


class EngineProcess:
    """Steps the core while there is work, and answers messages between steps."""

    def __init__(self, socket: zmq.Socket[bytes], core: EngineCore, parent: int) -> None:
        self._socket, self._core = socket, core
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(ToEngine).decode
        self._parent = parent
        self._poller = zmq.Poller()
        self._poller.register(socket, zmq.POLLIN)
        if core.handover is not None:
            self._poller.register(core.handover.exchange.fileno(), zmq.POLLIN)

    def run(self) -> None:
        """Until Shutdown, or until the parent is gone: an engine without a server serves nobody."""
        self._send(Ready(self._core.because))
        more = False
        while self._receive(0 if self._core.busy or more else IDLE_POLL_MS) and os.getppid() == self._parent:
            events = self._core.step()
            if events:
                self._send(Tokens(tuple(events)))
            more = not self._core.busy and self._core.tidy()

    def _receive(self, timeout_ms: int) -> bool:
        """Wait for something to happen, then handle every message that is there; False on Shutdown."""
        self._poller.poll(timeout_ms)
        while self._socket.poll(0):
            message = self._decode(self._socket.recv())
            if isinstance(message, Shutdown):
                return False
            if isinstance(message, Submit):
                self._submit(message)
            elif isinstance(message, Abort):
                self._core.abort(message.id)
            elif isinstance(message, AskStats):
                self._send(Stats(self._core.stats()))
            elif isinstance(message, AskView):
                self._send(self._core.view())
            elif isinstance(message, AskStatus):
                self._send(Status(self._core.status()))
            elif isinstance(message, Withdraw) and self._core.handover is not None:
                self._core.handover.withdraw(message.ticket, message.reason)
        return True

    def _submit(self, message: Submit) -> None:
        try:
            self._core.add(message)
        except PeriluneError as error:
            self._send(Tokens((TokenEvent(message.id, finish_reason="error", error=WireError.of(error)),)))

    def _send(self, message: FromEngine) -> None:
        self._socket.send(self._encode(message))


def main(endpoint: str, parent: int) -> int:
    """Connect, load, serve. Returns the exit status; a failure to load is sent before it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal group; the server decides
    logging.basicConfig(level=logging.INFO, format="engine %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    context = zmq.Context()
    socket: zmq.Socket[bytes] = context.socket(zmq.PAIR)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, 2000)
    socket.connect(endpoint)
    try:
        while not socket.poll(IDLE_POLL_MS):
            if os.getppid() != parent:
                return 1
        start = msgspec.msgpack.decode(socket.recv(), type=Start)
        core = EngineCore(start.config, Path(start.path))
        EngineProcess(socket, core, parent).run()
        core.close()
        return 0
    except Exception as error:
        if not isinstance(error, PeriluneError):
            logging.getLogger(__name__).exception("the engine stopped")
        socket.send(msgspec.msgpack.encode(Fatal(WireError.of(error))))
        return 1
    finally:
        socket.close()
        context.term()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
