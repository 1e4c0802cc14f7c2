"""POST /tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from perilune.errors import RequestError
from perilune.http.json import JsonRoute
from perilune.server.body import StrictBody, TokenId
from perilune.server.chat_body import Message, Tool
from perilune.server.conversation import opens_turn
from perilune.server.front import Front, FrontDep
from perilune.server.marks import take_marks
from perilune.server.openapi import BODY_ERRORS

router = APIRouter(route_class=JsonRoute, tags=["tokens"])


class TokenizeBody(StrictBody):
    """Either a `prompt`, or `messages` for the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None
    add_special_tokens: bool | None = None  # what the checkpoint puts before a raw prompt; yes unless false


class Tokenized(BaseModel):
    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None


class DetokenizeBody(StrictBody):
    model: str | None = None
    tokens: list[TokenId]


class Detokenized(BaseModel):
    prompt: str


@router.post("/tokenize", responses=BODY_ERRORS)
async def tokenize(body: TokenizeBody, front: FrontDep) -> Tokenized:
    """Token ids of a text, or of a conversation as the model would see it."""
    front.model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("Send a prompt or messages.", "Exactly one of them is tokenised.", param="prompt")
    ids = await asyncio.to_thread(_ids, front, body)
    strings = [front.tokenizer().token_text(token) for token in ids] if body.return_token_strs else None
    return Tokenized(tokens=ids, count=len(ids), max_model_len=front.context, token_strs=strings)


@router.post("/detokenize", responses=BODY_ERRORS)
async def detokenize(body: DetokenizeBody, front: FrontDep) -> Detokenized:
    """The text of token ids, control tokens included."""
    front.model(body.model)
    tokenizer, vocabulary = front.tokenizer(), front.engine.spec.vocab
    for token in body.tokens:
        if token >= vocabulary:
            raise RequestError(f"Token id {token} is outside the vocabulary of {vocabulary}.", param="tokens")
    return Detokenized(prompt=await asyncio.to_thread(tokenizer.decode, body.tokens, skip_special=False))


def _ids(front: Front, body: TokenizeBody) -> list[int]:
    if body.prompt is not None:
        return front.encode_prompt(body.prompt, opening=body.add_special_tokens is not False)
    unmarked = take_marks(body.messages or [], body.tools or [])
    prompt = front.chat_template().render(
        unmarked.messages,
        unmarked.tools,
        add_generation_prompt=opens_turn(body.add_generation_prompt, body.continue_final_message),
        continue_final_message=bool(body.continue_final_message),
        extra=body.chat_template_kwargs,
    )
    return prompt.ids
