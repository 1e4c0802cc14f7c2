"""The cases of docs/pd.md that need engines: two real ones in this process, faults in between, tokens compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pd_world import QUICK, Gate, Stubborn
from split_world import GREEDY, Engines, Make, prompt_of

from perilune.engine.core import EngineCore
from perilune.engine.handover import FirstToken
from perilune.engine.messages import TokenEvent
from perilune.engine.request import Borrow, Grammar, Lend, SamplingParams
from perilune.engine.roles import RoleConfig
from perilune.errors import PeriluneError, UnsupportedError
from perilune.pd.errors import NotLentError, TicketError
from perilune.pd.settings import PdSettings

STREAM = RoleConfig("prefill", transports=("local", "tcp"), stream=True)


@pytest.fixture
def path(golden: Path) -> Path:
    return golden / "kimi_linear"


@pytest.fixture
def engines(path: Path, make: Make) -> Engines:
    return Engines(p=make(path, STREAM, prefill_chunk=64), d=make(path, "decode"), both=make(path, prefix_cache=False))


def together(engines: Engines, prompt: tuple[int, ...], params: SamplingParams = GREEDY, **more: Any) -> list[Any]:
    """What one engine alone says."""
    name = f"together {len(engines.answers)}"
    return engines.alone("both", name, prompt, params, **more).tokens


def row(core: EngineCore, name: str) -> torch.Tensor:
    return core.runner.arenas.slot_arena.buffer[core.cache.slot(name)].clone()


def latents(core: EngineCore, name: str, tokens: int) -> torch.Tensor:
    pages = core.runner.arenas.page_arena.tensor[core.cache.pages(name)]
    return pages.movedim(1, 2).reshape(-1, *pages.shape[1:2], pages.shape[-1])[:tokens].clone()


def lost(engines: Engines) -> int:
    door = engines.cores["d"].handover
    assert door is not None
    return door.exchange.counters.local_fallbacks


@pytest.mark.parametrize("length", [1, 64, 65, 127])
def test_case_6_the_handed_token_runs_once(engines: Engines, length: int) -> None:
    """After one step of the decode engine its state is, bit for bit, that of an engine that did it all."""
    prompt, params = prompt_of(length, 200), replace(GREEDY, max_tokens=5)
    d, both = engines.cores["d"], engines.cores["both"]
    engines.add("both", "together", prompt, params)
    engines.until(lambda: len(engines.answers["together"].tokens) == 2, "both")
    expected = row(both, "together"), latents(both, "together", length + 1)
    ticket = engines.ticket("split", prompt, params)
    engines.add("d", "split", prompt, params, handover=Borrow(ticket))
    engines.until(lambda: len(engines.answers["split"].tokens) == 2, "d", "p")
    assert torch.equal(row(d, "split"), expected[0])
    assert torch.equal(latents(d, "split", length + 1), expected[1])


def test_case_7_a_prompt_that_is_known_to_its_end_still_has_a_token_to_run(engines: Engines) -> None:
    prompt = prompt_of(128, 200)
    expected = together(engines, prompt)
    for turn in range(3):
        split = engines.split(f"split {turn}", prompt, GREEDY, early=turn == 2)
        assert split.tokens == expected
    assert split.events[0].cached_tokens == 64  # of 128, since the last token needs its logits
    engines.idle()


def test_case_8_neighbours_in_a_step_change_no_bit(path: Path, make: Make) -> None:
    """Tails of one token beside decoders and other prompts, on both engines."""
    role = RoleConfig("both", transports=("tcp",))
    engines = Engines(
        p=make(path, role, prefill_chunk=128, max_running=8), d=make(path, "decode", max_running=8), both=make(path)
    )
    prompts = {f"r{length}": prompt_of(length, 200) for length in (1, 65, 129, 64, 193, 2)}
    for name, core in (("busy p", "p"), ("busy d", "d")):
        engines.add(core, name, prompt_of(50, 200), replace(GREEDY, max_tokens=300))
    for name, prompt in prompts.items():
        engines.add("p", f"{name}/1", prompt, GREEDY, handover=Lend())
    engines.until(lambda: all(engines.answers[f"{name}/1"].over for name in prompts))
    for name, prompt in prompts.items():
        lent = engines.answers[f"{name}/1"].last.lent
        assert lent is not None
        engines.add("d", name, prompt, GREEDY, handover=Borrow(lent.ticket))
    for name, prompt in prompts.items():
        assert engines.finish(name).tokens == together(engines, prompt), name


def test_case_10_only_a_prompts_own_bytes_travel(engines: Engines) -> None:
    """Snapshots that prefill takes on the way are rows of the same arena: none of them moves."""
    p, d = engines.cores["p"], engines.cores["d"]
    prompt = prompt_of(300, 200)
    engines.split("split", prompt, GREEDY)
    assert p.cache.stats().snapshots > 1
    assert p.handover is not None
    assert d.handover is not None
    regions = d.handover.exchange.describe().rendezvous.tables[0].regions
    token = sum(region.item_bytes for region in regions if region.pool == "pages")
    state = sum(region.place_bytes for region in regions if region.pool == "slots")
    assert d.handover.exchange.counters.received_bytes == 300 * token + state


def test_case_26_pages_without_a_state_are_taken_from_the_decode_engines_own_cache(engines: Engines) -> None:
    d = engines.cores["d"]
    prompt = prompt_of(200, 200)
    engines.split("first", prompt, GREEDY)
    assert d.cache.stats().snapshots == 0
    assert d.cache.stats().pages_cached == 3
    assert d.handover is not None
    before = d.handover.exchange.counters.received_bytes
    assert engines.split("second", prompt, GREEDY).tokens == together(engines, prompt)
    status = d.status()
    assert status is not None
    moved = d.handover.exchange.counters.received_bytes - before
    assert moved == status["cost"]["state_bytes"] + 8 * status["cost"]["token_bytes"]


def test_case_28_requests_that_wait_for_caches_do_not_block_a_full_pool(path: Path, make: Make) -> None:
    """Decoders need pages that parked requests hold, and the caches come only when the prefill engine is stepped."""
    plan = make(path, max_context=256).plan.cache
    small = 6 * plan.page_bytes + 4 * plan.slot_bytes
    engines = Engines(
        p=make(path, STREAM, prefill_chunk=64), d=make(path, "decode", max_context=256, cache_bytes=small),
        both=make(path),
    )  # fmt: skip
    params = replace(GREEDY, max_tokens=100)
    grower, parked = prompt_of(60, 200), [prompt_of(100, 200, seed) for seed in range(3)]
    engines.add("d", "grower", grower, params)
    for number, prompt in enumerate(parked):
        ticket = engines.ticket(f"{number}", prompt, GREEDY, early=True)
        engines.add("d", f"{number}", prompt, GREEDY, handover=Borrow(ticket))
    engines.until(lambda: len(engines.answers["grower"].tokens) >= 60 or not engines.cores["d"].busy, "d")
    for number, prompt in enumerate(parked):
        assert engines.finish(f"{number}").tokens == together(engines, prompt), number
    assert engines.finish("grower").tokens == together(engines, grower, params)
    engines.idle()


def test_case_35_what_is_sealed_is_complete_and_stays_as_it_is(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes at the moment of the seal are those at the moment the lease ends, whatever runs meanwhile."""
    p = engines.cores["p"]
    assert p.handover is not None
    seal, sealed = p.handover.exchange.seal, dict[str, torch.Tensor]()

    def look(lease: str, pages: Any, slot: Any, payload: bytes) -> None:
        sealed["row"] = p.runner.arenas.slot_arena.buffer[slot].clone()
        sealed["pages"] = p.runner.arenas.page_arena.tensor[pages].clone()
        seal(lease, pages, slot, payload)

    monkeypatch.setattr(p.handover.exchange, "seal", look)
    engines.ticket("kept", prompt_of(150, 200), GREEDY)
    first = dict(sealed)
    for number in range(4):
        engines.split(f"other {number}", prompt_of(150 + number, 200, 3), GREEDY)
    assert torch.equal(row(p, "kept/1"), first["row"])
    assert torch.equal(p.runner.arenas.page_arena.tensor[p.cache.pages("kept/1")[:3]], first["pages"])


