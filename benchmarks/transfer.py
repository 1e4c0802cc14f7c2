"""One request's cache from one process to another, against the transport's own rate measured in the same run.

    python benchmarks/transfer.py [--transports tcp,local,nixl] [--tokens 4096,32768] [--repeat N] [--json FILE]

Geometry is Kimi-Linear-48B's in bf16 with fp32 state: 41.4 MiB of state, 8,064 bytes of latents per token. Page tables
are shuffled, so that no two pages can be joined. A hand-over is timed from the ticket's arrival to the verdict that the
bytes are valid: claim, manifest, plan, copy, release. The raw rate is that of the same transport reading the same bytes
in one piece of each pool, with nothing else around it. For tcp a second yardstick is measured beside it, in turns: one
connection, one loop of send and one of receive, no checksum, no protocol.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from select import select

import numpy as np

from perilune.cache.arena import CacheArenas
from perilune.cache.budget import plan_cache
from perilune.cache.geometry import CacheGeometry, pages_for
from perilune.models.spec import DenseSpec, KdaSpec, LayerSpec, MlaSpec, ModelSpec
from perilune.pd.compiler import POOL_SHIFT, Place, Runs, compile_pull
from perilune.pd.exchange import Exchange
from perilune.pd.keys import ClusterKey
from perilune.pd.memory import Memory
from perilune.pd.rank import LocalRank, factories
from perilune.pd.regions import table_of
from perilune.pd.settings import Arrived, Event, Lost, PdSettings
from perilune.units import format_bytes

KEY = ClusterKey(b"only this benchmark knows it")


def kimi_linear() -> ModelSpec:
    """What a cache needs to know of Kimi-Linear-48B: 20 KDA layers of 32 heads of 128, 7 MLA layers of 512 + 64."""
    kda = LayerSpec(KdaSpec(32, 128), DenseSpec(1))
    mla = LayerSpec(MlaSpec(32, 128, 64, 128, latent_rank=512), DenseSpec(1))
    layers = tuple(mla if n in (3, 7, 11, 15, 19, 23, 26) else kda for n in range(27))
    return ModelSpec("kimi_linear", "KimiLinearForCausalLM", layers, 1, 1, 1e-5, 1 << 20, "bfloat16", (0,))


@dataclass(frozen=True)
class Row:
    """Seconds; `raw` is the same bytes over the bare transport, `share` what the hand-over reaches of its rate; for tcp
    `sockets` is the same bytes through nothing but a socket. `worst` of all but the first."""

    transport: str
    tokens: int
    nbytes: int
    first: float
    median: float
    best: float
    worst: float
    raw: float
    share: float
    sockets: float | None


class Engine:
    """Arenas of a model and the exchange that would hang under an engine's loop."""

    def __init__(self, name: str, tokens: int, transport: str) -> None:
        geometry = CacheGeometry.of(kimi_linear(), "bfloat16")
        plan = plan_cache(geometry, tokens, 1)
        self.arenas = CacheArenas(geometry, plan)
        for tensor in (self.arenas.page_arena.tensor, self.arenas.slot_arena.buffer):
            tensor.fill_(1)  # touched, as after a first request
        self.memory = Memory.of(self.arenas)
        settings = PdSettings(transports=(transport,))
        self.made_by = factories(settings, KEY)
        rank = LocalRank(table_of(geometry, plan, "benchmark"), self.memory, self.made_by)
        self.exchange = Exchange(name, KEY, [rank], settings)
        self.exchange.start()
        self.pages = np.random.default_rng(len(name)).permutation(plan.pages)[: pages_for(tokens)].tolist()

    def next_event(self) -> Event:
        while True:
            select([self.exchange], [], [], 60)
            if events := self.exchange.events():
                return events[0]


def serve(transport: str, tokens: int) -> None:
    """The prefill side: a line in, a ticket out."""
    engine = Engine("source", tokens, transport)
    prompt = range(tokens)
    address = engine.exchange.describe().rendezvous.addresses[transport][0]
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=pour, args=(listener, engine.memory), daemon=True).start()
    print(json.dumps({"address": address.hex(), "port": listener.getsockname()[1]}), flush=True)
    for _ in sys.stdin:
        lease, ticket = engine.exchange.offer(prompt)
        engine.exchange.seal(lease, engine.pages, 0, b"token")
        print(json.dumps({"ticket": ticket}), flush=True)
        engine.next_event()
    engine.exchange.close()


def pour(listener: socket.socket, memory: Memory) -> None:
    """To whoever comes and says how many bytes: so many, latents first."""
    while True:
        with listener.accept()[0] as sock:
            for piece in pieces(memory, int(sock.recv(64))):
                sock.sendall(piece)


def pieces(memory: Memory, nbytes: int) -> list[memoryview]:
    latents = min(nbytes, memory.sizes[0])
    return [memory.views[0][:latents], memory.views[1][: nbytes - latents]]


