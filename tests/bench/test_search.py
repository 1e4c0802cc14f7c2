"""Bisection finds the edge it is for, with few runs, against a server whose edge is known."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import servers
from hypothesis import given
from hypothesis import strategies as st

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
    """A third request at once is turned away. No clock decides: what is asked is whether three were open."""
    lock, held = threading.Lock(), [0]

    def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with lock:
            held[0] += 1
            room = held[0] <= 2
        time.sleep(0.2)
        with lock:
            held[0] -= 1  # before the answer: whoever reads it may ask again at once
        if room:
            servers.stream(handler, 1, servers.usage(body, 1))
        else:
            servers.whole(handler, 429, '{"error": {"message": "two at once"}}')

    with servers.fake(answer) as url:
        loaded = parse_sweeps(SWEEP.replace("URL", url).replace("ttft_ms: 250", "ttft_ms: 60000"))
        found, tried = search(loaded, "s", "conc", 1, 8, 0.9, Store(tmp_path / "r"), servers.Quiet())
    assert found == 2
    assert [each.load for each in tried] == [1, 2, 4, 3]


def test_a_search_needs_a_limit_and_a_load() -> None:
    with pytest.raises(ConfigError, match="needs an slo"):
        at(parse_sweeps(SWEEP.replace("ttft_ms: 250", "")), "s", "conc", 1)
    with pytest.raises(ConfigError, match="no load"):
        at(parse_sweeps(SWEEP), "s", "tp", 1)
