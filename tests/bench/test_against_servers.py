"""What is measured against servers whose truth is known, and what is said of servers that misbehave."""

from __future__ import annotations

import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import servers

from perilune.bench.load.client import Goal
from perilune.bench.load.record import Ask, Record
from perilune.bench.load.workers import send
from perilune.bench.measure.metrics import summary
from perilune.bench.nullserver import Model
from perilune.bench.plan.expand import expand
from perilune.bench.run import run
from perilune.bench.spec.load import parse_sweeps
from perilune.bench.spec.sweep import Slo
from perilune.bench.store import Entry, Store


def asks(count: int, out: int = 8, every: float | None = None) -> list[Ask]:
    return [Ask(i, [5] * 10, out, None if every is None else i * every) for i in range(count)]


def goal(url: str, **more: Any) -> Goal:
    return Goal(url=url, model="null", **more)


def bench(url: str, tmp_path: Path, **more: object) -> Entry:
    fields = {"repeats": 1, "warmup": 0, "load": {"kind": "closed", "conc": 2, "requests": 6}, **more}
    text = "version: 1\nsweeps:\n  s:\n" + "".join(f"    {key}: {value!r}\n" for key, value in fields.items())
    text += f"    target: {{url: '{url}'}}\n"
    if "workload" not in fields:
        text += "    workload: {kind: random, input: 12, output: 4}\n"
    (entry,) = run(expand(parse_sweeps(text)), Store(tmp_path / "results"), servers.Quiet())
    return entry


def late(record: Record) -> float:
    """How long after its intended start a request was sent."""
    assert record.sent is not None
    return record.sent - record.intended


def test_times_are_the_server_s_own() -> None:
    """Beside what the server wrote down: in between are the loopback and two wake-ups, on a busy machine too."""
    with servers.null(Model(ttft=0.05, itl=0.01)) as server:
        records = send(goal(server.url), asks(40), places=4).records
        written = server.written
    found = summary(records, Slo(), gpus=False)
    assert found["failed"] == 0
    assert found["ttft_p50"] >= 0.05
    assert found["tpot_p50"] > 0
    # Whatever else ran: no answer was seen before it was written, and the gaps add up to what the server left between.
    assert len(written) == 40
    seen = sorted(record.arrivals[-1] - record.arrivals[0] for record in records)
    told = sorted(times[-1] - times[0] for times in written)
    assert all(len(record.arrivals) <= 8 for record in records)
    assert seen[20] == pytest.approx(told[20], abs=max(0.05, told[20] / 2))


def test_an_outage_shows_in_the_response_time_of_requests_that_had_to_wait() -> None:
    """Ten requests a second, one at a time, and a second of outage: the ones behind it were late for their users."""
    with servers.null(Model(ttft=0.01, itl=0.0, stall_at=0.5, stall=1.0)) as server:
        records = send(goal(server.url), asks(20, 1, 0.1), limit=1).records
    waited = [record for record in records if record.intended > 0.6 and late(record) > 0.2]
    assert waited, "the requests behind the outage were sent late"
    for record in waited:
        assert record.sent is not None
        assert record.end is not None
        # Service time alone would hide it: response time has the wait, and is counted from the intended start.
        assert record.end - record.intended > record.end - record.sent
    found = summary(records, Slo(), gpus=False)
    assert found["e2e_response_p90"] > found["e2e_p50"]
    assert found["wait_p90"] > 0.2


def test_an_open_loop_does_not_wait_for_answers_nor_move_its_times() -> None:
    with servers.null(Model(ttft=0.5, itl=0.0)) as server:
        driven = send(goal(server.url), asks(30, 1, 0.02))
    sent = [record.sent for record in driven.records if record.sent is not None]
    assert len(sent) == 30
    # However late one was, the next was due when it was due: lateness is counted, never added up.
    assert sorted(record.intended for record in driven.records) == pytest.approx([0.02 * i for i in range(30)])
    assert all(record.sent >= record.intended for record in driven.records if record.sent is not None)
    first = min(record.end for record in driven.records if record.end is not None)
    assert sum(at < first for at in sent) > 1, "several were sent before the first was answered"


def test_reasoning_is_the_first_token_but_not_the_first_of_the_answer() -> None:
    with servers.null(Model(ttft=0.02, itl=0.01, reasoning=5)) as server:
        chat = [Ask(0, "a word", 8)]
        found = summary(send(goal(server.url, endpoint="chat"), chat, places=1).records, Slo(), gpus=False)
    assert found["ttfo_p50"] > found["ttft_p50"]


