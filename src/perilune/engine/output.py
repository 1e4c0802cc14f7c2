"""Token events to text deltas, the same for the Python API and the server. Imports no torch."""

from __future__ import annotations

from perilune.engine.messages import TokenEvent
from perilune.engine.request import SamplingParams, TextDelta, TokenLogprobs
from perilune.text.detokenize import TextStream
from perilune.text.tokenizer import Tokenizer


class AnswerStream:
    """One sequence's answer: whole characters, stop strings, counts. Without a tokenizer the text stays empty."""

    def __init__(self, tokenizer: Tokenizer | None, params: SamplingParams, prompt_tokens: int, index: int = 0) -> None:
        self._params, self._prompt_tokens, self._index = params, prompt_tokens, index
        self._completion_tokens = 0
        self._text = None
        if tokenizer is not None:
            self._text = TextStream(
                tokenizer, params.stop, params.include_stop_str_in_output, params.skip_special_tokens
            )

    def push(self, event: TokenEvent) -> TextDelta:
        """The delta one event adds. `finish_reason` may be "stop" for a stop string the engine does not know of."""
        token: TokenLogprobs | None = event.token
        finish, reason = event.finish_reason, event.stop_reason
        text, stopped = "", None
        if token is not None:
            self._completion_tokens += 1
        if self._text is not None:
            if token is not None and not (event.ends_turn and not self._params.include_stop_str_in_output):
                match = self._completion_tokens > self._params.min_tokens
                text = self._text.push([token.token_id], match_stops=match)
            if finish is not None:
                text += self._text.finish()
            stopped = self._text.stopped
        return TextDelta(
            index=self._index,
            text=text,
            token_ids=() if token is None else (token.token_id,),
            logprobs=(token,) if token is not None and self._params.logprobs is not None else None,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            cached_tokens=event.cached_tokens,
            finish_reason="stop" if stopped is not None else finish,
            stop_reason=stopped if stopped is not None else reason,
            prompt_logprobs=event.prompt_logprobs,
            lent=event.lent,
            remote=event.remote,
        )
