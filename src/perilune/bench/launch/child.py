"""Starts a point's server, waits until it answers, and takes its whole process group down at the end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from perilune.bench.plan.point import Server
from perilune.errors import PeriluneError

_GRACE = 20.0
_SIGNS: tuple[tuple[str, str, str], ...] = (
    (
        r"(?i)out of memory|OutOfMemory|cannot allocate memory|MemoryError|not enough memory",
        "memory",
        "Lower the memory flags, or shard over more GPUs.",
    ),
    (r"(?i)address already in use|Cannot listen on", "port", "Something took the port in between; run again."),
    (
        r"(?i)no such option|unrecognized arguments|invalid choice",
        "flags",
        "Check the recipe's argv; `perilune bench explain` prints the command.",
    ),
    (
        r"(?i)names no model|is not a local folder|repository not found|no such file or directory|no model",
        "model",
        "Check the recipe's model.",
    ),
    (r"ModuleNotFoundError|ImportError|command not found", "installation", "The engine is not installed here."),
)


class LaunchError(PeriluneError):
    """The server did not come up, or died.

    `kind` is memory, port, flags, model, installation, signal, timeout or exit.
    """

    code = "launch_failed"

    def __init__(self, kind: str, what: str, why: str, fix: str = "") -> None:
        super().__init__(what, why, fix)
        self.kind = kind


class Running:
    """A server that answers at `url`. Its output is in `log`."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


@contextlib.contextmanager
def started(server: Server, log: Path, secrets: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Runs `server` for the duration of the block. `secrets` are added to its environment and written nowhere.

    Raises LaunchError if it does not answer within its recipe's `ready_s`. Whatever happens, the process group is
    gone afterwards; if this process is killed, Linux ends the server too.
    """
    port = 0 if server.engine == "perilune" else free_port()
    argv = [*_program(server.argv), f"--{server.port_flag}", str(port)]
    environment = {**os.environ, **(secrets or {}), **server.env}
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - the recipe's own words, and no shell
                argv, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
                start_new_session=True, preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )  # fmt: skip
    except OSError as error:
        raise LaunchError("installation", f"Cannot start {argv[0]}.", f"{error}.", "Install the engine.") from error
    try:
        yield Running(process, _ready(process, server, port, log), log)
    finally:
        stop(process)


def free_port() -> int:
    """A port nobody listens on now. Another process can still take it first; that failure is named."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the group, SIGKILL to what is left of it after 20 seconds."""
    _signal(process, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)
    _signal(process, signal.SIGKILL)
    process.wait()


def failure(process: subprocess.Popen[bytes], log: Path) -> LaunchError:
    """Why a process that ended did, from its status and the end of its log."""
    status = process.returncode
    text = tail(log, 200)
    last = tail(log, 5).strip() or "it printed nothing"
    for pattern, kind, fix in _SIGNS:
        if re.search(pattern, text):
            return LaunchError(kind, f"The server ended with status {status}: {kind}.", last, fix)
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        fix = "SIGKILL often is the kernel's answer to a machine without memory left." if name == "SIGKILL" else ""
        return LaunchError("signal", f"The server was ended by {name}.", last, fix)
    return LaunchError("exit", f"The server ended with status {status}.", last, f"Its log is {log}.")


def tail(log: Path, lines: int) -> str:
    """The last lines of a log."""
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    return ""


def _program(argv: tuple[str, ...]) -> list[str]:
    """`perilune` is this installation's own, whatever PATH says."""
    if argv[0] == "perilune":
        return [sys.executable, "-m", "perilune", *argv[1:]]
    return [shutil.which(argv[0]) or argv[0], *argv[1:]]


def _ready(process: subprocess.Popen[bytes], server: Server, port: int, log: Path) -> str:
    end = time.monotonic() + server.ready_s
    while time.monotonic() < end:
        if process.poll() is not None:
            raise failure(process, log)
        url = f"http://127.0.0.1:{port}" if port else _printed(log)
        if url is not None:
            with contextlib.suppress(httpx.HTTPError):
                # A server that wants a key answers 401: it is up.
                if httpx.get(f"{url}/v1/models", timeout=5).status_code in (200, 401):
                    return url
        time.sleep(0.1)
    raise LaunchError(
        "timeout",
        f"The server did not answer within {server.ready_s:g} s.",
        tail(log, 5),
        "Raise the recipe's ready_s.",
    )


def _printed(log: Path) -> str | None:
    found = re.search(r"serving .* at (http://\S+)", tail(log, 50))
    return found.group(1) if found else None


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
