"""What may go wrong between two engines: every request ends in exactly one way, and nothing stays held."""

from __future__ import annotations

import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zmq
from pd_world import KEY, QUICK, Canonical, Gate, Stubborn, TestEngine, hybrid, until

from perilune.cache.geometry import CacheGeometry
from perilune.cache.pool import Pool
from perilune.errors import ConfigError
from perilune.pd.compiler import Runs
from perilune.pd.errors import MismatchError, TicketError, TransportError
from perilune.pd.exchange import Exchange
from perilune.pd.keys import ClusterKey
from perilune.pd.leases import LeaseTimes
from perilune.pd.memory import Memory
from perilune.pd.rank import LocalRank, factories
from perilune.pd.settings import Arrived, Lost, PdSettings, Settled, Unpinned

Make = Callable[..., TestEngine]
PROMPT = list(range(300))
PAGES, SLOT = [7, 3, 9, 1, 5], 2
HERE, THERE = [10, 2, 30, 4, 6], 1
LOCAL = replace(QUICK, transports=("local",))


def sealed(engine: TestEngine, seed: int = 1, prompt: list[int] = PROMPT) -> tuple[str, str, Canonical]:
    """(lease, ticket, what it holds)."""
    canonical = Canonical(engine.spec, len(prompt), seed)
    canonical.write(engine.arenas, PAGES, SLOT)
    lease, ticket = engine.exchange.offer(prompt)
    engine.exchange.seal(lease, PAGES, SLOT, b"first token")
    return lease, ticket, canonical


def snapshot(engine: TestEngine) -> list[torch.Tensor]:
    return [t.clone() for a in engine.arenas for t in (a.page_arena.tensor.view(torch.uint8), a.slot_arena.buffer)]


def unchanged(engine: TestEngine, before: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, snapshot(engine), strict=True))


def test_streamed_chunks_arrive_before_the_prompt_is_done(engines: Make) -> None:
    source, target = engines("prefill", hybrid()), engines("d", hybrid(), 2)
    canonical = Canonical(source.spec, 300)
    canonical.write(source.arenas, PAGES, SLOT)
    lease, ticket = source.exchange.offer(PROMPT)
    target.exchange.receive("r", ticket, PROMPT, HERE, THERE)
    source.exchange.progress(lease, 64, PAGES[:1])
    source.exchange.progress(lease, 256, PAGES[:4])
    until(lambda: target.exchange.counters.received_bytes >= 2 * 256 * 24 * 2)
    assert not target.collect()
    source.exchange.seal(lease, PAGES, SLOT, b"first token")
    assert target.wait(Arrived).payload == b"first token"
    assert canonical.wrong(target.arenas, HERE, THERE) == []
    assert source.wait(Unpinned) == Unpinned(lease, "released")


def test_case_5_the_slot_at_seal_time_is_read(engines: Make) -> None:
    source, target = engines("prefill", hybrid()), engines("d", hybrid())
    lease, ticket = source.exchange.offer(PROMPT)
    target.exchange.receive("r", ticket, PROMPT, HERE, THERE)
    source.exchange.progress(lease, 256, PAGES)
    canonical = Canonical(source.spec, 300, 9)
    canonical.write(source.arenas, PAGES, 3)  # a snapshot took the slot that it had before
    source.exchange.seal(lease, PAGES, 3, b"t")
    target.wait(Arrived)
    assert [w for w in canonical.wrong(target.arenas, HERE, THERE) if not w.startswith("latents")] == []


def test_case_25_what_was_cached_is_not_written(engines: Make) -> None:
    source, target = engines("prefill", hybrid(), 2), engines("d", hybrid())
    _, ticket, canonical = sealed(source)
    before = target.arenas[0].page_arena.tensor.clone()
    target.exchange.receive("r", ticket, PROMPT, HERE, THERE, cached=128)
    arrived = target.wait(Arrived)
    assert canonical.wrong(target.arenas, HERE, THERE, cached=128) == []
    others = [page for page in range(target.plan.pages) if page not in HERE[2:]]
    assert torch.equal(before[others].view(torch.uint8), target.arenas[0].page_arena.tensor[others].view(torch.uint8))
    assert arrived.nbytes < 300 * 48 + target.plan.slot_bytes


