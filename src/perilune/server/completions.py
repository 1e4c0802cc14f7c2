"""POST /v1/completions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from perilune.engine.request import Grammar, Handover, Lend, SamplingParams, TextDelta
from perilune.http.errors import ErrorBody, detail_of, log_unexpected
from perilune.http.json import JsonRoute
from perilune.http.sse import Begun, EventStream, begin, data_event, unless_gone
from perilune.server.completions_body import CompletionBody
from perilune.server.front import Front, FrontDep, Job
from perilune.server.handover import LentBody, answered, handover_of, kept, prefill_header
from perilune.server.logprobs import PromptEntries, TextLogprobs, TextLogprobsWriter, prompt_logprobs
from perilune.server.openapi import GENERATION_ERRORS, STREAM_OR_JSON
from perilune.server.reply import UsageBody, new_id, usage_body
from perilune.server.sampling import only_one
from perilune.server.stream import Answers, Folded, PlainReader, Step, fold
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
    prompt_logprobs: PromptEntries | None = None


class TextCompletion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageBody | None = None
    kv_transfer_params: LentBody | None = None


@router.post("/v1/completions", response_model=TextCompletion, responses={**STREAM_OR_JSON, **GENERATION_ERRORS})
async def completions(body: CompletionBody, request: Request, front: FrontDep) -> Response:
    """Continues one or several prompts, given as text or token ids."""
    handover = handover_of(front, request, body.kv_transfer_params, len(body.prompts()))
    with answered(front, handover):
        return await _answer(body, request, front, handover)


async def _answer(body: CompletionBody, request: Request, front: Front, handover: Handover | None) -> Response:
    model = front.model(body.model)
    body.refuse_unsupported()
    formats = [grammar] if body.response_format and (grammar := body.response_format.grammar()) else []
    constraint = only_one([*formats, *body.grammars()])
    params = _params(body, constraint)
    front.require_capacity(len(body.prompts()) * params.n)
    if constraint:
        front.tokenizer()
        await front.grammars.check(constraint)
    prompts = await asyncio.to_thread(_read, front, body)
    for prompt in prompts:
        # Before any of them starts: one bad prompt must not waste the work on the others.
        front.engine.limits.check(prompt.ids, params)
    jobs = [Job(prompt.ids, params, front.salt(request), handover=handover) for prompt in prompts]
    answers, deltas = Answers(PlainReader), _numbered(front.answer(jobs), params.n)
    reply = _Reply(front, body, model, prompts, params)
    if body.stream and not isinstance(handover, Lend):
        begun = await begin(request, deltas)
        return EventStream(_events(reply, answers, begun), begun, prefill_header(begun.first[1].remote))
    choices = await unless_gone(request, fold(deltas, answers, len(jobs) * params.n))
    completion = reply.completion([reply.choice(i, c.content, c, first=True) for i, c in enumerate(choices)])
    completion.usage = usage_body(answers.usage)
    if (lent := choices[0].lent) is not None:
        await kept(front, request, lent)
        completion.kv_transfer_params = LentBody.of(lent)
        completion.choices = completion.choices[: len(choices[0].token_ids)]  # none yet, of what was lent early
    headers = prefill_header(choices[0].remote)
    return Response(completion.model_dump_json(exclude_unset=True), media_type="application/json", headers=headers)


def _params(body: CompletionBody, grammar: Grammar | None) -> SamplingParams:
    limit = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    return body.sampling(
        max_tokens=limit, logprobs=body.logprobs, grammar=grammar, prompt_logprobs=body.best_of_prompt()
    )


@dataclass(frozen=True)
class _Prompt:
    """`text` is what echo repeats, and nothing without it. It begins after the first `opening` of `ids`."""

    ids: list[int]
    opening: int
    text: str


def _read(front: Front, body: CompletionBody) -> list[_Prompt]:
    """Every prompt's token ids and text. Text can never become a control token."""
    prompts = []
    for prompt in body.prompts():
        if isinstance(prompt, str):
            opening = len(front.tokenizer().opening_ids) if body.add_special_tokens is not False else 0
            ids = front.encode_prompt(prompt, opening=opening > 0)
            prompts.append(_Prompt(ids, opening, prompt if body.echo else ""))
        else:
            text = front.tokenizer().decode(prompt, skip_special=False) if body.echo else ""
            prompts.append(_Prompt(prompt, 0, text))
    return prompts


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
    """Writes choices, remembering how far each has come."""

    def __init__(
        self, front: Front, body: CompletionBody, model: str, prompts: Sequence[_Prompt], params: SamplingParams
    ) -> None:
        self._front, self._body, self._model = front, body, model
        self._prompts, self._params = prompts, params
        self._id, self._created = new_id("cmpl"), int(time.time())
        self._writers: dict[int, TextLogprobsWriter] = {}
        self.wants_usage, self.shows_ids = body.wants_usage, bool(body.return_token_ids)

    def completion(self, choices: list[TextChoice]) -> TextCompletion:
        return TextCompletion(
            id=self._id, object="text_completion", created=self._created, model=self._model, choices=choices
        )

    def choice(self, index: int, text: str, part: Step | Folded, *, first: bool) -> TextChoice:
        """A choice, or the next chunk of it; `first`: nothing of it came before."""
        prompt = self._prompts[index // self._params.n]
        if first:
            text = prompt.text + text
        choice = TextChoice(index=index, text=text, logprobs=None, finish_reason=None)
        if self._body.logprobs is not None and (first or part.logprobs):
            choice.logprobs = self._logprobs(index, self._body.logprobs, prompt, part)
        if part.finish:
            choice.finish_reason = "length" if part.finish == "length" else "stop"
            choice.stop_reason = part.stop_reason
        if self._body.return_token_ids:
            choice.token_ids = list(part.token_ids)
            if first:
                choice.prompt_token_ids = prompt.ids
        if self._body.prompt_logprobs is not None and part.prompt_logprobs is not None:
            tokenizer = self._front.engine.tokenizer
            choice.prompt_logprobs = prompt_logprobs(part.prompt_logprobs, self._body.prompt_logprobs, tokenizer)
        return choice

    def _logprobs(self, index: int, best: int, prompt: _Prompt, part: Step | Folded) -> TextLogprobs:
        writer = self._writers.get(index)
        if writer is None:
            writer = self._writers[index] = TextLogprobsWriter(
                self._front.engine.tokenizer,
                best,
                numbers=bool(self._body.return_tokens_as_token_ids),
                skip_special=self._params.skip_special_tokens,
            )
        if self._body.echo and part.prompt_logprobs is not None:
            writer.prompt(prompt.ids, part.prompt_logprobs, prompt.opening, prompt.text)
        writer.answer(part.logprobs or ())
        return writer.take()


async def _events(reply: _Reply, answers: Answers, deltas: Begun[tuple[int, TextDelta]]) -> AsyncGenerator[bytes, None]:
    """Chunks, then the usage if it was asked for, then [DONE]; or an error, and nothing after it."""
    try:
        async for prompt, delta in deltas:
            step = answers.take(delta, prompt)
            text = "".join(event.text for event in step.events if isinstance(event, ContentDelta))
            if not (text or step.finish or step.first or step.logprobs or reply.shows_ids):
                continue
            yield data_event(reply.completion([reply.choice(step.index, text, step, first=step.first)]))
        if reply.wants_usage:
            last = reply.completion([])
            last.usage = usage_body(answers.usage)
            yield data_event(last)
        yield data_event("[DONE]")
    except Exception as error:
        yield data_event(ErrorBody(error=detail_of(error)))
        log_unexpected(error)
