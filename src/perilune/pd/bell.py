"""A bell between two threads: rung by one, heard by the other in poll(2)."""

from __future__ import annotations

import socket as sockets


class Bell:
    """Makes a queue visible to poll(2)."""

    def __init__(self) -> None:
        self._hear, self._pull = sockets.socketpair()
        self._hear.setblocking(False)
        self._pull.setblocking(False)

    def fileno(self) -> int:
        return self._hear.fileno()

    def ring(self) -> None:
        try:
            self._pull.send(b"\0")
        except BlockingIOError:
            return  # it rings already

    def silence(self) -> None:
        try:
            while self._hear.recv(4096):
                pass
        except BlockingIOError:
            return
