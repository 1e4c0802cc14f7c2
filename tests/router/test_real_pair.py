"""A prefill and a decode engine behind a router, all of them processes: split = together, whatever dies in between."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import live
import pytest
from openai import OpenAI
from processes import SECONDS, client, say, start_router

from perilune.pd.keys import KEY_VARIABLE

VARIABLES = {KEY_VARIABLE: "a key that only tests know"}
TEXT = "Tell me about the moon and its tides. "


@dataclass
class Pair:
    prefill: live.LiveServer
    decode: live.LiveServer
    url: str

    def openai(self) -> OpenAI:
        return client(self.url, live.KEY)

    def metric(self, pattern: str) -> float:
        text = httpx.get(f"{self.url}/metrics").text
        return sum(float(found) for found in re.findall(rf"^perilune_route_{pattern} (\S+)$", text, re.MULTILINE))


def engine(folder: Path, role: str) -> live.LiveServer:
    flags = (
        "--role",
        role,
        "--dtype",
        "float32",
        "--pd-transports",
        "local,tcp",
        "--prefill-chunk",
        "64",
        "--pd-stream",
    )
    return live.start(folder, *flags, variables=VARIABLES)


@pytest.fixture
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp
    prefill, decode = engine(folder("p"), "prefill"), engine(folder("d"), "decode")
    flags = (
        "--prefill",
        prefill.url,
        "--decode",
        decode.url,
        "--remote-from",
        "64",
        "--disturbance",
        "1000",
        "--pd-stream",
    )
    process, url = start_router(folder("route"), *flags, variables=VARIABLES)
    yield Pair(prefill, decode, url)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    for each in (prefill, decode):
        each.stop()


def remote(text: str, openai: OpenAI) -> tuple[str, str]:
    """What was said, and the route it took."""
    made = openai.chat.completions.with_raw_response.create(
        model=live.MODEL, messages=[{"role": "user", "content": text}], max_tokens=16, temperature=0, stream=True
    )
    words = [piece.choices[0].delta.content or "" for piece in made.parse() if piece.choices]
    return "".join(words), made.headers["x-perilune-route"]


def test_split_says_what_one_engine_says_and_a_prefill_engine_that_dies_costs_only_time(pair: Pair) -> None:
    with pair.openai() as openai, client(pair.decode.url, live.KEY) as alone:
        for number, words in enumerate((8, 20, 60)):
            text = f"{number}: " + TEXT * words
            said, route = remote(text, openai)
            assert re.search(r"prefill=p0 why=remote .*remote=[0-9.]+s$", route)
            # Alone it finds the handed-over prompt in its cache: another number in front makes it read everything.
            assert said == "".join(say(alone, text, 16, eos=True))
        pair.prefill.wait_idle()
        pair.decode.wait_idle()
        assert pair.metric(r'requests_total\{[^}]*outcome="ok"[^}]*prefill="p0"\}') == 3
        assert pair.decode.metric("perilune_engine_pd_transfers_total") == 3

        assert "why=short" in remote("hi", openai)[1]

        os.kill(pair.prefill.process.pid, signal.SIGSTOP)  # hangs, and says nothing
        said, route = remote("again: " + TEXT * 20, openai)
        assert "prefill=d0" in route
        os.kill(pair.prefill.process.pid, signal.SIGCONT)
        assert said == "".join(say(alone, "again: " + TEXT * 20, 16, eos=True))
        pair.decode.wait_idle()

        for pid in (pair.prefill.engine_pid(), pair.prefill.process.pid):
            os.kill(pid, signal.SIGKILL)
        said, route = remote("dead: " + TEXT * 20, openai)
        assert "prefill=d0" in route
        assert said == "".join(say(alone, "dead: " + TEXT * 20, 16, eos=True))


def test_clients_that_leave_in_every_phase_leave_nothing_behind(pair: Pair) -> None:
    body = {"model": live.MODEL, "max_tokens": 200, "stream": True, "ignore_eos": True}
    with httpx.Client(base_url=pair.url, headers={"Authorization": f"Bearer {live.KEY}"}) as http:
        for number, seconds in enumerate((0.01, 0.02, 0.05, 0.1, 0.2, 0.4)):
            asked = {**body, "messages": [{"role": "user", "content": f"{number}: " + TEXT * 60}]}
            try:
                with http.stream("POST", "/v1/chat/completions", json=asked, timeout=seconds) as answer:
                    next(answer.iter_lines())
            except httpx.TimeoutException:
                pass
        pair.prefill.wait_idle()
        pair.decode.wait_idle()
        with pair.openai() as openai:
            assert remote("after: " + TEXT * 20, openai)[0]
    assert httpx.get(f"{pair.url}/health", timeout=SECONDS).status_code == 200
