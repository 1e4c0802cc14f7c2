"""A conversation with a model on this machine, without HTTP: what `perilune generate` and `perilune chat` talk to."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from perilune.engine.client import AsyncEngine
from perilune.engine.request import SamplingParams, TextDelta
from perilune.errors import UnsupportedError
from perilune.text.chat import ChatTemplate, Prompt


@dataclass
class Timing:
    """What one answer took. Rates leave the first token out: it belongs to the prompt."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    started: float = field(default_factory=time.perf_counter)
    first: float | None = None
    last: float = 0.0

    def note(self, delta: TextDelta) -> None:
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.prompt_tokens, self.completion_tokens = delta.prompt_tokens, delta.completion_tokens

    @property
    def first_token_seconds(self) -> float:
        return (self.first or self.started) - self.started

    @property
    def tokens_per_second(self) -> float:
        """Decode rate; 0 for an answer of one token."""
        seconds = self.last - (self.first or self.last)
        return (self.completion_tokens - 1) / seconds if seconds > 0 else 0.0


class Session:
    """Keeps the messages of one conversation. Raises UnsupportedError if text is asked of a model without tokenizer."""

    def __init__(self, engine: AsyncEngine, *, chat: bool = True, system: str | None = None) -> None:
        if engine.tokenizer is None:
            raise UnsupportedError(
                "This checkpoint has no tokenizer files.",
                "Text cannot be encoded.",
                "Use the Python API with token ids.",
            )
        self._engine, self._tokenizer = engine, engine.tokenizer
        self._template = ChatTemplate.load(engine.path, engine.tokenizer) if chat else None
        self.messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        self.timing = Timing()

    async def ask(self, text: str, params: SamplingParams) -> AsyncIterator[str]:
        """The answer's text as it comes; the exchange joins the conversation when it is complete."""
        asked = {"role": "user", "content": text}
        prompt = self._prompt([*self.messages, asked], text)
        self.timing, answer = Timing(), ""
        async for delta in self._engine.generate(prompt, params):
            self.timing.note(delta)
            answer += delta.text
            if delta.text:
                yield delta.text
        self.messages += [asked, {"role": "assistant", "content": answer}]

    def _prompt(self, messages: list[dict[str, Any]], text: str) -> list[int]:
        if self._template is None:
            return [*self._tokenizer.opening_ids, *self._tokenizer.encode(text)]
        rendered: Prompt = self._template.render(messages)
        return rendered.ids
