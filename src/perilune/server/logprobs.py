"""Log probabilities as clients read them: OpenAI's form for chat, its form for completions, vLLM's for prompts."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from perilune.engine.request import PromptLogprobs, TokenLogprobs
from perilune.text.detokenize import Detokenizer
from perilune.text.tokenizer import Tokenizer

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot write."""


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob] | None


class TextLogprobs(BaseModel):
    """One entry per token, echoed ones included. Nothing foretells the first token of a prompt: its values are null.

    `text_offset` counts characters from the start of the choice's text to the character the token begins or goes on.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(BaseModel):
    logprob: float
    rank: int
    decoded_token: str


PromptEntries = list[dict[str, PromptLogprob] | None]
"""vLLM's `prompt_logprobs`: per token of the prompt, token ids with what is known of each; null for the first."""


def chat_logprobs(tokens: Sequence[TokenLogprobs] | None, tokenizer: Tokenizer | None) -> ChatLogprobs | None:
    return None if tokens is None else ChatLogprobs(content=[token_logprob(token, tokenizer) for token in tokens])


def token_logprob(token: TokenLogprobs, tokenizer: Tokenizer | None) -> TokenLogprob:
    top = [_entry(token_id, logprob, tokenizer) for token_id, logprob in token.top]
    own = _entry(token.token_id, token.logprob, tokenizer)
    return TokenLogprob(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top)


def prompt_logprobs(entries: Sequence[PromptLogprobs | None], best: int, tokenizer: Tokenizer | None) -> PromptEntries:
    """The prompt's own token first, then the `best` likeliest."""
    return [None if entry is None else _ranked(entry, best, tokenizer) for entry in entries]


class TextLogprobsWriter:
    """Writes one choice's log probabilities for /v1/completions, and remembers where in its text they stand."""

    def __init__(self, tokenizer: Tokenizer | None, best: int, *, numbers: bool, skip_special: bool) -> None:
        """`best`: how many alternatives to show. `numbers`: tokens are named by their ids."""
        self._names = None if numbers else tokenizer
        self._tokenizer, self._best, self._skip_special = tokenizer, best, skip_special
        self._at = 0
        self._chars = self._start(skip_special)
        self._written = _nothing()

    def take(self) -> TextLogprobs:
        """What was written since the last call."""
        taken, self._written = self._written, _nothing()
        return taken

    def prompt(self, ids: Sequence[int], entries: Sequence[TokenLogprobs | None], opening: int, text: str) -> None:
        """The echoed prompt. Its `text` is what follows the first `opening` of `ids`, which show nowhere in it."""
        self._chars = None
        for place, (token, entry) in enumerate(zip(ids, entries, strict=True)):
            if place == opening:
                self._chars = self._start(skip_special=False)
            self._write(token, entry)
        self._at, self._chars = len(text), self._start(self._skip_special)

    def answer(self, tokens: Sequence[TokenLogprobs]) -> None:
        for token in tokens:
            self._write(token.token_id, token)

    def _start(self, skip_special: bool) -> Detokenizer | None:
        return Detokenizer(self._tokenizer, skip_special=skip_special) if self._tokenizer else None

    def _write(self, token: int, entry: TokenLogprobs | None) -> None:
        out = self._written
        out.tokens.append(token_text(token, self._names))
        out.text_offset.append(self._at)
        self._at += len(self._chars.push([token])) if self._chars else 0
        if entry is None:
            out.token_logprobs.append(None)
            out.top_logprobs.append(None)
            return
        own = max(entry.logprob, LOWEST_LOGPROB)
        top: dict[str, float] = {}
        for token_id, logprob in (*entry.top[: self._best], (token, own)):
            # two tokens that are no whole characters have one name: the likelier keeps it
            top.setdefault(token_text(token_id, self._names), max(logprob, LOWEST_LOGPROB))
        out.token_logprobs.append(own)
        out.top_logprobs.append(top)


def _nothing() -> TextLogprobs:
    return TextLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])


def token_text(token_id: int, tokenizer: Tokenizer | None) -> str:
    """The token's text; without a tokenizer, or for an id beyond it, its number in vLLM's form."""
    if tokenizer is None or not 0 <= token_id < tokenizer.vocab_size:
        return f"token_id:{token_id}"
    return tokenizer.token_text(token_id)


def _entry(token_id: int, logprob: float, tokenizer: Tokenizer | None) -> TopLogprob:
    known = list(tokenizer.token_bytes(token_id)) if tokenizer else None
    return TopLogprob(token=token_text(token_id, tokenizer), logprob=max(logprob, LOWEST_LOGPROB), bytes=known)


def _ranked(entry: PromptLogprobs, best: int, tokenizer: Tokenizer | None) -> dict[str, PromptLogprob]:
    known = {entry.token_id: (entry.logprob, entry.rank)}
    for rank, (token_id, logprob) in enumerate(entry.top[:best], 1):
        known.setdefault(token_id, (logprob, rank))
    return {
        str(token_id): PromptLogprob(
            logprob=max(logprob, LOWEST_LOGPROB), rank=rank, decoded_token=token_text(token_id, tokenizer)
        )
        for token_id, (logprob, rank) in known.items()
    }
