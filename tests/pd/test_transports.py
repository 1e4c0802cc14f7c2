"""One contract, every transport: what is read is what is there, what is over writes no more, what fails says why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import msgspec
import numpy as np
import pytest
from pd_world import FACTORIES, KEY, finish, make, until

from perilune.pd.checksum import Checksum
from perilune.pd.compiler import POOL_SHIFT, Runs
from perilune.pd.errors import PlanError, TransportError
from perilune.pd.keys import ClusterKey
from perilune.pd.memory import BEACON_BYTES, Memory, beacon_runs
from perilune.pd.tcp import TcpTransport
from perilune.pd.transport import Operation, Peer, Transport

SLOTS = 1 << POOL_SHIFT


def memory(size: int = 1 << 16, seed: int | None = None) -> Memory:
    random = np.random.default_rng(seed)
    data = [np.zeros(size, np.uint8) if seed is None else random.integers(0, 256, size, np.uint8) for _ in range(2)]
    return Memory(data)


def runs(*rows: tuple[int, int, int]) -> Runs:
    source, target, length = np.array(rows, np.int64).reshape(-1, 3).T
    return Runs(source.copy(), target.copy(), length.copy())


class Pair:
    """Two transports that know each other, in one process."""

    def __init__(self, name: str, closing: list[Transport], size: int = 1 << 16) -> None:
        self.there, self.here = memory(size, seed=7), memory(size)
        self.server, self.reader = make(name, self.there), make(name, self.here)
        closing += [self.reader, self.server]
        self.peer = self.reader.connect(self.server.address)

    def read(self, wanted: Runs) -> Operation:
        return finish(self.reader.read(self.peer, wanted), self.reader, self.server)


def test_scattered_runs_arrive_byte_for_byte(transport_name: str, closing: list[Transport]) -> None:
    pair = Pair(transport_name, closing)
    rows = [(n * 40, (511 - n) * 100, 1 + n % 39) for n in range(512)]
    rows += [(SLOTS + a, SLOTS + b, length) for a, b, length in rows]
    operation = pair.read(runs(*rows))
    assert operation.state == "done", operation.error
    for pool, (there, here) in enumerate(zip(pair.there.pools[:2], pair.here.pools[:2], strict=True)):
        expected = np.zeros_like(here)
        for a, b, length in rows[pool * 512 : (pool + 1) * 512]:
            a, b = a & (SLOTS - 1), b & (SLOTS - 1)
            expected[b : b + length] = there[a : a + length]
        assert np.array_equal(here, expected)


def test_more_runs_than_one_system_call_takes(transport_name: str, closing: list[Transport]) -> None:
    pair = Pair(transport_name, closing)
    rows = [(2 * n, 65534 - 2 * n, 2) for n in range(5000)]
    assert pair.read(runs(*rows)).state == "done"
    got, there = pair.here.pools[0].view(np.uint16), pair.there.pools[0].view(np.uint16)
    assert np.array_equal(got[:-5001:-1], there[:5000])


def test_megabytes_in_one_run_and_several_reads_at_once(transport_name: str, closing: list[Transport]) -> None:
    size = 24 << 20
    pair = Pair(transport_name, closing, size)
    operations = [pair.reader.read(pair.peer, runs((n << 22, n << 22, 1 << 22))) for n in range(6)]
    until(lambda: all(operation.over for operation in operations), pair.reader, pair.server)
    assert [operation.state for operation in operations] == ["done"] * 6
    assert np.array_equal(pair.here.pools[0], pair.there.pools[0])
    assert not pair.peer.operations


def test_the_beacon_tells_whose_memory_it_is(transport_name: str, closing: list[Transport]) -> None:
    pair = Pair(transport_name, closing)
    before = pair.here.beacon
    assert pair.read(beacon_runs(3)).state == "done"
    assert pair.here.landed(3) == pair.there.beacon != pair.here.beacon == before
    assert pair.here.landed(2) == bytes(BEACON_BYTES)


def test_reading_the_same_bytes_again_is_safe(transport_name: str, closing: list[Transport]) -> None:
    pair = Pair(transport_name, closing)
    for _ in range(3):
        assert pair.read(runs((5, 9, 1000))).state == "done"
    assert np.array_equal(pair.here.pools[0][9:1009], pair.there.pools[0][5:1005])


@pytest.mark.parametrize(
    "row", [(1 << 16, 0, 1), (65530, 0, 7), (4 << POOL_SHIFT, 0, 1), (-1, 0, 4), (0, 0, -1)], ids=str
)
def test_case_14_a_source_outside_the_pools_fails_loudly(
    transport_name: str, closing: list[Transport], row: tuple[int, int, int]
) -> None:
    pair = Pair(transport_name, closing)
    if row[2] < 0:
        with pytest.raises(PlanError):
            pair.reader.read(pair.peer, runs(row))
        return
    operation = pair.read(runs((0, 100, 8), row))
    assert operation.state == "failed"
    assert "do not exist" in operation.error
    assert pair.read(runs((0, 0, 8))).state == "done", "the way is good for the next read"


@pytest.mark.parametrize("row", [(0, 1 << 16, 1), (0, 65530, 7), (0, 4 << POOL_SHIFT, 1)], ids=str)
def test_a_target_outside_the_pools_is_refused(
    transport_name: str, closing: list[Transport], row: tuple[int, int, int]
) -> None:
    pair = Pair(transport_name, closing)
    with pytest.raises(PlanError, match="do not exist"):
        pair.reader.read(pair.peer, runs(row))


def test_an_address_that_is_none_is_refused(transport_name: str, closing: list[Transport]) -> None:
    reader = make(transport_name, memory())
    closing.append(reader)
    with pytest.raises(TransportError):
        reader.connect(b"not an address")


def test_nothing_lands_after_close(transport_name: str, closing: list[Transport]) -> None:
    pair = Pair(transport_name, closing, 8 << 20)
    operation = pair.reader.read(pair.peer, runs((0, 0, 8 << 20)))
    pair.reader.close()
    pair.reader.close()
    assert operation.over
    before = pair.here.pools[0].copy()
    for _ in range(20):
        pair.server.poll(0.005)
    assert np.array_equal(pair.here.pools[0], before)


def test_a_peer_given_up_has_nothing_under_way(transport_name: str, closing: list[Transport]) -> None:
    pair = Pair(transport_name, closing)
    operation = pair.reader.read(pair.peer, runs((0, 0, 4096)))
    until(lambda: pair.reader.disconnect(pair.peer), pair.reader, pair.server)
    assert operation.over
    late = pair.reader.read(pair.peer, runs((0, 0, 16))) if transport_name != "local" else operation
    assert late.over or transport_name == "local"
    again = pair.reader.connect(pair.server.address)
    assert finish(pair.reader.read(again, runs((0, 0, 16))), pair.reader, pair.server).state == "done"


def test_waking_ends_a_wait(transport_name: str, closing: list[Transport]) -> None:
    transport = make(transport_name, memory())
    closing.append(transport)
    transport.wake()
    started = time.monotonic()
    transport.poll(20)
    assert time.monotonic() - started < 10


OTHER_PROCESS = """
import sys, time
sys.path.insert(0, {tests!r})
import numpy as np
from pd_world import FACTORIES
from perilune.pd.memory import Memory
random = np.random.default_rng(7)
memory = Memory([random.integers(0, 256, {size}, np.uint8) for _ in range(2)])
transport = FACTORIES[{name!r}](memory)
print(transport.address.hex(), memory.beacon.hex(), flush=True)
while True:
    transport.poll(0.0005)
