"""What one request may ask for, checked before it enters a queue. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perilune.cache.budget import CachePlan
from perilune.cache.geometry import PAGE_TOKENS
from perilune.engine.config import EnginePlan
from perilune.engine.request import SamplingParams
from perilune.errors import ContextLengthError, RequestError
from perilune.models.spec import ModelSpec


@dataclass(frozen=True)
class Limits:
    """`context`: the most tokens, prompt and answer together, that one sequence can hold."""

    vocab: int
    context: int

    @staticmethod
    def of(spec: ModelSpec, plan: EnginePlan) -> Limits:
        return Limits(spec.vocab, min(plan.max_context, _reach(plan.cache)))

    def check(self, prompt: Sequence[int], params: SamplingParams) -> int:
        """The most new tokens this request can get. Raises RequestError or ContextLengthError."""
        self.check_prompt(prompt, answer=1)
        for name, ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
            for token in ids:
                if not 0 <= token < self.vocab:
                    raise RequestError(f"{name} has id {token}, outside the vocabulary of {self.vocab}.", param=name)
        room = self.context - len(prompt)
        return room if params.max_tokens is None else min(room, params.max_tokens)

    def check_prompt(self, prompt: Sequence[int], *, answer: int = 0) -> None:
        """The prompt alone, with room for `answer` tokens after it. Raises RequestError or ContextLengthError."""
        if not prompt:
            raise RequestError("The prompt is empty.", "There is no token to continue from.", param="prompt")
        if len(prompt) + answer > self.context:
            raise ContextLengthError(
                f"The prompt has {len(prompt)} tokens; this server's context is {self.context}.",
                "Prompt and answer share the context.",
                "Shorten the prompt, or start with a larger --max-context (see `perilune plan`).",
                param="prompt",
            )
        low, high = min(prompt), max(prompt)
        if low < 0 or high >= self.vocab:
            bad = low if low < 0 else high
            raise RequestError(f"Token id {bad} is outside the vocabulary of {self.vocab}.", param="prompt")


def _reach(cache: CachePlan) -> int:
    return cache.pages * PAGE_TOKENS
