"""The scheduler without tensors: random arrivals, aborts and pools, every promise checked after every step."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perilune.cache.budget import CachePlan
from perilune.cache.geometry import pages_for
from perilune.cache.manager import CacheManager
from perilune.cache.prefix import PrefixSettings
from perilune.engine.scheduler import REPLAY_TOKENS, Scheduler, Sequence, Step, Work


@dataclass(frozen=True)
class Order:
    """One request of a simulation; steps are counted from the start, `abort` from its arrival."""

    arrival: int
    prompt: int
    answer: int
    abort: int | None = None
    shared: int = 0


def books(pages: int, slots: int, prefix: PrefixSettings | None = None, snapshots: int = 0) -> CacheManager:
    rows = slots + snapshots
    plan = CachePlan(pages, slots, 64, 64, pages * 64, rows * 64, (pages + rows) * 64, pages * 64, (), snapshots)
    return CacheManager(plan, prefix)


@dataclass
class Simulation:
    """Plays the runner: what the scheduler says is computed at once, and each sample is one more token."""

    pages: int
    slots: int
    chunk: int
    prefix: PrefixSettings | None = None
    snapshots: int = 0
    scheduler: Scheduler = field(init=False)
    numbers: dict[str, int] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    computed: dict[str, int] = field(default_factory=dict)
    admissions: dict[str, int] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    preemptions: int = 0
    salts: set[bytes] = field(default_factory=set)
    next_token: int = 10**6

    def __post_init__(self) -> None:
        self.cache = books(self.pages, self.slots, self.prefix, self.snapshots)
        self.scheduler = Scheduler(self.cache, self.chunk)

    def add(self, prompt: int, answer: int, shared: int = 0) -> Sequence:
        """The first `shared` tokens are those of every other prompt, marked; every third prompt has another salt."""
        number = len(self.numbers)
        tokens = (*range(shared), *range(1000 * number + 1000, 1000 * number + 1000 + prompt))
        marks = (shared,) if number % 2 else ()
        sequence = Sequence(f"r{number}", tokens, salt=b"" if number % 3 else b"third", marks=marks)
        self.numbers[sequence.id], self.answers[sequence.id] = number, answer
        self.computed[sequence.id] = self.admissions[sequence.id] = 0
        self.scheduler.add(sequence)
        return sequence

    def abort(self, sequence: Sequence) -> None:
        self.finished.add(sequence.id)
        self.scheduler.remove(sequence)
        self.cache.check()

    def step(self) -> Step:
        oldest = min((*self.scheduler.running, *self.scheduler.waiting), key=lambda s: self.numbers[s.id])
        before = (oldest.computed, len(oldest.outputs))
        step = self.scheduler.schedule()
        self._check_step(step)
        for work in step.work:
            self._check_work(work)
            self.computed[work.sequence.id] = work.start + work.count
        self.scheduler.commit(step)
        for work in step.work:
            if work.samples:
                self._sample(work.sequence)
        assert oldest.id in self.finished or (oldest.computed, len(oldest.outputs)) > before, "the oldest stood still"
        self.cache.check()
        self._check_order()
        return step

    def _check_step(self, step: Step) -> None:
        self.preemptions += len(step.preempted)
        for sequence in step.preempted:
            assert sequence.computed == 0
            self.computed[sequence.id] = 0
        for sequence in step.admitted:
            self.admissions[sequence.id] += 1
            assert self.admissions[sequence.id] == sequence.preemptions + 1
            self._check_start(sequence)
        slots = [self.cache.slot(work.sequence.id) for work in step.work]
        assert len(set(slots)) == len(slots), "two pieces of one step share a slot"
        assert sum(work.count for work in step.work if work.mode == "prefill") <= self.chunk
        assert {s.id for s in step.admitted} <= {work.sequence.id for work in step.work}

    def _check_start(self, sequence: Sequence) -> None:
        """What is not computed: whole pages of the prompt, shared, with at least one token left."""
        start, source = self.cache.cached(sequence.id), self.cache.source(sequence.id)
        assert start % 64 == 0
        assert start < len(sequence.prompt)
        assert self.prefix or not start
        assert (source is not None) == (start > 0 and self.prefix is not None and self.prefix.stateful)
        self.computed[sequence.id] = start
        if sequence.salt not in self.salts:
            assert start == 0, "the first with its salt has nothing to share"
        self.salts.add(sequence.salt)

    def _check_work(self, work: Work) -> None:
        sequence, end = work.sequence, work.start + work.count
        split = len(sequence.prompt)
        assert work.count > 0
        assert work.start == self.computed[sequence.id], "a token is skipped or computed twice"
        assert sequence.tokens(work.start, work.count) == [*sequence.prompt, *sequence.outputs][work.start : end]
        assert work.samples == (end == sequence.known)
        assert len(self.cache.pages(sequence.id)) >= pages_for(end)
        if work.mode == "prefill":
            assert work.start % 64 == 0
            assert end == split or (end < split and end % 64 == 0)
            self._check_exports(work)
        else:
            assert work.start >= split
            assert work.exports == ()
            assert work.count == 1 or (sequence.preemptions > 0 and work.count <= REPLAY_TOKENS)

    def _check_exports(self, work: Work) -> None:
        """Nobody else holds a page or a row that is written."""
        name = work.sequence.id
        written = self.cache.pages(name)[work.start // 64 : pages_for(work.start + work.count)]
        assert all(self.cache._pages.holders(page) == {name} for page in written)
        for after, row in work.exports:
            assert after % 64 == 0
            assert 0 < after <= work.count
            assert self.cache._rows.holders(row) == {name}
            assert row != self.cache.slot(name)

    def _check_order(self) -> None:
        """Nobody is overtaken: whoever waits came after everybody who runs."""
        running = [self.numbers[s.id] for s in self.scheduler.running]
        waiting = [self.numbers[s.id] for s in self.scheduler.waiting]
        assert running == sorted(running)
        assert waiting == sorted(waiting)
        assert not running or not waiting or running[-1] < waiting[0]

    def _sample(self, sequence: Sequence) -> None:
        self.next_token += 1
        sequence.outputs.append(self.next_token)
        if len(sequence.outputs) == self.answers[sequence.id]:
            self.finished.add(sequence.id)
            self.scheduler.remove(sequence)

    def finish(self) -> None:
        """Every request ends: `step` proves that the oldest advances each time, so this loop is finite."""
        while not self.scheduler.idle:
            self.step()
        stats = self.cache.stats()
        assert (stats.pages_used, stats.slots_used, stats.requests) == (0, 0, 0)
        assert self.finished == set(self.numbers)


LENGTHS = st.one_of(st.sampled_from([1, 2, 63, 64, 65, 127, 128, 129]), st.integers(1, 300))
ORDERS = st.lists(
    st.builds(Order, st.integers(0, 60), LENGTHS, LENGTHS, st.none() | st.integers(0, 80)), min_size=1, max_size=12
)


@settings(max_examples=120, deadline=None)
@given(orders=ORDERS, spare=st.integers(0, 6), slots=st.integers(1, 5), chunk=st.sampled_from([64, 128, 512]))
def test_everybody_is_served_in_order_whatever_the_pool(
    orders: list[Order], spare: int, slots: int, chunk: int
) -> None:
    """Pools from exactly the largest request's pages up."""
    play(orders, spare, slots, chunk)


