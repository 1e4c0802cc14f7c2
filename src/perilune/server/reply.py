"""Parts of answers that chat and completions share: usage, and log probabilities as OpenAI writes them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from pydantic import BaseModel

from perilune.engine.request import TokenLogprobs
from perilune.server.stream import Usage
from perilune.text.tokenizer import Tokenizer

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot write."""


class PromptTokensDetails(BaseModel):
    cached_tokens: int = 0


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: int = 0


class UsageBody(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob] | None


class TextLogprobs(BaseModel):
    """`text_offset` counts characters from the start of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def usage_body(usage: Usage) -> UsageBody:
    return UsageBody(
        prompt_tokens=usage.prompt,
        completion_tokens=usage.completion,
        total_tokens=usage.prompt + usage.completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=usage.reasoning),
    )


def chat_logprobs(tokens: Sequence[TokenLogprobs] | None, tokenizer: Tokenizer | None) -> ChatLogprobs | None:
    if tokens is None:
        return None
    entries = []
    for token in tokens:
        top = [_entry(token_id, logprob, tokenizer) for token_id, logprob in token.top]
        own = _entry(token.token_id, token.logprob, tokenizer)
        entries.append(TokenLogprob(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top))
    return ChatLogprobs(content=entries)


def text_logprobs(tokens: Sequence[TokenLogprobs], tokenizer: Tokenizer | None, offset: int) -> TextLogprobs:
    """In the form of /v1/completions; `offset` is the length of the text before these tokens."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token_text(token.token_id, tokenizer)) if tokenizer else 0
    return TextLogprobs(
        tokens=[token_text(token.token_id, tokenizer) for token in tokens],
        token_logprobs=[max(token.logprob, LOWEST_LOGPROB) for token in tokens],
        top_logprobs=[
            {token_text(token_id, tokenizer): max(logprob, LOWEST_LOGPROB) for token_id, logprob in token.top}
            for token in tokens
        ],
        text_offset=offsets,
    )


def token_text(token_id: int, tokenizer: Tokenizer | None) -> str:
    """The token's text; without a tokenizer, or for an id beyond it, its number in vLLM's form."""
    if tokenizer is None or not 0 <= token_id < tokenizer.vocab_size:
        return f"token_id:{token_id}"
    return tokenizer.token_text(token_id)


def _entry(token_id: int, logprob: float, tokenizer: Tokenizer | None) -> TopLogprob:
    known = list(tokenizer.token_bytes(token_id)) if tokenizer else None
    return TopLogprob(token=token_text(token_id, tokenizer), logprob=max(logprob, LOWEST_LOGPROB), bytes=known)