def test_case_3_and_40_engines_that_do_not_fit_say_so_before_a_byte_moves(engines: Make) -> None:
    source = engines("prefill", hybrid(), model="another")
    target = engines("d", hybrid())
    lease, ticket, _ = sealed(source)
    before = snapshot(target)
    target.exchange.receive("r", ticket, PROMPT, HERE, THERE)
    assert "the weights or cache formats are others: model here, another there" in target.wait(Lost).reason
    assert source.wait(Unpinned) == Unpinned(lease, "abandoned")
    assert unchanged(target, before)


def test_case_40_what_cannot_work_fails_at_start() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'tcp'"):
        PdSettings(transports=("tcpp",))
    with pytest.raises(ConfigError, match="No transport is left"):
        PdSettings(transports=())

    def broken(rank: int, memory: Memory) -> Stubborn:
        raise TransportError("Not on this host.")

    engine = TestEngine("d", hybrid(), settings=LOCAL, transport=broken)
    with pytest.raises(TransportError, match="local: Not on this host"):
        engine.start()
    with pytest.raises(MismatchError, match="each rank once"):
        Exchange("d", KEY, TestEngine("d", hybrid(), 2).ranks[:1], QUICK)
    good = TestEngine("d", hybrid()).start()
    port = int(good.exchange.control.rsplit(":", 1)[1])
    with pytest.raises(ConfigError, match="cannot listen"):
        TestEngine("e", hybrid(), settings=replace(QUICK, port=port)).start()
    good.close()


@pytest.mark.parametrize("pages", [[7, 3, 9, 1, 500], [7, 3, 9, 1], [7, 3, 9, 1, -2]])
def test_case_14_a_manifest_of_pages_that_do_not_exist_is_a_loud_failure(engines: Make, pages: list[int]) -> None:
    source, target = engines("prefill", hybrid()), engines("d", hybrid())
    lease, ticket = source.exchange.offer(PROMPT)
    source.exchange.seal(lease, pages, SLOT, b"t")
    target.exchange.receive("r", ticket, PROMPT, HERE, THERE)
    assert target.wait(Lost).fenced
    assert source.wait(Unpinned).outcome == "abandoned"


def test_case_15_an_aborted_request_is_lost_only_after_its_last_byte(engines: Make) -> None:
    gate = Gate()
    source = engines("prefill", hybrid(), settings=LOCAL)
    settings = replace(LOCAL, drain_seconds=30)
    target = engines("d", hybrid(), settings=settings, transport=lambda rank, memory: Stubborn(gate, memory))
    lease, ticket, _ = sealed(source)
    target.exchange.receive("r", ticket, PROMPT, HERE, THERE)
    assert gate.begun.wait(10)
    target.exchange.abort("r", "client gone")
    assert source.wait(Unpinned) == Unpinned(lease, "abandoned")
    assert not target.collect()
    until(lambda: target.exchange.counters.quarantined_pages == 5)
    gate.open.set()
    assert target.wait(Lost) == Lost("r", "client gone", fenced=True)
    before = snapshot(target)
    time.sleep(0.05)
    assert unchanged(target, before)
    until(lambda: target.exchange.counters.quarantined_pages == 0)