"""


class Other:
    """The side that is read from in a process of its own."""

    def __init__(self, name: str, size: int) -> None:
        code = OTHER_PROCESS.format(tests=os.path.dirname(__file__), name=name, size=size)
        self.process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = ""
        while line.count(" ") != 1 or "NIXL" in line:
            line = self.process.stdout.readline()
            assert line, "the other process died"
        address, beacon = line.split()
        self.address, self.beacon = bytes.fromhex(address), bytes.fromhex(beacon)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def test_between_processes_and_after_the_other_was_killed(transport_name: str, closing: list[Transport]) -> None:
    size = 1 << 20
    here = memory(size)
    reader = make(transport_name, here)
    closing.append(reader)
    other = Other(transport_name, size)
    try:
        peer: Peer = reader.connect(other.address)
        read = finish(reader.read(peer, runs((0, 0, size), (SLOTS, SLOTS, size))), reader)
        assert read.state == "done", read.error
        assert all(np.array_equal(a, b) for a, b in zip(here.pools[:2], memory(size, seed=7).pools[:2], strict=True))
    finally:
        other.kill()
    read = finish(reader.read(peer, runs((0, 0, size))), reader)
    assert read.state == "failed"
    assert read.error


def test_tcp_a_hung_peer_is_given_up_at_once(closing: list[Transport]) -> None:
    reader = make("tcp", memory(1 << 20))
    closing.append(reader)
    other = Other("tcp", 1 << 20)
    try:
        peer = reader.connect(other.address)
        assert finish(reader.read(peer, runs((0, 0, 1 << 20))), reader).state == "done"
        other.process.send_signal(signal.SIGSTOP)
        read = reader.read(peer, runs((0, 0, 1 << 20)))
        for _ in range(50):
            reader.poll(0.002)
        assert not read.over
        assert reader.disconnect(peer)
        assert read.state == "failed"
    finally:
        other.kill()


def test_tcp_without_the_key_nothing_is_read(closing: list[Transport]) -> None:
    server = TcpTransport(memory(seed=1), KEY)
    reader = TcpTransport(memory(), ClusterKey(b"another key, as long as it"))
    closing += [server, reader]
    read = finish(reader.read(reader.connect(server.address), runs((0, 0, 64))), reader, server)
    assert read.state == "failed"
    assert "key" in read.error
    assert not reader.memory.pools[0].any()


def test_tcp_a_reader_that_does_not_prove_itself_is_dropped(closing: list[Transport]) -> None:
    import socket

    server = TcpTransport(memory(seed=1), KEY)
    closing.append(server)
    where = msgspec.msgpack.decode(server.address)
    with socket.create_connection((where["host"], where["port"])) as sock:
        sock.setblocking(False)
        sock.sendall(b"plnpd\x00\x00\x01" + bytes(16) + bytes(32))
        got = bytearray()

        def dropped() -> bool:
            try:
                part = sock.recv(4096)
            except BlockingIOError:
                return False
            got.extend(part)
            return not part

        until(dropped, server)
    assert len(got) == 48


def test_tcp_a_changed_byte_fails_the_read(closing: list[Transport], monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair("tcp", closing)
    monkeypatch.setattr(Checksum, "__call__", lambda self, memory, address, length: memory is pair.here)
    operation = pair.read(runs((0, 0, 64)))
    assert operation.state == "failed"
    assert "checksum" in operation.error


def test_every_transport_is_under_test() -> None:
    assert set(FACTORIES) == {"local", "tcp", "nixl"}
