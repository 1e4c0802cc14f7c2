"""Receptions: step by step, and in a world of lost, late and repeated messages and clocks that disagree."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from perilune.pd.compiler import Place
from perilune.pd.leases import Effect, Freed, LeaseBook, LeaseTimes, Told
from perilune.pd.messages import Body, Gone, Manifest, Renewed, Verdict
from perilune.pd.reception import (
    Action,
    AskOpen,
    AskRelease,
    AskRenew,
    CancelFetch,
    End,
    Fenced,
    Reception,
    ReceptionTimes,
    StartFetch,
    State,
    TellAbandon,
)

TIMES = ReceptionTimes(ttl=30, reply=5, repeat=1, patience=5, minimum_rate=1e6, drain=15, longest=300, retries=2)
PLACE = Place((4, 5), 1)
SEALED = Manifest("x", 100, 100, True, PLACE, b"token")


def reception(ranks: int = 1, cached: int = 0, transports: tuple[str, ...] = ("a", "b")) -> Reception:
    return Reception("x", ranks, 100, cached, True, transports, TIMES, 0.0, token_bytes=10, state_bytes=1000)


def opened(ranks: int = 1, **options: object) -> tuple[Reception, list[StartFetch]]:
    it = reception(ranks, **options)  # type: ignore[arg-type]
    assert it.begin(0) == [AskOpen()]
    fetches = it.manifest(SEALED, 1)
    assert all(isinstance(fetch, StartFetch) for fetch in fetches)
    return it, fetches  # type: ignore[return-value]


def test_open_fetch_release_ready() -> None:
    it, fetches = opened(2)
    assert [(f.rank, f.transport, f.first, f.end, f.last) for f in fetches] == [
        (0, "a", 0, 100, True),
        (1, "a", 0, 100, True),
    ]
    assert it.fetched(fetches[0].job, 2) == []
    assert it.fetched(fetches[1].job, 2) == [AskRelease()]
    assert it.verdict(True, 3) == [End(True, payload=b"token")]
    assert it.state is State.ready
    assert it.over
    assert it.deadline is None


def test_streamed_pages_are_fetched_once_and_the_state_last() -> None:
    it = reception(cached=64)
    it.begin(0)
    assert it.manifest(Manifest("x", 100, 64, False, PLACE), 1) == []
    assert it.fetched("x/9", 1) == []
    (more,) = it.manifest(Manifest("x", 100, 96, False, Place((4, 5), 7)), 2)
    assert isinstance(more, StartFetch)
    assert (more.first, more.end, more.last, more.source.slot) == (64, 96, False, None)
    assert it.fetched(more.job, 3) == []
    (rest,) = it.manifest(SEALED, 4)
    assert isinstance(rest, StartFetch)
    assert (rest.first, rest.end, rest.last, rest.source.slot) == (96, 100, True, 1)
    assert it.fetched(rest.job, 5) == [AskRelease()]


def test_case_16_one_rank_fails_and_the_end_waits_for_all() -> None:
    it, (first, second) = opened(2)
    actions = it.fetch_failed(first.job, "no such page", "final", 2)
    assert actions == [TellAbandon("no such page"), CancelFetch(1, second.job)]
    assert it.state is State.draining
    assert it.fetched(second.job, 3) == [End(False, "no such page")]
    assert it.over


def test_case_15_an_abort_ends_when_the_last_read_has() -> None:
    it, (fetch,) = opened()
    assert it.abort("client gone", 2) == [TellAbandon("client gone"), CancelFetch(0, fetch.job)]
    assert it.abort("again", 2) == []
    assert it.fetch_failed(fetch.job, "cancelled", "final", 3) == [End(False, "client gone")]


def test_a_read_that_never_ends_is_said_to_be_unfenced_until_it_is() -> None:
    it, (fetch,) = opened()
    it.abort("client gone", 2)
    assert it.tick(16.9) == []
    assert it.tick(17) == [End(False, "client gone", fenced=False)]
    assert not it.over
    assert it.tick(1000) == []
    assert it.fetch_failed(fetch.job, "reset", "transient", 1001) == [Fenced()]
    assert it.over


def test_a_transient_failure_is_tried_again_twice() -> None:
    it, (fetch,) = opened()
    for _ in range(2):
        (again,) = it.fetch_failed(fetch.job, "reset", "transient", 2)
        assert again == replace(fetch, job=again.job)  # type: ignore[union-attr]
        fetch = again  # type: ignore[assignment]
    assert it.fetch_failed(fetch.job, "reset", "transient", 2)[-1] == End(False, "reset")


def test_an_unreachable_peer_is_tried_over_the_next_transport() -> None:
    it, (fetch,) = opened()
    (again,) = it.fetch_failed(fetch.job, "another host", "unreachable", 2)
    assert again == replace(fetch, job="x/2", transport="b")
    (end,) = it.fetch_failed("x/2", "refused", "unreachable", 2)[1:]
    assert end == End(False, "rank 0 has no way to the prefill engine: refused")


def test_case_17_an_invalid_verdict_is_the_end() -> None:
    it, (fetch,) = opened()
    it.fetched(fetch.job, 2)
    assert it.verdict(False, 3)[-1] == End(False, "the lease ended before everything was read")


def test_case_27_late_and_unknown_events_change_nothing() -> None:
    it, (fetch,) = opened()
    it.fetched(fetch.job, 2)
    it.verdict(True, 3)
    for late in (
        it.fetched(fetch.job, 4), it.fetched("?", 4), it.fetch_failed(fetch.job, "", "final", 4), it.verdict(False, 4),
        it.gone("late", 4), it.abort("late", 4), it.manifest(SEALED, 4), it.renewed(4), it.tick(10_000),
    ):  # fmt: skip
        assert late == []
    assert it.state is State.ready


def test_case_33_no_answer_to_open() -> None:
    it = reception()
    it.begin(0)
    assert it.tick(1) == [AskOpen()]
    assert it.tick(5)[-1] == End(False, "the prefill engine did not answer while opening")


def test_case_33_slow_reads_silence_and_no_verdict() -> None:
    it, (fetch,) = opened()
    assert it.deadline is not None
    assert it.tick(6.1)[0] == TellAbandon("rank 0 did not get its bytes in time")

    it = reception()
    it.begin(0)
    it.manifest(Manifest("x", 100, 0, False, Place(())), 1)
    assert it.tick(10) == [AskRenew()]
    assert it.tick(31)[-1] == End(False, "the prefill engine is silent")

    it, (fetch,) = opened()
    it.fetched(fetch.job, 2)
    assert it.tick(3) == [AskRelease()]
    assert it.tick(7)[-1] == End(False, "the prefill engine did not answer while validating")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (Manifest("x", 99, 99, True, PLACE), "99 tokens"),
        (Manifest("x", 100, 100, True, Place((1, 2))), "names no slot"),
    ],
)
def test_a_manifest_that_does_not_fit_is_the_end(message: Manifest, said: str) -> None:
    it = reception()
    it.begin(0)
    (end,) = it.manifest(message, 1)[1:]
    assert isinstance(end, End)
    assert said in end.reason


def test_without_a_common_transport_nothing_begins() -> None:
    assert reception(transports=()).begin(0)[-1] == End(False, "the engines have no transport in common")


OFFSET = 1e6  # case 20: P's clock is nowhere near D's


class World(RuleBasedStateMachine):
    """P's book and D's reception over a network that loses, repeats, delays and reorders; reads that end when and how
    they like. What must hold: D believes bytes only if P had them pinned until each was read; every End is one; nothing
    writes after a fence; everything is over some day."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.book = LeaseBook(LeaseTimes(ttl=30, prefill=100, longest=200))
        self.to_p: list[tuple[str, str]] = []
        self.to_d: list[Body] = []
        self.pinned = True
        self.sealed = False
        self.ready = 0
        self.moving: dict[str, StartFetch] = {}
        self.cancelled: set[str] = set()
        self.read: set[tuple[int, object]] = set()
        self.bad = False
        self.ends: list[End] = []
        self.fences = 0
        self.freed = 0

    @initialize(ranks=st.integers(1, 2), cached=st.sampled_from([0, 64]), head_start=st.sampled_from([0, 1, 2, 2]))
    def begin(self, ranks: int, cached: int, head_start: int) -> None:
        self.book.offer("x", 100, self.p_time)
        self.reception = Reception("x", ranks, 100, cached, True, ("a", "b"), TIMES, self.now, 10, 1000)
        self.act(self.reception.begin(self.now))
        if head_start > 0:
            self.all_messages_arrive()
        if head_start > 1:
            self.p_seals()
            self.all_messages_arrive()

    @property
    def p_time(self) -> float:
        return OFFSET + self.now

    def act(self, actions: list[Action]) -> None:
        names = {AskOpen: "open", AskRenew: "renew", AskRelease: "release", TellAbandon: "abandon"}
        for action in actions:
            if isinstance(action, AskOpen | AskRenew | AskRelease | TellAbandon):
                self.to_p.append((names[type(action)], "x"))
            elif isinstance(action, StartFetch):
                assert action.end <= self.ready or action.first == action.end, "read before it was computed"
                assert not action.last or self.sealed
                self.moving[action.job] = action
            elif isinstance(action, CancelFetch):
                self.cancelled.add(action.job)
            elif isinstance(action, End):
                self.ends.append(action)
                assert len(self.ends) == 1
                if action.ok:
                    assert not self.moving
                    assert not self.bad, "bytes of unpinned pages were believed"
                    wanted = {*range(self.reception.cached, 100), "state"}
                    assert self.read == {(rank, what) for rank in range(self.reception.ranks) for what in wanted}
                if action.fenced:
                    assert not self.moving
            else:
                assert isinstance(action, Fenced)
                self.fences += 1
                assert not self.moving

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Freed):
                self.pinned = False
                self.freed += 1
                assert self.freed == 1
            else:
                assert isinstance(effect, Told)
                self.to_d.append(effect.message)

    @rule(seconds=st.sampled_from([0.1, 0.1, 0.1, 1.0, 6.0, 31.0]), p=st.booleans(), d=st.booleans())
    def time_passes(self, seconds: float, p: bool, d: bool) -> None:
        """Whether anybody looks at the clock, or hears of it, is another matter."""
        self.now += seconds
        if p:
            said = len(self.to_d)
            self.apply(self.book.expire(self.p_time))
            if not d:
                del self.to_d[said:]
        if d:
            self.act(self.reception.tick(self.now))

    @rule()
    def all_messages_arrive(self) -> None:
        while self.to_p or self.to_d:
            if self.to_p:
                self.hear_at_p(*self.to_p.pop(0))
            else:
                self.hear_at_d(self.to_d.pop(0))

    @precondition(lambda self: self.moving)
    @rule()
    def all_reads_end_well(self) -> None:
        for job in sorted(self.moving):
            if job in self.moving:
                self.end_read(job, "done")

    @precondition(lambda self: not self.sealed)
    @rule()
    def p_computes_a_chunk(self) -> None:
        self.ready = min(96, self.ready + 32)
        self.apply(self.book.progress("x", self.ready, PLACE, self.p_time))

    @precondition(lambda self: not self.sealed)
    @rule()
    def p_seals(self) -> None:
        self.sealed, self.ready = True, 100
        self.apply(self.book.seal("x", PLACE, b"token", self.p_time))

    @precondition(lambda self: self.to_p)
    @rule(data=st.data(), repeat=st.booleans())
    def p_hears_one(self, data: st.DataObject, repeat: bool) -> None:
        self.hear_at_p(*self.take(self.to_p, data, repeat))

    def hear_at_p(self, what: str, id: str) -> None:
        if what == "open":
            answer, effects = self.book.claim(id, "d", self.p_time)
            self.apply(effects)
            self.to_d.append(answer)
        elif what == "renew":
            alive, gone, effects = self.book.renew((id, "unknown"), "d", self.p_time)
            self.apply(effects)
            self.to_d += [Renewed(alive), *gone]
        elif what == "release":
            verdict, effects = self.book.release(id, "d", self.p_time)
            self.apply(effects)
            self.to_d.append(verdict)
        else:
            self.apply(self.book.abandon(id, "d", self.p_time))

    @precondition(lambda self: self.to_d)
    @rule(data=st.data(), repeat=st.booleans())
    def d_hears_one(self, data: st.DataObject, repeat: bool) -> None:
        self.hear_at_d(self.take(self.to_d, data, repeat))

    def hear_at_d(self, body: Body) -> None:
        if isinstance(body, Manifest):
            self.act(self.reception.manifest(body, self.now))
        elif isinstance(body, Gone) and body.id == "x":
            self.act(self.reception.gone(body.reason, self.now))
        elif isinstance(body, Verdict):
            self.act(self.reception.verdict(body.valid, self.now))
        elif isinstance(body, Renewed) and body.ids:
            self.act(self.reception.renewed(self.now))

    @precondition(lambda self: self.to_p or self.to_d)
    @rule(data=st.data())
    def a_message_is_lost(self, data: st.DataObject) -> None:
        self.take(self.to_p if self.to_p else self.to_d, data, False)

    @precondition(lambda self: self.moving)
    @rule(data=st.data(), how=st.sampled_from(["done", "transient", "unreachable", "final"]))
    def one_read_ends(self, data: st.DataObject, how: str) -> None:
        self.end_read(data.draw(st.sampled_from(sorted(self.moving))), how)

    def end_read(self, job: str, how: str) -> None:
        action = self.moving.pop(job)
        if how == "done":
            self.bad |= not self.pinned
            self.read |= {(action.rank, token) for token in range(action.first, action.end)}
            self.read |= {(action.rank, "state")} if action.last else set()
            self.act(self.reception.fetched(job, self.now))
        else:
            self.act(self.reception.fetch_failed(job, how, how, self.now))  # type: ignore[arg-type]

    @rule()
    def a_report_comes_twice(self) -> None:
        self.act(self.reception.fetched("x/1", self.now) if "x/1" not in self.moving else [])

    @rule(who=st.sampled_from(["nobody", "P", "P unheard", "D"]))
    def somebody_gives_up(self, who: str) -> None:
        if who.startswith("P"):
            said = len(self.to_d)
            self.apply(self.book.withdraw("x"))
            if who == "P unheard":
                del self.to_d[said:]
        elif who == "D":
            self.act(self.reception.abort("client gone", self.now))

    def take(self, queue: list, data: st.DataObject, repeat: bool):  # type: ignore[no-untyped-def,type-arg]
        at = data.draw(st.integers(0, len(queue) - 1))
        return queue[at] if repeat else queue.pop(at)

    @invariant()
    def every_state_has_a_deadline(self) -> None:
        if hasattr(self, "reception"):
            ended = self.reception.state in (State.ready, State.failed)
            assert (self.reception.deadline is None) == ended
            assert bool(self.ends) == ended

    def teardown(self) -> None:
        """Nothing but time and the reads' ends: no message arrives any more."""
        if not hasattr(self, "reception"):
            return
        for _ in range(60):
            self.now += 10
            self.apply(self.book.expire(self.p_time))
            self.act(self.reception.tick(self.now))
        for job in sorted(self.moving):
            self.end_read(job, "done")
        assert len(self.ends) == 1
        assert self.reception.over
        assert self.fences == (not self.ends[0].fenced)
        assert len(self.book) == 0
        assert self.freed == 1


World.TestCase.settings = settings(max_examples=300, stateful_step_count=15)
TestWorld = World.TestCase
