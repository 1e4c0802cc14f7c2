"""From the engine's deltas to an answer's parts: one state machine, for streaming and for whole answers.

A stream sends each Step as it comes. A whole answer folds the same Steps together. Nothing else makes an answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal, Protocol

from perilune.engine.request import Lent, PromptLogprobs, TextDelta, TokenLogprobs
from perilune.errors import EngineDeadError, PeriluneError
from perilune.text.events import ContentDelta, Event, ReasoningDelta, ToolCallArguments, ToolCallStart

Finish = Literal["stop", "length", "tool_calls"]


class Reader(Protocol):
    """Tells reasoning, content and tool calls apart in one sequence's text, however it was cut."""

    def push(self, text: str) -> list[Event]: ...

    def finish(self) -> list[Event]: ...


class PlainReader:
    """Everything is content."""

    def push(self, text: str) -> list[Event]:
        return [ContentDelta(text)] if text else []

    def finish(self) -> list[Event]:
        return []


@dataclass(frozen=True)
class Step:
    """What one delta added to choice `index`. `first`: nothing of this choice came before."""

    index: int
    first: bool
    events: tuple[Event, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    finish: Finish | None
    stop_reason: int | str | None
    prompt_logprobs: tuple[PromptLogprobs | None, ...] | None = None
    lent: Lent | None = None
    remote: bool | None = None


@dataclass
class Usage:
    """Tokens of all choices so far. `reasoning` is the part of `completion` that came with reasoning text."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0


@dataclass
class _Choice:
    reader: Reader
    calls: bool = False
    completion: int = 0
    reasoning: int = 0
    started: bool = False


class Answers:
    """Reads the deltas of one request, whose choices may come interleaved."""

    def __init__(self, make_reader: Callable[[], Reader]) -> None:
        self._make_reader = make_reader
        self._choices: dict[int, _Choice] = {}
        self._prompts: dict[int, tuple[int, int]] = {}

    def take(self, delta: TextDelta, prompt: int = 0) -> Step:
        """`prompt` numbers the prompt the delta answers, for the usage. Raises PeriluneError if the sequence failed."""
        if delta.finish_reason in ("abort", "error"):
            raise _failure(delta)
        choice = self._choices.setdefault(delta.index, _Choice(self._make_reader()))
        events = choice.reader.push(delta.text)
        if delta.finish_reason:
            events = [*events, *choice.reader.finish()]
        choice.calls |= any(isinstance(event, ToolCallStart) for event in events)
        choice.completion = delta.completion_tokens
        choice.reasoning += len(delta.token_ids) * any(isinstance(event, ReasoningDelta) for event in events)
        # the first of several choices may have computed what the others then found
        cached = min(delta.cached_tokens, self._prompts.get(prompt, (0, delta.cached_tokens))[1])
        self._prompts[prompt] = (delta.prompt_tokens, cached)
        first, choice.started = not choice.started, True
        finish: Finish | None = None
        if delta.finish_reason:
            finish = "length" if delta.finish_reason == "length" else "tool_calls" if choice.calls else "stop"
        return Step(
            delta.index,
            first,
            tuple(events),
            delta.token_ids,
            delta.logprobs,
            finish,
            delta.stop_reason,
            delta.prompt_logprobs,
            delta.lent,
            delta.remote,
        )

    @property
    def usage(self) -> Usage:
        """A prompt that several choices share counts once, as it is computed once."""
        return Usage(
            prompt=sum(count for count, _ in self._prompts.values()),
            cached=sum(cached for _, cached in self._prompts.values()),
            completion=sum(choice.completion for choice in self._choices.values()),
            reasoning=sum(choice.reasoning for choice in self._choices.values()),
        )


@dataclass
class Call:
    """One tool call, whole."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class Folded:
    """All Steps of one choice put together."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish: Finish = "stop"
    stop_reason: int | str | None = None
    prompt_logprobs: tuple[PromptLogprobs | None, ...] | None = None
    lent: Lent | None = None
    remote: bool | None = None

    def add(self, step: Step) -> None:
        for event in step.events:
            if isinstance(event, ContentDelta):
                self.content += event.text
            elif isinstance(event, ReasoningDelta):
                self.reasoning += event.text
            elif isinstance(event, ToolCallStart):
                self.calls.append(Call(event.id, event.name))
            elif isinstance(event, ToolCallArguments):
                self.calls[event.index].arguments += event.text
        self.token_ids.extend(step.token_ids)
        if step.logprobs is not None:
            self.logprobs = [*(self.logprobs or []), *step.logprobs]
        if step.prompt_logprobs is not None:
            self.prompt_logprobs = step.prompt_logprobs
        self.lent, self.remote = step.lent or self.lent, step.remote if self.remote is None else self.remote
        if step.finish:
            self.finish, self.stop_reason = step.finish, step.stop_reason


async def fold(deltas: AsyncGenerator[tuple[int, TextDelta], None], answers: Answers, choices: int) -> list[Folded]:
    """The whole answer: `choices` Folded, in order of their index."""
    folded = [Folded() for _ in range(choices)]
    async with aclosing(deltas):
        async for prompt, delta in deltas:
            step = answers.take(delta, prompt)
            folded[step.index].add(step)
    return folded


def _failure(delta: TextDelta) -> PeriluneError:
    if delta.finish_reason == "abort":
        return EngineDeadError("The answer was cut off.", "The engine stopped.", "Send the request again.")
    return PeriluneError("The engine failed on this request.", "Its log says why.")
