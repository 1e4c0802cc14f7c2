"""The other ranks of a tensor-parallel engine, as processes: started, told what to do, watched, ended.

Their output goes on to this process's stderr; the last lines are kept, to say why one ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from pathlib import Path

import msgspec
import zmq

from perilune.engine.config import EngineConfig
from perilune.engine.orders import Answer, Failed, Join, Load, Loaded, OpenDoor, Order, Stop
from perilune.engine.parallel import RankLostError
from perilune.errors import EngineDeadError, PeriluneError
from perilune.host.cores import WAITING

log = logging.getLogger(__name__)

LAST_LINES = 12
POLL_MS = 100
STOP_SECONDS = 2.0
CAUSE_SECONDS = 2.0
LEFT_ALONE = 3
"""Exit status of a rank whose exchange failed: another one is the cause."""


class Ranks:
    """Ranks 1 .. tp - 1 of an engine whose first rank is this process. Not thread-safe."""

    def __init__(self, config: EngineConfig, path: Path) -> None:
        """Starts the processes; they load while this one does. Nothing of them is left once this object is."""
        self._config = config
        self.folder = Path(tempfile.mkdtemp(prefix="perilune-ranks-"))  # 0700: the sockets in it are private
        self._context = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._finalise = weakref.finalize(self, _end, self._processes, self._sockets, self._context, self.folder)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Answer).decode
        self._lines: list[deque[str]] = []
        self._death: PeriluneError | None = None
        for rank in range(1, config.tp):
            self._start(rank)
            self._send(rank, Load(config, str(path), rank))

    def _start(self, rank: int) -> None:
        endpoint = f"ipc://{self.folder}/rank{rank}"
        socket: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
            socket.setsockopt(option, 0)
        # the side that connects never waits in a send: what nobody takes, not yet or not any more, lies in a queue
        socket.connect(endpoint)
        self._sockets.append(socket)
        environment = {**WAITING, **os.environ}
        process = subprocess.Popen(  # noqa: S603 - this very program
            [sys.executable, "-m", "perilune.engine.rank", endpoint, str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        self._processes.append(process)
        lines: deque[str] = deque(maxlen=LAST_LINES)
        self._lines.append(lines)
        threading.Thread(target=_forward, args=(process, lines), name=f"perilune rank {rank}", daemon=True).start()

    @property
    def size(self) -> int:
        return self._config.tp

    def open_door(self, rank: int, model: str) -> str:
        """Let other engines at that rank's arenas; the endpoint where it will be."""
        endpoint = f"ipc://{self.folder}/door{rank}"
        self._send(rank, OpenDoor(endpoint, model))
        return endpoint

    def wait_loaded(self) -> list[Loaded]:
        """Until every rank has loaded its share. Raises the error of the first that cannot, or EngineDeadError."""
        found = []
        for rank in range(1, self._config.tp):
            while not self._sockets[rank - 1].poll(POLL_MS):
                self.check()
            answer = self._decode(self._sockets[rank - 1].recv())
            if isinstance(answer, Failed):
                raise answer.error.error()
            found.append(answer)
        return found

    def join(self) -> None:
        """Let them connect; this rank connects at the same time."""
        self.tell(Join(str(self.folder)))

    def tell(self, order: Order) -> None:
        """All of them, at once and in order. Raises EngineDeadError if one is known to be gone."""
        if self._death is not None:
            raise self._death
        message = self._encode(order)
        for socket in self._sockets:
            socket.send(message)

    def _send(self, rank: int, order: Order) -> None:
        self._sockets[rank - 1].send(self._encode(order))

    def check(self) -> None:
        """Raises EngineDeadError if a rank has ended; its last lines go to the log."""
        if self._death is None and any(process.poll() is not None for process in self._processes):
            self._death = self.cause(RankLostError("A rank has ended."))
        if self._death is not None:
            raise self._death

    def cause(self, error: Exception) -> PeriluneError:
        """What is behind `error`, met by this rank in a step: a rank that ended, or one that hangs, or `error` itself.

        Its last lines go to the log. Ends all ranks: they no longer are at the same place.
        """
        if self._death is not None:
            return self._death
        ended = self._ended() if isinstance(error, RankLostError) else {}
        if ended:
            rank, status = min(ended.items(), key=lambda item: (item[1] in (0, LEFT_ALONE), item[0]))
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
            log.error("rank %d stopped with %s; its last lines:\n%s", rank, how, "\n".join(self._lines[rank - 1]))
            self._death = EngineDeadError(
                f"Rank {rank} of {self._config.tp} ended.",
                f"It stopped with {how}{self._last_words(rank)}",
                "Out of memory is the usual reason: see `perilune plan --tp`, then lower max_context or max_running.",
            )
        elif isinstance(error, RankLostError):
            self._death = EngineDeadError(
                f"A rank did not answer within {self._config.rank_seconds} s.",
                error.why,
                "If it only was slow, raise rank_seconds.",
            )
        else:
            self._death = EngineDeadError(
                f"The first of {self._config.tp} ranks failed.", f"{type(error).__name__}: {error}", "See its log."
            )
        self._finalise()
        return self._death

    def _ended(self) -> dict[int, int]:
        """Exit status by rank of those that ended. One that did goes before those that noticed, so wait a moment."""
        deadline = time.monotonic() + CAUSE_SECONDS
        while True:
            found = {rank: process.poll() for rank, process in enumerate(self._processes, 1)}
            ended = {rank: status for rank, status in found.items() if status is not None}
            if set(ended.values()) - {0, LEFT_ALONE} or time.monotonic() > deadline:
                return ended
            time.sleep(POLL_MS / 1000)

    def _last_words(self, rank: int) -> str:
        with contextlib.suppress(zmq.ZMQError):
            while self._sockets[rank - 1].poll(0):
                answer = self._decode(self._sockets[rank - 1].recv())
                if isinstance(answer, Failed):
                    return f": {answer.error.error()}"
        return "; its last lines are in the log."

    def close(self) -> None:
        """Kindly, then firmly."""
        if self._finalise.alive and self._death is None:
            self.tell(Stop())
            deadline = time.monotonic() + STOP_SECONDS
            for process in self._processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        self._finalise()


def _forward(process: subprocess.Popen[bytes], lines: deque[str]) -> None:
    """What a rank prints, line by line, to where this process logs."""
    assert process.stdout is not None
    with process.stdout as output:
        for line in output:
            text = line.decode(errors="replace")
            lines.append(text.rstrip())
            with contextlib.suppress(ValueError, OSError):  # nobody listens any more
                sys.stderr.write(text)


def _end(
    processes: list[subprocess.Popen[bytes]],
    sockets: list[zmq.Socket[bytes]],
    context: zmq.Context[zmq.Socket[bytes]],
    folder: Path,
) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
    for socket in sockets:
        socket.close(linger=0)
    context.term()
    shutil.rmtree(folder, ignore_errors=True)
