"""What is measured against servers whose truth is known, and what is said of servers that misbehave."""

from __future__ import annotations

import asyncio
import json
import selectors
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import servers

from perilune.bench.load import clock
from perilune.bench.load.client import Goal
from perilune.bench.load.drive import drive
from perilune.bench.load.record import Ask, Record
from perilune.bench.load.workers import send
from perilune.bench.measure.metrics import summary
from perilune.bench.nullserver import Model, apart
from perilune.bench.plan.expand import expand
from perilune.bench.run import run
from perilune.bench.spec.load import parse_sweeps
from perilune.bench.spec.sweep import Slo
from perilune.bench.store import Entry, Store

ROUNDED = 2e-6
"""Stored times have six digits."""


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


def test_times_lie_between_what_the_server_wrote_down() -> None:
    """One clock: nothing is seen before it was written, nor sent after it was read. Delays only widen that."""
    with apart(Model(ttft=0.02, itl=0.005)) as server:
        origin = time.monotonic()
        asked = [Ask(i, [i] * 10, 8) for i in range(24)]
        driven = clock.run(drive(goal(server.url), asked, origin, places=4))
        told = {each.first: each for each in server.told()}
    assert len(told) == len(driven.records) == 24
    for record in driven.records:
        truth = told[record.id]
        assert record.sent is not None
        assert record.first_token is not None
        assert origin + record.sent <= truth.read
        assert origin + record.first_token >= truth.written[0] - ROUNDED
        assert origin + record.arrivals[-1] >= truth.written[-1] - ROUNDED
        # Tokens that were held up on the way may come together.
        assert 1 <= len(record.arrivals) <= 8
    found = summary(driven.records, Slo(), gpus=False)
    assert found["ttft_p50"] >= 0.02
    assert found["failed"] == 0


@pytest.mark.skipif(not hasattr(selectors, "EpollSelector"), reason="only epoll counts in milliseconds")
def test_the_loop_waits_as_long_as_asked_and_not_in_whole_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(clock.select, "select", lambda *args: slept.append(args[3]))
    clock.run(asyncio.sleep(0.0012))
    assert 0 < slept[0] <= 0.0012
    assert any(wait * 1000 % 1 > 1e-6 for wait in slept)


def test_an_outage_shows_in_the_response_time_of_requests_that_had_to_wait() -> None:
    """One every tenth of a second, one at a time, and a second of outage: the ones behind it were late for their users.

    Each bound follows from the schedule and the outage; a slow machine only makes everything later.
    """
    with servers.null(Model(ttft=0.01, itl=0.0, stall_at=5, stall=1.0)) as server:
        records = {r.id: r for r in send(goal(server.url), asks(20, 1, 0.1), limit=1).records}
    for behind in range(1, 10):
        record = records[5 + behind]
        assert late(record) >= 1.0 - 0.1 * behind - ROUNDED
        assert record.sent is not None
        assert record.end is not None
        # Service time alone would hide it: response time has the wait, and is counted from the intended start.
        assert record.end - record.intended == pytest.approx(late(record) + record.end - record.sent)
    found = summary(list(records.values()), Slo(), gpus=False)
    assert found["wait_p90"] >= 0.7
    assert found["e2e_response_p90"] >= 0.7


def test_an_open_loop_does_not_wait_for_answers_nor_move_its_times() -> None:
    together = threading.Barrier(12)

    def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        together.wait(60)  # no answer before twelve are asked: who waits for answers gets none
        servers.stream(handler, 1, servers.usage(body, 1))

    with servers.fake(answer) as url:
        driven = send(goal(url), asks(24, 1, 0.02))
    assert [record.error for record in driven.records] == [None] * 24
    # However late one was, the next was due when it was due: lateness is counted, never added up.
    assert sorted(record.intended for record in driven.records) == pytest.approx([0.02 * i for i in range(24)])
    assert all(record.sent >= record.intended for record in driven.records if record.sent is not None)


def test_reasoning_is_the_first_token_but_not_the_first_of_the_answer() -> None:
    with servers.null(Model(ttft=0.02, itl=0.01, reasoning=5)) as server:
        origin = time.monotonic()
        driven = clock.run(drive(goal(server.url, endpoint="chat"), [Ask(0, "a word", 8)], origin, places=1))
        (told,) = server.told
    (record,) = driven.records
    assert record.first_token is not None
    assert record.first_answer is not None
    assert record.first_reasoning == record.first_token
    assert origin + record.first_answer >= told.written[5] - ROUNDED, (
        "the sixth token is the first that is no reasoning"
    )
    assert summary([record], Slo(), gpus=False)["ttfo_p50"] >= record.first_answer - (record.sent or 0.0) - ROUNDED


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


def silent(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    """One token, and then nothing for as long as anybody listens."""
    servers.begin(handler)
    servers.say(handler, servers.text("x"))
    handler.connection.recv(1)


def dropped(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    handler.close_connection = True
    handler.connection.close()


@pytest.mark.parametrize(
    ("answer", "says"),
    [(refuse(429), "status 429: no room"), (refuse(500), "status 500"), (cut, "without a finish reason"),
     (error_inside, "engine died"), (silent, "timeout"), (dropped, "6 of 6 requests failed")],
    ids=["429", "500", "cut", "error inside", "silent", "dropped"],
)  # fmt: skip
def test_a_server_that_fails_gets_a_failed_verdict_that_says_how(
    answer: servers.Answer, says: str, tmp_path: Path
) -> None:
    with servers.fake(answer) as url:
        entry = bench(url, tmp_path, timeout_s=0.5 if answer is silent else 60)
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


def test_answers_that_were_held_up_and_came_whole_are_no_measure_of_speed(tmp_path: Path) -> None:
    def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        events = [servers.text("x", "length" if i == 7 else None) for i in range(8)]
        events.append({"choices": [], "usage": servers.usage(body, 8)})
        servers.begin(handler)
        data = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
        handler.wfile.write(data + b"data: [DONE]\n\n")

    with servers.fake(answer) as url:
        entry = bench(url, tmp_path, workload={"kind": "random", "input": 12, "output": 8})
    assert any("in one piece" in reason for reason in entry["verdict"]["reasons"])
    assert "tpot_p50" not in entry["metrics"]


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
