"""What the client can do by itself: tried at the load of a run, once for runs alike; a client that cannot is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import servers
from test_against_servers import bench
from test_statistics import request
from typer.testing import CliRunner

from perilune.bench import selfcheck
from perilune.bench.nullserver import Model
from perilune.bench.plan.expand import expand
from perilune.bench.run import run
from perilune.bench.selfcheck import Alone, SelfCheck, alone, ceiling, lines
from perilune.bench.spec.load import parse_sweeps
from perilune.bench.store import Store
from perilune.cli.bench import bench as command


def played(chunks: float, most: float = 1e9) -> Alone:
    """A client that takes up to `most` chunks/s."""
    late = 0.001 if chunks <= most else 0.05
    return Alone(chunks / 6, chunks, chunks / 6, 0.0003, 0.001, 0.0001, 0.001, late, late, 0.4)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The loads in chunks/s that are played; the client takes up to 3,000 of them."""
    found: list[float] = []

    def play(rate: float, tokens: int, **_: object) -> Alone:
        found.append(rate * (tokens + 1))
        return played(found[-1], 3000)

    monkeypatch.setattr(selfcheck, "alone", play)
    return found


def test_a_load_is_played_against_the_null_server_and_compared_with_what_that_wrote() -> None:
    """How late this machine is today decides nothing here; what is added up and left out does."""
    found = alone(100, 4, seconds=0.2)
    assert (found.rate, found.chunks_per_s) == (100, 500)
    assert found.ttft_p50 >= 0, "nothing is seen before it was written"
    assert 0 <= found.ttft_p50 <= found.ttft_p99
    assert min(found.wait_p99, found.server_p99) >= 0
    assert found.sent_per_s > 0
    assert found.cpu > 0


def test_equal_loads_are_tried_once_and_next_to_nothing_never(tried: list[float]) -> None:
    check = SelfCheck()
    slow = [request(i, i * 1.0) for i in range(20)]
    assert check.of(slow, 1) is None
    assert check.of([request(0, error="cut")], 1) is None
    some = [request(i, i * 0.006, tokens=5) for i in range(300)]  # 1,800 chunks in about 1.9 s
    for _ in range(3):
        found = check.of(some, 1)
        assert found is not None
        assert found.bound is None
    assert tried == [pytest.approx(1024)]
    check.of(some, 2)
    assert len(tried) == 2


@pytest.mark.parametrize(("every", "bound"), [(0.0025, False), (0.0015, True)])
def test_too_much_at_the_next_power_of_two_is_tried_at_the_run_s_own_load(
    every: float, bound: bool, tried: list[float]
) -> None:
    records = [request(i, i * every, tokens=5) for i in range(2000)]
    found = SelfCheck().of(records, 1)
    assert found is not None
    assert (found.bound is not None) == bound
    assert "client-bound: alone" in (found.bound or "client-bound: alone")
    assert tried[:2] == [pytest.approx(4096)] * 2, "and again, since a machine may be held up for a moment"
    assert tried[-1] == pytest.approx(6 / every, rel=0.05)


def test_the_ceiling_is_the_last_load_that_was_not_too_much(tried: list[float]) -> None:
    found = ceiling(8, 1)
    assert [a.rate for a in found if a.bound is None][-1] * 6 <= 3000
    text = "\n".join(lines(found))
    assert "client-bound: alone" in text
    assert "the client can take" in text


def test_a_run_at_a_load_the_client_cannot_take_is_degraded(tmp_path: Path) -> None:
    class Bound(SelfCheck):
        def of(self, *_: object) -> Alone:
            return played(9000, 3000)

    text = "sweeps: {s: {target: {url: 'URL'}, workload: {input: 4, output: 2}, load: {kind: closed}, repeats: 1}}"
    with servers.null(Model(ttft=0.0, itl=0.0)) as server:
        points = expand(parse_sweeps(text.replace("URL", server.url)))
        (entry,) = run(points, Store(tmp_path / "a"), servers.Quiet(), check=Bound())
        plain = bench(server.url, tmp_path)
    assert entry["verdict"]["status"] == "degraded"
    assert entry["verdict"]["reasons"][0].startswith("client-bound: alone, at 9000 chunks/s")
    assert entry["client"]["alone"]["chunks_per_s"] == 9000
    assert "alone" not in plain["client"]


def test_the_command_says_it_for_people_and_programs(tried: list[float]) -> None:
    few = CliRunner().invoke(command, ["self-check", "--rate", "100", "--tokens", "5"])
    assert (few.exit_code, few.stdout.count("\n")) == (0, 3)
    many = CliRunner().invoke(command, ["self-check", "--rate", "1000", "--tokens", "5", "--json"])
    assert many.exit_code == 1
    assert "client-bound" in json.loads(many.stdout)[0]["bound"]