SHARED = st.lists(
    st.builds(
        Order,
        st.integers(0, 60),
        LENGTHS,
        st.integers(1, 80),
        st.none() | st.integers(0, 80),
        st.sampled_from([0, 64, 100, 192, 320]),
    ),
    min_size=2,
    max_size=14,
)


@settings(max_examples=150, deadline=None)
@given(
    orders=SHARED,
    spare=st.integers(0, 6),
    slots=st.integers(1, 4),
    chunk=st.sampled_from([64, 128, 512]),
    prefix=st.builds(PrefixSettings, st.booleans(), st.sampled_from([64, 128])),
    snapshots=st.integers(0, 5),
)
def test_a_prefix_cache_costs_nobody_a_turn(
    orders: list[Order], spare: int, slots: int, chunk: int, prefix: PrefixSettings, snapshots: int
) -> None:
    """Prompts with a common beginning, in pools as tight: the same promises, and no shared page is ever written."""
    play(orders, spare, slots, chunk, prefix, snapshots)


def play(
    orders: list[Order], spare: int, slots: int, chunk: int, prefix: PrefixSettings | None = None, snapshots: int = 0
) -> None:
    pages = max(pages_for(order.shared + order.prompt + order.answer) for order in orders) + spare
    simulation = Simulation(pages, slots, chunk, prefix, snapshots)
    arrivals = sorted(orders, key=lambda order: order.arrival)
    aborts: list[tuple[int, Sequence]] = []
    for now in range(150):
        while arrivals and arrivals[0].arrival <= now:
            order = arrivals.pop(0)
            sequence = simulation.add(order.prompt, order.answer, order.shared)
            if order.abort is not None:
                aborts.append((now + order.abort, sequence))
        for when, sequence in aborts:
            if when == now and sequence.id not in simulation.finished:
                simulation.abort(sequence)
        if not simulation.scheduler.idle:
            simulation.step()
    simulation.finish()


