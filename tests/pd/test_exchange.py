"""Two engines, real arenas, real sockets: every byte arrives or the request is lost, and nothing stays pinned."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from pd_world import QUICK, Canonical, TestEngine, hybrid

from perilune.pd.settings import Arrived, Lost, Unpinned

Make = Callable[..., TestEngine]


def places(seed: int, tokens: int, engine: TestEngine) -> tuple[list[int], int]:
    """A fragmented page table and a slot."""
    rng = random.Random(seed)
    return rng.sample(range(engine.plan.pages), -(-tokens // 64)), rng.randrange(engine.plan.rows)


def hand_over(source: TestEngine, target: TestEngine, tokens: int, cached: int = 0, seed: int = 1) -> list[str]:
    """Moves one sequence and says what is wrong with what arrived."""
    prompt = list(range(tokens))
    canonical = Canonical(source.spec, tokens, seed)
    there, slot = places(seed, tokens, source)
    here, target_slot = places(seed + 1, tokens, target)
    canonical.write(source.arenas, there, slot)
    lease, ticket = source.exchange.offer(prompt)
    source.exchange.seal(lease, there, slot, b"first token")
    target.exchange.receive(f"r{seed}", ticket, prompt, here, target_slot, cached)
    arrived = target.wait(Arrived)
    assert arrived.payload == b"first token"
    assert arrived.tokens == tokens
    assert source.wait(Unpinned) == Unpinned(lease, "released")
    return canonical.wrong(target.arenas, here, target_slot, cached)


@pytest.mark.parametrize("p", [1, 2, 4])
@pytest.mark.parametrize("d", [1, 2, 4])
def test_case_12_every_byte_arrives_between_any_degrees(engines: Make, p: int, d: int) -> None:
    source, target = engines("prefill", hybrid(), p), engines("d", hybrid(), d)
    for tokens in (1, 63, 64, 65, 127, 128, 300):
        assert hand_over(source, target, tokens, seed=tokens) == []
        assert hand_over(source, target, tokens, tokens // 64 * 64, seed=tokens + 1000) == []


def test_case_9_4097_tokens(engines: Make) -> None:
    source, target = engines("prefill", hybrid()), engines("d", hybrid(), 2)
    assert hand_over(source, target, 4097) == []


def test_what_leads_to_an_engine_that_is_not_used_any_more_is_closed(engines: Make) -> None:
    source, target = engines("prefill", hybrid()), engines("d", hybrid(), settings=replace(QUICK, idle_seconds=0.1))
    assert hand_over(source, target, 64) == []
    end = time.monotonic() + 20
    while target.exchange._borrower.sockets:
        assert time.monotonic() < end, "the socket to an idle engine stays open"
        time.sleep(0.05)
    assert hand_over(source, target, 64, seed=2) == []


def test_what_leads_to_a_dead_engine_is_closed_as_soon_as_it_owes_an_answer(engines: Make) -> None:
    """An hour without use would be allowed here; one that lives keeps its socket through a failure."""
    source, target = engines("prefill", hybrid()), engines("d", hybrid(), settings=replace(QUICK, idle_seconds=3600.0))
    assert hand_over(source, target, 64) == []
    lease, ticket = source.exchange.offer(range(64))
    source.exchange.withdraw(lease)
    assert source.wait(Unpinned) == Unpinned(lease, "withdrawn")
    target.exchange.receive("lost", ticket, range(64), [5], 1)
    assert "withdrawn" in target.wait(Lost).reason
    assert hand_over(source, target, 64, seed=2) == []
    (socket,) = target.exchange._borrower.sockets
    _, ticket = source.exchange.offer(range(64))
    source.exchange.close()
    target.exchange.receive("never", ticket, range(64), [5], 1)
    target.wait(Lost)
    end = time.monotonic() + 20
    while target.exchange._borrower.sockets:
        assert time.monotonic() < end, "the socket to a dead engine stays open"
        time.sleep(0.05)
    assert socket.closed


def test_an_offer_is_known_before_a_message_about_it_is_answered(
    engines: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = engines("prefill", hybrid()), engines("d", hybrid())
    assert hand_over(source, target, 64) == []  # the two have met: the next message is the one that opens the lease
    lender = source.exchange._lender
    heard, listening, go_on = lender.heard, threading.Event(), threading.Event()

    def late() -> list[list[bytes]]:
        listening.set()
        assert go_on.wait(10)
        return heard()

    monkeypatch.setattr(lender, "heard", late)
    source.exchange.withdraw("no such lease")  # wakes the control thread: its turn has begun without the offer
    assert listening.wait(10)
    lease, ticket = source.exchange.offer(range(64))
    source.exchange.seal(lease, [3], 0, b"first token")
    target.exchange.receive("r", ticket, range(64), [5], 1)
    time.sleep(0.5)  # the message waits in the socket
    go_on.set()
    assert target.wait(Arrived).payload == b"first token"


def test_all_transports(engines: Make, transport_name: str) -> None:
    settings = replace(QUICK, transports=(transport_name,))
    source, target = engines("prefill", hybrid(), 2, settings), engines("d", hybrid(), 1, settings)
    for tokens in (1, 64, 300):
        assert hand_over(source, target, tokens, seed=tokens) == []