def test_case_16_one_rank_fails_and_the_request_waits_for_the_other(engines: Make) -> None:
    gates = [Gate(), Gate()]
    gates[0].failures = 99
    source = engines("prefill", hybrid(), settings=LOCAL)
    target = engines(
        "d", hybrid(), 2, settings=replace(LOCAL, drain_seconds=30),
        transport=lambda rank, memory: Stubborn(gates[rank], memory),
    )  # fmt: skip
    _, ticket, _ = sealed(source)
    target.exchange.receive("r", ticket, PROMPT, HERE, THERE)
    assert gates[1].begun.wait(10)
    gates[0].open.set()
    assert source.wait(Unpinned).outcome == "abandoned"
    assert not target.collect()
    gates[1].open.set()
    assert target.wait(Lost) == Lost("r", "as asked", fenced=True)
    until(lambda: target.exchange.counters.retries == 2)


def test_a_read_that_never_ends_is_lost_unfenced_and_settled_by_a_reset(engines: Make) -> None:
    gate = Gate()
    source = engines("prefill", hybrid(), settings=LOCAL)
    settings = replace(LOCAL, drain_seconds=3.0, receptions=replace(QUICK.receptions, drain=0.2))
    target = engines("d", hybrid(), settings=settings, transport=lambda rank, memory: Stubborn(gate, memory))
    _, ticket, _ = sealed(source)
    target.exchange.receive("r", ticket, PROMPT, HERE, THERE)
    assert gate.begun.wait(10)
    target.exchange.abort("r")
    assert target.wait(Lost) == Lost("r", "aborted", fenced=False)
    assert target.wait(Settled) == Settled("r")
    until(lambda: target.exchange.counters.resets == 1)
    gate.open.set()
    _, ticket, canonical = sealed(source, 5)
    target.exchange.receive("again", ticket, PROMPT, HERE, THERE)
    target.wait(Arrived, "again")
    assert canonical.wrong(target.arenas, HERE, THERE) == []


def test_case_17_pages_reused_after_the_lease_are_never_believed(engines: Make) -> None:
    gate = Gate()
    source = engines("prefill", hybrid(), settings=replace(LOCAL, leases=LeaseTimes(ttl=0.3)))
    target = engines("d", hybrid(), settings=LOCAL, transport=lambda rank, memory: Stubborn(gate, memory))
    lease, ticket, _ = sealed(source)
    target.exchange.receive("r", ticket, PROMPT, HERE, THERE)  # renews every 5/3 s: too seldom
    assert source.wait(Unpinned) == Unpinned(lease, "expired")
    Canonical(source.spec, 300, 77).write(source.arenas, PAGES, SLOT)
    gate.open.set()
    assert target.wait(Lost).reason == "the lease was expired"
    until(lambda: source.exchange.counters.leases_expired == 1)


def test_renewals_hold_a_lease_over_a_slow_transfer(engines: Make) -> None:
    gate = Gate()
    source = engines("prefill", hybrid(), settings=replace(LOCAL, leases=LeaseTimes(ttl=1.2)))
    settings = replace(LOCAL, receptions=replace(QUICK.receptions, ttl=1.2))
    target = engines("d", hybrid(), settings=settings, transport=lambda rank, memory: Stubborn(gate, memory))
    _, ticket, canonical = sealed(source)
    target.exchange.receive("r", ticket, PROMPT, HERE, THERE)
    assert gate.begun.wait(10)
    time.sleep(2.5)
    gate.open.set()
    target.wait(Arrived)
    assert canonical.wrong(target.arenas, HERE, THERE) == []


def test_case_21_a_cache_withdrawn_at_prefill_end(engines: Make) -> None:
    source, target = engines("prefill", hybrid()), engines("d", hybrid())
    lease, ticket, _ = sealed(source)
    source.exchange.withdraw(lease)
    assert source.wait(Unpinned) == Unpinned(lease, "withdrawn")
    source.exchange.withdraw(lease)
    target.exchange.receive("r", ticket, PROMPT, HERE, THERE)
    assert target.wait(Lost).reason == "the lease was withdrawn"
    assert not source.collect()