def test_a_pool_one_page_larger_than_the_largest_request_preempts_and_still_finishes() -> None:
    simulation = Simulation(pages=5, slots=4, chunk=512)
    for _ in range(4):
        simulation.add(prompt=60, answer=190)
    simulation.finish()
    assert simulation.preemptions > 0


def test_the_youngest_gives_way_and_keeps_what_it_generated() -> None:
    simulation = Simulation(pages=6, slots=2, chunk=512)
    old, young = simulation.add(60, 200), simulation.add(60, 200)
    while not simulation.preemptions:
        simulation.step()
    assert old.preemptions == 0
    assert young.preemptions == 1
    assert len(young.outputs) > 0
    kept = list(young.outputs)
    simulation.finish()
    assert young.outputs[: len(kept)] == kept


def test_a_resumed_answer_is_replayed_in_decode_mode_in_pieces() -> None:
    """Prefilling its own tokens would round otherwise than the first run did."""
    simulation = Simulation(pages=7, slots=2, chunk=512)
    simulation.add(60, 330)
    young = simulation.add(1, 300)
    while not simulation.preemptions:
        simulation.step()
    generated = len(young.outputs)
    assert generated > REPLAY_TOKENS
    replayed = []
    while len(young.outputs) == generated:
        replayed += [w for w in simulation.step().work if w.sequence is young and w.mode == "decode"]
    assert [w.count for w in replayed[:-1]] == [REPLAY_TOKENS] * (len(replayed) - 1)
    assert sum(w.count for w in replayed) == generated
    assert [w.samples for w in replayed] == [False] * (len(replayed) - 1) + [True]
    simulation.finish()


@pytest.mark.parametrize("chunk", [64, 128])
def test_a_long_prompt_is_cut_while_others_decode(chunk: int) -> None:
    simulation = Simulation(pages=20, slots=3, chunk=chunk)
    simulation.add(3, 50)
    simulation.step()
    long = simulation.add(300, 2)
    counts = []
    while long.prefilling:
        step = simulation.step()
        assert [w.mode for w in step.work] == ["prefill", "decode"]
        counts.append(step.work[0].count)
    assert counts == [chunk] * (300 // chunk) + [300 % chunk]
    simulation.finish()


def test_a_head_that_does_not_fit_is_not_overtaken_by_a_small_one() -> None:
    simulation = Simulation(pages=6, slots=4, chunk=512)
    simulation.add(200, 60)
    simulation.step()
    simulation.add(200, 60)
    simulation.add(1, 1)
    assert simulation.step().admitted == ()
    assert len(simulation.scheduler.waiting) == 2
    simulation.finish()


@pytest.mark.parametrize("steps", range(8))
def test_an_abort_at_any_moment_returns_everything(steps: int) -> None:
    simulation = Simulation(pages=8, slots=2, chunk=64)
    sequences = [simulation.add(200, 50), simulation.add(10, 50), simulation.add(10, 50)]
    for _ in range(steps):
        simulation.step()
    for sequence in sequences:
        simulation.abort(sequence)
    simulation.finish()
