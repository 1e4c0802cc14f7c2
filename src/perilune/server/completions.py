"""POST /v1/completions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from perilune.engine.request import Grammar, SamplingParams, TextDelta, TokenLogprobs
from perilune.server.body import JsonRoute
from perilune.server.completions_body import CompletionBody
from perilune.server.errors import ErrorBody, detail_of, log_unexpected
from perilune.server.front import Front, FrontDep, Job
from perilune.server.openapi import GENERATION_ERRORS, STREAM_OR_JSON
from perilune.server.reply import TextLogprobs, UsageBody, new_id, text_logprobs, usage_body
from perilune.server.sampling import only_one
from perilune.server.sse import Begun, EventStream, begin, data_event, unless_gone
from perilune.server.stream import Answers, PlainReader, fold
from perilune.text.events import ContentDelta

router = APIRouter(route_class=JsonRoute, tags=["generation"])

DEFAULT_MAX_TOKENS = 16
"""OpenAI's own default for this endpoint."""


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class TextCompletion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageBody | None = None


@router.post("/v1/completions", response_model=TextCompletion, responses={**STREAM_OR_JSON, **GENERATION_ERRORS})
async def completions(body: CompletionBody, request: Request, front: FrontDep) -> Response:
    """Continues one or several prompts, given as text or token ids."""
    model = front.model(body.model)
    body.refuse_unsupported()
    formats = [grammar] if body.response_format and (grammar := body.response_format.grammar()) else []
    constraint = only_one([*formats, *body.grammars()])
    params = _params(body, constraint)
    prompts = body.prompts()
    front.require_capacity(len(prompts) * params.n)
    if constraint:
        front.tokenizer()
        await front.grammars.check(constraint)
    encoded = await asyncio.to_thread(_encode, front, prompts, body.add_special_tokens is not False)
    jobs = [Job(ids, params, front.salt(request)) for ids in encoded]
    for job in jobs:
        # Before any of them starts: one bad prompt must not waste the work on the others.
        front.engine.limits.check(job.prompt_ids, params)
    echoes = [_echo(front, prompt) if body.echo else "" for prompt in prompts]
    answers, deltas = Answers(PlainReader), _numbered(front.answer(jobs), params.n)
    reply = _Reply(front, body, model, jobs, echoes)
    if body.stream:
        begun = await begin(request, deltas)
        return EventStream(_events(reply, answers, begun), begun)
    choices = await unless_gone(request, fold(deltas, answers, len(jobs) * params.n))
    completion = reply.completion(
        [
            reply.choice(i, c.content, c.logprobs, c.token_ids, finish=c.finish, stop_reason=c.stop_reason, first=True)
            for i, c in enumerate(choices)
        ]
    )
    completion.usage = usage_body(answers.usage)
    return Response(completion.model_dump_json(exclude_unset=True), media_type="application/json")


def _params(body: CompletionBody, grammar: Grammar | None) -> SamplingParams:
    limit = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    return body.sampling(max_tokens=limit, logprobs=body.logprobs, grammar=grammar)


def _encode(front: Front, prompts: Sequence[str | list[int]], opening: bool) -> list[list[int]]:
    """Token ids of every prompt. Text can never become a control token."""
    return [front.encode_prompt(p, opening=opening) if isinstance(p, str) else p for p in prompts]


def _echo(front: Front, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else front.tokenizer().decode(prompt, skip_special=False)


async def _numbered(
    deltas: AsyncGenerator[tuple[int, TextDelta], None], n: int
) -> AsyncGenerator[tuple[int, TextDelta], None]:
    """Choices of all prompts in one row: those of prompt p are p * n and the n - 1 after it."""
    try:
        async for prompt, delta in deltas:
            yield prompt, replace(delta, index=prompt * n + delta.index)
    finally:
        await deltas.aclose()


class _Reply:
    """Writes choices, remembering how much text each had, for the offsets of its tokens."""

    def __init__(
        self, front: Front, body: CompletionBody, model: str, jobs: Sequence[Job], echoes: Sequence[str]
    ) -> None:
        self._front, self._body, self._model, self._jobs, self._echoes = front, body, model, jobs, echoes
        self._id, self._created = new_id("cmpl"), int(time.time())
        self._offsets: dict[int, int] = {}
        self.wants_usage, self.shows_ids = body.wants_usage, bool(body.return_token_ids)

    def completion(self, choices: list[TextChoice]) -> TextCompletion:
        return TextCompletion(
            id=self._id, object="text_completion", created=self._created, model=self._model, choices=choices
        )

    def choice(
        self,
        index: int,
        text: str,
        logprobs: Sequence[TokenLogprobs] | None,
        token_ids: Sequence[int],
        *,
        finish: str | None,
        stop_reason: int | str | None,
        first: bool,
    ) -> TextChoice:
        prompt = index // self._jobs[0].params.n
        if first:
            text = self._echoes[prompt] + text
        choice = TextChoice(index=index, text=text, logprobs=None, finish_reason=None)
        if logprobs is not None:
            tokenizer = None if self._body.return_tokens_as_token_ids else self._front.engine.tokenizer
            choice.logprobs = text_logprobs(logprobs, tokenizer, self._offsets.get(index, 0))
        self._offsets[index] = self._offsets.get(index, 0) + len(text)
        if finish:
            choice.finish_reason = "length" if finish == "length" else "stop"
            choice.stop_reason = stop_reason
        if self._body.return_token_ids:
            choice.token_ids = list(token_ids)
            if first:
                choice.prompt_token_ids = self._jobs[prompt].prompt_ids
        return choice


async def _events(reply: _Reply, answers: Answers, deltas: Begun[tuple[int, TextDelta]]) -> AsyncGenerator[bytes, None]:
    """Chunks, then the usage if it was asked for, then [DONE]; or an error, and nothing after it."""
    try:
        async for prompt, delta in deltas:
            step = answers.take(delta, prompt)
            text = "".join(event.text for event in step.events if isinstance(event, ContentDelta))
            if not (text or step.finish or step.first or step.logprobs or reply.shows_ids):
                continue
            choice = reply.choice(
                step.index, text, step.logprobs, step.token_ids,
                finish=step.finish, stop_reason=step.stop_reason, first=step.first,
            )  # fmt: skip
            yield data_event(reply.completion([choice]))
        if reply.wants_usage:
            last = reply.completion([])
            last.usage = usage_body(answers.usage)
            yield data_event(last)
        yield data_event("[DONE]")
    except Exception as error:
        yield data_event(ErrorBody(error=detail_of(error)))
        log_unexpected(error)
