"""What every route works with: the engine, the chat template, the parsers, the metrics, in one object per app."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from perilune.engine.client import AsyncEngine
from perilune.engine.request import Handover, SamplingParams, TextDelta
from perilune.errors import OverloadedError, PeriluneError, RequestError, UnsupportedError, nearest
from perilune.http.errors import UnknownModelError
from perilune.server.checkup import Checkup
from perilune.server.config import ServerConfig
from perilune.server.grammar import GrammarCheck
from perilune.server.merge import merge
from perilune.server.metrics import Metrics
from perilune.server.parsers import Parsers
from perilune.server.watch import Watch
from perilune.text.chat import ChatTemplate
from perilune.text.tokenizer import Tokenizer


@dataclass
class Front:
    """`draining` is set when the server was asked to stop: open requests end, `/ready` already says no."""

    engine: AsyncEngine
    config: ServerConfig
    names: tuple[str, ...]
    template: ChatTemplate | None
    parsers: Parsers
    metrics: Metrics = field(default_factory=Metrics)
    grammars: GrammarCheck = field(default_factory=GrammarCheck)
    checkup: Checkup = field(default_factory=Checkup)
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False

    def __post_init__(self) -> None:
        self.watch = Watch(self.engine)

    def require_open(self) -> None:
        """Raises OverloadedError once the server was asked to stop."""
        if self.draining:
            raise OverloadedError("The server is stopping.", "It finishes what is open.", "Use another one.")

    def drain(self) -> None:
        """The server was asked to stop."""
        self.draining = True
        self.watch.stop(OverloadedError("The server is stopping."))

    @property
    def context(self) -> int:
        """The most tokens, prompt and answer together."""
        return self.engine.limits.context

    def model(self, name: str | None) -> str:
        """The name to answer under: the request's, or the first. Raises UnknownModelError."""
        if name is None:
            return self.names[0]
        if name not in self.names:
            raise UnknownModelError(
                f"This server does not serve the model {name[:200]!r}.", nearest(name[:200], self.names), param="model"
            )
        return name

    def tokenizer(self) -> Tokenizer:
        """Raises UnsupportedError for a checkpoint without one."""
        if self.engine.tokenizer is None:
            raise UnsupportedError(
                "This model has no tokenizer.",
                "Its checkpoint holds no tokenizer files.",
                "Send token ids to /v1/completions.",
            )
        return self.engine.tokenizer

    def encode_prompt(self, text: str, *, opening: bool) -> list[int]:
        """A raw prompt's ids; `opening`: after what the checkpoint puts before one. Raises UnsupportedError."""
        tokenizer = self.tokenizer()
        return [*(tokenizer.opening_ids if opening else ()), *tokenizer.encode(text)]

    def chat_template(self) -> ChatTemplate:
        """Raises UnsupportedError for a checkpoint without one."""
        self.tokenizer()
        if self.template is None:
            raise UnsupportedError(
                "This model has no chat template.", "Its checkpoint holds none.", "Send a prompt to /v1/completions."
            )
        return self.template

    def require_capacity(self, sequences: int) -> None:
        """Raises RequestError if one request asks for more sequences than the server ever holds."""
        limit = self.engine.config.max_waiting + self.engine.config.max_running
        if sequences > limit:
            raise RequestError(
                f"The request asks for {sequences} answers.",
                f"At most {limit} can be open at once.",
                "Split it, or raise --max-waiting.",
            )

    def salt(self, request: Request) -> bytes:
        """Whose prefixes a request shares: everybody's, or those of its API key alone."""
        if self.config.cache_isolation == "none":
            return b""
        key = request.state.api_key
        assert isinstance(key, bytes)
        return hashlib.sha256(b"perilune API key\0" + key).digest()

    def answer(self, jobs: Sequence[Job]) -> AsyncGenerator[tuple[int, TextDelta], None]:
        """(job number, delta) of all jobs at once. Closing it aborts what is still open."""
        return merge([self._metered(job) for job in jobs])

    async def _metered(self, job: Job) -> AsyncGenerator[TextDelta, None]:
        """One engine request, measured where its deltas leave for the client."""
        metrics, sequences = self.metrics, job.params.n
        start = time.monotonic()
        latest: dict[int, float] = {}
        outcome = "aborted"
        metrics.open.inc(sequences)
        try:
            async with aclosing(
                self.engine.generate(job.prompt_ids, job.params, salt=job.salt, marks=job.marks, handover=job.handover)
            ) as deltas:
                async for delta in deltas:
                    now = time.monotonic()
                    if not latest:
                        metrics.first_token.observe(now - start)
                        metrics.prompt_tokens.inc(delta.prompt_tokens)
                        metrics.cached_tokens.inc(delta.cached_tokens)
                    elif delta.index in latest:
                        metrics.between_tokens.observe(now - latest[delta.index])
                    latest[delta.index] = now
                    metrics.generation_tokens.inc(len(delta.token_ids))
                    if delta.finish_reason:
                        outcome = delta.finish_reason
                    yield delta
            metrics.whole.observe(time.monotonic() - start)
        except PeriluneError as error:
            outcome = error.code
            raise
        except Exception:
            outcome = PeriluneError.code
            raise
        finally:
            metrics.open.dec(sequences)
            metrics.requests.labels(outcome).inc()


@dataclass(frozen=True)
class Job:
    """One prompt and how to go on from it. `salt`, `marks` and `handover` as in `AsyncEngine.generate`."""

    prompt_ids: list[int]
    params: SamplingParams
    salt: bytes = b""
    marks: tuple[int, ...] = ()
    handover: Handover | None = None


def _front(request: Request) -> Front:
    front = request.app.state.front
    assert isinstance(front, Front)
    return front


FrontDep = Annotated[Front, Depends(_front)]
"""A route's way to the Front of its app."""