def sockets(memory: Memory, port: int, nbytes: int) -> float:
    """Seconds for the same bytes through a socket and nothing else."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        started = time.perf_counter()
        sock.sendall(str(nbytes).encode())
        for piece in pieces(memory, nbytes):
            while piece:
                piece = piece[sock.recv_into(piece) :]
        return time.perf_counter() - started


def measure(transport: str, tokens: int, repeat: int) -> Row:
    command = (sys.executable, __file__, "--serve", transport, "--tokens", str(tokens))
    source = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603  # this file
    assert source.stdin is not None
    assert source.stdout is not None
    there = json.loads(source.stdout.readline())
    address = bytes.fromhex(there["address"])
    engine, times, raws, bare, nbytes = (
        Engine("target", tokens, transport),
        list[float](),
        list[float](),
        list[float](),
        0,
    )
    try:
        for n in range(repeat + 1):
            print(file=source.stdin, flush=True)
            ticket = json.loads(source.stdout.readline())["ticket"]
            started = time.perf_counter()
            engine.exchange.receive(str(n), ticket, range(tokens), engine.pages, 0)
            event = engine.next_event()
            times.append(time.perf_counter() - started)
            if isinstance(event, Lost):
                raise SystemExit(f"{transport}: {event.reason}")
            assert isinstance(event, Arrived)
            nbytes = event.nbytes
            if n:
                raws.append(raw(engine, transport, address, nbytes))
                bare += [sockets(engine.memory, there["port"], nbytes)] if transport == "tcp" else []
    finally:
        source.stdin.close()
        source.wait()
        engine.exchange.close()
    first, rest = times[0], times[1:]
    median, floor = statistics.median(rest), statistics.median(raws)
    ceiling = statistics.median(bare) if bare else None
    return Row(transport, tokens, nbytes, first, median, min(rest), max(rest), floor, floor / median, ceiling)


def raw(engine: Engine, name: str, address: bytes, nbytes: int) -> float:
    """Seconds for the same bytes over a transport of its own, connected before: one piece of either pool, each byte
    once, since what is read twice comes out of a processor's cache."""
    transport = engine.made_by[name](engine.memory)
    try:
        peer = transport.connect(address)
        sizes = [len(piece) for piece in pieces(engine.memory, nbytes)]
        places = ((0, sizes[0]), (1 << POOL_SHIFT, sizes[1]))  # pages from the first, then a slot
        whole = [Runs(np.array([start]), np.array([start]), np.array([size])) for start, size in places if size]
        batches = [batch for runs in whole for batch in runs.batches(transport.batch_bytes)]
        warm = transport.read(peer, Runs(np.array([0]), np.array([0]), np.array([4096])))
        while not warm.over:
            transport.poll(0.001)
        started, moving, waiting = time.perf_counter(), [warm], batches[::-1]
        while moving or waiting:
            moving = [operation for operation in moving if not operation.over]
            while waiting and len(moving) < transport.window:
                moving.append(transport.read(peer, waiting.pop()))
            if any(not operation.over for operation in moving):
                transport.poll(0.001)
        return time.perf_counter() - started
    finally:
        transport.close()


def plan_seconds(tokens: int, page_tokens: int) -> float:
    """Median time to plan a whole hand-over between two shuffled page tables, the source with other pages."""
    geometry = CacheGeometry.of(kimi_linear(), "bfloat16")
    plan = plan_cache(geometry, tokens * 64 // page_tokens, 1)
    source, target = table_of(geometry, plan, "b", 0, page_tokens), table_of(geometry, plan, "b")
    random = np.random.default_rng(1)
    places = [Place(tuple(random.permutation(plan.pages)[: tokens // size].tolist()), 0) for size in (64, page_tokens)]
    times = []
    for _ in range(9):
        started = time.perf_counter()
        compile_pull(target, places[0], [source], places[1], (0, tokens))
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transports", default="tcp,local,nixl")
    parser.add_argument("--tokens", default="4096,32768")
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.serve, int(asked.tokens))
        return
    for page_tokens in (64, 16):
        seconds = plan_seconds(1 << 18, page_tokens)
        print(f"plan of 262,144 tokens, pages of {page_tokens} to pages of 64: {seconds * 1e3:.1f} ms")
    print(f"{os.cpu_count()} cores")
    names = "".join(f"{name:>10}" for name in ("first", "median", "best", "worst", "raw"))
    print(f"{'':10}{'tokens':>8}{'bytes':>11}{names}{'GB/s':>8}{'of raw':>8}")
    rows = []
    for transport in asked.transports.split(","):
        for tokens in map(int, asked.tokens.split(",")):
            row = measure(transport, tokens, asked.repeat)
            rows.append(row)
            times = "".join(
                f"{value * 1e3:>7.1f} ms" for value in (row.first, row.median, row.best, row.worst, row.raw)
            )
            rate = row.nbytes / row.median / 1e9
            line = f"{transport:10}{tokens:8}{format_bytes(row.nbytes):>11}{times}{rate:8.2f}{row.share:8.0%}"
            print(line + (f"  (sockets alone {row.sockets * 1e3:.1f} ms)" if row.sockets else ""), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
