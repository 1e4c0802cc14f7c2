"""Lengths, schedules, prompts and traces: what is asked is what was declared."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from perilune.bench.load.drive import units
from perilune.bench.load.prompts import build, warmups, zipf
from perilune.bench.load.schedule import ramp, times
from perilune.bench.load.trace import read_trace
from perilune.bench.spec.lengths import Length, draw, longest
from perilune.bench.spec.workload import Load, Trace, Workload
from perilune.errors import ConfigError

WORKLOAD: TypeAdapter[Workload] = TypeAdapter(Workload)
LOAD: TypeAdapter[Load] = TypeAdapter(Load)
LENGTH: TypeAdapter[Length] = TypeAdapter(Length)
CLOSED = LOAD.validate_python({"kind": "closed", "conc": 4, "requests": 40})


@pytest.mark.parametrize(
    ("meaning", "ratio", "bounds"),
    [("inferencex", 0.8, (819, 1024)), ("sglang", 0.8, (819, 1024)), ("vllm", 0.2, (819, 1229)),
     ("sglang", 0, (1, 1024)), ("vllm", 0, (1024, 1024)), ("inferencex", 1, (1024, 1024))],
)  # fmt: skip
def test_range_ratio_has_the_meaning_its_tool_gives_it(meaning: str, ratio: float, bounds: tuple[int, int]) -> None:
    length = LENGTH.validate_python({"range_ratio": {"of": 1024, "ratio": ratio, "meaning": meaning}})
    found = draw(length, np.random.default_rng(0), 20_000)
    assert (min(found), max(found)) == bounds


@pytest.mark.parametrize(
    "spec",
    [5, {"uniform": [3, 9]}, {"normal": {"mean": 5, "std": 3, "min": 2, "max": 9}},
     {"lognormal": {"median": 5, "sigma": 1, "max": 9}}, {"choice": {"values": [2, 9], "weights": [9, 1]}}],
)  # fmt: skip
def test_lengths_stay_within_what_was_written(spec: object) -> None:
    length = LENGTH.validate_python(spec)
    found = draw(length, np.random.default_rng(1), 500)
    assert 1 <= min(found) <= max(found) <= longest(length)


@pytest.mark.parametrize(
    ("spec", "cv"),
    [({"kind": "constant"}, 0.0), ({"kind": "poisson"}, 1.0), ({"kind": "gamma", "burstiness": 4.0}, 0.5),
     ({"kind": "gamma", "burstiness": 0.25}, 2.0)],
)  # fmt: skip
def test_schedules_have_the_rate_and_burstiness_asked_for(spec: dict[str, object], cv: float) -> None:
    found = times(LOAD.validate_python({**spec, "rate": 20.0, "requests": 20_000}), np.random.default_rng(2))
    assert found is not None
    gaps = np.diff(found)
    assert found[0] == 0
    assert gaps.mean() == pytest.approx(0.05, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.08, abs=1e-9)


@given(st.floats(0, 50), st.floats(0.5, 50), st.floats(0.5, 100))
def test_a_ramp_sends_the_integral_of_its_rate(start: float, stop: float, seconds: float) -> None:
    found = ramp(start, stop, seconds)
    assert len(found) == round((start + stop) / 2 * seconds)
    assert all(a <= b for a, b in itertools.pairwise(found))
    assert not found or found[-1] <= seconds + 1e-6


def test_a_run_is_the_same_for_its_key_and_shares_nothing_with_another() -> None:
    workload = WORKLOAD.validate_python({"kind": "random", "input": 40, "output": {"uniform": [1, 9]}})
    one, again, other = (build(workload, CLOSED, key) for key in ("a", "a", "b"))
    assert one == again
    heads = {tuple(ask.prompt[:8]) for run in (one, other) for ask in run.asks}
    heads |= {tuple(ask.prompt[:8]) for ask in warmups(workload, 5, "a")}
    assert len(heads) == 85
    assert one.ideal_hit_rate == 0
    assert [ask.output_tokens for ask in one.asks] == [ask.output_tokens for ask in other.asks]


@pytest.mark.parametrize("cache", ["cold", "warm"])
def test_the_ideal_hit_rate_is_what_a_cache_without_limits_would_have(cache: str) -> None:
    workload = WORKLOAD.validate_python(
        {"kind": "random", "input": 50, "output": 1, "cache": cache, "prefix": {"length": 30, "groups": 5, "zipf": 1.0}}
    )
    run = build(workload, CLOSED, "k")
    cached = {tuple(ask.prompt[:30]) for ask in run.warm}
    hits = 0
    for ask in run.asks:
        hits += 30 * (tuple(ask.prompt[:30]) in cached)
        cached.add(tuple(ask.prompt[:30]))
    assert run.ideal_hit_rate == hits / (50 * 40)
    assert len(run.warm) == (5 if cache == "warm" else 0)


def test_zipf_shares_fall_as_one_over_the_rank() -> None:
    assert zipf(3, 1.0) == pytest.approx([6 / 11, 3 / 11, 2 / 11])
    assert zipf(4, 0.0) == [0.25] * 4


def test_turns_of_a_session_stay_together_and_reuse_what_came_before() -> None:
    workload = WORKLOAD.validate_python(
        {"kind": "sessions", "turns": 3, "system": 10, "input": 5, "output": 4, "think_s": 0.5}
    )
    run = build(workload, LOAD.validate_python({"kind": "closed", "requests": 2}), "k")
    assert [len(unit) for unit in units(run.asks)] == [3, 3]
    assert [ask.pause for ask in run.asks[:3]] == [0.0, 0.5, 0.5]
    # Contexts are 15, 24 and 33 tokens; of them 0 (10 from the second session on), 19 and 28 were seen before.
    assert run.ideal_hit_rate == pytest.approx((0 + 19 + 28 + 10 + 19 + 28) / (2 * (15 + 24 + 33)))


def test_mooncake_blocks_with_equal_hashes_are_equal_tokens(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows = [(2000, 1100, [1, 2, 3]), (3000, 1030, [1, 2, 9]), (2500, 600, [7, 2])]
    path.write_text("".join(
        json.dumps({"timestamp": t, "input_length": n, "output_length": 8, "hash_ids": h}) + "\n" for t, n, h in rows
    ))  # fmt: skip
    trace = WORKLOAD.validate_python({"kind": "trace", "path": str(path), "format": "mooncake", "time_scale": 0.5})
    run = build(trace, LOAD.validate_python({"kind": "replay"}), "k")
    assert [ask.at for ask in run.asks] == [0.0, 0.25, 0.5]
    first, middle, last = (ask.prompt for ask in run.asks)
    assert first[:1024] == last[:1024]
    assert first[512:600] == middle[512:600]
    assert run.ideal_hit_rate == 1024 / (1100 + 600 + 1030)  # a block counts only if all before it are known too


def test_azure_and_own_logs_are_replayed_and_broken_rows_named(tmp_path: Path) -> None:
    azure = tmp_path / "azure.csv"
    azure.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
                     "2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:15:51.1,5,0\n")  # fmt: skip
    own = tmp_path / "own.jsonl"
    own.write_text('{"id":0,"intended":1.5,"input_tokens":10,"output_tokens":3}\n{"id":1,"intended":2,"error":"cut"}\n')
    rows = read_trace(Trace(kind="trace", path=str(azure), format="azure"))
    assert [(round(r.at, 4), r.input_tokens) for r in rows] == [(0.0, 374), (4.3146, 396)]
    assert [r.output_tokens for r in read_trace(Trace(kind="trace", path=str(own), format="perilune"))] == [3]
    with pytest.raises(ConfigError, match="row 1 is no azure row"):
        read_trace(Trace(kind="trace", path=str(own), format="azure"))
    with pytest.raises(ConfigError, match="Cannot read"):
        read_trace(Trace(kind="trace", path=str(tmp_path / "none"), format="azure"))
