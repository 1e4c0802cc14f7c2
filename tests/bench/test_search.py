"""Bisection finds the edge it is for, with few runs, against a server whose edge is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import servers
from hypothesis import given
from hypothesis import strategies as st

from perilune.bench.nullserver import Model
from perilune.bench.search import at, highest, search
from perilune.bench.spec.load import parse_sweeps
from perilune.bench.store import Store
from perilune.errors import ConfigError

SWEEP = """\
sweeps:
  s:
    target: {url: "URL"}
    workload: {kind: random, input: 4, output: 1}
    load: {kind: closed, waves: 4}
    slo: {ttft_ms: 250}
    repeats: 1
    warmup: 0
"""


@given(st.integers(1, 50), st.integers(0, 1000), st.integers(0, 1100))
def test_the_edge_is_found_wherever_it_is(low: int, more: int, edge: int) -> None:
    tried: list[int] = []

    def keeps(load: int) -> bool:
        tried.append(load)
        return load <= edge

    high = low + more
    assert highest(keeps, low, high) == (None if edge < low else min(edge, high))
    assert len(tried) == len(set(tried)) <= 2 + 2 * high.bit_length()
    assert all(low <= load <= high for load in tried)


def test_a_server_with_two_places_keeps_its_promise_to_two(tmp_path: Path) -> None:
    """0.15 s an answer and two places: of three open requests, one waits and is over a quarter of a second."""
    with servers.null(Model(ttft=0.15, itl=0.0, slots=2)) as server:
        loaded = parse_sweeps(SWEEP.replace("URL", server.url))
        found, tried = search(loaded, "s", "conc", 1, 8, 0.9, Store(tmp_path / "r"), lambda line: None)
    assert found == 2
    assert [each.load for each in tried] == [1, 2, 4, 3]


def test_a_search_needs_a_limit_and_a_load() -> None:
    with pytest.raises(ConfigError, match="needs an slo"):
        at(parse_sweeps(SWEEP.replace("ttft_ms: 250", "")), "s", "conc", 1)
    with pytest.raises(ConfigError, match="no load"):
        at(parse_sweeps(SWEEP), "s", "tp", 1)
