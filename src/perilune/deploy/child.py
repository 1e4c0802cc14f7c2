"""An engine as a child process: started, waited for, watched and stopped, with its output in a log.

Never touches a process it did not start. The child has a session of its own, so that what it starts ends with it; if
this process is killed, Linux ends the child too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from perilune.deploy.failures import Ended, EngineFailedError, classify, tail
from perilune.deploy.launch import Launch
from perilune.errors import ConfigError

Say = Callable[[str], None]

_POLL_SECONDS = 0.1
_READY = (200, 401)  # a server that wants a key answers 401: it is up


@dataclass(frozen=True)
class Watch:
    """`ready_seconds` until the engine must answer, `stop_seconds` it gets to end before it is killed."""

    log: Path
    ready_seconds: float = 3600.0
    stop_seconds: float = 30.0


@dataclass(frozen=True)
class Program:
    """What is run: `environment` on top of the inherited one. `ready` is the path that answers once it serves.

    `url` is None where the engine chooses its port and prints its address, as perilune does.
    """

    engine: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    ready: str
    url: str | None


@dataclass(frozen=True)
class Running:
    """An engine that answers at `url`."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    begin: int

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def failure(self) -> EngineFailedError:
        """Why a process that ended did."""
        return classify(Ended(self.process.returncode, tail(self.log, self.begin), self.log))


@contextlib.contextmanager
def started(program: Program, watch: Watch, stop: threading.Event | None = None) -> Iterator[Running | None]:
    """Runs `program` for the duration of the block; None if `stop` was set before it answered.

    Raises ConfigError if the program is not there, EngineFailedError, classified, if it ends or does not answer in
    time. Whatever happens, its whole process group is gone afterwards.
    """
    watch.log.parent.mkdir(parents=True, exist_ok=True)
    with watch.log.open("ab") as log:
        written = log.tell()
        process = begin(program, log.fileno())
        try:
            url = _ready(program, process, watch, written, stop or threading.Event())
            yield None if url is None else Running(url, process, watch.log, written)
        finally:
            end(process, watch.stop_seconds)


def run(launch: Launch, watch: Watch, *, address: str = "127.0.0.1", say: Say = print) -> int:
    """Runs the engine until SIGINT or SIGTERM, then ends it and all its processes; returns 0.

    Raises EngineFailedError if the port is taken or the engine ends by itself, else as `started`.
    """
    _port_is_free(address, launch.point.port)
    url = f"http://{_local(address)}:{launch.point.port}"
    program = Program(launch.recipe.engine, launch.argv, launch.environment, launch.recipe.ready, url)
    with _stop_signals() as stop, started(program, watch, stop) as running:
        if running is None:
            return 0
        say(f"serving {launch.recipe.served_name} at {url}")
        while running.alive and not stop.wait(_POLL_SECONDS):
            pass
        if stop.is_set():
            say("stopping")
            return 0
        raise running.failure()


def free_port() -> int:
    """A port nobody listens on now. Another process can still take it first; that failure is named."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Ends the process's whole group: asked first, killed if it does not, and whatever it left behind."""
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    _signal(process, signal.SIGKILL)
    process.wait()


def begin(program: Program, output: int) -> subprocess.Popen[bytes]:
    """Starts `program`, writing to the file descriptor `output`. Raises ConfigError if it is not there."""
    try:
        return subprocess.Popen(  # noqa: S603 - the recipe's words, shown before, and no shell
            program.argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **program.environment},
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
    except OSError as error:
        raise ConfigError(
            f"{program.argv[0]} cannot be started.", f"{error}.",
            f"Install {program.engine}, say --engine-program, or run its image: perilune deploy.",
        ) from error  # fmt: skip


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _ready(
    program: Program, process: subprocess.Popen[bytes], watch: Watch, begin: int, stop: threading.Event
) -> str | None:
    """The address that answers; None if a stop was asked for before."""
    began = time.monotonic()
    with httpx.Client(timeout=5.0, trust_env=False) as client:
        while not stop.is_set():
            if process.poll() is not None:
                raise classify(Ended(process.returncode, tail(watch.log, begin), watch.log))
            url = program.url or _printed(tail(watch.log, begin))
            with contextlib.suppress(httpx.HTTPError):
                if url is not None and client.get(f"{url}{program.ready}").status_code in _READY:
                    return url
            waited = time.monotonic() - began
            if waited > watch.ready_seconds:
                raise classify(Ended(None, tail(watch.log, begin), watch.log, waited))
            stop.wait(_POLL_SECONDS)
    return None


def _printed(log: str) -> str | None:
    found = re.search(r"serving .* at (http://\S+)", log)
    return found.group(1) if found else None


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Set by SIGINT and SIGTERM, for as long as the engine runs."""
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _port_is_free(address: str, port: int) -> None:
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise EngineFailedError(
            "port", f"Cannot listen on {address}:{port}.", f"{error}.", "Choose another --port."
        ) from error


def _local(address: str) -> str:
    """Where an engine that listens at `address` answers from here."""
    anywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - compared, not bound
    return anywhere.get(address, f"[{address}]" if ":" in address else address)
