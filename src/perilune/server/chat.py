"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from perilune.engine.request import Handover, Lend, TextDelta
from perilune.http.errors import ErrorBody, detail_of, log_unexpected
from perilune.http.json import JsonRoute
from perilune.http.sse import Begun, EventStream, begin, data_event, unless_gone
from perilune.server.chat_body import ChatBody
from perilune.server.conversation import prepare
from perilune.server.front import Front, FrontDep
from perilune.server.handover import LentBody, answered, handover_of, kept, prefill_header
from perilune.server.logprobs import ChatLogprobs, PromptEntries, chat_logprobs, prompt_logprobs
from perilune.server.openapi import GENERATION_ERRORS, STREAM_OR_JSON
from perilune.server.reply import UsageBody, new_id, usage_body
from perilune.server.sampling import streamless
from perilune.server.stream import Answers, Call, Finish, Folded, Step, fold
from perilune.text.events import ContentDelta, ReasoningDelta, ToolCallArguments, ToolCallStart

router = APIRouter(route_class=JsonRoute, tags=["generation"])


class FunctionBody(BaseModel):
    name: str
    arguments: str


class ToolCallBody(BaseModel):
    id: str
    type: Literal["function"]
    function: FunctionBody


class MessageBody(BaseModel):
    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallBody] | None = None


class ChoiceBody(BaseModel):
    index: int
    message: MessageBody
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChoiceBody]
    usage: UsageBody
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptEntries | None = None
    kv_transfer_params: LentBody | None = None


class FunctionDelta(BaseModel):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(BaseModel):
    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageBody | None = None


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses={**STREAM_OR_JSON, **GENERATION_ERRORS})
async def chat_completions(body: ChatBody, request: Request, front: FrontDep) -> Response:
    """Answers a conversation. With `"stream": true` the answer comes as server-sent events."""
    handover = handover_of(front, request, body.kv_transfer_params)
    with answered(front, handover):
        return await _answer(body, request, front, handover)


async def _answer(body: ChatBody, request: Request, front: Front, handover: Handover | None) -> Response:
    model, top = front.model(body.model), body.top()
    best = streamless(body.prompt_logprobs, body.stream)
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    prepared = await prepare(
        front,
        body.conversation(),
        lambda grammar: body.sampling(max_tokens=limit, logprobs=top, grammar=grammar, prompt_logprobs=best),
        front.salt(request),
        handover,
    )
    answers, deltas = Answers(prepared.make_reader), front.answer([prepared.job])
    if body.stream and not isinstance(handover, Lend):
        begun = await begin(request, deltas)
        headers = prefill_header(begun.first[1].remote)
        return EventStream(_events(front, body, model, answers, begun), begun, headers)
    choices = await unless_gone(request, fold(deltas, answers, prepared.job.params.n))
    completion = ChatCompletion(
        id=new_id("chatcmpl"),
        object="chat.completion",
        created=int(time.time()),
        model=model,
        choices=[_choice(front, body, index, choice) for index, choice in enumerate(choices)],
        usage=usage_body(answers.usage),
    )
    if body.return_token_ids:
        completion.prompt_token_ids = prepared.job.prompt_ids
    if best is not None and (entries := choices[0].prompt_logprobs) is not None:
        completion.prompt_logprobs = prompt_logprobs(entries, best, front.engine.tokenizer)
    if (lent := choices[0].lent) is not None:
        await kept(front, request, lent)
        completion.kv_transfer_params = LentBody.of(lent)
        completion.choices = completion.choices[: len(choices[0].token_ids)]  # none yet, of what was lent early
    headers = prefill_header(choices[0].remote)
    return Response(completion.model_dump_json(exclude_unset=True), media_type="application/json", headers=headers)


def _choice(front: Front, body: ChatBody, index: int, folded: Folded) -> ChoiceBody:
    message = MessageBody(role="assistant", content=folded.content or (None if folded.calls else ""))
    if folded.reasoning:
        message.reasoning_content = folded.reasoning
    if folded.calls:
        message.tool_calls = [_call(call) for call in folded.calls]
    choice = ChoiceBody(
        index=index,
        message=message,
        logprobs=chat_logprobs(folded.logprobs, front.engine.tokenizer),
        finish_reason=folded.finish,
        stop_reason=folded.stop_reason,
    )
    if body.return_token_ids:
        choice.token_ids = folded.token_ids
    return choice


def _call(call: Call) -> ToolCallBody:
    return ToolCallBody(id=call.id, type="function", function=FunctionBody(name=call.name, arguments=call.arguments))


async def _events(
    front: Front, body: ChatBody, model: str, answers: Answers, deltas: Begun[tuple[int, TextDelta]]
) -> AsyncGenerator[bytes, None]:
    """Chunks, then the usage if it was asked for, then [DONE]; or an error, and nothing after it."""
    name, created = new_id("chatcmpl"), int(time.time())

    def chunk(choices: list[ChunkChoice], usage: UsageBody | None = None) -> bytes:
        made = ChatChunk(id=name, object="chat.completion.chunk", created=created, model=model, choices=choices)
        if body.wants_usage:
            made.usage = usage
        return data_event(made)

    every = bool(body.stream_options and body.stream_options.continuous_usage_stats)
    try:
        async for prompt, delta in deltas:
            step = answers.take(delta, prompt)
            for choice in _chunk_choices(front, body, step):
                yield chunk([choice], usage_body(answers.usage) if every else None)
        if body.wants_usage:
            yield chunk([], usage_body(answers.usage))
        yield data_event("[DONE]")
    except Exception as error:
        yield data_event(ErrorBody(error=detail_of(error)))
        log_unexpected(error)


def _chunk_choices(front: Front, body: ChatBody, step: Step) -> list[ChunkChoice]:
    """One step as chunks: the role first, then each event; the token's own facts ride on the first of its chunks."""
    deltas = [Delta(role="assistant", content="")] if step.first else []
    deltas += [delta for event in step.events if (delta := _delta(event)) is not None]
    token_facts = bool(step.logprobs) or bool(body.return_token_ids and step.token_ids)
    if step.finish or (token_facts and len(deltas) == step.first):
        deltas.append(Delta())
    choices = [ChunkChoice(index=step.index, delta=delta, finish_reason=None) for delta in deltas]
    if token_facts:
        carrier = choices[1 if step.first else 0]
        if step.logprobs:
            carrier.logprobs = chat_logprobs(step.logprobs, front.engine.tokenizer)
        if body.return_token_ids:
            carrier.token_ids = list(step.token_ids)
    if step.finish:
        choices[-1].finish_reason = step.finish
        choices[-1].stop_reason = step.stop_reason
    return choices


def _delta(event: object) -> Delta | None:
    if isinstance(event, ContentDelta):
        return Delta(content=event.text)
    if isinstance(event, ReasoningDelta):
        return Delta(reasoning_content=event.text)
    if isinstance(event, ToolCallStart):
        function = FunctionDelta(name=event.name, arguments="")
        return Delta(tool_calls=[ToolCallDelta(index=event.index, id=event.id, type="function", function=function)])
    if isinstance(event, ToolCallArguments):
        return Delta(tool_calls=[ToolCallDelta(index=event.index, function=FunctionDelta(arguments=event.text))])
    return None
