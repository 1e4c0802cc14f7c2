"""What a completion request may say."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from perilune.engine.request import MAX_LOGPROBS
from perilune.errors import UnsupportedError
from perilune.server.body import INT32_MAX, TokenId
from perilune.server.chat_body import ResponseFormat
from perilune.server.sampling import SamplingFields, streamless

Ids = Annotated[list[TokenId], Field(min_length=1)]


class CompletionBody(SamplingFields):
    """POST /v1/completions: OpenAI's fields, with vLLM's extra ones."""

    model: str | None = None
    prompt: str | Annotated[list[str], Field(min_length=1)] | Ids | Annotated[list[Ids], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    response_format: ResponseFormat | None = None
    add_special_tokens: bool | None = None  # what the checkpoint puts before a raw prompt; yes unless false
    return_tokens_as_token_ids: bool | None = None

    def best_of_prompt(self) -> int | None:
        """SamplingParams.prompt_logprobs: `echo` asks for as many as `logprobs` does. Raises RequestError."""
        asked = (streamless(self.prompt_logprobs, self.stream), self.logprobs if self.echo else None)
        return max((best for best in asked if best is not None), default=None)

    def prompts(self) -> list[str | list[int]]:
        """One entry per prompt."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if isinstance(prompt[0], int):
            return [[token for token in prompt if isinstance(token, int)]]
        return [item for item in prompt if not isinstance(item, int)]

    def refuse_unsupported(self) -> None:
        """Raises UnsupportedError for what OpenAI's API has and this server has not."""
        if self.suffix:
            raise UnsupportedError(
                "suffix is not supported.", "The model was not trained to fill in the middle.",
                "Leave it out.", param="suffix",
            )  # fmt: skip
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise UnsupportedError(
                "best_of is not supported.", "Every answer is returned.", "Leave it out, and set n.", param="best_of"
            )
