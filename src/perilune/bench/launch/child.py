"""A point's server: its program, a free port and a log, run as any engine is."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from perilune.bench.plan.point import Server
from perilune.deploy.child import Program, Running, Watch, free_port
from perilune.deploy.child import started as run

_GRACE = 20.0


@contextlib.contextmanager
def started(server: Server, log: Path, secrets: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Runs `server` for the duration of the block. `secrets` are added to its environment and written nowhere.

    Raises EngineFailedError if it does not answer within its recipe's `ready_s`, ConfigError if it is not installed.
    """
    port = 0 if server.engine == "perilune" else free_port()
    program = Program(
        engine=server.engine,
        argv=(*_program(server.argv), f"--{server.port_flag}", str(port)),
        environment={**(secrets or {}), **server.env},
        ready="/v1/models",
        url=f"http://127.0.0.1:{port}" if port else None,
    )
    with run(program, Watch(log, server.ready_s, _GRACE)) as running:
        assert running is not None, "only a stop ends the wait, and there is none"
        yield running


def _program(argv: tuple[str, ...]) -> tuple[str, ...]:
    """`perilune` is this installation's own, whatever PATH says."""
    if argv[0] == "perilune":
        return (sys.executable, "-m", "perilune", *argv[1:])
    return (shutil.which(argv[0]) or argv[0], *argv[1:])
