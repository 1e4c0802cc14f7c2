"""Two real engines behind a real `perilune route`: the same answers, and what a killed engine does."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import live
import pytest
from openai import APIError
from processes import SECONDS, client, say, start_router


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[live.LiveServer]]:
    started = [live.start(tmp_path_factory.mktemp(f"engine{number}")) for number in range(2)]
    yield started
    for each in started:
        each.stop()


@pytest.fixture(scope="module")
def url(engines: list[live.LiveServer], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    flags = [word for each in engines for word in ("--workers", each.url)]
    process, url = start_router(
        tmp_path_factory.mktemp("route"), *flags, "--api-key", "front", "--worker-key", live.KEY
    )
    yield url
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_streams_through_the_router_equal_those_of_an_engine(engines: list[live.LiveServer], url: str) -> None:
    with client(url, "front") as routed, client(engines[0].url, live.KEY) as direct:
        for text in ("What is 2 + 3?", "Name a colour.", "word " * 100):
            assert "".join(say(routed, text)) == "".join(say(direct, text))


def test_every_endpoint_answers_through_the_router(url: str) -> None:
    with client(url, "front") as openai:
        assert [entry.id for entry in openai.models.list()] == [live.MODEL]
        assert openai.completions.create(model=live.MODEL, prompt="2 + 3 =", max_tokens=3).choices[0].text
        assert openai.responses.create(model=live.MODEL, input="2 + 3 =", max_output_tokens=3).output
    with httpx.Client(base_url=url, headers={"Authorization": "Bearer front"}) as http:
        assert http.post("/tokenize", json={"prompt": "a"}).json()["count"] > 0
        answer = http.post("/v1/chat/completions", json={"messages": [], "model": live.MODEL})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]


def test_34_an_engine_killed_in_mid_stream_is_an_error_and_before_the_first_token_nothing_at_all(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    doomed = [live.start(tmp_path_factory.mktemp(f"doomed{number}")) for number in range(2)]
    process, url = start_router(tmp_path, *[word for each in doomed for word in ("--workers", each.url)])
    try:
        with client(url, live.KEY) as openai:
            made = openai.chat.completions.create(
                model=live.MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=900, stream=True,
                extra_body={"ignore_eos": True},
            )  # fmt: skip
            pieces = iter(made)
            next(pieces)
            route = made.response.headers["x-perilune-route"]
            victim = doomed[int(re.search(r"decode=w(\d)", route).group(1))]  # type: ignore[union-attr]
            for pid in (victim.engine_pid(), victim.process.pid):
                os.kill(pid, signal.SIGKILL)
            with pytest.raises(APIError) as caught:
                list(pieces)
            assert "cut off" in str(caught.value)
            for _ in range(4):  # the other answers all, the first without the router having noticed yet
                assert "".join(say(openai, "hi", 4))
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {live.KEY}"}) as http:
            end = time.monotonic() + SECONDS
            while sum(row["up"] for row in http.get("/workers").json()) != 1:
                assert time.monotonic() < end
                time.sleep(0.05)
            text = http.get("/metrics").text
            assert re.search(r'route_requests_total\{[^}]*outcome="broken"[^}]*\} 1', text)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        for each in doomed:
            each.stop()


def test_a_client_that_leaves_frees_the_engine(engines: list[live.LiveServer], url: str) -> None:
    body = {"model": live.MODEL, "prompt": "a", "max_tokens": 900, "stream": True, "ignore_eos": True}
    with httpx.Client(base_url=url, headers={"Authorization": "Bearer front"}, timeout=SECONDS) as http:
        with http.stream("POST", "/v1/completions", json=body) as answer:
            first = next(answer.iter_lines())
            assert json.loads(first.removeprefix("data: "))["choices"]
        for each in engines:
            each.wait_idle()
