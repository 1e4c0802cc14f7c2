"""What whoever watches the engine is told: every request with how far it is and what it holds."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from perilune.engine.config import EngineConfig
from perilune.engine.core import EngineCore
from perilune.engine.messages import AskView, FromEngine, Submit, ToEngine
from perilune.engine.request import SamplingParams
from perilune.engine.view import SHOWN, View

GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
PROMPT = tuple(range(1, 201))


@pytest.fixture
def core(golden: Path) -> EngineCore:
    path = golden / "kimi_linear"
    return EngineCore(
        EngineConfig.of(str(path), dtype="float32", max_context=256, max_running=2, prefill_chunk=64), path
    )


def finish(core: EngineCore) -> None:
    while core.busy:
        core.step()


def test_a_prompt_is_seen_to_be_read_then_answered_then_gone(core: EngineCore) -> None:
    core.add(Submit("a", PROMPT, GREEDY, 0))
    (waiting,) = core.view().requests
    assert (waiting.phase, waiting.prompt, waiting.computed, waiting.pages) == ("waiting", 200, 0, 0)
    seen = []
    while core.busy:
        core.step()
        seen += [(one.phase, one.computed, one.output) for one in core.view().requests]
    assert seen[:4] == [("prefill", 64, 0), ("prefill", 128, 0), ("prefill", 192, 0), ("decode", 200, 1)]
    assert seen[-1] == ("decode", 200, 7)
    assert core.view().requests == ()


def test_own_pages_and_those_of_the_prefix_cache_are_told_apart_and_no_page_is_counted_twice(core: EngineCore) -> None:
    core.add(Submit("first", PROMPT, GREEDY, 0))
    finish(core)
    core.add(Submit("second", PROMPT, GREEDY, 0))
    core.step()
    (one,) = core.view().requests
    assert (one.cached, one.shared, one.pages) == (192, 3, 1)
    assert one.because == "192 of 200 prompt tokens reused: all that can be"
    stats = core.view().stats
    assert stats["pages_used"] == one.shared + one.pages
    assert stats["pages_used"] + stats["pages_cached"] == core.cache._pages.used


def test_two_requests_that_read_one_prefix_hold_it_once(core: EngineCore) -> None:
    core.add(Submit("first", PROMPT, GREEDY, 0))
    finish(core)
    for name in ("a", "b"):
        core.add(Submit(name, PROMPT, GREEDY, 0))
    for _ in range(2):
        core.step()
    both = core.view()
    assert [one.shared for one in both.requests] == [3, 3]
    assert both.stats["pages_used"] == 3 + sum(one.pages for one in both.requests)
    core.check()


def test_of_a_long_queue_only_the_head_is_named(core: EngineCore) -> None:
    for number in range(2 + SHOWN + 5):
        core.add(Submit(f"r{number}", (1, 2, 3), GREEDY, 0))
    for _ in range(2):
        core.step()
    view = core.view()
    assert [one.phase for one in view.requests] == ["decode", "decode", *["waiting"] * SHOWN]
    assert view.stats["waiting"] == SHOWN + 5


def test_a_view_crosses_between_processes(core: EngineCore) -> None:
    core.add(Submit("a", PROMPT, GREEDY, 0))
    core.step()
    view = core.view()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(view), type=FromEngine) == view
    assert isinstance(view, View)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(AskView()), type=ToEngine) == AskView()
