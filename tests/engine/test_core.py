"""The core, step by step: who is hit by a failure, what an abort leaves, whose ids are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from perilune.builtin import model_path
from perilune.engine.config import EngineConfig
from perilune.engine.core import EngineCore
from perilune.engine.messages import Submit, TokenEvent
from perilune.engine.request import Grammar, SamplingParams
from perilune.errors import PeriluneError, RequestError

GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)


def drain(core: EngineCore) -> dict[str, list[TokenEvent]]:
    events: dict[str, list[TokenEvent]] = {}
    while core.busy:
        for event in core.step():
            events.setdefault(event.id, []).append(event)
        core.check()
    assert core.cache.stats().bytes_used == 0
    return events


@pytest.fixture
def core(golden: Path) -> EngineCore:
    path = golden / "kimi_linear"
    return EngineCore(EngineConfig.of(str(path), dtype="float32", max_context=128, max_running=2, max_waiting=2), path)


def test_a_failing_step_spares_those_who_were_not_in_it(core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        core.add(Submit(name, (1, 2, 3), GREEDY, 0))
    run = core.runner.run

    def fail(pieces: object) -> torch.Tensor:
        monkeypatch.setattr(core.runner, "run", run)
        raise RuntimeError("once")

    monkeypatch.setattr(core.runner, "run", fail)
    events = drain(core)
    for name in ("a", "b"):
        [event] = events[name]
        assert event.finish_reason == "error"
        assert event.error is not None
    assert len(events["c"]) == 8


def test_a_sampler_that_fails_spares_the_rest_of_its_step(core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two ends in the very step in which the second fails: its last token must still come out."""
    core.add(Submit("good", (1, 2, 3), SamplingParams(max_tokens=1, temperature=0), 0))
    core.add(Submit("bad", (1, 2, 3), GREEDY, 0))

    def fail(*_: object) -> None:
        raise ArithmeticError("no token")

    monkeypatch.setattr(core._answers["bad"].sampler, "shape", fail)
    events = drain(core)
    assert [event.finish_reason for event in events["good"]] == ["length"]
    [event] = events["bad"]
    assert event.error is not None
    assert "no token" in event.error.why


def test_the_core_refuses_ids_in_use_and_more_than_fit_the_queue(core: EngineCore) -> None:
    core.add(Submit("a", (1,), GREEDY, 0))
    with pytest.raises(RequestError, match="in use"):
        core.add(Submit("a", (1,), GREEDY, 0))
    for name in ("b", "c", "d"):
        core.add(Submit(name, (1,), GREEDY, 0))
    with pytest.raises(PeriluneError, match="full"):
        core.add(Submit("e", (1,), GREEDY, 0))
    core.abort("a")
    core.abort("a")
    core.add(Submit("a", (1,), GREEDY, 0))
    assert set(drain(core)) == {"a", "b", "c", "d"}


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_an_abort_at_any_step_frees_and_leaves_others_their_bits(core: EngineCore, steps: int) -> None:
    core.add(Submit("alone", (5, 6, 7), GREEDY, 0))
    expected = [event.token for event in drain(core)["alone"]]
    core.add(Submit("gone", tuple(range(1, 100)), GREEDY, 0))
    core.add(Submit("stays", (5, 6, 7), GREEDY, 0))
    events = [event for _ in range(steps) for event in core.step()]
    core.abort("gone")
    core.check()
    rest = [*events, *drain(core).get("stays", [])]
    assert [event.token for event in rest if event.id == "stays"] == expected


def test_a_pending_grammar_can_be_aborted_and_its_id_is_taken() -> None:
    core = EngineCore(EngineConfig.of("builtin", max_context=128, max_running=1), model_path())
    request = Submit("g", (1,), SamplingParams(grammar=Grammar("regex", "[ab]{4}"), max_tokens=8), 0)
    core.add(request)
    with pytest.raises(RequestError, match="in use"):
        core.add(request)
    core.abort("g")
    assert not core.busy
    core.add(request)
    assert [event.error for event in drain(core)["g"]][-1] is None
    core.close()
