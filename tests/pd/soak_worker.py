"""An engine process whose links can be cut: at SIGUSR1 every TCP connection it has, of whatever kind, is shut down."""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys

from perilune.engine.worker import main


def cut(*_: object) -> None:
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as one:
                if one.family == socket.AF_INET and one.type == socket.SOCK_STREAM:
                    one.getpeername()  # raises for one that only listens
                    one.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, cut)
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
