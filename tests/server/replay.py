"""An engine that replays a script instead of computing: for parsing and for failures no real engine has on demand."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import httpx
from fastapi import FastAPI
from openai import AsyncOpenAI

from perilune.builtin import model_path
from perilune.engine.client import AsyncEngine
from perilune.engine.config import EngineConfig
from perilune.engine.request import FinishReason, SamplingParams, TextDelta
from perilune.server.app import create_app
from perilune.server.config import ServerConfig


@dataclass
class Script:
    """`pieces` are the deltas' texts; then comes `failure`, or the end with `finish`."""

    pieces: Sequence[str]
    failure: Exception | None = None
    finish: FinishReason = "stop"
    asked: list[tuple[list[int], SamplingParams]] = field(default_factory=list)
    closed: int = 0


class ReplayEngine(AsyncEngine):
    """The built-in model's spec and tokenizer, and no process."""

    def __init__(self, script: Script) -> None:
        super().__init__(EngineConfig(model=str(model_path())), model_path())
        self.script = script

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, request_id: str | None = None, **_: object
    ) -> AsyncGenerator[TextDelta, None]:
        script = self.script
        script.asked.append((list(prompt_ids), params))
        count = len(prompt_ids)
        try:
            for number, piece in enumerate(script.pieces, start=1):
                yield TextDelta(0, piece, (number,), None, count, number)
            if script.failure:
                raise script.failure
            yield TextDelta(0, "", (), None, count, len(script.pieces), finish_reason=script.finish)
        finally:
            script.closed += 1


def openai_client(script: Script, config: ServerConfig | None = None) -> AsyncOpenAI:
    """The openai client on an app around a ReplayEngine, without sockets. Call inside a running loop."""
    return client_of(create_app(ReplayEngine(script), config or ServerConfig(served_model_names=("tiny",))))


def client_of(app: FastAPI) -> AsyncOpenAI:
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False))
    return AsyncOpenAI(base_url="http://127.0.0.1/v1", api_key="none", max_retries=0, http_client=http)