def test_case_24_a_read_that_is_late_never_passes_for_the_request_that_ended(engines: Make) -> None:
    gate = Gate()
    source = engines("prefill", hybrid(), settings=LOCAL)
    target = engines("d", hybrid(), settings=LOCAL, transport=lambda rank, memory: Stubborn(gate, memory))
    lease, ticket, _ = sealed(source)
    target.exchange.receive("r", ticket, PROMPT, HERE, THERE)
    assert gate.begun.wait(10)
    source.exchange.withdraw(lease)
    assert source.wait(Unpinned) == Unpinned(lease, "withdrawn")
    Canonical(source.spec, 300, 77).write(source.arenas, PAGES, SLOT)  # another request's
    gate.open.set()
    assert target.wait(Lost) == Lost("r", "the lease was withdrawn", fenced=True)


def test_case_22_a_request_that_is_refused_frees_the_other_side_at_once(engines: Make) -> None:
    source, target = engines("prefill", hybrid()), engines("d", hybrid())
    lease, ticket, _ = sealed(source)
    target.exchange.refuse(ticket, PROMPT, "too long")
    assert source.wait(Unpinned) == Unpinned(lease, "abandoned")


def test_case_23_both_sides_give_up(engines: Make) -> None:
    source, target = engines("prefill", hybrid()), engines("d", hybrid())
    lease, ticket, _ = sealed(source)
    target.exchange.receive("r", ticket, PROMPT, HERE, THERE)
    target.exchange.abort("r")
    source.exchange.withdraw(lease)
    assert source.wait(Unpinned).lease == lease
    until(lambda: any(isinstance(event, Lost | Arrived) for event in target.collect()))
    assert len(target.events) == 1
    until(lambda: (source.exchange.counters.leases, target.exchange.counters.receptions) == (0, 0))


def test_case_27_junk_on_the_control_port_is_counted_and_changes_nothing(engines: Make) -> None:
    source, target = engines("prefill", hybrid()), engines("d", hybrid())
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 1000)
    socket.connect(source.exchange.control)
    for junk in (b"", b"x", b"y" * 1000, bytes(200)):
        socket.send(junk)
    socket.send_multipart([b"", b"a", b"b"])
    until(lambda: source.exchange.counters.messages_refused == 5)
    socket.close()
    context.term()
    _, ticket, canonical = sealed(source)
    target.exchange.receive("r", ticket, PROMPT, HERE, THERE)
    target.wait(Arrived)
    assert canonical.wrong(target.arenas, HERE, THERE) == []


def test_case_29_a_sleeping_loop_is_woken_by_a_failure(engines: Make) -> None:
    source, target = engines("prefill", hybrid()), engines("d", hybrid())
    lease, ticket, _ = sealed(source)
    source.exchange.withdraw(lease)
    target.exchange.receive("r", ticket, PROMPT, HERE, THERE)
    assert select.select([target.exchange], [], [], 10)[0]
    assert [type(event) for event in target.exchange.events()] == [Lost]
    assert not select.select([target.exchange], [], [], 0)[0]


def test_case_38_a_ticket_is_good_once(engines: Make) -> None:
    source, target, other = engines("prefill", hybrid()), engines("d", hybrid()), engines("e", hybrid())
    _, ticket, _ = sealed(source)
    target.exchange.receive("r", ticket, PROMPT, HERE, THERE)
    with pytest.raises(TicketError, match="used already"):
        target.exchange.receive("again", ticket, PROMPT, HERE, THERE)
    target.wait(Arrived, "r")
    other.exchange.receive("r", ticket, PROMPT, HERE, THERE)
    assert other.wait(Lost).reason == "the lease was released"


def test_case_37_and_39_foreign_tickets_and_other_prompts_are_refused(engines: Make) -> None:
    source, target = engines("prefill", hybrid()), engines("d", hybrid())
    foreign = engines("prefill", hybrid(), key=ClusterKey(b"of another cluster"))
    _, ticket, _ = sealed(foreign)
    with pytest.raises(TicketError, match="not signed"):
        target.exchange.receive("r", ticket, PROMPT, HERE, THERE)
    _, ticket, _ = sealed(source)
    with pytest.raises(TicketError, match="another prompt"):
        target.exchange.receive("r", ticket, PROMPT[::-1], HERE, THERE)