def test_several_processes_send_everything_once() -> None:
    with servers.null(Model(ttft=0.01, itl=0.001)) as server:
        driven = send(goal(server.url), asks(21, 2), places=5, processes=2)
        assert server.requests == 21
    assert sorted(record.id for record in driven.records) == list(range(21))
    assert {record.worker for record in driven.records} == {0, 1}


def test_connections_are_kept_and_a_closed_one_is_opened_again() -> None:
    def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        servers.stream(handler, 2, servers.usage(body, 2))

    with servers.fake(answer) as url:
        driven = send(goal(url), asks(5, 2), places=1)
    assert [record.error for record in driven.records] == [None] * 5
    with servers.null(Model(ttft=0.0, itl=0.0)) as server:
        driven = send(goal(server.url), asks(5, 2), places=1)
    assert [record.connected is None for record in driven.records] == [False, True, True, True, True]


def refuse(status: int) -> servers.Answer:
    return lambda handler, body: servers.whole(handler, status, '{"error": {"message": "no room"}}')


def cut(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    servers.begin(handler)
    servers.say(handler, servers.text("half"))


def error_inside(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    cut(handler, body)
    servers.say(handler, {"error": {"message": "engine died"}})


def slow(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    servers.begin(handler)
    servers.say(handler, servers.text("x"))
    time.sleep(1.5)


def dropped(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    handler.close_connection = True
    handler.connection.close()


@pytest.mark.parametrize(
    ("answer", "says"),
    [(refuse(429), "status 429: no room"), (refuse(500), "status 500"), (cut, "without a finish reason"),
     (error_inside, "engine died"), (slow, "timeout"), (dropped, "6 of 6 requests failed")],
    ids=["429", "500", "cut", "error inside", "slow", "dropped"],
)  # fmt: skip
def test_a_server_that_fails_gets_a_failed_verdict_that_says_how(
    answer: servers.Answer, says: str, tmp_path: Path
) -> None:
    with servers.fake(answer) as url:
        entry = bench(url, tmp_path, timeout_s=0.5)
    assert entry["verdict"]["status"] == "failed"
    assert says in entry["verdict"]["reasons"][0]


def test_nobody_listening_is_a_failed_run_and_not_a_crash(tmp_path: Path) -> None:
    entry = bench("http://127.0.0.1:9", tmp_path)
    assert entry["verdict"]["status"] == "failed"
    assert "lists no model" in entry["verdict"]["reasons"][0]


@pytest.mark.parametrize(
    ("chunks", "counted", "cached", "prompt", "says"),
    [(4, 4, 0, None, None), (4, 2, 0, None, "more chunks than tokens"), (3, 3, 0, None, "another length"),
     (4, 4, 12, None, "declared defeated"), (4, 4, 0, 99, "counts 99 prompt tokens"),
     (4, None, 0, None, "counted no tokens")],
    ids=["right", "too few", "short", "cached", "prompt", "none"],
)  # fmt: skip
def test_wrong_counts_make_a_run_degraded(
    chunks: int, counted: int | None, cached: int, prompt: int | None, says: str | None, tmp_path: Path
) -> None:
    def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        told = None if counted is None else servers.usage(body, counted, cached)
        if told is not None and prompt is not None:
            told["prompt_tokens"] = prompt
        servers.stream(handler, chunks, told)

    with servers.fake(answer) as url:
        entry = bench(url, tmp_path)
    reasons = [r for r in entry["verdict"]["reasons"] if "client-bound" not in r]
    assert (says is None and not reasons) or any(says or "" in reason for reason in reasons)
    assert ("output_per_s" in entry["metrics"]) == (counted is not None)


def test_the_server_s_own_counters_decide_whether_its_cache_was_cold(tmp_path: Path) -> None:
    count = [0]

    def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        count[0] += len(body["prompt"])
        servers.stream(handler, 4, servers.usage(body, 4))

    def metrics() -> str:
        name = "vllm:prefix_cache"
        return f'{name}_queries_total{{m="x"}} {count[0]}\n{name}_hits_total{{m="x"}} {count[0] / 2}\n'

    with servers.fake(answer, metrics) as url:
        entry = bench(url, tmp_path)
    assert entry["metrics"]["hit_rate"] == pytest.approx(0.5)
    assert any("declared defeated" in reason for reason in entry["verdict"]["reasons"])


def test_a_client_that_is_held_up_is_flagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from perilune.bench.load import client

    note = client.note

    def held_up(*args: Any) -> None:
        time.sleep(0.02)
        note(*args)

    monkeypatch.setattr(client, "note", held_up)
    with servers.null(Model(ttft=0.01, itl=0.001)) as server:
        entry = bench(server.url, tmp_path)
    assert any("client-bound" in reason for reason in entry["verdict"]["reasons"])
