"""A point's server: its program, a free port and a log, run as any engine is; or engines of two roles and a router."""

from __future__ import annotations

import contextlib
import secrets as random
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from perilune.bench.plan.point import Server
from perilune.deploy.child import Program, Running, Watch, free_port
from perilune.deploy.child import started as run
from perilune.deploy.failures import EngineFailedError
from perilune.pd.keys import KEY_VARIABLE

_GRACE = 20.0


@dataclass(frozen=True)
class Started:
    """All programs of a server; the last is the one that answers."""

    members: tuple[Running, ...]

    @property
    def url(self) -> str:
        return self.members[-1].url

    @property
    def groups(self) -> tuple[int, ...]:
        """Their process groups."""
        return tuple(member.process.pid for member in self.members)

    @property
    def alive(self) -> bool:
        return all(member.alive for member in self.members)

    def failure(self) -> EngineFailedError:
        """Why the first one that ended did."""
        return next((member for member in self.members if not member.alive), self.members[-1]).failure()


@contextlib.contextmanager
def started(server: Server, log: Path, secrets: Mapping[str, str] | None = None) -> Iterator[Started]:
    """Runs `server` for the duration of the block. `secrets` are added to its environment and written nowhere.

    A split one has its engines first, one after the other, each with a log of its own, and a cluster's key that nobody
    else gets. Raises EngineFailedError if one does not answer within its recipe's `ready_s`, ConfigError if it is not
    installed.
    """
    hidden = {**(secrets or {}), **({KEY_VARIABLE: random.token_hex(32)} if server.parts else {})}
    with contextlib.ExitStack() as stack:
        members: list[Running] = []
        for i, part in enumerate(server.parts):
            program = Program(
                "perilune", (*_program(part.argv), "--port", "0"), {**hidden, **part.env}, "/v1/models", None
            )
            own = log.with_name(f"{log.stem}-{part.role}-{i}.log")
            members.append(_running(stack, program, Watch(own, server.ready_s, _GRACE)))
        port = 0 if server.engine == "perilune" else free_port()
        engines = [word for part, at in zip(server.parts, members, strict=True) for word in (f"--{part.role}", at.url)]
        program = Program(
            engine=server.engine,
            argv=(*_program(server.argv), *engines, f"--{server.port_flag}", str(port)),
            environment={**hidden, **server.env},
            ready="/v1/models",
            url=f"http://127.0.0.1:{port}" if port else None,
        )
        members.append(_running(stack, program, Watch(log, server.ready_s, _GRACE)))
        yield Started(tuple(members))


def _running(stack: contextlib.ExitStack, program: Program, watch: Watch) -> Running:
    running = stack.enter_context(run(program, watch))
    assert running is not None, "only a stop ends the wait, and there is none"
    return running


def _program(argv: tuple[str, ...]) -> tuple[str, ...]:
    """`perilune` is this installation's own, whatever PATH says."""
    if argv[0] == "perilune":
        return (sys.executable, "-m", "perilune", *argv[1:])
    return (shutil.which(argv[0]) or argv[0], *argv[1:])
