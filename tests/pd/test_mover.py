"""The mover's promise: after a report nothing of that job lands, whatever the transport does."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from conftest import Gate, Stubborn, engine, pools

from perilune.pd.commands import Cancel, Failed, Fetch, Fetched, Forget, Meet, Rendezvous, Report, Serving, Stop
from perilune.pd.compiler import Place
from perilune.pd.errors import TransportError
from perilune.pd.local import LocalTransport
from perilune.pd.memory import Memory
from perilune.pd.mover import Mover
from perilune.pd.transport import Factory, Transport

TABLE = engine()[0]
SOURCE, TARGET = Place((3, 1), 2), Place((0, 5), 1)


class Bench:
    """A source that only has an address, and a mover over a stubborn transport."""

    def __init__(self, factory: Callable[[Gate], Factory], drain_seconds: float) -> None:
        self.gate = Gate()
        self.there, self.here = Memory(pools(TABLE, 1)), Memory(pools(TABLE, 2))
        self.served = LocalTransport(self.there)
        self.reports: queue.Queue[Report] = queue.Queue()
        self.mover = Mover("local", TABLE, self.here, factory(self.gate), self.reports.put, drain_seconds)
        self.mover.start()

    def meet(self, beacon: bytes | None = None, name: str = "p") -> None:
        addresses = {"local": (self.served.address,)}
        self.mover.send(Meet(Rendezvous(name, (TABLE,), (beacon or self.there.beacon,), addresses)))

    def fetch(self, job: str, end: int = 100, place: Place = TARGET) -> None:
        self.mover.send(Fetch(job, "local", "p", SOURCE, place, 0, end, zero_tail=True))

    def next(self, seconds: float = 10) -> Report:
        return self.reports.get(timeout=seconds)

    def silent(self, seconds: float = 0.1) -> bool:
        time.sleep(seconds)
        return self.reports.empty()


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(factory: Callable[[Gate], Factory] = lambda gate: lambda memory: Stubborn(gate, memory),
             drain_seconds: float = 30) -> Bench:  # fmt: skip
        made.append(Bench(factory, drain_seconds))
        return made[-1]

    yield make
    for one in made:
        one.mover.send(Stop())
        assert one.mover.join(10)


def test_what_was_asked_for_arrives_and_the_tail_is_zero(bench: Callable[..., Bench]) -> None:
    it = bench()
    it.gate.open.set()
    assert isinstance(it.next(), Serving)
    it.meet()
    it.fetch("a")
    done = it.next()
    assert isinstance(done, Fetched)
    assert (done.job, done.rank) == ("a", 0)
    states = sum(region.place_bytes for region in TABLE.regions if region.pool == "slots")
    assert done.nbytes == 100 * 2 * 24 + states
    region = TABLE.regions[0]
    page = it.here.pools[0][5 * region.stride + region.offset :][: 64 * region.item_bytes]
    assert not page[36 * region.item_bytes :].any()
    assert page[: 36 * region.item_bytes].any()


def test_case_15_a_cancelled_job_is_over_when_its_last_read_is(bench: Callable[..., Bench]) -> None:
    it = bench()
    it.next()
    it.meet()
    it.fetch("a")
    it.gate.begun.wait(5)
    it.mover.send(Cancel("a"))
    assert it.silent()
    it.gate.open.set()
    assert it.next() == Failed(0, "a", "cancelled", "final")
    before = [pool.copy() for pool in it.here.pools[:2]]
    assert it.silent()
    assert all(np.array_equal(a, b) for a, b in zip(before, it.here.pools, strict=False))


def test_reads_that_never_end_are_fenced_by_a_new_epoch(bench: Callable[..., Bench]) -> None:
    it = bench(drain_seconds=0.05)
    it.next()
    it.meet()
    before = [pool.copy() for pool in it.here.pools[:2]]
    it.fetch("a", end=64)
    it.fetch("b", end=64)
    it.gate.begun.wait(5)
    it.mover.send(Cancel("a"))
    first, second, serving = it.next(), it.next(), it.next()
    assert first == Failed(0, "a", "cancelled", "final")
    assert isinstance(second, Failed)
    assert (second.job, second.kind) == ("b", "transient")
    assert isinstance(serving, Serving)
    assert serving.epoch == 1
    it.gate.open.set()
    time.sleep(0.05)
    assert all(np.array_equal(a, b) for a, b in zip(before, it.here.pools, strict=False))
    it.fetch("c")
    assert isinstance(it.next(), Fetched), "the new epoch serves"


def test_a_failed_read_ends_the_job_and_the_next_finds_a_new_way(bench: Callable[..., Bench]) -> None:
    it = bench()
    it.gate.open.set()
    it.gate.failures = 1
    it.next()
    it.meet()
    it.fetch("a")
    assert it.next() == Failed(0, "a", "as asked", "transient")
    it.fetch("a2")
    assert isinstance(it.next(), Fetched)


def test_a_way_to_another_process_is_not_taken(bench: Callable[..., Bench]) -> None:
    it = bench()
    it.gate.open.set()
    it.next()
    it.meet(beacon=bytes(64))
    before = [pool.copy() for pool in it.here.pools[:2]]
    it.fetch("a", end=64)
    assert it.next() == Failed(0, "a", "local leads to another process", "unreachable")
    assert all(np.array_equal(a, b) for a, b in zip(before, it.here.pools, strict=False))


def test_case_14_what_cannot_be_planned_fails_for_good(bench: Callable[..., Bench]) -> None:
    it = bench()
    it.next()
    it.meet()
    it.fetch("a", place=Place((0, 99), 1))
    report = it.next()
    assert isinstance(report, Failed)
    assert report.kind == "final"
    assert "no page 99" in report.reason


def test_an_engine_nobody_has_met_and_one_forgotten(bench: Callable[..., Bench]) -> None:
    it = bench()
    it.gate.open.set()
    it.next()
    it.fetch("a")
    assert it.next() == Failed(0, "a", "nobody has met that engine", "final")
    it.meet()
    it.fetch("b")
    assert isinstance(it.next(), Fetched)
    it.mover.send(Forget("p"))
    it.fetch("c")
    assert isinstance(it.next(), Failed)


def test_a_transport_that_cannot_start_says_so_and_refuses(bench: Callable[..., Bench]) -> None:
    def broken(memory: Memory) -> Transport:
        raise TransportError("Not today.")

    it = bench(lambda gate: broken)
    assert it.next() == Serving(0, "local", reason="Not today.")
    it.meet()
    it.fetch("a")
    assert it.next() == Failed(0, "a", "local does not work here", "unreachable")


def test_a_transport_that_breaks_is_replaced_and_its_jobs_are_told(bench: Callable[..., Bench]) -> None:
    class Breaking(Stubborn):
        def poll(self, timeout: float) -> None:
            super().poll(timeout)
            if self.gate.begun.is_set():
                self.gate.begun.clear()
                self.gate.open.set()
                raise OSError("broken")

    it = bench(lambda gate: lambda memory: Breaking(gate, memory))
    it.next()
    it.meet()
    it.fetch("a")
    failed, serving = it.next(), it.next()
    assert isinstance(failed, Failed)
    assert failed.kind == "transient"
    assert isinstance(serving, Serving)
    assert serving.epoch == 1
    it.fetch("b")
    assert isinstance(it.next(), Fetched)


def test_case_36_one_thread_uses_a_transport(bench: Callable[..., Bench]) -> None:
    it = bench()
    it.gate.open.set()
    it.next()
    it.meet()
    for n in range(3):
        it.fetch(str(n))
        it.next()
    assert it.gate.threads == {"pd-local-0"}


def test_an_empty_fetch_proves_the_way(bench: Callable[..., Bench]) -> None:
    it = bench()
    it.next()
    it.meet()
    it.mover.send(Fetch("a", "local", "p", Place(()), Place(()), 0, 0))
    assert it.next() == Fetched(0, "a", 0, 0, pytest.approx(0, abs=5))
