"""A rank in another process, and what is asked of transports and engines before there is any request."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zmq
from conftest import FACTORIES, KEY, QUICK, Canonical, TestEngine, engine, filled_arenas, hybrid, sized

from perilune.cache.geometry import CacheGeometry
from perilune.pd.errors import TransportError
from perilune.pd.exchange import Exchange
from perilune.pd.keys import ClusterKey
from perilune.pd.memory import Memory
from perilune.pd.probe import ask, probe
from perilune.pd.rank import LocalRank, factories
from perilune.pd.regions import differences, table_of
from perilune.pd.remote import RemoteRank
from perilune.pd.settings import Arrived
from perilune.pd.transport import Transport

RANK = """
import os, sys
sys.path.insert(0, {tests!r})
import numpy as np, zmq
from conftest import KEY, QUICK, filled_arenas, hybrid, sized
from perilune.cache.geometry import CacheGeometry
from perilune.pd.memory import Memory
from perilune.pd.rank import LocalRank, factories
from perilune.pd.regions import table_of
from perilune.pd.remote import serve_rank
parent = os.getppid()
geometry = CacheGeometry.of(hybrid(), "bfloat16", 2)
arenas = filled_arenas(hybrid(), 2, 80, 4, seed=1)[1]
memory = Memory.of(arenas)
rank = LocalRank(table_of(geometry, sized(geometry, 80, 4), "model", 1), memory, factories(QUICK, KEY))
serve_rank(zmq.Context.instance(), {endpoint!r}, rank, lambda: os.getppid() == parent)
np.savez({result!r}, pages=memory.pools[0], slots=memory.pools[1])
"""


def test_half_of_a_cache_lands_in_another_process(engines: Callable[..., TestEngine], tmp_path: Path) -> None:
    source = engines("prefill", hybrid())
    canonical = Canonical(source.spec, 300)
    canonical.write(source.arenas, [7, 3, 9, 1, 5], 2)
    endpoint, result = f"ipc://{tmp_path}/rank1", tmp_path / "rank1.npz"
    code = RANK.format(tests=str(Path(__file__).parent), endpoint=endpoint, result=str(result))
    process = subprocess.Popen([sys.executable, "-c", code])
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    remote = RemoteRank(context, endpoint)
    geometry = CacheGeometry.of(hybrid(), "bfloat16", 2)
    arenas = filled_arenas(hybrid(), 2, 80, 4, seed=1)
    table = table_of(geometry, sized(geometry, 80, 4), "model", 0)
    first = LocalRank(table, Memory.of(arenas[0]), factories(QUICK, KEY))
    target = TestEngine("d", hybrid(), 2)
    target.exchange = Exchange("d", KEY, [first, remote], QUICK)
    target.start()
    try:
        for n in range(2):
            lease, ticket = source.exchange.offer(range(300))
            source.exchange.seal(lease, [7, 3, 9, 1, 5], 2, b"t")
            target.exchange.receive(str(n), ticket, range(300), [1, 2, 4, 8, 16], 3)
            target.wait(Arrived, str(n))
    finally:
        assert target.exchange.close()
        context.term()
        assert process.wait(20) == 0
    held = np.load(result)
    for tensor, name in ((arenas[1].page_arena.tensor, "pages"), (arenas[1].slot_arena.buffer, "slots")):
        tensor.view(torch.uint8).reshape(-1).copy_(torch.from_numpy(held[name]))
    assert canonical.wrong(arenas, [1, 2, 4, 8, 16], 3) == []


def test_a_rank_that_never_comes_is_an_error(tmp_path: Path) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with pytest.raises(TransportError, match="No rank came"):
        RemoteRank(context, f"ipc://{tmp_path}/rank1", patience=0.05)
    context.term()


def test_the_probe_says_what_works_and_why_the_rest_does_not(transport_name: str) -> None:
    def broken(memory: Memory) -> Transport:
        raise TransportError("No such card.")

    works, does_not = probe({transport_name: FACTORIES[transport_name], "rdma": broken}, size=1 << 20)
    assert works.bytes_per_second > 0
    assert works.line.startswith(f"{transport_name}: ")
    assert works.line.endswith("/s within this process")
    assert does_not.line == "rdma: No such card."


def test_an_engine_tells_its_tables_to_whoever_has_the_key(engines: Callable[..., TestEngine]) -> None:
    one, other = engines("one", hybrid(), 2), engines("other", hybrid("kkmk"))
    here, there = ask(one.exchange.control, KEY), ask(other.exchange.control, KEY)
    assert here.rendezvous == one.exchange.describe().rendezvous
    assert differences(here.rendezvous.tables, engine(2, pages=80, slots=4)) == []
    found = differences(here.rendezvous.tables, there.rendezvous.tables)
    assert "mla_latent of layer 4 is missing there" in found
    assert "kda_state of layer 3 is missing here" not in found
    with pytest.raises(TransportError, match="No engine answers"):
        ask(one.exchange.control, ClusterKey(b"somebody else's key"), seconds=0.1)
