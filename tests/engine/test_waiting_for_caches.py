"""Scheduling with requests whose prompts come from elsewhere, sooner, later or never: nobody starves."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from perilune.cache.budget import CachePlan
from perilune.cache.geometry import pages_for
from perilune.cache.manager import CacheManager
from perilune.cache.prefix import PrefixSettings
from perilune.engine.scheduler import Scheduler, Sequence, Step


@dataclass(frozen=True)
class Order:
    """`delay`: how many steps after its admission the cache comes, or is `lost`; None for an ordinary request."""

    prompt: int
    answer: int
    delay: int | None
    lost: bool


ORDERS = st.builds(Order, st.integers(1, 200), st.integers(1, 150), st.none() | st.integers(0, 40), st.booleans())


@settings(max_examples=150)
@given(st.lists(ORDERS, min_size=1, max_size=8), st.integers(0, 6), st.integers(1, 4))
def test_case_28_every_request_ends_however_small_the_pool(orders: list[Order], spare: int, slots: int) -> None:
    largest = max(pages_for(order.prompt + order.answer + 1) for order in orders)
    pages, rows = largest + spare, slots + 2
    plan = CachePlan(pages, slots, 64, 64, pages * 64, rows * 64, (pages + rows) * 64, pages * 64, (), 2)
    cache = CacheManager(plan, PrefixSettings(True, 8192))
    scheduler = Scheduler(cache, 64)
    wanted = {f"r{number}": order for number, order in enumerate(orders)}
    left: dict[str, int] = {}
    for number, (name, order) in enumerate(wanted.items()):
        prompt = tuple(range(1000 * number, 1000 * number + order.prompt))
        scheduler.add(Sequence(name, prompt, remote=order.delay is not None))
    while wanted:
        step = scheduler.schedule()
        assert not any(sequence.remote for sequence in step.preempted)
        assert not any(work.sequence.remote for work in step.work)
        # nothing to do only while a cache is on its way, which ends by a deadline
        assert step.work or step.admitted or any(sequence.remote for sequence in scheduler.running)
        left |= {s.id: wanted[s.id].delay or 0 for s in step.admitted if s.remote}
        _compute(scheduler, step)
        for sequence in [s for s in scheduler.running if s.remote]:
            left[sequence.id] -= 1
            if left[sequence.id] < 0:
                _end(scheduler, sequence, lost=wanted[sequence.id].lost)
        for sequence in list(scheduler.running):
            if len(sequence.outputs) >= wanted[sequence.id].answer:
                del wanted[sequence.id]
                scheduler.remove(sequence)
        cache.check()
    assert cache.holders == 0


def _compute(scheduler: Scheduler, step: Step) -> None:
    scheduler.commit(step)
    for work in step.work:
        if work.samples:
            work.sequence.outputs.append(7)


def _end(scheduler: Scheduler, sequence: Sequence, *, lost: bool) -> None:
    """What Handover does: the cache is here and with it the first token, or all is given back and computed here."""
    sequence.remote = False
    if lost:
        scheduler.cache.free(sequence.id)
        scheduler.requeue(sequence)
    else:
        sequence.computed = len(sequence.prompt)
        scheduler.cache.commit(sequence.id, sequence.computed)
        sequence.outputs.append(7)
