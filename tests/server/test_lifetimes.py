"""Ends of things: a client that leaves, an engine that dies, a server that is asked to stop."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import live
import pytest
from live import CONTEXT, MODEL, LiveServer

LONG = {"model": MODEL, "prompt": "Once", "max_tokens": CONTEXT - 50, "ignore_eos": True}


def wait_until(true: object, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_a_client_that_leaves_a_stream_frees_everything(server: LiveServer, http: httpx.Client) -> None:
    aborted = server.metric("perilune_requests_total", outcome="aborted")
    with http.stream("POST", "/v1/completions", json={**LONG, "stream": True, "n": 3}) as response:
        assert next(response.iter_lines()).startswith("data:")
    wait_until(lambda: server.metric("perilune_requests_total", outcome="aborted") == aborted + 1)
    server.wait_idle()


def test_a_client_that_leaves_before_a_whole_answer_frees_everything(server: LiveServer, http: httpx.Client) -> None:
    aborted = server.metric("perilune_requests_total", outcome="aborted")
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/completions", json={**LONG, "n": 8, "prompt": ["a", "b"]}, timeout=0.5)
    wait_until(lambda: server.metric("perilune_requests_total", outcome="aborted") == aborted + 2)
    server.wait_idle()


def test_a_client_that_leaves_inside_its_body_does_no_harm(server: LiveServer, http: httpx.Client) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = ["POST /v1/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {live.KEY}", "Content-Length: 100"]
        connection.sendall("\r\n".join([*head, "", '{"prompt"']).encode())
    assert http.get("/health").status_code == 200


def test_when_the_engine_dies_open_requests_get_an_error_and_the_server_exits(tmp_path: Path) -> None:
    server = live.start(tmp_path)
    lines: list[str] = []
    whole: list[httpx.Response] = []
    first = threading.Event()

    def stream() -> None:
        asked = {**LONG, "stream": True}
        with server.client() as client, client.stream("POST", "/v1/completions", json=asked) as answer:
            for line in answer.iter_lines():
                lines.append(line)
                first.set()

    def ask() -> None:
        with server.client() as client:
            whole.append(client.post("/v1/completions", json={**LONG, "n": 4}))

    threads = [threading.Thread(target=stream), threading.Thread(target=ask)]
    try:
        for thread in threads:
            thread.start()
        assert first.wait(60)
        wait_until(lambda: server.metric("perilune_open_sequences") == 5)
        os.kill(server.engine_pid(), signal.SIGKILL)
        for thread in threads:
            thread.join(30)
        assert server.process.wait(30) == 1
    finally:
        server.process.kill()
    said = [line for line in lines if line]
    assert '"engine_dead"' in said[-1]
    assert "[DONE]" not in said[-1]
    (answer,) = whole
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "engine_dead"
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{server.url}/health", timeout=5)
    assert "the engine process ended" in server.log.read_text()


def test_a_server_asked_to_stop_finishes_what_is_open_and_exits_with_0(tmp_path: Path) -> None:
    server = live.start(tmp_path)
    try:
        with server.client() as client, client.stream(
            "POST", "/v1/completions", json={**LONG, "max_tokens": 64, "stream": True}
        ) as answer:  # fmt: skip
            lines = answer.iter_lines()
            next(lines)
            engine = server.engine_pid()
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert server.process.wait(30) == 0
    finally:
        server.process.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(engine, 0)


def test_a_taken_port_is_known_before_the_model_is_loaded(server: LiveServer) -> None:
    from perilune.engine.config import EngineConfig
    from perilune.errors import ConfigError
    from perilune.server.config import ServerConfig
    from perilune.server.run import serve

    port = int(server.url.rpartition(":")[2])
    with pytest.raises(ConfigError, match="Choose another --port"):
        serve(EngineConfig(model="/nowhere/at/all"), ServerConfig(port=port))


def test_a_model_that_does_not_exist_ends_the_command_with_the_reason(tmp_path: Path) -> None:
    from perilune.engine.config import EngineConfig
    from perilune.errors import ModelNotFoundError
    from perilune.server.config import ServerConfig
    from perilune.server.run import serve

    with pytest.raises(ModelNotFoundError):
        serve(EngineConfig(model=str(tmp_path / "missing")), ServerConfig(port=0), say=lambda _: None)


def test_when_a_rank_dies_open_requests_get_an_error_that_says_so_and_the_server_exits(tmp_path: Path) -> None:
    server = live.start(tmp_path, "--tp", "2")
    try:
        engine = server.engine_pid()
        [rank] = [int(pid) for pid in Path(f"/proc/{engine}/task/{engine}/children").read_text().split()]
        with (
            server.client() as client,
            client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer,
        ):
            lines = answer.iter_lines()
            assert next(lines).startswith("data:")
            os.kill(rank, signal.SIGKILL)
            said = [line for line in lines if line]
        assert server.process.wait(60) == 1
    finally:
        server.process.kill()
    assert '"engine_dead"' in said[-1]
    assert "Rank 1 of 2 ended. It stopped with signal 9" in said[-1]
