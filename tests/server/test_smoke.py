"""`perilune smoke` against the real server, and against small servers that are wrong in one way each."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from live import KEY, MODEL, LiveServer

from perilune.server.smoke import SmokeError, Target, smoke

MODELS = json.dumps({"data": [{"id": "m"}]})
ANSWER = json.dumps(
    {"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 2}}
)
CHUNK = json.dumps({"choices": [{"delta": {"content": "Hi"}, "finish_reason": "stop"}]})
USAGE = json.dumps({"choices": [], "usage": {"total_tokens": 9}})
EVENTS = "text/event-stream"
GOOD_STREAM = f"data: {CHUNK}\n\ndata: {USAGE}\n\ndata: [DONE]\n\n"


@contextmanager
def fake(
    models: str = MODELS, answer: str = ANSWER, stream: str = GOOD_STREAM, kind: str = EVENTS, status: int = 200
) -> Iterator[str]:
    """A server that gives these bodies; `status` is that of /v1/models."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(status, models, "text/html" if models.startswith("<") else "application/json")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if body.get("stream"):
                self._send(200, stream, kind)
            else:
                self._send(200, answer, "application/json")

        def _send(self, code: int, body: str, content_type: str) -> None:
            self.send_response(code)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_a_real_server_passes_every_check(server: LiveServer, suffix: str) -> None:
    passed = list(smoke(Target(server.url + suffix, api_key=KEY)))
    assert [step.check for step in passed] == ["models", "chat/completions", "streaming"]
    assert passed[0].detail == MODEL


def test_a_server_of_another_make_passes() -> None:
    with fake() as url:
        assert len(list(smoke(Target(url)))) == 3


def test_a_wrong_key_and_an_unlisted_model_are_told(server: LiveServer) -> None:
    with pytest.raises(SmokeError, match=r"401.*--api-key"):
        list(smoke(Target(server.url, api_key="wrong")))
    with pytest.raises(SmokeError, match="does not list the model 'other'"):
        list(smoke(Target(server.url, api_key=KEY, model="other")))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"models": "<html>Welcome</html>"}, "did not answer with JSON.*text/html"),
        ({"models": "<html>Bad gateway</html>", "status": 502}, "answered 502"),
        ({"models": '{"data": []}'}, "lists no model"),
        ({"models": "[]"}, "JSON object"),
        ({"answer": "{}"}, "no finished choice"),
        ({"answer": '{"choices": [{"message": {}, "finish_reason": "stop"}]}'}, "counts no tokens"),
        ({"kind": "application/json"}, "not one of events"),
        ({"stream": f"data: {CHUNK}\n\ndata: [DONE]\n\n"}, r"without usage"),
        ({"stream": f"data: {USAGE}\n\ndata: [DONE]\n\n"}, r"without finish_reason"),
        ({"stream": f"data: {CHUNK}\n\ndata: {USAGE}\n\n"}, r"without \[DONE\]"),
        ({"stream": "data: nonsense\n\n"}, "not JSON"),
        ({"stream": 'data: {"error": {"message": "boom"}}\n\n'}, "boom"),
    ],
    ids=range(12),
)
def test_each_way_to_be_wrong_has_its_reason(wrong: dict, reason: str) -> None:
    with fake(**wrong) as url, pytest.raises(SmokeError, match=reason):
        list(smoke(Target(url)))


def test_nobody_listening_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(SmokeError, match="Nothing answers"):
            list(smoke(Target(f"http://127.0.0.1:{taken.getsockname()[1]}")))


def test_a_server_that_never_answers_is_told() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(SmokeError, match="did not answer in time"):
            list(smoke(Target(f"http://127.0.0.1:{silent.getsockname()[1]}", seconds=0.2)))


def test_a_connection_that_breaks_is_told() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        with pytest.raises(SmokeError, match="broke"):
            list(smoke(Target(f"http://127.0.0.1:{listener.getsockname()[1]}")))
        thread.join()


def test_the_command_exits_with_0_or_with_1_and_the_reason(server: LiveServer) -> None:
    command = [sys.executable, "-m", "perilune", "smoke"]
    good = subprocess.run([*command, server.url, "--api-key", KEY], capture_output=True, text=True, check=False)
    assert good.returncode == 0
    assert [line.split()[:2] for line in good.stdout.splitlines()] == [
        ["ok", "models"], ["ok", "chat/completions"], ["ok", "streaming"],
    ]  # fmt: skip
    bad = subprocess.run([*command, server.url, "--api-key", "wrong"], capture_output=True, text=True, check=False)
    assert bad.returncode == 1
    assert "401" in bad.stderr
    assert "Traceback" not in bad.stderr


@pytest.mark.parametrize("url", ["nonsense", "ftp://host", "http://[::1", ""])
def test_what_is_no_address_is_told(url: str) -> None:
    with pytest.raises(SmokeError, match="http://host:port"):
        list(smoke(Target(url)))
