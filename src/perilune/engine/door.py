"""Opens an engine's Handover: keys, region tables, transports, the lines printed at start."""

from __future__ import annotations

import hashlib
import os
import socket

from perilune.cache.geometry import CacheGeometry
from perilune.engine.config import EnginePlan
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
from perilune.pd.probe import probe
from perilune.pd.rank import LocalRank, factories
from perilune.pd.regions import model_name, table_of


def open_handover(
    config: RoleConfig, checkpoint: Checkpoint, plan: EnginePlan, runner: Runner | RankedRunner, scheduler: Scheduler
) -> tuple[Handover, float, tuple[str, ...]]:
    """(the started Handover, bytes/s of its best transport within this process, lines that say what serves).

    Raises ConfigError without a cluster key or if nothing can listen, TransportError if no transport works.
    """
    key, settings, geometry = config.key(), config.settings(), CacheGeometry.of(checkpoint.spec, plan.dtype)
    weights = contents(checkpoint.config, checkpoint.stored)
    held = hashlib.sha256(weights + str(plan.weight_bits).encode()).digest()
    computed_by = f"{runner.selection.because}; {plan.weight_bits} bits"
    made_by = factories(settings, key)
    found = probe(made_by)
    table = table_of(geometry, plan.cache, model_name(held, geometry))
    rank = LocalRank(table, Memory.of(runner.arenas), made_by, settings.drain_seconds)
    exchange = Exchange(f"{socket.gethostname()}-{os.getpid()}", key, [rank], settings)
    exchange.start()
    handover = Handover(
        config, exchange, identity(weights, checkpoint, plan.dtype, computed_by), scheduler.cache, scheduler
    )
    lines = (f"role {config.role}, cluster key {key.name}", *exchange.because)
    lines += tuple(f"transport {each.line}" for each in found if each.name in exchange.transports)
    best = next(each.bytes_per_second for each in found if each.name == exchange.transports[0])
    return handover, best, lines
