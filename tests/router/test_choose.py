"""The arithmetic of choosing: what moves, what stays, and who is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perilune.router.choose import Seen, choose

KIMI = {"state_bytes": 43_417_600, "token_bytes": 8064}
D = Seen("d0", slots=8, free=8, rate=1000.0, link=1e9, **KIMI)
P = Seen("p0", rate=1000.0)


def test_a_short_prompt_stays_and_a_long_one_moves() -> None:
    assert choose(100, [D], [P]).why == "short"
    assert choose(4096, [D], [P]).prefill == "p0"


def test_the_state_makes_prompts_on_a_slow_link_not_worth_moving() -> None:
    slow = replace(D, link=20e6)  # 2.2 s for the state alone
    assert choose(4096, [slow], [P]).why == "dear"
    assert choose(4096, [slow], [P], disturbance=1000).why == "remote"
    assert choose(4096, [replace(slow, state_bytes=0)], [P]).why == "remote"


@given(tokens=st.integers(1024, 500_000), rate=st.floats(10, 1e5), link=st.floats(1e6, 1e11))
def test_between_idle_equals_moving_pays_once_prefill_takes_twice_the_transfer(
    tokens: int, rate: float, link: float
) -> None:
    transfer = (KIMI["state_bytes"] + tokens * KIMI["token_bytes"]) / link
    made = choose(tokens, [replace(D, rate=rate, link=link)], [replace(P, rate=rate)])
    if abs(tokens / rate - 2 * transfer) > 1e-6 * transfer:
        assert (made.prefill is not None) == (tokens / rate > 2 * transfer)


def test_what_decode_has_already_is_not_moved() -> None:
    made = choose(8000, [replace(D, cached=7500)], [P])
    assert (made.why, made.uncached, made.prefill) == ("cached", 500, None)


def test_a_long_queue_at_prefill_keeps_prompts_on_decode() -> None:
    assert choose(4096, [D], [replace(P, queue_tokens=100_000)]).why == "dear"
    assert choose(4096, [replace(D, queue_tokens=200_000)], [replace(P, queue_tokens=100_000)]).why == "remote"


def test_the_prefill_engine_with_the_shortest_way_is_taken_prefix_and_queue_together() -> None:
    engines = [P, replace(P, name="p1", cached=4000), replace(P, name="p2", cached=4096, queue_tokens=9000)]
    assert choose(8192, [D], engines).prefill == "p1"


def test_free_slots_come_before_prefixes_and_prefixes_before_load() -> None:
    full, busy = replace(D, name="full", free=0, cached=2000), replace(D, name="busy", free=2, cached=2000)
    assert choose(2048, [full, busy, D], []).decode == "busy"
    assert choose(2048, [full, D], []).decode == "d0"
    assert choose(10, [replace(D, name="busy", free=2), D], []).decode == "d0"


def test_caches_of_another_model_are_never_moved() -> None:
    made = choose(8192, [replace(D, digest="a")], [replace(P, digest="b")])
    assert (made.why, made.prefill, made.remote) == ("alone", None, None)
    assert choose(8192, [replace(D, digest="a")], [P, replace(P, name="p1", digest="a")]).prefill is not None


@pytest.mark.parametrize("why", ["n", "fallback"])
def test_what_must_stay_stays_and_says_why(why: str) -> None:
    made = choose(100_000, [D], [P], stay=why)
    assert (made.why, made.prefill) == (why, None)


def test_the_header_names_engines_and_terms_and_no_address() -> None:
    assert choose(4096, [D], [P]).header() == (
        "decode=d0 prefill=p0 why=remote uncached=4096 local=6.144s remote=4.172s"
    )


SEEN = st.builds(
    Seen, name=st.sampled_from(["a", "b", "c"]), cached=st.integers(0, 10_000), queue_tokens=st.integers(0, 10**6),
    open=st.integers(0, 99), waiting=st.integers(0, 99), slots=st.none() | st.integers(0, 99),
    free=st.none() | st.integers(-5, 99), rate=st.floats(1, 1e6), link=st.floats(1, 1e12),
    state_bytes=st.integers(0, 10**9), token_bytes=st.integers(0, 10**5), digest=st.sampled_from(["", "x", "y"]),
)  # fmt: skip


@given(
    tokens=st.integers(1, 10**6), decode=st.lists(SEEN, min_size=1, max_size=4), prefill=st.lists(SEEN, max_size=4),
    least=st.integers(0, 10**5),
)  # fmt: skip
def test_whatever_engines_say_somebody_is_chosen_and_the_cheaper_way(
    tokens: int, decode: list[Seen], prefill: list[Seen], least: int
) -> None:
    made = choose(tokens, decode, prefill, least=least)
    assert made.decode in {each.name for each in decode}
    if made.prefill is not None:
        assert made.prefill in {each.name for each in prefill}
        assert made.uncached >= least
        assert made.remote is not None
        assert made.remote <= made.local
