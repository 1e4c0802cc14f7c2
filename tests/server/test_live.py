"""The stream of what the engine does now: who gets it, what it costs, and how it ends."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import live
import pytest
from live import KEY, LiveServer

from perilune.engine.view import View
from perilune.errors import EngineDeadError, OverloadedError
from perilune.server import watch as watch_module
from perilune.server.watch import Watch


class Engine:
    """Counts how often it is asked, and answers as often as it may."""

    def __init__(self, views: int) -> None:
        self.left, self.asked = views, 0

    async def view(self) -> View:
        self.asked += 1
        if self.left == 0:
            raise EngineDeadError("The engine process ended.")
        self.left -= 1
        return View({"steps_total": self.asked}, 1, 1, ())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(watch_module, "LEAST_SECONDS", 0.0)


async def collect(watch: Watch, count: int) -> list[int]:
    frames = watch.frames()
    seen = [json.loads(await anext(frames))["stats"]["steps_total"] for _ in range(count)]
    await frames.aclose()
    return seen


@pytest.mark.usefixtures("quick")
async def test_many_listeners_cost_the_engine_one_question() -> None:
    engine: Any = Engine(100)
    watch = Watch(engine)
    seen = await asyncio.gather(*(collect(watch, 3) for _ in range(20)))
    assert seen == [[1, 2, 3]] * 20
    assert engine.asked <= 4


@pytest.mark.usefixtures("quick")
async def test_nobody_listening_costs_nothing() -> None:
    engine: Any = Engine(100)
    watch = Watch(engine)
    assert engine.asked == 0
    await collect(watch, 2)
    asked = engine.asked
    for _ in range(20):
        await asyncio.sleep(0.01)
    assert engine.asked == asked
    assert await collect(watch, 1) == [asked + 1]


@pytest.mark.usefixtures("quick")
async def test_every_listener_hears_that_the_engine_died() -> None:
    engine: Any = Engine(2)
    watch = Watch(engine)
    results = await asyncio.gather(*(collect(watch, 5) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [EngineDeadError] * 3


async def test_a_server_that_stops_lets_nobody_listen_on() -> None:
    engine: Any = Engine(100)
    watch = Watch(engine)
    frames = watch.frames()
    await anext(frames)
    watch.stop(OverloadedError("The server is stopping."))
    with pytest.raises(OverloadedError):
        await anext(frames)


def events(response: httpx.Response) -> Iterator[tuple[str, dict]]:
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


def test_the_stream_says_hello_then_shows_the_engine(server: LiveServer, http: httpx.Client) -> None:
    with http.stream("GET", "/live") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        told = events(response)
        name, hello = next(told)
        assert (name, hello["models"], hello["context"]) == ("hello", ["tiny"], live.CONTEXT)
        name, view = next(told)
        assert name == "view"
        assert view["stats"]["pages_total"] * view["page_bytes"] <= view["stats"]["cache_bytes_planned"]


def test_without_a_key_neither_the_stream_nor_the_host_is_shown(server: LiveServer) -> None:
    for path in ("/live", "/doctor"):
        assert httpx.get(server.url + path).status_code == 401


def test_the_doctor_names_what_is_open_and_nothing_that_passed(http: httpx.Client) -> None:
    report = http.get("/doctor").raise_for_status().json()
    assert {"target", "verdict"} <= report.keys()
    assert {check["status"] for check in report["checks"]} <= {"fail", "warn", "unknown"}


def test_a_listener_does_not_keep_a_server_from_stopping(tmp_path: Path) -> None:
    server = live.start(tmp_path, "--drain-seconds", "600")
    try:
        with httpx.stream(
            "GET", f"{server.url}/live", headers={"Authorization": f"Bearer {KEY}"}, timeout=60
        ) as answer:
            told = events(answer)
            assert [next(told)[0] for _ in range(2)] == ["hello", "view"]
            server.process.send_signal(signal.SIGTERM)
            ends = [body for name, body in told if name == "end"]
        assert ends[0]["error"]["code"] == "overloaded"
        assert server.process.wait(60) == 0
    finally:
        server.process.kill()
