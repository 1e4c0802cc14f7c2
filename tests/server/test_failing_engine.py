"""What a client sees when the engine fails, at every moment it can."""

from __future__ import annotations

import asyncio

import httpx
import openai as sdk
import pytest
from replay import ReplayEngine, Script, openai_client

from perilune.errors import ContextLengthError, EngineDeadError, OverloadedError
from perilune.server.app import create_app
from perilune.server.config import ServerConfig

DEAD = EngineDeadError("The engine process ended.", "It ran out of memory.", "Lower --max-context.")
SECRET = "secret detail"


def http_client(script: Script) -> httpx.AsyncClient:
    app = create_app(ReplayEngine(script), ServerConfig())
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://127.0.0.1"
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (OverloadedError("The queue is full."), 503, "overloaded"),
        (ContextLengthError("Too long."), 400, "context_length_exceeded"),
        (DEAD, 503, "engine_dead"),
        (RuntimeError(SECRET), 500, "internal_error"),
    ],
    ids=["overloaded", "too long", "dead", "bug"],
)
async def test_a_failure_before_the_first_token_is_a_status_even_for_a_stream(
    failure: Exception, status: int, code: str, stream: bool
) -> None:
    async with http_client(Script([], failure)) as client:
        for path, body in (
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
            ("/v1/completions", {"prompt": "x"}),
            ("/v1/responses", {"input": "x"}),
        ):
            response = await client.post(path, json={**body, "stream": stream})
            assert response.status_code == status
            assert response.json()["error"]["code"] == code
            assert SECRET not in response.text
            assert ("retry-after" in response.headers) == (code == "overloaded")


async def test_a_failure_inside_a_chat_stream_is_an_error_the_openai_client_raises() -> None:
    script = Script(["one ", "two "], DEAD)
    stream = await openai_client(script).chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "x"}], stream=True
    )
    pieces: list[str] = []

    async def read() -> None:
        async for chunk in stream:
            pieces.append(chunk.choices[0].delta.content or "")

    with pytest.raises(sdk.APIError, match="ran out of memory"):
        await read()
    assert "".join(pieces).split() == ["one", "two"]
    assert script.closed == 1


async def test_a_failure_inside_a_completion_stream_ends_it_without_done() -> None:
    async with http_client(Script(["one"], RuntimeError(SECRET))) as client:
        response = await client.post("/v1/completions", json={"prompt": "x", "stream": True})
    lines = [line for line in response.text.splitlines() if line]
    assert '"internal_error"' in lines[-1]
    assert "[DONE]" not in response.text
    assert SECRET not in response.text


async def test_a_failure_inside_a_responses_stream_is_an_error_and_a_failed_response() -> None:
    stream = await openai_client(Script(["one"], DEAD)).responses.create(model="tiny", input="x", stream=True)
    events = [event async for event in stream]
    assert [event.type for event in events[-2:]] == ["error", "response.failed"]
    assert events[-1].response.status == "failed"
    assert "ran out of memory" in events[-1].response.error.message


@pytest.mark.parametrize("finish", ["abort", "error"])
async def test_an_answer_the_engine_cut_off_is_never_given_as_whole(finish: str) -> None:
    async with http_client(Script(["one"], finish=finish)) as client:
        response = await client.post("/v1/completions", json={"prompt": "x"})
    assert response.status_code in (500, 503)
    assert "one" not in response.text


async def test_health_and_ready_follow_the_engine_and_the_draining() -> None:
    engine = ReplayEngine(Script([]))
    app = create_app(engine, ServerConfig())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        assert [(await client.get(path)).status_code for path in ("/health", "/ready")] == [200, 200]
        app.state.front.draining = True
        assert [(await client.get(path)).status_code for path in ("/health", "/ready")] == [200, 503]
        engine.death = DEAD
        assert [(await client.get(path)).status_code for path in ("/health", "/ready")] == [503, 503]
        assert "perilune_engine_up 0.0" in (await client.get("/metrics")).text


async def test_a_body_that_stops_arriving_is_408() -> None:
    app = create_app(ReplayEngine(Script([])), ServerConfig(body_seconds=0.05))
    sent: list[dict] = []

    async def receive() -> dict:
        await asyncio.sleep(60)
        return {}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/tokenize", "headers": []}
    await app(scope, receive, send)
    assert sent[0]["status"] == 408
