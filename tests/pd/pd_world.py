"""Tiny geometries, memory with known bytes, and the transports that work here."""

from __future__ import annotations

import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from perilune.cache.arena import CacheArenas
from perilune.cache.budget import CachePlan, plan_cache
from perilune.cache.geometry import CacheGeometry
from perilune.models.spec import DenseSpec, KdaSpec, LayerSpec, MlaSpec, ModelSpec
from perilune.pd.compiler import Runs
from perilune.pd.errors import TransportError
from perilune.pd.exchange import Exchange
from perilune.pd.keys import ClusterKey
from perilune.pd.leases import LeaseTimes
from perilune.pd.local import LocalTransport
from perilune.pd.memory import BEACON_BYTES, Memory
from perilune.pd.nixl import NixlTransport
from perilune.pd.rank import LocalRank, factories
from perilune.pd.reception import ReceptionTimes
from perilune.pd.regions import RegionTable, table_of
from perilune.pd.settings import Event, PdSettings
from perilune.pd.tcp import TcpTransport
from perilune.pd.transport import Factory, Operation, Peer, Transport

EventKind = TypeVar("EventKind")
KEY = ClusterKey(b"a key that only tests know")
FACTORIES: dict[str, Factory] = {
    "local": LocalTransport,
    "tcp": lambda memory: TcpTransport(memory, KEY),
    "nixl": NixlTransport,
}


def hybrid(layers: str = "kkmkm", heads: int = 8, head_dim: int = 4) -> ModelSpec:
    """A model of KDA (k) and MLA (m) layers; small enough to look at every byte."""
    kda = LayerSpec(KdaSpec(heads, head_dim), DenseSpec(8))
    mla = LayerSpec(MlaSpec(heads, 4, 4, 4, latent_rank=8), DenseSpec(8))
    made = tuple(kda if letter == "k" else mla for letter in layers)
    return ModelSpec("test", "Test", made, 32, 16, 1e-5, 1 << 20, "bfloat16", (0,))


def engine(
    tp: int = 1, page_tokens: int = 64, pages: int = 12, slots: int = 3, spec: ModelSpec | None = None
) -> tuple[RegionTable, ...]:
    """The tables of one engine's ranks."""
    geometry = CacheGeometry.of(spec or hybrid(), "bfloat16", tp)
    plan = sized(geometry, pages, slots)
    return tuple(table_of(geometry, plan, "model", rank, page_tokens) for rank in range(tp))


