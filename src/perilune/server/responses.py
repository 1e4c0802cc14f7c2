"""POST /v1/responses."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from perilune.engine.request import TextDelta
from perilune.http.errors import detail_of, log_unexpected
from perilune.http.json import JsonRoute
from perilune.http.sse import Begun, EventStream, begin, named_event, unless_gone
from perilune.server.conversation import prepare
from perilune.server.front import FrontDep
from perilune.server.openapi import GENERATION_ERRORS, STREAM_OR_JSON
from perilune.server.responses_body import ResponsesBody
from perilune.server.responses_events import EventBody, ItemWriter
from perilune.server.stream import Answers, Finish, Usage
from perilune.text.tokenizer import Tokenizer

router = APIRouter(route_class=JsonRoute, tags=["generation"])

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class ResponseBody(BaseModel):
    """A response. `output` holds reasoning, message and function_call items."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Status
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, Any]
    parallel_tool_calls: bool
    previous_response_id: None
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]


@router.post("/v1/responses", response_model=ResponseBody, responses={**STREAM_OR_JSON, **GENERATION_ERRORS})
async def responses(body: ResponsesBody, request: Request, front: FrontDep) -> Response:
    """Answers a conversation in OpenAI's Responses form, with text and function calls. Keeps nothing."""
    model, top = front.model(body.model), body.top()
    body.refuse_unsupported()
    prepared = await prepare(
        front,
        body.conversation(),
        lambda grammar: body.sampling(max_tokens=body.max_output_tokens, logprobs=top, grammar=grammar),
        front.salt(request),
    )
    reply = _Reply(body, model, front.tokenizer())
    answers, deltas = Answers(prepared.make_reader), front.answer([prepared.job])
    if body.stream:
        begun = await begin(request, deltas)
        return EventStream(_events(reply, answers, begun), begun)
    await unless_gone(request, _whole(reply, answers, deltas))
    return Response(reply.body(answers.usage).model_dump_json(), media_type="application/json")


class _Reply:
    """The response as far as it has come."""

    def __init__(self, body: ResponsesBody, model: str, tokenizer: Tokenizer) -> None:
        self._body, self._model = body, model
        self._id, self._created = f"resp_{uuid.uuid4().hex}", int(time.time())
        self.writer = ItemWriter(tokenizer)
        self.status: Status = "in_progress"
        self.error: dict[str, Any] | None = None

    def finish(self, finish: Finish | None) -> None:
        if finish:
            self.status = "incomplete" if finish == "length" else "completed"

    def body(self, usage: Usage | None) -> ResponseBody:
        sent = self._body
        counts = (
            None
            if usage is None
            else {
                "input_tokens": usage.prompt,
                "input_tokens_details": {"cached_tokens": usage.cached},
                "output_tokens": usage.completion,
                "output_tokens_details": {"reasoning_tokens": usage.reasoning},
                "total_tokens": usage.prompt + usage.completion,
            }
        )
        return ResponseBody(
            id=self._id,
            object="response",
            created_at=self._created,
            status=self.status,
            model=self._model,
            output=self.writer.items,
            usage=counts,
            error=self.error,
            incomplete_details={"reason": "max_output_tokens"} if self.status == "incomplete" else None,
            instructions=sent.instructions,
            max_output_tokens=sent.max_output_tokens,
            metadata=sent.metadata or {},
            parallel_tool_calls=sent.parallel_tool_calls is not False,
            previous_response_id=None,
            store=False,
            temperature=1.0 if sent.temperature is None else sent.temperature,
            text=sent.text.model_dump(by_alias=True, exclude_none=True) if sent.text else {"format": {"type": "text"}},
            tool_choice=_shown(sent.tool_choice),
            tools=sent.tools or [],
            top_logprobs=sent.top_logprobs or 0,
            top_p=1.0 if sent.top_p is None else sent.top_p,
            truncation="disabled",
        )


def _shown(choice: Any) -> Any:
    return choice.model_dump() if isinstance(choice, BaseModel) else choice or "auto"


async def _whole(reply: _Reply, answers: Answers, deltas: AsyncGenerator[tuple[int, TextDelta], None]) -> None:
    async with aclosing(deltas):
        async for prompt, delta in deltas:
            step = answers.take(delta, prompt)
            reply.writer.take(step)
            reply.finish(step.finish)


async def _events(reply: _Reply, answers: Answers, deltas: Begun[tuple[int, TextDelta]]) -> AsyncGenerator[bytes, None]:
    """created, in_progress, the items' own events, then completed or incomplete; or error and failed."""
    number = -1

    def event(fields: EventBody) -> bytes:
        nonlocal number
        number += 1
        return named_event(fields["type"], json.dumps({**fields, "sequence_number": number}))

    def whole(kind: str, usage: Usage | None = None) -> bytes:
        return event({"type": f"response.{kind}", "response": reply.body(usage).model_dump()})

    yield whole("created")
    yield whole("in_progress")
    try:
        async for prompt, delta in deltas:
            step = answers.take(delta, prompt)
            for fields in reply.writer.take(step):
                yield event(fields)
            reply.finish(step.finish)
        yield whole(reply.status, answers.usage)
    except Exception as error:
        detail = detail_of(error)
        reply.status, reply.error = "failed", {"code": "server_error", "message": detail.message}
        yield event({"type": "error", "code": detail.code, "message": detail.message, "param": detail.param})
        yield whole("failed", answers.usage)
        log_unexpected(error)
