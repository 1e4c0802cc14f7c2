"""Medians, ratios, targets and limits of a row, on paper and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers.table import Row, as_json, heading, text
from peers.targets import LOAD_TIME, PEAK_MEMORY, TARGETS
from peers.workloads import workloads

POSITIVE = st.floats(1e-3, 1e6)


@dataclass(frozen=True)
class Here:
    name: str = "a processor"


def row(unit: str = "tokens/s", **samples: list[float]) -> Row:
    return Row("prefill 512", unit, samples, target=2.0, limit=100.0)


@given(st.lists(POSITIVE, min_size=1), st.lists(POSITIVE, min_size=1))
def test_the_ratio_is_that_of_the_medians(ours: list[float], theirs: list[float]) -> None:
    assert row(perilune=ours, llama_cpp=theirs).ratio == median(ours) / median(theirs)


@pytest.mark.parametrize(("ours", "reached"), [(19.9, False), (20.0, True), (30.0, True)])
def test_a_rate_must_reach_its_target(ours: float, reached: bool) -> None:
    assert row(perilune=[ours], llama_cpp=[10.0]).reached is reached


@pytest.mark.parametrize(("ours", "reached"), [(19.9, True), (20.0, True), (20.1, False)])
def test_seconds_and_bytes_must_stay_below_theirs(ours: float, reached: bool) -> None:
    assert row("GiB", perilune=[ours], llama_cpp=[10.0]).reached is reached
    assert row("s", perilune=[ours], llama_cpp=[10.0]).reached is reached


def test_the_share_of_the_limit_is_below_one_in_both_directions() -> None:
    assert row(perilune=[25.0]).of_limit == 0.25
    assert row("s", perilune=[400.0]).of_limit == 0.25


def test_without_one_engine_there_is_no_ratio_and_no_verdict() -> None:
    alone = row(perilune=[25.0])
    assert (alone.ratio, alone.reached, alone.value("llama_cpp")) == (None, None, None)
    assert "25" in text(alone)
    assert Row("load time", "s", {"llama_cpp": []}).of_limit is None


def test_json_has_the_machine_and_every_row_with_its_samples() -> None:
    made = as_json(Here(), {"model": "m"}, [row(perilune=[30.0, 10.0, 20.0], llama_cpp=[5.0])])
    read = json.loads(json.dumps(made))
    assert read["machine"] == {"name": "a processor"}
    [found] = read["rows"]
    assert {"name", "perilune", "llama_cpp", "ratio", "target", "limit"} <= found.keys()
    assert (found["perilune"], found["ratio"], found["target"], found["limit"]) == (20.0, 4.0, 2.0, 100.0)
    assert found["samples"]["perilune"] == [30.0, 10.0, 20.0]


def test_lines_stand_below_their_heading_and_mark_what_misses() -> None:
    missed = text(row(perilune=[10.0], llama_cpp=[10.0]))
    assert "≥ 2.00 no" in missed
    assert missed.index("≥") < len(heading())
    assert "no" not in text(row(perilune=[30.0], llama_cpp=[10.0]))


@pytest.mark.parametrize("model", TARGETS)
def test_every_target_names_a_row_that_is_measured(model: str) -> None:
    assert TARGETS[model].keys() <= {w.name for w in workloads(quick=False)} | {LOAD_TIME, PEAK_MEMORY}