def test_case_39_two_sequences_of_one_prompt_do_not_swap_their_caches(engines: Make) -> None:
    source, target = engines("prefill", hybrid()), engines("d", hybrid())
    made = []
    for n in range(2):
        canonical, pages = Canonical(source.spec, 300, n), list(range(10 * n, 10 * n + 5))
        canonical.write(source.arenas, pages, n)
        lease, ticket = source.exchange.offer(PROMPT)
        source.exchange.seal(lease, pages, n, str(n).encode())
        made.append((ticket, canonical))
    for n, (ticket, _) in enumerate(made):
        target.exchange.receive(f"r{n}", ticket, PROMPT, list(range(10 * n + 5, 10 * n + 10)), n)
    for n, (_, canonical) in enumerate(made):
        assert target.wait(Arrived, f"r{n}").payload == str(n).encode()
        assert canonical.wrong(target.arenas, list(range(10 * n + 5, 10 * n + 10)), n) == []


def test_nobody_at_the_address(engines: Make) -> None:
    source, target = engines("prefill", hybrid()), engines("d", hybrid())
    _, ticket, _ = sealed(source)
    source.close()
    target.exchange.receive("r", ticket, PROMPT, HERE, THERE)
    assert "no engine answers at tcp://" in target.wait(Lost).reason


def test_closing_ends_everything_that_is_open(engines: Make) -> None:
    gate = Gate()
    source = TestEngine("prefill", hybrid(), settings=LOCAL).start()
    target = TestEngine(
        "d", hybrid(), settings=LOCAL, transport=lambda rank, memory: Stubborn(gate, memory)
    ).start()  # fmt: skip
    lease, ticket, _ = sealed(source)
    target.exchange.receive("r", ticket, PROMPT, HERE, THERE)
    assert gate.begun.wait(10)
    source.close()
    assert source.wait(Unpinned) == Unpinned(lease, "withdrawn")
    target.close()
    assert target.wait(Lost).request == "r"


