"""Opens an engine's doors for caches: keys, tables, transports; on the first rank, and behind it on the others."""

from __future__ import annotations

import hashlib
import os
import socket
import threading

import zmq

from perilune.cache.arena import CacheArenas
from perilune.cache.geometry import CacheGeometry
from perilune.engine.config import EngineConfig, EnginePlan
from perilune.engine.handover import Handover
from perilune.engine.ranked import RankedRunner
from perilune.engine.roles import RoleConfig
from perilune.engine.runner import Runner
from perilune.engine.scheduler import Scheduler
from perilune.engine.tiers import identity
from perilune.models.checkpoint import Checkpoint
from perilune.models.fingerprint import contents
from perilune.pd.exchange import Exchange
from perilune.pd.memory import Memory
from perilune.pd.probe import Probe, probe
from perilune.pd.rank import LocalRank, Rank, factories
from perilune.pd.regions import model_name, table_of
from perilune.pd.remote import RemoteRank, serve_rank


class FrontDoor:
    """The first rank's: an Exchange over all ranks, the Handover in front of it, and what was found out on the way.

    `because`: lines that say what serves. `bytes_per_second`: of the best transport, within this process.
    """

    def __init__(
        self,
        config: EngineConfig,
        role: RoleConfig,
        checkpoint: Checkpoint,
        plan: EnginePlan,
        runner: Runner | RankedRunner,
        scheduler: Scheduler,
    ) -> None:
        """Opens it. Raises ConfigError without a cluster key or if nothing can listen, TransportError if no transport
        works on every rank."""
        key, settings = role.key(), role.settings()
        weights = contents(checkpoint.config, checkpoint.stored)
        held = hashlib.sha256(weights + str(plan.weight_bits).encode()).digest()
        model = model_name(held, CacheGeometry.of(checkpoint.spec, plan.dtype))
        found = probe(factories(settings, key))
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        ranks: list[Rank] = [_rank(config, role, checkpoint, plan, runner.arenas, 0, model)]
        if isinstance(runner, RankedRunner):
            ranks += [RemoteRank(self._context, endpoint) for endpoint in runner.open_doors(model)]
        exchange = Exchange(f"{socket.gethostname()}-{os.getpid()}", key, ranks, settings)
        exchange.start()
        computed_by = f"{runner.selection.because}; {plan.weight_bits} bits"
        by = identity(weights, checkpoint, plan.dtype, computed_by, config.tp, config.ep)
        self.handover = Handover(role, exchange, by, scheduler.cache, scheduler)
        serving = [each for each in found if each.name in exchange.transports]
        self.because = (f"role {role.role}, cluster key {key.name}", *exchange.because, *map(_line, serving))
        self.bytes_per_second = serving[0].bytes_per_second if serving else 0.0

    def close(self) -> None:
        """Every lease is withdrawn, every transfer ended."""
        self.handover.close()
        self._context.destroy(linger=0)


def _line(found: Probe) -> str:
    return f"transport {found.line}"


class BackDoor:
    """Another rank's: its arenas, moved as the first rank says, in threads beside the one that obeys its orders."""

    def __init__(
        self,
        config: EngineConfig,
        checkpoint: Checkpoint,
        plan: EnginePlan,
        arenas: CacheArenas,
        rank: int,
        endpoint: str,
        model: str,
    ) -> None:
        assert config.pd is not None
        local, self._over = _rank(config, config.pd, checkpoint, plan, arenas, rank, model), threading.Event()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        work = (self._context, endpoint, local, lambda: not self._over.is_set())
        self._thread = threading.Thread(target=serve_rank, args=work, name="pd-door", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._context.term()


def _rank(
    config: EngineConfig,
    role: RoleConfig,
    checkpoint: Checkpoint,
    plan: EnginePlan,
    arenas: CacheArenas,
    rank: int,
    model: str,
) -> LocalRank:
    settings, geometry = role.settings(), CacheGeometry.of(checkpoint.spec, plan.dtype, config.tp)
    table = table_of(geometry, plan.cache, model, rank)
    return LocalRank(table, Memory.of(arenas), factories(settings, role.key()), settings.drain_seconds)