def test_pages_arrive_while_later_chunks_still_compute(engines: Engines) -> None:
    prompt, p, d = prompt_of(300, 200), engines.cores["p"], engines.cores["d"]
    ticket = engines.ticket("split", prompt, GREEDY, early=True)
    engines.add("d", "split", prompt, GREEDY, handover=Borrow(ticket))
    while p.scheduler.running[0].computed < 192:
        engines.turn("p")
    assert d.handover is not None
    counters, status = d.handover.exchange.counters, d.status()
    assert status is not None
    pages = 192 * status["cost"]["token_bytes"]
    engines.until(lambda: counters.early_bytes == pages, "d")  # the prefill engine stands still meanwhile
    assert engines.finish("split").tokens == together(engines, prompt)
    assert counters.received_bytes == 300 * status["cost"]["token_bytes"] + status["cost"]["state_bytes"]


@pytest.mark.parametrize("early", [False, True], ids=["whole", "streamed"])
def test_case_17_a_lease_that_ended_is_computed_here(engines: Engines, early: bool) -> None:
    prompt = prompt_of(200, 200)
    ticket = engines.ticket("split", prompt, GREEDY, early=early)
    p = engines.cores["p"]
    assert p.handover is not None
    p.handover.withdraw(ticket, "a test")
    engines.until(lambda: p.cache.holders == 0, "p")
    engines.split("other", prompt_of(200, 200, 5), GREEDY)  # other bytes in the same pages
    engines.add("d", "split", prompt, GREEDY, handover=Borrow(ticket))
    answer = engines.finish("split")
    assert answer.tokens == together(engines, prompt)
    assert answer.events[0].remote is False
    assert lost(engines) == 1
    engines.idle()


