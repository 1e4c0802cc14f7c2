"""Another engine as a child process: started, waited for, watched and stopped, with its output in a log."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx

from perilune.deploy.failures import Ended, EngineFailedError, classify, tail
from perilune.deploy.launch import Launch
from perilune.errors import ConfigError

Say = Callable[[str], None]

_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Watch:
    """`ready_seconds` until the engine must answer, `stop_seconds` it gets to end before it is killed."""

    log: Path
    ready_seconds: float = 3600.0
    stop_seconds: float = 30.0


def run(launch: Launch, watch: Watch, *, address: str = "127.0.0.1", say: Say = print) -> int:
    """Runs the engine until SIGINT or SIGTERM, then ends it and all its processes; returns 0.

    Raises ConfigError if the port is taken or the program is not there, EngineFailedError, classified, if the engine
    ends by itself, and if it does not answer in time.
    """
    _port_is_free(address, launch.point.port)
    with _stop_signals() as stop, watch.log.open("ab") as log:
        begin = log.tell()
        child = _start(launch, log)
        try:
            url = f"http://{_local(address)}:{launch.point.port}"
            if not _ready(child, f"{url}{launch.recipe.ready}", watch, stop, begin):
                return 0
            say(f"serving {launch.recipe.served_name} at {url}")
            while child.poll() is None and not stop.wait(_POLL_SECONDS):
                pass
            if stop.is_set():
                say("stopping")
                return 0
            raise classify(Ended(child.returncode, tail(watch.log, begin), watch.log))
        finally:
            _end(child, watch.stop_seconds)


def _start(launch: Launch, log: BinaryIO) -> subprocess.Popen[bytes]:
    """In a session of its own, so that what it starts can be ended with it."""
    try:
        return subprocess.Popen(  # noqa: S603 - the recipe's words, shown before
            launch.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **launch.environment},
            start_new_session=True,
        )
    except OSError as error:
        raise ConfigError(
            f"{launch.argv[0]} cannot be started.", f"{error}.",
            f"Install {launch.recipe.engine}, say --engine-program, or run its image: perilune deploy.",
        ) from error  # fmt: skip


def _ready(child: subprocess.Popen[bytes], url: str, watch: Watch, stop: threading.Event, begin: int) -> bool:
    """Whether the engine answers; False if a stop was asked for before."""
    began = time.monotonic()
    with httpx.Client(timeout=5.0, trust_env=False) as client:
        while not stop.is_set():
            if child.poll() is not None:
                raise classify(Ended(child.returncode, tail(watch.log, begin), watch.log))
            with contextlib.suppress(httpx.HTTPError):
                if client.get(url).status_code == 200:
                    return True
            waited = time.monotonic() - began
            if waited > watch.ready_seconds:
                raise classify(Ended(None, tail(watch.log, begin), watch.log, waited))
            stop.wait(_POLL_SECONDS)
    return False


def _end(child: subprocess.Popen[bytes], seconds: float) -> None:
    """Ends the child's whole group: asked first, killed if it does not, and whatever it left behind."""
    if child.poll() is None:
        _signal(child, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
    _signal(child, signal.SIGKILL)
    child.wait()


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


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