def sized(geometry: CacheGeometry, pages: int, slots: int) -> CachePlan:
    return plan_cache(geometry, max_context=pages * 64 // slots, max_running=slots)


def pools(table: RegionTable, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Random bytes of the lengths that a table declares."""
    random = np.random.default_rng(seed * 64 + table.rank)
    return [random.integers(0, 256, size, np.uint8) for size in table.pool_bytes.values()]


def make(name: str, memory: Memory) -> Transport:
    """The named transport; skips the test where it is not installed."""
    try:
        return FACTORIES[name](memory)
    except TransportError as error:
        pytest.skip(str(error))


@pytest.fixture(params=sorted(FACTORIES))
def transport_name(request: pytest.FixtureRequest) -> str:
    if request.param == "nixl":
        pytest.importorskip("nixl_cu12", reason="the wheel is not installed: pip install 'perilune[pd-cu12]'")
    return str(request.param)


def until(done: Callable[[], bool], *transports: Transport, seconds: float = 20) -> None:
    """Poll all transports until `done`."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "nothing happens any more"
        for transport in transports:
            transport.poll(0.001)


def finish(operation: Operation, *transports: Transport) -> Operation:
    until(lambda: operation.over, *transports)
    return operation


@pytest.fixture
def closing() -> Iterator[list[Transport]]:
    """Transports put in here are closed when the test ends."""
    opened: list[Transport] = []
    yield opened
    for transport in opened:
        transport.close()


class Canonical:
    """One sequence's memory with no engine around it: random bytes per layer, by token and by head."""

    def __init__(self, spec: ModelSpec, tokens: int, seed: int = 1) -> None:
        random = np.random.default_rng(seed)
        whole = CacheGeometry.of(spec, "bfloat16")

        def values(*shape: int) -> torch.Tensor:
            return torch.from_numpy(random.integers(0, 256, shape, np.uint8))

        self.spec, self.tokens = spec, tokens
        self.latents = {block.layer: values(tokens, block.values * 2) for block in whole.latents}
        self.states = {b.layer: values(b.heads, b.head_dim, b.head_dim * 4) for b in whole.states}
        self.convs = {b.layer: values(3, b.heads, b.head_dim, b.carried_taps * 2) for b in whole.states}

    def write(self, arenas: Sequence[CacheArenas], pages: Sequence[int], slot: int) -> None:
        for rank, arena in enumerate(arenas):
            for layer, latents in self.latents.items():
                view = arena.pages(layer).view(torch.uint8)
                for t in range(self.tokens):
                    view[pages[t // 64], t % 64] = latents[t]
            for layer in self.states:
                heads = self.heads(layer, rank, len(arenas))
                arena.state(layer).view(torch.uint8)[slot] = self.states[layer][heads]
                arena.conv(layer).view(torch.uint8)[slot] = self.convs[layer][:, heads]

    def wrong(self, arenas: Sequence[CacheArenas], pages: Sequence[int], slot: int, cached: int = 0) -> list[str]:
        """Every layer of every rank whose bytes are not these, from token `cached` on; and tails that are not zero."""
        found = []
        for rank, arena in enumerate(arenas):
            for layer, latents in self.latents.items():
                view = arena.pages(layer).view(torch.uint8)
                rows = torch.cat([view[page] for page in pages])
                if not torch.equal(rows[cached : self.tokens], latents[cached:]):
                    found.append(f"latents of layer {layer} on rank {rank}")
                if rows[self.tokens : -(-self.tokens // 64) * 64].any():
                    found.append(f"tail of layer {layer} on rank {rank}")
            for layer in self.states:
                heads = self.heads(layer, rank, len(arenas))
                if not torch.equal(arena.state(layer).view(torch.uint8)[slot], self.states[layer][heads]):
                    found.append(f"state of layer {layer} on rank {rank}")
                if not torch.equal(arena.conv(layer).view(torch.uint8)[slot], self.convs[layer][:, heads]):
                    found.append(f"conv of layer {layer} on rank {rank}")
        return found

    def heads(self, layer: int, rank: int, tp: int) -> slice:
        share = len(self.states[layer]) // tp
        return slice(rank * share, (rank + 1) * share)


def filled_arenas(spec: ModelSpec, tp: int, pages: int, slots: int, seed: int) -> list[CacheArenas]:
    """Real arenas, one per rank, full of noise, so that what nobody wrote cannot look right."""
    random = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(tp):
        geometry = CacheGeometry.of(spec, "bfloat16", tp)
        arenas = CacheArenas(geometry, sized(geometry, pages, slots))
        for tensor in (arenas.page_arena.tensor.view(torch.uint8), arenas.slot_arena.buffer):
            tensor.copy_(torch.randint(0, 256, tensor.shape, generator=random, dtype=torch.uint8))
        made.append(arenas)
    return made


QUICK = PdSettings(
    transports=("tcp",),
    leases=LeaseTimes(ttl=5.0, prefill=20.0, longest=30.0),
    receptions=ReceptionTimes(ttl=5.0, reply=2.0, repeat=0.3, patience=3.0, drain=5.0),
    drain_seconds=0.5,
)


class Gate:
    """What a stubborn transport waits for, and what it was seen doing."""

    def __init__(self) -> None:
        self.open, self.begun = threading.Event(), threading.Event()
        self.threads: set[str] = set()
        self.failures = 0  # how many reads fail, once the gate is open, before any succeeds


class Stubborn(LocalTransport):
    """Copies only once the gate is open, and then whatever else was said meanwhile, but for `close`: the worst that a
    transport may do, and what NIXL does. The beacon is read at once."""

    def __init__(self, gate: Gate, memory: Memory) -> None:
        super().__init__(memory)
        self.gate = gate

    def poll(self, timeout: float) -> None:
        self.gate.threads.add(threading.current_thread().name)
        held = [operation for operation in self._queue if operation.runs.nbytes != BEACON_BYTES]
        if held and not self.gate.open.is_set():
            self.gate.begun.set()
            self._queue = deque(operation for operation in self._queue if operation not in held)
            super().poll(min(timeout, 0.005))
            self._queue.extend(held)
            return
        for operation in held[: self.gate.failures]:
            self.gate.failures -= 1
            self._queue.remove(operation)
            operation.fail("as asked")
        super().poll(timeout)

    def read(self, peer: Peer, runs: Runs) -> Operation:
        self.gate.threads.add(threading.current_thread().name)
        return super().read(peer, runs)

    def disconnect(self, peer: Peer) -> bool:
        return not any(operation.peer is peer and not operation.over for operation in self._queue)


class TestEngine:
    """One engine without a model: arenas for each rank, and the exchange that would hang under its loop."""

    __test__ = False

    def __init__(
        self, name: str, spec: ModelSpec, tp: int = 1, settings: PdSettings = QUICK, pages: int = 80, slots: int = 4,
        model: str = "model", key: ClusterKey = KEY, transport: Callable[[int, Memory], Transport] | None = None,
    ) -> None:  # fmt: skip
        """`transport` makes the first transport's stand-in for a rank."""
        geometry = CacheGeometry.of(spec, "bfloat16", tp)
        self.plan = sized(geometry, pages, slots)
        self.spec, self.arenas = spec, filled_arenas(spec, tp, pages, slots, seed=len(name))
        tables = [table_of(geometry, self.plan, model, rank) for rank in range(tp)]
        self.ranks = []
        for table, arenas in zip(tables, self.arenas, strict=True):
            made_by = factories(settings, key)
            if transport is not None:
                made_by[settings.transports[0]] = partial(transport, table.rank)
            self.ranks.append(LocalRank(table, Memory.of(arenas), made_by, settings.drain_seconds))
        self.exchange = Exchange(name, key, self.ranks, settings)
        self.events: list[Event] = []

    def start(self) -> TestEngine:
        self.exchange.start()
        return self

    def collect(self) -> list[Event]:
        self.events += self.exchange.events()
        return self.events

    def wait(self, kind: type[EventKind], name: str = "", seconds: float = 20) -> EventKind:
        """The first event of that kind, about that request or lease."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for event in self.collect():
                if isinstance(event, kind) and name in (
                    "", getattr(event, "request", None), getattr(event, "lease", None)
                ):  # fmt: skip
                    self.events.remove(event)
                    return event
            select.select([self.exchange], [], [], 0.05)
        raise AssertionError(f"no {kind.__name__}; there were {self.events}")

    def close(self) -> None:
        assert self.exchange.close()


@pytest.fixture
def engines() -> Iterator[Callable[..., TestEngine]]:
    """Makes started engines and closes them at the end."""
    made: list[TestEngine] = []

    def make(*args: Any, **kwargs: Any) -> TestEngine:
        made.append(TestEngine(*args, **kwargs))
        return made[-1].start()

    yield make
    for one in made:
        one.close()
