"""One rank of an engine as the control thread sees it: a mover per transport, all over the same memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from perilune.pd.commands import Command, Report, Stop
from perilune.pd.keys import ClusterKey
from perilune.pd.local import LocalTransport
from perilune.pd.memory import Memory
from perilune.pd.mover import Mover
from perilune.pd.nixl import NixlTransport
from perilune.pd.regions import RegionTable
from perilune.pd.settings import PdSettings
from perilune.pd.tcp import TcpTransport
from perilune.pd.transport import Factory

STOP_SECONDS = 10.0


class Rank(Protocol):
    """Where commands go. `start` is called once; reports come from any thread."""

    table: RegionTable
    beacon: bytes
    transports: tuple[str, ...]

    def start(self, report: Callable[[Report], None]) -> None: ...

    def send(self, transport: str, command: Command) -> None: ...

    def stop(self) -> bool:
        """Whether everything has ended: then nothing writes to the memory any more."""
        ...


def factories(settings: PdSettings, key: ClusterKey) -> dict[str, Factory]:
    """How to make each transport that is asked for, in their order."""
    known: dict[str, Factory] = {
        "nixl": NixlTransport,
        "local": LocalTransport,
        "tcp": lambda memory: TcpTransport(memory, key, settings.host, settings.reachable_host),
    }
    return {name: known[name] for name in settings.transports}


class LocalRank:
    """A rank in this process."""

    def __init__(
        self, table: RegionTable, memory: Memory, made_by: Mapping[str, Factory], drain_seconds: float = 5.0
    ) -> None:
        self.table, self.beacon, self.transports = table, memory.beacon, tuple(made_by)
        self._memory, self._made_by, self._drain_seconds = memory, made_by, drain_seconds
        self._movers: dict[str, Mover] = {}

    def start(self, report: Callable[[Report], None]) -> None:
        for name, factory in self._made_by.items():
            mover = Mover(name, self.table, self._memory, factory, report, self._drain_seconds)
            self._movers[name] = mover
            mover.start()

    def send(self, transport: str, command: Command) -> None:
        self._movers[transport].send(command)

    def stop(self) -> bool:
        for mover in self._movers.values():
            mover.send(Stop())
        ended = [mover.join(STOP_SECONDS) for mover in self._movers.values()]
        return all(ended)