class Prefill:
    """prefill_process.py, and how to get tickets from it."""

    def __init__(self, moment: str = "never", name: str = "SIGKILL", port: int = 0) -> None:
        script = Path(__file__).with_name("prefill_process.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), moment, name, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self.control = self.line()

    def line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line
        return line

    def ticket(self) -> str:
        print(file=self.process.stdin, flush=True)
        return self.line()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def prefill() -> Iterator[Callable[..., Prefill]]:
    made: list[Prefill] = []

    def make(*args: object) -> Prefill:
        made.append(Prefill(*args))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        if one.process.poll() is None:
            one.kill()


@pytest.mark.parametrize(
    ("moment", "name"),
    [(moment, "SIGKILL") for moment in ("hello", "open", "read", "release")]
    + [("read", "SIGSTOP"), ("release", "SIGSTOP")],
)
def test_case_30_p_dies_or_hangs_in_each_phase(
    engines: Make, prefill: Callable[..., Prefill], moment: str, name: str
) -> None:
    target = engines("d", hybrid(), 2)
    doomed = prefill(moment, name)
    target.exchange.receive("r", doomed.ticket(), PROMPT, HERE, THERE)
    lost = target.wait(Lost)
    assert lost.fenced
    healthy = engines("prefill", hybrid())
    _, ticket, canonical = sealed(healthy)
    target.exchange.receive("next", ticket, PROMPT, HERE, THERE)
    target.wait(Arrived, "next")
    assert canonical.wrong(target.arenas, HERE, THERE) == []
    until(lambda: target.exchange.counters.quarantined_pages == 0)


def test_case_31_an_engine_that_restarts_at_the_same_address(engines: Make, prefill: Callable[..., Prefill]) -> None:
    target, other = engines("d", hybrid()), engines("e", hybrid())
    first = prefill()
    port = int(first.control.rsplit(":", 1)[1])
    target.exchange.receive("a", first.ticket(), PROMPT, HERE, THERE)
    target.wait(Arrived, "a")
    old = first.ticket()
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    second = prefill("never", "SIGKILL", port)
    target.exchange.receive("b", old, PROMPT, HERE, THERE)
    assert "restarted" in target.wait(Lost, "b").reason
    for engine in (target, other):
        engine.exchange.receive("c", second.ticket(), PROMPT, HERE, THERE)
        engine.wait(Arrived, "c")


def test_case_31_a_decode_engine_that_restarts(engines: Make) -> None:
    source = engines("prefill", hybrid())
    for n in range(3):
        target = TestEngine("d", hybrid()).start()
        _, ticket, canonical = sealed(source, n)
        target.exchange.receive("r", ticket, PROMPT, HERE, THERE)
        target.wait(Arrived)
        assert canonical.wrong(target.arenas, HERE, THERE) == []
        target.close()


SLOT_BYTES = CacheGeometry.of(hybrid(), "bfloat16").slot_bytes
MUTANTS: dict[str, Callable[[Runs], Runs]] = {
    "skipped layer": lambda r: Runs(r.source[1:], r.target[1:], r.length[1:]),
    "off by one page": lambda r: Runs(r.source + 48 * 64 * (r.source < 1 << 40), r.target, r.length),
    "previous slot": lambda r: Runs(r.source - SLOT_BYTES * (r.source > 1 << 40), r.target, r.length),
    "a byte short": lambda r: Runs(r.source, r.target, r.length - 1),
}


@pytest.mark.parametrize("mutant", [*MUTANTS, "q and k swapped", "state after N-1", "no zero tail"])
def test_case_4_wrong_plans_are_caught_by_bytes(engines: Make, monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    from perilune.pd import compiler, mover

    source, target = engines("prefill", hybrid()), engines("d", hybrid())
    if mutant in MUTANTS:
        change = MUTANTS[mutant]
        monkeypatch.setattr(mover, "compile_pull", lambda *args: [change(r) for r in compiler.compile_pull(*args)])
    elif mutant == "q and k swapped":
        original = compiler._state

        def swapped(region, slot, base):  # type: ignore[no-untyped-def]
            start, local, length = original(region, slot, base)
            order = (
                [1, 0, 2] if region.planes == 3 and region.count == source.plan.rows and slot == SLOT else slice(None)
            )
            return start, local[order], length

        monkeypatch.setattr(compiler, "_state", swapped)
    elif mutant == "no zero tail":
        monkeypatch.setattr(mover, "tail", lambda *args: (Runs.none().source, Runs.none().length))
    _, ticket, canonical = sealed(source)
    if mutant == "state after N-1":
        for layer in canonical.states:
            source.arenas[0].state(layer)[SLOT] *= 0.5
    target.exchange.receive("r", ticket, PROMPT, HERE, THERE)
    target.wait(Arrived)
    assert canonical.wrong(target.arenas, HERE, THERE) != []


def test_the_same_without_a_mutation_is_right(engines: Make) -> None:
    source, target = engines("prefill", hybrid()), engines("d", hybrid())
    _, ticket, canonical = sealed(source)
    target.exchange.receive("r", ticket, PROMPT, HERE, THERE)
    target.wait(Arrived)
    assert canonical.wrong(target.arenas, HERE, THERE) == []


def soak(source: TestEngine, target: TestEngine, count: int, seed: int) -> dict[str, int]:
    """Random lengths, hits, aborts, withdrawals and chunks over small pools; returns how the requests ended."""
    rng = random.Random(seed)
    pools = [(Pool(engine.plan.pages), Pool(engine.plan.rows)) for engine in (source, target)]
    leases: dict[str, str] = {}
    wanted: dict[str, tuple[Canonical, list[int], int, int]] = {}
    ended: dict[str, int] = {"arrived": 0, "lost": 0}
    started = 0
    end = time.monotonic() + 60 + count
    while (started < count or wanted or leases) and time.monotonic() < end:
        for event in source.exchange.events():
            assert isinstance(event, Unpinned)
            owner = leases.pop(event.lease)
            for pool in pools[0]:
                pool.release(sorted(pool.held_by(owner)), owner)
        for event in target.exchange.events():
            assert isinstance(event, Arrived | Lost)
            canonical, pages, slot, cached = wanted.pop(event.request)
            if isinstance(event, Arrived):
                assert canonical.wrong(target.arenas, pages, slot, cached) == []
            else:
                assert event.fenced
            ended["arrived" if isinstance(event, Arrived) else "lost"] += 1
            for pool in pools[1]:
                pool.release(sorted(pool.held_by(event.request)), event.request)
        if started < count and all(
            pool.free >= need for pair in pools for pool, need in zip(pair, (6, 1), strict=True)
        ):
            name, tokens = f"r{started}", rng.randint(1, 300)
            started += 1
            need, prompt = -(-tokens // 64), [rng.randrange(1000) for _ in range(tokens)]
            held = [(pages.allocate(need, name), slots.allocate(1, name)) for pages, slots in pools]
            (there, slot), (here, target_slot) = [(p or [], (s or [0])[0]) for p, s in held]
            canonical, cached = Canonical(source.spec, tokens, started), rng.randint(0, tokens // 64) * 64
            canonical.write(source.arenas, there, slot)
            lease, ticket = source.exchange.offer(prompt)
            leases[lease] = name
            wanted[name] = (canonical, here, target_slot, cached)
            if rng.random() < 0.3:
                source.exchange.progress(lease, tokens // 64 * 64, there)
            target.exchange.receive(name, ticket, prompt, here, target_slot, cached)
            if rng.random() < 0.1:
                source.exchange.withdraw(lease)
            source.exchange.seal(lease, there, slot, b"t")
            if rng.random() < 0.15:
                target.exchange.abort(name)
            if rng.random() < 0.05:
                source.exchange.withdraw(lease)
        select.select([source.exchange, target.exchange], [], [], 0.002)
    assert not wanted
    assert not leases
    for pair in pools:
        for pool, what in zip(pair, ("pages", "slots"), strict=True):
            pool.check(what)
            assert pool.used == 0
    return ended


@pytest.mark.parametrize("seed", range(3))
def test_soak_leaks_nothing(engines: Make, transport_name: str, seed: int) -> None:
    settings = replace(QUICK, transports=(transport_name,))
    source = engines("prefill", hybrid(), [1, 2, 4][seed], settings, pages=24, slots=3)
    target = engines("d", hybrid(), [2, 1, 4][seed], settings, pages=24, slots=3)
    ended = soak(source, target, 25, seed)
    assert sum(ended.values()) == 25
    assert ended["arrived"] >= 5


@pytest.mark.slow
def test_a_long_soak_leaks_nothing(engines: Make, transport_name: str) -> None:
    settings = replace(QUICK, transports=(transport_name,))
    source = engines("prefill", hybrid(), 2, settings, pages=24, slots=3)
    target = engines("d", hybrid(), 1, settings, pages=24, slots=3)
    assert sum(soak(source, target, 2000, 1).values()) == 2000


def test_ranks_are_made_with_every_transport_that_is_asked_for() -> None:
    assert list(factories(PdSettings(), KEY)) == ["nixl", "local", "tcp"]
    rank = TestEngine("d", hybrid()).ranks[0]
    assert isinstance(rank, LocalRank)
    assert rank.transports == ("tcp",)