def test_a_request_may_ask_for_an_error_instead(engines: Engines) -> None:
    prompt = prompt_of(70, 200)
    ticket = engines.ticket("split", prompt, GREEDY)
    p = engines.cores["p"]
    assert p.handover is not None
    p.handover.withdraw(ticket, "a test")
    engines.until(lambda: p.cache.holders == 0, "p")
    engines.add("d", "split", prompt, GREEDY, handover=Borrow(ticket, "error"))
    (event,) = engines.finish("split").events
    assert event.error is not None
    assert (event.error.error().code, event.error.error().http_status) == ("pd_lost", 503)
    engines.idle()


def test_case_32_a_step_that_fails_on_the_prefill_engine_is_one_outcome_on_the_other(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = prompt_of(300, 200)
    p = engines.cores["p"]
    ticket = engines.ticket("split", prompt, GREEDY, early=True)
    engines.add("d", "split", prompt, GREEDY, handover=Borrow(ticket))
    engines.turn("d")

    def fail(_: object) -> torch.Tensor:
        monkeypatch.undo()
        raise RuntimeError("once")

    monkeypatch.setattr(p.runner, "run", fail)
    answer = engines.finish("split")
    assert answer.tokens == together(engines, prompt)
    assert [event.remote for event in answer.events] == [False] * len(answer.events)
    engines.idle()


def test_case_23_both_sides_give_up_and_nothing_is_held(engines: Engines) -> None:
    p, d = engines.cores["p"], engines.cores["d"]
    for early in (False, True):
        prompt = prompt_of(200, 200, int(early))
        ticket = engines.ticket(f"split {early}", prompt, GREEDY, early=early)
        engines.add("d", f"split {early}", prompt, GREEDY, handover=Borrow(ticket))
        engines.turn("d")
        d.abort(f"split {early}")
        p.abort(f"split {early}/1")
        engines.idle()
    assert p.status()["queue"]["lending"] == d.status()["queue"]["receiving"] == 0  # type: ignore[index]


def test_an_aborted_leg_1_ends_its_lease(engines: Engines) -> None:
    """Early: the client left before it read its ticket. The engine that took it computes for itself."""
    prompt = prompt_of(300, 200)
    ticket = engines.ticket("split", prompt, GREEDY, early=True)
    engines.cores["p"].abort("split/1")
    engines.add("d", "split", prompt, GREEDY, handover=Borrow(ticket))
    assert engines.finish("split").tokens == together(engines, prompt)
    engines.idle()


def test_a_client_that_leaves_a_waiting_request_frees_the_cache_at_once(path: Path, make: Make) -> None:
    engines = Engines(p=make(path, "prefill"), d=make(path, "decode", max_running=1))
    engines.add("d", "first", prompt_of(20, 200), replace(GREEDY, max_tokens=200))
    ticket = engines.ticket("split", prompt_of(70, 200), GREEDY)
    engines.add("d", "split", prompt_of(70, 200), GREEDY, handover=Borrow(ticket))
    engines.turn("d")
    engines.cores["d"].abort("split")
    engines.until(lambda: engines.cores["p"].cache.holders == 0)
    engines.cores["d"].abort("first")
    engines.idle()


def test_case_19_the_lease_of_a_waiting_request_is_renewed(path: Path, make: Make) -> None:
    """Nothing has been read yet, since the decode engine is full, and still its cache does not expire."""
    short = RoleConfig("prefill", transports=("local",), lease_seconds=1.5)
    engines = Engines(p=make(path, short), d=make(path, "decode", max_running=1), both=make(path))
    engines.add("d", "first", prompt_of(20, 200), replace(GREEDY, max_tokens=480))
    engines.turn("d")
    p, prompt = engines.cores["p"], prompt_of(70, 200)
    ticket = engines.ticket("split", prompt, GREEDY)
    engines.add("d", "split", prompt, GREEDY, handover=Borrow(ticket))
    assert p.handover is not None
    book = p.handover.exchange._lender.book
    engines.until(lambda: book.claimed == 1, "p")
    (lease,) = book._open.values()
    claimed = lease.renewed
    engines.until(lambda: lease.renewed > claimed or not len(book), "p")
    assert lease.renewed > claimed
    engines.cores["d"].abort("first")
    assert engines.finish("split").tokens == together(engines, prompt)
    engines.idle()


def stubborn(monkeypatch: pytest.MonkeyPatch, gate: Gate, settings: PdSettings) -> None:
    """Engines made from now on move bytes only when the gate is open, and say soon that they cannot promise an end."""
    monkeypatch.setattr("perilune.engine.door.factories", lambda *_: {"local": partial(Stubborn, gate)})
    monkeypatch.setattr("perilune.engine.door.probe", lambda _: [])
    monkeypatch.setattr(RoleConfig, "settings", lambda _: settings)


def test_case_15_pages_of_an_aborted_transfer_are_nobodys_before_the_last_byte_has_landed(
    path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    slow = replace(QUICK, transports=("local",), drain_seconds=60.0)
    stubborn(monkeypatch, gate, replace(slow, receptions=replace(slow.receptions, drain=60.0)))
    engines = Engines(p=make(path, "prefill"), d=make(path, "decode"), both=make(path))
    d, prompt = engines.cores["d"], prompt_of(150, 200)
    ticket = engines.ticket("split", prompt, GREEDY)
    engines.add("d", "split", prompt, GREEDY, handover=Borrow(ticket))
    engines.until(gate.begun.is_set)
    d.abort("split")
    held = d.cache.pages("split")
    engines.alone("d", "other", prompt_of(150, 200, 2), GREEDY)
    assert d.cache.pages("split") == held
    gate.open.set()
    engines.idle()


def test_a_transfer_that_cannot_be_ended_keeps_its_pages_and_the_answer_comes_from_others(
    path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost without a fence: the prompt is computed in other pages, and these are freed when nobody writes any more."""
    gate = Gate()
    quick = replace(QUICK, transports=("local",), drain_seconds=60.0)
    times = replace(quick.receptions, patience=0.3, drain=0.3)
    stubborn(monkeypatch, gate, replace(quick, receptions=times))
    engines = Engines(p=make(path, "prefill"), d=make(path, "decode"), both=make(path))
    d, prompt = engines.cores["d"], prompt_of(150, 200)
    ticket = engines.ticket("split", prompt, GREEDY)
    engines.add("d", "split", prompt, GREEDY, handover=Borrow(ticket))
    assert engines.finish("split").tokens == together(engines, prompt)
    assert d.cache.holders == 1
    assert d.cache.pages("split in quarantine")
    assert engines.alone("d", "more", prompt, GREEDY).tokens == together(engines, prompt)
    gate.open.set()
    engines.idle()


def test_a_ticket_is_for_one_request_one_prompt_one_way_of_drawing(engines: Engines) -> None:
    prompt, d = prompt_of(70, 200), engines.cores["d"]
    ticket = engines.ticket("split", prompt, GREEDY)
    with pytest.raises(TicketError, match="another prompt"):
        engines.add("d", "other", prompt_of(70, 200, 1), GREEDY, handover=Borrow(ticket))
    engines.add("d", "split", prompt, GREEDY, handover=Borrow(ticket))
    engines.add("d", "again", prompt, GREEDY, handover=Borrow(ticket))  # both wait: the first to be admitted gets it
    assert engines.finish("split").events[0].remote is True
    (event,) = engines.finish("again").events
    assert event.error is not None
    assert event.error.error().code == "pd_ticket"
    sampled = replace(GREEDY, temperature=2.0, seed=3)
    ticket = engines.ticket("drawn", prompt, GREEDY)
    engines.add("d", "drawn", prompt, sampled, handover=Borrow(ticket))
    drawn = engines.finish("drawn")
    assert drawn.events[0].remote is False
    assert drawn.tokens == engines.alone("both", "drawn together", prompt, sampled).tokens
    assert d.cache.holders == 0


def test_what_cannot_be_divided_is_refused_at_both_doors(engines: Engines) -> None:
    prompt = prompt_of(70, 200)
    ticket = engines.ticket("kept", prompt, GREEDY)
    for more in ({"n": 2}, {"max_tokens": 0}, {"prompt_logprobs": 1}):
        for engine, handover in (("p", Lend()), ("d", Borrow(ticket))):
            with pytest.raises(NotLentError):
                engines.add(engine, "no", prompt, replace(GREEDY, **more), handover=handover)
    for engine, handover in (("d", Lend()), ("p", Borrow(ticket)), ("both", Lend())):
        with pytest.raises(UnsupportedError):
            engines.add(engine, "no", prompt, GREEDY, handover=handover)


@pytest.mark.parametrize(
    "more", [{"max_tokens": 1}, {"stop_token_ids": (67,)}, {"min_tokens": 3, "ignore_eos": False}], ids=str
)
def test_an_answer_ends_where_it_would_have(engines: Engines, more: dict[str, Any]) -> None:
    prompt = prompt_of(90, 200)
    first = together(engines, prompt)[0].token_id
    if "stop_token_ids" in more:
        more = {"stop_token_ids": (first,)}
    params = replace(GREEDY, **more)
    alone = engines.alone("both", "together", prompt, params)
    split = engines.split("split", prompt, params)
    assert split.tokens == alone.tokens
    assert [(e.finish_reason, e.stop_reason, e.ends_turn) for e in split.events] == [
        (e.finish_reason, e.stop_reason, e.ends_turn) for e in alone.events
    ]


def test_a_grammar_goes_on_after_the_first_token(make: Make) -> None:
    from perilune.builtin import model_path

    path, grammar = model_path(), Grammar("regex", "[0-9]{3}-[a-z]{4}")
    engines = Engines(p=make(path, "prefill"), d=make(path, "decode"), both=make(path))
    params = SamplingParams(max_tokens=30, temperature=0.9, seed=5, grammar=grammar)
    prompt = prompt_of(70, 300)
    split = engines.split("split", prompt, params)
    assert split.tokens == engines.alone("both", "together", prompt, params).tokens
    assert split.last.finish_reason == "stop"
    assert split.events[0].remote is True


def test_a_request_that_was_handed_over_can_be_preempted(path: Path, make: Make) -> None:
    plan = make(path, max_context=256).plan.cache
    small = 7 * plan.page_bytes + 4 * plan.slot_bytes
    engines = Engines(
        p=make(path, "prefill"), d=make(path, "decode", max_context=256, cache_bytes=small), both=make(path)
    )
    params, prompts = replace(GREEDY, max_tokens=90), [prompt_of(length, 200) for length in (30, 63, 64, 65)]
    for number, prompt in enumerate(prompts):
        ticket = engines.ticket(f"{number}", prompt, params)
        engines.add("d", f"{number}", prompt, params, handover=Borrow(ticket))
    for number, prompt in enumerate(prompts):
        assert engines.finish(f"{number}").tokens == together(engines, prompt, params)
    assert engines.cores["d"].stats()["preemptions_total"] > 0
    engines.idle()


def test_a_cache_computed_otherwise_is_used_and_not_kept(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other kernels round otherwise: later requests of this engine must not start from such pages."""
    d = engines.cores["d"]
    assert d.handover is not None
    monkeypatch.setattr(d.handover, "_computed_by", b"something else")
    assert engines.split("split", prompt_of(200, 200), GREEDY).events[0].remote is True
    assert d.cache.stats().pages_cached == 0


# -- mutants: each is a way to be wrong that still gives fluent text; comparing tokens and log probabilities sees it


def _previous_slot(core: EngineCore, pages: list[int], slot: int) -> tuple[list[int], int]:
    return pages, slot - 1 if slot else slot + 1


def _off_by_one_page(core: EngineCore, pages: list[int], slot: int) -> tuple[list[int], int]:
    return pages[1:] + pages[:1], slot


def _skipped_layer(core: EngineCore, pages: list[int], slot: int) -> tuple[list[int], int]:
    core.runner.arenas.state(1)[slot].zero_()
    return pages, slot


def _skipped_latents(core: EngineCore, pages: list[int], slot: int) -> tuple[list[int], int]:
    core.runner.arenas.pages(3)[pages[0]].zero_()
    return pages, slot


def _swapped_windows(core: EngineCore, pages: list[int], slot: int) -> tuple[list[int], int]:
    window = core.runner.arenas.conv(2)[slot]
    window[[0, 1]] = window[[1, 0]]
    return pages, slot


@pytest.mark.parametrize(
    "mutant", [_previous_slot, _off_by_one_page, _skipped_layer, _skipped_latents, _swapped_windows]
)
def test_case_41_tokens_show_what_a_wrong_cache_does(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, mutant: Callable[..., tuple[list[int], int]]
) -> None:
    p = engines.cores["p"]
    assert p.handover is not None
    engines.split("before", prompt_of(150, 200, 8), GREEDY)  # the other slots and pages hold something too
    seal = p.handover.exchange.seal

    def wrong(lease: str, pages: list[int], slot: int, payload: bytes) -> None:
        seal(lease, *mutant(p, list(pages), slot), payload)

    monkeypatch.setattr(p.handover.exchange, "seal", wrong)
    prompt = prompt_of(150, 200)
    split = engines.split("split", prompt, GREEDY)
    assert split.events[0].remote is True
    assert split.tokens[0] == together(engines, prompt)[0]  # drawn before the mutation
    assert split.tokens != together(engines, prompt)


def test_case_41_a_state_after_one_token_less_shows(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    p = engines.cores["p"]
    assert p.handover is not None
    prompt = prompt_of(150, 200)
    engines.ticket("short", prompt[:-1], GREEDY)  # stays sealed, so its slot holds the state after N - 1
    seal, early = p.handover.exchange.seal, p.cache.slot("short/1")
    monkeypatch.setattr(
        p.handover.exchange, "seal", lambda lease, pages, slot, payload: seal(lease, pages, early, payload)
    )
    assert engines.split("split", prompt, GREEDY).tokens != together(engines, prompt)


def test_case_41_a_first_token_that_runs_twice_shows(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    d, prompt = engines.cores["d"], prompt_of(150, 200)
    resume = d._lending._resume

    def twice(answer: Any, first: FirstToken) -> TokenEvent:
        answer.sequence.outputs.append(first.token.token_id)
        return resume(answer, first)

    monkeypatch.setattr(d._lending, "_resume", twice)
    split = engines.split("split", prompt, GREEDY)
    assert split.tokens != together(engines, prompt)


def test_case_41_a_lease_that_never_ends_shows(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were Release always answered with valid, bytes of another prompt would be used: that is what it is for."""
    p = engines.cores["p"]
    assert p.handover is not None
    prompt, other = prompt_of(150, 200), prompt_of(150, 200, 4)
    ticket = engines.ticket("split", prompt, GREEDY)
    for place in [*p.cache.pages("split/1")[:3]]:  # reused while it is lent, as without a lease
        p.runner.arenas.page_arena.tensor[place] += 1
    engines.add("d", "split", prompt, GREEDY, handover=Borrow(ticket))
    assert engines.finish("split").tokens != together(engines, prompt)
    assert engines.split("other", other, GREEDY).tokens == together(engines, other)


def test_errors_of_hand_overs_keep_their_status_between_processes(engines: Engines) -> None:
    from perilune.engine.messages import WireError

    for error in (TicketError("a"), NotLentError("b")):
        back: PeriluneError = WireError.of(error).error()
        assert (type(back), back.http_status) == (type(error), 400)
