"""Which transports work on this host, and how fast: read from oneself, once, and say so. And: ask another engine."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import zmq

from perilune.errors import PeriluneError
from perilune.pd.compiler import Runs
from perilune.pd.errors import TransportError
from perilune.pd.keys import ClusterKey
from perilune.pd.memory import Memory
from perilune.pd.messages import Description, Hello, Post, Welcome
from perilune.pd.transport import Factory, Peer, Transport
from perilune.units import format_bytes

SIZE = 32 << 20
SECONDS = 10.0


@dataclass(frozen=True)
class Probe:
    """`reason` says why `name` does not work; `bytes_per_second` is 0 then."""

    name: str
    bytes_per_second: float
    reason: str = ""

    @property
    def line(self) -> str:
        return f"{self.name}: {self.reason or f'{format_bytes(self.bytes_per_second)}/s within this process'}"


def probe(factories: Mapping[str, Factory], size: int = SIZE) -> list[Probe]:
    """Try each transport between two memories of this process: 4 KiB compared, then `size` bytes timed."""
    return [_probe(name, factory, size) for name, factory in factories.items()]


def _probe(name: str, factory: Factory, size: int) -> Probe:
    there, here = (Memory([np.empty(size, np.uint8), np.empty(0, np.uint8)]) for _ in range(2))
    there.pools[0][:] = np.frombuffer(secrets.token_bytes(4096), np.uint8).repeat(-(-size // 4096))[:size]
    here.pools[0][:] = 0
    opened: list[Transport] = []
    try:
        opened += [factory(there), factory(here)]
        peer = opened[1].connect(opened[0].address)
        _read(opened, peer, Runs(np.array([0]), np.array([0]), np.array([min(size, 4096)])))
        if not np.array_equal(here.pools[0][:4096], there.pools[0][:4096]):
            return Probe(name, 0.0, "it brought other bytes than it was asked for")
        whole = Runs(np.array([0]), np.array([0]), np.array([size]))
        started = time.perf_counter()
        for batch in whole.batches(opened[1].batch_bytes):
            _read(opened, peer, batch)
        return Probe(name, size / (time.perf_counter() - started))
    except PeriluneError as error:
        return Probe(name, 0.0, str(error))
    finally:
        for transport in reversed(opened):
            transport.close()


def _read(transports: list[Transport], peer: Peer, runs: Runs) -> None:
    operation = transports[1].read(peer, runs)
    end = time.monotonic() + SECONDS
    while not operation.over:
        if time.monotonic() > end:
            raise TransportError("It does not finish.", f"{SECONDS:g} s have passed.")
        for transport in transports:
            transport.poll(0.0)
    if operation.state == "failed":
        raise TransportError("A read failed.", operation.error)


def ask(control: str, key: ClusterKey, seconds: float = 5.0) -> Description:
    """What the engine at `control` (tcp://host:port) says of itself. Raises TransportError if none answers in time."""
    post = Post(key, f"asking-{secrets.token_hex(8)}")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    try:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(control)
        socket.send(post.pack("", Hello()))
        if socket.poll(int(seconds * 1000)):
            envelope = post.unpack(socket.recv_multipart()[-1])
            if envelope is not None and isinstance(envelope.body, Welcome):
                return envelope.body.description
    except zmq.ZMQError as error:
        raise TransportError(f"{control} is no control address.", str(error)) from error
    finally:
        socket.close()
        context.term()
    raise TransportError(
        f"No engine answers at {control}.", f"{seconds:g} s have passed, or its answer is not signed with this key.",
        f"Compare the names of both keys; this one is {key.name}.",
    )  # fmt: skip
