"""Tiny geometries, memory with known bytes, and the transports that work here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from perilune.cache.budget import CachePlan, plan_cache
from perilune.cache.geometry import CacheGeometry
from perilune.models.spec import DenseSpec, KdaSpec, LayerSpec, MlaSpec, ModelSpec
from perilune.pd.errors import TransportError
from perilune.pd.keys import ClusterKey
from perilune.pd.local import LocalTransport
from perilune.pd.memory import Memory
from perilune.pd.nixl import NixlTransport
from perilune.pd.regions import RegionTable, table_of
from perilune.pd.tcp import TcpTransport
from perilune.pd.transport import Factory, Operation, Transport

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
